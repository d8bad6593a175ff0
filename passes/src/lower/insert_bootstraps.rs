//! Makes every bootstrap explicit: look-ups, products, packs, keyswitches and the linear maps between them.
//!
//! The pass walks the calibrated graph once, carrying every tensor as elements that are affine in
//! ciphertexts (see [`affine`](super::affine)). A function of one variable materialises its arguments as one
//! linear map, keyswitches them and looks them up. A product of two encrypted tensors packs one operand, and rotates it
//! by the other or makes GGSWs of the other, which multiply and sum. Everything else is affine and costs nothing here.
//!
//! It lowers twice: once to learn what errors of each product's operands and of each argument do to the outputs, then with the lines that
//! look-ups are relieved of (see [`variate`](super::variate)) and the plans that spend the precision budget on the fewest bootstraps.
//! Plans with external products are lowered besides, and judged with the parameters that they would get against those without.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ndarray::Array2;
use thex_circuit::params::Decomposition;
use thex_circuit::{Parameters, external};
use thex_ir::graph::Ranges;
use thex_ir::he::{Domain, Purpose};
use thex_ir::{Address, ClearOp, Facts, Graph, HeLinear, HeOp, LookUp, Node, NodeId, Op, Stage, UnaryChain};

use super::affine::{Atom, Elem, MatrixCache, Sum, combine, hash_of, with_lines};
use super::budget::{Price, cheapest};
use super::insert_rescale::{Analysis, EXTERNAL_NOISE, error_sources};
use super::products::{MatMulShape, ProductPlan, ProductPlans, Rotate, Schedule};
use super::select_parameters::{SelectParameters, Verdict};
use super::sensitivity::{self, LEAST_ROTATION, Sensitivity};
use super::variate::{self, Variate, Variates};
use super::{CONVERSION, rotations_of, usable};
use crate::analysis::{Demand, broadcast_map, demand, element_map};
use crate::error::{PassError, Problem, Result};
use crate::options::PassOption;
use crate::pass::{Pass, PassCx};

/// See the module.
pub struct InsertBootstraps {
    /// Most products that a plan lets share a rotation.
    pub max_slots: usize,
    /// Products may err as much as was asked for, and in any case this much of what the noise of look-up arguments costs,
    /// which no plan changes: below that, bootstraps buy little.
    pub product_share: f64,
    /// Whether look-ups are relieved of lines.
    pub control_variates: bool,
    /// Whether products of matrices may be external products.
    pub external_products: bool,
}

impl Default for InsertBootstraps {
    fn default() -> Self {
        Self { max_slots: 32, product_share: 0.5, control_variates: true, external_products: true }
    }
}

impl Pass for InsertBootstraps {
    fn name(&self) -> &'static str {
        "insert-bootstraps"
    }

    fn description(&self) -> &'static str {
        "lower to homomorphic operations: look-ups, packed products, keyswitches and merged linear maps"
    }

    fn source(&self) -> &'static str {
        include_str!("insert_bootstraps.rs")
    }

    fn options(&mut self) -> Vec<PassOption<'_>> {
        vec![
            PassOption::count("max-slots", &mut self.max_slots, 1..=64, "most products that share a rotation"),
            PassOption::number(
                "product-share",
                &mut self.product_share,
                0.0..=16.0,
                "error that products may add in any case, as a part of what look-up noise adds",
            ),
            PassOption::switch(
                "control-variates",
                &mut self.control_variates,
                "compute the line in ReLU and its like linearly and look up the rest over the full torus, where that errs less",
            ),
            PassOption::switch(
                "external-products",
                &mut self.external_products,
                "multiply matrices by external products where that takes fewer bootstraps; such circuits run on processors alone",
            ),
        ]
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        let first = lower(graph, &Plans::default(), &cx.parameters)?;
        let mut plans = Plans::default();
        if !first.products.is_empty() || (self.control_variates && !first.look_ups.is_empty()) {
            let sensitivity = sensitivity::analyse(&first.graph, cx)?;
            if self.control_variates {
                plans.variates = variate::choose(graph, &first, &sensitivity, cx);
            }
            plans.products = self.plan_products((graph, &first), &sensitivity, cx, &plans)?;
        }
        let lowered = lower(graph, &plans, &cx.parameters)?;
        count(&lowered.graph, cx);
        *graph = lowered.graph;
        Ok(true)
    }
}

fn count(graph: &Graph, cx: &mut PassCx) {
    for id in graph.ids() {
        if let Op::He(op) = &graph.node(id).op {
            match op {
                HeOp::Pbs { .. } => cx.count("pbs", graph.node(id).shape[0] as u64),
                HeOp::LutProduct { .. } => {
                    cx.count("product-pbs", rotations_of(graph, id, cx.parameters.polynomial_size.0) as u64);
                }
                HeOp::Pack { gather, .. } => {
                    cx.count("packs", gather.iter().filter(|&&a| a != Address::ABSENT).count() as u64);
                }
                HeOp::Encrypt | HeOp::Linear { .. } | HeOp::Keyswitch { .. } | HeOp::Decrypt { .. } => {}
            }
        }
    }
}

/// A candidate for one product: bootstraps, and the error variance that it adds to the outputs.
#[derive(Clone, Copy)]
struct Candidate {
    plan: ProductPlan,
    cost: f64,
    error: f64,
}

impl Candidate {
    /// The cheapest of those that are cheaper and err no more, or itself.
    fn improved(&self, others: &[Self]) -> Self {
        let better = others.iter().filter(|c| c.cost < self.cost && c.error <= self.error);
        *better.min_by(|a, b| a.cost.total_cmp(&b.cost)).unwrap_or(self)
    }

    fn describe(&self, name: &str, budget: f64) -> String {
        let ProductPlan { rotate, slots, external } = self.plan;
        let how = match external {
            Some(rotations) => format!("external products, {rotations} rotations each"),
            None => format!("{slots} products a rotation"),
        };
        let (cost, share) = (self.cost, 100.0 * self.error / budget);
        format!("{name}: rotate {rotate:?}, {how}, work of {cost:.0} bootstraps, {share:.1} % of the error budget")
    }
}

/// Bootstraps whose outputs are quiet enough for external products: `select-parameters` gets there if these are taken.
const QUIET: Decomposition = Decomposition::new(12, 3);

/// Products that take less than this part of what products take on average stay with rotations: those of the one row that a head reads, where there is
/// little to save, and where errors are not averaged any more. (A BERT of 24 tokens whose class is sure errs by 0.39 with them and by 0.22 without, where 0.13
/// and 0.12 are modelled.)
const LITTLE: f64 = 0.25;

fn with_little_to_save(by_rotation: &[(NodeId, Candidate)]) -> BTreeSet<NodeId> {
    let mean = by_rotation.iter().map(|(_, c)| c.cost).sum::<f64>() / by_rotation.len().max(1) as f64;
    by_rotation.iter().filter(|(_, c)| c.cost < LITTLE * mean).map(|(id, _)| *id).collect()
}

fn plans_of(chosen: &[(NodeId, Candidate)]) -> ProductPlans {
    chosen.iter().map(|(id, candidate)| (*id, candidate.plan)).collect()
}

/// A graph lowered by some plans, to be judged.
struct Trial {
    lowered: Lowered,
    analysis: Analysis,
}

impl Trial {
    fn new(graph: &Graph, chosen: &[(NodeId, Candidate)], others: &Plans, cx: &PassCx) -> Result<Self> {
        let plans = Plans { products: plans_of(chosen), ..others.clone() };
        let lowered = lower(graph, &plans, &cx.parameters)?;
        let analysis = Analysis::new(&lowered.graph, cx)?;
        Ok(Self { lowered, analysis })
    }

    /// The product whose external products are the noisiest, where all of them together add more than the budget to the outputs.
    fn noisiest(&self, budget: f64, cx: &mut PassCx) -> Option<NodeId> {
        let parameters = cx.parameters;
        if !cx.parameters_fixed {
            cx.parameters.bootstrap = QUIET;
        }
        let sources = error_sources(&self.lowered.graph, cx, &self.analysis);
        cx.parameters = parameters;
        let outputs = self.analysis.sensitivity.outputs.max(1) as f64;
        let of = |site: &ProductSite| {
            let name = &self.lowered.graph.node(site.product).name;
            let noise = sources.iter().filter(|s| s.kind == EXTERNAL_NOISE && s.node == *name);
            noise.map(|s| s.variance * outputs).sum::<f64>()
        };
        let noises: Vec<(NodeId, f64)> = self.lowered.products.iter().map(|(&id, site)| (id, of(site))).collect();
        let all: f64 = noises.iter().map(|(_, noise)| noise).sum();
        let noisiest = noises.into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
        noisiest.filter(|_| all > budget).map(|(id, _)| id)
    }

    /// Whether external products are worth it, at the parameters that either would get.
    fn beats(&self, by_rotation: &Self, cx: &mut PassCx) -> bool {
        let of = |trial: &Self| SelectParameters::default().verdict(&trial.lowered.graph, cx, &trial.analysis);
        let (Some(ours), Some(theirs)) = (of(self), of(by_rotation)) else { return false };
        let seconds = |verdict: &Verdict| verdict.cost * 1e-3;
        cx.note(format!(
            "external products: about {:.0} s and a modelled error of {:.4}; by rotations alone {:.0} s and {:.4}",
            seconds(&ours),
            ours.error,
            seconds(&theirs),
            theirs.error
        ));
        ours.beats(&theirs)
    }
}

/// Variance that the argument noise of whole-table look-ups adds to the outputs.
fn look_up_noise(graph: &Graph, sensitivity: &Sensitivity, cx: &PassCx) -> f64 {
    let size = cx.parameters.polynomial_size.0;
    let reach = usable(&cx.parameters, Domain::new(size));
    let whole =
        |id: &NodeId| matches!(&graph.node(*id).op, Op::He(HeOp::Keyswitch { domain, .. }) if domain.positions == size);
    let weighted: f64 = graph.ids().filter(whole).map(|id| sensitivity.weighted_width(&id)).sum();
    cx.noise().argument() * weighted / (reach * reach)
}

/// Part of the error that the outputs may have which is kept for products.
const PRODUCTS_PART: f64 = 0.5;

/// Packing one LWE costs about as much as this many bootstraps.
const PACK_COST: f64 = 0.07;

impl InsertBootstraps {
    /// Chooses, for every product, which operand rotates and how many products share a rotation: the fewest bootstraps whose argument noise stays within the
    /// budget. Then external products take the place of those that they make no noisier with fewer bootstraps. What that saves of the budget is not spent
    /// elsewhere, since the model takes rounding for too little where outputs are saturated. External products have noise of their own, which depends on all that follows: where
    /// it does not stay within the budget, rotations come back.
    fn plan_products(
        &self,
        (graph, lowered): (&Graph, &Lowered),
        sensitivity: &Sensitivity,
        cx: &mut PassCx,
        others: &Plans,
    ) -> Result<ProductPlans> {
        let asked = (PRODUCTS_PART * cx.precision.output_error * sensitivity.output_spread).powi(2)
            * sensitivity.outputs as f64;
        let budget = asked.max(self.product_share * look_up_noise(&lowered.graph, sensitivity, cx));
        let floored = sensitivity.floored(budget, LEAST_ROTATION);
        let by_rotation = self.cheapest_rotations((graph, lowered), &floored, cx, budget);
        let mut rejected = match self.external_products {
            true => with_little_to_save(&by_rotation),
            false => lowered.products.keys().copied().collect(),
        };
        loop {
            let external = |(id, rotation): &(NodeId, Candidate)| {
                let candidates = lowered.products.get(id).filter(|_| !rejected.contains(id));
                let candidates = candidates.map_or_else(Vec::new, |site| externals(site, &floored, cx));
                (*id, rotation.improved(&candidates))
            };
            let chosen: Vec<(NodeId, Candidate)> = by_rotation.iter().map(external).collect();
            let external = chosen.iter().any(|(_, candidate)| candidate.plan.external.is_some());
            let trial = if external { Some(Trial::new(graph, &chosen, others, cx)?) } else { None };
            if let Some(id) = trial.as_ref().and_then(|trial| trial.noisiest(budget, cx)) {
                cx.note(format!("{}: external products would be too noisy here", graph.node(id).name));
                rejected.insert(id);
                continue;
            }
            let better = match trial {
                Some(trial) => trial.beats(&Trial::new(graph, &by_rotation, others, cx)?, cx),
                None => false,
            };
            let taken = if better { chosen } else { by_rotation };
            taken.iter().for_each(|(id, candidate)| cx.note(candidate.describe(&graph.node(*id).name, budget)));
            return Ok(plans_of(&taken));
        }
    }

    fn cheapest_rotations(
        &self,
        (graph, lowered): (&Graph, &Lowered),
        floored: &Sensitivity,
        cx: &PassCx,
        budget: f64,
    ) -> Vec<(NodeId, Candidate)> {
        let sites: Vec<(NodeId, Vec<Candidate>)> = lowered
            .products
            .iter()
            .map(|(&id, site)| (id, self.candidates(graph, id, site, floored, cx)))
            .filter(|(_, c)| !c.is_empty())
            .collect();
        let price = |c: &Candidate| Price { cost: c.cost, error: c.error };
        let prices: Vec<Vec<Price>> = sites.iter().map(|(_, c)| c.iter().map(price).collect()).collect();
        let chosen = cheapest(&prices, budget);
        sites.into_iter().zip(chosen).map(|((id, mut candidates), i)| (id, candidates.swap_remove(i))).collect()
    }

    fn candidates(
        &self,
        graph: &Graph,
        id: NodeId,
        site: &ProductSite,
        sensitivity: &Sensitivity,
        cx: &PassCx,
    ) -> Vec<Candidate> {
        let noise = cx.noise().argument();
        let size = cx.parameters.polynomial_size.0;
        let rotated = sensitivity.weighted_width(&site.rotated);
        let packed = sensitivity.weighted_width(&site.packed);
        let most = if graph.clear_op(id) == Some(&ClearOp::Mul) { 1 } else { self.max_slots };
        let mut candidates = Vec::new();
        for rotate in [Rotate::Left, Rotate::Right] {
            if most == 1 && rotate != site.plan.rotate {
                continue;
            }
            let width = if rotate == site.plan.rotate { rotated } else { packed };
            for slots in 1..=most {
                let plan = ProductPlan { rotate, slots, external: None };
                let schedule = site.schedule(plan);
                let reach = usable(&cx.parameters, Domain::new(size / slots));
                let cost = schedule.rotations.len() as f64 + PACK_COST * schedule.packed() as f64;
                candidates.push(Candidate { plan, cost, error: noise * width / (reach * reach) });
            }
        }
        candidates
    }
}

/// A product's plans by external products.
fn externals(site: &ProductSite, sensitivity: &Sensitivity, cx: &PassCx) -> Vec<Candidate> {
    let (noise, size) = (cx.noise().argument(), cx.parameters.polynomial_size.0);
    let of = |(&rotate, rotations): (&Rotate, usize)| {
        let plan = ProductPlan { rotate, slots: 1, external: Some(rotations) };
        let schedule = site.schedule(plan);
        let operand = if rotate == site.plan.rotate { &site.rotated } else { &site.packed };
        let reach = usable(&cx.parameters, Domain::new(external::entries(size, rotations)));
        let rotations = schedule.rotations.len() as f64 * (rotations as f64 + CONVERSION);
        let cost = rotations + PACK_COST * schedule.packed() as f64;
        Candidate { plan, cost, error: noise * sensitivity.weighted_width(operand) / (reach * reach) }
    };
    site.external.iter().flat_map(|rotate| external::ROTATIONS.map(|rotations| of((rotate, rotations)))).collect()
}

/// One product of a lowered graph.
#[derive(Clone, Debug)]
pub struct ProductSite {
    /// The plan used.
    pub plan: ProductPlan,
    /// The keyswitch of the rotating operand.
    pub rotated: NodeId,
    /// The pack of the other.
    pub packed: NodeId,
    /// The products.
    pub product: NodeId,
    /// By which operands external products can rotate.
    external: Vec<Rotate>,
    shape: MatMulShape,
    left_private: Vec<bool>,
    right_private: Vec<bool>,
    demanded: Vec<bool>,
}

impl ProductSite {
    fn schedule(&self, plan: ProductPlan) -> Schedule {
        Schedule::new(&self.shape, plan, &self.left_private, &self.right_private, &self.demanded)
    }
}

/// A lowered graph and where its products came from.
pub struct Lowered {
    /// The graph, at [`Stage::Lowered`].
    pub graph: Graph,
    /// For each product of the calibrated graph, its site.
    pub products: BTreeMap<NodeId, ProductSite>,
    /// For each function of one variable that is looked up, its `pbs`.
    pub look_ups: BTreeMap<NodeId, NodeId>,
}

/// What the lowering was told, by node of the calibrated graph.
#[derive(Clone, Debug, Default)]
pub struct Plans {
    /// How products are computed; the default plan where there is none.
    pub products: ProductPlans,
    /// How functions are looked up; whole where there is none.
    pub variates: Variates,
}

/// Lowers a calibrated graph.
///
/// # Errors
/// [`PassError::Unsupported`] with every node that has no lowering.
pub fn lower(graph: &Graph, plans: &Plans, parameters: &Parameters) -> Result<Lowered> {
    let mut lowering = Lowering {
        source: graph,
        target: Graph::new(),
        demand: demand(graph),
        elems: BTreeMap::new(),
        arguments: BTreeMap::new(),
        plans,
        size: parameters.polynomial_size.0,
        cache: MatrixCache::default(),
        products: BTreeMap::new(),
        look_ups: BTreeMap::new(),
        problems: Vec::new(),
    };
    for id in graph.topological() {
        lowering.visit(id)?;
    }
    if !lowering.problems.is_empty() {
        return Err(PassError::Unsupported(lowering.problems));
    }
    lowering.outputs();
    let mut target = lowering.target;
    target.stage = Stage::Lowered;
    target.remove_dead();
    Ok(Lowered { graph: target, products: lowering.products, look_ups: lowering.look_ups })
}

struct Lowering<'a> {
    source: &'a Graph,
    target: Graph,
    demand: Demand,
    elems: BTreeMap<NodeId, Vec<Elem>>,
    /// Keyswitched arguments by (tensor, positions, bits of the reach, which elements).
    arguments: BTreeMap<(NodeId, usize, u64, Vec<bool>), NodeId>,
    plans: &'a Plans,
    size: usize,
    cache: MatrixCache,
    products: BTreeMap<NodeId, ProductSite>,
    look_ups: BTreeMap<NodeId, NodeId>,
    problems: Vec<Problem>,
}

fn lowered_already(node: &str) -> PassError {
    let violations = format!("`{node}` is lowered already");
    PassError::Internal { pass: "insert-bootstraps".into(), when: "before", violations }
}

/// A range for each element of a flat node.
pub(super) fn ranges_of(elements: &[(f64, f64)]) -> Ranges {
    let mut numbers: BTreeMap<(u64, u64), u32> = BTreeMap::new();
    let mut ranges = Ranges { class: Vec::new(), lo: Vec::new(), hi: Vec::new(), rms: Vec::new() };
    for &(lo, hi) in elements {
        let next = numbers.len() as u32;
        let class = *numbers.entry((lo.to_bits(), hi.to_bits())).or_insert(next);
        if class == next {
            ranges.lo.push(lo);
            ranges.hi.push(hi);
            ranges.rms.push(lo.abs().max(hi.abs()));
        }
        ranges.class.push(class);
    }
    ranges
}

/// Largest magnitude in a range; 1 for the empty range of an element that is always 0.
pub(super) fn magnitude((lo, hi): (f64, f64)) -> f64 {
    let m = lo.abs().max(hi.abs());
    if m > 0.0 { m } else { 1.0 }
}

/// Groups of a linear map under construction that have the same number of outputs and operands.
#[derive(Default)]
struct Bucket {
    gather: Vec<Atom>,
    set: Vec<u32>,
    weights: Vec<f64>,
    bias: Vec<f64>,
    ranges: Vec<(f64, f64)>,
    elements: Vec<usize>,
    seen: BTreeMap<u64, Vec<u32>>,
    signatures: Vec<Vec<f64>>,
}

impl Bucket {
    /// Adds a group; weight sets are shared between groups with equal weights, ranges and operand magnitudes.
    fn push(&mut self, atoms: &[Atom], weights: &[f64], signature: Vec<f64>) {
        let hash = hash_of(signature.iter());
        let known = self
            .seen
            .get(&hash)
            .and_then(|sets| sets.iter().copied().find(|&s| self.signatures[s as usize] == signature));
        let set = known.unwrap_or_else(|| {
            let set = self.signatures.len() as u32;
            self.seen.entry(hash).or_default().push(set);
            self.signatures.push(signature);
            self.weights.extend_from_slice(weights);
            set
        });
        self.set.push(set);
        self.gather.extend_from_slice(atoms);
    }
}

impl Lowering<'_> {
    fn visit(&mut self, id: NodeId) -> Result<()> {
        let node = self.source.node(id);
        if let Op::Constant(value) = &node.op {
            // Public zeros are what makes other elements undemanded, so constants are there whole.
            self.elems.insert(id, value.iter().map(|&v| Elem::Const(v)).collect());
            return Ok(());
        }
        if !self.demand[&id].iter().any(|d| *d) && !matches!(node.op, Op::Input) {
            return Ok(());
        }
        let elems = match &node.op {
            Op::Input => self.encrypt(id),
            Op::Clear(op) => self.clear(id, op)?,
            Op::Constant(_) | Op::He(_) => return Err(lowered_already(&node.name)),
        };
        let flags = &self.demand[&id];
        let elems = elems.into_iter().zip(flags).map(|(e, d)| if *d { e } else { Elem::Undemanded }).collect();
        self.elems.insert(id, elems);
        Ok(())
    }

    fn range(&self, id: NodeId, element: usize) -> (f64, f64) {
        self.source.node(id).facts.ranges.as_ref().map_or((0.0, 0.0), |r| r.of(element))
    }

    fn add(&mut self, like: NodeId, suffix: &str, op: HeOp, ranges: &[(f64, f64)], operands: &[NodeId]) -> NodeId {
        let source = self.source.node(like);
        let node = Node {
            name: format!("{}.{suffix}", source.name),
            op: Op::He(op),
            shape: vec![ranges.len()],
            origin: source.origin.clone(),
            facts: Facts { ranges: Some(Arc::new(ranges_of(ranges))), ..Facts::default() },
        };
        self.target.add(node, operands)
    }

    fn encrypt(&mut self, id: NodeId) -> Vec<Elem> {
        let node = self.source.node(id);
        let input = self.target.add_input(&node.name, &node.shape);
        let ranges: Vec<(f64, f64)> = (0..self.demand[&id].len()).map(|i| self.range(id, i)).collect();
        let encrypted = self.add(id, "encrypt", HeOp::Encrypt, &ranges, &[input]);
        (0..ranges.len()).map(|i| Elem::Atom(Atom { node: encrypted, index: i as u32 })).collect()
    }

    fn clear(&mut self, id: NodeId, op: &ClearOp) -> Result<Vec<Elem>> {
        let operands = self.source.operands(id);
        let shapes: Vec<&[usize]> = operands.iter().map(|&o| self.source.node(o).shape.as_slice()).collect();
        if op.is_data_movement() {
            let map = element_map(op, &shapes);
            return Ok(map.into_iter().map(|(o, e)| self.elem(operands[o], e)).collect());
        }
        match op {
            ClearOp::Linear => Ok(self.linear(id, &operands)),
            ClearOp::Unary { chain } => Ok(self.unary(id, chain, operands[0])),
            ClearOp::Add => Ok(self.add_elements(id, &operands)),
            ClearOp::Mul => Ok(self.multiply(id, &operands)),
            ClearOp::MatMul => Ok(self.matmul(id, &operands)),
            ClearOp::Reduce { reduction, axis } if *reduction != thex_ir::Reduction::Max => {
                let mean = *reduction == thex_ir::Reduction::Mean;
                Ok(self.reduce(id, operands[0], *axis, mean))
            }
            _ => {
                let help = "export the model without it, or open an issue with this report";
                let problem = Problem::new(self.source, id, "no lowering to homomorphic operations", help);
                self.problems.push(problem);
                Ok(vec![Elem::Undemanded; self.demand[&id].len()])
            }
        }
    }

    fn elem(&self, id: NodeId, element: usize) -> Elem {
        self.elems.get(&id).map_or(Elem::Undemanded, |e| e[element].clone())
    }

    fn linear(&mut self, id: NodeId, operands: &[NodeId]) -> Vec<Elem> {
        let shape = &self.source.node(id).shape;
        let outputs = shape.last().copied().unwrap_or(1);
        let count: usize = shape.iter().product();
        let terms = &operands[..operands.len() - 1];
        let w = Arc::new(concatenated_weights(self.source, terms));
        let bias_node = operands[operands.len() - 1];
        let bias_map = broadcast_map(&self.source.node(bias_node).shape, shape);
        let bias: Vec<f64> = self.source.constant(bias_node).map(|b| b.iter().copied().collect()).unwrap_or_default();
        let flags = self.demand[&id].clone();
        let mut result = Vec::with_capacity(count);
        for row in 0..count / outputs.max(1) {
            if !flags[row * outputs..(row + 1) * outputs].iter().any(|f| *f) {
                result.extend(vec![Elem::Undemanded; outputs]);
                continue;
            }
            let mut x = Vec::with_capacity(w.ncols());
            for term in terms.chunks(2) {
                let k = self.source.node(term[0]).shape.last().copied().unwrap_or(1);
                x.extend((0..k).map(|c| self.elem(term[0], row * k + c)));
            }
            let shift: Vec<f64> = (0..outputs).map(|m| bias[bias_map[row * outputs + m]]).collect();
            result.extend(self.cache.apply(id.index() as u64, &w, &x, &shift));
        }
        result
    }

    fn add_elements(&mut self, id: NodeId, operands: &[NodeId]) -> Vec<Elem> {
        let shape = &self.source.node(id).shape;
        let maps: Vec<Vec<usize>> =
            operands.iter().map(|&o| broadcast_map(&self.source.node(o).shape, shape)).collect();
        let sums = (0..maps[0].len())
            .map(|i| (0.0, operands.iter().zip(&maps).map(|(&o, map)| (1.0, self.elem(o, map[i]))).collect()))
            .collect();
        combine(sums)
    }

    fn reduce(&mut self, id: NodeId, operand: NodeId, axis: usize, mean: bool) -> Vec<Elem> {
        let input = &self.source.node(operand).shape;
        let inner: usize = input[axis + 1..].iter().product();
        let n = input[axis];
        let factor = if mean { 1.0 / n as f64 } else { 1.0 };
        let sums: Vec<Sum> = (0..self.demand[&id].len())
            .map(|i| {
                let base = (i / inner) * n * inner + i % inner;
                (0.0, (0..n).map(|a| (factor, self.elem(operand, base + a * inner))).collect())
            })
            .collect();
        combine(sums)
    }

    fn unary(&mut self, id: NodeId, chain: &UnaryChain, operand: NodeId) -> Vec<Elem> {
        let elems: Vec<Elem> = (0..self.demand[&id].len()).map(|i| self.elem(operand, i)).collect();
        let wanted: Vec<bool> = elems.iter().zip(&self.demand[&id]).map(|(e, d)| *d && e.is_private()).collect();
        let mut result: Vec<Elem> = elems
            .iter()
            .map(|e| if let Elem::Const(v) = e { Elem::Const(chain.apply(*v)) } else { Elem::Undemanded })
            .collect();
        if !wanted.iter().any(|w| *w) {
            return result;
        }
        let found: Vec<usize> = (0..wanted.len()).filter(|&i| wanted[i]).collect();
        let variate = self.plans.variates.get(&id).copied();
        let positions = if variate.is_some() { 2 * self.size } else { self.size };
        let keyswitch = self.argument(operand, positions, variate.as_ref(), &wanted);
        let function = LookUp { chain: chain.clone(), slope: variate.map_or(0.0, |v| v.slope) };
        let range = |&i: &usize| match &variate {
            Some(v) => variate::extremes(&function, v.reached(self.range(operand, i))),
            None => self.range(id, i),
        };
        let ranges: Vec<(f64, f64)> = found.iter().map(range).collect();
        let pbs = self.add(id, "pbs", HeOp::Pbs { function }, &ranges, &[keyswitch]);
        self.look_ups.insert(id, pbs);
        let atoms = (0..found.len() as u32).map(|index| Atom { node: pbs, index });
        match variate {
            Some(v) => {
                let looked_up: Vec<(&Elem, Atom)> = found.iter().map(|&i| &elems[i]).zip(atoms).collect();
                found.iter().zip(with_lines(v.slope, &looked_up)).for_each(|(&i, elem)| result[i] = elem);
            }
            None => found.iter().zip(atoms).for_each(|(&i, atom)| result[i] = Elem::Atom(atom)),
        }
        result
    }

    /// The keyswitch of the wanted elements of a tensor, to be looked up with `positions` positions.
    fn argument(&mut self, id: NodeId, positions: usize, variate: Option<&Variate>, wanted: &[bool]) -> NodeId {
        let key = (id, positions, variate.map_or(0, |v| v.reach.to_bits()), wanted.to_vec());
        if let Some(&known) = self.arguments.get(&key) {
            return known;
        }
        let elements: Vec<usize> = (0..wanted.len()).filter(|&i| wanted[i]).collect();
        let domain = Domain::new(positions);
        let ranges: Vec<(f64, f64)> =
            elements.iter().map(|&i| variate.map_or(self.range(id, i), |v| v.reached(self.range(id, i)))).collect();
        let atoms = self.materialise(id, &elements, &ranges, Purpose::Argument { domain });
        let (operands, gather) = addresses(&atoms.into_iter().map(Some).collect::<Vec<_>>());
        let op = HeOp::Keyswitch { gather: Arc::new(gather), domain };
        let keyswitch = self.add(id, "keyswitch", op, &ranges, &operands);
        self.arguments.insert(key, keyswitch);
        keyswitch
    }

    /// Computes elements of a tensor, in these ranges, as ciphertexts with an encoding made for `purpose`.
    fn materialise(&mut self, id: NodeId, elements: &[usize], ranges: &[(f64, f64)], purpose: Purpose) -> Vec<Atom> {
        let range_of: BTreeMap<usize, (f64, f64)> = elements.iter().copied().zip(ranges.iter().copied()).collect();
        let mut groups: Vec<(Option<usize>, Vec<usize>)> = Vec::new();
        let mut group_of: BTreeMap<usize, usize> = BTreeMap::new();
        for &i in elements {
            match &self.elems[&id][i] {
                Elem::Row(block, _) => {
                    let pointer = Arc::as_ptr(block) as usize;
                    let group = *group_of.entry(pointer).or_insert_with(|| {
                        groups.push((Some(pointer), Vec::new()));
                        groups.len() - 1
                    });
                    groups[group].1.push(i);
                }
                Elem::Atom(_) | Elem::Const(_) | Elem::Undemanded => groups.push((None, vec![i])),
            }
        }
        let mut buckets: BTreeMap<(usize, usize), Bucket> = BTreeMap::new();
        for (_, members) in &groups {
            self.bucket_group(id, members, &range_of, &mut buckets);
        }
        let mut atom_of: BTreeMap<usize, Atom> = BTreeMap::new();
        for ((outputs, operands), bucket) in buckets {
            let node = self.linear_node(id, purpose, outputs, operands, &bucket);
            for (index, &element) in bucket.elements.iter().enumerate() {
                atom_of.insert(element, Atom { node, index: index as u32 });
            }
        }
        elements.iter().map(|i| atom_of[i]).collect()
    }

    fn bucket_group(
        &self,
        id: NodeId,
        members: &[usize],
        range_of: &BTreeMap<usize, (f64, f64)>,
        buckets: &mut BTreeMap<(usize, usize), Bucket>,
    ) {
        let elems = &self.elems[&id];
        let (atoms, matrix, shift): (Vec<Atom>, Vec<f64>, Vec<f64>) = match &elems[members[0]] {
            Elem::Row(block, _) => {
                let (mut matrix, mut shift) = (Vec::new(), Vec::new());
                for &i in members {
                    if let Elem::Row(_, r) = &elems[i] {
                        matrix.extend(block.matrix.row(*r as usize));
                        shift.push(block.shift[*r as usize]);
                    }
                }
                (block.atoms.clone(), matrix, shift)
            }
            Elem::Atom(atom) => (vec![*atom], vec![1.0], vec![0.0]),
            Elem::Const(value) => (vec![], vec![], vec![*value]),
            Elem::Undemanded => (vec![], vec![], vec![0.0]),
        };
        let bucket = buckets.entry((members.len(), atoms.len())).or_default();
        let ranges: Vec<(f64, f64)> = members.iter().map(|i| range_of[i]).collect();
        let mut signature = matrix.clone();
        signature.extend(ranges.iter().flat_map(|(lo, hi)| [*lo, *hi]));
        signature.extend(atoms.iter().map(|a| magnitude(self.atom_range(*a))));
        signature.extend(atoms.iter().map(|a| a.node.index() as f64));
        bucket.push(&atoms, &matrix, signature);
        bucket.bias.extend(shift);
        bucket.ranges.extend(ranges);
        bucket.elements.extend(members);
    }

    fn atom_range(&self, atom: Atom) -> (f64, f64) {
        let ranges = self.target.node(atom.node).facts.ranges.as_ref();
        ranges.map_or((-1.0, 1.0), |r| r.of(atom.index as usize))
    }

    fn linear_node(
        &mut self,
        id: NodeId,
        purpose: Purpose,
        outputs: usize,
        operands: usize,
        bucket: &Bucket,
    ) -> NodeId {
        let (sources, gather) = addresses(&bucket.gather.iter().map(|a| Some(*a)).collect::<Vec<_>>());
        let map = HeLinear {
            outputs,
            operands,
            gather,
            set: bucket.set.clone(),
            weights: bucket.weights.clone(),
            bias: bucket.bias.clone(),
        };
        let suffix = match purpose {
            Purpose::Argument { .. } => "argument",
            Purpose::Packed => "operand",
            Purpose::Output => "result",
        };
        let op = HeOp::Linear { map: Arc::new(map), purpose };
        self.add(id, suffix, op, &bucket.ranges, &sources)
    }

    fn multiply(&mut self, id: NodeId, operands: &[NodeId]) -> Vec<Elem> {
        let shape = self.source.node(id).shape.clone();
        let maps: Vec<Vec<usize>> =
            operands.iter().map(|&o| broadcast_map(&self.source.node(o).shape, &shape)).collect();
        let flags = self.demand[&id].clone();
        let mut sums: Vec<Sum> = vec![(0.0, Vec::new()); flags.len()];
        let mut encrypted = Vec::new();
        for i in (0..flags.len()).filter(|&i| flags[i]) {
            let (a, b) = (self.elem(operands[0], maps[0][i]), self.elem(operands[1], maps[1][i]));
            match (&a, &b) {
                (Elem::Const(x), _) => sums[i].1.push((*x, b)),
                (_, Elem::Const(y)) => sums[i].1.push((*y, a)),
                _ => encrypted.push(i),
            }
        }
        if !encrypted.is_empty() {
            // The operand with fewer elements is packed, one to a GLWE, and rotated by the other.
            let fewer_left = self.source.node(operands[0]).shape.iter().product::<usize>()
                < self.source.node(operands[1]).shape.iter().product::<usize>();
            let (x, y) = if fewer_left { (1, 0) } else { (0, 1) };
            self.rotate_rows(id, &encrypted, (operands[x], &maps[x]), (operands[y], &maps[y]), &mut sums);
        }
        combine(sums)
    }

    /// Element-wise products x∘y of encrypted elements, y packed one to a GLWE.
    fn rotate_rows(
        &mut self,
        id: NodeId,
        out: &[usize],
        (x, x_map): (NodeId, &[usize]),
        (y, y_map): (NodeId, &[usize]),
        sums: &mut [Sum],
    ) {
        let mut schedule = Schedule::default();
        let mut pack_of: BTreeMap<usize, usize> = BTreeMap::new();
        for &i in out {
            let pack = *pack_of.entry(y_map[i]).or_insert_with(|| {
                schedule.packs.push(vec![y_map[i]]);
                schedule.packs.len() - 1
            });
            schedule.rotations.push(super::products::Rotation { x: x_map[i], pack, out: vec![i] });
        }
        self.emit_products(id, x, y, 1, &schedule, sums);
    }

    fn matmul(&mut self, id: NodeId, operands: &[NodeId]) -> Vec<Elem> {
        let shape = MatMulShape::new(&self.source.node(operands[0]).shape, &self.source.node(operands[1]).shape);
        let flags = self.demand[&id].clone();
        let mut sums: Vec<Sum> = vec![(0.0, Vec::new()); flags.len()];
        self.public_products(&shape, operands, &flags, &mut sums);
        let private = |o: NodeId| self.elems.get(&o).map(|e| e.iter().map(Elem::is_private).collect::<Vec<_>>());
        let (Some(left), Some(right)) = (private(operands[0]), private(operands[1])) else { return combine(sums) };
        let plan = self.plans.products.get(&id).copied().unwrap_or_default();
        let schedule = Schedule::new(&shape, plan, &left, &right, &flags);
        if schedule.rotations.is_empty() {
            return combine(sums);
        }
        let (x, y) = match plan.rotate {
            Rotate::Left => (operands[0], operands[1]),
            Rotate::Right => (operands[1], operands[0]),
        };
        let slots = plan.external.map_or(plan.slots, |_| schedule.widest());
        let (rotated, packed, product) = self.emit_products(id, x, y, slots, &schedule, &mut sums);
        let external = [(Rotate::Left, operands[1]), (Rotate::Right, operands[0])];
        let external = external.into_iter().filter(|&(rotate, y)| {
            let plan = ProductPlan { rotate, slots: 1, external: Some(1) };
            self.can_sum(y, &Schedule::new(&shape, plan, &left, &right, &flags))
        });
        let site = ProductSite {
            plan,
            rotated,
            packed,
            product,
            external: external.map(|(rotate, _)| rotate).collect(),
            shape,
            left_private: left,
            right_private: right,
            demanded: flags,
        };
        self.products.insert(id, site);
        combine(sums)
    }

    /// Products with a public factor are linear.
    fn public_products(&self, shape: &MatMulShape, operands: &[NodeId], flags: &[bool], sums: &mut [Sum]) {
        for b in 0..shape.batch {
            for i in 0..shape.m {
                for j in (0..shape.n).filter(|&j| flags[shape.out(b, i, j)]) {
                    let sum = &mut sums[shape.out(b, i, j)];
                    for c in 0..shape.k {
                        let left = self.elem(operands[0], shape.left(b, i, c));
                        let right = self.elem(operands[1], shape.right(b, c, j));
                        match (left, right) {
                            (Elem::Const(v), other) | (other, Elem::Const(v)) if v != 0.0 => sum.1.push((v, other)),
                            _ => {}
                        }
                    }
                }
            }
        }
    }

    /// Keyswitches x, packs y, rotates, and adds the products to the sums.
    fn emit_products(
        &mut self,
        id: NodeId,
        x: NodeId,
        y: NodeId,
        slots: usize,
        schedule: &Schedule,
        sums: &mut [Sum],
    ) -> (NodeId, NodeId, NodeId) {
        let mut wanted = vec![false; self.elems[&x].len()];
        schedule.rotations.iter().for_each(|r| wanted[r.x] = true);
        let external = self.plans.products.get(&id).and_then(|p| p.external);
        let positions = external.map_or(self.size / slots, |rotations| external::entries(self.size, rotations));
        let keyswitch = self.argument(x, positions, None, &wanted);
        let number: Vec<usize> = wanted
            .iter()
            .scan(0, |n, w| {
                let now = *n;
                *n += usize::from(*w);
                Some(now)
            })
            .collect();
        let (pack, pack_ranges) = self.pack(y, slots, schedule);
        let leaders = schedule.leaders();
        let mut ranges = Vec::with_capacity(leaders.len() * slots);
        for rotation in &leaders {
            let packed = &pack_ranges[rotation.pack * slots..(rotation.pack + 1) * slots];
            ranges.extend(self.product_ranges(id, rotation, packed));
        }
        let op = HeOp::LutProduct {
            chain: UnaryChain::default(),
            argument: Arc::new(schedule.rotations.iter().map(|r| number[r.x] as u32).collect()),
            accumulator: Arc::new(schedule.rotations.iter().map(|r| r.pack as u32).collect()),
            slots,
            sums: (!schedule.sums.is_empty()).then(|| Arc::new(schedule.sums.clone())),
        };
        let product = self.add(id, "product", op, &ranges, &[keyswitch, pack]);
        for (group, rotation) in leaders.iter().enumerate() {
            for (slot, &out) in rotation.out.iter().enumerate() {
                let atom = Atom { node: product, index: (group * slots + slot) as u32 };
                sums[out].1.push((1.0, Elem::Atom(atom)));
            }
        }
        (keyswitch, pack, product)
    }

    /// Whether sums of external products have one scale for each slot: the ranges of what is packed for their terms differ by a factor for each term.
    fn can_sum(&self, y: NodeId, schedule: &Schedule) -> bool {
        let magnitudes = |pack: usize| -> Vec<Option<f64>> {
            let of = |&e: &usize| match &self.elems[&y][e] {
                Elem::Atom(atom) => Some(magnitude(self.atom_range(*atom))),
                Elem::Row(..) => Some(magnitude(self.range(y, e))),
                Elem::Const(_) | Elem::Undemanded => None,
            };
            schedule.packs[pack].iter().map(of).collect()
        };
        let mut first = 0;
        schedule.widest() <= self.size
            && schedule.sums.iter().all(|&terms| {
                let packs = first..first + terms as usize;
                first = packs.end;
                let mut patterns = schedule.rotations[packs].iter().map(|r| magnitudes(r.pack));
                let Some(pattern) = patterns.next() else { return true };
                patterns.all(|other| proportional(&pattern, &other))
            })
    }

    /// Magnitudes that decide the scales of a rotation's products. One table serves all slots, so
    /// scale(y_j) ÷ scale(product_j) must be the same for all j: the result's own range where that holds, else y's.
    fn product_ranges(
        &self,
        id: NodeId,
        rotation: &super::products::Rotation,
        packed: &[(f64, f64)],
    ) -> Vec<(f64, f64)> {
        let filled = rotation.out.len();
        let results: Vec<f64> = rotation.out.iter().map(|&o| magnitude(self.range(id, o))).collect();
        let factors: Vec<f64> = packed[..filled].iter().map(|&p| magnitude(p)).collect();
        let uniform = |v: &[f64]| v.windows(2).all(|w| w[0].to_bits() == w[1].to_bits());
        let pattern = if uniform(&results) && uniform(&factors) { results } else { factors };
        let mut ranges: Vec<(f64, f64)> = pattern.iter().map(|m| (-m, *m)).collect();
        let last = ranges.last().copied().unwrap_or((-1.0, 1.0));
        ranges.resize(packed.len(), last);
        ranges
    }

    fn pack(&mut self, y: NodeId, slots: usize, schedule: &Schedule) -> (NodeId, Vec<(f64, f64)>) {
        let mut elements: Vec<usize> = schedule.packs.iter().flatten().copied().collect();
        elements.sort_unstable();
        elements.dedup();
        let rows: Vec<usize> =
            elements.iter().copied().filter(|&e| matches!(self.elems[&y][e], Elem::Row(..))).collect();
        let row_ranges: Vec<(f64, f64)> = rows.iter().map(|&i| self.range(y, i)).collect();
        let made = self.materialise(y, &rows, &row_ranges, Purpose::Packed);
        let made: BTreeMap<usize, Atom> = rows.into_iter().zip(made).collect();
        let atom = |e: usize| match &self.elems[&y][e] {
            Elem::Atom(atom) => Some(*atom),
            _ => made.get(&e).copied(),
        };
        let mut gather = Vec::new();
        let mut ranges = Vec::new();
        for pack in &schedule.packs {
            let atoms: Vec<Option<Atom>> = (0..slots).map(|s| pack.get(s).and_then(|&e| atom(e))).collect();
            let filler = atoms.first().copied().flatten().map_or((-1.0, 1.0), |a| self.atom_range(a));
            ranges.extend(atoms.iter().map(|a| a.map_or(filler, |a| self.atom_range(a))));
            gather.extend(atoms);
        }
        let (operands, gather) = addresses(&gather);
        let op = HeOp::Pack { gather: Arc::new(gather), slots };
        (self.add(y, "pack", op, &ranges, &operands), ranges)
    }

    fn outputs(&mut self) {
        for (name, id) in &self.source.outputs {
            let elements: Vec<usize> = (0..self.demand[id].len()).collect();
            let ranges: Vec<(f64, f64)> = elements.iter().map(|&i| self.range(*id, i)).collect();
            let atoms = self.materialise(*id, &elements, &ranges, Purpose::Output);
            let (operands, gather) = addresses(&atoms.into_iter().map(Some).collect::<Vec<_>>());
            let output = self.add(*id, "decrypt", HeOp::Decrypt { gather: Arc::new(gather) }, &ranges, &operands);
            self.target.outputs.push((name.clone(), output));
        }
    }
}

/// Whether numbers are there in the same places, and in one proportion.
fn proportional(a: &[Option<f64>], b: &[Option<f64>]) -> bool {
    let mut ratio: Option<f64> = None;
    a.len() == b.len()
        && a.iter().zip(b).all(|pair| match pair {
            (Some(a), Some(b)) => {
                let known = *ratio.get_or_insert(a / b);
                (a / b / known - 1.0).abs() < 1e-9
            }
            (None, None) => true,
            _ => false,
        })
}

/// Weights of all terms side by side: [outputs, Σ inputs].
fn concatenated_weights(graph: &Graph, terms: &[NodeId]) -> Array2<f64> {
    let views: Vec<_> = terms
        .chunks(2)
        .filter_map(|t| graph.constant(t[1])?.view().into_dimensionality::<ndarray::Ix2>().ok())
        .collect();
    ndarray::concatenate(ndarray::Axis(1), &views).unwrap_or_default().as_standard_layout().into_owned()
}

/// Turns atoms into operands and addresses by port, operands in order of first appearance.
fn addresses(atoms: &[Option<Atom>]) -> (Vec<NodeId>, Vec<Address>) {
    let mut operands: Vec<NodeId> = Vec::new();
    let mut port_of: BTreeMap<NodeId, u32> = BTreeMap::new();
    let gather = atoms
        .iter()
        .map(|atom| {
            let Some(atom) = atom else { return Address::ABSENT };
            let port = *port_of.entry(atom.node).or_insert_with(|| {
                operands.push(atom.node);
                operands.len() as u32 - 1
            });
            Address { port, index: atom.index }
        })
        .collect();
    (operands, gather)
}
