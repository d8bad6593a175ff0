//! Sums and products with constants: one constant, on the right, as small as it can be, and none without
//! effect.

use ndarray::{ArrayD, Axis, IxDyn};
use thex_circuit::clear::{ClearOp, Reduction, Tensor, evaluate};
use thex_ir::{Graph, NodeId};

use super::super::error::Result;
use super::{add, add_constant, close, inherit, internal, replace, uniform};

/// Runs all rules on every node.
pub(super) fn run(graph: &mut Graph) -> Result<bool> {
    let mut changed = false;
    for id in graph.topological() {
        if !matches!(graph.clear_op(id), Some(ClearOp::Add | ClearOp::Mul)) {
            continue;
        }
        changed |= constant_right(graph, id);
        if graph.constant(graph.operands(id)[1]).is_none() {
            continue;
        }
        changed |= small_constant(graph, id) || merge(graph, id)? || mean(graph, id)? || neutral(graph, id);
    }
    Ok(changed)
}

/// c + x becomes x + c.
fn constant_right(graph: &mut Graph, id: NodeId) -> bool {
    let operands = graph.operands(id);
    if graph.constant(operands[0]).is_none() || graph.constant(operands[1]).is_some() {
        return false;
    }
    graph.set_operands(id, &[operands[1], operands[0]]);
    true
}

/// Leading axes of 1 go, and a constant of equal elements becomes one number, when the shape of the result
/// stays.
fn small_constant(graph: &mut Graph, id: NodeId) -> bool {
    let operands = graph.operands(id);
    let Some(value) = graph.constant(operands[1]).cloned() else {
        return false;
    };
    if graph.node(operands[0]).shape != graph.node(id).shape {
        return false;
    }
    let small = match uniform(graph, operands[1]) {
        Some(number) => ArrayD::from_elem(IxDyn(&[1]), number),
        None => trimmed(&value),
    };
    if small.shape() == value.shape() {
        return false;
    }
    let constant = add_constant(graph, operands[1], small);
    graph.set_operand(id, 1, constant);
    true
}

fn trimmed(value: &Tensor) -> Tensor {
    let mut value = value.clone();
    while value.ndim() > 1 && value.shape()[0] == 1 {
        value = value.index_axis_move(Axis(0), 0);
    }
    value
}

/// (x + c) + d becomes x + (c + d), and likewise for products.
fn merge(graph: &mut Graph, id: NodeId) -> Result<bool> {
    let operands = graph.operands(id);
    let inner = operands[0];
    let (Some(op), Some(inner_op)) = (graph.clear_op(id).cloned(), graph.clear_op(inner)) else {
        return Ok(false);
    };
    if op != *inner_op || graph.is_output(inner) {
        return Ok(false);
    }
    let inner_operands = graph.operands(inner);
    let x = inner_operands[0];
    let (Some(c), Some(d)) = (graph.constant(inner_operands[1]), graph.constant(operands[1])) else {
        return Ok(false);
    };
    if graph.node(x).shape != graph.node(id).shape {
        return Ok(false);
    }
    let both = evaluate(&op, &[c, d]).map_err(internal)?;
    let constant = add_constant(graph, operands[1], both);
    let merged = add(graph, inner, op, &[x, constant])?;
    inherit(graph, merged, id);
    replace(graph, id, merged);
    Ok(true)
}

/// Σx·c becomes mean(x)·(c·n).
fn mean(graph: &mut Graph, id: NodeId) -> Result<bool> {
    let operands = graph.operands(id);
    let (Some(ClearOp::Mul), Some(number)) = (graph.clear_op(id), uniform(graph, operands[1])) else {
        return Ok(false);
    };
    let Some(ClearOp::Reduce { reduction: Reduction::Sum, axis }) = graph.clear_op(operands[0]).cloned() else {
        return Ok(false);
    };
    let x = graph.operands(operands[0])[0];
    let factor = number * graph.node(x).shape[axis] as f64;
    if !close(factor.abs(), 1.0) || graph.constant(operands[1]).is_some_and(|c| c.len() != 1) {
        return Ok(false);
    }
    let mean = add(graph, operands[0], ClearOp::Reduce { reduction: Reduction::Mean, axis }, &[x])?;
    let sign = add_constant(graph, operands[1], ArrayD::from_elem(IxDyn(&[1]), factor.signum()));
    let product = add(graph, id, ClearOp::Mul, &[mean, sign])?;
    replace(graph, id, product);
    Ok(true)
}

/// x·1 and x + 0 are x.
fn neutral(graph: &mut Graph, id: NodeId) -> bool {
    let operands = graph.operands(id);
    let neutral = if matches!(graph.clear_op(id), Some(ClearOp::Mul)) { 1.0_f64 } else { 0.0 };
    let same_shape = graph.node(operands[0]).shape == graph.node(id).shape;
    if same_shape && uniform(graph, operands[1]).is_some_and(|c| (c - neutral).abs() < f64::MIN_POSITIVE) {
        replace(graph, id, operands[0]);
        return true;
    }
    false
}
