//! The circuit's noise, as a student meets it in training.
//!
//! What limits precision is the noise of look-up *arguments* (keyswitch and modulus switch): a fixed part of the torus, so a
//! fixed part of the calibrated range of each channel. So every value that a circuit would look up is disturbed, before the
//! function, by that part of its range, and operands that rotate in products by as many times more as products share the
//! rotation. Noise of outputs is two thousand times smaller and left out. How many products share a rotation is settled only in
//! a circuit; training takes a middling number.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor as Candle};
use thex_ir::he::Domain;
use thex_ir::{ClearOp, Graph, NodeId, UnaryFn};
use thex_passes::PassCx;
use thex_passes::analysis::{classes, demand, private_nodes};
use thex_passes::lower::usable;

use super::program::{Perturb, Run, Use};
use super::random::Random;
use crate::error::Result;

/// Products that share a rotation, as training assumes.
const SLOTS: usize = 4;

/// A use whose value is looked up.
struct Site {
    at: Use,
    source: NodeId,
    /// Products that share the rotation.
    slots: usize,
    /// Whether its range is centred at 0, as operands of products must be.
    centred: bool,
    class: Vec<u32>,
    demanded: Vec<bool>,
}

/// Where noise enters, and how much of a range it is.
pub(super) struct NoisySites {
    sites: Vec<Site>,
    /// Standard deviation as a part of the range, by products that share a rotation.
    parts: BTreeMap<usize, f64>,
}

/// Standard deviation at every element of every use, shaped like one sample.
pub(super) type Levels = BTreeMap<Use, Candle>;

impl NoisySites {
    /// Of a graph, `times` the modelled noise.
    pub(super) fn new(graph: &Graph, cx: &PassCx, times: f64) -> Self {
        let (private, class, demand) = (private_nodes(graph), classes(graph), demand(graph));
        let uses = graph.topological().into_iter().flat_map(|id| uses(graph, id, &private));
        let site = |(at, slots, centred): (Use, usize, bool)| {
            let source = graph.operands(at.0)[at.1];
            Site { at, source, slots, centred, class: class[&source].clone(), demanded: demand[&source].clone() }
        };
        let part = |slots: usize| {
            let reach = usable(&cx.parameters, Domain::new(cx.parameters.polynomial_size.0 / slots));
            times * cx.noise().argument().sqrt() * (1.0 + 2.0 * cx.precision.margin) / reach
        };
        Self { sites: uses.map(site).collect(), parts: [1, SLOTS].map(|s| (s, part(s))).into() }
    }

    /// Levels for the ranges that values have in a run.
    pub(super) fn levels(&self, run: &Run<'_>) -> Result<Levels> {
        let level = |site: &Site| {
            let value = &run.of(site.source)?.tensor;
            let flat = value.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
            let widths = site.widths(&flat);
            let part = self.parts[&site.slots];
            let level: Vec<f64> = site.class.iter().map(|&c| part * widths[c as usize]).collect();
            let level = Candle::from_vec(level, &value.dims()[1..], &Device::Cpu)?.to_dtype(value.dtype())?;
            Ok((site.at, level))
        };
        self.sites.iter().map(level).collect()
    }
}

impl Site {
    /// Width of the range of each class.
    fn widths(&self, values: &[f64]) -> Vec<f64> {
        let classes = self.class.iter().max().map_or(0, |c| *c as usize + 1);
        let mut ends = vec![(f64::INFINITY, f64::NEG_INFINITY); classes];
        for sample in values.chunks_exact(self.class.len().max(1)) {
            for ((value, &class), _) in sample.iter().zip(&self.class).zip(&self.demanded).filter(|(_, d)| **d) {
                let (lo, hi) = &mut ends[class as usize];
                (*lo, *hi) = (lo.min(*value), hi.max(*value));
            }
        }
        let width = |(lo, hi): &(f64, f64)| match (lo.is_finite(), self.centred) {
            (false, _) => 0.0,
            (true, true) => 2.0 * hi.abs().max(lo.abs()),
            (true, false) => hi - lo,
        };
        ends.iter().map(width).collect()
    }
}

/// Operands of a node that a circuit looks up.
fn uses(graph: &Graph, id: NodeId, private: &BTreeSet<NodeId>) -> Vec<(Use, usize, bool)> {
    let operands = graph.operands(id);
    let encrypted = |port: usize| operands.get(port).is_some_and(|o| private.contains(o));
    let Some(op) = graph.clear_op(id) else { return Vec::new() };
    match op {
        ClearOp::Unary { chain } if !chain.0.iter().all(|f| matches!(f, UnaryFn::Affine { .. })) && encrypted(0) => {
            vec![((id, 0), 1, false)]
        }
        ClearOp::Softmax { .. } | ClearOp::LayerNorm { .. } | ClearOp::RmsNorm { .. } if encrypted(0) => {
            vec![((id, 0), 1, false)]
        }
        ClearOp::MatMul if encrypted(0) && encrypted(1) => vec![((id, 0), SLOTS, true)],
        ClearOp::Mul if encrypted(0) && encrypted(1) => {
            let full = graph.node(operands[0]).shape == graph.node(id).shape;
            vec![((id, usize::from(!full)), 1, true)]
        }
        _ => Vec::new(),
    }
}

/// Fresh noise of the given levels.
pub(super) struct Noise<'l> {
    /// Standard deviations.
    pub(super) levels: &'l Levels,
    /// Where it comes from.
    pub(super) random: Random,
}

impl Perturb for Noise<'_> {
    fn perturb(&mut self, at: Use, value: &Candle) -> Result<Option<Candle>> {
        let Some(level) = self.levels.get(&at) else { return Ok(None) };
        let normals = self.random.normals(value.elem_count());
        let normals = Candle::from_vec(normals, value.dims(), &Device::Cpu)?.to_dtype(value.dtype())?;
        Ok(Some((value + normals.broadcast_mul(level)?)?))
    }
}
