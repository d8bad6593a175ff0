//! Softmax → normalised cubes (THE-X): pᵢ = ReLU(sᵢ/2 + 1)³ / Σⱼ ReLU(sⱼ/2 + 1)³.
//!
//! As reported, the paper prints the score itself as numerator; only the cube (as in the public reimplementation) sums
//! to one, and is what this pass writes. Its network for 1/x is one look-up here. Scores below −2 have cube 0, so a
//! mask need only push them there.

use thex_ir::{ClearOp, Graph, NodeId, Reduction, UnaryFn};

use super::masking::{hide, take_public_mask};
use super::{Builder, chosen};
use crate::choice::{Form, Kind};
use crate::error::Result;
use crate::options::PassOption;
use crate::pass::{Pass, PassCx};

/// See the module.
pub struct TheXSoftmax {
    /// When all scores of a row are below −2 all cubes are 0, and so is their sum; below this, it is held here.
    pub least_sum: f64,
}

impl Default for TheXSoftmax {
    fn default() -> Self {
        Self { least_sum: 1.0 / 64.0 }
    }
}

impl Pass for TheXSoftmax {
    fn name(&self) -> &'static str {
        "the-x-softmax"
    }

    fn description(&self) -> &'static str {
        "replace softmax by normalised cubes ReLU(x/2+1)^3, as THE-X does"
    }

    fn source(&self) -> &'static str {
        include_str!("the_x_softmax.rs")
    }

    fn options(&mut self) -> Vec<PassOption<'_>> {
        vec![PassOption::number(
            "least-sum",
            &mut self.least_sum,
            1e-4..=1.0,
            "least sum of cubes that the reciprocal tells apart",
        )]
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        let nodes = chosen(graph, cx, Kind::Softmax, &[Form::Cube]);
        for &id in &nodes {
            replace(graph, id, self.least_sum, cx)?;
            let name = graph.node(id).name.clone();
            cx.approximations.push(format!("{name}: softmax replaced by normalised cubes ReLU(x/2+1)^3 (THE-X)"));
        }
        graph.remove_dead();
        cx.count("replaced", nodes.len() as u64);
        Ok(!nodes.is_empty())
    }
}

fn replace(graph: &mut Graph, id: NodeId, least_sum: f64, cx: &mut PassCx) -> Result<()> {
    let Some(ClearOp::Softmax { axis }) = graph.clear_op(id).cloned() else { return Ok(()) };
    let kept = take_public_mask(graph, id, axis, cx)?;
    let scores = graph.operands(id)[0];
    let mut build = Builder::replacing(graph, id);
    let cube = vec![UnaryFn::Affine { scale: 0.5, shift: 1.0 }, UnaryFn::Relu, UnaryFn::Power { exponent: 3 }];
    let cubes = build.unary("cube", cube, scores)?;
    let cubes = hide(&mut build, "kept", cubes, kept)?;
    let sum = build.clear("sum", ClearOp::Reduce { reduction: Reduction::Sum, axis }, &[cubes])?;
    let held = UnaryFn::Clamp { lo: least_sum, hi: f64::MAX };
    let inverse = build.unary("reciprocal", vec![held, UnaryFn::Reciprocal], sum)?;
    let probabilities = build.clear("normalise", ClearOp::Mul, &[cubes, inverse])?;
    graph.replace_uses(id, probabilities);
    Ok(())
}
