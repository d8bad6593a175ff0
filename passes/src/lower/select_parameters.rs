//! Chooses the cryptographic parameters and the extension of every look-up: the cheapest under which the outputs keep to their error.
//!
//! The error of the outputs is a sum of terms (see [`insert-rescale`](super::InsertRescale)), each proportional to one noise of the
//! parameters or to none. So the graph is analysed once, and a set is judged by scaling the terms by its noises and solving
//! the geometric program of the amplitudes again, which takes milliseconds. Sets come from [`params::front`], cheapest first.
//!
//! One set serves the whole circuit, but not all look-ups want the same precision: a look-up of extension ν has its modulus switch finer by ν bits,
//! under the same keys, for 2^ν rotations (see `thex_circuit::instruction`). What is left of the error budget once a set's other noises are paid is
//! shared out among the look-ups, by what an error of each argument does to the outputs and by how many rotations read it. The keyswitch's noise
//! remains, so finer switches go with finer keyswitches; both are chosen together.
//!
//! Noisier sets than the standard one are not tried: errors are modelled to first order, and where outputs are saturated (a tanh, a sure
//! class) the model trusts a flatness that noise leaves. A BERT of 24 tokens: modelled 0.11, simulated 0.17.
//!
//! Where nothing keeps to the error that was asked for, the cheapest choice is taken that comes within a tenth of the least error of all.
//! Plans of products stay as `insert-bootstraps` made them for the standard set.
//!
//! `--parameters` settles the set; extensions are chosen all the same.

use std::collections::BTreeSet;
use std::sync::Arc;

use rayon::prelude::*;
use thex_circuit::instruction::MAX_EXTENSION;
use thex_circuit::{NoiseModel, Parameters};
use thex_ir::he::{Domain, Purpose};
use thex_ir::{Address, Graph, HeOp, NodeId, Op};

use super::budget::{Price, cheapest, least_error, total};
use super::insert_rescale::{Analysis, Scaling, most_amplitude};
use super::solver::{Term, minimise};
use super::{CONVERSION, relative_noise, rotations_of};
use crate::error::Result;
use crate::options::PassOption;
use crate::params::{self, Grid, Priced, Work};
use crate::pass::{Pass, PassCx};

/// See the module.
pub struct SelectParameters {
    /// Largest cost of a set with its extensions, as a multiple of the standard set's without.
    pub most_cost: f64,
    /// Largest ν.
    pub most_extension: usize,
}

impl Default for SelectParameters {
    fn default() -> Self {
        Self { most_cost: 1.5, most_extension: MAX_EXTENSION as usize }
    }
}

/// How near to the least possible error a set must come when none keeps to the goal.
const NEAR_LEAST: f64 = 1.1;

impl Pass for SelectParameters {
    fn name(&self) -> &'static str {
        "select-parameters"
    }

    fn description(&self) -> &'static str {
        "choose the cheapest cryptographic parameters under which the outputs keep to their error"
    }

    fn source(&self) -> &'static str {
        include_str!("select_parameters.rs")
    }

    fn options(&mut self) -> Vec<PassOption<'_>> {
        let cost = "largest cost of a parameter set with its extensions, as a multiple of the standard set's";
        let extension = "look-ups may have up to 2^this entries for a position, at as many rotations; 0 for backends that run no others";
        vec![
            PassOption::number("most-cost", &mut self.most_cost, 1.0..=64.0, cost),
            PassOption::count("most-extension", &mut self.most_extension, 0..=MAX_EXTENSION as usize, extension),
        ]
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        let analysis = Arc::new(Analysis::new(graph, cx)?);
        let forecast = Forecast::new(graph, cx, &analysis, self.most_extension as u32);
        let work = work(graph, cx.parameters.polynomial_size.0);
        let standard = params::cost(&Parameters::standard(), &work);
        let front = self.front(cx, &work);
        cx.count("sets", front.len() as u64);
        let goal = cx.precision.output_error * analysis.sensitivity.output_spread;
        let most = self.most_cost * standard.max(params::cost(&cx.parameters, &work));
        let Some(chosen) = choose(&front, &forecast, goal, most) else { return Ok(false) };
        cx.note(format!(
            "{}: modelled error {:.4}, {:.2} times the work of the standard set ({:.4})",
            chosen.set.parameters,
            chosen.error,
            chosen.cost / standard,
            forecast.plain_error(&forecast.from),
        ));
        if chosen.error > goal {
            cx.note(format!(
                "warning: nothing keeps to the error of {goal:.4} that was asked for (--output-error) at {} times the work of the standard parameters; \
                 `-x select-parameters:most-cost=3` allows 3 times",
                self.most_cost
            ));
        }
        let extended = extend(graph, &forecast.sites, &chosen.extensions, cx);
        let changed = extended || cx.parameters != chosen.set.parameters;
        cx.parameters = chosen.set.parameters;
        cx.analysis = Some(analysis);
        Ok(changed)
    }
}

/// What the parameters that would be chosen for a graph make of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Verdict {
    /// Milliseconds, as [`params::cost`] ranks sets.
    pub(super) cost: f64,
    /// Root mean square error of an output.
    pub(super) error: f64,
    /// What was asked for.
    goal: f64,
}

impl Verdict {
    /// Whether this is the better of two: the cheaper one, if both keep to the goal; else the one that does, or that errs less by more than a little.
    pub(super) fn beats(&self, other: &Self) -> bool {
        let near = self.goal.max(A_LITTLE * self.error.min(other.error));
        match (self.error <= near, other.error <= near) {
            (true, true) => self.cost < other.cost,
            (within, _) => within,
        }
    }
}

impl SelectParameters {
    /// What would be chosen for a lowered graph, by default.
    pub(super) fn verdict(&self, graph: &Graph, cx: &PassCx, analysis: &Analysis) -> Option<Verdict> {
        let forecast = Forecast::new(graph, cx, analysis, self.most_extension as u32);
        let work = work(graph, cx.parameters.polynomial_size.0);
        let goal = cx.precision.output_error * analysis.sensitivity.output_spread;
        let most =
            self.most_cost * params::cost(&Parameters::standard(), &work).max(params::cost(&cx.parameters, &work));
        let chosen = choose(&self.front(cx, &work), &forecast, goal, most)?;
        Some(Verdict { cost: chosen.cost, error: chosen.error, goal })
    }

    /// The sets that come into question.
    fn front(&self, cx: &PassCx, work: &Work) -> Vec<Priced> {
        if cx.parameters_fixed {
            return vec![Priced::new(cx.parameters, work)];
        }
        let mut front = params::front(&Grid::full(), work);
        let standard = NoiseModel::new(&Parameters::standard());
        front.retain(|p| p.argument <= standard.argument() && p.bootstrap <= standard.bootstrap);
        front
    }
}

/// A set with the extension of every site.
struct Chosen {
    set: Priced,
    extensions: Vec<u32>,
    cost: f64,
    error: f64,
}

/// The cheapest choice within the goal; else the cheapest of those near the least error. None costs more than `most`.
fn choose(front: &[Priced], forecast: &Forecast, goal: f64, most: f64) -> Option<Chosen> {
    let judged: Vec<(Priced, f64)> =
        front.par_iter().filter(|set| set.cost <= most).map(|set| (*set, forecast.without_arguments(set))).collect();
    let within = |goal: f64| {
        let all = judged.iter().filter_map(|(set, rest)| forecast.cheapest(set, *rest, goal));
        all.filter(|c| c.cost <= most).min_by(|a, b| a.cost.total_cmp(&b.cost))
    };
    within(goal).or_else(|| {
        let all = judged.iter().map(|(set, rest)| forecast.quietest(set, *rest, most));
        let quietest = all.min_by(|a, b| a.error.total_cmp(&b.error))?;
        within(NEAR_LEAST * quietest.error).filter(|c| c.cost <= quietest.cost).or(Some(quietest))
    })
}

/// What two plans may differ in error for the cheaper one to be taken, where neither keeps to the goal.
const A_LITTLE: f64 = 1.02;

/// What the graph does.
fn work(graph: &Graph, polynomial_size: usize) -> Work {
    let mut work = Work { rotations: 0.0, keyswitches: 0.0, packs: 0.0 };
    for id in graph.ids() {
        match &graph.node(id).op {
            Op::He(HeOp::Pbs { .. } | HeOp::LutProduct { .. }) => {
                work.rotations += rotations_of(graph, id, polynomial_size) as f64 + conversions(graph, id);
            }
            Op::He(HeOp::Keyswitch { gather, .. }) => work.keyswitches += gather.len() as f64,
            Op::He(HeOp::Pack { gather, .. }) => {
                work.packs += gather.iter().filter(|&&a| a != Address::ABSENT).count() as f64;
            }
            Op::He(HeOp::Encrypt | HeOp::Linear { .. } | HeOp::Decrypt { .. })
            | Op::Clear(_)
            | Op::Input
            | Op::Constant(_) => {}
        }
    }
    work
}

/// What the GGSWs of a node cost beside rotations, in rotations.
fn conversions(graph: &Graph, id: NodeId) -> f64 {
    match &graph.node(id).op {
        Op::He(HeOp::LutProduct { argument, sums: Some(_), .. }) => CONVERSION * argument.len() as f64,
        _ => 0.0,
    }
}

/// Error terms with the noise that each is proportional to.
struct Terms {
    terms: Vec<Term>,
    kinds: Vec<&'static str>,
    /// What neither an amplitude nor the argument noise changes.
    constant: f64,
}

impl Terms {
    fn new(scaling: Scaling<'_>) -> Self {
        let kinds = scaling.kinds.iter().map(|(kind, _)| *kind).collect();
        let constant = scaling.constant - scaling.argument_noise_in_all();
        Self { terms: scaling.terms, kinds, constant }
    }

    fn scaled(&self, factor: impl Fn(&str) -> f64) -> Vec<Term> {
        let scale = |(term, kind): (&Term, &&'static str)| Term {
            coefficient: term.coefficient * factor(kind),
            factors: term.factors.clone(),
        };
        self.terms.iter().zip(&self.kinds).map(scale).collect()
    }
}

/// Arguments that are keyswitched together, and have one extension.
struct Site {
    keyswitch: NodeId,
    positions: usize,
    /// Rotations by them.
    rotations: f64,
    /// Whether external products are made of them, which have no extension.
    external: bool,
    /// Times the noise relative to the range, this is what their noise adds to the outputs, summed over all.
    weight: f64,
}

/// The modelled error of the outputs, as a function of parameters and extensions.
struct Forecast {
    /// With floors under the gradients: what amplitudes are chosen by.
    guarded: Terms,
    plain: Terms,
    bounds: Vec<(f64, f64)>,
    outputs: f64,
    /// The parameters that the terms are at.
    from: Parameters,
    sites: Vec<Site>,
    most_extension: u32,
}

impl Forecast {
    fn new(graph: &Graph, cx: &PassCx, analysis: &Analysis, most_extension: u32) -> Self {
        let mut guarded = Scaling::new(graph, cx, &analysis.floored, &analysis.rounding);
        guarded.collect();
        let mut plain = Scaling::new(graph, cx, &analysis.sensitivity, &analysis.rounding);
        plain.collect();
        Self {
            bounds: guarded.bounds.clone(),
            guarded: Terms::new(guarded),
            plain: Terms::new(plain),
            outputs: analysis.sensitivity.outputs.max(1) as f64,
            from: cx.parameters,
            sites: sites(graph, analysis, cx.parameters.polynomial_size.0),
            most_extension,
        }
    }

    /// Variance at the outputs, summed over them, of all but the noise of arguments, at the best amplitudes.
    fn without_arguments(&self, set: &Priced) -> f64 {
        let (to, from) = (NoiseModel::new(&set.parameters), NoiseModel::new(&self.from));
        let growth = set.parameters.polynomial_size.0 as f64 / self.from.polynomial_size.0 as f64;
        let factor = |kind: &str| match kind {
            "encryption" => to.fresh / from.fresh,
            "output noise" => to.bootstrap / from.bootstrap,
            "external noise" => to.external / from.external,
            "gadget rounding" => to.external_rounding / from.external_rounding,
            "packing" => to.packing / from.packing,
            "packing leakage" => growth * to.packing / from.packing,
            "widening" => to.argument() / from.argument(),
            // Rounding knows no noise.
            _ => 1.0,
        };
        let (was, now) = (most_amplitude(from.bootstrap), most_amplitude(to.bootstrap));
        let bound = |&(lo, hi): &(f64, f64)| if hi.to_bits() == was.to_bits() { (lo.min(now), now) } else { (lo, hi) };
        let bounds: Vec<(f64, f64)> = self.bounds.iter().map(bound).collect();
        let amplitudes = minimise(&self.guarded.scaled(factor), &bounds);
        self.plain.constant + self.plain.scaled(factor).iter().map(|t| t.value(&amplitudes)).sum::<f64>()
    }

    /// For each site and extension, what it costs beyond a plain rotation and what it adds to the outputs.
    fn prices(&self, set: &Priced) -> Vec<Vec<Price>> {
        let lane = params::rotation(&set.parameters);
        let of = |site: &Site| {
            let at = |extension: u32| Price {
                cost: site.rotations * lane * f64::from((1_u32 << extension) - 1),
                error: site.weight * relative_noise(&set.parameters, Domain { positions: site.positions, extension }),
            };
            (0..=if site.external { 0 } else { self.most_extension }).map(at).collect()
        };
        self.sites.iter().map(of).collect()
    }

    fn chosen(&self, set: &Priced, rest: f64, prices: &[Vec<Price>], extensions: &[usize]) -> Chosen {
        let Price { cost, error } = total(prices, extensions);
        Chosen {
            set: *set,
            extensions: extensions.iter().map(|&e| e as u32).collect(),
            cost: set.cost + cost,
            error: ((rest + error) / self.outputs).sqrt(),
        }
    }

    /// The cheapest extensions with which a set keeps the goal.
    fn cheapest(&self, set: &Priced, rest: f64, goal: f64) -> Option<Chosen> {
        let budget = goal * goal * self.outputs - rest;
        if budget <= 0.0 {
            return None;
        }
        let prices = self.prices(set);
        Some(self.chosen(set, rest, &prices, &cheapest(&prices, budget))).filter(|c| c.error <= goal * (1.0 + 1e-9))
    }

    /// The extensions with which a set has the least error, at no more than this cost in all.
    fn quietest(&self, set: &Priced, rest: f64, most: f64) -> Chosen {
        let prices = self.prices(set);
        self.chosen(set, rest, &prices, &least_error(&prices, most - set.cost))
    }

    /// Root mean square error of an output without extensions.
    fn plain_error(&self, parameters: &Parameters) -> f64 {
        let work = Work { rotations: 0.0, keyswitches: 0.0, packs: 0.0 };
        let set = Priced::new(*parameters, &work);
        let none = vec![0; self.sites.len()];
        self.chosen(&set, self.without_arguments(&set), &self.prices(&set), &none).error
    }
}

/// Every keyswitch with what reads it.
fn sites(graph: &Graph, analysis: &Analysis, polynomial_size: usize) -> Vec<Site> {
    let mut sites = Vec::new();
    for keyswitch in graph.topological() {
        let Op::He(HeOp::Keyswitch { domain, .. }) = &graph.node(keyswitch).op else { continue };
        let rotations = |(user, _): &(NodeId, u32)| rotations_of(graph, *user, polynomial_size) as f64;
        sites.push(Site {
            keyswitch,
            positions: domain.positions,
            external: graph.users(keyswitch).iter().any(|(user, _)| graph.is_external_product(*user)),
            rotations: graph.users(keyswitch).iter().map(rotations).sum(),
            weight: analysis.sensitivity.weighted_width(&keyswitch),
        });
    }
    sites
}

/// Gives every site its extension; whether any has one.
fn extend(graph: &mut Graph, sites: &[Site], extensions: &[u32], cx: &mut PassCx) -> bool {
    let mut any = false;
    for (site, &new) in sites.iter().zip(extensions) {
        if new > 0 {
            let name = &graph.node(site.keyswitch).name;
            cx.note(format!("{name}: extension {new}, {:.0} rotations of {} lanes", site.rotations, 1 << new));
            cx.count("extended", site.rotations as u64);
            any = true;
        }
        let arguments: BTreeSet<NodeId> = graph.operands(site.keyswitch).into_iter().collect();
        if let Op::He(HeOp::Keyswitch { domain, .. }) = &mut graph.node_mut(site.keyswitch).op {
            domain.extension = new;
        }
        for argument in arguments {
            if let Op::He(HeOp::Linear { purpose: Purpose::Argument { domain }, .. }) = &mut graph.node_mut(argument).op
            {
                domain.extension = new;
            }
        }
    }
    any
}
