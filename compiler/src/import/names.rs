//! Names: from those that tract makes up while decluttering back to ONNX nodes.

use std::collections::BTreeSet;

use tract_onnx::pb::ModelProto;

/// Names of the ONNX nodes and tensors of a model.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: BTreeSet<String>,
    tensors: BTreeSet<String>,
}

impl Names {
    /// Of a model.
    pub(super) fn of(proto: &ModelProto) -> Self {
        let (mut known, mut tensors) = (BTreeSet::new(), BTreeSet::new());
        if let Some(graph) = &proto.graph {
            tensors.extend(graph.initializer.iter().map(|t| t.name.clone()));
            known.extend(tensors.iter().cloned());
            known.extend(graph.input.iter().map(|t| t.name.clone()));
            for node in &graph.node {
                let unnamed = node.name.is_empty();
                known.extend(if unnamed { node.output.first().cloned() } else { Some(node.name.clone()) });
            }
        }
        Self { known, tensors }
    }

    /// The ONNX name that a tract name was derived from by appending `.suffix`, `-suffix`, ...
    fn base<'a>(&self, name: &'a str) -> &'a str {
        let mut base = name;
        loop {
            if self.known.contains(base) {
                return base;
            }
            match base.rfind(['.', '-', '#']) {
                Some(end) if end > 0 => base = &base[..end],
                _ => return name,
            }
        }
    }

    /// Whether this is the name of a constant tensor of the model.
    pub(super) fn is_tensor(&self, name: &str) -> bool {
        self.tensors.contains(name)
    }

    /// ONNX nodes that a tract node came from.
    pub(super) fn origin(&self, name: &str) -> Vec<String> {
        vec![self.base(name).to_owned()]
    }

    /// A name for IR nodes: `/blocks.0/query/MatMul` becomes `blocks.0.query.MatMul`.
    pub(super) fn readable(&self, name: &str) -> String {
        let base = self.base(name);
        let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '.' };
        let text: String = base.trim_start_matches('/').chars().map(plain).collect();
        if text.is_empty() { "node".to_owned() } else { text.replace("..", ".") }
    }
}
