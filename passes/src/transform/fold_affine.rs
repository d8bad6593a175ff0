//! Folds gains, biases and scalings into the linear maps next to them.
//!
//! * `linear(x∘γ + β)` becomes one linear map of x: the gain and bias of a LayerNorm vanish;
//! * `linear(x)·c` becomes one linear map: the 1/√d of attention vanishes into W_Q;
//! * a linear map of a linear map becomes one, when nothing else reads the inner one.
//!
//! What remains between two look-ups is merged once more, over elements, by `insert-bootstraps`; this pass makes
//! the graph small enough to read.

use std::sync::Arc;

use ndarray::{Array2, ArrayD, Ix2, IxDyn};
use thex_ir::{ClearOp, Graph, NodeId, Tensor};

use super::{constant_and_other, find, per_channel};
use crate::error::Result;
use crate::pass::{Pass, PassCx};

/// See the module.
pub struct FoldAffine;

impl Pass for FoldAffine {
    fn name(&self) -> &'static str {
        "fold-affine"
    }

    fn description(&self) -> &'static str {
        "fold gains, biases, scalings and chains of linear maps into single linear maps"
    }

    fn source(&self) -> &'static str {
        include_str!("fold_affine.rs")
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        let mut folded = 0;
        loop {
            let round = fold_once(graph)?;
            graph.remove_dead();
            folded += round;
            if round == 0 {
                break;
            }
        }
        cx.count("folded", folded);
        Ok(folded > 0)
    }
}

fn fold_once(graph: &mut Graph) -> Result<u64> {
    let mut folded = 0;
    for id in find(graph, |op| matches!(op, ClearOp::Linear)) {
        folded += u64::from(fold_operand(graph, id)?);
    }
    for id in find(graph, |op| matches!(op, ClearOp::Mul | ClearOp::Add)) {
        folded += u64::from(fold_after(graph, id)?);
    }
    Ok(folded)
}

fn weights(graph: &Graph, id: NodeId) -> Option<Array2<f64>> {
    graph.constant(id)?.view().into_dimensionality::<Ix2>().ok().map(|w| w.to_owned())
}

/// An operand of a linear map and its weights.
type Term = (NodeId, Array2<f64>);

/// Replaces operands of the linear node `id` and its bias.
fn rebuild(graph: &mut Graph, id: NodeId, terms: &[(NodeId, Array2<f64>)], bias: Tensor) -> Result<()> {
    let node = graph.node(id);
    let (name, origin) = (node.name.clone(), node.origin.clone());
    let mut operands = Vec::new();
    for (x, w) in terms {
        operands.push(*x);
        operands.push(graph.add_constant(&format!("{name}.weight"), Arc::new(w.clone().into_dyn()), &origin));
    }
    operands.push(graph.add_constant(&format!("{name}.bias"), Arc::new(bias), &origin));
    let new = graph.add_clear(&name, ClearOp::Linear, &operands, &origin)?;
    graph.replace_uses(id, new);
    Ok(())
}

/// Constant terms of a linear node: (operand, weights), and its bias.
fn terms_of(graph: &Graph, id: NodeId) -> Option<(Vec<Term>, Tensor)> {
    let operands = graph.operands(id);
    let (bias, rest) = operands.split_last()?;
    let terms = rest.chunks(2).map(|t| Some((t[0], weights(graph, t[1])?))).collect::<Option<Vec<_>>>()?;
    Some((terms, (**graph.constant(*bias)?).clone()))
}

/// Folds one operand of a linear node into it: a gain, a bias, or another linear map.
fn fold_operand(graph: &mut Graph, id: NodeId) -> Result<bool> {
    let Some((mut terms, mut bias)) = terms_of(graph, id) else { return Ok(false) };
    for position in 0..terms.len() {
        let (x, w) = terms[position].clone();
        let Some((replacement, shift)) = affine_source(graph, x, &w) else { continue };
        terms.splice(position..=position, replacement);
        bias = &bias + &shift;
        rebuild(graph, id, &terms, bias)?;
        return Ok(true);
    }
    Ok(false)
}

/// `w·x` rewritten over x's own operands, if x is affine in them: (terms, constant).
fn affine_source(graph: &Graph, x: NodeId, w: &Array2<f64>) -> Option<(Vec<Term>, Tensor)> {
    let channels = w.ncols();
    match graph.clear_op(x)? {
        ClearOp::Mul => {
            let (gain, source) = constant_and_other(graph, x)?;
            let gain = per_channel(&gain, channels)?;
            let same = graph.node(source).shape == graph.node(x).shape;
            let mut scaled = w.clone();
            scaled.columns_mut().into_iter().zip(&gain).for_each(|(mut c, g)| c.mapv_inplace(|v| v * g));
            same.then(|| (vec![(source, scaled)], ArrayD::zeros(IxDyn(&[w.nrows()]))))
        }
        ClearOp::Add => {
            let (shift, source) = constant_and_other(graph, x)?;
            let shift = per_channel(&shift, channels)?;
            let same = graph.node(source).shape == graph.node(x).shape;
            let constant = w.dot(&ndarray::Array1::from_vec(shift)).into_dyn();
            same.then(|| (vec![(source, w.clone())], constant))
        }
        ClearOp::Linear if graph.users(x).len() == 1 && !graph.is_output(x) => {
            let (inner, bias) = terms_of(graph, x)?;
            let inner_width: usize = inner.iter().map(|(_, v)| v.ncols()).sum();
            if inner_width > 2 * channels.max(w.nrows()) {
                return None;
            }
            let bias = per_channel(&bias, channels)?;
            let constant = w.dot(&ndarray::Array1::from_vec(bias)).into_dyn();
            Some((inner.into_iter().map(|(s, v)| (s, w.dot(&v))).collect(), constant))
        }
        _ => None,
    }
}

/// Folds a constant gain or bias after a linear node into it, when nothing else reads the linear node.
fn fold_after(graph: &mut Graph, id: NodeId) -> Result<bool> {
    let Some((constant, linear)) = constant_and_other(graph, id) else { return Ok(false) };
    let is_linear = matches!(graph.clear_op(linear), Some(ClearOp::Linear));
    let same_shape = graph.node(linear).shape == graph.node(id).shape;
    if !is_linear || !same_shape || graph.users(linear).len() != 1 || graph.is_output(linear) {
        return Ok(false);
    }
    let Some((mut terms, mut bias)) = terms_of(graph, linear) else { return Ok(false) };
    if matches!(graph.clear_op(id), Some(ClearOp::Add)) {
        bias = &bias + &*constant;
    } else {
        let channels = graph.node(id).shape.last().copied().unwrap_or(1);
        let Some(gain) = per_channel(&constant, channels) else { return Ok(false) };
        for (_, w) in &mut terms {
            w.rows_mut().into_iter().zip(&gain).for_each(|(mut r, g)| r.mapv_inplace(|v| v * g));
        }
        bias = &bias * &super::vector(gain);
    }
    rebuild(graph, linear, &terms, bias)?;
    let folded = graph.operands(id).into_iter().find(|&o| graph.constant(o).is_none());
    if let Some(folded) = folded {
        graph.replace_uses(id, folded);
    }
    Ok(true)
}
