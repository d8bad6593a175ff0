//! THE-X's network T for 1/x: 1→h→h→1 with ReLU between, trained when the model is compiled.
//!
//! THE-X (Chen et al., Findings of ACL 2022) divides by the sum of cubes with a network of three layers that has learnt 1/x, since its scheme
//! has no division. Under TFHE one look-up does the same, exactly and untrained, where T takes 2·h. So T is here for fidelity only: to run
//! what the paper describes.
//!
//! T learns on the range of the sums of its softmax on the calibration samples, at points that are equidistant in ln x. Inside, its
//! argument is mapped to [−1, 1] and its target is lo/x, in (0, 1]; both scalings are folded into the first and the last map. The loss
//! is the mean square of the relative error, which is what a row of attention is off by. Adam (Kingma, Ba 2015), all points at once, in
//! double precision, with a rate that falls to 0 as a half cosine. Alternative rejected: the plain error, under which the large x, where
//! 1/x is small, count for nothing.
//!
//! At the start, unit j of the first layer is a ramp from 1 at x = lo to 0 at lo·(hi/lo)^(j/h), so knees are as dense as 1/x is steep;
//! the second layer is the identity and some noise, and the last takes the mean, which falls like 1/x already. With usual random weights
//! hardly a knee lies where 1/x bends, and training does not bring it there. In a numpy prototype of just this (h = 64, 2000 steps,
//! three seeds), the relative error is 0.03 to 0.2 % rms for hi/lo from 1.5 to 100, 0.7 to 1.2 % for 1000, and 4 to 8 % for 10,000; with
//! usual random weights, more than 10 % for 100, after 1000 steps.
//!
//! Outside of its range T goes on as a line: below lo, unlike 1/x, it does not explode, so nothing holds its argument there. Calibration
//! leaves the usual margin around the sums, not the headroom above that arguments of 1/x have.

use std::f64::consts::PI;

use ndarray::{Array1, Array2, Axis};
use thex_ir::{ClearOp, NodeId, UnaryFn};

use super::Builder;
use crate::error::Result;

/// Points that T is trained at.
const POINTS: usize = 128;

/// Adam's rate at the start.
const RATE: f64 = 0.003;

/// Decay of Adam's running mean of the gradient.
const MEAN_DECAY: f64 = 0.9;

/// Decay of Adam's running mean of the gradient's square.
const SQUARE_DECAY: f64 = 0.999;

/// Keeps Adam from dividing by 0.
const EPSILON: f64 = 1e-8;

/// Standard deviation of the noise in the second layer's sums, per unit of its inputs.
const NOISE: f64 = 0.3;

/// How a network is trained.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recipe {
    /// Width of both hidden layers, at least 1.
    pub(super) hidden: usize,
    /// Steps of Adam.
    pub(super) steps: usize,
    /// Of the initial weights.
    pub(super) seed: u64,
}

/// x·Wᵀ + b.
#[derive(Clone, Debug, PartialEq)]
struct Layer {
    /// W, [outputs, inputs].
    weights: Array2<f64>,
    /// b.
    bias: Array1<f64>,
}

impl Layer {
    /// Of rows `x`.
    fn apply(&self, x: &Array2<f64>) -> Array2<f64> {
        x.dot(&self.weights.t()) + &self.bias
    }
}

/// Three layers, ReLU after the first two; also what belongs to each of its numbers, such as a gradient.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Network {
    layers: [Layer; 3],
}

impl Network {
    /// Learns 1/x on `[lo, hi]`, 0 < lo < hi, both finite.
    pub(super) fn learn((lo, hi): (f64, f64), recipe: &Recipe) -> Self {
        let ratio = hi / lo;
        let x = log_spaced((1.0, ratio), POINTS);
        let inputs = column(x.iter().map(|x| 2.0 * (x - 1.0) / (ratio - 1.0) - 1.0).collect());
        let mut network = Self::new(ratio, recipe);
        let mut adam = Adam::new(network.numbers().count());
        for step in 0..recipe.steps {
            let progress = step as f64 / recipe.steps as f64;
            let gradient = network.gradient(&inputs, &x);
            adam.step(&mut network, &gradient, 0.5 * RATE * (1.0 + (PI * progress).cos()));
        }
        network.unscaled(lo, hi)
    }

    /// As training starts: see the module. `ratio` is hi/lo.
    fn new(ratio: f64, recipe: &Recipe) -> Self {
        let h = recipe.hidden;
        let mut random = Random(recipe.seed);
        let slope = |j: usize| -0.5 * (ratio - 1.0) / (ratio.powf((j + 1) as f64 / h as f64) - 1.0);
        // A uniform number in [−1, 1] has variance 1/3.
        let noise = NOISE * (3.0 / h as f64).sqrt();
        let mixed = |(i, j): (usize, usize)| f64::from(u8::from(i == j)) + noise * random.uniform();
        let ramps = Array2::from_shape_fn((h, 1), |(j, _)| slope(j));
        let ramps = Layer { bias: Array1::from_shape_fn(h, |j| 1.0 + slope(j)), weights: ramps };
        let mixture = Layer { weights: Array2::from_shape_fn((h, h), mixed), bias: Array1::zeros(h) };
        let mean = Layer { weights: Array2::from_elem((1, h), 1.0 / h as f64), bias: Array1::zeros(1) };
        Self { layers: [ramps, mixture, mean] }
    }

    /// What each layer reads, and the result, for a column of arguments.
    fn forward(&self, x: &Array2<f64>) -> ([Array2<f64>; 3], Array2<f64>) {
        let [first, second, third] = &self.layers;
        let relu = |y: Array2<f64>| y.mapv_into(|v| v.max(0.0));
        let one = relu(first.apply(x));
        let two = relu(second.apply(&one));
        let result = third.apply(&two);
        ([x.clone(), one, two], result)
    }

    /// Gradient of the loss, the mean of (x·T − 1)² over points `x`, whose arguments of T are `inputs`.
    fn gradient(&self, inputs: &Array2<f64>, x: &[f64]) -> Self {
        let (read, result) = self.forward(inputs);
        let of_point = |(t, x): (&f64, &f64)| 2.0 * (t * x - 1.0) * x / inputs.len() as f64;
        let mut outer = column(result.iter().zip(x).map(of_point).collect());
        let mut gradient = self.clone();
        for ((layer, gradient), read) in self.layers.iter().zip(&mut gradient.layers).zip(&read).rev() {
            gradient.weights = outer.t().dot(read);
            gradient.bias = outer.sum_axis(Axis(0));
            outer = outer.dot(&layer.weights);
            // A ReLU that gave 0 passes nothing on. (Before the first layer there is none, and nobody asks.)
            outer.iter_mut().zip(read).filter(|(_, read)| **read <= 0.0).for_each(|(outer, _)| *outer = 0.0);
        }
        gradient
    }

    /// x ↦ 1/x, made of a network for 2·(x − lo)/(hi − lo) − 1 ↦ lo/x.
    fn unscaled(mut self, lo: f64, hi: f64) -> Self {
        let (scale, shift) = (2.0 / (hi - lo), -(hi + lo) / (hi - lo));
        let [first, _, last] = &mut self.layers;
        first.bias.iter_mut().zip(&first.weights).for_each(|(bias, weight)| *bias += shift * weight);
        first.weights.mapv_inplace(|weight| scale * weight);
        last.weights.mapv_inplace(|weight| weight / lo);
        last.bias.mapv_inplace(|bias| bias / lo);
        self
    }

    /// Root mean square of x·T(x) − 1 on a range, each ratio of neighbours alike; finer than what it was trained at.
    pub(super) fn relative_error(&self, range: (f64, f64)) -> f64 {
        let x = log_spaced(range, 4 * POINTS + 1);
        let (_, result) = self.forward(&column(x.clone()));
        let squares: f64 = result.iter().zip(&x).map(|(t, x)| (t * x - 1.0).powi(2)).sum();
        (squares / x.len() as f64).sqrt()
    }

    /// Writes T of each element of a node; the result has its shape.
    pub(super) fn write(&self, build: &mut Builder<'_>, x: NodeId) -> Result<NodeId> {
        let shape = build.graph.node(x).shape.clone();
        // Linear maps act on the last axis.
        let has_axis = shape.last() == Some(&1);
        let apart = ClearOp::Reshape { shape: [&shape[..], &[1]].concat() };
        let mut at = if has_axis { x } else { build.clear("network.apart", apart, &[x])? };
        for (i, layer) in self.layers.iter().enumerate() {
            let name = format!("network{}", i + 1);
            let weights = build.constant(&format!("{name}.weight"), layer.weights.clone().into_dyn());
            let bias = build.constant(&format!("{name}.bias"), layer.bias.clone().into_dyn());
            at = build.clear(&name, ClearOp::Linear, &[at, weights, bias])?;
            if i + 1 < self.layers.len() {
                at = build.unary(&format!("{name}.relu"), vec![UnaryFn::Relu], at)?;
            }
        }
        if has_axis { Ok(at) } else { Ok(build.clear("network.together", ClearOp::Reshape { shape }, &[at])?) }
    }

    /// All weights and biases, layer by layer.
    fn numbers(&self) -> impl Iterator<Item = &f64> {
        self.layers.iter().flat_map(|layer| layer.weights.iter().chain(&layer.bias))
    }

    /// The same, to change.
    fn numbers_mut(&mut self) -> impl Iterator<Item = &mut f64> {
        self.layers.iter_mut().flat_map(|layer| layer.weights.iter_mut().chain(&mut layer.bias))
    }
}

/// `count` ≥ 2 numbers from lo to hi, each the same multiple of the one before.
fn log_spaced((lo, hi): (f64, f64), count: usize) -> Vec<f64> {
    (0..count).map(|i| lo * (hi / lo).powf(i as f64 / (count - 1) as f64)).collect()
}

/// Numbers as rows of length 1.
fn column(values: Vec<f64>) -> Array2<f64> {
    Array1::from_vec(values).insert_axis(Axis(1))
}

/// Adam's running means, for each number of a network.
struct Adam {
    mean: Vec<f64>,
    square: Vec<f64>,
    /// What is left in both of their start at 0.
    left: (f64, f64),
}

impl Adam {
    fn new(numbers: usize) -> Self {
        Self { mean: vec![0.0; numbers], square: vec![0.0; numbers], left: (1.0, 1.0) }
    }

    fn step(&mut self, network: &mut Network, gradient: &Network, rate: f64) {
        self.left = (self.left.0 * MEAN_DECAY, self.left.1 * SQUARE_DECAY);
        let (seen, seen_square) = (1.0 - self.left.0, 1.0 - self.left.1);
        let means = self.mean.iter_mut().zip(&mut self.square);
        for ((number, g), (mean, square)) in network.numbers_mut().zip(gradient.numbers()).zip(means) {
            *mean += (1.0 - MEAN_DECAY) * (g - *mean);
            *square += (1.0 - SQUARE_DECAY) * (g * g - *square);
            *number -= rate * (*mean / seen) / ((*square / seen_square).sqrt() + EPSILON);
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014). Nothing secret depends on it.
struct Random(u64);

impl Random {
    /// Between −1 and 1.
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        (z >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small, for builds without optimisation.
    const SMALL: Recipe = Recipe { hidden: 16, steps: 300, seed: 0 };

    #[test]
    fn it_learns_the_reciprocal() {
        for range in [(0.5, 10.0), (40.0, 100.0)] {
            let error = Network::learn(range, &SMALL).relative_error(range);
            assert!(error < 0.02, "{range:?}: {error}");
        }
    }

    #[test]
    fn training_reduces_the_error() {
        let range = (1.0, 20.0);
        let error = |steps| Network::learn(range, &Recipe { steps, ..SMALL }).relative_error(range);
        assert!(error(100) < 0.5 * error(0));
    }

    #[test]
    fn weights_depend_on_the_seed_alone() {
        let learn = |seed| Network::learn((1.0, 5.0), &Recipe { hidden: 6, steps: 20, seed });
        assert_eq!(learn(1), learn(1));
        assert_ne!(learn(1), learn(2));
    }

    /// A network with random numbers everywhere, so that no argument lies on a kink.
    fn random_network() -> Network {
        let mut network = Network::new(3.0, &Recipe { hidden: 5, steps: 0, seed: 4 });
        let mut random = Random(11);
        network.numbers_mut().for_each(|number| *number = random.uniform());
        network
    }

    #[test]
    fn gradients_agree_with_differences() {
        let x = log_spaced((1.0, 3.0), 9);
        let inputs = column(x.iter().map(|x| x - 2.0).collect());
        let loss = |network: &Network| -> f64 {
            let (_, result) = network.forward(&inputs);
            result.iter().zip(&x).map(|(t, x)| (t * x - 1.0).powi(2)).sum::<f64>() / x.len() as f64
        };
        let network = random_network();
        let gradient: Vec<f64> = network.gradient(&inputs, &x).numbers().copied().collect();
        for (i, gradient) in gradient.iter().enumerate() {
            let moved = |by: f64| {
                let mut moved = network.clone();
                moved.numbers_mut().skip(i).take(1).for_each(|number| *number += by);
                loss(&moved)
            };
            let difference = (moved(1e-6) - moved(-1e-6)) / 2e-6;
            assert!((difference - gradient).abs() < 1e-6 * (1.0 + gradient.abs()), "{i}: {difference} {gradient}");
        }
        assert!(gradient.iter().filter(|g| g.abs() > 1e-3).count() > gradient.len() / 4, "{gradient:?}");
    }

    #[test]
    fn scalings_are_folded_into_the_outer_maps() {
        let (lo, hi) = (2.0, 6.0);
        let (network, x) = (random_network(), log_spaced((lo, hi), 7));
        let (_, wanted) = network.forward(&column(x.iter().map(|x| 2.0 * (x - lo) / (hi - lo) - 1.0).collect()));
        let (_, result) = network.unscaled(lo, hi).forward(&column(x));
        for (wanted, result) in wanted.iter().zip(&result) {
            assert!((wanted / lo - result).abs() < 1e-12, "{wanted} {result}");
        }
    }
}
