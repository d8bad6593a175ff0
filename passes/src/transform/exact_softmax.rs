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

use thex_ir::{ClearOp, Graph, NodeId, Reduction, UnaryFn};

use super::{Builder, constant_and_other, find};
use crate::error::Result;
use crate::options::PassOption;
use crate::pass::{Pass, PassCx, Profile};

/// See the module.
pub struct ExactSoftmax {
    /// α of the shift.
    pub alpha: f64,
    /// Whether keys are centred over the tokens.
    pub centre_keys: bool,
}

impl Default for ExactSoftmax {
    fn default() -> Self {
        Self { alpha: 0.5, centre_keys: true }
    }
}

impl Pass for ExactSoftmax {
    fn name(&self) -> &'static str {
        "exact-softmax"
    }

    fn description(&self) -> &'static str {
        "expand softmax into two passes of exp look-ups, a log and a reciprocal (exact)"
    }

    fn source(&self) -> &'static str {
        include_str!("exact_softmax.rs")
    }

    fn applies(&self, profile: Profile) -> bool {
        profile == Profile::Exact
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
        ]
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        let nodes = find(graph, |op| matches!(op, ClearOp::Softmax { .. }));
        for &id in &nodes {
            self.replace(graph, id)?;
        }
        graph.remove_dead();
        cx.count("expanded", nodes.len() as u64);
        Ok(!nodes.is_empty())
    }
}

impl ExactSoftmax {
    fn replace(&self, graph: &mut Graph, id: NodeId) -> Result<()> {
        let Some(ClearOp::Softmax { axis }) = graph.clear_op(id).cloned() else { return Ok(()) };
        if self.centre_keys {
            centre_keys(graph, id)?;
        }
        let scores = graph.operands(id)[0];
        let sum = ClearOp::Reduce { reduction: Reduction::Sum, axis };
        let mut build = Builder::replacing(graph, id);
        let soften = UnaryFn::Affine { scale: self.alpha, shift: 0.0 };
        let first = build.unary("exp1", vec![soften, UnaryFn::Exp], scores)?;
        let first_sum = build.clear("sum1", sum.clone(), &[first])?;
        let negate = UnaryFn::Affine { scale: -1.0 / self.alpha, shift: 0.0 };
        let shift = build.unary("shift", vec![UnaryFn::Log, negate], first_sum)?;
        let shifted = build.clear("shifted", ClearOp::Add, &[scores, shift])?;
        let second = build.unary("exp2", vec![UnaryFn::Exp], shifted)?;
        let second_sum = build.clear("sum2", sum, &[second])?;
        let inverse = build.unary("reciprocal", vec![UnaryFn::Reciprocal], second_sum)?;
        let probabilities = build.clear("normalise", ClearOp::Mul, &[second, inverse])?;
        graph.replace_uses(id, probabilities);
        Ok(())
    }
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
    let minus_one = build.constant("minus-one", ndarray::ArrayD::from_elem(ndarray::IxDyn(&[1]), -1.0));
    let minus = build.clear("minus-mean", ClearOp::Mul, &[mean, minus_one])?;
    let centred = build.clear("centred", ClearOp::Add, &[keys, minus])?;
    graph.set_operand(scores, 1, centred);
    Ok(())
}
