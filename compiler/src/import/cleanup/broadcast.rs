//! Broadcasts that change nothing, and those before a sum or product, which broadcasts by itself.

use thex_circuit::clear::{ClearOp, infer_shape};
use thex_ir::{Graph, NodeId};

use super::super::error::Result;
use super::replace;

/// Drops broadcasts.
pub(super) fn run(graph: &mut Graph) -> Result<bool> {
    let mut changed = false;
    for id in graph.topological() {
        if !matches!(graph.clear_op(id), Some(ClearOp::Broadcast { .. })) {
            continue;
        }
        let source = graph.operands(id)[0];
        if graph.node(source).shape == graph.node(id).shape {
            replace(graph, id, source);
            changed = true;
            continue;
        }
        for (user, port) in graph.users(id) {
            if needs_no_broadcast(graph, user, port, source) {
                graph.set_operand(user, port, source);
                changed = true;
            }
        }
    }
    Ok(changed)
}

fn needs_no_broadcast(graph: &Graph, user: NodeId, port: u32, source: NodeId) -> bool {
    let Some(op @ (ClearOp::Add | ClearOp::Mul)) = graph.clear_op(user) else {
        return false;
    };
    let mut operands = graph.operands(user);
    operands[port as usize] = source;
    let shapes: Vec<&[usize]> = operands.iter().map(|o| graph.node(*o).shape.as_slice()).collect();
    infer_shape(op, &shapes).is_ok_and(|shape| shape == graph.node(user).shape)
}
