//! Runs passes: verifies before and after, times, dumps, and keeps a record of each.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use thex_circuit::CircuitError;
use thex_ir::Graph;

use crate::error::{PassError, Result};
use crate::pass::{Pass, PassCx};

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
        self.dump(records.len(), "input", graph)?;
        for pass in passes {
            records.push(self.run_one(pass.as_ref(), graph, cx)?);
            self.dump(records.len(), pass.name(), graph)?;
            if let Some(observer) = &self.observer {
                observer(pass.name(), graph);
            }
            if self.stop_after.as_deref() == Some(pass.name()) {
                break;
            }
        }
        Ok(records)
    }

    fn run_one(&self, pass: &dyn Pass, graph: &mut Graph, cx: &mut PassCx) -> Result<PassRecord> {
        let before = graph.len();
        verify(pass, "before", graph, cx)?;
        cx.counters.clear();
        let (notes, approximations) = (cx.log.len(), cx.approximations.len());
        let start = Instant::now();
        let changed = pass.run(graph, cx)?;
        let elapsed = start.elapsed();
        verify(pass, "after", graph, cx)?;
        let record = PassRecord {
            pass: pass.name(),
            changed,
            nodes: (before, graph.len()),
            elapsed,
            counters: cx.counters.iter().map(|(k, v)| (*k, *v)).collect(),
            notes: cx.log[notes..].to_vec(),
            approximations: cx.approximations[approximations..].to_vec(),
        };
        tracing::info!(
            pass = record.pass,
            changed,
            nodes_before = before,
            nodes_after = graph.len(),
            ms = elapsed.as_millis() as u64,
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

fn verify(pass: &dyn Pass, when: &'static str, graph: &Graph, cx: &PassCx) -> Result<()> {
    let options = thex_ir::verify::VerifyOptions { polynomial_size: Some(cx.parameters.polynomial_size.0) };
    thex_ir::verify::verify(graph, &options).map_err(|violations| {
        let lines: Vec<String> = violations.iter().take(8).map(|v| format!("\n  - {v}")).collect();
        PassError::Internal { pass: pass.name().to_owned(), when, violations: lines.concat() }
    })
}
