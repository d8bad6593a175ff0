//! Where a graph has one look-up for each dimension.

use thex_ir::{ClearOp, Graph, NodeId, Reduction, UnaryFn};

use crate::analysis::{Demand, demand, private_nodes};
use crate::transform::defer_normalization::row_scaled;

/// What is computed in dimensions that may be fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The square of a centred row, read only by this mean.
    Variance {
        /// The mean.
        mean: NodeId,
    },
    /// q·kᵀ: the inner dimension.
    Scores,
    /// A function of one variable that a linear map reads: its channels.
    Activation,
}

/// One of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site {
    /// The square, product or function.
    pub(super) id: NodeId,
    /// Which.
    pub(super) kind: Kind,
    /// Dimensions that it has.
    pub(super) size: usize,
    /// Bootstraps for each of them, about.
    per_dimension: f64,
}

/// Products that share a rotation, about: plans are made later.
const SLOTS: usize = 6;

/// Fewer dimensions than this are left alone.
const LEAST: usize = 8;

impl Site {
    /// Bootstraps, about.
    pub(super) fn cost(&self, kept: usize) -> f64 {
        self.per_dimension * kept as f64
    }

    /// For the report.
    pub(super) fn verb(&self) -> &'static str {
        match self.kind {
            Kind::Variance { .. } => "variance from",
            Kind::Scores => "scores in",
            Kind::Activation => "looked up for",
        }
    }

    /// For the report.
    pub(super) fn what(&self) -> &'static str {
        match self.kind {
            Kind::Variance { .. } => "principal components",
            Kind::Scores => "dimensions a head",
            Kind::Activation => "channels, a line for the others",
        }
    }
}

/// All of a graph, in execution order.
pub(super) fn find(graph: &Graph) -> Vec<Site> {
    let (private, demand) = (private_nodes(graph), demand(graph));
    let encrypted = |id: &NodeId| private.contains(id);
    let sites = graph.topological().into_iter().filter(|id| graph.operands(*id).iter().all(encrypted));
    sites
        .filter_map(|id| site(graph, id, &demand))
        .filter(|site| site.size >= LEAST && site.per_dimension > 0.0)
        .collect()
}

fn site(graph: &Graph, id: NodeId, demand: &Demand) -> Option<Site> {
    let size = *graph.node(id).shape.last()?;
    let demanded = |id: NodeId| demand[&id].iter().filter(|d| **d).count() as f64;
    let by_rows = demanded(id) / size as f64;
    match graph.clear_op(id)? {
        ClearOp::Unary { chain } if chain.0 == [UnaryFn::Power { exponent: 2 }] => {
            let mean = only_mean(graph, id)?;
            Some(Site { id, kind: Kind::Variance { mean }, size, per_dimension: by_rows })
        }
        ClearOp::Unary { chain } if chain.0.iter().any(bends) && feeds_a_linear_map(graph, id) => {
            Some(Site { id, kind: Kind::Activation, size, per_dimension: by_rows })
        }
        ClearOp::MatMul => {
            let [left, right] = graph.operands(id)[..] else { return None };
            let (a, b) = (&graph.node(left).shape, &graph.node(right).shape);
            let inner = *a.last()?;
            // Probabilities times values are no scores; and every head has queries and keys of its own, or subspaces would not fit.
            let own = a.len() == b.len() && a.len() >= 2 && a[..a.len() - 2] == b[..b.len() - 2];
            let scores = own && row_scaled(graph, left).is_none();
            let per_dimension = by_rows * size.div_ceil(SLOTS) as f64;
            scores.then_some(Site { id, kind: Kind::Scores, size: inner, per_dimension })
        }
        _ => None,
    }
}

/// The mean over the last axis that alone reads a node.
fn only_mean(graph: &Graph, id: NodeId) -> Option<NodeId> {
    let users = graph.users(id);
    let [(mean, _)] = users.as_slice() else { return None };
    let axis = graph.node(id).shape.len() - 1;
    let wanted = ClearOp::Reduce { reduction: Reduction::Mean, axis };
    (graph.clear_op(*mean) == Some(&wanted) && !graph.is_output(id)).then_some(*mean)
}

/// As an activation does. The ReLUs in a maximum, or in a cube, must not become lines: what is left of them decides signs.
fn feeds_a_linear_map(graph: &Graph, id: NodeId) -> bool {
    graph.users(id).iter().any(|(user, _)| graph.clear_op(*user) == Some(&ClearOp::Linear))
}

fn bends(function: &UnaryFn) -> bool {
    matches!(function, UnaryFn::Relu | UnaryFn::Gelu | UnaryFn::GeluTanh | UnaryFn::Silu)
}
