//! What the protobuf alone tells: everything that is wrong with a file, in one report, before tract sees it.
//!
//! tract stops at the first thing that it does not like, and says so in its own terms; some hostile files make it panic or ask for
//! all memory there is. So what can be checked beforehand is: names and cycles (`names`), constants (`constants`), and operators
//! that no circuit will ever compute (`operators`). Sizes that only shape inference knows are `budget`'s.

mod constants;
mod names;
mod operators;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tract_onnx::pb::{GraphProto, ModelProto, NodeProto};

use super::error::{ImportError, Result, UnsupportedNode};

/// Oldest set of operators that is read.
const OLDEST_OPSET: i64 = 9;

/// What was found.
#[derive(Debug, Default)]
struct Findings {
    faults: Vec<String>,
    unsupported: Vec<UnsupportedNode>,
    external: Vec<ImportError>,
}

impl Findings {
    fn fault(&mut self, text: impl Into<String>) {
        self.faults.push(text.into());
    }

    /// Weights in another file are a report of their own when nothing else is wrong.
    fn into_result(mut self, path: &Path) -> Result<()> {
        if self.faults.is_empty() && self.unsupported.is_empty() {
            return self.external.into_iter().next().map_or(Ok(()), Err);
        }
        self.faults.extend(self.external.iter().map(ToString::to_string));
        if self.faults.is_empty() {
            return Err(ImportError::Unsupported(self.unsupported));
        }
        Err(ImportError::Faulty { path: path.to_owned(), faults: self.faults, unsupported: self.unsupported })
    }
}

/// Name of a node, or of its first result.
fn node_name(node: &NodeProto) -> String {
    if node.name.is_empty() { node.output.first().cloned().unwrap_or_default() } else { node.name.clone() }
}

/// The graph and those inside it, with whether they are inside.
fn graphs(graph: &GraphProto) -> Vec<(&GraphProto, bool)> {
    let (mut found, mut next) = (vec![(graph, false)], 0);
    while next < found.len() {
        let (graph, _) = found[next];
        let attributes = graph.node.iter().flat_map(|n| &n.attribute);
        found.extend(attributes.flat_map(|a| a.g.iter().chain(&a.graphs)).map(|g| (g, true)));
        next += 1;
    }
    found
}

/// Operators that read each tensor.
fn consumers(graph: &GraphProto) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut consumers: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for node in &graph.node {
        for input in &node.input {
            consumers.entry(input).or_default().insert(&node.op_type);
        }
    }
    consumers
}

/// Looks for everything that is wrong.
pub(super) fn screen(path: &Path, proto: &ModelProto) -> Result<()> {
    let mut findings = Findings::default();
    opset(proto, &mut findings);
    if let Some(graph) = &proto.graph {
        names::check(graph, &mut findings);
        constants::check(path, graph, &mut findings);
        operators::check(graph, &mut findings);
    }
    findings.into_result(path)
}

fn opset(proto: &ModelProto, findings: &mut Findings) {
    let standard = |domain: &str| domain.is_empty() || domain == "ai.onnx";
    match proto.opset_import.iter().find(|o| standard(&o.domain)).map(|o| o.version) {
        Some(version) if version < OLDEST_OPSET => findings.fault(format!(
            "it uses opset {version}, whose operators mean other things: export it with opset 14 or later (17 is a good choice), \
             or convert it with onnx.version_converter"
        )),
        Some(_) => {}
        None => findings.fault("it does not say which opset it uses: export it again"),
    }
}
