//! Refreshes tensors where the linear maps that would merge across them cost more than the bootstraps of a refresh.
//!
//! Between two non-linearities everything is one linear map. Where norms are exact that map spans a layer; where they are lines or constants, residual
//! streams are linear from the first layer to the last, and every layer's maps read what all layers before it looked up: their columns grow by
//! a layer's look-ups at each layer, and T-fold again where keys are centred over T tokens. A refresh is a look-up of the identity: T·W
//! bootstraps, after which maps read the refreshed tensor alone. It costs precision, since the look-up's argument is noisy, so none is made for anything but cost.
//!
//! There is one cost: milliseconds of bootstraps and keyswitches, and of multiply-adds, a column for each ciphertext that an element of the map's result depends on. Plans
//! grow greedily, by the refresh of a residual sum that saves most, until none saves what it costs.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;
use thex_ir::{ClearOp, Graph, NodeId, Op, UnaryChain};

use super::find;
use crate::analysis::{Demand, demand, needed_elements, private_nodes};
use crate::error::Result;
use crate::options::PassOption;
use crate::params::{self, Work};
use crate::pass::{Pass, PassCx};

/// See the module.
pub struct InsertRefreshes {
    /// A refresh must save this many times what it costs.
    pub least_gain: f64,
}

impl Default for InsertRefreshes {
    fn default() -> Self {
        Self { least_gain: 1.0 }
    }
}

impl Pass for InsertRefreshes {
    fn name(&self) -> &'static str {
        "insert-refreshes"
    }

    fn description(&self) -> &'static str {
        "look up the identity where merged linear maps would cost more than the bootstraps"
    }

    fn source(&self) -> &'static str {
        include_str!("insert_refreshes.rs")
    }

    fn options(&mut self) -> Vec<PassOption<'_>> {
        vec![PassOption::number(
            "least-gain",
            &mut self.least_gain,
            0.0..=1e9,
            "refresh where that saves at least this many times the milliseconds that it costs",
        )]
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        let costs = Costs::new(graph, cx);
        let plan = self.plan(graph, &costs, cx);
        for &id in &plan {
            refresh(graph, id)?;
        }
        cx.count("refreshed", plan.len() as u64);
        Ok(!plan.is_empty())
    }
}

impl InsertRefreshes {
    fn plan(&self, graph: &Graph, costs: &Costs<'_>, cx: &mut PassCx) -> Vec<NodeId> {
        let without = costs.linear(&BTreeSet::new());
        let (mut taken, mut linear) = (BTreeSet::new(), without);
        let candidates = costs.candidates();
        // What no refresh can save is not worth looking for.
        let affordable = |id: &&NodeId, linear: f64| self.least_gain * costs.refresh(**id) < linear;
        loop {
            let left: Vec<&NodeId> = candidates.iter().filter(|id| !taken.contains(*id)).collect();
            let trial = |id: &&NodeId| {
                let mut plan = taken.clone();
                plan.insert(**id);
                (**id, linear - costs.linear(&plan))
            };
            let trials: Vec<(NodeId, f64)> =
                left.into_par_iter().filter(|id| affordable(id, linear)).map(|id| trial(&id)).collect();
            let worth = trials.into_iter().filter(|(id, saved)| *saved > self.least_gain * costs.refresh(*id));
            let gain = |(id, saved): &(NodeId, f64)| saved - costs.refresh(*id);
            let Some((id, saved)) = worth.max_by(|a, b| gain(a).total_cmp(&gain(b))) else { break };
            cx.note(format!(
                "{}: refreshed by {} bootstraps, {:.1} s for {:.1} s less of linear maps",
                graph.node(id).name,
                costs.demanded(id),
                1e-3 * costs.refresh(id),
                1e-3 * saved,
            ));
            taken.insert(id);
            linear -= saved;
        }
        let refreshes: f64 = taken.iter().map(|&id| costs.refresh(id)).sum();
        cx.note(format!(
            "linear maps of about {:.1} s and {} refreshes of {:.1} s; without any, linear maps of {:.1} s",
            1e-3 * linear,
            taken.len(),
            1e-3 * refreshes,
            1e-3 * without,
        ));
        costs.order.iter().filter(|id| taken.contains(id)).copied().collect()
    }
}

/// Puts the identity, as a look-up, between a tensor and what reads it.
fn refresh(graph: &mut Graph, id: NodeId) -> Result<()> {
    let node = graph.node(id);
    let (name, origin) = (format!("{}.refresh", node.name), node.origin.clone());
    let users = graph.users(id);
    let op = ClearOp::Unary { chain: UnaryChain(Vec::new()) };
    let refreshed = graph.add_clear(&name, op, &[id], &origin)?;
    for (user, port) in users {
        graph.set_operand(user, port, refreshed);
    }
    Ok(())
}

/// A tensor that becomes the result of a linear map: what a look-up, a product or the client reads.
struct Target {
    node: NodeId,
    demanded: usize,
    /// Some of its elements, whose columns stand for all.
    samples: Vec<usize>,
}

/// Elements of a tensor whose columns are counted.
const SAMPLES: usize = 3;

/// What plans cost, in milliseconds.
struct Costs<'g> {
    graph: &'g Graph,
    order: Vec<NodeId>,
    private: BTreeSet<NodeId>,
    /// What is ciphertexts without a linear map: inputs, results of look-ups and products.
    sources: BTreeSet<NodeId>,
    demand: Demand,
    targets: Vec<Target>,
    /// Of refreshing one ciphertext.
    bootstrap: f64,
}

impl<'g> Costs<'g> {
    fn new(graph: &'g Graph, cx: &PassCx) -> Self {
        let private = private_nodes(graph);
        let work = Work { rotations: 1.0, keyswitches: 1.0, packs: 0.0 };
        let sources = private.iter().copied().filter(|&id| is_source(graph, &private, id)).collect();
        let mut costs = Self {
            graph,
            order: graph.topological(),
            private,
            sources,
            demand: demand(graph),
            targets: Vec::new(),
            bootstrap: params::cost(&cx.parameters, &work),
        };
        let read: BTreeSet<NodeId> = costs
            .sources
            .iter()
            .flat_map(|&id| graph.operands(id))
            .chain(graph.outputs.iter().map(|(_, id)| *id))
            .filter(|id| costs.private.contains(id) && !costs.sources.contains(id))
            .collect();
        costs.targets = read.into_iter().filter_map(|id| costs.target(id)).collect();
        costs
    }

    fn target(&self, node: NodeId) -> Option<Target> {
        let demanded: Vec<usize> = (0..).zip(&self.demand[&node]).filter(|(_, d)| **d).map(|(i, _)| i).collect();
        let last = demanded.len().checked_sub(1)?;
        let samples = (0..SAMPLES).map(|i| demanded[last * i / (SAMPLES - 1)]).collect();
        Some(Target { node, demanded: demanded.len(), samples })
    }

    fn demanded(&self, id: NodeId) -> usize {
        self.demand[&id].iter().filter(|d| **d).count()
    }

    /// Sums of two encrypted tensors, where residual streams are.
    fn candidates(&self) -> Vec<NodeId> {
        let private = |id: NodeId| self.graph.operands(id).iter().filter(|o| self.private.contains(o)).count();
        let sums = find(self.graph, |op| *op == ClearOp::Add);
        sums.into_iter().filter(|&id| private(id) > 1 && !self.graph.is_output(id) && self.demanded(id) > 0).collect()
    }

    /// The bootstraps of refreshing a tensor.
    fn refresh(&self, id: NodeId) -> f64 {
        self.bootstrap * self.demanded(id) as f64
    }

    /// All linear maps, those that make the arguments of refreshes included.
    fn linear(&self, refreshed: &BTreeSet<NodeId>) -> f64 {
        let arguments = refreshed.iter().filter_map(|&id| self.target(id));
        let arguments: f64 = arguments.map(|target| self.multiply_adds(&target, refreshed, true)).sum();
        let rest: f64 = self.targets.iter().map(|target| self.multiply_adds(target, refreshed, false)).sum();
        params::MULTIPLY_ADD * (arguments + rest)
    }

    fn multiply_adds(&self, target: &Target, refreshed: &BTreeSet<NodeId>, own: bool) -> f64 {
        let columns = target.samples.iter().map(|&element| self.columns(target.node, element, refreshed, own));
        target.demanded as f64 * columns.sum::<usize>() as f64 / target.samples.len() as f64
    }

    /// Ciphertexts that one element depends on linearly. `own`: what goes into its refresh, not what comes out.
    fn columns(&self, target: NodeId, element: usize, refreshed: &BTreeSet<NodeId>, own: bool) -> usize {
        let mut flags = vec![false; self.demand[&target].len()];
        flags[element] = true;
        let mut wanted = BTreeMap::from([(target, flags)]);
        let mut columns = 0;
        for id in self.order.iter().rev() {
            let Some(flags) = wanted.remove(id) else { continue };
            let ends = self.sources.contains(id) || (refreshed.contains(id) && !(own && *id == target));
            match &self.graph.node(*id).op {
                Op::Clear(op) if !ends => self.propagate(*id, op, &flags, &mut wanted),
                _ => columns += flags.iter().filter(|f| **f).count(),
            }
        }
        columns
    }

    fn propagate(&self, id: NodeId, op: &ClearOp, flags: &[bool], wanted: &mut BTreeMap<NodeId, Vec<bool>>) {
        let operands = self.graph.operands(id);
        let shapes: Vec<&[usize]> = operands.iter().map(|&o| self.graph.node(o).shape.as_slice()).collect();
        let needed = needed_elements(op, &self.graph.node(id).shape, &shapes, flags);
        for (operand, needed) in operands.into_iter().zip(needed).filter(|(o, _)| self.private.contains(o)) {
            let known = wanted.entry(operand).or_insert_with(|| vec![false; needed.len()]);
            known.iter_mut().zip(needed).for_each(|(known, need)| *known |= need);
        }
    }
}

fn is_source(graph: &Graph, private: &BTreeSet<NodeId>, id: NodeId) -> bool {
    let encrypted = || graph.operands(id).iter().filter(|o| private.contains(o)).count();
    match &graph.node(id).op {
        Op::Input | Op::Clear(ClearOp::Unary { .. }) => true,
        Op::Clear(ClearOp::Mul | ClearOp::MatMul) => encrypted() > 1,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::Arc;

    use ndarray::{ArrayD, IxDyn};
    use thex_ir::{UnaryFn, interpret};

    use super::*;
    use crate::Profile;
    use crate::pass::Samples;

    const WIDTH: usize = 16;

    fn matrix(graph: &mut Graph, name: &str, x: NodeId, (outputs, inputs): (usize, usize)) -> NodeId {
        let weights = ArrayD::from_shape_fn(IxDyn(&[outputs, inputs]), |i| ((i[0] * 7 + i[1] * 3) % 11) as f64 / 50.0);
        let w = graph.add_constant(&format!("{name}.w"), Arc::new(weights), &[]);
        let b = graph.add_constant(&format!("{name}.b"), Arc::new(ArrayD::zeros(IxDyn(&[outputs]))), &[]);
        graph.add_clear(name, ClearOp::Linear, &[x, w, b], &[]).unwrap()
    }

    /// A residual stream over so many layers of `wide` look-ups, with no norm.
    fn stream(layers: usize, wide: usize) -> Graph {
        let mut graph = Graph::new();
        let mut x = graph.add_input("x", &[4, WIDTH]);
        for layer in 0..layers {
            let up = matrix(&mut graph, &format!("{layer}.up"), x, (wide, WIDTH));
            let relu = ClearOp::Unary { chain: UnaryChain(vec![UnaryFn::Relu]) };
            let relu = graph.add_clear(&format!("{layer}.relu"), relu, &[up], &[]).unwrap();
            let down = matrix(&mut graph, &format!("{layer}.down"), relu, (WIDTH, wide));
            x = graph.add_clear(&format!("{layer}.sum"), ClearOp::Add, &[x, down], &[]).unwrap();
        }
        let head = matrix(&mut graph, "head", x, (2, WIDTH));
        graph.outputs.push(("y".into(), head));
        graph
    }

    fn run(graph: &mut Graph, least_gain: f64) -> PassCx {
        let mut cx = PassCx::new(Profile::TheX, Samples::default());
        InsertRefreshes { least_gain }.run(graph, &mut cx).unwrap();
        cx
    }

    #[test]
    fn columns_are_the_ciphertexts_that_an_element_depends_on() {
        let graph = stream(3, 40);
        let costs = Costs::new(&graph, &PassCx::new(Profile::TheX, Samples::default()));
        let node = |name: &str| graph.ids().find(|&id| graph.node(id).name == name).unwrap();
        let none = BTreeSet::new();
        assert_eq!(costs.columns(node("0.up"), 5, &none, false), WIDTH);
        assert_eq!(costs.columns(node("2.up"), 5, &none, false), WIDTH + 80);
        assert_eq!(costs.columns(node("2.sum"), 5, &none, false), 1 + 120);
        let refreshed = BTreeSet::from([node("1.sum")]);
        assert_eq!(costs.columns(node("2.up"), 5, &refreshed, false), WIDTH);
        assert_eq!(costs.columns(node("1.sum"), 5, &refreshed, false), 1);
        assert_eq!(costs.columns(node("1.sum"), 5, &refreshed, true), 1 + 80);
    }

    #[test]
    fn cheap_maps_are_left_alone() {
        let mut graph = stream(4, 40);
        let cx = run(&mut graph, 1.0);
        assert_eq!(cx.counters["refreshed"], 0);
        assert!(cx.log.iter().any(|line| line.contains("0 refreshes")), "{:?}", cx.log);
    }

    #[test]
    fn long_streams_are_refreshed_and_mean_the_same() {
        let before = stream(8, 3000);
        let mut graph = before.clone();
        let cx = run(&mut graph, 1.0);
        let refreshed = cx.counters["refreshed"];
        assert!((1..8).contains(&refreshed), "{refreshed}: {:?}", cx.log);
        let costs = |graph: &Graph| {
            let costs = Costs::new(graph, &cx);
            let bootstraps = graph.ids().filter(|&id| graph.node(id).name.ends_with(".refresh"));
            costs.linear(&BTreeSet::new()) + bootstraps.map(|id| costs.refresh(id)).sum::<f64>()
        };
        assert!(costs(&graph) < costs(&before));
        let x = ArrayD::from_shape_fn(IxDyn(&[4, WIDTH]), |i| (i[0] * WIDTH + i[1]) as f64 / 100.0 - 0.3);
        let inputs = [Arc::new(x)];
        assert_eq!(interpret::run(&before, &inputs).unwrap(), interpret::run(&graph, &inputs).unwrap());
        let mut kept = before.clone();
        assert_eq!(run(&mut kept, 1e9).counters["refreshed"], 0);
    }
}
