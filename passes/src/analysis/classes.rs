//! Which elements of a tensor share a range, and so an encoding.
//!
//! A channel of a feature tensor is one class over all tokens, since a linear map gives each output
//! channel its own class; a head's scores are one class. Classes follow elements through data movements.
//! The first token is often a class token, whose residuals are many times larger than the others' (MiniLM's: one channel after the
//! first feed-forward layer), so at the input of a layer norm, where precision matters most, it has classes of its own.
//! A product's class is the pair of its operands' first classes along the contraction, so scores of a head share
//! one class and context vectors keep the channel of the value.

use std::collections::BTreeMap;

use thex_ir::{ClearOp, Graph, NodeId, Op, UnaryFn};

use super::demand::{broadcast_map, element_map};

/// Class of each element of each node. Numbers are dense within a node.
pub type Classes = BTreeMap<NodeId, Vec<u32>>;

/// Computes classes for every node.
#[must_use]
pub fn classes(graph: &Graph) -> Classes {
    let mut classes = Classes::new();
    for id in graph.topological() {
        let node = graph.node(id);
        let count = node.shape.iter().product();
        let operands: Vec<NodeId> = graph.operands(id);
        let raw = match &node.op {
            Op::Clear(op) if norm_input(graph, id) => {
                first_apart(of_clear(graph, op, &node.shape, &operands, &classes), &node.shape)
            }
            Op::Clear(op) => of_clear(graph, op, &node.shape, &operands, &classes),
            Op::Input | Op::Constant(_) | Op::He(_) => vec![0; count],
        };
        classes.insert(id, dense(&raw));
    }
    classes
}

/// Whether a layer norm squares and scales the node.
fn norm_input(graph: &Graph, id: NodeId) -> bool {
    let squares = |user: &NodeId| {
        let square = UnaryFn::Power { exponent: 2 };
        matches!(graph.clear_op(*user), Some(ClearOp::Unary { chain }) if chain.0 == [square])
    };
    let users: Vec<NodeId> = graph.users(id).into_iter().map(|(user, _)| user).collect();
    graph.clear_op(id) == Some(&ClearOp::Linear) && users.iter().any(squares)
}

/// Classes in which the first token of `[.., tokens, channels]` shares none with the others.
fn first_apart(classes: Vec<u64>, shape: &[usize]) -> Vec<u64> {
    let (Some(&channels), Some(&tokens)) = (shape.last(), shape.iter().rev().nth(1)) else { return classes };
    let first = |i: usize| tokens > 1 && (i / channels.max(1)).is_multiple_of(tokens);
    classes.into_iter().enumerate().map(|(i, class)| if first(i) { class | 1 << 63 } else { class }).collect()
}

/// Renumbers classes 0.. in order of appearance.
fn dense<T: Ord + Copy>(raw: &[T]) -> Vec<u32> {
    let mut numbers = BTreeMap::new();
    raw.iter()
        .map(|class| {
            let next = numbers.len() as u32;
            *numbers.entry(*class).or_insert(next)
        })
        .collect()
}

fn of_clear(graph: &Graph, op: &ClearOp, shape: &[usize], operands: &[NodeId], classes: &Classes) -> Vec<u64> {
    let shapes: Vec<&[usize]> = operands.iter().map(|&o| graph.node(o).shape.as_slice()).collect();
    let count: usize = shape.iter().product();
    let last = shape.last().copied().unwrap_or(1).max(1);
    let of = |operand: usize, element: usize| u64::from(classes[&operands[operand]][element]);
    let constant = |operand: usize| matches!(graph.node(operands[operand]).op, Op::Constant(_));
    match op {
        ClearOp::Linear | ClearOp::LayerNorm { .. } | ClearOp::RmsNorm { .. } => {
            (0..count).map(|i| (i % last) as u64).collect()
        }
        ClearOp::Unary { .. } | ClearOp::Softmax { .. } => (0..count).map(|i| of(0, i)).collect(),
        ClearOp::Add | ClearOp::Mul => {
            let maps: Vec<Vec<usize>> = shapes.iter().map(|s| broadcast_map(s, shape)).collect();
            (0..count)
                .map(|i| match (constant(0), constant(1)) {
                    (true, false) => of(1, maps[1][i]),
                    (false, true) => of(0, maps[0][i]),
                    _ => (of(0, maps[0][i]) << 32) | of(1, maps[1][i]),
                })
                .collect()
        }
        ClearOp::MatMul => {
            let rank = shape.len();
            let (m, n, k) = (shape[rank - 2], shape[rank - 1], shapes[0][rank - 1]);
            (0..count)
                .map(|i| {
                    let (batch, row, column) = (i / (m * n), i / n % m, i % n);
                    let a = of(0, (batch * m + row) * k);
                    let b = of(1, batch * k * n + column);
                    (a << 32) | b
                })
                .collect()
        }
        ClearOp::Reduce { axis, .. } => {
            let inner: usize = shapes[0][axis + 1..].iter().product();
            let n = shapes[0][*axis];
            (0..count).map(|i| of(0, (i / inner) * n * inner + i % inner)).collect()
        }
        ClearOp::Reshape { .. }
        | ClearOp::Transpose { .. }
        | ClearOp::Slice { .. }
        | ClearOp::Concat { .. }
        | ClearOp::Broadcast { .. } => element_map(op, &shapes)
            .into_iter()
            .map(|(operand, element)| ((operand as u64) << 32) | of(operand, element))
            .collect(),
        ClearOp::Gather { .. } => (0..count).map(|i| (i % last) as u64).collect(),
    }
}
