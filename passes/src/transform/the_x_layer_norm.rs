//! LayerNorm → x∘γ' + β', per channel (THE-X).
//!
//! The paper distils γ' and β' by the mean squared error against the real LayerNorm's output, layer by
//! layer. Per channel that is an ordinary least-squares line, so this pass solves it in closed form on the
//! calibration data: inputs from the graph as approximated so far, targets from the teacher. Only demanded elements count.

use ndarray::{ArrayD, IxDyn};
use thex_ir::{ClearOp, Graph, NodeId, Tensor};

use super::{Builder, chosen, fitting, vector};
use crate::analysis::demand;
use crate::choice::{Form, Kind};
use crate::error::Result;
use crate::options::PassOption;
use crate::pass::{Pass, PassCx};

/// See the module.
pub struct TheXLayerNorm {
    /// Samples that the fit looks at.
    pub samples: usize,
}

impl Default for TheXLayerNorm {
    fn default() -> Self {
        Self { samples: 512 }
    }
}

impl Pass for TheXLayerNorm {
    fn name(&self) -> &'static str {
        "the-x-layer-norm"
    }

    fn description(&self) -> &'static str {
        "replace layer norms by a line per channel, fitted to the calibration data, as THE-X does"
    }

    fn source(&self) -> &'static str {
        include_str!("the_x_layer_norm.rs")
    }

    fn options(&mut self) -> Vec<PassOption<'_>> {
        vec![PassOption::count(
            "samples",
            &mut self.samples,
            1..=1 << 20,
            "most calibration samples that the lines are fitted to",
        )]
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        let nodes = chosen(graph, cx, Kind::LayerNorm, &[Form::Affine]);
        for &id in &nodes {
            let fit = fit(graph, id, cx, self.samples)?;
            let name = graph.node(id).name.clone();
            cx.approximations.push(format!(
                "{name}: layer norm replaced by a line per channel (THE-X), fitted to r² = {:.3}",
                fit.r_squared
            ));
            replace(graph, id, fit)?;
        }
        graph.remove_dead();
        cx.count("replaced", nodes.len() as u64);
        Ok(!nodes.is_empty())
    }
}

/// γ', β' and how much of the target's variance they explain.
struct Fit {
    gain: Vec<f64>,
    bias: Vec<f64>,
    r_squared: f64,
}

/// Σ1, Σx, Σy, Σx², Σxy, Σy² of one channel.
type Moments = [f64; 6];

fn fit(graph: &Graph, id: NodeId, cx: &PassCx, samples: usize) -> Result<Fit> {
    let node = graph.node(id);
    let channels = node.shape.last().copied().unwrap_or(1);
    let flags = &demand(graph)[&id];
    let partials = fitting::measure(graph, id, cx, samples, |x, y| moments_of(x, y, flags, channels))?;
    // Summed in order, so that the result does not depend on the number of threads.
    let moments = partials.iter().fold(vec![[0.0; 6]; channels], |sum, part| add(sum, part));
    if moments.iter().any(|m| m[0] < 1.0) {
        return Err(fitting::no_sample(graph, id));
    }
    Ok(solve(&moments))
}

fn moments_of(x: &Tensor, y: &Tensor, flags: &[bool], channels: usize) -> Vec<Moments> {
    let mut moments = vec![[0.0; 6]; channels];
    for (i, ((x, y), _)) in x.iter().zip(y.iter()).zip(flags).enumerate().filter(|(_, (_, f))| **f) {
        let m = &mut moments[i % channels];
        for (slot, value) in m.iter_mut().zip([1.0, *x, *y, x * x, x * y, y * y]) {
            *slot += value;
        }
    }
    moments
}

fn add(mut a: Vec<Moments>, b: &[Moments]) -> Vec<Moments> {
    for (a, b) in a.iter_mut().flatten().zip(b.iter().flatten()) {
        *a += b;
    }
    a
}

fn solve(moments: &[Moments]) -> Fit {
    let (mut gain, mut bias, mut residual, mut total) = (Vec::new(), Vec::new(), 0.0, 0.0);
    for [n, sx, sy, sxx, sxy, syy] in moments {
        let (cov, var_x, var_y) = (sxy - sx * sy / n, sxx - sx * sx / n, syy - sy * sy / n);
        let slope = if var_x > 1e-12 { cov / var_x } else { 0.0 };
        gain.push(slope);
        bias.push((sy - slope * sx) / n);
        residual += var_y - slope * cov;
        total += var_y;
    }
    Fit { gain, bias, r_squared: 1.0 - residual / f64::max(total, 1e-12) }
}

fn replace(graph: &mut Graph, id: NodeId, fit: Fit) -> Result<()> {
    let n = fit.gain.len();
    let source = graph.operands(id)[0];
    let mut build = Builder::replacing(graph, id);
    let mut diagonal = ArrayD::zeros(IxDyn(&[n, n]));
    for (i, gain) in fit.gain.iter().enumerate() {
        diagonal[[i, i]] = *gain;
    }
    let gain = build.constant("gain", diagonal);
    let bias = build.constant("bias", vector(fit.bias));
    let affine = build.clear("affine", ClearOp::Linear, &[source, gain, bias])?;
    graph.replace_uses(id, affine);
    Ok(())
}
