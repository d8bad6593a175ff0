//! (e∘r)·V → (e·V)∘r, where r is one factor per row: normalise the context, not the probabilities, when
//! that costs fewer bootstraps.
//!
//! Normalising T² probabilities a head costs T² bootstraps; normalising d context elements for each of T rows costs
//! T·d. The context's normalisation also refreshes what the output projection reads.

use thex_ir::{ClearOp, Graph, NodeId};

use super::{Builder, find};
use crate::analysis::{demand, private_nodes};
use crate::error::Result;
use crate::options::PassOption;
use crate::pass::{Pass, PassCx};

/// See the module.
pub struct DeferNormalization {
    /// Deferring may cost up to this factor: the context's bootstrap also restores precision, where a product of
    /// probabilities would follow a product, with no bootstrap of its own argument between them.
    pub most_extra: usize,
}

impl Default for DeferNormalization {
    fn default() -> Self {
        Self { most_extra: 4 }
    }
}

impl Pass for DeferNormalization {
    fn name(&self) -> &'static str {
        "defer-normalization"
    }

    fn description(&self) -> &'static str {
        "normalise attention outputs instead of probabilities where that costs no more bootstraps"
    }

    fn source(&self) -> &'static str {
        include_str!("defer_normalization.rs")
    }

    fn options(&mut self) -> Vec<PassOption<'_>> {
        vec![PassOption::count(
            "most-extra",
            &mut self.most_extra,
            0..=1 << 16,
            "defer at up to this many times the bootstraps; 0: never",
        )]
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        let private = private_nodes(graph);
        let demand = demand(graph);
        let needed = |id: NodeId| demand[&id].iter().filter(|d| **d).count();
        let mut deferred = 0;
        for id in find(graph, |op| matches!(op, ClearOp::MatMul)) {
            let [product, values] = graph.operands(id)[..] else { continue };
            let Some((numerators, factors)) = row_scaled(graph, product) else { continue };
            if !private.contains(&factors) || !private.contains(&values) || graph.users(product).len() > 1 {
                continue;
            }
            let (now, then) = (needed(product), needed(id));
            let name = graph.node(id).name.clone();
            if then > self.most_extra * now {
                cx.note(format!("{name}: probabilities stay normalised ({now} bootstraps, {then} if deferred)"));
                continue;
            }
            cx.note(format!("{name}: normalisation deferred to the context ({then} bootstraps in place of {now})"));
            let mut build = Builder::replacing(graph, id);
            let context = build.clear("unnormalised", ClearOp::MatMul, &[numerators, values])?;
            let scaled = build.clear("normalise", ClearOp::Mul, &[context, factors])?;
            graph.replace_uses(id, scaled);
            deferred += 1;
        }
        graph.remove_dead();
        cx.count("deferred", deferred);
        Ok(deferred > 0)
    }
}

/// (x, r) if the node is x∘r with r constant along the last axis.
pub(super) fn row_scaled(graph: &Graph, id: NodeId) -> Option<(NodeId, NodeId)> {
    if !matches!(graph.clear_op(id), Some(ClearOp::Mul)) {
        return None;
    }
    let [a, b] = graph.operands(id)[..] else { return None };
    let shape = &graph.node(id).shape;
    let is_row_factor = |r: NodeId| {
        let s = &graph.node(r).shape;
        s.len() == shape.len() && s.last() == Some(&1) && s[..s.len() - 1] == shape[..shape.len() - 1]
    };
    if is_row_factor(b) && graph.node(a).shape == *shape {
        Some((a, b))
    } else if is_row_factor(a) && graph.node(b).shape == *shape {
        Some((b, a))
    } else {
        None
    }
}
