//! Chooses the encoding of every ciphertext, and with it the integer weights of every linear map.
//!
//! A look-up argument must fill the torus interval of its look-up, so its scale follows from its range. Everything
//! else has one free amplitude: inputs, outputs of look-ups and products, packed operands. A large amplitude drowns
//! less in noise; a small one leaves room for large, finely rounded integer weights behind it. Every source of error is a
//! product of powers of those amplitudes, weighted by what it does to the outputs (see
//! [`sensitivity`](super::sensitivity)), so the best amplitudes solve a geometric program.
//!
//! The terms, with s = scale = range magnitude × amplitude variable (value per turn of the torus), g = squared gradient:
//!
//! | error | variance at the outputs |
//! |---|---|
//! | encryption, bootstrap, product output noise ε | g·ε²·s² |
//! | weights rounded | E(∂out/∂w)²·s_out²/(12·s_x²), over all uses of a weight |
//! | argument widened to make equal weights exact | g·(σ_ks² + σ_ms²)·s_out²·(s_out/(w·s_x))² |
//! | packing noise of a slot | g·σ²·s_y² |
//! | packing noise between slots, through table P | g·σ²·m·Σ f²·s_y² |
//! | external products, noise of the GGSWs, over the terms of a sum | g·ε²·s² |
//! | external products, what the gadget rounds off a slot | g·σ²·s_y² |
//! | table of a product rounded | E(∂out/∂f)²·s_out²/(12·s_y²), over all slots |
//! | argument noise (constant) | g·(σ_ks² + σ_ms²)·s² |
//!
//! Rounding a weight shifts the output's mean by a known amount, which goes into the bias; only the operand's variance is
//! left. Where all weights of a sum are equal (scores, contexts, sums of exponentials) rounding errors would add up
//! coherently, so they are not rounded: the argument's range is widened a little until the common weight is an
//! integer, and a second summand (the shift of a softmax) gets the amplitude that makes its weight one too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use thex_circuit::Encoding;
use thex_ir::he::{Domain, Purpose, sum_of_products};
use thex_ir::{Address, Graph, HeLinear, HeOp, NodeId, Op, Stage};

use super::insert_bootstraps::magnitude;
use super::nearest_plane::{Observed, round_sets};
use super::sensitivity::{LEAST_PRECISION, Rounding, Sensitivity, analyse, rounding};
use super::solver::{Term, minimise};
use super::{OUTPUT_FILL, guard, relative_noise, usable, variate};
use crate::error::{PassError, Problem, Result};
use crate::options::PassOption;
use crate::pass::{ErrorSource, Pass, PassCx};

/// Variance of rounding to the nearest integer.
const ROUNDING: f64 = 1.0 / 12.0;

/// Largest integer weight that the pass emits.
const MAX_WEIGHT: f64 = (1_u64 << 30) as f64;

/// See the module.
pub struct InsertRescale {
    /// Whether arguments are widened until the equal weights of a sum are integers.
    pub exact_sums: bool,
    /// Whether weights are rounded together, so that their errors cancel on calibration values.
    pub nearest_plane: bool,
}

impl Default for InsertRescale {
    fn default() -> Self {
        Self { exact_sums: true, nearest_plane: true }
    }
}

impl Pass for InsertRescale {
    fn name(&self) -> &'static str {
        "insert-rescale"
    }

    fn description(&self) -> &'static str {
        "choose the encoding of every ciphertext and round linear maps to integers, for the least error at the outputs"
    }

    fn source(&self) -> &'static str {
        include_str!("insert_rescale.rs")
    }

    fn options(&mut self) -> Vec<PassOption<'_>> {
        let help = "widen sums of equal weights until those are integers, instead of rounding them";
        let plane = "round the weights of a row together, so that errors cancel on calibration values";
        vec![
            PassOption::switch("exact-sums", &mut self.exact_sums, help),
            PassOption::switch("nearest-plane", &mut self.nearest_plane, plane),
        ]
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        let analysis = cx.analysis.clone().map_or_else(|| Analysis::new(graph, cx).map(Arc::new), Ok)?;
        let Analysis { sensitivity, floored, rounding } = &*analysis;
        let mut guarded = Scaling::new(graph, cx, floored, rounding);
        guarded.collect();
        let amplitudes = minimise(&guarded.terms, &guarded.bounds);
        let mut problem = Scaling::new(graph, cx, sensitivity, rounding);
        problem.collect();
        let total: f64 = problem.terms.iter().map(|t| t.value(&amplitudes)).sum::<f64>() + problem.constant;
        let shares = problem.shares(&amplitudes);
        let sources = problem.sources(&amplitudes);
        let variables = problem.variables;
        let predicted = (total / sensitivity.outputs.max(1) as f64).sqrt();
        cx.predicted_output_error = Some(predicted);
        cx.note(format!(
            "modelled output error {predicted:.4} rms, outputs spread {:.4}; {shares}",
            sensitivity.output_spread
        ));
        for source in sources.iter().take(LISTED) {
            let share = 100.0 * source.variance / predicted.powi(2);
            cx.note(format!("{share:.1} % of the error: {} at {}", source.kind, source.node));
        }
        cx.error_sources = sources;
        assign_encodings(graph, cx, &variables, &amplitudes);
        if self.exact_sums {
            let sums = snap_sums(graph, cx.parameters.positions() as f64);
            cx.count("exact-sums", sums.exact);
            sums.rounded.iter().for_each(|(name, rows)| {
                cx.note(format!(
                    "{name}: {rows} sums of equal weights are rounded, since their weight would be less than 1"
                ))
            });
        }
        centre_full(graph, cx.parameters.polynomial_size.0);
        let observed = if self.nearest_plane { Some(Observed::new(graph, cx)?) } else { None };
        round_weights(graph, sensitivity, observed.as_ref())?;
        noise_bits(graph, cx);
        cx.analysis = Some(analysis);
        graph.stage = Stage::Placed;
        cx.count("amplitudes", amplitudes.len() as u64);
        Ok(true)
    }
}

/// What [`ErrorSource::kind`] says of the noise of external products.
pub(super) const EXTERNAL_NOISE: &str = "external noise";

/// Sources of error of a lowered graph at its best amplitudes, as variances of an output.
pub(super) fn error_sources(graph: &Graph, cx: &PassCx, analysis: &Analysis) -> Vec<ErrorSource> {
    let Analysis { sensitivity, floored, rounding } = analysis;
    let mut guarded = Scaling::new(graph, cx, floored, rounding);
    guarded.collect();
    let amplitudes = minimise(&guarded.terms, &guarded.bounds);
    let mut problem = Scaling::new(graph, cx, sensitivity, rounding);
    problem.collect();
    problem.sources(&amplitudes)
}

/// Weights that differ by no more than this, relatively, are equal.
const EQUAL: f64 = 1e-9;

/// What errors and rounding do to the outputs of a lowered graph.
#[derive(Clone, Debug)]
pub struct Analysis {
    pub(super) sensitivity: Sensitivity,
    /// With the floor under its gradients.
    pub(super) floored: Sensitivity,
    pub(super) rounding: Rounding,
}

impl Analysis {
    /// Runs the graph backwards on calibration samples.
    pub(super) fn new(graph: &Graph, cx: &PassCx) -> Result<Self> {
        let sensitivity = analyse(graph, cx)?;
        let budget = (FLOORED_ERROR * sensitivity.output_spread).powi(2) * sensitivity.outputs as f64;
        let floored = sensitivity.floored(budget, LEAST_PRECISION);
        let rounding = rounding(graph, cx, &floored, &|id, i| base_scale(graph, cx, id, i))?;
        Ok(Self { sensitivity, floored, rounding })
    }

    /// The same for a graph whose ranges have changed.
    pub(super) fn with_widths_of(&self, graph: &Graph) -> Self {
        let mut changed = self.clone();
        changed.sensitivity.set_widths(graph);
        changed.floored.set_widths(graph);
        changed
    }
}

/// The error budget, relative to the outputs' spread, that the floor under the gradients refers to.
const FLOORED_ERROR: f64 = 0.06;

/// Largest amplitude variable of an input.
pub(super) const MOST_OF_INPUTS: f64 = (1_u64 << 20) as f64;

/// Largest amplitude variable of a value that is born with noise of this variance: of full magnitude, it stays 16 deviations above it.
pub(super) fn most_amplitude(variance: f64) -> f64 {
    (16.0 * variance.sqrt()).recip()
}

/// The geometric program under construction.
pub(super) struct Scaling<'a> {
    graph: &'a Graph,
    cx: &'a PassCx,
    sensitivity: &'a Sensitivity,
    rounding: &'a Rounding,
    /// Variable of each node with a free amplitude.
    variables: BTreeMap<NodeId, usize>,
    pub(super) bounds: Vec<(f64, f64)>,
    pub(super) terms: Vec<Term>,
    pub(super) kinds: Vec<(&'static str, NodeId)>,
    /// Errors that no amplitude changes, by node.
    fixed: Vec<(NodeId, f64)>,
    pub(super) constant: f64,
}

/// Scale of an element at amplitude 1: its range's magnitude, or the fixed scale.
fn base_scale(graph: &Graph, cx: &PassCx, id: NodeId, element: usize) -> f64 {
    let node = graph.node(id);
    let range = node.facts.ranges.as_ref().map_or((0.0, 0.0), |r| r.of(element));
    fixed_encoding(&node.op, range, cx).map_or_else(|| magnitude(range), |e| e.scale)
}

/// One table multiplies all slots of a pack, so what is packed together has one amplitude: for each such node, the first
/// of its group.
fn shared_amplitudes(graph: &Graph) -> BTreeMap<NodeId, NodeId> {
    let mut leader: BTreeMap<NodeId, NodeId> = BTreeMap::new();
    for id in graph.topological() {
        if !matches!(graph.node(id).op, Op::He(HeOp::Pack { .. })) {
            continue;
        }
        let operands = graph.operands(id);
        let groups: Vec<NodeId> = operands.iter().map(|o| leader.get(o).copied().unwrap_or(*o)).collect();
        let Some(&first) = groups.iter().min() else { continue };
        leader.values_mut().filter(|l| groups.contains(l)).for_each(|l| *l = first);
        leader.extend(operands.iter().map(|&o| (o, first)));
    }
    leader
}

/// Whether the scale of a node is free, rather than fixed by what it is looked up with or decrypted to.
fn is_free(op: &HeOp) -> bool {
    match op {
        HeOp::Encrypt | HeOp::Pbs { .. } | HeOp::LutProduct { .. } => true,
        HeOp::Linear { purpose, .. } => *purpose == Purpose::Packed,
        HeOp::Keyswitch { .. } | HeOp::Pack { .. } | HeOp::Decrypt { .. } => false,
    }
}

impl<'a> Scaling<'a> {
    pub(super) fn new(graph: &'a Graph, cx: &'a PassCx, sensitivity: &'a Sensitivity, rounding: &'a Rounding) -> Self {
        let shared = shared_amplitudes(graph);
        let mut variables: BTreeMap<NodeId, usize> = BTreeMap::new();
        let mut bounds = Vec::new();
        for id in graph.topological() {
            let Op::He(op) = &graph.node(id).op else { continue };
            if !is_free(op) {
                continue;
            }
            let leader = shared.get(&id).copied().unwrap_or(id);
            if let Some(&known) = variables.get(&leader) {
                variables.insert(id, known);
                continue;
            }
            variables.insert(leader, bounds.len());
            variables.insert(id, bounds.len());
            // A value of full magnitude stays within ±¼ of the torus.
            bounds
                .push((4.0, if *op == HeOp::Encrypt { MOST_OF_INPUTS } else { most_amplitude(cx.noise().bootstrap) }));
        }
        Self {
            graph,
            cx,
            sensitivity,
            rounding,
            variables,
            bounds,
            terms: Vec::new(),
            kinds: Vec::new(),
            fixed: Vec::new(),
            constant: 0.0,
        }
    }

    /// What the noise of all arguments adds, which no amplitude changes.
    pub(super) fn argument_noise_in_all(&self) -> f64 {
        self.fixed.iter().map(|(_, error)| error).sum()
    }

    fn base_scale(&self, id: NodeId, element: usize) -> f64 {
        base_scale(self.graph, self.cx, id, element)
    }

    fn push(&mut self, kind: &'static str, at: NodeId, coefficient: f64, up: Option<NodeId>, down: Option<NodeId>) {
        if coefficient <= 0.0 {
            return;
        }
        let variable = |id: Option<NodeId>, rises| Some((*self.variables.get(&id?)?, rises));
        let factors: Vec<(usize, bool)> = variable(up, true).into_iter().chain(variable(down, false)).collect();
        if factors.is_empty() {
            self.constant += coefficient;
        }
        self.terms.push(Term { coefficient: if factors.is_empty() { 0.0 } else { coefficient }, factors });
        self.kinds.push((kind, at));
    }

    pub(super) fn collect(&mut self) {
        for id in self.graph.topological() {
            let Op::He(op) = &self.graph.node(id).op else { continue };
            let noise = self.cx.noise();
            match op {
                HeOp::Encrypt => self.output_noise("encryption", id, noise.fresh),
                HeOp::Pbs { .. } => self.output_noise("output noise", id, noise.bootstrap),
                HeOp::Linear { map, purpose } => self.weight_rounding(id, map, *purpose),
                HeOp::Keyswitch { domain, .. } => self.argument_noise(id, *domain),
                HeOp::Pack { gather, .. } => {
                    self.packing_noise(id, gather, "packing", noise.packing);
                    if self.graph.users(id).iter().any(|(user, _)| self.graph.is_external_product(*user)) {
                        self.packing_noise(id, gather, "gadget rounding", noise.external_rounding);
                    }
                }
                HeOp::LutProduct { sums: Some(sums), .. } => {
                    // Sums of about as many products each.
                    let terms = sums.iter().copied().max().unwrap_or(0);
                    self.output_noise(EXTERNAL_NOISE, id, f64::from(terms) * noise.external);
                    self.product_noise(id, op, noise.packing);
                }
                HeOp::LutProduct { sums: None, .. } => {
                    self.output_noise("output noise", id, noise.bootstrap);
                    self.product_noise(id, op, noise.packing);
                }
                HeOp::Decrypt { .. } => {}
            }
        }
    }

    /// Bounds the amplitude variable of a node from below: an integer weight is at least 1.
    fn at_least(&mut self, id: NodeId, amplitude: f64) {
        let Some(&variable) = self.variables.get(&id) else { return };
        let (lo, hi) = &mut self.bounds[variable];
        *lo = lo.max(amplitude).min(*hi);
    }

    fn gradient(&self, id: NodeId) -> &'a [f64] {
        self.sensitivity.gradient.get(&id).map_or(&[], Vec::as_slice)
    }

    fn square(&self, id: NodeId) -> &'a [f64] {
        self.sensitivity.square.get(&id).map_or(&[], Vec::as_slice)
    }

    /// What the floor adds to the gradient of an element.
    fn floor(&self, id: NodeId, element: usize) -> f64 {
        self.sensitivity.floor.get(&id).map_or(0.0, |f| f[element])
    }

    fn output_noise(&mut self, kind: &'static str, id: NodeId, variance: f64) {
        let weighted: f64 = self.gradient(id).iter().enumerate().map(|(i, g)| g * self.base_scale(id, i).powi(2)).sum();
        self.push(kind, id, variance * weighted, Some(id), None);
    }

    fn argument_noise(&mut self, id: NodeId, domain: Domain) {
        let error = relative_noise(&self.cx.parameters, domain) * self.sensitivity.weighted_width(&id);
        self.constant += error;
        self.fixed.push((id, error));
    }

    fn packing_noise(&mut self, id: NodeId, gather: &[Address], kind: &'static str, variance: f64) {
        let operands = self.graph.operands(id);
        let mut by_source: BTreeMap<NodeId, f64> = BTreeMap::new();
        for (address, g) in gather.iter().zip(self.gradient(id)).filter(|(a, _)| **a != Address::ABSENT) {
            let source = operands[address.port as usize];
            let scale = self.base_scale(source, address.index as usize);
            *by_source.entry(source).or_default() += g * scale * scale;
        }
        for (source, weighted) in by_source {
            self.push(kind, id, variance * weighted, Some(source), None);
        }
    }

    fn weight_rounding(&mut self, id: NodeId, map: &HeLinear, purpose: Purpose) {
        let operands = self.graph.operands(id);
        let (m, k) = (map.outputs, map.operands);
        let gradient = self.gradient(id);
        let noise = match purpose {
            Purpose::Argument { domain } => self.cx.noise().extended_argument(domain.extension),
            Purpose::Packed | Purpose::Output => 0.0,
        };
        let mut rounded: BTreeSet<NodeId> = BTreeSet::new();
        let mut widened: BTreeMap<NodeId, f64> = BTreeMap::new();
        let mut least: Vec<(NodeId, f64)> = Vec::new();
        for (g, &set) in map.set.iter().enumerate() {
            let gather = &map.gather[g * k..(g + 1) * k];
            let weights = &map.weights[set as usize * m * k..(set as usize + 1) * m * k];
            for (row, o) in weights.chunks(k.max(1)).zip(g * m..(g + 1) * m) {
                let scale = self.base_scale(id, o);
                let out = gradient[o] * scale * scale;
                let summands = self.summands(row, gather, &operands);
                let widens = summands.first().filter(|s| noise > 0.0 && s.step.is_some()).map(|s| s.source);
                for summand in summands {
                    match summand.step.filter(|_| widens == Some(summand.source)) {
                        Some(step) => {
                            *widened.entry(summand.source).or_default() += noise * out * (scale / step).powi(2);
                            least.push((summand.source, scale / step));
                        }
                        None if widens.is_some() && summand.follows(self.graph) => {}
                        None => {
                            rounded.insert(summand.source);
                        }
                    }
                }
            }
        }
        least.into_iter().for_each(|(source, amplitude)| self.at_least(source, amplitude));
        for source in rounded {
            let of = |map: &BTreeMap<(NodeId, NodeId), f64>| map.get(&(id, source)).copied().unwrap_or(0.0);
            let floor = if self.sensitivity.floor.is_empty() { 0.0 } else { of(&self.rounding.floors) };
            self.push("weight rounding", id, ROUNDING * (of(&self.rounding.weights) + floor), Some(id), Some(source));
        }
        for (source, coefficient) in widened {
            self.push("widening", id, coefficient, Some(id), Some(source));
        }
    }

    /// The summands of a row of weights, with steps at amplitude 1.
    fn summands(&self, row: &[f64], gather: &[Address], operands: &[NodeId]) -> Vec<Summand> {
        summands(row, gather, operands, |source, i| self.base_scale(source, i))
    }

    fn product_noise(&mut self, id: NodeId, op: &HeOp, packing: f64) {
        let HeOp::LutProduct { chain, argument, accumulator, slots, sums } = op else { return };
        let group_of = sum_of_products(argument.len(), sums.as_ref());
        let operands = self.graph.operands(id);
        let (keyswitch, pack) = (operands[0], operands[1]);
        let Op::He(HeOp::Pack { gather, .. }) = &self.graph.node(pack).op else { return };
        let Op::He(HeOp::Keyswitch { domain, .. }) = &self.graph.node(keyswitch).op else { return };
        let pack_operands = self.graph.operands(pack);
        let ranges = self.graph.node(keyswitch).facts.ranges.as_ref();
        let gradient = self.gradient(id);
        let y_square = self.square(pack);
        let mut floor = 0.0;
        let mut leakage: BTreeMap<NodeId, f64> = BTreeMap::new();
        for (r, (&a, &p)) in argument.iter().zip(accumulator.iter()).enumerate() {
            let (lo, hi) = ranges.map_or((0.0, 0.0), |x| x.of(a as usize));
            let (f_lo, f_hi) = (chain.apply(lo), chain.apply(hi));
            let table_norm = domain.positions as f64 * (f_lo * f_lo + f_lo * f_hi + f_hi * f_hi) / 3.0;
            for s in 0..*slots {
                let address = gather[p as usize * slots + s];
                if address == Address::ABSENT {
                    continue;
                }
                let source = pack_operands[address.port as usize];
                let y_scale = self.base_scale(source, address.index as usize);
                let place = group_of[r] * slots + s;
                let (g, out) = (gradient[place], self.base_scale(id, place));
                let y = y_square[p as usize * slots + s] / (y_scale * y_scale);
                floor += self.floor(id, place) * out * out * y;
                if sums.is_some() {
                    continue;
                }
                *leakage.entry(source).or_default() += g * packing * *slots as f64 * table_norm * y_scale * y_scale;
            }
        }
        // What is packed together has one amplitude.
        let rounded = ROUNDING * (self.rounding.tables.get(&id).copied().unwrap_or(0.0) + floor);
        self.push("table rounding", id, rounded, Some(id), pack_operands.first().copied());
        for (source, coefficient) in leakage {
            self.push("packing leakage", id, coefficient, Some(source), None);
        }
    }

    /// Where the error comes from, in percent.
    fn shares(&self, amplitudes: &[f64]) -> String {
        let mut by_kind: BTreeMap<&str, f64> = BTreeMap::from([("argument noise", self.constant)]);
        for (term, (kind, _)) in self.terms.iter().zip(&self.kinds) {
            *by_kind.entry(kind).or_default() += term.value(amplitudes);
        }
        let total: f64 = by_kind.values().sum::<f64>().max(f64::MIN_POSITIVE);
        let parts: Vec<String> = by_kind.iter().map(|(k, v)| format!("{k} {:.1} %", 100.0 * v / total)).collect();
        parts.join(", ")
    }
}

impl Scaling<'_> {
    /// Every source of error, the largest first.
    fn sources(&self, amplitudes: &[f64]) -> Vec<ErrorSource> {
        let source = |variance: f64, kind: &'static str, id: NodeId| {
            let node = self.graph.node(id);
            ErrorSource { kind, node: node.name.clone(), variance: variance / self.sensitivity.outputs.max(1) as f64 }
        };
        let terms = self.terms.iter().zip(&self.kinds).map(|(t, (kind, id))| source(t.value(amplitudes), kind, *id));
        let fixed = self.fixed.iter().map(|(id, error)| source(*error, "argument noise", *id));
        let mut all: Vec<ErrorSource> = terms.chain(fixed).filter(|s| s.variance > 0.0).collect();
        all.sort_by(|a, b| b.variance.total_cmp(&a.variance));
        all
    }
}

/// Sources of error that the log lists.
const LISTED: usize = 8;

/// The encoding of an element whose scale is not free.
fn fixed_encoding(op: &Op, (lo, hi): (f64, f64), cx: &PassCx) -> Option<Encoding> {
    let Op::He(HeOp::Linear { purpose, .. }) = op else { return None };
    // A constant element still needs a scale: give it a range of its own size.
    let width = if hi > lo { hi - lo } else { magnitude((lo, hi)) };
    match purpose {
        Purpose::Argument { domain } => {
            let scale = width / usable(&cx.parameters, *domain);
            let first = guard(&cx.parameters, *domain) / cx.parameters.positions() as f64;
            Some(Encoding { scale, offset: lo - scale * first })
        }
        Purpose::Output => Some(Encoding { scale: width / OUTPUT_FILL, offset: 0.5 * (lo + hi) }),
        Purpose::Packed => None,
    }
}

fn assign_encodings(graph: &mut Graph, cx: &PassCx, variables: &BTreeMap<NodeId, usize>, amplitudes: &[f64]) {
    for id in graph.topological() {
        let node = graph.node(id);
        let Some(ranges) = node.facts.ranges.clone() else { continue };
        if !matches!(&node.op, Op::He(op) if is_free(op) || matches!(op, HeOp::Linear { .. })) {
            continue;
        }
        let amplitude = variables.get(&id).map_or(1.0, |&v| amplitudes[v]);
        let encodings = (0..ranges.class.len())
            .map(|i| {
                let free = Encoding { scale: magnitude(ranges.of(i)) * amplitude, offset: 0.0 };
                fixed_encoding(&node.op, ranges.of(i), cx).unwrap_or(free)
            })
            .collect();
        graph.node_mut(id).facts.encodings = Some(Arc::new(encodings));
    }
}

/// What became of sums of equal weights.
#[derive(Default)]
struct Sums {
    /// Elements that were widened.
    exact: u64,
    /// Those whose weight would be less than 1, by node.
    rounded: BTreeMap<String, u64>,
}

/// Widens arguments until the common weight of their sums is an integer.
fn snap_sums(graph: &mut Graph, circle: f64) -> Sums {
    let mut sums = Sums::default();
    for id in graph.topological() {
        let Op::He(HeOp::Linear { map, purpose: Purpose::Argument { .. } }) = graph.node(id).op.clone() else {
            continue;
        };
        let operands = graph.operands(id);
        let (m, k) = (map.outputs, map.operands);
        for (g, &set) in map.set.iter().enumerate() {
            let gather = &map.gather[g * k..(g + 1) * k];
            let weights = &map.weights[set as usize * m * k..(set as usize + 1) * m * k];
            for (row, o) in weights.chunks(k.max(1)).zip(g * m..(g + 1) * m) {
                match snap_row(graph, (id, o), row, gather, &operands, circle) {
                    Some(true) => sums.exact += 1,
                    Some(false) => *sums.rounded.entry(graph.node(id).name.clone()).or_default() += 1,
                    None => {}
                }
            }
        }
    }
    sums
}

/// What a row of weights takes from one node.
struct Summand {
    source: NodeId,
    /// |w|·scale, if it is the same for all the operands.
    step: Option<f64>,
    operands: usize,
}

impl Summand {
    /// Whether it can be given the scale at which its weight is an integer: a look-up's table takes any, but the slots of a product share one,
    /// and inputs have other readers.
    fn follows(&self, graph: &Graph) -> bool {
        let look_up = matches!(graph.node(self.source).op, Op::He(HeOp::Pbs { .. }));
        self.step.is_some() && look_up && self.operands == 1 && graph.users(self.source).len() == 1
    }
}

/// The summands of a row of weights, the one with the most operands first.
fn summands(
    row: &[f64],
    gather: &[Address],
    operands: &[NodeId],
    scale: impl Fn(NodeId, usize) -> f64,
) -> Vec<Summand> {
    let mut summands: Vec<Summand> = Vec::new();
    for (w, address) in row.iter().zip(gather).filter(|(w, _)| **w != 0.0) {
        let source = operands[address.port as usize];
        let step = w.abs() * scale(source, address.index as usize);
        match summands.iter_mut().find(|s| s.source == source) {
            Some(known) => {
                known.step = known.step.filter(|c| (c / step - 1.0).abs() < EQUAL);
                known.operands += 1;
            }
            None => summands.push(Summand { source, step: Some(step), operands: 1 }),
        }
    }
    summands.sort_by_key(|s| std::cmp::Reverse(s.operands));
    summands
}

/// Widens one argument, whose weights are `row`. None where the weights are not equal, false where they would be less than 1.
fn snap_row(
    graph: &mut Graph,
    (id, o): (NodeId, usize),
    row: &[f64],
    gather: &[Address],
    operands: &[NodeId],
    circle: f64,
) -> Option<bool> {
    let scale = |source: NodeId, i: usize| graph.node(source).facts.encodings.as_ref().map_or(1.0, |e| e[i].scale);
    let summands = summands(row, gather, operands, scale);
    let Some(&Summand { source: first, step: Some(step), .. }) = summands.first() else { return None };
    let mut encodings = graph.node(id).facts.encodings.clone()?;
    let old = encodings[o];
    let weight = (step / old.scale * (1.0 + EQUAL)).floor();
    if weight < 1.0 {
        return Some(false);
    }
    let scale = step / weight;
    let positions = match &graph.node(id).op {
        Op::He(HeOp::Linear { purpose: Purpose::Argument { domain }, .. }) => domain.positions as f64,
        _ => return None,
    };
    // The middle of the domain keeps its value.
    let middle = 0.5 * positions / circle;
    let offset = old.offset + (old.scale - scale) * middle;
    Arc::make_mut(&mut encodings)[o] = Encoding { scale, offset };
    graph.node_mut(id).facts.encodings = Some(encodings);
    for summand in
        summands.iter().filter(|s| s.source != first && s.follows(graph)).map(|s| s.source).collect::<Vec<_>>()
    {
        snap_source(graph, summand, scale, row, gather, operands);
    }
    Some(true)
}

/// Gives a source that only this row reads the scale at which its weight is an integer.
fn snap_source(graph: &mut Graph, source: NodeId, out: f64, row: &[f64], gather: &[Address], operands: &[NodeId]) {
    let Some(mut encodings) = graph.node(source).facts.encodings.clone() else { return };
    for (w, address) in row.iter().zip(gather).filter(|(w, _)| **w != 0.0) {
        if operands[address.port as usize] == source {
            let encoding = &mut Arc::make_mut(&mut encodings)[address.index as usize];
            let weight = (w.abs() * encoding.scale / out).round().max(1.0);
            encoding.scale = weight * out / w.abs();
        }
    }
    graph.node_mut(source).facts.encodings = Some(encodings);
}

/// What is looked up over the full torus changes its sign from one half to the other around a constant: that is the offset of its encoding.
fn centre_full(graph: &mut Graph, size: usize) {
    for id in graph.topological() {
        let Op::He(HeOp::Pbs { function }) = &graph.node(id).op else { continue };
        let keyswitch = graph.operands(id)[0];
        let Op::He(HeOp::Keyswitch { gather, domain }) = &graph.node(keyswitch).op else { continue };
        let Some(mut encodings) = graph.node(id).facts.encodings.clone().filter(|_| domain.is_full(size)) else {
            continue;
        };
        let sources = graph.operands(keyswitch);
        for (encoding, address) in Arc::make_mut(&mut encodings).iter_mut().zip(gather.iter()) {
            let half = 0.5 * scale_of(graph, sources[address.port as usize], address.index as usize);
            encoding.offset = variate::centre(function, half);
        }
        graph.node_mut(id).facts.encodings = Some(encodings);
    }
}

fn round_weights(graph: &mut Graph, sensitivity: &Sensitivity, observed: Option<&Observed>) -> Result<()> {
    let mut problems = Vec::new();
    for id in graph.topological() {
        let Op::He(HeOp::Linear { map, .. }) = &graph.node(id).op else { continue };
        let mut integers = scaled_weights(graph, id, map);
        match observed {
            Some(observed) => {
                round_sets((graph, id, map), &mut integers, observed, sensitivity, &|node, i| scale_of(graph, node, i))
            }
            None => integers.iter_mut().for_each(|w| *w = w.round()),
        }
        if integers.iter().any(|w| w.abs() > MAX_WEIGHT || !w.is_finite()) {
            let help = "raise the calibration margin, or report this model";
            problems.push(Problem::new(graph, id, "an integer weight exceeds 2^30", help));
        }
        let correction = bias_correction(graph, id, map, &integers, sensitivity);
        let integers = integers.into_iter().map(|w| w as i32).collect();
        let facts = &mut graph.node_mut(id).facts;
        facts.integers = Some(Arc::new(integers));
        facts.bias_correction = Some(Arc::new(correction));
    }
    if problems.is_empty() { Ok(()) } else { Err(PassError::Infeasible(problems)) }
}

/// What rounding the weights takes from the mean of each output element, and what the offsets of operands add to it: phases stand for
/// values less their offset.
fn bias_correction(graph: &Graph, id: NodeId, map: &HeLinear, integers: &[f64], sensitivity: &Sensitivity) -> Vec<f64> {
    let operands = graph.operands(id);
    let scale = |node: NodeId, i: usize| graph.node(node).facts.encodings.as_ref().map_or(1.0, |e| e[i].scale);
    let (m, k) = (map.outputs, map.operands);
    let mut correction = vec![0.0; map.bias.len()];
    for (g, &set) in map.set.iter().enumerate() {
        for r in 0..m {
            let out = scale(id, g * m + r);
            let at = (set as usize * m + r) * k;
            for (c, address) in map.gather[g * k..(g + 1) * k].iter().enumerate() {
                if *address == Address::ABSENT {
                    continue;
                }
                let (source, i) = (operands[address.port as usize], address.index as usize);
                let mean = sensitivity.mean.get(&source).map_or(0.0, |v| v[i]);
                let effective = integers[at + c] * out / scale(source, i);
                let offset = graph.node(source).facts.encodings.as_ref().map_or(0.0, |e| e[i].offset);
                correction[g * m + r] += (map.weights[at + c] - effective) * mean + effective * offset;
            }
        }
    }
    correction
}

/// Value of one turn of the torus.
fn scale_of(graph: &Graph, node: NodeId, element: usize) -> f64 {
    graph.node(node).facts.encodings.as_ref().map_or(1.0, |e| e[element].scale)
}

/// Real weights in integer units; those of absent operands are 0.
fn scaled_weights(graph: &Graph, id: NodeId, map: &HeLinear) -> Vec<f64> {
    let operands = graph.operands(id);
    let scale = |node: NodeId, i: usize| scale_of(graph, node, i);
    let (m, k) = (map.outputs, map.operands);
    let mut integers = vec![0.0; map.weights.len()];
    let mut done = vec![false; map.weights.len() / (m * k).max(1)];
    for (g, &set) in map.set.iter().enumerate() {
        let set = set as usize;
        if k == 0 || std::mem::replace(&mut done[set], true) {
            continue;
        }
        for r in 0..m {
            let out = scale(id, g * m + r);
            for c in 0..k {
                let address = map.gather[g * k + c];
                if address == Address::ABSENT {
                    continue;
                }
                let at = (set * m + r) * k + c;
                let x = scale(operands[address.port as usize], address.index as usize);
                integers[at] = map.weights[at] * x / out;
            }
        }
    }
    integers
}

/// Modelled precision of each look-up argument: -log2(argument noise ÷ width of the range).
fn noise_bits(graph: &mut Graph, cx: &PassCx) {
    for id in graph.topological() {
        if let Op::He(HeOp::Keyswitch { domain, .. }) = graph.node(id).op {
            let bits = -0.5 * relative_noise(&cx.parameters, domain).log2();
            graph.node_mut(id).facts.noise_bits = Some(bits);
        }
    }
}
