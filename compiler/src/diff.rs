//! What one pass changes: the graphs on both sides of it and their difference, node by node.
//!
//! Nodes are matched by name. A pass that replaces a node's operation keeps its name, so it shows as changed; what it
//! builds around it shows as added. A node is *changed* when its line in the text form is another, facts included: so
//! `calibrate`, which only adds ranges, shows what it found. `insert-bootstraps` makes a new graph, and shows as such.
//!
//! Alternative rejected: a line diff of two dumps. It reports every node that only moved.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde_json::{Value, json};
use thex_ir::print::print_node;
use thex_ir::{Graph, NodeId, Op};
use thex_passes::PassRecord;

use crate::pipeline::Around;

/// Unchanged nodes that are shown on either side of a change.
const CONTEXT: usize = 2;

/// What became of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Same,
    Added,
    Removed,
    Changed,
}

/// Lines of one graph by name of node.
struct Side<'a> {
    graph: &'a Graph,
    /// In execution order.
    order: Vec<NodeId>,
    lines: BTreeMap<&'a str, String>,
}

impl<'a> Side<'a> {
    fn new(graph: &'a Graph) -> Self {
        let order = graph.topological();
        let lines = order.iter().map(|&id| (graph.node(id).name.as_str(), print_node(graph, id))).collect();
        Self { graph, order, lines }
    }

    fn names(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.order.iter().map(|&id| self.graph.node(id).name.as_str())
    }

    fn json(&self) -> Value {
        let nodes: Vec<Value> = self.order.iter().map(|&id| self.node_json(id)).collect();
        let outputs: Vec<Value> =
            self.graph.outputs.iter().map(|(n, id)| json!({ "name": n, "node": self.graph.node(*id).name })).collect();
        json!({ "stage": self.graph.stage.name(), "outputs": outputs, "nodes": nodes })
    }

    fn node_json(&self, id: NodeId) -> Value {
        let node = self.graph.node(id);
        let operands: Vec<&str> = self.graph.operands(id).iter().map(|&o| self.graph.node(o).name.as_str()).collect();
        json!({
            "name": node.name,
            "op": node.op.mnemonic(),
            "shape": node.shape,
            "operands": operands,
            "onnx": node.origin,
            "text": self.lines[node.name.as_str()],
        })
    }
}

/// The difference of two graphs.
pub struct GraphDiff<'a> {
    before: Side<'a>,
    after: Side<'a>,
    record: &'a PassRecord,
    /// Every node of both: those that are there afterwards in their order, the removed after what preceded them.
    rows: Vec<(Fate, &'a str)>,
}

impl<'a> GraphDiff<'a> {
    /// What the pass did.
    #[must_use]
    pub fn new(around: &'a Around) -> Self {
        let (before, after) = (Side::new(&around.before), Side::new(&around.after));
        let rows = rows(&before, &after);
        Self { before, after, record: &around.record, rows }
    }

    fn named(&self, fate: Fate) -> Vec<&'a str> {
        self.rows.iter().filter(|(f, _)| *f == fate).map(|(_, name)| *name).collect()
    }

    fn counts(&self) -> [usize; 3] {
        [Fate::Added, Fate::Removed, Fate::Changed].map(|fate| self.named(fate).len())
    }

    /// In the manner of a unified diff.
    #[must_use]
    pub fn text(&self) -> String {
        let [added, removed, changed] = self.counts();
        let (a, b) = (&self.before, &self.after);
        let mut out = String::new();
        let _ = writeln!(out, "--- before {} ({}, {} nodes)", self.record.pass, a.graph.stage.name(), a.order.len());
        let _ = writeln!(out, "+++ after {} ({}, {} nodes)", self.record.pass, b.graph.stage.name(), b.order.len());
        let _ = writeln!(out, "@@ {added} added, {removed} removed, {changed} changed @@");
        let near = self.near_changes();
        let mut skipped = 0;
        for ((fate, name), near) in self.rows.iter().zip(near) {
            if !near {
                skipped += 1;
                continue;
            }
            hunk(&mut out, &mut skipped);
            self.row(&mut out, *fate, name);
        }
        hunk(&mut out, &mut skipped);
        let notes = self.record.approximations.iter().chain(&self.record.notes);
        notes.for_each(|note| out += &format!("# {note}\n"));
        out
    }

    fn row(&self, out: &mut String, fate: Fate, name: &str) {
        if matches!(fate, Fate::Removed | Fate::Changed) {
            let _ = writeln!(out, "-{}", self.before.lines[name]);
        }
        match fate {
            Fate::Same => out.push(' '),
            Fate::Added | Fate::Changed => out.push('+'),
            Fate::Removed => return,
        }
        let _ = writeln!(out, "{}", self.after.lines[name]);
    }

    /// Whether each row is a change or close to one.
    fn near_changes(&self) -> Vec<bool> {
        let changed: Vec<bool> = self.rows.iter().map(|(fate, _)| *fate != Fate::Same).collect();
        let window = |i: usize| i.saturating_sub(CONTEXT)..(i + CONTEXT + 1).min(changed.len());
        (0..changed.len()).map(|i| changed[window(i)].iter().any(|c| *c)).collect()
    }

    /// Both graphs and what was added, removed and changed.
    #[must_use]
    pub fn json(&self) -> Value {
        let changed: Vec<Value> = self
            .named(Fate::Changed)
            .into_iter()
            .map(|name| json!({ "name": name, "before": self.before.lines[name], "after": self.after.lines[name] }))
            .collect();
        let counters: BTreeMap<&str, u64> = self.record.counters.iter().copied().collect();
        json!({
            "pass": self.record.pass,
            "before": self.before.json(),
            "after": self.after.json(),
            "added": self.named(Fate::Added),
            "removed": self.named(Fate::Removed),
            "changed": changed,
            "counters": counters,
            "approximations": self.record.approximations,
            "notes": self.record.notes,
        })
    }

    /// For Graphviz: both graphs in one, added nodes green, removed red, changed amber. Constants are left out.
    #[must_use]
    pub fn dot(&self) -> String {
        let mut out = String::from(
            "digraph pass {\n  node [shape=box, style=\"rounded,filled\", fontname=\"Helvetica\", fontsize=10, \
             color=\"#9aa3ad\", fillcolor=\"#f6f7f8\"];\n  edge [color=\"#9aa3ad\", arrowsize=0.6];\n",
        );
        let _ =
            writeln!(out, "  label={};\n  labelloc=t;", quoted(&format!("{} ({})", self.record.pass, self.legend())));
        for &(fate, name) in &self.rows {
            let side = if fate == Fate::Removed { &self.before } else { &self.after };
            side.dot_node(&mut out, fate, name);
        }
        let (old, new) = (self.before.edges(), self.after.edges());
        for (from, to) in old.union(&new) {
            let style = match (old.contains(&(*from, *to)), new.contains(&(*from, *to))) {
                (true, false) => " [color=\"#c0392b\", style=dashed]",
                (false, true) => " [color=\"#2e8b57\"]",
                _ => "",
            };
            let _ = writeln!(out, "  {} -> {}{style};", quoted(from), quoted(to));
        }
        out + "}\n"
    }

    fn legend(&self) -> String {
        let [added, removed, changed] = self.counts();
        format!("{added} added, {removed} removed, {changed} changed")
    }
}

impl<'a> Side<'a> {
    fn is_constant(&self, id: NodeId) -> bool {
        matches!(self.graph.node(id).op, Op::Constant(_))
    }

    fn edges(&self) -> BTreeSet<(&'a str, &'a str)> {
        let name = |id: NodeId| self.graph.node(id).name.as_str();
        let into = |&id: &NodeId| self.graph.operands(id).into_iter().map(move |o| (o, id)).collect::<Vec<_>>();
        let all = self.order.iter().flat_map(into);
        all.filter(|(from, _)| !self.is_constant(*from)).map(|(from, to)| (name(from), name(to))).collect()
    }

    fn dot_node(&self, out: &mut String, fate: Fate, name: &str) {
        let Some(&id) = self.order.iter().find(|&&id| self.graph.node(id).name == name) else { return };
        if self.is_constant(id) {
            return;
        }
        let node = self.graph.node(id);
        let label = format!("{name}\n{} {:?}", node.op.mnemonic(), node.shape);
        let colours = match fate {
            Fate::Same => "",
            Fate::Added => ", color=\"#2e8b57\", fillcolor=\"#dff3e6\"",
            Fate::Removed => ", color=\"#c0392b\", fillcolor=\"#fbe3e0\"",
            Fate::Changed => ", color=\"#c98a00\", fillcolor=\"#fdf0cf\"",
        };
        let _ = writeln!(out, "  {} [label={}{colours}];", quoted(name), quoted(&label));
    }
}

/// A string of the dot language.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

/// Says how many unchanged nodes were left out.
fn hunk(out: &mut String, skipped: &mut usize) {
    let count = std::mem::take(skipped);
    if count > 0 {
        let _ = writeln!(out, "@@ {count} unchanged @@");
    }
}

/// Every node of both graphs with its fate.
fn rows<'a>(before: &Side<'a>, after: &Side<'a>) -> Vec<(Fate, &'a str)> {
    // Removed nodes by the last node before them that is still there.
    let mut removed: BTreeMap<Option<&str>, Vec<&str>> = BTreeMap::new();
    let mut last = None;
    for name in before.names() {
        if after.lines.contains_key(name) {
            last = Some(name);
        } else {
            removed.entry(last).or_default().push(name);
        }
    }
    let mut rows = Vec::new();
    let gone = |at: Option<&str>| removed.get(&at).cloned().unwrap_or_default().into_iter().map(|n| (Fate::Removed, n));
    rows.extend(gone(None));
    for name in after.names() {
        let fate = match before.lines.get(name) {
            None => Fate::Added,
            Some(line) if *line == after.lines[name] => Fate::Same,
            Some(_) => Fate::Changed,
        };
        rows.push((fate, name));
        rows.extend(gone(Some(name)));
    }
    rows
}
