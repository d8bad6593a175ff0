//! The frontend: from an ONNX file to a graph of tensor operations.
//!
//! The file is searched for everything that is wrong with it (`screen`); tract reads it, infers shapes and simplifies
//! (`load`), within limits (`budget`); we translate each of its nodes, a file per
//! family of operators (`translate` walks, `einsum`, `elementwise`, `shape`, `norm`, `conv`,
//! `attention`, `logic` translate), and bring the result to a canonical form (`cleanup`), so that
//! passes see one spelling of a layer norm, whatever wrote the file. At the end the graph is compared with
//! tract's own run of the model (`check`).
//!
//! **Invariant:** a graph that [`import`] returns agrees with tract on pseudo-random inputs.

mod attention;
mod budget;
mod check;
mod cleanup;
mod conv;
mod einsum;
mod elementwise;
mod error;
mod load;
mod logic;
mod names;
mod norm;
mod reference;
mod repair;
mod screen;
mod shape;
mod translate;

use std::collections::BTreeMap;
use std::path::Path;

use thex_ir::{Graph, Op};

pub use error::{ImportError, UnsupportedNode};
pub use load::{Dim, InputInfo};
pub use reference::Reference;

/// How to import.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Concrete shapes of inputs by ONNX name, the batch of 1 included. Inputs without symbols need none.
    pub shapes: BTreeMap<String, Vec<usize>>,
}

/// An imported model.
#[derive(Clone, Debug)]
pub struct Imported {
    /// At [`Stage::Imported`](thex_ir::Stage::Imported).
    pub graph: Graph,
    /// The float model.
    pub reference: Reference,
    /// Largest relative difference between the two on the inputs that were tried.
    pub difference: f64,
}

/// Imports an ONNX model.
///
/// # Errors
/// [`ImportError::Unsupported`] lists every operator that cannot be compiled; the other kinds say what is
/// wrong with the file or the shapes.
pub fn import(path: &Path, options: &ImportOptions) -> Result<Imported, ImportError> {
    let loaded = load::load(path, options)?;
    let translated = translate::translate(&loaded, &loaded.names)?;
    tracing::debug!(nodes = translated.len(), "translated");
    let graph = cleanup::run(translated, &loaded.names)?;
    something_to_compute(path, &graph)?;
    let reference = Reference::new(path, &loaded)?;
    let difference = check::check(&graph, &reference, &loaded.inputs)?;
    tracing::info!(nodes = graph.len(), difference, "imported {}", path.display());
    Ok(Imported { graph, reference, difference })
}

/// Outputs that are an input or a constant, maybe after operations that cancelled out, are a mistake in the model.
fn something_to_compute(path: &Path, graph: &Graph) -> Result<(), ImportError> {
    let kind = |id| match &graph.node(id).op {
        Op::Input => Some("one of its inputs"),
        Op::Constant(_) => Some("a constant"),
        Op::Clear(_) | Op::He(_) => graph.node(id).shape.contains(&0).then_some("a tensor without elements"),
    };
    let trivial = graph.outputs.iter().filter_map(|(name, id)| kind(*id).map(|kind| (name, kind)));
    let faults: Vec<String> = trivial
        .map(|(name, kind)| {
            format!("its output `{name}` is {kind}, so there is nothing to compute for it: remove it from the outputs")
        })
        .collect();
    if faults.is_empty() {
        return Ok(());
    }
    Err(ImportError::Faulty { path: path.to_owned(), faults, unsupported: Vec::new() })
}

/// The inputs that a model declares.
///
/// # Errors
/// When the file cannot be read or is no ONNX model.
pub fn inputs(path: &Path) -> Result<Vec<InputInfo>, ImportError> {
    Ok(load::proto_inputs(&load::read_proto(path)?))
}
