//! Sets weights that are small beside the largest of their map to zero.
//!
//! Pruning is an approximation, as those of THE-X are: what it leaves out is gone from the outputs. It is off unless asked for,
//! since a model that was not trained with it loses accuracy.

// ANCHOR: head
use std::sync::Arc;

use thex_ir::{ClearOp, Graph, NodeId, Tensor};
use thex_passes::error::Result;
use thex_passes::{Pass, PassCx, PassOption};

/// See the module.
#[derive(Default)]
pub struct PruneWeights {
    threshold: f64,
}
// ANCHOR_END: head

// ANCHOR: pass
impl Pass for PruneWeights {
    fn name(&self) -> &'static str {
        "prune-weights"
    }

    fn description(&self) -> &'static str {
        "set small weights of linear maps to zero"
    }

    fn source(&self) -> &'static str {
        include_str!("prune_weights.rs")
    }

    fn options(&mut self) -> Vec<PassOption<'_>> {
        let help = "weights up to this part of their map's largest are dropped; 0: none";
        vec![PassOption::number("threshold", &mut self.threshold, 0.0..=1.0, help)]
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        let mut total = 0;
        for id in graph.topological() {
            if !matches!(graph.clear_op(id), Some(ClearOp::Linear)) {
                continue;
            }
            let dropped = prune(graph, id, self.threshold);
            if dropped > 0 {
                let name = &graph.node(id).name;
                cx.approximations.push(format!("{name}: {dropped} small weights dropped"));
            }
            total += dropped;
        }
        graph.remove_dead();
        cx.count("dropped", total);
        Ok(total > 0)
    }
}
// ANCHOR_END: pass

// ANCHOR: rewrite
/// Prunes the weights of a linear map; how many that were not zero are zero now.
fn prune(graph: &mut Graph, id: NodeId, threshold: f64) -> u64 {
    let mut dropped = 0;
    // Operands are x₀, W₀, x₁, W₁, …, and the bias last.
    let operands = graph.operands(id);
    let weights = operands.iter().copied().enumerate().filter(|(port, _)| port % 2 == 1);
    for (port, weight) in weights {
        let Some(value) = graph.constant(weight).cloned() else { continue };
        let (pruned, count) = without_small(&value, threshold);
        if count > 0 {
            let node = graph.node(weight);
            let (name, origin) = (node.name.clone(), node.origin.clone());
            let constant = graph.add_constant(&name, Arc::new(pruned), &origin);
            graph.set_operand(id, port as u32, constant);
            dropped += count;
        }
    }
    dropped
}

fn without_small(value: &Tensor, threshold: f64) -> (Tensor, u64) {
    let largest = value.iter().fold(0.0_f64, |most, w| most.max(w.abs()));
    let small = |w: f64| w.abs() > 0.0 && w.abs() <= threshold * largest;
    let count = value.iter().filter(|w| small(**w)).count();
    (value.mapv(|w| if small(w) { 0.0 } else { w }), count as u64)
}
// ANCHOR_END: rewrite

// ANCHOR: tests
#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ndarray::{arr1, arr2};
    use thex_ir::{ClearOp, Graph};
    use thex_passes::{Pass, PassCx, PassManager, Profile, options};

    use super::PruneWeights;

    /// y = W x + b, with one small weight.
    fn graph() -> Graph {
        let mut graph = Graph::new();
        let x = graph.add_input("x", &[1, 2]);
        let w = graph.add_constant("w", Arc::new(arr2(&[[2.0, 0.1], [-0.5, 1.0]]).into_dyn()), &[]);
        let b = graph.add_constant("b", Arc::new(arr1(&[0.25, 0.0]).into_dyn()), &[]);
        let y = graph.add_clear("y", ClearOp::Linear, &[x, w, b], &[]).unwrap();
        graph.outputs.push(("y".into(), y));
        graph
    }

    /// What y is at x = (1, 10), after the pass with this setting, and what the pass said.
    fn at_threshold(setting: &str) -> (Vec<f64>, PassCx) {
        let mut passes: Vec<Box<dyn Pass>> = vec![Box::new(PruneWeights::default())];
        options::apply(&mut passes, &[format!("prune-weights:threshold={setting}")]).unwrap();
        let (mut graph, mut cx) = (graph(), PassCx::new(Profile::Exact, Arc::default()));
        // The manager verifies the graph before and after.
        PassManager::default().run(&passes, &mut graph, &mut cx).unwrap();
        let x = Arc::new(arr2(&[[1.0, 10.0]]).into_dyn());
        let y = thex_ir::interpret::run(&graph, &[x]).unwrap();
        (y[0].iter().copied().collect(), cx)
    }

    #[test]
    fn nothing_is_pruned_unless_asked_for() {
        let (y, cx) = at_threshold("0");
        assert_eq!(y, [3.25, 9.5]);
        assert!(cx.approximations.is_empty());
    }

    #[test]
    fn small_weights_go_and_the_report_says_so() {
        let (y, cx) = at_threshold("0.05");
        assert_eq!(y, [2.25, 9.5]);
        assert_eq!(cx.approximations, ["y: 1 small weights dropped"]);
        assert_eq!(cx.counters["dropped"], 1);
    }
}
// ANCHOR_END: tests
