//! Attention masks that depend on an input: bounds what they take from a score, as little as does the work.
//!
//! Exporters add −3·10³⁸ to the scores of padding, which no encoding holds together with the scores themselves. The client
//! computes masks in the clear (see [`split_client_server`](super::SplitClientServer)) and encrypts them as one more
//! addend of the scores, so a mask costs no bootstrap, but it costs range: scores of kept tokens and of masked ones share
//! one encoding. So the mask takes away just so much that it does its work on the calibration data:
//!
//! * for a softmax, c such that masked tokens get at most ε of the attention of a row:
//!   c ≥ ln Σ_masked exp s − ln Σ_kept exp s − ln ε;
//! * for THE-X's cube ReLU(s/2 + 1)³, c such that masked scores are at most −2, its root: c ≥ max_masked s + 2. Where the numerator is
//!   the score itself, as the paper prints it, a masked token so keeps a weight, a negative one; going lower would make it larger.
//!
//! Heads and layers differ, and a factor for each is a linear map, which is free: the client encrypts one vector, and each
//! head subtracts its own c.
//!
//! Masks that are constants (causality, a frozen input) cost nothing at all and are left to the softmax passes.

use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::{ArrayD, IxDyn};
use rayon::prelude::*;
use thex_ir::interpret::{self, Values};
use thex_ir::{ClearOp, Graph, NodeId, UnaryFn};

use super::{Builder, find};
use crate::analysis::{broadcast_map, client_nodes};
use crate::choice::Form;
use crate::error::Result;
use crate::options::PassOption;
use crate::pass::{Pass, PassCx};

/// A score lowered by this much or more is masked: its exponential is 0 in single precision beside any other's.
pub(super) const MASKED: f64 = -1e3;

/// Largest part of a row's attention that masked tokens may get, on the calibration data.
const DEFAULT_LEAK: f64 = 1.0 / 128.0;

/// Samples that are looked at.
const MAX_SAMPLES: usize = 128;

/// The least that a mask takes from a score.
const LEAST_BOUND: f64 = 1.0;

/// See the module.
pub struct BoundMasks {
    /// ε: largest part of a row's attention that masked tokens may get.
    pub leak: f64,
}

impl Default for BoundMasks {
    fn default() -> Self {
        Self { leak: DEFAULT_LEAK }
    }
}

impl Pass for BoundMasks {
    fn name(&self) -> &'static str {
        "bound-masks"
    }

    fn description(&self) -> &'static str {
        "bound encrypted attention masks to what hides masked tokens, head by head"
    }

    fn source(&self) -> &'static str {
        include_str!("bound_masks.rs")
    }

    fn options(&mut self) -> Vec<PassOption<'_>> {
        vec![PassOption::number(
            "leak",
            &mut self.leak,
            1e-9..=0.5,
            "largest part of a row's attention that masked tokens may get on the calibration data",
        )]
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        let sites = sites(graph, self.leak, cx);
        if sites.is_empty() {
            return Ok(false);
        }
        let needs = measure(graph, &sites, cx)?;
        let mut by_mask: BTreeMap<NodeId, Vec<(&Site, Need)>> = BTreeMap::new();
        for (site, need) in sites.iter().zip(needs) {
            by_mask.entry(site.mask).or_default().push((site, need));
        }
        for (mask, uses) in &by_mask {
            bound(graph, *mask, uses, cx)?;
        }
        graph.remove_dead();
        cx.count("masks", by_mask.len() as u64);
        Ok(true)
    }
}

/// A mask that is added to the scores of one softmax.
struct Site {
    /// ε, for this softmax.
    leak: f64,
    softmax: NodeId,
    /// Whether cubes stand in for it.
    cube: bool,
    axis: usize,
    /// The sum, and which of its operands is the mask.
    add: NodeId,
    port: u32,
    mask: NodeId,
    /// The other operand of the sum.
    scores: NodeId,
    /// The softmax sees factor·(scores + mask).
    factor: f64,
    /// Public addends on the way, causal masks among them.
    addends: Vec<NodeId>,
}

/// What a site needs.
#[derive(Clone, Debug)]
struct Need {
    /// How much the mask must take away, for each head.
    bound: Vec<f64>,
    /// Range of the kept scores over all heads.
    kept: (f64, f64),
    /// Whether any score was masked.
    seen: bool,
    /// Whether every value of the mask was 0 or masked.
    binary: bool,
}

impl Need {
    fn new(heads: usize) -> Self {
        let kept = (f64::INFINITY, f64::NEG_INFINITY);
        Self { bound: vec![LEAST_BOUND; heads], kept, seen: false, binary: true }
    }

    fn merge(mut self, other: &Self) -> Self {
        self.bound.iter_mut().zip(&other.bound).for_each(|(a, b)| *a = a.max(*b));
        self.kept = (self.kept.0.min(other.kept.0), self.kept.1.max(other.kept.1));
        self.seen |= other.seen;
        self.binary &= other.binary;
        self
    }

    fn width(&self) -> f64 {
        (self.kept.1 - self.kept.0).max(0.0)
    }
}

/// Every sum of scores and an encrypted mask that a softmax reads.
fn sites(graph: &Graph, leak: f64, cx: &PassCx) -> Vec<Site> {
    let client = client_nodes(graph);
    let mut sites = Vec::new();
    let is_cube = |softmax: NodeId| cx.form(graph, softmax).and_then(Form::cubes).is_some();
    for softmax in find(graph, |op| matches!(op, ClearOp::Softmax { .. })) {
        let Some(ClearOp::Softmax { axis }) = graph.clear_op(softmax).cloned() else { continue };
        let (mut at, mut factor, mut addends) = (graph.operands(softmax)[0], 1.0, Vec::new());
        while let Some(op @ (ClearOp::Add | ClearOp::Mul)) = graph.clear_op(at) {
            let [a, b] = graph.operands(at)[..] else { break };
            let (scores, other, port) =
                if client.contains(&b) || graph.constant(b).is_some() { (a, b, 1) } else { (b, a, 0) };
            match (op, graph.constant(other)) {
                (ClearOp::Mul, Some(value)) if value.len() == 1 => factor *= value.iter().sum::<f64>(),
                (ClearOp::Add, Some(_)) => addends.push(other),
                (ClearOp::Add, None) if client.contains(&other) && !client.contains(&scores) => {
                    let addends = addends.clone();
                    sites.push(Site {
                        leak,
                        softmax,
                        cube: is_cube(softmax),
                        axis,
                        add: at,
                        port,
                        mask: other,
                        scores,
                        factor,
                        addends,
                    });
                }
                _ => break,
            }
            at = scores;
        }
    }
    sites
}

fn measure(graph: &Graph, sites: &[Site], cx: &PassCx) -> Result<Vec<Need>> {
    let stride = cx.samples.len().div_ceil(MAX_SAMPLES).max(1);
    let samples: Vec<_> = cx.samples.iter().step_by(stride).collect();
    let empty: Vec<Need> = sites.iter().map(|s| Need::new(heads(graph, s))).collect();
    let partial = |sample: &&Vec<Arc<thex_ir::Tensor>>| -> Result<Vec<Need>> {
        let values = interpret::run_all(graph, sample)?;
        Ok(sites.iter().map(|site| need(graph, site, &values)).collect())
    };
    let parts = samples.par_iter().map(partial).collect::<Result<Vec<_>>>()?;
    let merge = |sum: Vec<Need>, part: &Vec<Need>| sum.into_iter().zip(part).map(|(a, b)| a.merge(b)).collect();
    Ok(parts.iter().fold(empty, merge))
}

/// Heads of a site's scores, of shape `[1, heads, rows, columns]`.
fn heads(graph: &Graph, site: &Site) -> usize {
    let shape = &graph.node(site.softmax).shape;
    if shape.len() == 4 { shape[1] } else { 1 }
}

/// What one sample asks of one site.
fn need(graph: &Graph, site: &Site, values: &Values) -> Need {
    let shape = &graph.node(site.softmax).shape;
    let read = |id: NodeId| -> Vec<f64> {
        let flat: Vec<f64> = values[&id].iter().copied().collect();
        broadcast_map(values[&id].shape(), shape).into_iter().map(|i| flat[i]).collect()
    };
    let (scores, mask) = (read(site.scores), read(site.mask));
    let addends: Vec<Vec<f64>> = site.addends.iter().map(|&a| read(a)).collect();
    let inner: usize = shape[site.axis + 1..].iter().product();
    let (length, per_head) = (shape[site.axis], scores.len() / heads(graph, site));
    let mut need = Need::new(heads(graph, site));
    for row in (0..scores.len()).filter(|i| (i / inner).is_multiple_of(length)) {
        let (mut kept, mut masked) = (Vec::new(), Vec::new());
        for i in (0..length).map(|j| row + j * inner) {
            let addend: f64 = addends.iter().map(|a| a[i]).sum();
            let score = site.factor * scores[i] + addend;
            match (addend <= MASKED, site.factor * mask[i] <= MASKED) {
                (true, _) => {}
                (false, true) => masked.push(score),
                (false, false) => {
                    need.binary &= mask[i] == 0.0;
                    kept.push(score);
                }
            }
        }
        need.kept = kept.iter().fold(need.kept, |(lo, hi), s| (lo.min(*s), hi.max(*s)));
        need.seen |= !masked.is_empty();
        if !(kept.is_empty() || masked.is_empty()) {
            let bound = &mut need.bound[row / per_head];
            *bound = bound.max(required(&kept, &masked, site) / site.factor);
        }
    }
    need
}

/// How much must be taken from the masked scores of a row.
fn required(kept: &[f64], masked: &[f64], site: &Site) -> f64 {
    let most = |s: &[f64]| s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = |s: &[f64]| most(s) + s.iter().map(|x| (x - most(s)).exp()).sum::<f64>().ln();
    if site.cube { 1.1 * (most(masked) + 2.0) } else { log_sum(masked) - log_sum(kept) - site.leak.ln() }
}

/// Puts the bounded mask in place of `mask` in all its uses.
fn bound(graph: &mut Graph, mask: NodeId, uses: &[(&Site, Need)], cx: &mut PassCx) -> Result<()> {
    let name = graph.node(mask).name.clone();
    if !uses.iter().any(|(_, need)| need.seen) {
        cx.note(format!(
            "warning: `{name}` masks nothing in the calibration data, so the mask of a padded input will be clamped away, and \
             its padding read like words: calibrate with padded samples, or make the mask public with --freeze"
        ));
    }
    let largest = uses.iter().flat_map(|(_, n)| n.bound.iter().copied()).fold(LEAST_BOUND, f64::max);
    let binary = uses.iter().all(|(_, n)| n.binary);
    let clamp = vec![UnaryFn::Clamp { lo: -largest, hi: f64::MAX }];
    let bounded = Builder::replacing(graph, mask).unary("bounded", clamp, mask)?;
    for (site, need) in uses {
        let own = if binary { scaled(graph, site, need, bounded, largest)? } else { bounded };
        graph.set_operand(site.add, site.port, own);
        let most = if binary { need.bound.iter().copied().fold(0.0, f64::max) } else { largest };
        let bits = ((need.width() + site.factor * most) / need.width().max(1e-9)).log2();
        let softmax = &graph.node(site.softmax).name;
        cx.note(format!(
            "{softmax}: `{name}` is encrypted and lowers scores by {most:.1} at most: {bits:.2} bits of their range"
        ));
    }
    let what = enough_for(uses);
    cx.approximations
        .push(format!("{name}: the mask lowers scores by {largest:.1} at most in place of without bound; {what}"));
    Ok(())
}

/// What the bound suffices for.
fn enough_for(uses: &[(&Site, Need)]) -> String {
    let leak = uses.iter().map(|(site, _)| site.leak).fold(0.0, f64::max);
    let exact = format!("masked tokens keep up to {:.2} % of a row's attention", 100.0 * leak);
    let [cube, other] = [true, false].map(|cube| uses.iter().any(|(site, _)| site.cube == cube));
    let root = "enough for the root of the cube".to_owned();
    let said = [(other, exact), (cube, root)].into_iter().filter(|(said, _)| *said).map(|(_, text)| text);
    said.collect::<Vec<_>>().join("; ")
}

/// The mask times bound ÷ largest for each head.
fn scaled(graph: &mut Graph, site: &Site, need: &Need, bounded: NodeId, largest: f64) -> Result<NodeId> {
    let rank = graph.node(site.softmax).shape.len();
    let mut shape = vec![1; rank];
    if rank == 4 {
        shape[1] = need.bound.len();
    }
    let factors = ArrayD::from_shape_vec(IxDyn(&shape), need.bound.iter().map(|b| b / largest).collect());
    let mut build = Builder::replacing(graph, site.softmax);
    let factors = build.constant("mask-factors", factors.unwrap_or_default());
    Ok(build.clear("mask", ClearOp::Mul, &[bounded, factors])?)
}
