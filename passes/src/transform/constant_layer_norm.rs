//! LayerNorm with constants for 1/σ: exact mean subtraction, then one factor for each token position.
//!
//! It lies between the exact norm and THE-X's line per channel. Like the line it costs no bootstrap, since all of it is linear in
//! the encrypted values. Unlike the line it forgets nothing about channels: what it gives up is only how σ varies from input to input at one
//! position. Positions are public, so each may have a constant of its own, and needs one: in BERTs the σ of \[CLS\] and \[SEP\] is
//! far from that of words. The constants are least-squares fits to the exact norm's output on the calibration data.
//!
//! Positions whose constants nearly agree share one. Positions with the same constants have the same linear maps, which the circuit keeps
//! once: with constants for the norms after attention, BERT-tiny's takes 129 MB with one for each of 17 positions, 49 MB with shared ones.
//!
//! Norms of this form are fitted after those that become lines.

use ndarray::{ArrayD, IxDyn};
use thex_ir::{ClearOp, Graph, NodeId, Tensor};

use super::exact_layer_norm::centre;
use super::{Builder, chosen, fitting};
use crate::analysis::demand;
use crate::choice::{Form, Kind};
use crate::error::Result;
use crate::options::PassOption;
use crate::pass::{Pass, PassCx};

/// See the module.
pub struct ConstantLayerNorm {
    /// Samples that the fit looks at.
    pub samples: usize,
    /// Positions share a constant where theirs differ by no more than this fraction.
    pub merge: f64,
}

impl Default for ConstantLayerNorm {
    fn default() -> Self {
        Self { samples: 512, merge: 0.05 }
    }
}

impl Pass for ConstantLayerNorm {
    fn name(&self) -> &'static str {
        "constant-layer-norm"
    }

    fn description(&self) -> &'static str {
        "replace 1/σ of layer norms by a constant for each position, fitted to the calibration data"
    }

    fn source(&self) -> &'static str {
        include_str!("constant_layer_norm.rs")
    }

    fn options(&mut self) -> Vec<PassOption<'_>> {
        vec![
            PassOption::count(
                "samples",
                &mut self.samples,
                1..=1 << 20,
                "most calibration samples that the constants are fitted to",
            ),
            PassOption::number(
                "merge",
                &mut self.merge,
                0.0..=100.0,
                "positions whose constants differ by no more than this fraction share one",
            ),
        ]
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        let nodes = chosen(graph, cx, Kind::LayerNorm, &[Form::Constant]);
        for &id in &nodes {
            let fit = self.fit(graph, id, cx)?;
            cx.approximations.push(format!("{}: {}", graph.node(id).name, fit.describe()));
            replace(graph, id, fit.factors)?;
        }
        graph.remove_dead();
        cx.count("replaced", nodes.len() as u64);
        Ok(!nodes.is_empty())
    }
}

impl ConstantLayerNorm {
    fn fit(&self, graph: &Graph, id: NodeId, cx: &PassCx) -> Result<Fit> {
        let flags = &demand(graph)[&id];
        let centred = matches!(graph.clear_op(id), Some(ClearOp::LayerNorm { .. }));
        let channels = graph.node(id).shape.last().copied().unwrap_or(1);
        let parts = fitting::measure(graph, id, cx, self.samples, |x, y| moments_of(x, y, flags, channels, centred))?;
        let mut moments = vec![[0.0; 3]; flags.len() / channels];
        // Summed in order, so that the result does not depend on the number of threads.
        for part in &parts {
            moments.as_flattened_mut().iter_mut().zip(part.as_flattened()).for_each(|(sum, value)| *sum += value);
        }
        if parts.is_empty() { Err(fitting::no_sample(graph, id)) } else { Ok(solve(&moments, self.merge)) }
    }
}

/// Σx², Σxy, Σy² over one position's elements, x the centred argument and y the exact norm.
type Moments = [f64; 3];

struct Fit {
    /// Stands for 1/σ, one for each position.
    factors: Vec<f64>,
    /// Positions that anything reads.
    read: usize,
    /// Different factors among them.
    distinct: usize,
    /// Their least and largest factor.
    spread: (f64, f64),
    /// Root mean square of what is wrong, relative to the norm's output.
    error: f64,
}

impl Fit {
    fn describe(&self) -> String {
        let (least, most) = self.spread;
        let explained = 1.0 - self.error * self.error;
        format!(
            "1/σ of the layer norm replaced by constants (positions {}, distinct {}, {least:.3} to {most:.3}), fitted to r² = {explained:.3}, error {:.1} %",
            self.read,
            self.distinct,
            100.0 * self.error
        )
    }
}

fn moments_of(x: &Tensor, y: &Tensor, flags: &[bool], channels: usize, centred: bool) -> Vec<Moments> {
    let (x, y): (Vec<f64>, Vec<f64>) = (x.iter().copied().collect(), y.iter().copied().collect());
    let of_row = |((x, y), flags): ((&[f64], &[f64]), &[bool])| {
        let mean = if centred { x.iter().sum::<f64>() / channels as f64 } else { 0.0 };
        let mut sums = [0.0; 3];
        for ((x, y), _) in x.iter().zip(y).zip(flags).filter(|(_, flag)| **flag) {
            let x = x - mean;
            sums.iter_mut().zip([x * x, x * y, y * y]).for_each(|(sum, value)| *sum += value);
        }
        sums
    };
    x.chunks(channels).zip(y.chunks(channels)).zip(flags.chunks(channels)).map(of_row).collect()
}

/// The constant of least squares.
fn ratio(m: &Moments) -> f64 {
    if m[0] > 1e-12 { m[1] / m[0] } else { 0.0 }
}

fn sum<'a>(moments: impl IntoIterator<Item = &'a Moments>) -> Moments {
    moments.into_iter().fold([0.0; 3], |sum, m| [sum[0] + m[0], sum[1] + m[1], sum[2] + m[2]])
}

/// Positions that are read, in groups whose constants differ by at most a fraction `merge`.
fn groups(moments: &[Moments], merge: f64) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..moments.len()).filter(|&p| moments[p][2] > 0.0).collect();
    order.sort_by(|&a, &b| ratio(&moments[a]).total_cmp(&ratio(&moments[b])));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for position in order {
        let joins = |group: &&mut Vec<usize>| ratio(&moments[position]) <= (1.0 + merge) * ratio(&moments[group[0]]);
        match groups.last_mut().filter(joins) {
            Some(group) => group.push(position),
            None => groups.push(vec![position]),
        }
    }
    groups
}

/// Least squares, group by group. A position that nothing reads gets the constant of all together.
fn solve(moments: &[Moments], merge: f64) -> Fit {
    let groups = groups(moments, merge);
    let total = sum(moments);
    let (mut factors, mut residual) = (vec![ratio(&total); moments.len()], 0.0);
    let mut spread = (f64::INFINITY, f64::NEG_INFINITY);
    for group in &groups {
        let together = sum(group.iter().map(|&p| &moments[p]));
        let factor = ratio(&together);
        group.iter().for_each(|&p| factors[p] = factor);
        spread = (spread.0.min(factor), spread.1.max(factor));
        residual += together[2] - factor * together[1];
    }
    let (read, distinct) = (groups.iter().map(Vec::len).sum(), groups.len());
    Fit { factors, read, distinct, spread, error: (residual.max(0.0) / total[2].max(1e-12)).sqrt() }
}

fn replace(graph: &mut Graph, id: NodeId, factors: Vec<f64>) -> Result<()> {
    let centred = matches!(graph.clear_op(id), Some(ClearOp::LayerNorm { .. }));
    let mut shape = graph.node(id).shape.clone();
    if let Some(channels) = shape.last_mut() {
        *channels = 1;
    }
    let source = graph.operands(id)[0];
    let mut build = Builder::replacing(graph, id);
    let x = if centred { centre(&mut build, source)? } else { source };
    let factors = build.constant("factors", ArrayD::from_shape_vec(IxDyn(&shape), factors).unwrap_or_default());
    let normalised = build.clear("normalise", ClearOp::Mul, &[x, factors])?;
    graph.replace_uses(id, normalised);
    Ok(())
}
