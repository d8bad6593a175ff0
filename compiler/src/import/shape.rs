//! Operators that move elements, and constants.

use ndarray::{ArrayD, Axis, IxDyn};
use thex_circuit::clear::{ClearOp, Tensor};
use thex_ir::NodeId;
use tract_onnx::tract_core::ops::array::{Gather, GatherElements, Slice, TypedConcat};
use tract_onnx::tract_core::ops::change_axes::AxisOp;

use super::translate::{Cx, Refusal, Step, unsupported, with_batch};

/// What stands for ±∞ in a constant, which must be finite: exports write it into attention masks, where
/// any number far below the scores does.
const INFINITY: f64 = f32::MAX as f64;

/// Most rows that a constant gather may pick one by one.
const MAX_PICKED: usize = 4096;

/// A tract tensor as an IR tensor, in double precision.
pub(super) fn tensor_of(value: &tract_onnx::prelude::Tensor) -> Step<Tensor> {
    let internal = |e: String| Refusal::Internal(e);
    let wide = value.cast_to::<f64>().map_err(|e| internal(e.to_string()))?;
    let view = wide.to_plain_array_view::<f64>().map_err(|e| internal(e.to_string()))?;
    Ok(view.to_owned())
}

/// A constant.
pub(super) fn constant(cx: &mut Cx<'_>, value: &tract_onnx::prelude::Tensor) -> Step<NodeId> {
    let Ok(value) = tensor_of(value) else {
        return unsupported("its elements are no numbers", "remove text and other such constants from the model");
    };
    if value.iter().any(|v| v.is_nan()) {
        return unsupported("it holds a constant that is not a number", "look for NaN in the weights");
    }
    let shape = with_batch(value.shape());
    let flat = value.iter().map(|v| v.clamp(-INFINITY, INFINITY)).collect();
    let value = ArrayD::from_shape_vec(IxDyn(&shape), flat).map_err(|e| Refusal::Internal(e.to_string()))?;
    Ok(cx.constant("", value))
}

/// Add, Rm and Reshape keep the order of elements; Move is a transpose.
pub(super) fn axis_op(cx: &mut Cx<'_>, op: &AxisOp) -> Step<NodeId> {
    let x = cx.plain(0)?;
    match op {
        AxisOp::Move(from, to) => {
            let mut permutation: Vec<usize> = (0..cx.operands[0].shape.len()).collect();
            let axis = permutation.remove(*from);
            permutation.insert(*to, axis);
            cx.transpose(x, &permutation)
        }
        AxisOp::Add(_) | AxisOp::Rm(_) | AxisOp::Reshape(..) => {
            let shape = cx.output.clone();
            cx.reshape(x, &shape)
        }
    }
}

/// Slice.
pub(super) fn slice(cx: &mut Cx<'_>, op: &Slice) -> Step<NodeId> {
    let bounds = (op.start.as_i64(), op.end.as_i64());
    let (Some(start), Some(end)) = bounds else {
        return unsupported("its bounds depend on a symbol", "export with fixed shapes");
    };
    let space = cx.axis_space(op.axis);
    let x = cx.lifted(0, space)?;
    let axis = op.axis + space;
    cx.apply("", ClearOp::Slice { axis, start: start.max(0) as usize, end: end.max(0) as usize }, &[x])
}

/// Concatenation.
pub(super) fn concat(cx: &mut Cx<'_>, op: &TypedConcat) -> Step<NodeId> {
    let space = cx.axis_space(op.axis);
    let parts = (0..cx.operands.len()).map(|i| cx.lifted(i, space)).collect::<Step<Vec<_>>>()?;
    cx.apply("", ClearOp::Concat { axis: op.axis + space }, &parts)
}

/// Broadcast to the shape of the result.
pub(super) fn broadcast(cx: &mut Cx<'_>) -> Step<NodeId> {
    let (x, shape) = (cx.operands[0].id, with_batch(&cx.output));
    cx.apply("", ClearOp::Broadcast { shape }, &[x])
}

/// Rows of a constant table at indices that depend on inputs, or parts of a tensor at constant indices.
pub(super) fn gather(cx: &mut Cx<'_>, op: &Gather) -> Step<NodeId> {
    if let Some(indices) = cx.value(1) {
        return pick(cx, op.axis, &indices);
    }
    if cx.graph.constant(cx.operands[0].id).is_none() {
        return unsupported(
            "both its table and its indices depend on inputs",
            "only constant tables (embeddings) and constant indices can be compiled",
        );
    }
    if op.axis != 0 {
        return unsupported("it looks up along an axis other than the first", "transpose the table");
    }
    let (table, indices) = (cx.plain(0)?, cx.operands[1].id);
    cx.apply("", ClearOp::Gather { axis: 0 }, &[table, indices])
}

/// Elements of a constant table at indices that depend on inputs, when all rows of the table are equal: a look-up in one row.
/// (Exports pick the rows of a buffer of zeros so, as types of tokens.)
pub(super) fn gather_elements(cx: &mut Cx<'_>, op: &GatherElements) -> Step<NodeId> {
    let Some(table) = cx.value(0) else {
        return unsupported("its table depends on inputs", "only constant tables can be compiled");
    };
    if let Some(value) = cx.uniform(0) {
        let shape = with_batch(&cx.output);
        return Ok(cx.constant("", ArrayD::from_elem(IxDyn(&shape), value)));
    }
    let lanes: Vec<Vec<f64>> = table.lanes(Axis(op.axis)).into_iter().map(|lane| lane.to_vec()).collect();
    match lanes.split_first() {
        Some((row, others)) if others.iter().all(|other| other == row) => {
            let row = ArrayD::from_shape_vec(IxDyn(&[row.len()]), row.clone());
            let row = row.map_err(|e| Refusal::Internal(e.to_string()))?;
            let (row, indices) = (cx.constant("row", row), cx.operands[1].id);
            cx.apply("", ClearOp::Gather { axis: 0 }, &[row, indices])
        }
        _ => unsupported("the rows of its table differ", "use Gather, which looks up whole rows"),
    }
}

/// Constant indices: a slice when they are consecutive, else a concatenation of slices.
fn pick(cx: &mut Cx<'_>, axis: usize, indices: &Tensor) -> Step<NodeId> {
    let len = cx.operands[0].shape[axis] as i64;
    let wrap = |v: &f64| if *v < 0.0 { *v as i64 + len } else { *v as i64 };
    let picked: Vec<i64> = indices.iter().map(wrap).collect();
    if picked.is_empty() || picked.len() > MAX_PICKED || picked.iter().any(|i| *i < 0 || *i >= len) {
        return unsupported("its indices lie outside the tensor, or are too many", "check the exported indices");
    }
    let shape = [&[1], cx.operands[0].shape.as_slice()].concat();
    let x = cx.operands[0].id;
    let batched = axis > 0 && cx.operands[0].shape[0] == 1;
    let (x, axis) = if batched { (x, axis) } else { (cx.reshape(x, &shape)?, axis + 1) };
    let mut parts = Vec::new();
    for run in runs(&picked) {
        parts.push(cx.apply("", ClearOp::Slice { axis, start: run.0, end: run.1 }, &[x])?);
    }
    if parts.len() == 1 {
        return Ok(parts[0]);
    }
    cx.apply("", ClearOp::Concat { axis }, &parts)
}

/// Maximal runs of consecutive indices, as half-open intervals.
fn runs(indices: &[i64]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &index in indices {
        let index = index as usize;
        match runs.last_mut() {
            Some(run) if run.1 == index => run.1 += 1,
            _ => runs.push((index, index + 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_maximal() {
        assert_eq!(runs(&[3, 4, 5, 1, 0, 1]), [(3, 6), (1, 2), (0, 2)]);
    }
}
