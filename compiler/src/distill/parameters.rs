//! What is trained: the constants of a graph that are weights, biases and gains.
//!
//! Structure is not: scalars (1/√d), masks of zeros and ones, additive masks, the matrix that subtracts a mean, tables.
//! Factors of a constant layer norm that are equal stay equal, since positions with one constant share a part of the circuit.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{D, DType, Tensor as Candle, Var};
use thex_ir::{ClearOp, Graph, NodeId, Op, Tensor};

use super::program::{Weights, candle, ours};
use crate::error::Result;

/// Additive masks hold such numbers, trained shifts never.
const MASKED: f64 = -1e3;

/// How a constant is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Matrix of a linear map, `[out, in]`.
    Weight,
    /// Added, multiplied, or concatenated.
    Vector,
}

/// A trained constant.
pub(super) struct Parameter {
    /// The constant.
    pub(super) id: NodeId,
    /// How it is used.
    pub(super) role: Role,
    /// Its value.
    pub(super) var: Var,
    /// Elements that stay equal: the group of each.
    ties: Option<Vec<usize>>,
}

/// The trained constants of a graph, in order of creation.
pub(super) fn parameters(graph: &Graph, dtype: DType) -> Result<Vec<Parameter>> {
    let mut found = Vec::new();
    for id in graph.ids() {
        let (Some(value), Some(role)) = (graph.constant(id), role(graph, id)) else { continue };
        let node = graph.node(id);
        let ties = node.name.ends_with(".factors").then(|| equal(value));
        let var = Var::from_tensor(&candle(value, dtype)?)?;
        found.push(Parameter { id, role, var, ties });
    }
    Ok(found)
}

/// The group of each element: equal ones are together.
fn equal(value: &Tensor) -> Vec<usize> {
    let mut groups = BTreeMap::new();
    value
        .iter()
        .map(|v| {
            let next = groups.len();
            *groups.entry(v.to_bits()).or_insert(next)
        })
        .collect()
}

/// How a constant is used, if it is one to train.
fn role(graph: &Graph, id: NodeId) -> Option<Role> {
    let node = graph.node(id);
    let structural = [".centring", ".zero"].iter().any(|suffix| node.name.contains(suffix));
    if structural || node.shape.iter().product::<usize>() < 2 {
        return None;
    }
    let value = graph.constant(id)?;
    let roles: Vec<Option<Role>> = graph
        .users(id)
        .into_iter()
        .map(|(user, port)| match graph.clear_op(user)? {
            ClearOp::Linear if port % 2 == 1 => Some(Role::Weight),
            ClearOp::Linear if port > 0 => Some(Role::Vector),
            ClearOp::Add if value.iter().all(|v| *v > MASKED) => Some(Role::Vector),
            ClearOp::Mul if !is_mask(value) => Some(Role::Vector),
            ClearOp::Concat { .. } => Some(Role::Vector),
            _ => None,
        })
        .collect();
    let first = roles.first().copied().flatten()?;
    roles.iter().all(Option::is_some).then_some(first)
}

/// Zeros and ones, and some of them zeros.
fn is_mask(value: &Tensor) -> bool {
    let bit = |v: &f64, b: f64| v.to_bits() == b.to_bits();
    value.iter().all(|v| bit(v, 0.0) || bit(v, 1.0)) && value.iter().any(|v| bit(v, 0.0))
}

/// Values as a run reads them; with `bits`, weights are rounded to so many bits by output channel, and gradients pass
/// straight through (Bengio et al. 2013).
pub(super) fn weights(parameters: &[Parameter], bits: Option<u32>) -> Result<Weights> {
    let one = |p: &Parameter| {
        let value = p.var.as_tensor().clone();
        let value = match (bits, p.role) {
            (Some(bits), Role::Weight) => (&value + (rounded(&value.detach(), bits)? - value.detach())?)?,
            _ => value,
        };
        Ok((p.id, value))
    };
    parameters.iter().map(one).collect()
}

/// Multiples of a step that is one for each row, such that its largest weight takes `bits` bits with its sign.
fn rounded(value: &Candle, bits: u32) -> Result<Candle> {
    let levels = f64::from((1_u32 << (bits - 1)) - 1);
    let step = ((value.abs()?.max_keepdim(D::Minus1)? / levels)? + 1e-12)?;
    Ok(value.broadcast_div(&step)?.round()?.broadcast_mul(&step)?)
}

/// Gradients in the order of the parameters; zero where the loss does not depend on one.
pub(super) fn gradients(parameters: &[Parameter], store: &GradStore) -> Result<Vec<Candle>> {
    let one = |p: &Parameter| match store.get(p.var.as_tensor()) {
        Some(gradient) => Ok(gradient.clone()),
        None => Ok(p.var.as_tensor().zeros_like()?),
    };
    parameters.iter().map(one).collect()
}

impl Parameter {
    /// The gradient with those of tied elements added up.
    pub(super) fn tied(&self, gradient: Candle) -> Result<Candle> {
        let Some(ties) = &self.ties else { return Ok(gradient) };
        let flat = gradient.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        let mut sums = vec![0.0; ties.len()];
        flat.iter().zip(ties).for_each(|(g, &group)| sums[group] += g);
        let summed: Vec<f64> = ties.iter().map(|&group| sums[group]).collect();
        Ok(Candle::from_vec(summed, gradient.dims(), gradient.device())?.to_dtype(gradient.dtype())?)
    }
}

/// The values of all parameters.
pub(super) fn values(parameters: &[Parameter]) -> Result<Vec<Candle>> {
    parameters.iter().map(|p| Ok(p.var.as_tensor().copy()?.detach())).collect()
}

/// Sets the values of all parameters.
pub(super) fn restore(parameters: &[Parameter], values: &[Candle]) -> Result<()> {
    parameters.iter().zip(values).try_for_each(|(p, v)| Ok(p.var.set(v)?))
}

/// Writes the values into the graph.
pub(super) fn store(parameters: &[Parameter], graph: &mut Graph) -> Result<()> {
    for p in parameters {
        graph.node_mut(p.id).op = Op::Constant(Arc::new(ours(p.var.as_tensor())?));
    }
    Ok(())
}
