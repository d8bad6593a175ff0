//! The way back: the model that a circuit computes, as an ordinary ONNX file.
//!
//! Approximations change a model; a circuit shows only what they cost. `thex export` writes the approximated model with
//! standard operators and single-precision weights, so that its user can look at it, run it in onnxruntime, fine-tune it in
//! PyTorch, and compile the result again.
//!
//! The source is a side file of `compile`, `OUT.graph` ([`GraphFile`]): the client's prologue, the server's graph as the
//! passes up to `fuse-unary` leave it, and the client's epilogue, joined into one graph ([`join()`]). At that point every
//! operation is still a tensor operation on real numbers. Neither client nor server needs the file.
//!
//! Alternative rejected: exporting from the circuit. It holds integers and tables, from which no one can train.

mod expected;
mod file;
mod join;
mod nodes;
mod onnx;
mod unary;

use std::path::Path;

use thex_ir::Graph;

use crate::error::{CompileError, Result};
use crate::pipeline::with_suffix;

pub use expected::expected;
pub use file::GraphFile;
pub use join::join;
pub use onnx::model;

/// Suffix of the side file.
pub const SUFFIX: &str = ".graph";

/// Reads `PREFIX.graph`.
///
/// # Errors
/// The file is missing or damaged.
pub fn load(prefix: &Path) -> Result<GraphFile> {
    let path = with_suffix(prefix, SUFFIX);
    if !path.exists() {
        return Err(CompileError::Invalid(format!(
            "`{}` is not there: `thex compile` writes it beside the circuit; give the same prefix",
            path.display()
        )));
    }
    GraphFile::load(&path)
}

/// The ONNX model of a graph file.
///
/// # Errors
/// [`CompileError::Internal`] when the graph holds what no stage before calibration does.
pub fn onnx_bytes(file: &GraphFile) -> Result<Vec<u8>> {
    Ok(prost::Message::encode_to_vec(&model(file)?))
}

/// Rounds every constant to single precision, the most that ONNX weights here hold.
fn round_constants(graph: &mut Graph) {
    let single = |v: &f64| f64::from(v.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32);
    let constants: Vec<_> = graph.ids().filter_map(|id| graph.constant(id).cloned().map(|value| (id, value))).collect();
    for (id, value) in constants {
        graph.node_mut(id).op = thex_ir::Op::Constant(std::sync::Arc::new(value.map(single)));
    }
}
