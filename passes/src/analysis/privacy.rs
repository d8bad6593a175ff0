//! Which nodes depend on an input of the model, so are encrypted on the server.

use std::collections::BTreeSet;

use thex_ir::{Graph, NodeId, Op};

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
