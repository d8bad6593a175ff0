//! Makes one look-up of functions applied one after another, scalings between them included.

use thex_ir::{ClearOp, Graph, NodeId, Op, UnaryChain, UnaryFn};

use super::{constant_and_other, find};
use crate::error::Result;
use crate::pass::{Pass, PassCx};

/// See the module.
pub struct FuseUnary;

impl Pass for FuseUnary {
    fn name(&self) -> &'static str {
        "fuse-unary"
    }

    fn description(&self) -> &'static str {
        "merge chains of functions of one variable, and scalings between them, into one look-up"
    }

    fn source(&self) -> &'static str {
        include_str!("fuse_unary.rs")
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        let mut fused = 0;
        for id in find(graph, |op| matches!(op, ClearOp::Unary { .. })) {
            while let Some((prefix, source)) = prefix_of(graph, graph.operands(id)[0]) {
                if let Op::Clear(ClearOp::Unary { chain }) = &mut graph.node_mut(id).op {
                    let mut functions = prefix;
                    functions.append(&mut chain.0);
                    *chain = UnaryChain(functions);
                }
                graph.set_operands(id, &[source]);
                fused += 1;
            }
        }
        graph.remove_dead();
        cx.count("fused", fused);
        Ok(fused > 0)
    }
}

/// The functions that `id` applies to its one private operand, if it is nothing else and has one user.
fn prefix_of(graph: &Graph, id: NodeId) -> Option<(Vec<UnaryFn>, NodeId)> {
    if graph.users(id).len() != 1 || graph.is_output(id) {
        return None;
    }
    let scalar = || {
        let (value, source) = constant_and_other(graph, id)?;
        let same = graph.node(source).shape == graph.node(id).shape;
        let value = *value.iter().next().filter(|_| value.len() == 1 && same)?;
        Some((value, source))
    };
    match graph.clear_op(id)? {
        ClearOp::Unary { chain } => Some((chain.0.clone(), *graph.operands(id).first()?)),
        ClearOp::Mul => scalar().map(|(scale, x)| (vec![UnaryFn::Affine { scale, shift: 0.0 }], x)),
        ClearOp::Add => scalar().map(|(shift, x)| (vec![UnaryFn::Affine { scale: 1.0, shift }], x)),
        _ => None,
    }
}
