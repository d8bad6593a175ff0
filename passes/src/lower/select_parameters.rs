//! Chooses the cryptographic parameters: the cheapest set under which the outputs keep to their error.
//!
//! The error of the outputs is a sum of terms (see [`insert-rescale`](super::InsertRescale)), each proportional to one noise of the
//! parameters or to none. So the graph is analysed once, and a set is judged by scaling the terms by its noises and solving
//! the geometric program of the amplitudes again, which takes milliseconds. Sets come from [`params::front`], cheapest first.
//!
//! Noisier sets than the standard one are not tried: errors are modelled to first order, and where outputs are saturated (a tanh, a sure
//! class) the model trusts a flatness that noise leaves. A BERT of 24 tokens: modelled 0.11, simulated 0.17.
//!
//! Where no set keeps to the error that was asked for, the cheapest one is taken that comes within a tenth of the least error of all.
//! Plans of products stay as `insert-bootstraps` made them for the standard set.
//!
//! `--parameters` settles the set, and the pass has nothing to do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use thex_circuit::NoiseModel;
use thex_ir::he::Purpose;
use thex_ir::{Address, Graph, HeOp, NodeId, Op};

use super::insert_rescale::{Analysis, Scaling};
use super::solver::{Term, minimise};
use crate::error::Result;
use crate::options::PassOption;
use crate::params::{self, Grid, Priced, Work};
use crate::pass::{Pass, PassCx};

/// See the module.
pub struct SelectParameters {
    /// Largest cost of a set, as a multiple of the standard set's.
    pub most_cost: f64,
}

impl Default for SelectParameters {
    fn default() -> Self {
        Self { most_cost: 1.25 }
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
        let help = "largest cost of a parameter set, as a multiple of the standard set's";
        vec![PassOption::number("most-cost", &mut self.most_cost, 1.0..=64.0, help)]
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        if cx.parameters_fixed {
            return Ok(false);
        }
        let analysis = Arc::new(Analysis::new(graph, cx)?);
        let forecast = Forecast::new(graph, cx, &analysis);
        let work = work(graph);
        let most = self.most_cost * params::cost(&cx.parameters, &work);
        let mut front = params::front(&Grid::full(), &work);
        let standard = cx.noise();
        front.retain(|p| p.cost <= most && p.argument <= standard.argument() && p.bootstrap <= standard.bootstrap);
        cx.count("sets", front.len() as u64);
        let goal = cx.precision.output_error * analysis.sensitivity.output_spread;
        let Some(chosen) = choose(&front, &forecast, goal) else { return Ok(false) };
        let cost = params::cost(&cx.parameters, &work);
        let error = forecast.error(&chosen);
        cx.note(format!(
            "{}: modelled error {error:.4}, {:.2} times the work of the standard set ({:.4})",
            chosen.parameters,
            chosen.cost / cost,
            forecast.error_at(&forecast.from, 1.0),
        ));
        if error > goal {
            cx.note(format!(
                "no set keeps to the error of {goal:.4} that was asked for (--output-error) at {} times the work (-x select-parameters:most-cost)",
                self.most_cost
            ));
        }
        resize(graph, chosen.parameters.polynomial_size.0);
        cx.parameters = chosen.parameters;
        cx.analysis = Some(analysis);
        Ok(true)
    }
}

/// The cheapest set within the goal; else the cheapest of those near the least error.
fn choose(front: &[Priced], forecast: &Forecast, goal: f64) -> Option<Priced> {
    params::cheapest(front, |set| forecast.error(set) <= goal).or_else(|| {
        let least = front.iter().map(|set| forecast.error(set)).fold(f64::INFINITY, f64::min);
        params::cheapest(front, |set| forecast.error(set) <= NEAR_LEAST * least)
    })
}

/// What the graph does.
fn work(graph: &Graph) -> Work {
    let mut work = Work { rotations: 0.0, keyswitches: 0.0, packs: 0.0 };
    for id in graph.ids() {
        match &graph.node(id).op {
            Op::He(HeOp::Pbs { .. }) => work.rotations += graph.node(id).shape[0] as f64,
            Op::He(HeOp::LutProduct { argument, .. }) => work.rotations += argument.len() as f64,
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

/// Error terms with the noise that each is proportional to.
struct Terms {
    terms: Vec<Term>,
    kinds: Vec<&'static str>,
    /// Argument noise, which no amplitude changes.
    constant: f64,
}

/// The modelled error of the outputs, as a function of the parameters.
struct Forecast {
    /// With floors under the gradients: what amplitudes are chosen by.
    guarded: Terms,
    plain: Terms,
    bounds: Vec<(f64, f64)>,
    outputs: f64,
    /// The noise that the terms are at.
    from: NoiseModel,
    size: f64,
}

impl Terms {
    fn new(scaling: Scaling<'_>) -> Self {
        let kinds = scaling.kinds.iter().map(|(kind, _)| *kind).collect();
        Self { terms: scaling.terms, kinds, constant: scaling.constant }
    }

    fn scaled(&self, factor: impl Fn(&str) -> f64) -> Vec<Term> {
        let scale = |(term, kind): (&Term, &&'static str)| Term {
            coefficient: term.coefficient * factor(kind),
            factors: term.factors.clone(),
        };
        self.terms.iter().zip(&self.kinds).map(scale).collect()
    }
}

impl Forecast {
    fn new(graph: &Graph, cx: &PassCx, analysis: &Analysis) -> Self {
        let mut guarded = Scaling::new(graph, cx, &analysis.floored, &analysis.rounding);
        guarded.collect();
        let mut plain = Scaling::new(graph, cx, &analysis.sensitivity, &analysis.rounding);
        plain.collect();
        Self {
            bounds: guarded.bounds.clone(),
            guarded: Terms::new(guarded),
            plain: Terms::new(plain),
            outputs: analysis.sensitivity.outputs.max(1) as f64,
            from: cx.noise(),
            size: cx.parameters.polynomial_size.0 as f64,
        }
    }

    fn error(&self, set: &Priced) -> f64 {
        self.error_at(&NoiseModel::new(&set.parameters), set.parameters.polynomial_size.0 as f64 / self.size)
    }

    /// Root mean square error of an output under this noise, in a ring `growth` times as large.
    fn error_at(&self, to: &NoiseModel, growth: f64) -> f64 {
        let argument = to.argument() / self.from.argument();
        let factor = |kind: &str| match kind {
            "encryption" => to.fresh / self.from.fresh,
            "output noise" => to.bootstrap / self.from.bootstrap,
            "packing" => to.packing / self.from.packing,
            "packing leakage" => growth * to.packing / self.from.packing,
            "widening" => argument,
            // Rounding knows no noise.
            _ => 1.0,
        };
        let amplitudes = minimise(&self.guarded.scaled(factor), &self.bounds);
        let total: f64 = self.plain.scaled(factor).iter().map(|t| t.value(&amplitudes)).sum();
        ((total + argument * self.plain.constant) / self.outputs).sqrt()
    }
}

/// Gives every look-up the positions that it has in a ring of `size`: all of them, or its box of a product.
fn resize(graph: &mut Graph, size: usize) {
    let mut positions: BTreeMap<NodeId, usize> = BTreeMap::new();
    for id in graph.ids() {
        let slots = match &graph.node(id).op {
            Op::He(HeOp::Pbs { .. }) => 1,
            Op::He(HeOp::LutProduct { slots, .. }) => *slots,
            _ => continue,
        };
        positions.insert(graph.operands(id)[0], size / slots);
    }
    for (keyswitch, new) in positions {
        let arguments: BTreeSet<NodeId> = graph.operands(keyswitch).into_iter().collect();
        if let Op::He(HeOp::Keyswitch { positions, .. }) = &mut graph.node_mut(keyswitch).op {
            *positions = new;
        }
        for argument in arguments {
            if let Op::He(HeOp::Linear { purpose: Purpose::Argument { positions }, .. }) =
                &mut graph.node_mut(argument).op
            {
                *positions = new;
            }
        }
    }
}
