//! The fused attention operator (ONNX opset 23), opened into products and a softmax.

use ndarray::{ArrayD, IxDyn};
use thex_circuit::clear::ClearOp;
use thex_ir::NodeId;
use tract_onnx::prelude::DatumType;
use tract_transformers::ops::sdpa::Sdpa;

use super::translate::{Cx, Refusal, Step, unsupported};

/// What is added to scores that causality forbids.
const MASKED: f64 = -1e4;

/// Operands: query, key, value and maybe an additive mask, of shape `[1, heads, tokens, width]` or
/// `[heads, tokens, width]`.
pub(super) fn translate(cx: &mut Cx<'_>, op: &Sdpa) -> Step<NodeId> {
    let (query, key) = (cx.operands[0].shape.clone(), cx.operands[1].shape.clone());
    let rank = query.len();
    let Some(repeat) = repetition(&query, &key) else {
        return unsupported(
            format!("queries {query:?} and keys {key:?} have numbers of heads that do not go together"),
            "give every group of query heads one key and value head, as grouped-query attention does",
        );
    };
    if let Some(why) = misfit(cx) {
        return unsupported(why, "check the model");
    }
    if cx.operands.get(3).is_some_and(|m| m.dtype == DatumType::Bool) {
        return unsupported("its mask is boolean", "add a mask of 0 and -1e4 to the scores instead");
    }
    let (q, k, v) = (cx.plain(0)?, cx.plain(1)?, cx.plain(2)?);
    let (k, v) = (repeated(cx, k, repeat)?, repeated(cx, v, repeat)?);
    let mut flip: Vec<usize> = (0..rank).collect();
    flip.swap(rank - 1, rank - 2);
    let k = cx.transpose(k, &flip)?;
    let scores = cx.apply("scores", ClearOp::MatMul, &[q, k])?;
    let scores = cx.scale(scores, scale(op, query[rank - 1])?)?;
    let scores = masked(cx, op, scores)?;
    let weights = cx.apply("softmax", ClearOp::Softmax { axis: rank - 1 }, &[scores])?;
    cx.apply("", ClearOp::MatMul, &[weights, v])
}

/// Why queries, keys, values and mask do not go together; tract does not look.
fn misfit(cx: &Cx<'_>) -> Option<String> {
    let shape = |i: usize| cx.operands.get(i).map(|o| o.shape.as_slice());
    let (Some([.., t, d]), Some([.., s, e]), Some([.., u, _])) = (shape(0), shape(1), shape(2)) else {
        return Some("its operands are no matrices".into());
    };
    if d != e || s != u {
        return Some(format!(
            "queries {:?}, keys {:?} and values {:?} do not go together",
            shape(0),
            shape(1),
            shape(2)
        ));
    }
    let mask = shape(3)?;
    let last = |i: usize, n: usize| mask.iter().rev().nth(i).is_none_or(|m| *m == n || *m == 1);
    (!last(0, *s) || !last(1, *t)).then(|| format!("its mask {mask:?} does not fit scores of {t} by {s}"))
}

/// How many query heads share a key head (grouped-query attention).
fn repetition(query: &[usize], key: &[usize]) -> Option<usize> {
    let heads = query.len().checked_sub(3)?;
    let groups = *key.get(heads)?;
    let fits = query[..heads] == key[..heads] && groups > 0 && query[heads].is_multiple_of(groups);
    fits.then(|| query[heads] / groups)
}

/// Every head `times` over, one after another.
fn repeated(cx: &mut Cx<'_>, x: NodeId, times: usize) -> Step<NodeId> {
    if times == 1 {
        return Ok(x);
    }
    let shape = cx.graph.node(x).shape.clone();
    let at = shape.len() - 2;
    let with = |n: usize| [&shape[..at], &[n], &shape[at..]].concat();
    let single = cx.reshape(x, &with(1))?;
    let spread = cx.apply("repeated", ClearOp::Broadcast { shape: with(times) }, &[single])?;
    let mut merged = shape.clone();
    merged[at - 1] *= times;
    cx.reshape(spread, &merged)
}

fn scale(op: &Sdpa, width: usize) -> Step<f64> {
    match &op.scale {
        Some(scale) => scale.cast_to_scalar::<f64>().map_err(|e| Refusal::Internal(e.to_string())),
        None => Ok(1.0 / (width as f64).sqrt()),
    }
}

fn masked(cx: &mut Cx<'_>, op: &Sdpa, scores: NodeId) -> Step<NodeId> {
    if op.is_causal {
        let shape = cx.graph.node(scores).shape.clone();
        let (rows, columns) = (shape[shape.len() - 2], shape[shape.len() - 1]);
        let mask = ArrayD::from_shape_fn(IxDyn(&[rows, columns]), |at| if at[1] > at[0] { MASKED } else { 0.0 });
        let mask = cx.constant("causal", mask);
        return cx.apply("masked", ClearOp::Add, &[scores, mask]);
    }
    if cx.operands.len() > 3 {
        let mask = cx.plain(3)?;
        return cx.apply("masked", ClearOp::Add, &[scores, mask]);
    }
    Ok(scores)
}
