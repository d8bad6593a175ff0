//! Broadcasts that change nothing, those before a sum or product, which broadcasts by itself, and those that can wait:
//! a function of a broadcast tensor is the broadcast of the function. So an attention mask stays one number for each
//! token, however early the exporter expanded it.

use thex_circuit::clear::{ClearOp, infer_shape};
use thex_ir::{Graph, NodeId};

use super::super::error::Result;
use super::{add, replace};

/// Drops broadcasts, and delays those that stay.
pub(super) fn run(graph: &mut Graph) -> Result<bool> {
    let dropped = drop_needless(graph);
    Ok(delay(graph)? || dropped)
}

fn drop_needless(graph: &mut Graph) -> bool {
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
    changed
}

/// Moves broadcasts behind functions of each element.
fn delay(graph: &mut Graph) -> Result<bool> {
    let mut changed = false;
    for id in graph.topological() {
        let Some(sources) = delayable(graph, id) else { continue };
        let (Some(op), shape) = (graph.clear_op(id).cloned(), graph.node(id).shape.clone()) else { continue };
        let early = add(graph, id, op, &sources)?;
        let late = add(graph, id, ClearOp::Broadcast { shape }, &[early])?;
        replace(graph, id, late);
        changed = true;
    }
    Ok(changed)
}

/// What a function of each element can read in place of broadcasts, if the result is smaller then.
fn delayable(graph: &Graph, id: NodeId) -> Option<Vec<NodeId>> {
    let op = graph.clear_op(id).filter(|op| matches!(op, ClearOp::Unary { .. } | ClearOp::Add | ClearOp::Mul))?;
    let source = |o: NodeId| match graph.clear_op(o) {
        Some(ClearOp::Broadcast { .. }) => graph.operands(o)[0],
        _ => o,
    };
    let operands = graph.operands(id);
    let sources: Vec<NodeId> = operands.iter().map(|&o| source(o)).collect();
    if sources == operands {
        return None;
    }
    let shapes: Vec<&[usize]> = sources.iter().map(|o| graph.node(*o).shape.as_slice()).collect();
    let early = infer_shape(op, &shapes).ok()?;
    let size = |shape: &[usize]| shape.iter().product::<usize>();
    (size(&early) < size(&graph.node(id).shape)).then_some(sources)
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
