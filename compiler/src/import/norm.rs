//! Reductions, cumulative sums, normalisations and softmax.

use ndarray::{ArrayD, IxDyn};
use thex_circuit::clear::{ClearOp, Reduction, UnaryFn};
use thex_ir::NodeId;
use tract_onnx::tract_core::ops::array::CumSum;
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer, RmsNorm, Softmax, SoftmaxKind};

use super::translate::{Cx, Refusal, Step, unsupported};

/// A reduction over one or several axes.
pub(super) fn reduce(cx: &mut Cx<'_>, op: &Reduce) -> Step<NodeId> {
    if op.axes.iter().any(|axis| *axis >= cx.operands[0].shape.len()) {
        return unsupported("it reduces an axis that its operand does not have", "check the model");
    }
    let space = cx.axis_space(op.axes.iter().copied().min().unwrap_or(0));
    let x = cx.lifted(0, space)?;
    cx.keeps_rank = x == cx.operands[0].id;
    match op.reducer {
        Reducer::Sum => over_axes(cx, x, op, space, Reduction::Sum),
        Reducer::Max => over_axes(cx, x, op, space, Reduction::Max),
        Reducer::Min => {
            let negative = cx.scale(x, -1.0)?;
            let max = over_axes(cx, negative, op, space, Reduction::Max)?;
            cx.scale(max, -1.0)
        }
        Reducer::MeanOfSquares => {
            let square = cx.unary(x, UnaryFn::Power { exponent: 2 })?;
            over_axes(cx, square, op, space, Reduction::Mean)
        }
        Reducer::ArgMax(_) | Reducer::ArgMin(_) => unsupported(
            "an index cannot be computed on ciphertexts",
            "end the model at the scores; the client finds the largest after decryption",
        ),
        Reducer::Prod | Reducer::All | Reducer::Any => {
            unsupported("thex has no such reduction", "use a sum, a mean or a maximum")
        }
    }
}

fn over_axes(cx: &mut Cx<'_>, x: NodeId, op: &Reduce, space: usize, reduction: Reduction) -> Step<NodeId> {
    let mut y = x;
    for axis in &op.axes {
        y = cx.apply("", ClearOp::Reduce { reduction, axis: axis + space }, &[y])?;
    }
    Ok(y)
}

/// Longest axis that is summed up; its weights are a square matrix.
const MAX_CUMULATIVE: usize = 4096;

/// A cumulative sum (RoBERTa numbers its tokens so): products with a triangle of ones, and their sum. As a linear map it would
/// pass for one with weights, which clients do not compute.
pub(super) fn cumulative_sum(cx: &mut Cx<'_>, op: &CumSum) -> Step<NodeId> {
    let n = cx.operands[0].shape[op.axis];
    if n > MAX_CUMULATIVE {
        return unsupported(format!("it sums up an axis of {n}"), format!("at most {MAX_CUMULATIVE} can be compiled"));
    }
    let counts = |to: usize, from: usize| {
        let (to, from) = if op.reverse { (from, to) } else { (to, from) };
        from < to || (from == to && !op.exclusive)
    };
    let triangle = ArrayD::from_shape_fn(IxDyn(&[n, n]), |at| f64::from(u8::from(counts(at[0], at[1]))));
    let triangle = cx.constant("triangle", triangle);
    let permutation = to_last(op.axis + 1, cx.operands[0].shape.len() + 1);
    let x = cx.lifted(0, 1)?;
    let moved = cx.transpose(x, &permutation)?;
    let shape = cx.graph.node(moved).shape.clone();
    let last = shape.len() - 1;
    let row = cx.reshape(moved, &[&shape[..last], &[1, n]].concat())?;
    let terms = cx.apply("terms", ClearOp::Mul, &[row, triangle])?;
    let sums = cx.apply("", ClearOp::Reduce { reduction: Reduction::Sum, axis: last + 1 }, &[terms])?;
    let sums = cx.reshape(sums, &shape)?;
    cx.transpose(sums, &permutation)
}

/// The permutation that exchanges `axis` and the last one.
fn to_last(axis: usize, rank: usize) -> Vec<usize> {
    let mut permutation: Vec<usize> = (0..rank).collect();
    permutation.swap(axis, rank - 1);
    permutation
}

/// x / sqrt(mean(x²) + ε); our operation works on the last axis.
pub(super) fn rms_norm(cx: &mut Cx<'_>, op: &RmsNorm) -> Step<NodeId> {
    let epsilon = op.eps.cast_to_scalar::<f64>().map_err(|e| Refusal::Internal(e.to_string()))?;
    let rank = cx.operands[0].shape.len();
    if op.axis + 1 == rank {
        let x = cx.operands[0].id;
        return cx.apply("", ClearOp::RmsNorm { epsilon }, &[x]);
    }
    let x = cx.lifted(0, 1)?;
    let permutation = to_last(op.axis + 1, rank + 1);
    let moved = cx.transpose(x, &permutation)?;
    let y = cx.apply("", ClearOp::RmsNorm { epsilon }, &[moved])?;
    cx.transpose(y, &permutation)
}

/// Softmax, and its logarithm.
pub(super) fn softmax(cx: &mut Cx<'_>, op: &Softmax) -> Step<NodeId> {
    let [axis] = op.axes.as_slice() else {
        return unsupported("it normalises over several axes", "reshape, so that softmax has one axis");
    };
    if *axis >= cx.operands[0].shape.len() {
        return unsupported("it normalises an axis that its operand does not have", "check the model");
    }
    let space = cx.axis_space(*axis);
    let x = cx.lifted(0, space)?;
    let y = cx.apply("", ClearOp::Softmax { axis: axis + space }, &[x])?;
    match op.kind {
        SoftmaxKind::Softmax => Ok(y),
        SoftmaxKind::LogSoftmax => cx.unary(y, UnaryFn::Log),
    }
}
