//! Decides what the client computes in the clear, before encryption and after decryption.
//!
//! * **Prologue.** Token ids look up an embedding table; no circuit should do that. Everything from such inputs up to the
//!   first weight matrix or product runs on the client: look-ups, sums of embeddings, their layer norm. The
//!   client therefore gets the tables, and the compiler says so. A model without look-ups (an image) has no prologue:
//!   its patch embedding stays on the server with all other weights.
//! * **Epilogue.** A softmax or another function of single rows after the last weight matrix needs no secret of the
//!   server either, and costs nothing after decryption.
//!
//! The rewritten graph is the server's; the calibration samples become samples of what is encrypted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rayon::prelude::*;
use thex_circuit::clear::{ClearGraph, ClearNode};
use thex_ir::{ClearOp, Graph, NodeId, Op};

use crate::analysis::private_nodes;
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
        let before = prologue_nodes(graph);
        let (prologue_count, epilogue_count) = (before.len(), epilogue.len());
        cx.epilogue = Some(cut_epilogue(graph, &epilogue));
        let prologue = cut_prologue(graph, &before);
        for (name, _) in prologue.outputs.iter().filter(|_| prologue_count > 0) {
            cx.note(format!("{name}: computed by the client, which receives the embedding tables"));
        }
        cx.samples = Arc::new(cx.samples.par_iter().map(|s| prologue.run(s)).collect::<std::result::Result<_, _>>()?);
        cx.prologue = Some(prologue);
        graph.remove_dead();
        cx.teacher = Some(Arc::new(graph.clone()));
        cx.count("prologue", prologue_count as u64);
        cx.count("epilogue", epilogue_count as u64);
        Ok(prologue_count + epilogue_count > 0)
    }
}

fn has_weights(op: &ClearOp) -> bool {
    matches!(op, ClearOp::Linear | ClearOp::MatMul)
}

/// Operations that depend on inputs, and on them only through look-ups and what needs no weight matrix.
fn prologue_nodes(graph: &Graph) -> BTreeSet<NodeId> {
    let private = private_nodes(graph);
    let mut free: BTreeSet<NodeId> = graph.inputs.iter().copied().collect();
    let mut looked_up: BTreeSet<NodeId> = BTreeSet::new();
    for id in graph.topological() {
        let Op::Clear(op) = &graph.node(id).op else { continue };
        let operands = graph.operands(id);
        let sources: Vec<&NodeId> = operands.iter().filter(|o| private.contains(o)).collect();
        if sources.is_empty() || has_weights(op) || !sources.iter().all(|s| free.contains(s)) {
            continue;
        }
        free.insert(id);
        if matches!(op, ClearOp::Gather { .. }) || sources.iter().any(|s| looked_up.contains(s)) {
            looked_up.insert(id);
        }
    }
    // What leads to a look-up, or comes after one.
    let mut chosen = looked_up.clone();
    for id in graph.topological().into_iter().rev() {
        let leads = graph.users(id).iter().any(|(user, _)| chosen.contains(user));
        if leads && free.contains(&id) && !graph.inputs.contains(&id) {
            chosen.insert(id);
        }
    }
    chosen
}

/// Operations after the last weight matrix that nothing but the outputs reads.
fn epilogue_nodes(graph: &Graph) -> BTreeSet<NodeId> {
    let private = private_nodes(graph);
    let mut chosen = BTreeSet::new();
    for id in graph.topological().into_iter().rev() {
        let Op::Clear(op) = &graph.node(id).op else { continue };
        let cheap = matches!(op, ClearOp::Softmax { .. } | ClearOp::Unary { .. });
        let users = graph.users(id);
        let last = !users.is_empty() || graph.is_output(id);
        if cheap && private.contains(&id) && last && users.iter().all(|(user, _)| chosen.contains(user)) {
            chosen.insert(id);
        }
    }
    chosen
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
