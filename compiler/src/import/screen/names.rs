//! Names: each tensor is made once, before or after it is used but not by what depends on it, and outputs are computed.

use std::collections::{BTreeMap, BTreeSet};

use tract_onnx::pb::GraphProto;

use super::{Findings, node_name};

/// Most names that one fault lists.
const MOST_LISTED: usize = 6;

pub(super) fn check(graph: &GraphProto, findings: &mut Findings) {
    duplicates(graph, findings);
    undefined(graph, findings);
    outputs(graph, findings);
    inputs(graph, findings);
    cycles(graph, findings);
}

/// `a`, `b` and 5 more.
pub(super) fn listed<S: AsRef<str>>(names: &[S]) -> String {
    let shown: Vec<String> = names.iter().take(MOST_LISTED).map(|n| format!("`{}`", n.as_ref())).collect();
    match names.len().saturating_sub(MOST_LISTED) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn duplicates(graph: &GraphProto, findings: &mut Findings) {
    let inputs = graph.input.iter().map(|i| i.name.as_str());
    let constants = graph.initializer.iter().map(|t| t.name.as_str());
    let computed = || graph.node.iter().flat_map(|n| n.output.iter()).map(String::as_str).filter(|n| !n.is_empty());
    // A constant may also be declared as an input: its default.
    let makers: [(&str, Vec<&str>); 4] = [
        ("inputs", inputs.clone().collect()),
        ("constants", constants.clone().collect()),
        ("outputs", graph.output.iter().map(|o| o.name.as_str()).collect()),
        ("tensors", {
            let given: BTreeSet<&str> = inputs.chain(constants).collect();
            given.into_iter().chain(computed()).collect()
        }),
    ];
    for (what, names) in makers {
        let (mut seen, mut twice) = (BTreeSet::new(), BTreeSet::new());
        twice.extend(names.into_iter().filter(|name| !seen.insert(*name)));
        if !twice.is_empty() {
            let twice: Vec<&str> = twice.into_iter().collect();
            findings.fault(format!("several {what} have the same name: {}", listed(&twice)));
        }
    }
}

/// Names of all tensors that the graph can refer to.
fn produced(graph: &GraphProto) -> BTreeSet<&str> {
    let inputs = graph.input.iter().map(|i| i.name.as_str());
    let constants = graph.initializer.iter().map(|i| i.name.as_str());
    let computed = graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str));
    inputs.chain(constants).chain(computed).collect()
}

/// Operands that nothing computes, and operators without any.
fn undefined(graph: &GraphProto, findings: &mut Findings) {
    let produced = produced(graph);
    for node in &graph.node {
        if node.input.iter().all(String::is_empty) && node.op_type != "Constant" {
            findings.fault(format!("node `{}` ({}) has no operands", node_name(node), node.op_type));
        }
        let missing = node.input.iter().filter(|i| !i.is_empty() && !produced.contains(i.as_str()));
        let missing: Vec<&String> = missing.collect();
        if !missing.is_empty() {
            findings.fault(format!("node `{}` reads {}, which nothing computes", node_name(node), listed(&missing)));
        }
    }
}

fn outputs(graph: &GraphProto, findings: &mut Findings) {
    let produced = produced(graph);
    let inputs: BTreeSet<&str> = graph.input.iter().map(|i| i.name.as_str()).collect();
    let constants: BTreeSet<&str> = graph.initializer.iter().map(|i| i.name.as_str()).collect();
    for output in graph.output.iter().map(|o| o.name.as_str()) {
        if inputs.contains(output) || constants.contains(output) {
            let kind = if constants.contains(output) { "a constant" } else { "an input" };
            findings.fault(format!(
                "its output `{output}` is {kind} of the model, so there is nothing to compute for it: remove it from the outputs"
            ));
        } else if !produced.contains(output) {
            findings.fault(format!("nothing computes its output `{output}`"));
        }
    }
}

/// Inputs are tensors of a known element type.
fn inputs(graph: &GraphProto, findings: &mut Findings) {
    for input in &graph.input {
        if input.r#type.as_ref().and_then(|t| t.value.as_ref()).is_none() {
            findings.fault(format!(
                "its input `{}` is no tensor, but a sequence, a map or something optional: give the model plain tensors",
                input.name
            ));
        }
    }
}

fn cycles(graph: &GraphProto, findings: &mut Findings) {
    let stuck = on_cycles(graph);
    if !stuck.is_empty() {
        let names: Vec<String> = stuck.iter().map(|i| node_name(&graph.node[*i])).collect();
        findings.fault(format!("its nodes {} depend on one another in a circle", listed(&names)));
    }
}

/// Nodes on a cycle, or between two: what is left when nodes without open operands go, and then those without users.
fn on_cycles(graph: &GraphProto) -> BTreeSet<usize> {
    let mut maker: BTreeMap<&str, usize> = BTreeMap::new();
    for (i, node) in graph.node.iter().enumerate() {
        maker.extend(node.output.iter().filter(|o| !o.is_empty()).map(|o| (o.as_str(), i)));
    }
    let mut edges: BTreeSet<(usize, usize)> = BTreeSet::new();
    for (i, node) in graph.node.iter().enumerate() {
        edges.extend(node.input.iter().filter_map(|input| maker.get(input.as_str())).map(|m| (*m, i)));
    }
    let forward = peel(graph.node.len(), &edges);
    let backward: BTreeSet<(usize, usize)> = edges.iter().map(|(a, b)| (*b, *a)).collect();
    forward.intersection(&peel(graph.node.len(), &backward)).copied().collect()
}

/// What is left when nodes without incoming edges are removed, again and again.
fn peel(count: usize, edges: &BTreeSet<(usize, usize)>) -> BTreeSet<usize> {
    let mut incoming = vec![0_usize; count];
    edges.iter().for_each(|(_, to)| incoming[*to] += 1);
    let mut ready: Vec<usize> = (0..count).filter(|i| incoming[*i] == 0).collect();
    let mut left: BTreeSet<usize> = (0..count).collect();
    while let Some(node) = ready.pop() {
        left.remove(&node);
        for (_, to) in edges.range((node, 0)..=(node, usize::MAX)) {
            incoming[*to] -= 1;
            if incoming[*to] == 0 {
                ready.push(*to);
            }
        }
    }
    left
}
