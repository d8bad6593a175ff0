//! Control variates: the line in a function is computed linearly, and only the rest is looked up.
//!
//! The argument of a look-up is noisy (keyswitch and modulus switch, 2^-9.7 of the torus), the ciphertext that it was made from is not
//! (2^-20 and below). A look-up of f errs by f′(x)·ε. Of f(x) = a·x + g(x) the line needs no bootstrap: it is a linear map of what x was made
//! from, and merges with whatever reads f. Then the error is (f′(x) − a)·ε. This is the control variate of Monte Carlo methods, with the
//! argument's noise as the sample.
//!
//! A blind rotation gives g(x + P) = −g(x) for an argument of period 2P, so a look-up has half the torus for its arguments and needs the other
//! half empty. ReLU(x) − x/2 = |x|/2 satisfies that by itself, up to the constant P/4, if its range is centred: the whole torus is its
//! domain, its arguments have one more bit, and past the edge the sign does not flip. Together that takes the variance of ReLU's error to an
//! eighth: a quarter by the bit, a half by the line.
//!
//! Measured and left out: lines alone, over half the torus. GELU's error keeps 87 % of its variance. 1/√, 1/x and exp would gain more, but they stand
//! between sums of equal weights, whose exactness is lost when lines run through them: digits ViT, modelled 0.21 → 0.54.

use std::collections::BTreeMap;

use thex_circuit::Parameters;
use thex_ir::he::Domain;
use thex_ir::{ClearOp, Graph, HeOp, LookUp, NodeId, Op, UnaryChain, UnaryFn};

use super::insert_bootstraps::{Lowered, magnitude};
use super::sensitivity::Sensitivity;
use super::{relative_noise, usable};
use crate::pass::PassCx;

/// How a function is looked up over the full torus.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Variate {
    /// a.
    pub slope: f64,
    /// The range of the argument is [-r, r], r this many times its largest magnitude.
    pub reach: f64,
}

impl Variate {
    /// The range that an argument of this range is given.
    #[must_use]
    pub fn reached(&self, range: (f64, f64)) -> (f64, f64) {
        let end = self.reach * magnitude(range);
        (-end, end)
    }
}

/// Variates by node of the calibrated graph; the others are looked up whole.
pub type Variates = BTreeMap<NodeId, Variate>;

/// Argument noise that is left must be less than this part, or a variate is not worth its larger linear maps.
const WORTH: f64 = 0.75;

/// Functions whose argument noise is less than this part of all look-ups' are left alone.
const LEAST_SHARE: f64 = 0.005;

/// Ranges that are tried, in parts of the largest magnitude.
const REACHES: [f64; 4] = [1.0, 1.15, 1.3, 1.5];

/// Largest deviation from the law inside the range, relative to its width.
const MOST_DEVIATION: f64 = 1.0 / 512.0;

/// Points of a range at which functions are tried.
const POINTS: usize = 64;

/// The constant around which what is looked up over the full torus, of half period P, changes its sign: the law holds exactly at ±P/2.
#[must_use]
pub fn centre(function: &LookUp, half_period: f64) -> f64 {
    0.5 * (function.apply(0.5 * half_period) + function.apply(-0.5 * half_period))
}

/// What a table over the full torus gives at x in [-P, P]: exact where |x| ≤ P/2, elsewhere what the law makes of the other half.
#[must_use]
pub fn mirrored(function: &LookUp, half_period: f64, x: f64) -> f64 {
    if x.abs() <= 0.5 * half_period {
        return function.apply(x);
    }
    2.0 * centre(function, half_period) - function.apply(x - half_period.copysign(x))
}

/// Chooses a variate for every function that gains by one, and says so.
#[must_use]
pub fn choose(graph: &Graph, lowered: &Lowered, sensitivity: &Sensitivity, cx: &mut PassCx) -> Variates {
    let sites: Vec<(NodeId, Site)> =
        lowered.look_ups.iter().filter_map(|(&id, &pbs)| Some((id, Site::new(lowered, pbs, sensitivity)?))).collect();
    let size = cx.parameters.polynomial_size.0;
    let [half, full] = [size, 2 * size].map(|positions| relative_noise(&cx.parameters, Domain::new(positions)));
    let all: f64 = sites.iter().map(|(_, site)| site.error(half, None)).sum();
    let mut variates = Variates::new();
    for (id, site) in sites {
        let Op::Clear(ClearOp::Unary { chain }) = &graph.node(id).op else { continue };
        let Some(variate) = site.variate(chain, &cx.parameters) else { continue };
        let (plain, left) = (site.error(half, None), site.error(full, Some(&variate)));
        if plain > LEAST_SHARE * all && left < WORTH * plain {
            let (name, slope, left) = (&graph.node(id).name, variate.slope, 100.0 * left / plain);
            cx.note(format!(
                "{name}: less {slope:.3}·x over the full torus, {left:.0} % of its argument noise is left"
            ));
            cx.count("variates", 1);
            variates.insert(id, variate);
        }
    }
    variates
}

/// Functions with one bend between two lines; others would keep the law by chance at best.
fn bends(function: &UnaryFn) -> bool {
    matches!(function, UnaryFn::Relu | UnaryFn::Abs | UnaryFn::Gelu | UnaryFn::GeluTanh | UnaryFn::Silu)
}

/// One function: what is known of each of its elements.
struct Site {
    elements: Vec<Element>,
}

struct Element {
    range: (f64, f64),
    /// E g², E g²f′, E g²f′²: g the gradient at the result.
    moments: [f64; 3],
}

impl Site {
    fn new(lowered: &Lowered, pbs: NodeId, sensitivity: &Sensitivity) -> Option<Self> {
        let graph = &lowered.graph;
        let Op::He(HeOp::Pbs { .. }) = &graph.node(pbs).op else { return None };
        let ranges = graph.node(graph.operands(pbs)[0]).facts.ranges.clone()?;
        let (gradient, rates) = (sensitivity.gradient.get(&pbs)?, sensitivity.rates.get(&pbs)?);
        let element =
            |(i, (g, r)): (usize, (&f64, &[f64; 2]))| Element { range: ranges.of(i), moments: [*g, r[0], r[1]] };
        Some(Self { elements: gradient.iter().zip(rates).enumerate().map(element).collect() })
    }

    /// What argument noise of this variance, relative to the range, adds to the outputs.
    fn error(&self, noise: f64, variate: Option<&Variate>) -> f64 {
        let of = |e: &Element| {
            let (lo, hi) = variate.map_or(e.range, |v| v.reached(e.range));
            let slope = variate.map_or(0.0, |v| v.slope);
            let [square, first, second] = e.moments;
            noise * (hi - lo).powi(2) * (second - 2.0 * slope * first + slope * slope * square)
        };
        self.elements.iter().map(of).sum()
    }

    /// How the function is looked up over the full torus, if it keeps the law well enough there.
    fn variate(&self, chain: &UnaryChain, parameters: &Parameters) -> Option<Variate> {
        if !chain.0.iter().any(bends) {
            return None;
        }
        let fill = usable(parameters, Domain::new(2 * parameters.polynomial_size.0));
        REACHES.iter().find_map(|&reach| {
            let half_period = |e: &Element| reach * magnitude(e.range) / fill;
            let slopes = self.elements.iter().map(|e| slope_between(chain, half_period(e)));
            let slope = slopes.sum::<f64>() / self.elements.len() as f64;
            let function = LookUp { chain: chain.clone(), slope };
            let keeps = |e: &Element| deviation(&function, e.range, half_period(e)) <= MOST_DEVIATION;
            (slope.is_finite() && self.elements.iter().all(keeps)).then_some(Variate { slope, reach })
        })
    }
}

/// The slope that makes a function meet the law at the ends: (f(P) − f(−P))/2P.
fn slope_between(chain: &UnaryChain, half_period: f64) -> f64 {
    (chain.apply(half_period) - chain.apply(-half_period)) / (2.0 * half_period)
}

/// How far what is looked up departs from the function in the range, relative to its width.
fn deviation(function: &LookUp, (lo, hi): (f64, f64), half_period: f64) -> f64 {
    let at = |i: usize| lo + (hi - lo) * i as f64 / POINTS as f64;
    let off = |x: f64| (mirrored(function, half_period, x) - function.apply(x)).abs();
    let most = (0..=POINTS).map(at).map(off).fold(0.0, |m: f64, d| if d > m || d.is_nan() { d } else { m });
    if hi > lo { most / (hi - lo) } else { 0.0 }
}

/// Extremes of a function over a range, by sampling, with room for what lies between the samples.
#[must_use]
pub(super) fn extremes(function: &LookUp, (lo, hi): (f64, f64)) -> (f64, f64) {
    let at = |i: usize| function.apply(lo + (hi - lo) * i as f64 / POINTS as f64);
    let (least, most) = (0..=POINTS).map(at).fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
    let room = (most - least) / POINTS as f64;
    (least - room, most + room)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn less(function: UnaryFn, slope: f64) -> LookUp {
        LookUp { chain: UnaryChain::from(function), slope }
    }

    fn site(range: (f64, f64)) -> Site {
        // Half of the arguments on each side of the bend.
        Site { elements: vec![Element { range, moments: [1.0, 0.5, 0.5] }] }
    }

    #[test]
    fn relu_less_its_line_keeps_the_law_and_has_an_eighth_of_the_error() {
        let relu = less(UnaryFn::Relu, 0.5);
        assert!((slope_between(&relu.chain, 3.0) - 0.5).abs() < 1e-12);
        assert!((centre(&relu, 4.0) - 1.0).abs() < 1e-12);
        assert!(deviation(&relu, (-3.9, 3.9), 4.0) < 1e-12);
        let parameters = Parameters::standard();
        let size = parameters.polynomial_size.0;
        let site = site((-2.0, 2.0));
        let variate = site.variate(&relu.chain, &parameters).expect("ReLU has one");
        let noise = |positions| relative_noise(&parameters, Domain::new(positions));
        let left = site.error(noise(2 * size), Some(&variate)) / site.error(noise(size), None);
        assert!((0.1..0.13).contains(&left), "{left}");
    }

    #[test]
    fn ranges_on_one_side_of_the_bend_gain_nothing() {
        let variate = Variate { slope: 0.5, reach: 1.0 };
        assert_eq!(variate.reached((-1.0, 8.0)), (-8.0, 8.0));
        let site = Site { elements: vec![Element { range: (0.0, 8.0), moments: [1.0, 1.0, 1.0] }] };
        // Twice the width, half the slope: the bit is spent on the empty side.
        let left = site.error(1.0, Some(&variate)) / site.error(4.0, None);
        assert!((left - 0.25).abs() < 1e-12, "{left}");
    }

    #[test]
    fn gelu_keeps_it_away_from_the_edges() {
        let gelu = less(UnaryFn::Gelu, 0.5);
        assert!(
            deviation(&gelu, (-4.0, 4.0), 4.0) > MOST_DEVIATION,
            "its bend is round, and there is another one at the edge"
        );
        assert!(deviation(&gelu, (-6.0, 6.0), 9.0) < MOST_DEVIATION);
    }

    #[test]
    fn an_exponential_has_none() {
        assert_eq!(site((-4.0, 4.0)).variate(&UnaryChain::from(UnaryFn::Exp), &Parameters::standard()), None);
        let slope = slope_between(&UnaryChain::from(UnaryFn::Exp), 4.0);
        assert!(deviation(&less(UnaryFn::Exp, slope), (-4.0, 0.0), 4.0) > MOST_DEVIATION);
    }
}
