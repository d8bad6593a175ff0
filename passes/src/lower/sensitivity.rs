//! What a small error at any ciphertext does to the outputs.
//!
//! Noise is small, so it propagates to first order: an independent error of variance v at an element adds
//! v·Σ_o (∂out_o/∂element)² to the summed squared error of the outputs. The gradients are taken by running the lowered
//! graph backwards on calibration samples with random signs on the outputs (E over signs of the squared
//! gradient is that sum). Everything that chooses scales, boxes or refreshes uses this one analysis.
//!
//! Derivatives of look-ups are taken over a step of one argument-noise deviation, so kinks are smoothed as
//! the noise smooths them.

use std::collections::BTreeMap;
use std::sync::Arc;

use rayon::prelude::*;
use thex_ir::interpret::{self, Values};
use thex_ir::{Address, Graph, HeLinear, HeOp, NodeId, Op, Tensor, UnaryChain};

use super::usable;
use crate::error::Result;
use crate::pass::PassCx;

/// Samples that are run backwards.
const MAX_SAMPLES: usize = 48;

/// See [`Sensitivity::floored`].
pub const LEAST_PRECISION: f64 = 1.0 / 128.0;

/// See [`Sensitivity::floored`].
pub const FLOOR_SHARE: f64 = 0.1;

/// Mean squared gradients and values of every ciphertext.
#[derive(Clone, Debug)]
pub struct Sensitivity {
    /// For each homomorphic node and element: E Σ_o (∂out_o/∂element)².
    pub gradient: BTreeMap<NodeId, Vec<f64>>,
    /// For each homomorphic node and element: E value².
    pub square: BTreeMap<NodeId, Vec<f64>>,
    /// For each homomorphic node and element: E value.
    pub mean: BTreeMap<NodeId, Vec<f64>>,
    /// Standard deviation of the outputs over the samples, root mean square over output elements.
    pub output_spread: f64,
    /// Number of output elements.
    pub outputs: usize,
    widths: BTreeMap<NodeId, Vec<f64>>,
}

impl Sensitivity {
    /// The same with a floor under every gradient, so that a noise of [`LEAST_PRECISION`] of its range at all elements of a
    /// node costs [`FLOOR_SHARE`] of `budget`, the variance allowed at the outputs.
    ///
    /// Some errors cancel to first order (the shift of a softmax is common to its row), but not when they carry a
    /// value out of its look-up's domain. Whoever minimises error must not be told that such a value is worth nothing.
    #[must_use]
    pub fn floored(&self, budget: f64) -> Self {
        let mut floored = self.clone();
        for (id, gradient) in &mut floored.gradient {
            let Some(widths) = self.widths.get(id) else { continue };
            let share = FLOOR_SHARE * budget / gradient.len().max(1) as f64;
            for (g, width) in gradient.iter_mut().zip(widths).filter(|(_, w)| **w > 0.0) {
                *g += share / (width * LEAST_PRECISION).powi(2);
            }
        }
        floored
    }

    /// Σ over elements of gradient × (width of the range)²: times the variance of a noise relative to the range, this
    /// is the variance that it adds to the outputs.
    #[must_use]
    pub fn weighted_width(&self, id: &NodeId) -> f64 {
        let (Some(gradient), Some(widths)) = (self.gradient.get(id), self.widths.get(id)) else { return 0.0 };
        gradient.iter().zip(widths).map(|(g, w)| g * w * w).sum()
    }
}

#[derive(Clone)]
struct Totals {
    gradient: Vec<Vec<f64>>,
    square: Vec<Vec<f64>>,
    mean: Vec<Vec<f64>>,
    outputs: Vec<(f64, f64)>,
}

impl Totals {
    fn new(graph: &Graph, nodes: &[NodeId]) -> Self {
        let zeros: Vec<Vec<f64>> = nodes.iter().map(|&id| vec![0.0; graph.node(id).shape.iter().product()]).collect();
        let outputs = graph.outputs.iter().map(|(_, id)| graph.node(*id).shape.iter().product::<usize>()).sum();
        Self { gradient: zeros.clone(), square: zeros.clone(), mean: zeros, outputs: vec![(0.0, 0.0); outputs] }
    }

    fn merge(mut self, other: &Self) -> Self {
        let pairs =
            [(&mut self.gradient, &other.gradient), (&mut self.square, &other.square), (&mut self.mean, &other.mean)];
        for (mine, theirs) in pairs {
            for (a, b) in mine.iter_mut().flatten().zip(theirs.iter().flatten()) {
                *a += b;
            }
        }
        for (a, b) in self.outputs.iter_mut().zip(&other.outputs) {
            *a = (a.0 + b.0, a.1 + b.1);
        }
        self
    }
}

/// Runs the analysis on a lowered graph.
///
/// # Errors
/// When the graph cannot be evaluated on the calibration data.
pub fn analyse(graph: &Graph, cx: &PassCx) -> Result<Sensitivity> {
    let order = graph.topological();
    let steps = derivative_steps(graph, cx);
    let stride = cx.samples.len().div_ceil(MAX_SAMPLES).max(1);
    let samples: Vec<&Vec<Arc<Tensor>>> = cx.samples.iter().step_by(stride).collect();
    let partials = samples
        .par_iter()
        .enumerate()
        .map(|(seed, sample)| -> Result<Totals> {
            let values = interpret::run_all(graph, sample)?;
            Ok(backward(graph, &order, &values, &steps, seed as u64))
        })
        .collect::<Result<Vec<_>>>()?;
    // Summed in order, so that the result does not depend on the number of threads.
    let totals = partials.iter().fold(Totals::new(graph, &order), |sum, part| sum.merge(part));
    let n = samples.len().max(1) as f64;
    let average = |v: Vec<f64>| v.into_iter().map(|x| x / n).collect::<Vec<f64>>();
    let variance: f64 = totals.outputs.iter().map(|(s, q)| q / n - (s / n).powi(2)).sum();
    let outputs = totals.outputs.len();
    Ok(Sensitivity {
        gradient: order.iter().copied().zip(totals.gradient.into_iter().map(average)).collect(),
        square: order.iter().copied().zip(totals.square.into_iter().map(average)).collect(),
        mean: order.iter().copied().zip(totals.mean.into_iter().map(average)).collect(),
        output_spread: (variance / outputs.max(1) as f64).max(1e-12).sqrt(),
        outputs,
        widths: order.iter().map(|&id| (id, widths(graph, id))).collect(),
    })
}

fn widths(graph: &Graph, id: NodeId) -> Vec<f64> {
    let node = graph.node(id);
    let count = node.shape.iter().product();
    let ranges = node.facts.ranges.as_ref();
    (0..count).map(|i| ranges.map_or(0.0, |r| r.of(i).1 - r.of(i).0)).collect()
}

/// For each keyswitch element: (step, lo, hi) over which its look-ups are differentiated.
fn derivative_steps(graph: &Graph, cx: &PassCx) -> BTreeMap<NodeId, Vec<(f64, f64, f64)>> {
    let sigma = cx.noise().argument().sqrt();
    let mut steps = BTreeMap::new();
    for id in graph.ids() {
        let Op::He(HeOp::Keyswitch { positions, .. }) = &graph.node(id).op else { continue };
        let Some(ranges) = &graph.node(id).facts.ranges else { continue };
        let reach = usable(&cx.parameters, *positions);
        let of = |i| {
            let (lo, hi) = ranges.of(i);
            (sigma * (hi - lo) / reach, lo, hi)
        };
        steps.insert(id, (0..ranges.class.len()).map(of).collect());
    }
    steps
}

/// Derivative of a look-up that saturates outside [lo, hi], over ±step.
fn slope(chain: &UnaryChain, x: f64, (step, lo, hi): (f64, f64, f64)) -> f64 {
    let (a, b) = ((x - step).clamp(lo, hi), (x + step).clamp(lo, hi));
    if step <= 0.0 {
        return 0.0;
    }
    (chain.apply(b) - chain.apply(a)) / (2.0 * step)
}

/// splitmix64: signs for the outputs.
fn sign(seed: u64, index: u64) -> f64 {
    let mut z = (seed << 32 ^ index).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    if (z ^ (z >> 31)) & 1 == 0 { 1.0 } else { -1.0 }
}

type Gradients = BTreeMap<NodeId, Vec<f64>>;

fn backward(
    graph: &Graph,
    order: &[NodeId],
    values: &Values,
    steps: &BTreeMap<NodeId, Vec<(f64, f64, f64)>>,
    seed: u64,
) -> Totals {
    let mut gradients: Gradients =
        order.iter().map(|&id| (id, vec![0.0; graph.node(id).shape.iter().product()])).collect();
    let mut totals = Totals::new(graph, order);
    let mut output = 0;
    for (_, id) in &graph.outputs {
        let gradient = gradients.entry(*id).or_default();
        for (g, value) in gradient.iter_mut().zip(values[id].iter()) {
            *g = sign(seed, output as u64);
            totals.outputs[output] = (*value, value * value);
            output += 1;
        }
    }
    for (position, &id) in order.iter().enumerate().rev() {
        let gradient = gradients.remove(&id).unwrap_or_default();
        if let Op::He(op) = &graph.node(id).op {
            propagate(op, &graph.operands(id), &gradient, values, steps, &mut gradients);
        }
        totals.gradient[position] = gradient.iter().map(|g| g * g).collect();
        totals.mean[position] = values[&id].iter().copied().collect();
        totals.square[position] = values[&id].iter().map(|v| v * v).collect();
    }
    totals
}

fn scatter(gather: &[Address], gradient: &[f64], operands: &[NodeId], gradients: &mut Gradients) {
    for (address, g) in gather.iter().zip(gradient).filter(|(a, _)| **a != Address::ABSENT) {
        if let Some(target) = gradients.get_mut(&operands[address.port as usize]) {
            target[address.index as usize] += g;
        }
    }
}

fn propagate(
    op: &HeOp,
    operands: &[NodeId],
    gradient: &[f64],
    values: &Values,
    steps: &BTreeMap<NodeId, Vec<(f64, f64, f64)>>,
    gradients: &mut Gradients,
) {
    match op {
        HeOp::Encrypt => {}
        HeOp::Linear { map, .. } => propagate_linear(map, operands, gradient, gradients),
        HeOp::Keyswitch { gather, .. } | HeOp::Pack { gather, .. } | HeOp::Decrypt { gather } => {
            scatter(gather, gradient, operands, gradients);
        }
        HeOp::Pbs { chain } => {
            let (x, steps) = (&values[&operands[0]], &steps[&operands[0]]);
            if let Some(target) = gradients.get_mut(&operands[0]) {
                for (i, (x, g)) in x.iter().zip(gradient).enumerate() {
                    target[i] += g * slope(chain, *x, steps[i]);
                }
            }
        }
        HeOp::LutProduct { chain, argument, accumulator, slots } => {
            let x: Vec<f64> = values[&operands[0]].iter().copied().collect();
            let y: Vec<f64> = values[&operands[1]].iter().copied().collect();
            let steps = &steps[&operands[0]];
            let (mut dx, mut dy) = (vec![0.0; x.len()], vec![0.0; y.len()]);
            for (r, (&a, &p)) in argument.iter().zip(accumulator.iter()).enumerate() {
                let (a, p) = (a as usize, p as usize);
                let (factor, rate) = (chain.apply(x[a]), slope(chain, x[a], steps[a]));
                for s in 0..*slots {
                    let g = gradient[r * slots + s];
                    dx[a] += g * rate * y[p * slots + s];
                    dy[p * slots + s] += g * factor;
                }
            }
            for (operand, delta) in [(operands[0], dx), (operands[1], dy)] {
                if let Some(target) = gradients.get_mut(&operand) {
                    target.iter_mut().zip(delta).for_each(|(t, d)| *t += d);
                }
            }
        }
    }
}

fn propagate_linear(map: &HeLinear, operands: &[NodeId], gradient: &[f64], gradients: &mut Gradients) {
    let (m, k) = (map.outputs, map.operands);
    for (g, &set) in map.set.iter().enumerate() {
        let weights = &map.weights[set as usize * m * k..(set as usize + 1) * m * k];
        let out = &gradient[g * m..(g + 1) * m];
        let mut delta = vec![0.0; k];
        for (row, g) in weights.chunks(k.max(1)).zip(out) {
            delta.iter_mut().zip(row).for_each(|(d, w)| *d += g * w);
        }
        scatter(&map.gather[g * k..(g + 1) * k], &delta, operands, gradients);
    }
}
