//! Softmax by look-ups, in two passes over the scores.
//!
//! One exponential over the calibrated range of all scores spans orders of magnitude, and the
//! reciprocal of its sum gets two bits. So the scores are first shifted by a smooth stand-in for their
//! maximum, m = (1/α)·ln Σ exp(α·s): then max s ≤ m ≤ max s + ln(T)/α, the second sum lies in
//! [T^(-1/α), 1], and an error of m is common to a row and cancels. α = ½ measured best. This is exact: the
//! shift cancels in the quotient, whatever m is.

use thex_ir::{ClearOp, Graph, NodeId, Reduction, UnaryFn};

use super::{Builder, find};
use crate::error::Result;
use crate::pass::{Pass, PassCx, Profile};

/// See the module.
pub struct ExactSoftmax {
    /// α of the shift.
    pub alpha: f64,
}

impl Default for ExactSoftmax {
    fn default() -> Self {
        Self { alpha: 0.5 }
    }
}

impl Pass for ExactSoftmax {
    fn name(&self) -> &'static str {
        "exact-softmax"
    }

    fn description(&self) -> &'static str {
        "expand softmax into two passes of exp look-ups, a log and a reciprocal (exact)"
    }

    fn applies(&self, profile: Profile) -> bool {
        profile == Profile::Exact
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
