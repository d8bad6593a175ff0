//! Runs passes: verifies before and after, times, dumps, and keeps a record of each.
//!
//! Where a pass has an alternative ([`Pass::alternative`]), both are planned: the passes that follow run on the other graph first,
//! up to the one that sets [`PassCx::outlook`], then on the pass's own. If the other plan turns out to be the better one, all is set back to it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use thex_circuit::CircuitError;
use thex_ir::Graph;

use crate::error::{PassError, Result};
use crate::pass::{Outlook, Pass, PassCx};

/// What one pass did.
#[derive(Clone, Debug)]
pub struct PassRecord {
    /// Its name.
    pub pass: &'static str,
    /// Whether it changed the graph.
    pub changed: bool,
    /// Nodes before and after.
    pub nodes: (usize, usize),
    /// How long it took.
    pub elapsed: Duration,
    /// Its counters.
    pub counters: Vec<(&'static str, u64)>,
    /// What it noted about its rewrites.
    pub notes: Vec<String>,
    /// What it approximated.
    pub approximations: Vec<String>,
}

/// Called with (pass, graph).
pub type Observer = Box<dyn Fn(&'static str, &Graph)>;

/// Runs a list of passes.
#[derive(Default)]
pub struct PassManager {
    /// Writes the graph after every pass into this folder.
    pub dump_dir: Option<PathBuf>,
    /// Stops after the pass of this name.
    pub stop_after: Option<String>,
    /// Called with (pass, graph) after every pass.
    pub observer: Option<Observer>,
}

impl PassManager {
    /// Runs `passes` on `graph` in order.
    ///
    /// # Errors
    /// The first pass's error, or [`PassError::Internal`] when the verifier rejects what a pass produced.
    pub fn run(&self, passes: &[Box<dyn Pass>], graph: &mut Graph, cx: &mut PassCx) -> Result<Vec<PassRecord>> {
        let mut records = Vec::new();
        let mut rival: Option<Rival> = None;
        self.dump(records.len(), "input", graph)?;
        while let Some(pass) = passes.get(records.len()) {
            let rest = &passes[records.len() + 1..];
            if rival.is_none() {
                rival = Rival::of(pass.as_ref(), rest, (graph, cx), records.len())?;
            }
            records.push(self.run_one(pass.as_ref(), graph, cx)?);
            let last = self.stop_after.as_deref() == Some(pass.name());
            if last && rival.is_some() && cx.outlook.is_none() {
                // It stops before the plan is made, and yet must show what would be kept.
                cx.outlook = plan(rest, graph.clone(), cx.clone())?;
            }
            if let Some((rival, outlook)) = cx.outlook.and_then(|outlook| Some((rival.take()?, outlook))) {
                rival.settle(outlook, graph, cx, &mut records);
            }
            let Some(record) = records.last() else { break };
            let name = record.pass;
            self.dump(records.len(), name, graph)?;
            if let Some(observer) = &self.observer {
                observer(name, graph);
            }
            if self.stop_after.as_deref() == Some(name) {
                break;
            }
        }
        Ok(records)
    }

    fn run_one(&self, pass: &dyn Pass, graph: &mut Graph, cx: &mut PassCx) -> Result<PassRecord> {
        let record = recorded(pass, graph, cx)?;
        tracing::info!(
            pass = record.pass,
            changed = record.changed,
            nodes_before = record.nodes.0,
            nodes_after = record.nodes.1,
            ms = record.elapsed.as_millis() as u64,
            counters = ?record.counters,
        );
        Ok(record)
    }

    fn dump(&self, number: usize, pass: &str, graph: &Graph) -> Result<()> {
        let Some(folder) = &self.dump_dir else { return Ok(()) };
        let path = folder.join(format!("{number:02}-{pass}.ir"));
        let write = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&path, thex_ir::print::print(graph)));
        Ok(write.map_err(|source| CircuitError::Io { action: "write", path, source })?)
    }
}

/// Runs a pass between two verifications.
fn recorded(pass: &dyn Pass, graph: &mut Graph, cx: &mut PassCx) -> Result<PassRecord> {
    let before = graph.len();
    verify(pass, "before", graph, cx)?;
    cx.counters.clear();
    let (notes, approximations) = (cx.log.len(), cx.approximations.len());
    let start = Instant::now();
    let changed = pass.run(graph, cx)?;
    let elapsed = start.elapsed();
    verify(pass, "after", graph, cx)?;
    Ok(PassRecord {
        pass: pass.name(),
        changed,
        nodes: (before, graph.len()),
        elapsed,
        counters: cx.counters.iter().map(|(k, v)| (*k, *v)).collect(),
        notes: cx.log[notes..].to_vec(),
        approximations: cx.approximations[approximations..].to_vec(),
    })
}

/// The graph after the alternative to a pass, and what a plan of it promises.
struct Rival {
    what: &'static str,
    graph: Graph,
    cx: PassCx,
    record: PassRecord,
    outlook: Outlook,
    /// Passes before.
    before: usize,
}

impl Rival {
    /// Runs and plans the alternative to a pass, if it has one that can be planned.
    fn of(
        pass: &dyn Pass,
        rest: &[Box<dyn Pass>],
        (graph, cx): (&Graph, &PassCx),
        before: usize,
    ) -> Result<Option<Self>> {
        let Some((other, what)) = pass.alternative(graph) else { return Ok(None) };
        let (mut graph, mut cx) = (graph.clone(), cx.clone());
        let record = recorded(other.as_ref(), &mut graph, &mut cx)?;
        let outlook = plan(rest, graph.clone(), cx.clone())?;
        Ok(outlook.map(|outlook| Self { what, graph, cx, record, outlook, before }))
    }

    /// Keeps the better plan: the one that was made, or this one, with all set back to where it begins.
    fn settle(self, made: Outlook, graph: &mut Graph, cx: &mut PassCx, records: &mut Vec<PassRecord>) {
        let better = self.outlook.is_better_than(&made);
        let (cost, Outlook { error, goal, .. }) = (self.outlook.cost / made.cost, self.outlook);
        let verdict = if better { "kept" } else { "rejected" };
        let note = format!(
            "{}: {verdict}, a plan with {cost:.2} times the work and a modelled error of {error:.4} in place of {:.4}, of {goal:.4} allowed",
            self.what, made.error,
        );
        if better {
            (*graph, *cx) = (self.graph, self.cx);
            records.truncate(self.before);
            records.push(self.record);
        }
        cx.note(note.clone());
        if let Some(record) = records.get_mut(self.before) {
            record.notes.push(note);
        }
    }
}

/// Runs passes up to the one that tells what the plan promises.
fn plan(passes: &[Box<dyn Pass>], mut graph: Graph, mut cx: PassCx) -> Result<Option<Outlook>> {
    for pass in passes {
        pass.run(&mut graph, &mut cx)?;
        if cx.outlook.is_some() {
            break;
        }
    }
    Ok(cx.outlook)
}

fn verify(pass: &dyn Pass, when: &'static str, graph: &Graph, cx: &PassCx) -> Result<()> {
    let options = thex_ir::verify::VerifyOptions { polynomial_size: Some(cx.parameters.polynomial_size.0) };
    thex_ir::verify::verify(graph, &options).map_err(|violations| {
        let lines: Vec<String> = violations.iter().take(8).map(|v| format!("\n  - {v}")).collect();
        PassError::Internal { pass: pass.name().to_owned(), when, violations: lines.concat() }
    })
}
