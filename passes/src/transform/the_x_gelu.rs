//! GELU → ReLU, THE-X's substitution.
//!
//! Either is one look-up an element here, at the same price: the substitution is for models that were fine-tuned with it.

use thex_ir::{ClearOp, Graph, Op, UnaryFn};

use super::chosen;
use crate::choice::{Form, Kind, is_smooth};
use crate::error::Result;
use crate::pass::{Pass, PassCx};

/// See the module.
pub struct TheXGelu;

impl Pass for TheXGelu {
    fn name(&self) -> &'static str {
        "the-x-gelu"
    }

    fn description(&self) -> &'static str {
        "replace GELU (and SiLU) by ReLU, as THE-X does"
    }

    fn source(&self) -> &'static str {
        include_str!("the_x_gelu.rs")
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        let nodes = chosen(graph, cx, Kind::Gelu, &[Form::Relu]);
        for &id in &nodes {
            if let Op::Clear(ClearOp::Unary { chain }) = &mut graph.node_mut(id).op {
                for function in chain.0.iter_mut().filter(|f| is_smooth(f)) {
                    *function = UnaryFn::Relu;
                }
            }
            let name = graph.node(id).name.clone();
            cx.approximations.push(format!("{name}: GELU replaced by ReLU (THE-X)"));
        }
        cx.count("replaced", nodes.len() as u64);
        Ok(!nodes.is_empty())
    }
}
