//! LayerNorm and RMSNorm by look-ups: centre (linear), square, mean (linear), 1/√, multiply.
//!
//! The multiplication rotates an encrypted table of the row's 1/σ by the element, and is at once
//! the refresh that its output needs. Square and multiplication look up the same argument, so they
//! share its keyswitch.

use ndarray::{Array2, ArrayD, IxDyn};
use thex_ir::{ClearOp, Graph, NodeId, Reduction, UnaryFn};

use super::{Builder, find};
use crate::error::Result;
use crate::pass::{Pass, PassCx};

/// See the module.
pub struct ExactLayerNorm;

impl Pass for ExactLayerNorm {
    fn name(&self) -> &'static str {
        "exact-layer-norm"
    }

    fn description(&self) -> &'static str {
        "expand the remaining layer norms into centring, squares, a reciprocal square root and a product (exact)"
    }

    fn source(&self) -> &'static str {
        include_str!("exact_layer_norm.rs")
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        let nodes = find(graph, |op| matches!(op, ClearOp::LayerNorm { .. } | ClearOp::RmsNorm { .. }));
        for &id in &nodes {
            replace(graph, id)?;
        }
        graph.remove_dead();
        graph.stage = graph.stage.max(thex_ir::Stage::Approximated);
        cx.count("expanded", nodes.len() as u64);
        Ok(true)
    }
}

/// Subtracts the mean of each row: x·(I − 1·1ᵀ/n).
pub(super) fn centre(build: &mut Builder<'_>, x: NodeId) -> Result<NodeId> {
    let n = build.graph.node(x).shape.last().copied().unwrap_or(1);
    let matrix = Array2::from_shape_fn((n, n), |(i, j)| f64::from(u8::from(i == j)) - 1.0 / n as f64);
    let matrix = build.constant("centring", matrix.into_dyn());
    let zero = build.constant("zero", ArrayD::zeros(IxDyn(&[n])));
    Ok(build.clear("centre", ClearOp::Linear, &[x, matrix, zero])?)
}

fn replace(graph: &mut Graph, id: NodeId) -> Result<()> {
    let (epsilon, centred) = match graph.clear_op(id) {
        Some(ClearOp::LayerNorm { epsilon }) => (*epsilon, true),
        Some(ClearOp::RmsNorm { epsilon }) => (*epsilon, false),
        _ => return Ok(()),
    };
    let shape = graph.node(id).shape.clone();
    let mut x = graph.operands(id)[0];
    let mut build = Builder::replacing(graph, id);
    if centred {
        x = centre(&mut build, x)?;
    }
    let square = build.unary("square", vec![UnaryFn::Power { exponent: 2 }], x)?;
    let mean = ClearOp::Reduce { reduction: Reduction::Mean, axis: shape.len() - 1 };
    let variance = build.clear("variance", mean, &[square])?;
    let shift = UnaryFn::Affine { scale: 1.0, shift: epsilon };
    let inverse = build.unary("rsqrt", vec![shift, UnaryFn::Rsqrt], variance)?;
    let normalised = build.clear("normalise", ClearOp::Mul, &[x, inverse])?;
    graph.replace_uses(id, normalised);
    Ok(())
}
