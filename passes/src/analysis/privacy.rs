//! Which nodes depend on an input of the model, so are encrypted on the server, and which of them the client can compute
//! by itself.

use std::collections::BTreeSet;

use thex_ir::{ClearOp, Graph, NodeId, Op};

/// Nodes whose value depends on an input.
#[must_use]
pub fn private_nodes(graph: &Graph) -> BTreeSet<NodeId> {
    let mut private = BTreeSet::new();
    for id in graph.topological() {
        let is_input = matches!(graph.node(id).op, Op::Input);
        if is_input || graph.operands(id).iter().any(|o| private.contains(o)) {
            private.insert(id);
        }
    }
    private
}

/// Private nodes that depend on inputs through no weight matrix and no product of matrices: embeddings, masks. The inputs
/// are among them.
#[must_use]
pub fn client_nodes(graph: &Graph) -> BTreeSet<NodeId> {
    let mut public = BTreeSet::new();
    let mut client = BTreeSet::new();
    for id in graph.topological() {
        let computable = match &graph.node(id).op {
            Op::Constant(_) => {
                public.insert(id);
                continue;
            }
            Op::Input => true,
            Op::Clear(ClearOp::Linear | ClearOp::MatMul) | Op::He(_) => false,
            Op::Clear(_) => graph.operands(id).iter().all(|o| client.contains(o) || public.contains(o)),
        };
        let operands = graph.operands(id);
        if !operands.is_empty() && operands.iter().all(|o| public.contains(o)) {
            public.insert(id);
        } else if computable {
            client.insert(id);
        }
    }
    client
}
