//! Contractions: every matrix product of a model, transposed and batched as tract likes.
//!
//! With one constant operand it becomes a `linear` over the last axis, `[1, rows, in]` by `[out, in]`; with
//! two others a `matmul` of `[1, batch, m, k]` by `[1, batch, k, n]`. The transposes and reshapes around it
//! are left to the cleanup, which collapses them.

use ndarray::{ArrayD, IxDyn};
use thex_circuit::clear::{ClearOp, Tensor, evaluate};
use thex_ir::NodeId;
use tract_onnx::tract_core::ops::einsum::EinSum;

use super::translate::{Cx, Refusal, Step, unsupported};

/// An index of the contraction: its axis in each operand and in the result, if any.
#[derive(Clone, Debug)]
struct Index {
    axes: [Option<usize>; 2],
    output: Option<usize>,
    size: usize,
}

impl Index {
    fn is(&self, a: bool, b: bool, output: bool) -> bool {
        (self.axes[0].is_some(), self.axes[1].is_some(), self.output.is_some()) == (a, b, output)
    }
}

/// The indices by role. Indices of size 1 are in none: reshapes make and drop them.
#[derive(Debug, Default)]
struct Roles {
    /// In both operands and the result.
    batch: Vec<Index>,
    /// In the left operand and the result.
    rows: Vec<Index>,
    /// In the right operand and the result.
    columns: Vec<Index>,
    /// In both operands only.
    inner: Vec<Index>,
}

/// A contraction.
pub(super) fn translate(cx: &mut Cx<'_>, op: &EinSum) -> Step<NodeId> {
    if op.q_params.is_some() || cx.operands.len() != 2 {
        return unsupported("it is quantised, or has more than two operands", "export the model in float");
    }
    let roles = roles(cx, op)?;
    match (cx.value(0), cx.value(1)) {
        (_, Some(weights)) if roles.batch.is_empty() => linear(cx, &roles, 0, &weights),
        (Some(weights), _) if roles.batch.is_empty() => linear(cx, &roles, 1, &weights),
        _ => matmul(cx, &roles),
    }
}

fn roles(cx: &Cx<'_>, op: &EinSum) -> Step<Roles> {
    let mut roles = Roles::default();
    for axis in op.axes.iter_all_axes() {
        let single = |axes: &[usize]| axes.len() <= 1;
        if !axis.inputs.iter().chain(&axis.outputs).all(|a| single(a)) {
            return unsupported("it takes a diagonal", "write it with matrix products");
        }
        let at = |i: usize| axis.inputs[i].first().copied();
        let (a, b, output) = (at(0), at(1), axis.outputs[0].first().copied());
        let sizes =
            [a.map(|a| cx.operands[0].shape[a]), b.map(|b| cx.operands[1].shape[b]), output.map(|o| cx.output[o])];
        let size = sizes.into_iter().flatten().max().unwrap_or(1);
        if size == 1 {
            continue;
        }
        if sizes.into_iter().flatten().any(|s| s != size) {
            return unsupported("it broadcasts an index", "write it with matrix products of equal shapes");
        }
        classify(&mut roles, Index { axes: [a, b], output, size })?;
    }
    sort(&mut roles);
    Ok(roles)
}

fn classify(roles: &mut Roles, index: Index) -> Step<()> {
    if index.is(true, true, true) {
        roles.batch.push(index);
    } else if index.is(true, false, true) {
        roles.rows.push(index);
    } else if index.is(false, true, true) {
        roles.columns.push(index);
    } else if index.is(true, true, false) {
        roles.inner.push(index);
    } else {
        return unsupported("it sums an index of one operand alone", "write the sum as a reduction");
    }
    Ok(())
}

/// Outer indices in the order of the result, inner ones in the order of the left operand, so that the same
/// model exported twice gives the same graph.
fn sort(roles: &mut Roles) {
    for outer in [&mut roles.batch, &mut roles.rows, &mut roles.columns] {
        outer.sort_by_key(|i| i.output);
    }
    roles.inner.sort_by_key(|i| i.axes[0]);
}

fn size(indices: &[Index]) -> usize {
    indices.iter().map(|i| i.size).product()
}

/// Shape and permutation that bring an operand with axes of 1 removed into the order of `indices`.
fn arrangement(side: usize, indices: &[&Index]) -> (Vec<usize>, Vec<usize>) {
    let mut present: Vec<(usize, usize)> = indices.iter().filter_map(|i| i.axes[side].map(|a| (a, i.size))).collect();
    present.sort_unstable();
    let squeezed = present.iter().map(|(_, size)| *size).collect();
    let permutation =
        indices.iter().filter_map(|i| present.iter().position(|(a, _)| Some(*a) == i.axes[side])).collect();
    (squeezed, permutation)
}

/// Operand `side` with its indices in the given order, and then in `shape`.
fn arrange(cx: &mut Cx<'_>, side: usize, indices: &[&Index], shape: &[usize]) -> Step<NodeId> {
    let (squeezed, permutation) = arrangement(side, indices);
    let x = cx.plain(side)?;
    let x = cx.reshape(x, &squeezed)?;
    let x = cx.transpose(x, &permutation)?;
    cx.reshape(x, shape)
}

/// The result, whose indices come in the given order, in the order of tract.
fn finish(cx: &mut Cx<'_>, y: NodeId, indices: &[&Index]) -> Step<NodeId> {
    let sizes: Vec<usize> = indices.iter().map(|i| i.size).collect();
    let y = cx.reshape(y, &sizes)?;
    let mut permutation: Vec<usize> = (0..indices.len()).collect();
    permutation.sort_by_key(|i| indices[*i].output);
    let y = cx.transpose(y, &permutation)?;
    let output = cx.output.clone();
    cx.reshape(y, &output)
}

/// Operand `side` times constant weights.
fn linear(cx: &mut Cx<'_>, roles: &Roles, side: usize, weights: &Tensor) -> Step<NodeId> {
    let (rows, columns) = if side == 0 { (&roles.rows, &roles.columns) } else { (&roles.columns, &roles.rows) };
    let (m, n, k) = (size(rows), size(columns), size(&roles.inner));
    let of_x: Vec<&Index> = rows.iter().chain(&roles.inner).collect();
    let shape = if m == 1 { vec![1, k] } else { vec![1, m, k] };
    let x = arrange(cx, side, &of_x, &shape)?;
    let of_w: Vec<&Index> = columns.iter().chain(&roles.inner).collect();
    let weights = arranged_weights(weights, 1 - side, &of_w, &[n, k])?;
    let weights = cx.constant("weight", weights);
    let bias = cx.constant("bias", ArrayD::zeros(IxDyn(&[n])));
    let y = cx.apply("", ClearOp::Linear, &[x, weights, bias])?;
    let of_y: Vec<&Index> = rows.iter().chain(columns).collect();
    finish(cx, y, &of_y)
}

fn arranged_weights(weights: &Tensor, side: usize, indices: &[&Index], shape: &[usize]) -> Step<Tensor> {
    let (squeezed, permutation) = arrangement(side, indices);
    let reshape = |x: &Tensor, shape: &[usize]| evaluate(&ClearOp::Reshape { shape: shape.to_vec() }, &[x]);
    let squeezed = reshape(weights, &squeezed)?;
    let turned = evaluate(&ClearOp::Transpose { permutation }, &[&squeezed])?;
    reshape(&turned, shape).map_err(Refusal::from)
}

/// Product of two tensors that depend on inputs.
fn matmul(cx: &mut Cx<'_>, roles: &Roles) -> Step<NodeId> {
    let (b, m, n, k) = (size(&roles.batch), size(&roles.rows), size(&roles.columns), size(&roles.inner));
    let batch = if b == 1 { vec![1] } else { vec![1, b] };
    let left: Vec<&Index> = roles.batch.iter().chain(&roles.rows).chain(&roles.inner).collect();
    let left = arrange(cx, 0, &left, &[batch.as_slice(), &[m, k]].concat())?;
    let right: Vec<&Index> = roles.batch.iter().chain(&roles.inner).chain(&roles.columns).collect();
    let right = arrange(cx, 1, &right, &[batch.as_slice(), &[k, n]].concat())?;
    let y = cx.apply("", ClearOp::MatMul, &[left, right])?;
    let of_y: Vec<&Index> = roles.batch.iter().chain(&roles.rows).chain(&roles.columns).collect();
    finish(cx, y, &of_y)
}
