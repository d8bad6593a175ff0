//! Softmax → normalised cubes (THE-X): pᵢ = ReLU(sᵢ/2 + 1)³ / Σⱼ ReLU(sⱼ/2 + 1)³.
//!
//! As reported, the paper prints the score itself as numerator, sᵢ·T(Σⱼ ReLU(sⱼ/2 + 1)³), and T is a network that has learnt 1/x. Only
//! the cube as numerator (as in the public reimplementation) sums to one, and one look-up gives 1/x, so that is form `cube`, which
//! the profile takes. The others are for fidelity:
//!
//! * `cube-network`: the cube over the sum, by T;
//! * `score`: the score over the sum, by look-up. Shares do not sum to one, and are negative for negative scores;
//! * `score-network`: the score over the sum, by T, as printed.
//!
//! Scores below −2 have cube 0, so a mask need only push them there. With the score as numerator a token that an encrypted mask hides
//! keeps a weight all the same; what a public mask hides is multiplied by 0. T takes 2·`hidden` look-ups a row in place of one. One T is
//! trained for each softmax, on the sums that it has on the calibration samples, in the graph as rewritten so far, with room on both sides.

use std::sync::Arc;

use ndarray::{ArrayD, Axis, IxDyn};
use rayon::prelude::*;
use thex_ir::{ClearOp, Graph, NodeId, Reduction, Tensor, UnaryFn, interpret};

use super::masking::{hide, take_public_mask};
use super::reciprocal_network::{Network, Recipe};
use super::{Builder, chosen, fitting};
use crate::analysis::demand;
use crate::choice::{Form, Kind, Numerator, Reciprocal};
use crate::error::{PassError, Result};
use crate::options::PassOption;
use crate::pass::{Pass, PassCx};

/// See the module.
pub struct TheXSoftmax {
    /// When all scores of a row are below −2 all cubes are 0, and so is their sum; below this, it is held here.
    pub least_sum: f64,
    /// Width of both hidden layers of the network for 1/x.
    pub hidden: usize,
    /// Steps that it is trained for.
    pub steps: usize,
    /// Of its initial weights.
    pub seed: usize,
}

/// Room below the least sum that the network learns 1/x for, as a fraction of it, and factor above the largest: as calibration leaves
/// around arguments of 1/x.
const ROOM_BELOW: f64 = 0.2;
const ROOM_ABOVE: f64 = 1.5;

/// The network's range spans at least this factor.
const LEAST_RATIO: f64 = 2.0;

impl Default for TheXSoftmax {
    fn default() -> Self {
        Self { least_sum: 1.0 / 64.0, hidden: 64, steps: 2000, seed: 0 }
    }
}

impl Pass for TheXSoftmax {
    fn name(&self) -> &'static str {
        "the-x-softmax"
    }

    fn description(&self) -> &'static str {
        "replace softmax by normalised cubes ReLU(x/2+1)^3, or scores over their sum, as THE-X does"
    }

    fn source(&self) -> &'static str {
        include_str!("the_x_softmax.rs")
    }

    fn options(&mut self) -> Vec<PassOption<'_>> {
        vec![
            PassOption::number(
                "least-sum",
                &mut self.least_sum,
                1e-4..=1.0,
                "least sum of cubes that the reciprocal tells apart",
            ),
            PassOption::count(
                "hidden",
                &mut self.hidden,
                1..=256,
                "width of both hidden layers of the network for 1/x, in forms that have one",
            ),
            PassOption::count("steps", &mut self.steps, 1..=1 << 20, "steps that the network is trained for"),
            PassOption::count("seed", &mut self.seed, 0..=u32::MAX as usize, "seed of the network's initial weights"),
        ]
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        let nodes = chosen(graph, cx, Kind::Softmax, &Form::CUBES);
        for &id in &nodes {
            let Some(form) = cx.form(graph, id).and_then(Form::cubes) else { continue };
            let how = self.replace(graph, id, form, cx)?;
            let (name, what) = (&graph.node(id).name, describe(form.0));
            cx.approximations.push(format!("{name}: {what} (THE-X){how}"));
        }
        graph.remove_dead();
        cx.count("replaced", nodes.len() as u64);
        Ok(!nodes.is_empty())
    }
}

/// What stands for a softmax.
fn describe(numerator: Numerator) -> &'static str {
    match numerator {
        Numerator::Cube => "softmax replaced by normalised cubes ReLU(x/2+1)^3",
        Numerator::Score => "softmax replaced by scores over sums of cubes ReLU(x/2+1)^3, which do not sum to one",
    }
}

impl TheXSoftmax {
    /// Replaces one softmax; gives what there is to say of the reciprocal.
    fn replace(
        &self,
        graph: &mut Graph,
        id: NodeId,
        (numerator, reciprocal): (Numerator, Reciprocal),
        cx: &mut PassCx,
    ) -> Result<String> {
        let Some(ClearOp::Softmax { axis }) = graph.clear_op(id).cloned() else { return Ok(String::new()) };
        let kept = take_public_mask(graph, id, axis, cx)?;
        let scores = graph.operands(id)[0];
        let mut build = Builder::replacing(graph, id);
        let cube = vec![UnaryFn::Affine { scale: 0.5, shift: 1.0 }, UnaryFn::Relu, UnaryFn::Power { exponent: 3 }];
        let cubes = build.unary("cube", cube, scores)?;
        let cubes = hide(&mut build, "kept", cubes, kept)?;
        let sum = build.clear("sum", ClearOp::Reduce { reduction: Reduction::Sum, axis }, &[cubes])?;
        let (inverse, how) = match reciprocal {
            Reciprocal::LookUp => (self.look_up(&mut build, sum)?, String::new()),
            Reciprocal::Network => self.network(&mut build, Site { id, axis, sum }, cx)?,
        };
        let numerators = match numerator {
            Numerator::Cube => cubes,
            Numerator::Score => hide(&mut build, "kept-scores", scores, kept)?,
        };
        let shares = build.clear("normalise", ClearOp::Mul, &[numerators, inverse])?;
        graph.replace_uses(id, shares);
        Ok(how)
    }

    fn look_up(&self, build: &mut Builder<'_>, sum: NodeId) -> Result<NodeId> {
        let held = UnaryFn::Clamp { lo: self.least_sum, hi: f64::MAX };
        Ok(build.unary("reciprocal", vec![held, UnaryFn::Reciprocal], sum)?)
    }

    /// The reciprocal by a network, and what it came to.
    fn network(&self, build: &mut Builder<'_>, site: Site, cx: &PassCx) -> Result<(NodeId, String)> {
        let (lo, hi) = self.range(extent(build.graph, site, cx)?);
        let recipe = Recipe { hidden: self.hidden, steps: self.steps, seed: self.seed as u64 };
        let network = Network::learn((lo, hi), &recipe);
        let error = 100.0 * network.relative_error((lo, hi));
        let how = format!(
            ", 1/x by a network 1→{h}→{h}→1 trained on [{lo:.3}, {hi:.3}], relative error {error:.2} % rms",
            h = self.hidden
        );
        Ok((network.write(build, site.sum)?, how))
    }

    /// What 1/x is learnt on, for sums between two values.
    fn range(&self, (least, most): (f64, f64)) -> (f64, f64) {
        let lo = (least * (1.0 - ROOM_BELOW)).max(self.least_sum);
        (lo, (ROOM_ABOVE * most).max(LEAST_RATIO * lo))
    }
}

/// A softmax and the sum of cubes that was written for it.
#[derive(Clone, Copy)]
struct Site {
    id: NodeId,
    axis: usize,
    sum: NodeId,
}

/// Least and largest sum, of those that anything reads, on the calibration samples.
fn extent(graph: &Graph, site: Site, cx: &PassCx) -> Result<(f64, f64)> {
    let read = rows_read(graph, site);
    let either = |a: (f64, f64), b: (f64, f64)| (a.0.min(b.0), a.1.max(b.1));
    let of = |sample: &Vec<Arc<Tensor>>| -> Result<(f64, f64)> {
        let values = interpret::run_all(graph, sample)?;
        let sums = values[&site.sum].iter().zip(&read).filter(|(_, read)| **read).map(|(sum, _)| (*sum, *sum));
        Ok(sums.fold(NOTHING, either))
    };
    let parts = cx.samples.par_iter().map(of).collect::<Result<Vec<_>>>()?;
    let (least, most) = parts.iter().copied().fold(NOTHING, either);
    match (parts.is_empty(), least.is_finite() && most.is_finite()) {
        (true, _) => Err(fitting::no_sample(graph, site.id)),
        (false, true) => Ok((least, most)),
        (false, false) => Err(PassError::Invalid(format!(
            "`{}`: its sums of cubes are not finite on the calibration data, so no network can learn their reciprocal: \
             check the data for NaN or infinite values, or choose form `cube`",
            graph.node(site.id).name
        ))),
    }
}

/// Extremes of no value.
const NOTHING: (f64, f64) = (f64::INFINITY, f64::NEG_INFINITY);

/// For each row of a softmax, row-major, whether anything reads it. (Its sum is not read yet.)
fn rows_read(graph: &Graph, site: Site) -> Vec<bool> {
    let flags = demand(graph).remove(&site.id).unwrap_or_default();
    let flags = ArrayD::from_shape_vec(IxDyn(&graph.node(site.id).shape), flags).unwrap_or_default();
    flags.lanes(Axis(site.axis)).into_iter().map(|row| row.iter().any(|flag| *flag)).collect()
}
