//! Computes what matters in fewer dimensions: no more look-ups than the outputs need.
//!
//! A trained transformer uses fewer dimensions than it has. Three kinds of place have one look-up (or product) for each dimension, and each can be
//! cut down to the best subspace that the calibration data show, with no retraining:
//!
//! * **variances** of layer norms: ‖x‖² is the sum of squares of the first principal components, plus what the others have on average;
//! * **scores** q·kᵀ of a head: the directions in which queries and keys meet (the singular directions of √C_q·√C_k, C their second moments);
//! * **functions of one variable** (GELU, ReLU): where one hardly bends in the range of its argument, a line computes it, with no look-up.
//!
//! What is added are public linear maps, which merge with those around them. Components are mixed by a discrete cosine transform
//! before they are multiplied or squared: all then have the same variance, and since the noise of a look-up is relative to its range, Σ range⁴ is least when
//! ranges are equal (Cauchy–Schwarz). The same idea rounds weights of language models better (QuIP, Chee et al., NeurIPS 2023). For scores that is
//! worth doing even where nothing is cut (`balance`): it is exact, and costs nothing.
//!
//! Tried and left out: contexts e·V in the components that the output projection reads. The values of single tokens have far more in those than their
//! averages, so products had to be planned finer than they were spared (BERT-tiny: 18,572 bootstraps for one product in place of 6,568).
//!
//! Nothing is trusted to be small: every candidate is run on calibration samples that its subspace was not computed from, and the error of the outputs that
//! it makes is what it is charged. The cheapest choice within `error` is taken (the knapsack of `budget`), run again as a whole, and cut less where the
//! errors together are more than their sum. Off by default: 0 is no error, and leaves the graph alone.

mod moments;
mod rewrite;
mod sites;

use std::sync::Arc;

use rayon::prelude::*;
use thex_ir::{Graph, Tensor, interpret};

use self::moments::Subspace;
use self::sites::Site;
use crate::error::{PassError, Result};
use crate::lower::budget::{Price, cheapest};
use crate::options::PassOption;
use crate::pass::{Pass, PassCx};

/// See the module.
pub struct ReduceRank {
    /// What the outputs may err by it: root mean square, relative to their spread.
    pub error: f64,
    /// Samples that judge.
    pub samples: usize,
    /// Whether scores are balanced where nothing is cut.
    pub balance: bool,
}

impl Default for ReduceRank {
    fn default() -> Self {
        Self { error: 0.0, samples: 32, balance: false }
    }
}

/// Inputs, or outputs, of one run.
type Sample = Vec<Arc<Tensor>>;

/// Samples that subspaces are computed from.
const FITTED: usize = 256;

/// Kept dimensions that are tried, in eighths.
const EIGHTHS: std::ops::RangeInclusive<usize> = 1..=7;

/// How often the choice is made again with half of the budget, where errors add up to more than their sum.
const ROUNDS: usize = 8;

impl Pass for ReduceRank {
    fn name(&self) -> &'static str {
        "reduce-rank"
    }

    fn description(&self) -> &'static str {
        "compute variances, scores and activations in as many dimensions as the outputs need (off unless `error` is set)"
    }

    fn source(&self) -> &'static str {
        include_str!("mod.rs")
    }

    fn options(&mut self) -> Vec<PassOption<'_>> {
        vec![
            PassOption::number(
                "error",
                &mut self.error,
                0.0..=1.0,
                "error that the outputs may have by it, relative to their spread; 0: off",
            ),
            PassOption::count(
                "samples",
                &mut self.samples,
                1..=1 << 16,
                "calibration samples on which the error of every candidate is measured",
            ),
            PassOption::switch(
                "balance",
                &mut self.balance,
                "mix the dimensions of queries and keys so that all matter alike; exact",
            ),
        ]
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        let wanted = |site: &Site| match site.kind {
            sites::Kind::Scores => self.error > 0.0 || self.balance,
            sites::Kind::Variance { .. } | sites::Kind::Activation => self.error > 0.0,
        };
        let sites: Vec<Site> = sites::find(graph).into_iter().filter(wanted).collect();
        if sites.is_empty() {
            return Ok(false);
        }
        if cx.samples.len() < 2 {
            let reason =
                "reduce-rank fits on one half of the calibration samples and judges on the other: give at least two";
            return Err(PassError::Invalid(reason.into()));
        }
        let (fitted, judging) = split(cx, self.samples);
        let subspaces = moments::measure(graph, &sites, fitted)?;
        let whole: Vec<usize> = sites.iter().map(|site| site.size).collect();
        if self.error > 0.0 {
            let judge = Judge::new(graph, judging)?;
            let candidates = judge.candidates(graph, &sites, &subspaces)?;
            let (reduced, kept, error) = self.choose(graph, &sites, &subspaces, &candidates, &judge)?;
            if kept == whole {
                cx.note(format!(
                    "reduce-rank: nothing can be cut for an error of {} of the outputs' spread",
                    self.error
                ));
            } else {
                report(graph, &sites, &kept, error, judging.len(), cx);
            }
            *graph = reduced;
        } else {
            *graph = cut(graph, &sites, &subspaces, &whole)?;
        }
        graph.remove_dead();
        cx.count("sites", sites.len() as u64);
        Ok(true)
    }
}

/// Samples that subspaces are computed from, and others that judge.
fn split(cx: &PassCx, judges: usize) -> (&[Sample], &[Sample]) {
    let half = cx.samples.len() / 2;
    (&cx.samples[..half.min(FITTED)], &cx.samples[half..][..judges.min(cx.samples.len() - half)])
}

/// One way to compute a site.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    kept: usize,
    price: Price,
}

/// Judges graphs by their outputs.
struct Judge<'a> {
    samples: &'a [Sample],
    wanted: Vec<Sample>,
    spread: f64,
}

impl<'a> Judge<'a> {
    fn new(graph: &Graph, samples: &'a [Sample]) -> Result<Self> {
        let wanted: Vec<Sample> =
            samples.par_iter().map(|s| interpret::run(graph, s)).collect::<std::result::Result<_, _>>()?;
        let spread = spread(&wanted);
        Ok(Self { samples, wanted, spread })
    }

    /// Mean squared error of the outputs, relative to their variance.
    fn error(&self, graph: &Graph) -> Result<f64> {
        let one = |(sample, wanted): (&Sample, &Sample)| -> Result<f64> {
            let found = interpret::run(graph, sample)?;
            Ok(found.iter().zip(wanted).map(|(f, w)| squared_distance(f, w)).sum())
        };
        let errors: Vec<f64> = self.samples.par_iter().zip(&self.wanted).map(one).collect::<Result<_>>()?;
        Ok(errors.iter().sum::<f64>() / self.spread)
    }

    /// What each number of dimensions of each site costs and errs by itself; all of them first.
    fn candidates(&self, graph: &Graph, sites: &[Site], subspaces: &[Subspace]) -> Result<Vec<Vec<Candidate>>> {
        let of_site = |(site, subspace): (&Site, &Subspace)| -> Result<Vec<Candidate>> {
            let mut candidates =
                vec![Candidate { kept: site.size, price: Price { cost: site.cost(site.size), error: 0.0 } }];
            for kept in EIGHTHS.rev().map(|e| (site.size * e).div_ceil(8)) {
                let mut trial = graph.clone();
                rewrite::apply(&mut trial, site, subspace, kept)?;
                let error = self.error(&trial)?;
                candidates.push(Candidate { kept, price: Price { cost: site.cost(kept), error } });
            }
            Ok(candidates)
        };
        sites.iter().zip(subspaces).map(of_site).collect()
    }
}

fn squared_distance(a: &Tensor, b: &Tensor) -> f64 {
    a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum()
}

/// Sum over samples and elements of the squared deviation from the element's mean.
fn spread(outputs: &[Sample]) -> f64 {
    let Some(first) = outputs.first() else { return 1.0 };
    let of_output = |o: usize| -> f64 {
        let mean = outputs.iter().fold(Tensor::zeros(first[o].raw_dim()), |sum, s| sum + &*s[o]) / outputs.len() as f64;
        outputs.iter().map(|s| squared_distance(&s[o], &mean)).sum()
    };
    let all: f64 = (0..first.len()).map(of_output).sum();
    if all > 0.0 { all } else { 1.0 }
}

impl ReduceRank {
    /// The cheapest dimensions whose error, together, is within the budget; the graph with them; the error.
    fn choose(
        &self,
        graph: &Graph,
        sites: &[Site],
        subspaces: &[Subspace],
        candidates: &[Vec<Candidate>],
        judge: &Judge<'_>,
    ) -> Result<(Graph, Vec<usize>, f64)> {
        let prices: Vec<Vec<Price>> = candidates.iter().map(|c| c.iter().map(|c| c.price).collect()).collect();
        let allowed = self.error * self.error;
        let mut budget = allowed;
        for _ in 0..ROUNDS {
            let chosen = cheapest(&prices, budget);
            let kept: Vec<usize> = chosen.iter().zip(candidates).map(|(&i, c)| c[i].kept).collect();
            let trial = cut(graph, sites, subspaces, &kept)?;
            let error = judge.error(&trial)?;
            if error <= allowed {
                return Ok((trial, kept, error.sqrt()));
            }
            budget /= 2.0;
        }
        let whole: Vec<usize> = sites.iter().map(|s| s.size).collect();
        Ok((cut(graph, sites, subspaces, &whole)?, whole, 0.0))
    }
}

/// The graph with every site cut to as many dimensions.
fn cut(graph: &Graph, sites: &[Site], subspaces: &[Subspace], kept: &[usize]) -> Result<Graph> {
    let mut graph = graph.clone();
    for ((site, subspace), &kept) in sites.iter().zip(subspaces).zip(kept) {
        rewrite::apply(&mut graph, site, subspace, kept)?;
    }
    Ok(graph)
}

fn report(graph: &Graph, sites: &[Site], kept: &[usize], error: f64, samples: usize, cx: &mut PassCx) {
    for (site, &kept) in sites.iter().zip(kept).filter(|(site, kept)| **kept < site.size) {
        let name = &graph.node(site.id).name;
        cx.approximations.push(format!("{name}: {} {kept} of {} {}", site.verb(), site.size, site.what()));
        cx.count("reduced", 1);
    }
    let percent = 100.0 * error;
    cx.approximations.push(format!(
        "reduce-rank: together these err by {percent:.2} % of the outputs' spread, on {samples} calibration samples that they were not fitted to"
    ));
}

#[cfg(test)]
mod tests;
