//! Slices of everything, slices of slices, and concatenations of one part.

use thex_circuit::clear::ClearOp;
use thex_ir::Graph;

use super::super::error::Result;
use super::{add, inherit, replace};

/// Drops and merges slices.
pub(super) fn run(graph: &mut Graph) -> Result<bool> {
    let mut changed = false;
    for id in graph.topological() {
        let source = graph.operands(id).first().copied();
        let (Some(op), Some(source)) = (graph.clear_op(id).cloned(), source) else {
            continue;
        };
        let cuts = matches!(op, ClearOp::Slice { .. } | ClearOp::Concat { .. });
        if cuts && graph.operands(id).len() == 1 && graph.node(source).shape == graph.node(id).shape {
            replace(graph, id, source);
            changed = true;
            continue;
        }
        let (ClearOp::Slice { axis, start, end }, Some(ClearOp::Slice { axis: inner, start: offset, .. })) =
            (op, graph.clear_op(source).cloned())
        else {
            continue;
        };
        if axis == inner {
            let x = graph.operands(source)[0];
            let op = ClearOp::Slice { axis, start: offset + start, end: offset + end };
            let merged = add(graph, source, op, &[x])?;
            inherit(graph, merged, id);
            replace(graph, id, merged);
            changed = true;
        }
    }
    Ok(changed)
}
