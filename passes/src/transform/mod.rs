//! Rewrites of the high-level graph.

mod bound_masks;
mod calibrate;
mod canonicalize;
mod choose_forms;
mod constant_layer_norm;
mod defer_normalization;
mod exact_layer_norm;
mod exact_softmax;
mod fitting;
mod fold_affine;
mod fuse_unary;
mod insert_refreshes;
mod masking;
mod reciprocal_network;
mod reduce_rank;
mod split_client_server;
mod the_x_gelu;
mod the_x_layer_norm;
mod the_x_softmax;

pub use bound_masks::BoundMasks;
pub use calibrate::Calibrate;
pub use canonicalize::Canonicalize;
pub use choose_forms::ChooseForms;
pub use constant_layer_norm::ConstantLayerNorm;
pub use defer_normalization::DeferNormalization;
pub use exact_layer_norm::ExactLayerNorm;
pub use exact_softmax::ExactSoftmax;
pub use fold_affine::FoldAffine;
pub use fuse_unary::FuseUnary;
pub use insert_refreshes::InsertRefreshes;
pub use reduce_rank::ReduceRank;
pub use split_client_server::SplitClientServer;
pub(crate) use split_client_server::client_work;
pub use the_x_gelu::TheXGelu;
pub use the_x_layer_norm::TheXLayerNorm;
pub use the_x_softmax::TheXSoftmax;

use std::sync::Arc;

use ndarray::{ArrayD, IxDyn};
use thex_circuit::CircuitError;
use thex_ir::{ClearOp, Graph, NodeId, Op, Tensor, UnaryChain, UnaryFn};

use crate::choice::{Form, Kind};
use crate::pass::PassCx;

/// Builds replacements of one node: names and origins follow from it.
struct Builder<'g> {
    graph: &'g mut Graph,
    name: String,
    origin: Vec<String>,
}

impl<'g> Builder<'g> {
    fn replacing(graph: &'g mut Graph, id: NodeId) -> Self {
        let node = graph.node(id);
        let (name, origin) = (node.name.clone(), node.origin.clone());
        Self { graph, name, origin }
    }

    fn clear(&mut self, suffix: &str, op: ClearOp, operands: &[NodeId]) -> Result<NodeId, CircuitError> {
        let name = format!("{}.{suffix}", self.name);
        self.graph.add_clear(&name, op, operands, &self.origin)
    }

    fn unary(&mut self, suffix: &str, functions: Vec<UnaryFn>, x: NodeId) -> Result<NodeId, CircuitError> {
        self.clear(suffix, ClearOp::Unary { chain: UnaryChain(functions) }, &[x])
    }

    fn constant(&mut self, suffix: &str, value: Tensor) -> NodeId {
        let name = format!("{}.{suffix}", self.name);
        self.graph.add_constant(&name, Arc::new(value), &self.origin)
    }
}

/// Nodes whose tensor operation satisfies `wanted`, in execution order.
fn find(graph: &Graph, wanted: impl Fn(&ClearOp) -> bool) -> Vec<NodeId> {
    graph.topological().into_iter().filter(|&id| matches!(&graph.node(id).op, Op::Clear(op) if wanted(op))).collect()
}

/// Nodes of a kind that are to be computed in one of these forms, in execution order.
fn chosen(graph: &Graph, cx: &PassCx, kind: Kind, forms: &[Form]) -> Vec<NodeId> {
    let wanted = |id: NodeId| cx.form(graph, id).is_some_and(|form| forms.contains(&form));
    graph.topological().into_iter().filter(|&id| Kind::of(&graph.node(id).op) == Some(kind) && wanted(id)).collect()
}

/// A constant operand and the other operand of a two-operand node, whichever way round.
fn constant_and_other(graph: &Graph, id: NodeId) -> Option<(Arc<Tensor>, NodeId)> {
    let operands = graph.operands(id);
    let [a, b] = operands.as_slice() else { return None };
    match (graph.constant(*a), graph.constant(*b)) {
        (Some(value), None) => Some((value.clone(), *b)),
        (None, Some(value)) => Some((value.clone(), *a)),
        _ => None,
    }
}

/// `value` as one number for each of `channels` of the last axis, if it does not vary along any other.
fn per_channel(value: &Tensor, channels: usize) -> Option<Vec<f64>> {
    if value.len() == 1 {
        return Some(vec![*value.iter().next()?; channels]);
    }
    let fits = value.len() == channels && value.shape().last() == Some(&channels);
    fits.then(|| value.iter().copied().collect())
}

fn vector(values: Vec<f64>) -> Tensor {
    let n = values.len();
    ArrayD::from_shape_vec(IxDyn(&[n]), values).unwrap_or_default()
}
