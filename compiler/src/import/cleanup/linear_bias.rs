//! A constant added to the result of a linear map, maybe after reshapes and transposes, is its bias.

use std::sync::Arc;

use ndarray::{ArrayD, IxDyn};
use thex_circuit::clear::{ClearOp, Tensor, evaluate};
use thex_ir::{Graph, NodeId};

use super::super::error::Result;
use super::{has_one_use, inherit, internal, replace};

/// Folds biases.
pub(super) fn run(graph: &mut Graph) -> Result<bool> {
    let mut changed = false;
    for id in graph.topological() {
        if matches!(graph.clear_op(id), Some(ClearOp::Add)) {
            changed |= fold(graph, id)?;
        }
    }
    Ok(changed)
}

fn fold(graph: &mut Graph, id: NodeId) -> Result<bool> {
    let operands = graph.operands(id);
    let Some(summand) = graph.constant(operands[1]).cloned() else {
        return Ok(false);
    };
    let Some((linear, chain)) = source(graph, operands[0]) else {
        return Ok(false);
    };
    let ports = graph.operands(linear);
    let bias_port = ports.len() - 1;
    let (Some(bias), true) =
        (graph.constant(ports[bias_port]).cloned(), graph.node(operands[0]).shape == graph.node(id).shape)
    else {
        return Ok(false);
    };
    let Some(spread) = summand.broadcast(IxDyn(&graph.node(id).shape)).map(|v| v.to_owned()) else {
        return Ok(false);
    };
    let Some(row) = common_row(&undo(graph, &chain, spread)?) else {
        return Ok(false);
    };
    let total = Arc::new(&*bias + &row);
    let (name, origin) = (graph.node(ports[bias_port]).name.clone(), graph.node(operands[1]).origin.clone());
    let total = graph.add_constant(&name, total, &origin);
    graph.set_operand(linear, bias_port as u32, total);
    inherit(graph, linear, id);
    replace(graph, id, operands[0]);
    Ok(true)
}

/// The linear map that feeds `x` through nodes that have no other use, and those nodes, last first.
fn source(graph: &Graph, x: NodeId) -> Option<(NodeId, Vec<NodeId>)> {
    let (mut x, mut chain) = (x, Vec::new());
    loop {
        if !has_one_use(graph, x) {
            return None;
        }
        match graph.clear_op(x)? {
            ClearOp::Linear => return Some((x, chain)),
            ClearOp::Reshape { .. } | ClearOp::Transpose { .. } => {
                chain.push(x);
                x = graph.operands(x)[0];
            }
            _ => return None,
        }
    }
}

/// The tensor that the chain maps to `value`.
fn undo(graph: &Graph, chain: &[NodeId], value: Tensor) -> Result<Tensor> {
    let mut value = value;
    for id in chain {
        let inverse = match graph.clear_op(*id) {
            Some(ClearOp::Transpose { permutation }) => {
                let mut inverse = vec![0; permutation.len()];
                permutation.iter().enumerate().for_each(|(i, p)| inverse[*p] = i);
                ClearOp::Transpose { permutation: inverse }
            }
            _ => ClearOp::Reshape { shape: graph.node(graph.operands(*id)[0]).shape.clone() },
        };
        value = evaluate(&inverse, &[&value]).map_err(internal)?;
    }
    Ok(value)
}

/// The vector that every lane along the last axis equals.
fn common_row(value: &Tensor) -> Option<Tensor> {
    let n = *value.shape().last()?;
    let flat: Vec<f64> = value.iter().copied().collect();
    let row = flat.get(..n)?.to_vec();
    let same = flat.chunks(n.max(1)).all(|lane| lane.iter().zip(&row).all(|(a, b)| a.to_bits() == b.to_bits()));
    if same { ArrayD::from_shape_vec(IxDyn(&[n]), row).ok() } else { None }
}
