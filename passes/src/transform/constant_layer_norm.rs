//! LayerNorm with constants for 1/σ: exact mean subtraction, then one factor for each token position.
//!
//! It lies between the exact norm and THE-X's line per channel. Like the line it costs no bootstrap, since all of it is linear in
//! the encrypted values. Unlike the line it forgets nothing about channels: what it gives up is only how σ varies from input to input at one
//! position. Positions are public, so each may have a constant of its own, and needs one: in BERTs the σ of \[CLS\] and \[SEP\] is
//! far from that of words. The constants are least-squares fits to the exact norm's output on the calibration data.
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
}

impl Default for ConstantLayerNorm {
    fn default() -> Self {
        Self { samples: 512 }
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
        vec![PassOption::count(
            "samples",
            &mut self.samples,
            1..=1 << 20,
            "most calibration samples that the constants are fitted to",
        )]
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        let nodes = chosen(graph, cx, Kind::LayerNorm, &[Form::Constant]);
        for &id in &nodes {
            let fit = fit(graph, id, cx, self.samples)?;
            cx.approximations.push(format!("{}: {}", graph.node(id).name, fit.describe()));
            replace(graph, id, fit.factors)?;
        }
        graph.remove_dead();
        cx.count("replaced", nodes.len() as u64);
        Ok(!nodes.is_empty())
    }
}

/// Σx², Σxy, Σy² over one position's elements, x the centred argument and y the exact norm.
type Moments = [f64; 3];

struct Fit {
    /// Stands for 1/σ, one for each position.
    factors: Vec<f64>,
    /// Positions that anything reads.
    read: usize,
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
            "1/σ of the layer norm replaced by constants ({} positions read, {least:.3} to {most:.3}), fitted to r² = {explained:.3}, error {:.1} %",
            self.read,
            100.0 * self.error
        )
    }
}

fn fit(graph: &Graph, id: NodeId, cx: &PassCx, samples: usize) -> Result<Fit> {
    let flags = &demand(graph)[&id];
    let centred = matches!(graph.clear_op(id), Some(ClearOp::LayerNorm { .. }));
    let channels = graph.node(id).shape.last().copied().unwrap_or(1);
    let parts = fitting::measure(graph, id, cx, samples, |x, y| moments_of(x, y, flags, channels, centred))?;
    let mut moments = vec![[0.0; 3]; flags.len() / channels];
    // Summed in order, so that the result does not depend on the number of threads.
    for part in &parts {
        moments.as_flattened_mut().iter_mut().zip(part.as_flattened()).for_each(|(sum, value)| *sum += value);
    }
    if parts.is_empty() { Err(fitting::no_sample(graph, id)) } else { Ok(solve(&moments)) }
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

/// Least squares, position by position. A position that nothing reads gets the constant of all together.
fn solve(moments: &[Moments]) -> Fit {
    let total = moments.iter().fold([0.0; 3], |sum: Moments, m| [sum[0] + m[0], sum[1] + m[1], sum[2] + m[2]]);
    let ratio = |m: &Moments| if m[0] > 1e-12 { m[1] / m[0] } else { 0.0 };
    let read = |m: &Moments| m[2] > 0.0;
    let factors: Vec<f64> = moments.iter().map(|m| ratio(if read(m) { m } else { &total })).collect();
    let residual: f64 = moments.iter().map(|m| m[2] - ratio(m) * m[1]).sum();
    let of_read = || moments.iter().filter(|m| read(m)).map(ratio);
    Fit {
        read: of_read().count(),
        spread: (of_read().fold(f64::INFINITY, f64::min), of_read().fold(f64::NEG_INFINITY, f64::max)),
        error: (residual.max(0.0) / total[2].max(1e-12)).sqrt(),
        factors,
    }
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
