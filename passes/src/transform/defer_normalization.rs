//! (e∘r)·V → (e·V)∘r, where r is one factor per row: normalise the context, not the probabilities, when
//! that costs fewer bootstraps, or is worth more.
//!
//! Normalising T² probabilities a head costs T² bootstraps; normalising d context elements for each of T rows costs
//! T·d. The context's normalisation also refreshes what the output projection reads, which can be worth more bootstraps than it costs:
//! by how much depends on the model, so where it costs more both plans are made, and the better one is kept.

use thex_ir::{ClearOp, Graph, NodeId};

use super::{Builder, find};
use crate::analysis::{demand, private_nodes};
use crate::error::Result;
use crate::options::PassOption;
use crate::pass::{Pass, PassCx};

/// See the module.
pub struct DeferNormalization {
    /// Deferring is tried if it costs up to this factor: the context's bootstrap also restores precision, where a product of
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
        "normalise attention outputs instead of probabilities where that makes the better circuit"
    }

    fn source(&self) -> &'static str {
        include_str!("defer_normalization.rs")
    }

    fn options(&mut self) -> Vec<PassOption<'_>> {
        vec![PassOption::count(
            "most-extra",
            &mut self.most_extra,
            0..=1 << 16,
            "try deferring at up to this many times the bootstraps; 0: never",
        )]
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        defer(graph, cx, &candidates(graph), self.most_extra)
    }

    fn alternative(&self, graph: &Graph) -> Option<(Box<dyn Pass>, &'static str)> {
        let dearer = |c: &Candidate| c.then > c.now && c.then <= self.most_extra * c.now;
        let what =
            "probabilities normalised where that takes fewer bootstraps (as by -x defer-normalization:most-extra=1)";
        candidates(graph).iter().any(dearer).then(|| (Box::new(Self { most_extra: 1 }) as Box<dyn Pass>, what))
    }
}

/// A context of normalised probabilities.
struct Candidate {
    context: NodeId,
    numerators: NodeId,
    factors: NodeId,
    values: NodeId,
    /// Bootstraps to normalise probabilities.
    now: usize,
    /// Bootstraps to normalise the context.
    then: usize,
}

fn candidates(graph: &Graph) -> Vec<Candidate> {
    let (private, demand) = (private_nodes(graph), demand(graph));
    let needed = |id: NodeId| demand[&id].iter().filter(|d| **d).count();
    let candidate = |context: NodeId| {
        let [product, values] = graph.operands(context)[..] else { return None };
        let (numerators, factors) = row_scaled(graph, product)?;
        let ours = private.contains(&factors) && graph.users(product).len() <= 1;
        let (now, then) = (needed(product), needed(context));
        ours.then_some(Candidate { context, numerators, factors, values, now, then })
    };
    find(graph, |op| matches!(op, ClearOp::MatMul)).into_iter().filter_map(candidate).collect()
}

/// Defers where that takes at most `most` times the bootstraps; tells whether anything was.
fn defer(graph: &mut Graph, cx: &mut PassCx, candidates: &[Candidate], most: usize) -> Result<bool> {
    let mut deferred = 0;
    for &Candidate { context, numerators, factors, values, now, then } in candidates {
        let name = graph.node(context).name.clone();
        if then > most * now {
            cx.note(format!("{name}: probabilities stay normalised ({now} bootstraps, {then} if deferred)"));
            continue;
        }
        cx.note(format!("{name}: normalisation deferred to the context ({then} bootstraps in place of {now})"));
        let mut build = Builder::replacing(graph, context);
        let unnormalised = build.clear("unnormalised", ClearOp::MatMul, &[numerators, values])?;
        let scaled = build.clear("normalise", ClearOp::Mul, &[unnormalised, factors])?;
        graph.replace_uses(context, scaled);
        deferred += 1;
    }
    graph.remove_dead();
    cx.count("deferred", deferred);
    Ok(deferred > 0)
}

/// (x, r) if the node is x∘r with r constant along the last axis.
fn row_scaled(graph: &Graph, id: NodeId) -> Option<(NodeId, NodeId)> {
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
