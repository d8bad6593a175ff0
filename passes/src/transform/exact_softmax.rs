//! Softmax by look-ups, in two passes over the scores.
//!
//! One exponential over the calibrated range of all scores spans orders of magnitude, and the
//! reciprocal of its sum gets two bits. So the scores are first shifted by a smooth stand-in for their
//! maximum, m = (1/α)·ln Σ exp(α·s): then max s ≤ m ≤ max s + ln(T)/α, the second sum lies in
//! [T^(-1/α), 1], and an error of m is common to a row and cancels. α = ½ measured best. This is exact: the
//! shift cancels in the quotient, whatever m is.
//!
//! The first sum needs a small span too: 1/S₁ of its range is the error of m. Softmax does not see a constant added to
//! a row, and subtracting the row's mean is free when the scores are q·kᵀ: the mean over t of q·k_t is q·k̄, so
//! the keys are centred over the tokens, a linear map. Then S₁ ≥ T (arithmetic and geometric mean), and the keys'
//! own ranges shrink by what they had in common.
//!
//! Where the scores of a head spread so far that even S₁ spans orders of magnitude on the calibration data (MiniLM's first layer:
//! e²¹), the shift is the maximum of the row instead, by a tournament: max(a, b) = b + ReLU(a − b), T − 1 bootstraps a row where
//! the other way takes T + 1. Its errors are common to a row too; each of its log₂ T rounds adds one.

use std::sync::Arc;

use ndarray::{ArrayD, Axis, IxDyn};
use rayon::prelude::*;
use thex_ir::{ClearOp, Graph, NodeId, Reduction, Tensor, UnaryFn, interpret};

use super::masking::{hide, take_public_mask};
use super::{Builder, chosen, constant_and_other};
use crate::choice::{Form, Kind};
use crate::error::Result;
use crate::options::PassOption;
use crate::pass::{Pass, PassCx};

/// See the module.
pub struct ExactSoftmax {
    /// α of the shift.
    pub alpha: f64,
    /// Whether keys are centred over the tokens.
    pub centre_keys: bool,
    /// Largest ratio of the sums S₁ of a head's rows; beyond it the row's maximum is the shift.
    pub most_spread: f64,
}

impl Default for ExactSoftmax {
    fn default() -> Self {
        Self { alpha: 0.5, centre_keys: true, most_spread: 64.0 }
    }
}

impl Pass for ExactSoftmax {
    fn name(&self) -> &'static str {
        "exact-softmax"
    }

    fn description(&self) -> &'static str {
        "expand softmax into exp look-ups after a shift, in two passes or by the row's maximum, and a reciprocal (exact)"
    }

    fn source(&self) -> &'static str {
        include_str!("exact_softmax.rs")
    }

    fn options(&mut self) -> Vec<PassOption<'_>> {
        vec![
            PassOption::number(
                "alpha",
                &mut self.alpha,
                0.05..=1.0,
                "α of the shift (1/α)·ln Σ exp(α·s); 1 is the plain log-sum-exp",
            ),
            PassOption::switch(
                "centre-keys",
                &mut self.centre_keys,
                "subtract from the keys their mean over the tokens",
            ),
            PassOption::number(
                "most-spread",
                &mut self.most_spread,
                1.0..=1e9,
                "ratio of the sums of exponentials of a head's rows beyond which the row's maximum is the shift",
            ),
        ]
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        let nodes = chosen(graph, cx, Kind::Softmax, &[Form::Exact, Form::TwoPass, Form::RowMaximum]);
        if nodes.is_empty() {
            return Ok(false);
        }
        let sites = nodes.iter().map(|&id| self.site(graph, id, cx)).collect::<Result<Vec<_>>>()?;
        let spreads = self.spreads(graph, &sites, cx)?;
        for (site, spread) in sites.iter().zip(spreads) {
            let by_maximum = self.by_maximum(graph, site, spread, cx);
            self.expand(graph, site, by_maximum)?;
        }
        graph.remove_dead();
        cx.count("expanded", nodes.len() as u64);
        Ok(true)
    }
}

/// Samples that are looked at to choose a shift.
const MAX_SAMPLES: usize = 64;

/// A softmax to expand.
struct Site {
    id: NodeId,
    axis: usize,
    /// 0/1 factors of a public mask.
    kept: Option<NodeId>,
    /// How it was chosen to be computed.
    form: Option<Form>,
}

impl ExactSoftmax {
    /// Prepares a softmax: public masks and what the keys have in common taken out.
    fn site(&self, graph: &mut Graph, id: NodeId, cx: &mut PassCx) -> Result<Site> {
        let (shape, form) = (graph.node(id).shape.len(), cx.form(graph, id));
        let axis = match graph.clear_op(id) {
            Some(ClearOp::Softmax { axis }) => *axis,
            _ => shape - 1,
        };
        let kept = take_public_mask(graph, id, axis, cx)?;
        if self.centre_keys {
            centre_keys(graph, id)?;
        }
        Ok(Site { id, axis, kept, form })
    }

    /// Whether the shift is the maximum of the row: as asked for, else by the spread of the sums.
    fn by_maximum(&self, graph: &Graph, site: &Site, spread: f64, cx: &mut PassCx) -> bool {
        let by_spread = spread > self.most_spread;
        let name = &graph.node(site.id).name;
        match site.form {
            Some(Form::TwoPass) => return false,
            Some(Form::RowMaximum) => return true,
            _ if by_spread => cx.note(format!(
                "{name}: shifted by the maximum of each row, since sums of exponentials span a factor of {spread:.1e}"
            )),
            _ => {}
        }
        by_spread
    }

    /// For each softmax, the largest ratio between sums of exp(α·s) over the rows of one head.
    fn spreads(&self, graph: &Graph, sites: &[Site], cx: &PassCx) -> Result<Vec<f64>> {
        let stride = cx.samples.len().div_ceil(MAX_SAMPLES).max(1);
        let samples: Vec<_> = cx.samples.iter().step_by(stride).collect();
        let partial = |sample: &&Vec<Arc<Tensor>>| -> Result<Vec<Vec<(f64, f64)>>> {
            let values = interpret::run_all(graph, sample)?;
            let extremes = |site: &Site| {
                let kept = site.kept.and_then(|k| graph.constant(k));
                self.sums(&values[&graph.operands(site.id)[0]], site.axis, kept)
            };
            Ok(sites.iter().map(extremes).collect())
        };
        let parts = samples.par_iter().map(partial).collect::<Result<Vec<_>>>()?;
        let widest = |i: usize| {
            let heads = parts.first().map_or(0, |p| p[i].len());
            let ends =
                |h: usize| parts.iter().fold((f64::INFINITY, 0.0_f64), |e, p| (e.0.min(p[i][h].0), e.1.max(p[i][h].1)));
            (0..heads).map(|h| ends(h).1 / ends(h).0).fold(1.0, f64::max)
        };
        Ok((0..sites.len()).map(widest).collect())
    }

    /// Least and largest sum of exp(α·s) over the rows of each head.
    fn sums(&self, scores: &Tensor, axis: usize, kept: Option<&Arc<Tensor>>) -> Vec<(f64, f64)> {
        let mut powers = scores.mapv(|s| (self.alpha * s).exp());
        if let Some(kept) = kept {
            powers *= &**kept;
        }
        let sums = powers.sum_axis(Axis(axis));
        let by_head = sums.ndim() == 3;
        let heads = if by_head { sums.shape()[1] } else { 1 };
        let rows = if by_head { sums.shape()[2] } else { sums.len() };
        let mut extremes = vec![(f64::INFINITY, 0.0_f64); heads];
        for (i, sum) in sums.iter().enumerate() {
            let end = &mut extremes[i / rows.max(1) % heads];
            *end = (end.0.min(*sum), end.1.max(*sum));
        }
        extremes
    }

    fn expand(&self, graph: &mut Graph, site: &Site, by_maximum: bool) -> Result<()> {
        let scores = graph.operands(site.id)[0];
        let sum = ClearOp::Reduce { reduction: Reduction::Sum, axis: site.axis };
        let mut build = Builder::replacing(graph, site.id);
        let shift = if by_maximum {
            minus_maximum(&mut build, scores, site)?
        } else {
            self.smooth_shift(&mut build, scores, site)?
        };
        let shifted = build.clear("shifted", ClearOp::Add, &[scores, shift])?;
        let second = build.unary("exp2", vec![UnaryFn::Exp], shifted)?;
        let second = hide(&mut build, "kept2", second, site.kept)?;
        let second_sum = build.clear("sum2", sum, &[second])?;
        let inverse = build.unary("reciprocal", vec![UnaryFn::Reciprocal], second_sum)?;
        let probabilities = build.clear("normalise", ClearOp::Mul, &[second, inverse])?;
        graph.replace_uses(site.id, probabilities);
        Ok(())
    }

    /// −(1/α)·ln Σ exp(α·s).
    fn smooth_shift(&self, build: &mut Builder<'_>, scores: NodeId, site: &Site) -> Result<NodeId> {
        let soften = UnaryFn::Affine { scale: self.alpha, shift: 0.0 };
        let first = build.unary("exp1", vec![soften, UnaryFn::Exp], scores)?;
        let first = hide(build, "kept1", first, site.kept)?;
        let sum = ClearOp::Reduce { reduction: Reduction::Sum, axis: site.axis };
        let first_sum = build.clear("sum1", sum, &[first])?;
        let negate = UnaryFn::Affine { scale: -1.0 / self.alpha, shift: 0.0 };
        Ok(build.unary("shift", vec![UnaryFn::Log, negate], first_sum)?)
    }
}

/// −max s along the axis, by halves.
fn minus_maximum(build: &mut Builder<'_>, scores: NodeId, site: &Site) -> Result<NodeId> {
    let axis = site.axis;
    let minus_one = build.constant("minus-one", ArrayD::from_elem(IxDyn(&[1]), -1.0));
    let mut left = only_kept(build, scores, site.kept)?;
    loop {
        let n = build.graph.node(left).shape[axis];
        if n == 1 {
            return Ok(build.clear("minus-maximum", ClearOp::Mul, &[left, minus_one])?);
        }
        let half = n / 2;
        let a = build.clear("left", ClearOp::Slice { axis, start: 0, end: half }, &[left])?;
        let b = build.clear("right", ClearOp::Slice { axis, start: half, end: 2 * half }, &[left])?;
        let minus_b = build.clear("minus", ClearOp::Mul, &[b, minus_one])?;
        let difference = build.clear("difference", ClearOp::Add, &[a, minus_b])?;
        let excess = build.unary("excess", vec![UnaryFn::Relu], difference)?;
        let larger = build.clear("larger", ClearOp::Add, &[b, excess])?;
        left = if n % 2 == 1 {
            let last = build.clear("last", ClearOp::Slice { axis, start: 2 * half, end: n }, &[left])?;
            build.clear("round", ClearOp::Concat { axis }, &[larger, last])?
        } else {
            larger
        };
    }
}

/// What a masked score counts as in a maximum: less than any that matters.
const LOW: f64 = -64.0;

/// Scores with masked ones at [`LOW`].
fn only_kept(build: &mut Builder<'_>, scores: NodeId, kept: Option<NodeId>) -> Result<NodeId> {
    let Some(kept) = kept else { return Ok(scores) };
    let Some(factors) = build.graph.constant(kept).cloned() else { return Ok(scores) };
    let low = build.constant("low", factors.mapv(|k| LOW * (1.0 - k)));
    let hidden = build.clear("kept1", ClearOp::Mul, &[scores, kept])?;
    Ok(build.clear("low-masked", ClearOp::Add, &[hidden, low])?)
}

/// Subtracts from the keys of a softmax over q·kᵀ (scaled, masked) their mean over the tokens.
fn centre_keys(graph: &mut Graph, id: NodeId) -> Result<()> {
    let last = graph.node(id).shape.len() - 1;
    if graph.clear_op(id) != Some(&ClearOp::Softmax { axis: last }) {
        return Ok(());
    }
    let mut scores = graph.operands(id)[0];
    while let Some(ClearOp::Add | ClearOp::Mul) = graph.clear_op(scores) {
        let Some((factor, source)) = constant_and_other(graph, scores) else { return Ok(()) };
        let uniform = factor.len() == 1 || graph.clear_op(scores) == Some(&ClearOp::Add);
        if !uniform || graph.node(source).shape != graph.node(scores).shape || graph.users(scores).len() > 1 {
            return Ok(());
        }
        scores = source;
    }
    if graph.clear_op(scores) != Some(&ClearOp::MatMul) || graph.users(scores).len() > 1 {
        return Ok(());
    }
    let keys = graph.operands(scores)[1];
    let mut build = Builder::replacing(graph, keys);
    let mean = ClearOp::Reduce { reduction: Reduction::Mean, axis: last };
    let mean = build.clear("mean", mean, &[keys])?;
    let minus_one = build.constant("minus-one", ArrayD::from_elem(IxDyn(&[1]), -1.0));
    let minus = build.clear("minus-mean", ClearOp::Mul, &[mean, minus_one])?;
    let centred = build.clear("centred", ClearOp::Add, &[keys, minus])?;
    graph.set_operand(scores, 1, centred);
    Ok(())
}
