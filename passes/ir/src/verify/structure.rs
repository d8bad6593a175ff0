//! V001 to V007: what holds at every stage.

use std::collections::{BTreeMap, BTreeSet};

use thex_circuit::clear::{ClearOp, Reduction, infer_shape};

use super::{Findings, View};
use crate::graph::{NodeId, Op, Stage};
use crate::he::HeOp;

/// V001: the topological order covers all nodes, so there is no cycle.
pub(super) fn acyclic(view: &View<'_>, findings: &mut Findings<'_>) {
    if view.order.len() == view.graph.len() {
        return;
    }
    let ordered: BTreeSet<NodeId> = view.order.iter().copied().collect();
    let left = view.graph.ids().filter(|id| !ordered.contains(id));
    left.for_each(|id| findings.node(id, "it is on a cycle, or behind one"));
}

/// V002: operand counts fit the operation, and ports are consecutive.
pub(super) fn operand_counts(view: &View<'_>, findings: &mut Findings<'_>) {
    let mut ports: BTreeMap<NodeId, Vec<u32>> = BTreeMap::new();
    for id in view.graph.ids() {
        for (user, port) in view.graph.users(id) {
            ports.entry(user).or_default().push(port);
        }
    }
    for id in view.graph.ids() {
        let count = view.operands(id).len();
        if let Some(expected) = arity_mismatch(&view.graph.node(id).op, count) {
            findings.node(id, format!("takes {expected}, has {count}"));
        }
        let Some(ports) = ports.get_mut(&id) else { continue };
        ports.sort_unstable();
        if ports.iter().zip(0..).any(|(port, i)| *port != i) {
            findings.node(id, format!("operand ports are {ports:?}"));
        }
    }
}

/// What the operation takes, if `count` operands do not fit.
fn arity_mismatch(op: &Op, count: usize) -> Option<&'static str> {
    let (fits, expected) = match op {
        Op::Input | Op::Constant(_) => (count == 0, "no operand"),
        Op::Clear(ClearOp::Linear) => (count >= 3 && count % 2 == 1, "pairs of operand and weights, and a bias"),
        Op::Clear(ClearOp::MatMul | ClearOp::Add | ClearOp::Mul | ClearOp::Gather { .. })
        | Op::He(HeOp::LutProduct { .. }) => (count == 2, "two operands"),
        Op::Clear(ClearOp::Concat { .. }) => (count >= 1, "at least one operand"),
        Op::Clear(_) | Op::He(HeOp::Encrypt | HeOp::Pbs { .. }) => (count == 1, "one operand"),
        // They gather; V008 checks that the ports that they use are there.
        Op::He(HeOp::Linear { .. } | HeOp::Keyswitch { .. } | HeOp::Pack { .. } | HeOp::Decrypt { .. }) => (true, ""),
    };
    (!fits).then_some(expected)
}

/// V003: shapes are those that the operation implies. Lengths of he-linear and lut-product are V009's and V010's.
pub(super) fn shapes(view: &View<'_>, findings: &mut Findings<'_>) {
    for id in view.graph.ids() {
        let node = view.graph.node(id);
        if arity_mismatch(&node.op, view.operands(id).len()).is_some() {
            continue;
        }
        match implied_shape(view, id) {
            Err(reason) => findings.node(id, reason),
            Ok(shape) if shape != node.shape => {
                findings.node(id, format!("has shape {:?}, its operation implies {shape:?}", node.shape));
            }
            Ok(_) => {}
        }
    }
}

fn implied_shape(view: &View<'_>, id: NodeId) -> Result<Vec<usize>, String> {
    let node = view.graph.node(id);
    let operands = view.operands(id);
    match &node.op {
        Op::Input => Ok(node.shape.clone()),
        Op::Constant(value) => Ok(value.shape().to_vec()),
        Op::Clear(op) => {
            let shapes: Vec<&[usize]> = operands.iter().map(|&o| view.graph.node(o).shape.as_slice()).collect();
            infer_shape(op, &shapes).map_err(|e| e.to_string())
        }
        Op::He(op) => Ok(vec![match op {
            HeOp::Encrypt | HeOp::Pbs { .. } => operands.first().map_or(0, |&o| view.elements(o)),
            HeOp::Keyswitch { gather, .. } | HeOp::Pack { gather, .. } | HeOp::Decrypt { gather } => gather.len(),
            HeOp::Linear { .. } | HeOp::LutProduct { .. } => view.elements(id),
        }]),
    }
}

/// V004: no two nodes have one name.
pub(super) fn unique_names(view: &View<'_>, findings: &mut Findings<'_>) {
    let mut seen = BTreeSet::new();
    for id in view.graph.ids() {
        if !seen.insert(view.graph.node(id).name.as_str()) {
            findings.node(id, "another node has this name");
        }
    }
}

/// V005: outputs exist; the model's inputs exist, are input nodes, and every input node is one of them, once.
pub(super) fn inputs_and_outputs(view: &View<'_>, findings: &mut Findings<'_>) {
    for (name, id) in &view.graph.outputs {
        if !view.graph.contains(*id) {
            findings.graph(format!("output `{name}` is a node that was removed"));
        }
    }
    let mut listed = BTreeSet::new();
    for (i, &id) in view.graph.inputs.iter().enumerate() {
        if !view.graph.contains(id) {
            findings.graph(format!("input {i} is a node that was removed"));
        } else if !matches!(view.graph.node(id).op, Op::Input) {
            findings
                .node(id, format!("is input {i} of the model, but computed by {}", view.graph.node(id).op.mnemonic()));
        } else if !listed.insert(id) {
            findings.node(id, "is listed twice among the inputs of the model");
        }
    }
    for id in view.graph.ids() {
        if matches!(view.graph.node(id).op, Op::Input) && !listed.contains(&id) {
            findings.node(id, "is not among the inputs of the model");
        }
    }
}

/// V006: the stage allows the operation.
///
/// Homomorphic ones come with `lowered`, which keeps no tensor operation. From `approximated` on, a private tensor
/// may not go through what a circuit cannot do.
pub(super) fn stage_allows(view: &View<'_>, findings: &mut Findings<'_>) {
    let stage = view.graph.stage;
    for id in view.graph.ids() {
        let op = &view.graph.node(id).op;
        let allowed = match op {
            Op::Input | Op::Constant(_) => true,
            Op::He(_) => stage >= Stage::Lowered,
            Op::Clear(op) => match stage {
                Stage::Imported => true,
                Stage::Approximated | Stage::Calibrated => !(view.private.contains(&id) && needs_replacement(op)),
                Stage::Lowered | Stage::Placed => false,
            },
        };
        if !allowed {
            findings.node(id, format!("{} is not allowed at stage {}", op.mnemonic(), stage.name()));
        }
    }
}

/// Whether passes must replace the operation on encrypted operands.
fn needs_replacement(op: &ClearOp) -> bool {
    matches!(
        op,
        ClearOp::Softmax { .. }
            | ClearOp::LayerNorm { .. }
            | ClearOp::RmsNorm { .. }
            | ClearOp::Gather { .. }
            | ClearOp::Reduce { reduction: Reduction::Max, .. }
    )
}

/// V007: constants, and weights and biases of homomorphic maps, are finite.
pub(super) fn finite_constants(view: &View<'_>, findings: &mut Findings<'_>) {
    for id in view.graph.ids() {
        match &view.graph.node(id).op {
            Op::Constant(value) => findings.elements(id, not_finite("element", value.iter())),
            Op::He(HeOp::Linear { map, .. }) => {
                let (weights, bias) = (not_finite("weight", map.weights.iter()), not_finite("bias", map.bias.iter()));
                findings.elements(id, weights.chain(bias));
            }
            Op::Input | Op::Clear(_) | Op::He(_) => {}
        }
    }
}

fn not_finite<'a>(what: &'a str, values: impl Iterator<Item = &'a f64> + 'a) -> impl Iterator<Item = String> + 'a {
    values.enumerate().filter(|(_, v)| !v.is_finite()).map(move |(i, v)| format!("{what} {i} is {v}"))
}
