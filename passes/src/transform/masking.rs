//! Public attention masks (causality, a frozen mask) as structure: what is masked is multiplied by 0, so nothing demands it and it
//! costs no bootstrap.

use ndarray::ArrayD;
use thex_ir::{ClearOp, Graph, NodeId, Tensor};

use super::bound_masks::MASKED;
use super::{Builder, constant_and_other};
use crate::error::Result;
use crate::pass::PassCx;

/// Takes public masks out of the scores of a softmax; gives the node of 0/1 factors for its numerators, if there is one.
pub(super) fn take_public_mask(
    graph: &mut Graph,
    softmax: NodeId,
    axis: usize,
    cx: &mut PassCx,
) -> Result<Option<NodeId>> {
    let Some((sum, factor)) = masked_sum(graph, graph.operands(softmax)[0]) else { return Ok(None) };
    let Some((addend, scores)) = constant_and_other(graph, sum) else { return Ok(None) };
    let (kept, blind) = kept_factors(&addend, factor, axis);
    if blind > 0 {
        let name = &graph.node(softmax).name;
        cx.approximations
            .push(format!("{name}: {blind} rows are masked altogether; their attention is that without the mask"));
    }
    let finite = addend.mapv(|v| if factor * v <= MASKED { 0.0 } else { v });
    let unmasked = if finite.iter().all(|v| *v == 0.0) {
        scores
    } else {
        let mut build = Builder::replacing(graph, sum);
        let finite = build.constant("finite", finite);
        build.clear("unmasked", ClearOp::Add, &[scores, finite])?
    };
    graph.replace_uses(sum, unmasked);
    let name = graph.node(softmax).name.clone();
    let (hidden, all) = (kept.iter().filter(|k| **k == 0.0).count(), kept.len());
    cx.note(format!("{name}: a public mask hides {hidden} of {all} scores, which are not computed"));
    Ok(Some(Builder::replacing(graph, softmax).constant("kept", kept)))
}

/// The sum on the way to the scores that adds a public mask, and the factor that its result is multiplied by.
fn masked_sum(graph: &Graph, scores: NodeId) -> Option<(NodeId, f64)> {
    let (mut at, mut factor) = (scores, 1.0);
    loop {
        let (value, other) = constant_and_other(graph, at)?;
        match graph.clear_op(at)? {
            ClearOp::Add if value.iter().any(|v| factor * v <= MASKED) => return Some((at, factor)),
            ClearOp::Add => {}
            ClearOp::Mul if value.len() == 1 => factor *= value.iter().sum::<f64>(),
            _ => return None,
        }
        at = other;
    }
}

/// 1 for what is not masked, and the number of rows along `axis` with nothing left, which are all 1 as well.
fn kept_factors(addend: &Tensor, factor: f64, axis: usize) -> (Tensor, usize) {
    let mut kept: ArrayD<f64> = addend.mapv(|v| f64::from(u8::from(factor * v > MASKED)));
    let mut blind = 0;
    if axis < kept.ndim() {
        for mut row in kept.lanes_mut(ndarray::Axis(axis)) {
            if row.iter().all(|k| *k == 0.0) {
                row.fill(1.0);
                blind += 1;
            }
        }
    }
    (kept, blind)
}

/// `numerators` with what is masked set to 0.
pub(super) fn hide(build: &mut Builder<'_>, suffix: &str, numerators: NodeId, kept: Option<NodeId>) -> Result<NodeId> {
    match kept {
        Some(kept) => Ok(build.clear(suffix, ClearOp::Mul, &[numerators, kept])?),
        None => Ok(numerators),
    }
}
