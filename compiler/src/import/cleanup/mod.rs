//! Small rewrites that bring a translated graph to its canonical form, whatever exporter wrote it.
//!
//! Each file is one rewrite, `run(&mut Graph) -> Result<bool>` (whether it changed anything); they run in
//! turn until none does. They keep the meaning exactly, up to rounding; what approximates belongs to passes.

mod activation;
mod arithmetic;
mod broadcast;
mod constants;
mod hoist;
mod layer_norm;
mod linear_bias;
mod movement;
mod order;
mod slices;

use std::sync::Arc;

use thex_circuit::clear::{ClearOp, Tensor};
use thex_ir::{Graph, NodeId};

use super::error::{ImportError, Result};
use super::names::Names;

/// More rounds than any model needs; a rewrite that undoes another would go on for ever.
const MAX_ROUNDS: usize = 100;

type Rewrite = fn(&mut Graph) -> Result<bool>;

const REWRITES: [Rewrite; 10] = [
    constants::run,
    broadcast::run,
    arithmetic::run,
    slices::run,
    hoist::run,
    movement::run,
    movement::share,
    linear_bias::run,
    layer_norm::run,
    activation::run,
];

/// Brings the graph to canonical form.
pub(super) fn run(mut graph: Graph, names: &Names) -> Result<Graph> {
    for _ in 0..MAX_ROUNDS {
        let mut changed = false;
        for rewrite in REWRITES {
            changed |= rewrite(&mut graph)?;
            graph.remove_dead();
        }
        if !changed {
            return Ok(order::run(&graph, names));
        }
    }
    Err(ImportError::Internal("the import's rewrites do not come to an end".into()))
}

/// Adds an operation in the name of `site`.
fn add(graph: &mut Graph, site: NodeId, op: ClearOp, operands: &[NodeId]) -> Result<NodeId> {
    let (name, origin) = (graph.node(site).name.clone(), graph.node(site).origin.clone());
    graph.add_clear(&name, op, operands, &origin).map_err(|e| ImportError::Internal(e.to_string()))
}

/// Adds a constant in the name of `site`.
fn add_constant(graph: &mut Graph, site: NodeId, value: Tensor) -> NodeId {
    let (name, origin) = (graph.node(site).name.clone(), graph.node(site).origin.clone());
    graph.add_constant(&name, Arc::new(value), &origin)
}

/// Adds what `origin` names to the origin of `to`.
fn inherit(graph: &mut Graph, to: NodeId, from: NodeId) {
    for name in graph.node(from).origin.clone() {
        let origin = &mut graph.node_mut(to).origin;
        if !origin.contains(&name) {
            origin.push(name);
        }
    }
}

/// `old` is computed by `new` from now on.
fn replace(graph: &mut Graph, old: NodeId, new: NodeId) {
    graph.replace_uses(old, new);
}

/// The one user of a node, if it has one use and is no output.
fn has_one_use(graph: &Graph, id: NodeId) -> bool {
    graph.users(id).len() == 1 && !graph.is_output(id)
}

/// The number that all elements of a constant equal.
fn uniform(graph: &Graph, id: NodeId) -> Option<f64> {
    let value = graph.constant(id)?;
    let first = *value.iter().next()?;
    value.iter().all(|v| v.to_bits() == first.to_bits()).then_some(first)
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * b.abs().max(1e-300)
}

fn internal(error: impl ToString) -> ImportError {
    ImportError::Internal(error.to_string())
}
