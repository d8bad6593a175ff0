//! The interpreter of [`ClearOp`] and its shape inference.

use ndarray::{ArrayD, ArrayView2, Axis, IxDyn, Slice};

use super::bounds::elements;
use super::{ClearOp, Reduction, Tensor, UnaryChain};
use crate::error::{CircuitError, Result};

fn fail<T>(op: &ClearOp, reason: impl Into<String>) -> Result<T> {
    Err(CircuitError::Eval { op: op.mnemonic().to_owned(), reason: reason.into() })
}

/// numpy's broadcast of two shapes.
fn broadcast_shape(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let dim = |s: &[usize], i: usize| {
        let pad = rank - s.len();
        if i < pad { 1 } else { s[i - pad] }
    };
    (0..rank)
        .map(|i| match (dim(a, i), dim(b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}

/// Shape of the result of `op` on operands of these shapes.
///
/// # Errors
/// [`CircuitError::Eval`] when the operands do not fit.
pub fn infer_shape(op: &ClearOp, shapes: &[&[usize]]) -> Result<Vec<usize>> {
    let arity_ok = match op {
        ClearOp::Linear => shapes.len() >= 3 && shapes.len() % 2 == 1,
        ClearOp::MatMul | ClearOp::Add | ClearOp::Mul | ClearOp::Gather { .. } => shapes.len() == 2,
        ClearOp::Concat { .. } => !shapes.is_empty(),
        _ => shapes.len() == 1,
    };
    if !arity_ok {
        return fail(op, format!("wrong number of operands: {}", shapes.len()));
    }
    match op {
        ClearOp::Linear => linear_shape(op, shapes),
        ClearOp::MatMul => matmul_shape(op, shapes[0], shapes[1]),
        ClearOp::Add | ClearOp::Mul => match broadcast_shape(shapes[0], shapes[1]) {
            Some(shape) => Ok(shape),
            None => fail(op, format!("{:?} and {:?} do not broadcast", shapes[0], shapes[1])),
        },
        ClearOp::Gather { axis } => {
            if *axis >= shapes[0].len() {
                return fail(op, "axis out of range");
            }
            let (table, indices) = (shapes[0], shapes[1]);
            Ok([&table[..*axis], indices, &table[axis + 1..]].concat())
        }
        ClearOp::Concat { axis } => concat_shape(op, shapes, *axis),
        ClearOp::Unary { .. } => Ok(shapes[0].to_vec()),
        ClearOp::LayerNorm { .. } | ClearOp::RmsNorm { .. } => {
            if shapes[0].is_empty() {
                return fail(op, "needs at least one axis");
            }
            Ok(shapes[0].to_vec())
        }
        ClearOp::Softmax { axis } => {
            if *axis >= shapes[0].len() {
                return fail(op, "axis out of range");
            }
            Ok(shapes[0].to_vec())
        }
        ClearOp::Reduce { axis, .. } => {
            if *axis >= shapes[0].len() {
                return fail(op, "axis out of range");
            }
            let mut shape = shapes[0].to_vec();
            shape[*axis] = 1;
            Ok(shape)
        }
        ClearOp::Reshape { shape } => {
            if elements(shape).is_none() || elements(shape) != elements(shapes[0]) {
                return fail(op, format!("{:?} cannot become {shape:?}", shapes[0]));
            }
            Ok(shape.clone())
        }
        ClearOp::Transpose { permutation } => {
            let mut sorted = permutation.clone();
            sorted.sort_unstable();
            if sorted != (0..shapes[0].len()).collect::<Vec<_>>() {
                return fail(op, format!("{permutation:?} is no permutation of rank {}", shapes[0].len()));
            }
            Ok(permutation.iter().map(|&p| shapes[0][p]).collect())
        }
        ClearOp::Slice { axis, start, end } => {
            if *axis >= shapes[0].len() || start > end || *end > shapes[0][*axis] {
                return fail(op, format!("{start}..{end} of axis {axis} of {:?}", shapes[0]));
            }
            let mut shape = shapes[0].to_vec();
            shape[*axis] = end - start;
            Ok(shape)
        }
        ClearOp::Broadcast { shape } => {
            if broadcast_shape(shapes[0], shape).as_ref() != Some(shape) {
                return fail(op, format!("{:?} cannot broadcast to {shape:?}", shapes[0]));
            }
            Ok(shape.clone())
        }
    }
}

fn linear_shape(op: &ClearOp, shapes: &[&[usize]]) -> Result<Vec<usize>> {
    let terms = (shapes.len() - 1) / 2;
    let mut result: Option<Vec<usize>> = None;
    for term in 0..terms {
        let (x, w) = (shapes[2 * term], shapes[2 * term + 1]);
        if w.len() != 2 || x.is_empty() || x[x.len() - 1] != w[1] {
            return fail(op, format!("operand {x:?} does not fit weights {w:?}"));
        }
        let mut shape = x.to_vec();
        shape[x.len() - 1] = w[0];
        if result.as_ref().is_some_and(|r| *r != shape) {
            return fail(op, "terms have different shapes");
        }
        result = Some(shape);
    }
    let shape = result.unwrap_or_default();
    let bias = shapes[shapes.len() - 1];
    if broadcast_shape(bias, &shape).as_ref() != Some(&shape) {
        return fail(op, format!("bias {bias:?} does not broadcast to {shape:?}"));
    }
    Ok(shape)
}

fn matmul_shape(op: &ClearOp, a: &[usize], b: &[usize]) -> Result<Vec<usize>> {
    let rank = a.len();
    if rank < 2 || b.len() != rank || a[..rank - 2] != b[..rank - 2] || a[rank - 1] != b[rank - 2] {
        return fail(op, format!("{a:?} by {b:?}"));
    }
    let mut shape = a.to_vec();
    shape[rank - 1] = b[rank - 1];
    Ok(shape)
}

fn concat_shape(op: &ClearOp, shapes: &[&[usize]], axis: usize) -> Result<Vec<usize>> {
    let mut shape = shapes[0].to_vec();
    if axis >= shape.len() {
        return fail(op, "axis out of range");
    }
    for other in &shapes[1..] {
        let fits = other.len() == shape.len() && (0..shape.len()).all(|i| i == axis || other[i] == shapes[0][i]);
        if !fits {
            return fail(op, format!("{:?} and {other:?}", shapes[0]));
        }
        shape[axis] += other[axis];
    }
    Ok(shape)
}

/// Evaluates one operation.
///
/// # Errors
/// [`CircuitError::Eval`] when the operands do not fit, or an index lies outside its table.
pub fn evaluate(op: &ClearOp, operands: &[&Tensor]) -> Result<Tensor> {
    let shapes: Vec<&[usize]> = operands.iter().map(|t| t.shape()).collect();
    let shape = infer_shape(op, &shapes)?;
    let x = operands[0];
    Ok(match op {
        ClearOp::Linear => linear(operands, &shape)?,
        ClearOp::MatMul => matmul(x, operands[1], &shape)?,
        ClearOp::Add => x + operands[1],
        ClearOp::Mul => x * operands[1],
        ClearOp::Unary { chain } => map(x, chain),
        ClearOp::Softmax { axis } => softmax(x, *axis),
        ClearOp::LayerNorm { epsilon } => normalise(x, *epsilon, true),
        ClearOp::RmsNorm { epsilon } => normalise(x, *epsilon, false),
        ClearOp::Reduce { reduction, axis } => reduce(x, *reduction, *axis),
        ClearOp::Reshape { shape } => standard(x, shape)?,
        ClearOp::Transpose { permutation } => owned(x.view().permuted_axes(permutation.clone())),
        ClearOp::Slice { axis, start, end } => owned(x.slice_axis(Axis(*axis), Slice::from(*start..*end))),
        ClearOp::Concat { axis } => {
            let views: Vec<_> = operands.iter().map(|t| t.view()).collect();
            owned(shape_error(op, ndarray::concatenate(Axis(*axis), &views))?.view())
        }
        ClearOp::Broadcast { shape } => match x.broadcast(IxDyn(shape)) {
            Some(view) => owned(view),
            None => return fail(op, "cannot broadcast"),
        },
        ClearOp::Gather { axis } => gather(op, x, operands[1], *axis, &shape)?,
    })
}

fn shape_error<T>(op: &ClearOp, result: std::result::Result<T, ndarray::ShapeError>) -> Result<T> {
    result.map_err(|error| CircuitError::Eval { op: op.mnemonic().to_owned(), reason: error.to_string() })
}

/// A copy in row-major order, whatever the strides of the view.
fn owned(view: ndarray::ArrayViewD<'_, f64>) -> Tensor {
    view.as_standard_layout().into_owned()
}

fn standard(x: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let op = ClearOp::Reshape { shape: shape.to_vec() };
    let flat: Vec<f64> = x.iter().copied().collect();
    shape_error(&op, ArrayD::from_shape_vec(IxDyn(shape), flat))
}

fn map(x: &Tensor, chain: &UnaryChain) -> Tensor {
    x.mapv(|v| chain.apply(v))
}

fn rows(x: &Tensor, columns: usize) -> Result<ndarray::Array2<f64>> {
    let count = x.len().checked_div(columns).unwrap_or(0);
    let flat: Vec<f64> = x.iter().copied().collect();
    shape_error(&ClearOp::Linear, ndarray::Array2::from_shape_vec((count, columns), flat))
}

fn matrix<'a>(op: &ClearOp, w: &'a Tensor) -> Result<ArrayView2<'a, f64>> {
    shape_error(op, w.view().into_dimensionality::<ndarray::Ix2>())
}

fn linear(operands: &[&Tensor], shape: &[usize]) -> Result<Tensor> {
    let op = ClearOp::Linear;
    let outputs = shape[shape.len() - 1];
    let mut total: Option<ndarray::Array2<f64>> = None;
    for term in operands[..operands.len() - 1].chunks(2) {
        let w = matrix(&op, term[1])?;
        let product = rows(term[0], w.ncols())?.dot(&w.t());
        total = Some(match total {
            Some(sum) => sum + product,
            None => product,
        });
    }
    let flat = match total {
        Some(sum) => sum.as_standard_layout().into_owned().into_raw_vec_and_offset().0,
        None => vec![0.0; outputs],
    };
    let sum = shape_error(&op, ArrayD::from_shape_vec(IxDyn(shape), flat))?;
    Ok(sum + operands[operands.len() - 1])
}

fn matmul(a: &Tensor, b: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let op = ClearOp::MatMul;
    let rank = shape.len();
    let (m, n) = (shape[rank - 2], shape[rank - 1]);
    let k = a.shape()[rank - 1];
    let batch: usize = shape[..rank - 2].iter().product();
    let a3 = standard(a, &[batch, m, k])?;
    let b3 = standard(b, &[batch, k, n])?;
    let mut flat = Vec::with_capacity(batch * m * n);
    for i in 0..batch {
        let (left, right) = (a3.index_axis(Axis(0), i), b3.index_axis(Axis(0), i));
        let left = shape_error(&op, left.into_dimensionality::<ndarray::Ix2>())?;
        let right = shape_error(&op, right.into_dimensionality::<ndarray::Ix2>())?;
        flat.extend(left.dot(&right).iter().copied());
    }
    shape_error(&op, ArrayD::from_shape_vec(IxDyn(shape), flat))
}

fn softmax(x: &Tensor, axis: usize) -> Tensor {
    let mut y = x.clone();
    for mut lane in y.lanes_mut(Axis(axis)) {
        let max = lane.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        lane.mapv_inplace(|v| (v - max).exp());
        let sum = lane.sum();
        lane.mapv_inplace(|v| v / sum);
    }
    y
}

fn normalise(x: &Tensor, epsilon: f64, centre: bool) -> Tensor {
    let mut y = x.clone();
    let axis = Axis(y.ndim() - 1);
    for mut lane in y.lanes_mut(axis) {
        let n = lane.len().max(1) as f64;
        let mean = if centre { lane.sum() / n } else { 0.0 };
        let variance = lane.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        let r = 1.0 / (variance + epsilon).sqrt();
        lane.mapv_inplace(|v| (v - mean) * r);
    }
    y
}

fn reduce(x: &Tensor, reduction: Reduction, axis: usize) -> Tensor {
    let axis = Axis(axis);
    let reduced = match reduction {
        Reduction::Sum => x.sum_axis(axis),
        Reduction::Mean => x.sum_axis(axis) / x.len_of(axis).max(1) as f64,
        Reduction::Max => x.fold_axis(axis, f64::NEG_INFINITY, |a, b| a.max(*b)),
    };
    reduced.insert_axis(axis)
}

fn gather(op: &ClearOp, table: &Tensor, indices: &Tensor, axis: usize, shape: &[usize]) -> Result<Tensor> {
    let len = table.shape()[axis];
    let mut picked = Vec::with_capacity(indices.len());
    for &index in indices {
        if index.fract().abs() > 0.0 {
            return fail(op, format!("index {index} is no whole number"));
        }
        let i = index as i64;
        let i = if i < 0 { i + len as i64 } else { i };
        if i < 0 || i >= len as i64 {
            return fail(op, format!("index {index} is outside a table of {len} rows"));
        }
        picked.push(i as usize);
    }
    standard(&owned(table.select(Axis(axis), &picked).view()), shape)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    fn tensor(shape: &[usize], values: &[f64]) -> Tensor {
        ArrayD::from_shape_vec(IxDyn(shape), values.to_vec()).unwrap()
    }

    #[test]
    fn linear_adds_terms_and_bias() {
        let x = tensor(&[1, 2, 2], &[1.0, 2.0, 3.0, 4.0]);
        let w = tensor(&[1, 2], &[10.0, 1.0]);
        let b = tensor(&[2, 1], &[0.5, 0.25]);
        let y = evaluate(&ClearOp::Linear, &[&x, &w, &x, &w, &b]).unwrap();
        assert_eq!(y, tensor(&[1, 2, 1], &[24.5, 68.25]));
    }

    #[test]
    fn wrong_shapes_are_errors_not_panics() {
        let x = tensor(&[2, 3], &[0.0; 6]);
        let w = tensor(&[4, 2], &[0.0; 8]);
        for op in
            [ClearOp::MatMul, ClearOp::Linear, ClearOp::Add, ClearOp::Gather { axis: 5 }, ClearOp::Concat { axis: 0 }]
        {
            assert!(evaluate(&op, &[&x, &w]).is_err(), "{op:?}");
        }
        for op in [
            ClearOp::Transpose { permutation: vec![0, 0] },
            ClearOp::Slice { axis: 1, start: 2, end: 4 },
            ClearOp::Softmax { axis: 2 },
            ClearOp::Reshape { shape: vec![5] },
        ] {
            assert!(evaluate(&op, &[&x]).is_err(), "{op:?}");
        }
    }

    #[test]
    fn gather_picks_rows() {
        let table = tensor(&[3, 2], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let y = evaluate(&ClearOp::Gather { axis: 0 }, &[&table, &tensor(&[2], &[2.0, 0.0])]).unwrap();
        assert_eq!(y, tensor(&[2, 2], &[4.0, 5.0, 0.0, 1.0]));
        assert!(evaluate(&ClearOp::Gather { axis: 0 }, &[&table, &tensor(&[1], &[3.0])]).is_err());
        let error = evaluate(&ClearOp::Gather { axis: 0 }, &[&table, &tensor(&[1], &[0.5])]).unwrap_err();
        assert!(error.to_string().contains("0.5 is no whole number"), "{error}");
    }

    #[test]
    fn layer_norm_has_zero_mean_and_unit_variance() {
        let x = tensor(&[1, 4], &[1.0, 2.0, 3.0, 6.0]);
        let y = evaluate(&ClearOp::LayerNorm { epsilon: 0.0 }, &[&x]).unwrap();
        assert!(y.sum().abs() < 1e-12);
        assert!((y.mapv(|v| v * v).sum() / 4.0 - 1.0).abs() < 1e-12);
    }
}
