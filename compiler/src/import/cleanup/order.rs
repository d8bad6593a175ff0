//! The last step: nodes numbered in the order in which the outputs need them, and named after the ONNX
//! nodes, so that graphs of equal meaning print equally.

use std::collections::BTreeMap;

use thex_circuit::clear::ClearOp;
use thex_ir::{Graph, Node, NodeId, Op};

use super::super::names::Names;

/// A copy in canonical order.
pub(super) fn run(graph: &Graph, names: &Names) -> Graph {
    let mut copy = Graph::new();
    copy.stage = graph.stage;
    let mut new: BTreeMap<NodeId, NodeId> = BTreeMap::new();
    for &input in &graph.inputs {
        let node = graph.node(input).clone();
        let id = copy.add(node, &[]);
        copy.inputs.push(id);
        new.insert(input, id);
    }
    for (name, output) in &graph.outputs {
        for id in needed(graph, *output, &new) {
            let operands: Vec<NodeId> = graph.operands(id).iter().filter_map(|o| new.get(o).copied()).collect();
            let node = Node { name: name_of(graph, id, names), ..graph.node(id).clone() };
            new.insert(id, copy.add(node, &operands));
        }
        copy.outputs.extend(new.get(output).map(|id| (name.clone(), *id)));
    }
    copy
}

/// What must be computed for `output` and is not yet, operands first.
fn needed(graph: &Graph, output: NodeId, done: &BTreeMap<NodeId, NodeId>) -> Vec<NodeId> {
    let (mut order, mut stack) = (Vec::new(), vec![(output, false)]);
    let mut visited = std::collections::BTreeSet::new();
    while let Some((id, ready)) = stack.pop() {
        if ready {
            order.push(id);
        } else if !done.contains_key(&id) && visited.insert(id) {
            stack.push((id, true));
            stack.extend(graph.operands(id).into_iter().rev().map(|o| (o, false)));
        }
    }
    order
}

fn name_of(graph: &Graph, id: NodeId, names: &Names) -> String {
    let node = graph.node(id);
    let base = |node: &Node| names.readable(node.origin.first().unwrap_or(&node.name));
    match &node.op {
        Op::Constant(_) => match (named_tensor(node, names), graph.users(id).first()) {
            (true, _) | (_, None) => base(node),
            (false, Some((user, port))) => {
                let user = graph.node(*user);
                format!("{}.{}", base(user), role(user, *port, graph.operands(graph.users(id)[0].0).len()))
            }
        },
        Op::Clear(op @ (ClearOp::Reshape { .. } | ClearOp::Transpose { .. })) => {
            format!("{}.{}", base(node), op.mnemonic())
        }
        Op::Input | Op::Clear(_) | Op::He(_) => base(node),
    }
}

/// Whether the constant is a tensor that the modeller named.
fn named_tensor(node: &Node, names: &Names) -> bool {
    node.origin.first().is_some_and(|name| names.is_tensor(name) && !name.contains("::"))
}

/// What a constant is to its user.
fn role(user: &Node, port: u32, operands: usize) -> &'static str {
    match &user.op {
        Op::Clear(ClearOp::Linear) if port as usize + 1 == operands => "bias",
        Op::Clear(ClearOp::Linear) => "weight",
        Op::Clear(ClearOp::Mul) => "factor",
        Op::Clear(ClearOp::Add) => "summand",
        Op::Clear(ClearOp::Gather { .. }) => "table",
        _ => "constant",
    }
}
