//! rms-norm(x − mean(x)) is layer-norm(x).

use thex_circuit::clear::{ClearOp, Reduction};
use thex_ir::{Graph, NodeId};

use super::super::error::Result;
use super::{add, close, inherit, replace, uniform};

/// Recognises layer norms.
pub(super) fn run(graph: &mut Graph) -> Result<bool> {
    let mut changed = false;
    for id in graph.topological() {
        let Some(ClearOp::RmsNorm { epsilon }) = graph.clear_op(id).cloned() else {
            continue;
        };
        let centred = graph.operands(id)[0];
        if let Some((x, parts)) = centred_of(graph, centred) {
            let norm = add(graph, id, ClearOp::LayerNorm { epsilon }, &[x])?;
            for part in parts {
                inherit(graph, norm, part);
            }
            replace(graph, id, norm);
            changed = true;
        }
    }
    Ok(changed)
}

/// The x of x + mean(x)·(−1), with the nodes in between.
fn centred_of(graph: &Graph, sum: NodeId) -> Option<(NodeId, [NodeId; 3])> {
    let Some(ClearOp::Add) = graph.clear_op(sum) else {
        return None;
    };
    let operands = graph.operands(sum);
    let (x, negative) = (operands[0], operands[1]);
    let Some(ClearOp::Mul) = graph.clear_op(negative) else {
        return None;
    };
    let (mean, sign) = (graph.operands(negative)[0], graph.operands(negative)[1]);
    let last = graph.node(x).shape.len().checked_sub(1)?;
    let is_mean = *graph.clear_op(mean)? == ClearOp::Reduce { reduction: Reduction::Mean, axis: last };
    let matches = is_mean && graph.operands(mean)[0] == x && close(uniform(graph, sign)?, -1.0);
    matches.then_some((x, [sum, negative, mean]))
}
