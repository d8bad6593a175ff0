//! Runs the calibration samples and records the range of every class of every private tensor.
//!
//! Only demanded elements count. Ranges are widened on each side by a margin, or by as much as one half of the samples leaves the
//! range of the other, whichever is more: tensors with heavy tails get more room. arguments of log, 1/x and 1/√x (sums of
//! exponentials or cubes, variances) have more headroom above, since past the half torus a value wraps and no
//! clamp sees it. Below, the function itself is held at the least value seen, less a margin: near 0 it would explode.

use std::collections::BTreeMap;
use std::sync::Arc;

use rayon::prelude::*;
use thex_ir::graph::{Ranges, Seen};
use thex_ir::{ClearOp, Graph, NodeId, Op, Stage, UnaryFn, interpret};

use crate::analysis::{classes, demand, private_nodes};
use crate::error::{PassError, Problem, Result};
use crate::options::PassOption;
use crate::pass::{Pass, PassCx};

/// See the module.
pub struct Calibrate {
    /// Headroom above the largest argument of 1/x and 1/√x.
    pub headroom: f64,
    /// Headroom above the largest argument of log: whose result hardly needs precision, while its overflow ruins a row.
    pub log_headroom: f64,
    /// Largest margin that a heavy tail may ask for.
    pub tail_margin: f64,
}

impl Default for Calibrate {
    fn default() -> Self {
        Self { headroom: 1.5, log_headroom: 2.5, tail_margin: 0.5 }
    }
}

#[derive(Clone)]
struct Extent {
    lo: Vec<f64>,
    hi: Vec<f64>,
    square: Vec<f64>,
    count: Vec<f64>,
    /// Extremes over even and odd samples, to see how far one half leaves the other's range.
    halves: [(Vec<f64>, Vec<f64>); 2],
}

impl Extent {
    fn new(classes: usize) -> Self {
        Self {
            lo: vec![f64::INFINITY; classes],
            hi: vec![f64::NEG_INFINITY; classes],
            square: vec![0.0; classes],
            count: vec![0.0; classes],
            halves: [(); 2].map(|()| (vec![f64::INFINITY; classes], vec![f64::NEG_INFINITY; classes])),
        }
    }

    fn see(&mut self, class: usize, value: f64, sample: usize) {
        let (lo, hi) = &mut self.halves[sample % 2];
        lo[class] = lo[class].min(value);
        hi[class] = hi[class].max(value);
        self.lo[class] = self.lo[class].min(value);
        self.hi[class] = self.hi[class].max(value);
        self.square[class] += value * value;
        self.count[class] += 1.0;
    }

    fn merge(&mut self, other: &Self) {
        for c in 0..self.lo.len() {
            self.lo[c] = self.lo[c].min(other.lo[c]);
            self.hi[c] = self.hi[c].max(other.hi[c]);
            self.square[c] += other.square[c];
            self.count[c] += other.count[c];
            for (mine, theirs) in self.halves.iter_mut().zip(&other.halves) {
                mine.0[c] = mine.0[c].min(theirs.0[c]);
                mine.1[c] = mine.1[c].max(theirs.1[c]);
            }
        }
    }

    /// How far one half of the samples leaves the range of the other, at most over the classes, in widths of the range. What new
    /// samples will do to the range of all of them.
    fn overshoot(&self) -> f64 {
        let [even, odd] = &self.halves;
        let beyond = |c: usize| {
            let width = self.hi[c] - self.lo[c];
            let seen = even.0[c].is_finite() && odd.0[c].is_finite() && width > 0.0;
            let worst = (even.0[c] - odd.0[c]).abs().max((even.1[c] - odd.1[c]).abs());
            if seen { worst / width } else { 0.0 }
        };
        (0..self.lo.len()).map(beyond).fold(0.0, f64::max)
    }
}

impl Pass for Calibrate {
    fn name(&self) -> &'static str {
        "calibrate"
    }

    fn description(&self) -> &'static str {
        "run the calibration data and record the range of every channel, with margins"
    }

    fn source(&self) -> &'static str {
        include_str!("calibrate.rs")
    }

    fn options(&mut self) -> Vec<PassOption<'_>> {
        vec![
            PassOption::number(
                "headroom",
                &mut self.headroom,
                1.0..=16.0,
                "headroom above the largest argument of 1/x and 1/√x",
            ),
            PassOption::number(
                "log-headroom",
                &mut self.log_headroom,
                1.0..=64.0,
                "headroom above the largest argument of log",
            ),
            PassOption::number(
                "tail-margin",
                &mut self.tail_margin,
                0.0..=4.0,
                "largest margin that a heavy tail may ask for",
            ),
        ]
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<bool> {
        if cx.samples.is_empty() {
            return Err(PassError::Invalid("calibration needs at least one sample".into()));
        }
        let private = private_nodes(graph);
        let demand = demand(graph);
        let classes = classes(graph);
        let nodes: Vec<NodeId> = graph.ids().filter(|id| private.contains(id)).collect();
        let empty: Vec<Extent> =
            nodes.iter().map(|id| Extent::new(classes[id].iter().max().map_or(0, |m| *m as usize + 1))).collect();
        let extents = cx
            .samples
            .par_iter()
            .enumerate()
            .try_fold(
                || empty.clone(),
                |mut extents, (number, sample)| -> Result<Vec<Extent>> {
                    let values = interpret::run_all(graph, sample)?;
                    for (id, extent) in nodes.iter().zip(&mut extents) {
                        let flags = &demand[id];
                        for ((value, class), _) in values[id].iter().zip(&classes[id]).zip(flags).filter(|(_, f)| **f) {
                            extent.see(*class as usize, *value, number);
                        }
                    }
                    Ok(extents)
                },
            )
            .try_reduce(
                || empty.clone(),
                |mut a, b| {
                    a.iter_mut().zip(&b).for_each(|(a, b)| a.merge(b));
                    Ok(a)
                },
            )?;
        let mut measured: Vec<(NodeId, Extent)> = nodes.iter().copied().zip(extents).collect();
        let position: BTreeMap<NodeId, usize> =
            graph.topological().into_iter().enumerate().map(|(i, n)| (n, i)).collect();
        measured.sort_by_key(|(id, _)| position[id]);
        for (id, extent) in &measured {
            let positive = positive_users(graph, *id);
            hold_from_below(graph, &positive, extent, cx.precision.margin);
            let margin = cx.precision.margin.max(extent.overshoot().min(self.tail_margin));
            let mut ranges = widen(extent, classes[id].clone(), margin, self.headroom(graph, &positive));
            keep_width(graph, *id, &mut ranges);
            check_finite(graph, *id, &ranges)?;
            let facts = &mut graph.node_mut(*id).facts;
            facts.ranges = Some(Arc::new(ranges));
            facts.seen = Some(Arc::new(Seen { lo: extent.lo.clone(), hi: extent.hi.clone() }));
        }
        graph.stage = Stage::Calibrated;
        cx.count("tensors", nodes.len() as u64);
        cx.count("samples", cx.samples.len() as u64);
        Ok(true)
    }
}

/// Users that take log, 1/x or 1/√x of the node.
fn positive_users(graph: &Graph, id: NodeId) -> Vec<NodeId> {
    let positive = |f: &UnaryFn| matches!(f, UnaryFn::Log | UnaryFn::Reciprocal | UnaryFn::Rsqrt);
    let takes =
        |user: &NodeId| matches!(graph.clear_op(*user), Some(ClearOp::Unary { chain }) if chain.0.iter().any(positive));
    graph.users(id).into_iter().map(|(user, _)| user).filter(takes).collect()
}

/// Clamps the argument of functions that explode near 0 at the least value seen, less a margin.
fn hold_from_below(graph: &mut Graph, users: &[NodeId], extent: &Extent, margin: f64) {
    let least = extent.lo.iter().copied().fold(f64::INFINITY, f64::min);
    if !(least.is_finite() && least > 0.0) {
        return;
    }
    for &user in users {
        if let Op::Clear(ClearOp::Unary { chain }) = &mut graph.node_mut(user).op {
            chain.0.insert(0, UnaryFn::Clamp { lo: least / (1.0 + 2.0 * margin), hi: f64::MAX });
        }
    }
}

impl Calibrate {
    /// Factor above the largest value seen, for arguments of these functions.
    fn headroom(&self, graph: &Graph, users: &[NodeId]) -> Option<f64> {
        let takes_log = |user: &NodeId| matches!(graph.clear_op(*user), Some(ClearOp::Unary { chain }) if chain.0.contains(&UnaryFn::Log));
        let factor = if users.iter().any(takes_log) { self.log_headroom } else { self.headroom };
        (!users.is_empty()).then_some(factor)
    }
}

/// Part of the least argument of log, 1/x and 1/√x that is left as room for noise below it.
const ROOM_BELOW: f64 = 0.2;

fn widen(extent: &Extent, class: Vec<u32>, margin: f64, headroom: Option<f64>) -> Ranges {
    let (mut lo, mut hi, mut rms) = (Vec::new(), Vec::new(), Vec::new());
    for c in 0..extent.lo.len() {
        if extent.count[c] < 1.0 {
            lo.push(0.0);
            hi.push(0.0);
            rms.push(0.0);
            continue;
        }
        let (low, high) = (extent.lo[c], extent.hi[c]);
        let slack = margin * (high - low);
        // Values that hardly vary (a variance after a norm) still carry the noise of what they are made of.
        let room_below = if headroom.is_some() && low > 0.0 { low * (1.0 - ROOM_BELOW) } else { low };
        lo.push((low - slack).min(room_below));
        hi.push(headroom.map_or(high + slack, |factor| (high * factor).max(high + slack)));
        rms.push((extent.square[c] / extent.count[c]).sqrt());
    }
    Ranges { class, lo, hi, rms }
}

/// Differences may cancel to nothing (a softmax over one token). An encoding that magnifies what is left would need
/// huge weights, so a range is kept at least this fraction of the tensor's magnitude, and a sum's of its operands'.
const LEAST_WIDTH: f64 = 1.0 / 4096.0;

/// The same for each channel, of its own magnitude: what products and encrypted tables give is precise to 8 bits or so of that, and a
/// channel that hardly varies (an outlier of a class token) must not be carried out of its range by it.
const LEAST_RELATIVE_WIDTH: f64 = 1.0 / 16.0;

fn keep_width(graph: &Graph, id: NodeId, ranges: &mut Ranges) {
    let sums = matches!(graph.clear_op(id), Some(ClearOp::Add | ClearOp::Linear | ClearOp::Reduce { .. }));
    let magnitude = |r: &Ranges| r.lo.iter().chain(&r.hi).map(|v| v.abs()).fold(0.0, f64::max);
    let operands = graph.operands(id);
    let of_operands = operands.iter().filter_map(|&o| graph.node(o).facts.ranges.as_deref().map(magnitude));
    let largest = if sums { of_operands.fold(0.0, f64::max) } else { 0.0 };
    let least = largest.max(magnitude(ranges)) * LEAST_WIDTH;
    for (lo, hi) in ranges.lo.iter_mut().zip(&mut ranges.hi) {
        let own = lo.abs().max(hi.abs()) * LEAST_RELATIVE_WIDTH;
        let lack = (least.max(own) - (*hi - *lo)).max(0.0);
        *lo -= 0.5 * lack;
        *hi += 0.5 * lack;
    }
}

/// Magnitude beyond which a tensor is a mask, or has exploded: no encoding could hold it together with anything else.
const MOST_MAGNITUDE: f64 = 1e9;

fn check_finite(graph: &Graph, id: NodeId, ranges: &Ranges) -> Result<()> {
    let node = graph.node(id);
    let ends = || ranges.lo.iter().chain(&ranges.hi);
    if !ends().all(|v| v.is_finite()) {
        return Err(PassError::Invalid(format!(
            "`{}` (from ONNX node {}) is not finite on the calibration data: check the data for NaN or infinite values",
            node.name,
            node.origin.join(", ")
        )));
    }
    let largest = ends().fold(0.0_f64, |m, v| m.max(v.abs()));
    if largest > MOST_MAGNITUDE {
        let why = format!("its values reach {largest:.1e}, as those of an attention mask made from an input do");
        let help = "masks that depend on an input cannot be encrypted yet: export the model without one, for inputs of a fixed length";
        return Err(PassError::Unsupported(vec![Problem::new(graph, id, why, help)]));
    }
    Ok(())
}
