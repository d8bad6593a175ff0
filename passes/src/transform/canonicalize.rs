//! Folds constants, merges equal nodes, drops what does nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use thex_circuit::clear::{Reduction, Tensor, evaluate};
use thex_ir::{ClearOp, Graph, NodeId, Op};

use super::{constant_and_other, find};
use crate::error::Result;
use crate::pass::{Pass, PassCx};

/// See the module.
pub struct Canonicalize;

impl Pass for Canonicalize {
    fn name(&self) -> &'static str {
        "canonicalize"
    }

    fn description(&self) -> &'static str {
        "fold constants, merge equal nodes, drop operations that do nothing, remove dead nodes"
    }

    fn source(&self) -> &'static str {
        include_str!("canonicalize.rs")
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        let folded = fold_constants(graph)?;
        let dropped = drop_identities(graph);
        let merged = merge_equal(graph);
        let dead = graph.remove_dead();
        cx.count("folded", folded);
        cx.count("dropped", dropped);
        cx.count("merged", merged);
        cx.count("dead", dead as u64);
        Ok(folded + dropped + merged + dead as u64 > 0)
    }
}

fn fold_constants(graph: &mut Graph) -> Result<u64> {
    let mut folded = 0;
    for id in graph.topological() {
        let Op::Clear(op) = graph.node(id).op.clone() else { continue };
        let operands = graph.operands(id);
        let values: Option<Vec<Arc<Tensor>>> = operands.iter().map(|&o| graph.constant(o).cloned()).collect();
        let Some(values) = values else { continue };
        let value = evaluate(&op, &values.iter().map(|v| &**v).collect::<Vec<_>>())?;
        graph.node_mut(id).op = Op::Constant(Arc::new(value));
        graph.set_operands(id, &[]);
        folded += 1;
    }
    Ok(folded)
}

/// The operand that a node equals, if it computes nothing.
fn identity_of(graph: &Graph, id: NodeId) -> Option<NodeId> {
    let node = graph.node(id);
    let Op::Clear(op) = &node.op else { return None };
    let operands = graph.operands(id);
    let first = *operands.first()?;
    let same_shape = graph.node(first).shape == node.shape;
    let all_equal = |value: f64| {
        let (constant, other) = constant_and_other(graph, id)?;
        let equal = constant.iter().all(|&v| v.to_bits() == value.to_bits());
        (equal && graph.node(other).shape == node.shape).then_some(other)
    };
    match op {
        ClearOp::Reshape { .. } | ClearOp::Broadcast { .. } | ClearOp::Slice { .. } => same_shape.then_some(first),
        ClearOp::Transpose { permutation } => permutation.iter().enumerate().all(|(i, &p)| i == p).then_some(first),
        ClearOp::Concat { .. } => (operands.len() == 1).then_some(first),
        ClearOp::Unary { chain } => chain.0.is_empty().then_some(first),
        ClearOp::Mul => all_equal(1.0),
        ClearOp::Add => all_equal(0.0),
        ClearOp::Reduce { reduction, axis } => {
            let length_one = graph.node(first).shape.get(*axis) == Some(&1);
            (length_one && matches!(reduction, Reduction::Sum | Reduction::Mean | Reduction::Max)).then_some(first)
        }
        ClearOp::Linear
        | ClearOp::MatMul
        | ClearOp::Softmax { .. }
        | ClearOp::LayerNorm { .. }
        | ClearOp::RmsNorm { .. }
        | ClearOp::Gather { .. } => None,
    }
}

fn drop_identities(graph: &mut Graph) -> u64 {
    let mut dropped = 0;
    for id in graph.topological() {
        if let Some(source) = identity_of(graph, id) {
            graph.replace_uses(id, source);
            dropped += 1;
        }
    }
    dropped
}

fn merge_equal(graph: &mut Graph) -> u64 {
    let mut seen: BTreeMap<(String, Vec<NodeId>), NodeId> = BTreeMap::new();
    let mut merged = 0;
    for id in find(graph, |_| true) {
        let key = (format!("{:?}", graph.node(id).op), graph.operands(id));
        if let Some(&twin) = seen.get(&key) {
            graph.replace_uses(id, twin);
            merged += 1;
        } else {
            seen.insert(key, id);
        }
    }
    merged
}
