//! Which elements of each tensor reach an output.
//!
//! A head that reads one token makes the last layer need one query and one feed-forward row. The
//! analysis walks backwards over elements, not nodes, so this needs no special case. Nor do masked scores: what is multiplied
//! by a public zero is not needed.

use std::collections::BTreeMap;

use ndarray::{ArrayD, IxDyn};
use thex_ir::{ClearOp, Graph, NodeId, Op, Tensor};

/// For each tensor, whether each element (row-major) is needed.
pub type Demand = BTreeMap<NodeId, Vec<bool>>;

/// For a data movement of operands with these shapes: (operand, element) that each output element is.
#[must_use]
pub fn element_map(op: &ClearOp, shapes: &[&[usize]]) -> Vec<(usize, usize)> {
    let mut starts = Vec::with_capacity(shapes.len());
    let mut next = 0;
    let numbered: Vec<Tensor> = shapes
        .iter()
        .map(|shape| {
            let count: usize = shape.iter().product();
            starts.push(next);
            let ids = (next..next + count).map(|i| i as f64).collect();
            next += count;
            ArrayD::from_shape_vec(IxDyn(shape), ids).unwrap_or_default()
        })
        .collect();
    let operands: Vec<&Tensor> = numbered.iter().collect();
    let moved = thex_circuit::clear::evaluate(op, &operands).unwrap_or_default();
    moved
        .iter()
        .map(|&id| {
            let id = id as usize;
            let operand = starts.iter().rposition(|&s| s <= id).unwrap_or(0);
            (operand, id - starts[operand])
        })
        .collect()
}

/// For a broadcast of `shape` to `target`: the element of the operand that each target element reads.
#[must_use]
pub fn broadcast_map(shape: &[usize], target: &[usize]) -> Vec<usize> {
    let op = ClearOp::Broadcast { shape: target.to_vec() };
    element_map(&op, &[shape]).into_iter().map(|(_, i)| i).collect()
}

/// Computes the demanded elements of every node from the outputs of the model.
#[must_use]
pub fn demand(graph: &Graph) -> Demand {
    let mut demand: Demand = graph.ids().map(|id| (id, vec![false; graph.node(id).shape.iter().product()])).collect();
    for (_, output) in &graph.outputs {
        if let Some(flags) = demand.get_mut(output) {
            flags.fill(true);
        }
    }
    for id in graph.topological().into_iter().rev() {
        if let Op::Clear(op) = &graph.node(id).op {
            propagate(graph, id, op, &mut demand);
        }
    }
    demand
}

fn propagate(graph: &Graph, id: NodeId, op: &ClearOp, demand: &mut Demand) {
    let mut wanted = demand[&id].clone();
    if *op == ClearOp::Mul {
        without_zeros(graph, id, &mut wanted);
    }
    let operands = graph.operands(id);
    let shapes: Vec<&[usize]> = operands.iter().map(|&o| graph.node(o).shape.as_slice()).collect();
    let needed = needed_elements(op, &graph.node(id).shape, &shapes, &wanted);
    for (operand, elements) in operands.iter().zip(needed) {
        if let Some(flags) = demand.get_mut(operand) {
            for (flag, need) in flags.iter_mut().zip(elements) {
                *flag |= need;
            }
        }
    }
}

/// Of the wanted elements of a product, those with no public zero among their factors.
fn without_zeros(graph: &Graph, id: NodeId, wanted: &mut [bool]) {
    let shape = &graph.node(id).shape;
    for operand in graph.operands(id) {
        let Some(value) = graph.constant(operand).filter(|v| v.iter().any(|x| *x == 0.0)) else { continue };
        let flat: Vec<f64> = value.iter().copied().collect();
        for (flag, source) in wanted.iter_mut().zip(broadcast_map(value.shape(), shape)) {
            *flag &= flat[source] != 0.0;
        }
    }
}

/// Elements of each operand that the wanted elements of the result read.
pub(crate) fn needed_elements(op: &ClearOp, out: &[usize], shapes: &[&[usize]], wanted: &[bool]) -> Vec<Vec<bool>> {
    let sizes: Vec<usize> = shapes.iter().map(|s| s.iter().product()).collect();
    let mut needed: Vec<Vec<bool>> = sizes.iter().map(|&n| vec![false; n]).collect();
    match op {
        ClearOp::Unary { .. } => needed[0].copy_from_slice(wanted),
        ClearOp::Linear => {
            let m = out.last().copied().unwrap_or(1);
            for (term, k) in
                shapes.iter().enumerate().step_by(2).take(shapes.len() / 2).map(|(i, s)| (i, s[s.len() - 1]))
            {
                rows_needed(wanted, m, k, &mut needed[term]);
                needed[term + 1].fill(true);
            }
            needed[shapes.len() - 1].fill(true);
        }
        ClearOp::LayerNorm { .. } | ClearOp::RmsNorm { .. } => {
            let n = out.last().copied().unwrap_or(1);
            rows_needed(wanted, n, n, &mut needed[0]);
        }
        ClearOp::Add | ClearOp::Mul => {
            for (flags, shape) in needed.iter_mut().zip(shapes) {
                for (i, &source) in broadcast_map(shape, out).iter().enumerate() {
                    flags[source] |= wanted[i];
                }
            }
        }
        ClearOp::MatMul => matmul_needed(out, shapes, wanted, &mut needed),
        ClearOp::Softmax { axis } | ClearOp::Reduce { axis, .. } => {
            let inner: usize = shapes[0][axis + 1..].iter().product();
            let n = shapes[0][*axis];
            let out_n = out[*axis];
            for (i, _) in wanted.iter().enumerate().filter(|(_, w)| **w) {
                let (outer, rest) = (i / (out_n * inner), i % inner);
                for a in 0..n {
                    needed[0][(outer * n + a) * inner + rest] = true;
                }
            }
        }
        ClearOp::Reshape { .. }
        | ClearOp::Transpose { .. }
        | ClearOp::Slice { .. }
        | ClearOp::Concat { .. }
        | ClearOp::Broadcast { .. } => {
            for (i, (operand, element)) in element_map(op, shapes).into_iter().enumerate() {
                needed[operand][element] |= wanted[i];
            }
        }
        ClearOp::Gather { .. } => needed.iter_mut().for_each(|n| n.fill(true)),
    }
    needed
}

fn rows_needed(wanted: &[bool], outputs: usize, inputs: usize, needed: &mut [bool]) {
    for (row, out) in needed.chunks_mut(inputs.max(1)).zip(wanted.chunks(outputs.max(1))) {
        if out.iter().any(|w| *w) {
            row.fill(true);
        }
    }
}

fn matmul_needed(out: &[usize], shapes: &[&[usize]], wanted: &[bool], needed: &mut [Vec<bool>]) {
    let rank = out.len();
    let (m, n, k) = (out[rank - 2], out[rank - 1], shapes[0][rank - 1]);
    for (index, _) in wanted.iter().enumerate().filter(|(_, w)| **w) {
        let (batch, i, j) = (index / (m * n), index / n % m, index % n);
        for c in 0..k {
            needed[0][(batch * m + i) * k + c] = true;
            needed[1][(batch * k + c) * n + j] = true;
        }
    }
}
