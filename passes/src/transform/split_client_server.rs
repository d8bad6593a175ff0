//! Decides what the client computes in the clear, before encryption and after decryption.
//!
//! * **Prologue.** Token ids look up an embedding table; no circuit should do that. Everything from such inputs up to the
//!   first weight matrix or product runs on the client: look-ups, sums of embeddings, their layer norm. The
//!   client therefore gets the tables, and the compiler says so. A model without look-ups (an image) has no prologue:
//!   its patch embedding stays on the server with all other weights.
//!   Attention masks are functions of an input too, and computed there.
//! * **Epilogue.** A softmax or another function of single rows after the last weight matrix needs no secret of the
//!   server either, and costs nothing after decryption. Pooling by a mask is a product of something encrypted and something that
//!   the client knows: where nothing but such sums, functions and a head follow, the client does it all. It has only the result
//!   at hand then, so the server hands the encrypted mask back with it, which costs nothing.
//!
//! The rewritten graph is the server's; the calibration samples become samples of what is encrypted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rayon::prelude::*;
use thex_circuit::clear::{ClearGraph, ClearNode};
use thex_ir::{ClearOp, Graph, NodeId, Op, UnaryFn};

use crate::analysis::{client_nodes, private_nodes};
use crate::error::Result;
use crate::pass::{Pass, PassCx};

/// See the module.
pub struct SplitClientServer;

impl Pass for SplitClientServer {
    fn name(&self) -> &'static str {
        "split-client-server"
    }

    fn description(&self) -> &'static str {
        "move embedding look-ups to the client before encryption, and final functions to it after decryption"
    }

    fn source(&self) -> &'static str {
        include_str!("split_client_server.rs")
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        let epilogue = epilogue_nodes(graph);
        cx.epilogue = Some(cut_epilogue(graph, &epilogue));
        graph.remove_dead();
        let before = prologue_nodes(graph);
        let (prologue_count, epilogue_count) = (before.len(), epilogue.len());
        let prologue = cut_prologue(graph, &before);
        note_tables(&prologue, cx);
        cx.samples = Arc::new(cx.samples.par_iter().map(|s| prologue.run(s)).collect::<std::result::Result<_, _>>()?);
        cx.prologue = Some(prologue);
        graph.remove_dead();
        cx.teacher = Some(Arc::new(graph.clone()));
        cx.count("prologue", prologue_count as u64);
        cx.count("epilogue", epilogue_count as u64);
        Ok(prologue_count + epilogue_count > 0)
    }
}

/// Says what of the model the client learns.
fn note_tables(prologue: &ClearGraph, cx: &mut PassCx) {
    for node in &prologue.nodes {
        let ClearNode::Apply(ClearOp::Gather { .. }, operands) = node else { continue };
        if let Some(ClearNode::Constant(table)) = operands.first().and_then(|&o| prologue.nodes.get(o)) {
            let shape = prologue.constants[*table].shape();
            cx.note(format!("the client looks up and so receives an embedding table of shape {shape:?}"));
        }
    }
}

/// Everything that the client will compute.
pub(crate) fn client_work(graph: &Graph) -> BTreeSet<NodeId> {
    &prologue_nodes(graph) | &epilogue_nodes(graph)
}

/// Operations that the client computes before encryption: look-ups and masks, as far as they depend on inputs through no
/// weight matrix, and what leads to them or comes after them.
fn prologue_nodes(graph: &Graph) -> BTreeSet<NodeId> {
    let client = client_nodes(graph);
    let mut chosen: BTreeSet<NodeId> = BTreeSet::new();
    for id in graph.topological().into_iter().filter(|id| client.contains(id)) {
        if is_known_work(graph, id, &client) || graph.operands(id).iter().any(|o| chosen.contains(o)) {
            chosen.insert(id);
        }
    }
    for id in graph.topological().into_iter().rev() {
        let leads = graph.users(id).iter().any(|(user, _)| chosen.contains(user));
        if leads && client.contains(&id) && !graph.inputs.contains(&id) {
            chosen.insert(id);
        }
    }
    leave_growth(graph, &mut chosen);
    chosen
}

/// What makes a client compute: look-ups, functions of single elements, products of what it knows (masks are made of the last
/// two).
fn is_known_work(graph: &Graph, id: NodeId, client: &BTreeSet<NodeId>) -> bool {
    let kind = matches!(graph.clear_op(id), Some(ClearOp::Gather { .. } | ClearOp::Unary { .. } | ClearOp::Mul));
    kind && !is_affine(graph, id, client)
}

/// Whether a node is an affine function of the one private operand that it has.
fn is_affine(graph: &Graph, id: NodeId, client: &BTreeSet<NodeId>) -> bool {
    match &graph.node(id).op {
        Op::Clear(ClearOp::Unary { chain }) => chain.0.iter().all(|f| matches!(f, UnaryFn::Affine { .. })),
        Op::Clear(ClearOp::Mul) => graph.operands(id).iter().filter(|o| client.contains(o)).count() < 2,
        Op::Clear(op) => matches!(op, ClearOp::Add | ClearOp::Reduce { .. }) || op.is_data_movement(),
        Op::Input | Op::Constant(_) | Op::He(_) => true,
    }
}

/// Leaves to the server, at the end of the prologue, affine operations that only make a tensor larger.
fn leave_growth(graph: &Graph, chosen: &mut BTreeSet<NodeId>) {
    let size = |id: NodeId| graph.node(id).shape.iter().product::<usize>();
    for id in graph.topological().into_iter().rev() {
        if !chosen.contains(&id) {
            continue;
        }
        let operands: Vec<NodeId> = graph.operands(id).into_iter().filter(|&o| graph.constant(o).is_none()).collect();
        let last = !graph.is_output(id) && graph.users(id).iter().all(|(user, _)| !chosen.contains(user));
        let grows = operands.len() == 1 && size(id) > size(operands[0]);
        if last && grows && is_affine(graph, id, chosen) {
            chosen.remove(&id);
        }
    }
}

/// Operations that the client computes after decryption.
fn epilogue_nodes(graph: &Graph) -> BTreeSet<NodeId> {
    let mut chosen = final_functions(graph);
    let pooling = pooling_nodes(graph);
    let client = client_nodes(graph);
    let mut known: Vec<NodeId> =
        pooling.iter().flat_map(|&id| graph.operands(id)).filter(|o| client.contains(o)).collect();
    while let Some(id) = known.pop() {
        if !matches!(graph.node(id).op, Op::Input | Op::Constant(_)) && chosen.insert(id) {
            known.extend(graph.operands(id));
        }
    }
    chosen.extend(pooling);
    chosen
}

/// Operations after the last weight matrix that nothing but the outputs reads.
fn final_functions(graph: &Graph) -> BTreeSet<NodeId> {
    let private = private_nodes(graph);
    let cheap = |op: &ClearOp| matches!(op, ClearOp::Softmax { .. } | ClearOp::Unary { .. });
    last_nodes(graph, |id, op| cheap(op) && private.contains(&id))
}

/// Nodes of wanted operations that lead to outputs through such nodes only.
fn last_nodes(graph: &Graph, wanted: impl Fn(NodeId, &ClearOp) -> bool) -> BTreeSet<NodeId> {
    let mut chosen = BTreeSet::new();
    for id in graph.topological().into_iter().rev() {
        let Op::Clear(op) = &graph.node(id).op else { continue };
        let users = graph.users(id);
        let last = !users.is_empty() || graph.is_output(id);
        if last && wanted(id, op) && users.iter().all(|(user, _)| chosen.contains(user)) {
            chosen.insert(id);
        }
    }
    chosen
}

/// Products of something encrypted and something that the client knows, where only the client's kind of work follows, and that
/// work.
fn pooling_nodes(graph: &Graph) -> BTreeSet<NodeId> {
    let (private, client) = (private_nodes(graph), client_nodes(graph));
    let kinds = |op: &ClearOp| !matches!(op, ClearOp::Gather { .. });
    let eligible = last_nodes(graph, |id, op| {
        let secrets = graph.operands(id).iter().filter(|o| private.contains(o) && !client.contains(o)).count();
        kinds(op) && secrets == 1 && !client.contains(&id)
    });
    let mut pooling = BTreeSet::new();
    for id in graph.topological().into_iter().filter(|id| eligible.contains(id)) {
        let operands = graph.operands(id);
        let product = matches!(graph.clear_op(id), Some(ClearOp::Mul | ClearOp::MatMul));
        let by_known = product && operands.iter().any(|o| client.contains(o));
        if by_known || operands.iter().any(|o| pooling.contains(o)) {
            pooling.insert(id);
        }
    }
    pooling
}

/// Copies nodes, and the constants that they read, into a clear graph. `inputs` become its inputs.
fn extract(graph: &Graph, inputs: &[NodeId], nodes: &BTreeSet<NodeId>, outputs: &[(String, NodeId)]) -> ClearGraph {
    let mut clear = ClearGraph::default();
    let mut place: BTreeMap<NodeId, usize> = BTreeMap::new();
    for (i, &id) in inputs.iter().enumerate() {
        let node = graph.node(id);
        clear.inputs.push((node.name.clone(), node.shape.clone()));
        place.insert(id, clear.nodes.len());
        clear.nodes.push(ClearNode::Input(i));
    }
    for id in graph.topological().into_iter().filter(|id| nodes.contains(id)) {
        let mut operands = Vec::new();
        for operand in graph.operands(id) {
            if let (false, Some(value)) = (place.contains_key(&operand), graph.constant(operand)) {
                place.insert(operand, clear.nodes.len());
                clear.nodes.push(ClearNode::Constant(clear.constants.len()));
                clear.constants.push(value.clone());
            }
            operands.push(place[&operand]);
        }
        if let Op::Clear(op) = &graph.node(id).op {
            place.insert(id, clear.nodes.len());
            clear.nodes.push(ClearNode::Apply(op.clone(), operands));
        }
    }
    clear.outputs = outputs.iter().map(|(name, id)| (name.clone(), place[id])).collect();
    clear
}

/// Cuts the epilogue off; the graph's outputs become what the client decrypts.
fn cut_epilogue(graph: &mut Graph, nodes: &BTreeSet<NodeId>) -> ClearGraph {
    let mut boundary: Vec<NodeId> = Vec::new();
    let read = nodes.iter().flat_map(|&id| graph.operands(id)).filter(|o| graph.constant(*o).is_none());
    let direct = graph.outputs.iter().map(|(_, id)| *id);
    for id in direct.chain(read).filter(|id| !nodes.contains(id)) {
        if !boundary.contains(&id) {
            boundary.push(id);
        }
    }
    let mut epilogue = extract(graph, &boundary, nodes, &graph.outputs);
    let outputs: Vec<(String, NodeId)> = boundary
        .iter()
        .map(|&id| {
            let name = graph.outputs.iter().find(|(_, o)| *o == id).map(|(name, _)| name.clone());
            (name.unwrap_or_else(|| graph.node(id).name.clone()), id)
        })
        .collect();
    for (input, (name, _)) in epilogue.inputs.iter_mut().zip(&outputs) {
        input.0.clone_from(name);
    }
    graph.outputs = outputs;
    epilogue
}

/// Cuts the prologue off; the graph's inputs become what the client encrypts.
fn cut_prologue(graph: &mut Graph, nodes: &BTreeSet<NodeId>) -> ClearGraph {
    let inputs = graph.inputs.clone();
    let crosses = |id: NodeId| graph.is_output(id) || graph.users(id).iter().any(|(user, _)| !nodes.contains(user));
    let boundary: Vec<NodeId> = graph
        .topological()
        .into_iter()
        .filter(|id| (nodes.contains(id) || inputs.contains(id)) && crosses(*id))
        .collect();
    let named: Vec<(String, NodeId)> = boundary.iter().map(|&id| (graph.node(id).name.clone(), id)).collect();
    let prologue = extract(graph, &inputs, nodes, &named);
    for &id in &boundary {
        graph.set_operands(id, &[]);
        graph.node_mut(id).op = Op::Input;
    }
    graph.inputs = boundary;
    prologue
}
