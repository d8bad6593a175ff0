//! What an exported model gives by thex's own interpreter, so that another runtime can be checked against it.

use std::io::Cursor;
use std::path::Path;

use ndarray::{ArrayD, Axis};
use ndarray_npy::NpzWriter;
use thex_ir::interpret;
use thex_runtime::npz;

use super::GraphFile;
use crate::error::{CompileError, Result};
use crate::pipeline::tensors;

/// The inputs of a data set, in the element types of the exported model, and beside them `expected_*` for every output: the bytes
/// of an `.npz`. The first axis counts samples.
///
/// # Errors
/// The data set does not fit the model.
pub fn expected(file: &GraphFile, data: &Path) -> Result<Vec<u8>> {
    let graph = &file.graph;
    let order: Vec<(String, Vec<usize>)> =
        graph.inputs.iter().map(|&id| (graph.node(id).name.clone(), graph.node(id).shape.clone())).collect();
    let names: Vec<&str> = order.iter().map(|(name, _)| name.as_str()).collect();
    let arrays = npz::read(data, &names)?;
    let mut outputs: Vec<Vec<ArrayD<f64>>> = vec![Vec::new(); graph.outputs.len()];
    for index in 0..npz::samples(&arrays) {
        let values = interpret::run(graph, &tensors(&arrays, index, &order)?)?;
        values.iter().zip(&mut outputs).for_each(|(value, column)| column.push((**value).clone()));
    }
    let mut writer = NpzWriter::new(Cursor::new(Vec::new()));
    for (name, array) in &arrays {
        put(&mut writer, name, array, !super::onnx::is_real(file.dtypes.get(name)))?;
    }
    for ((name, _), samples) in graph.outputs.iter().zip(&outputs) {
        put(&mut writer, &format!("expected_{name}"), &stacked(samples)?, false)?;
    }
    Ok(writer.finish().map_err(|e| unwritable(&e))?.into_inner())
}

fn unwritable(error: &dyn std::fmt::Display) -> CompileError {
    CompileError::Internal(format!("the expected outputs cannot be written: {error}"))
}

/// Samples one after another; a batch axis of 1 becomes the axis that counts them.
fn stacked(samples: &[ArrayD<f64>]) -> Result<ArrayD<f64>> {
    let views: Vec<_> = samples.iter().map(|s| s.view()).collect();
    let batched = samples.iter().all(|s| s.shape().first() == Some(&1));
    let stacked = if batched { ndarray::concatenate(Axis(0), &views) } else { ndarray::stack(Axis(0), &views) };
    stacked.map_err(|e| unwritable(&e))
}

fn put(writer: &mut NpzWriter<Cursor<Vec<u8>>>, name: &str, array: &ArrayD<f64>, whole: bool) -> Result<()> {
    let result = if whole {
        writer.add_array(name, &array.mapv(|v| v as i64))
    } else {
        writer.add_array(name, &array.mapv(|v| v as f32))
    };
    result.map_err(|e| unwritable(&e))
}
