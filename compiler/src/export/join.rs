//! Client and server in one graph again, as the model was before `split-client-server`.

use std::collections::BTreeMap;

use thex_circuit::clear::{ClearGraph, ClearNode};
use thex_ir::{Graph, NodeId, Op};

use crate::error::{CompileError, Result};

/// Prologue, server and epilogue, one after the other. Nodes of the client get names of their own, for a bundle has none.
///
/// # Errors
/// [`CompileError::Internal`] when they do not fit together.
pub fn join(prologue: &ClearGraph, server: &Graph, epilogue: &ClearGraph) -> Result<Graph> {
    let mut graph = Graph::new();
    let inputs: Vec<NodeId> = prologue.inputs.iter().map(|(name, shape)| graph.add_input(name, shape)).collect();
    let encrypted = append_clear(&mut graph, prologue, &inputs, "before")?;
    let decrypted = append_server(&mut graph, server, &encrypted)?;
    let outputs = append_clear(&mut graph, epilogue, &decrypted, "after")?;
    graph.outputs = epilogue.outputs.iter().map(|(name, _)| name.clone()).zip(outputs).collect();
    graph.remove_dead();
    Ok(graph)
}

fn misfit(what: &str) -> CompileError {
    CompileError::Internal(format!("client and server do not fit together: {what}"))
}

/// Adds a client's graph on these inputs; gives its outputs.
fn append_clear(graph: &mut Graph, part: &ClearGraph, inputs: &[NodeId], prefix: &str) -> Result<Vec<NodeId>> {
    let mut values: Vec<NodeId> = Vec::new();
    for node in &part.nodes {
        let value = match node {
            ClearNode::Input(i) => *inputs.get(*i).ok_or_else(|| misfit("an input is missing"))?,
            ClearNode::Constant(i) => {
                let value = part.constants.get(*i).ok_or_else(|| misfit("a constant is missing"))?;
                graph.add_constant(&format!("{prefix}.constant"), value.clone(), &[])
            }
            ClearNode::Apply(op, operands) => {
                let operands = pick(&values, operands)?;
                graph.add_clear(&format!("{prefix}.{}", op.mnemonic()), op.clone(), &operands, &[])?
            }
        };
        values.push(value);
    }
    pick(&values, &part.outputs.iter().map(|(_, i)| *i).collect::<Vec<_>>())
}

fn pick(values: &[NodeId], places: &[usize]) -> Result<Vec<NodeId>> {
    places.iter().map(|i| values.get(*i).copied().ok_or_else(|| misfit("a node is missing"))).collect()
}

/// Adds the server's graph on these inputs; gives its outputs.
fn append_server(graph: &mut Graph, server: &Graph, inputs: &[NodeId]) -> Result<Vec<NodeId>> {
    if server.inputs.len() != inputs.len() {
        return Err(misfit("the server has another number of inputs"));
    }
    let mut new: BTreeMap<NodeId, NodeId> = server.inputs.iter().copied().zip(inputs.iter().copied()).collect();
    for id in server.topological() {
        let node = server.node(id);
        let value = match &node.op {
            Op::Input => continue,
            Op::Constant(value) => graph.add_constant(&node.name, value.clone(), &node.origin),
            Op::Clear(op) => {
                let operands: Vec<NodeId> = server.operands(id).iter().filter_map(|o| new.get(o).copied()).collect();
                graph.add_clear(&node.name, op.clone(), &operands, &node.origin)?
            }
            Op::He(_) => return Err(misfit("the server's graph is lowered already")),
        };
        new.insert(id, value);
    }
    let output = |(_, id): &(String, NodeId)| new.get(id).copied().ok_or_else(|| misfit("an output is missing"));
    server.outputs.iter().map(output).collect()
}
