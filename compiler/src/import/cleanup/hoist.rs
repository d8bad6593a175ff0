//! Functions of each element go before the reshapes and transposes of their argument: the chains on either
//! side become one, and a scaling of the queries meets the linear map that makes them.

use thex_circuit::clear::ClearOp;
use thex_ir::{Graph, NodeId};

use super::super::error::Result;
use super::{add, has_one_use, replace, uniform};

/// Hoists functions and scalings by a number.
pub(super) fn run(graph: &mut Graph) -> Result<bool> {
    let mut changed = false;
    for id in graph.topological() {
        let Some(moved) = graph.operands(id).first().copied() else { continue };
        let same_shape = graph.node(id).shape == graph.node(moved).shape;
        if !is_pointwise(graph, id) || !same_shape || !has_one_use(graph, moved) {
            continue;
        }
        let Some(movement @ (ClearOp::Reshape { .. } | ClearOp::Transpose { .. })) = graph.clear_op(moved).cloned()
        else {
            continue;
        };
        let Some(op) = graph.clear_op(id).cloned() else { continue };
        let mut operands = graph.operands(id);
        operands[0] = graph.operands(moved)[0];
        if graph.constant(operands[0]).is_some() {
            continue;
        }
        let early = add(graph, id, op, &operands)?;
        let late = add(graph, moved, movement, &[early])?;
        replace(graph, id, late);
        changed = true;
    }
    Ok(changed)
}

/// Whether every element of the result is the same function of one element of the first operand.
fn is_pointwise(graph: &Graph, id: NodeId) -> bool {
    match graph.clear_op(id) {
        Some(ClearOp::Unary { .. }) => true,
        Some(ClearOp::Add | ClearOp::Mul) => {
            let constant = graph.operands(id)[1];
            graph.node(constant).shape == [1] && uniform(graph, constant).is_some()
        }
        _ => false,
    }
}
