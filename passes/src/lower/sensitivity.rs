//! What a small error at any ciphertext does to the outputs.
//!
//! Noise is small, so it propagates to first order: an independent error of variance v at an element adds
//! v·Σ_o (∂out_o/∂element)² to the summed squared error of the outputs. The gradients are taken by running the lowered
//! graph backwards on calibration samples with random signs on the outputs (E over signs of the squared
//! gradient is that sum). Everything that chooses scales, boxes or refreshes uses this one analysis.
//!
//! Derivatives of look-ups are taken over a step of one argument-noise deviation, so kinks are smoothed as
//! the noise smooths them.
//!
//! Rounding is not independent noise: one rounded weight serves every token, and one rounded table entry every slot of a
//! rotation. What such an error does is the gradient with respect to the weight, or to the table's value, summed over all its uses
//! before squaring ([`rounding`]). Values of the tokens of one sample have much in common, so this matters: taken as
//! independent, the errors of a BERT of 24 tokens were predicted at a sixth of what they were.

use std::collections::BTreeMap;
use std::sync::Arc;

use rayon::prelude::*;
use thex_ir::he::sum_of_products;
use thex_ir::interpret::{self, Values};
use thex_ir::{Address, Graph, HeLinear, HeOp, NodeId, Op, Tensor};

use super::usable;
use crate::error::Result;
use crate::pass::PassCx;

/// Samples that are run backwards: as many as keep the work bounded, within these.
const SAMPLES: std::ops::RangeInclusive<usize> = 12..=48;

/// Ciphertexts times samples that are run backwards.
const MAX_WORK: usize = 1 << 26;

/// Samples whose gradients are in memory at the same time.
const BATCH: usize = 4;

/// Precision that the floor of [`Sensitivity::floored`] asks of an encoding.
pub const LEAST_PRECISION: f64 = 1.0 / 128.0;

/// Precision that it asks of the rotating operand of a product. Where the outputs are saturated (a tanh, a sure class) the
/// gradient says that attention does not matter and 3 bits of it will do; noise of that size leaves the flat region.
pub const LEAST_ROTATION: f64 = 1.0 / 24.0;

/// See [`Sensitivity::floored`].
pub const FLOOR_SHARE: f64 = 0.1;

/// Mean squared gradients and values of every ciphertext.
#[derive(Clone, Debug)]
pub struct Sensitivity {
    /// For each homomorphic node and element: E Σ_o (∂out_o/∂element)².
    pub gradient: BTreeMap<NodeId, Vec<f64>>,
    /// For each homomorphic node and element: E value².
    pub square: BTreeMap<NodeId, Vec<f64>>,
    /// For each homomorphic node and element: E value.
    pub mean: BTreeMap<NodeId, Vec<f64>>,
    /// For each `pbs` and element: E g²·f′ and E g²·f′², g² the squared gradient and f′ the derivative of what is looked up.
    pub rates: BTreeMap<NodeId, Vec<[f64; 2]>>,
    /// What [`floored`](Self::floored) has added to the gradients.
    pub floor: BTreeMap<NodeId, Vec<f64>>,
    /// Standard deviation of the outputs over the samples, root mean square over output elements.
    pub output_spread: f64,
    /// Number of output elements.
    pub outputs: usize,
    widths: BTreeMap<NodeId, Vec<f64>>,
}

impl Sensitivity {
    /// The same with a floor under every gradient, so that a noise of `least` of its range at all elements of a
    /// node costs [`FLOOR_SHARE`] of `budget`, the variance allowed at the outputs.
    ///
    /// Some errors cancel to first order (the shift of a softmax is common to its row), but not when they carry a
    /// value out of its look-up's domain. Whoever minimises error must not be told that such a value is worth nothing.
    #[must_use]
    pub fn floored(&self, budget: f64, least: f64) -> Self {
        let mut floored = self.clone();
        for (id, gradient) in &mut floored.gradient {
            let Some(widths) = self.widths.get(id) else { continue };
            let share = FLOOR_SHARE * budget / gradient.len().max(1) as f64;
            let of = |width: f64| if width > 0.0 { share / (width * least).powi(2) } else { 0.0 };
            let floor: Vec<f64> = widths.iter().map(|w| of(*w)).collect();
            gradient.iter_mut().zip(&floor).for_each(|(g, f)| *g += f);
            floored.floor.insert(*id, floor);
        }
        floored
    }

    /// Takes the ranges of a graph with the same nodes.
    pub(super) fn set_widths(&mut self, graph: &Graph) {
        self.widths.iter_mut().for_each(|(id, of_node)| *of_node = widths(graph, *id));
    }

    /// Σ over elements of gradient × (width of the range)²: times the variance of a noise relative to the range, this
    /// is the variance that it adds to the outputs.
    #[must_use]
    pub fn weighted_width(&self, id: &NodeId) -> f64 {
        let (Some(gradient), Some(widths)) = (self.gradient.get(id), self.widths.get(id)) else { return 0.0 };
        gradient.iter().zip(widths).map(|(g, w)| g * w * w).sum()
    }
}

#[derive(Clone)]
struct Totals {
    gradient: Vec<Vec<f64>>,
    square: Vec<Vec<f64>>,
    mean: Vec<Vec<f64>>,
    rates: Vec<Vec<[f64; 2]>>,
    outputs: Vec<(f64, f64)>,
}

impl Totals {
    fn new(graph: &Graph, nodes: &[NodeId]) -> Self {
        let zeros: Vec<Vec<f64>> = nodes.iter().map(|&id| vec![0.0; graph.node(id).shape.iter().product()]).collect();
        let outputs = graph.outputs.iter().map(|(_, id)| graph.node(*id).shape.iter().product::<usize>()).sum();
        let look_up = |id: &NodeId| matches!(&graph.node(*id).op, Op::He(HeOp::Pbs { .. }));
        let rates =
            nodes.iter().zip(&zeros).map(|(id, z)| vec![[0.0; 2]; if look_up(id) { z.len() } else { 0 }]).collect();
        Self { gradient: zeros.clone(), square: zeros.clone(), mean: zeros, rates, outputs: vec![(0.0, 0.0); outputs] }
    }

    fn merge(mut self, other: &Self) -> Self {
        let pairs =
            [(&mut self.gradient, &other.gradient), (&mut self.square, &other.square), (&mut self.mean, &other.mean)];
        for (mine, theirs) in pairs {
            for (a, b) in mine.iter_mut().flatten().zip(theirs.iter().flatten()) {
                *a += b;
            }
        }
        for (a, b) in self.rates.iter_mut().flatten().zip(other.rates.iter().flatten()) {
            *a = [a[0] + b[0], a[1] + b[1]];
        }
        for (a, b) in self.outputs.iter_mut().zip(&other.outputs) {
            *a = (a.0 + b.0, a.1 + b.1);
        }
        self
    }
}

/// Runs the analysis on a lowered graph.
///
/// # Errors
/// When the graph cannot be evaluated on the calibration data.
pub fn analyse(graph: &Graph, cx: &PassCx) -> Result<Sensitivity> {
    let order = graph.topological();
    let steps = derivative_steps(graph, cx);
    let samples = chosen_samples(graph, cx);
    let numbered: Vec<(u64, &Vec<Arc<Tensor>>)> = (0..).zip(samples.iter().copied()).collect();
    let mut sums = Totals::new(graph, &order);
    for batch in numbered.chunks(BATCH) {
        let partial = |(seed, sample): &(u64, &Vec<Arc<Tensor>>)| -> Result<Totals> {
            let values = interpret::run_all(graph, sample)?;
            Ok(totals(graph, &order, &values, &steps, *seed))
        };
        let partials = batch.par_iter().map(partial).collect::<Result<Vec<_>>>()?;
        // Summed in order, so that the result does not depend on the number of threads.
        sums = partials.iter().fold(sums, |sum, part| sum.merge(part));
    }
    let n = samples.len().max(1) as f64;
    let average = |v: Vec<f64>| v.into_iter().map(|x| x / n).collect::<Vec<f64>>();
    let variance: f64 = sums.outputs.iter().map(|(s, q)| q / n - (s / n).powi(2)).sum();
    let outputs = sums.outputs.len();
    Ok(Sensitivity {
        gradient: order.iter().copied().zip(sums.gradient.into_iter().map(average)).collect(),
        square: order.iter().copied().zip(sums.square.into_iter().map(average)).collect(),
        mean: order.iter().copied().zip(sums.mean.into_iter().map(average)).collect(),
        rates: order
            .iter()
            .copied()
            .zip(sums.rates)
            .filter(|(_, rates)| !rates.is_empty())
            .map(|(id, rates)| (id, rates.into_iter().map(|r| r.map(|x| x / n)).collect()))
            .collect(),
        floor: BTreeMap::new(),
        output_spread: (variance / outputs.max(1) as f64).max(1e-12).sqrt(),
        outputs,
        widths: order.iter().map(|&id| (id, widths(graph, id))).collect(),
    })
}

/// Calibration samples that are run backwards, evenly spaced.
pub(super) fn chosen_samples<'a>(graph: &Graph, cx: &'a PassCx) -> Vec<&'a Vec<Arc<Tensor>>> {
    let ciphertexts: usize = graph.ids().map(|id| graph.node(id).shape.iter().product::<usize>()).sum();
    let count = (MAX_WORK / ciphertexts.max(1)).clamp(*SAMPLES.start(), *SAMPLES.end());
    let stride = cx.samples.len().div_ceil(count).max(1);
    cx.samples.iter().step_by(stride).collect()
}

fn widths(graph: &Graph, id: NodeId) -> Vec<f64> {
    let node = graph.node(id);
    let count = node.shape.iter().product();
    let ranges = node.facts.ranges.as_ref();
    (0..count).map(|i| ranges.map_or(0.0, |r| r.of(i).1 - r.of(i).0)).collect()
}

/// For each keyswitch element: (step, lo, hi) over which its look-ups are differentiated.
fn derivative_steps(graph: &Graph, cx: &PassCx) -> Steps {
    let noise = cx.noise();
    let mut steps = BTreeMap::new();
    for id in graph.ids() {
        let Op::He(HeOp::Keyswitch { domain, .. }) = &graph.node(id).op else { continue };
        let sigma = noise.extended_argument(domain.extension).sqrt();
        let Some(ranges) = &graph.node(id).facts.ranges else { continue };
        let reach = usable(&cx.parameters, *domain);
        let of = |i| {
            let (lo, hi) = ranges.of(i);
            (sigma * (hi - lo) / reach, lo, hi)
        };
        steps.insert(id, (0..ranges.class.len()).map(of).collect());
    }
    steps
}

/// Derivative of a look-up of f that saturates outside [lo, hi], over ±step.
fn slope(f: impl Fn(f64) -> f64, x: f64, (step, lo, hi): (f64, f64, f64)) -> f64 {
    let (a, b) = ((x - step).clamp(lo, hi), (x + step).clamp(lo, hi));
    if step <= 0.0 {
        return 0.0;
    }
    (f(b) - f(a)) / (2.0 * step)
}

/// splitmix64: signs for the outputs.
fn sign(seed: u64, index: u64) -> f64 {
    let mut z = (seed << 32 ^ index).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    if (z ^ (z >> 31)) & 1 == 0 { 1.0 } else { -1.0 }
}

type Gradients = BTreeMap<NodeId, Vec<f64>>;
type Steps = BTreeMap<NodeId, Vec<(f64, f64, f64)>>;

/// Runs the graph backwards and shows every node's gradient (by its place in `order`) to `visit`.
fn backward(
    graph: &Graph,
    order: &[NodeId],
    values: &Values,
    steps: &Steps,
    seed: u64,
    mut visit: impl FnMut(usize, &[f64]),
) {
    let mut gradients: Gradients =
        order.iter().map(|&id| (id, vec![0.0; graph.node(id).shape.iter().product()])).collect();
    let mut output = 0;
    for (_, id) in &graph.outputs {
        for g in gradients.entry(*id).or_default() {
            *g = sign(seed, output);
            output += 1;
        }
    }
    for (position, &id) in order.iter().enumerate().rev() {
        let gradient = gradients.remove(&id).unwrap_or_default();
        if let Op::He(op) = &graph.node(id).op {
            propagate(op, &graph.operands(id), &gradient, values, steps, &mut gradients);
        }
        visit(position, &gradient);
    }
}

/// What one sample adds to the totals.
fn totals(graph: &Graph, order: &[NodeId], values: &Values, steps: &Steps, seed: u64) -> Totals {
    let mut totals = Totals::new(graph, order);
    let outputs = graph.outputs.iter().flat_map(|(_, id)| values[id].iter());
    totals.outputs = outputs.map(|v| (*v, v * v)).collect();
    backward(graph, order, values, steps, seed, |position, gradient| {
        let value = &values[&order[position]];
        totals.gradient[position] = gradient.iter().map(|g| g * g).collect();
        totals.mean[position] = value.iter().copied().collect();
        totals.square[position] = value.iter().map(|v| v * v).collect();
        totals.rates[position] = rates(graph, order[position], gradient, values, steps);
    });
    totals
}

/// g²·f′ and g²·f′² of each element of a `pbs` in one sample.
fn rates(graph: &Graph, id: NodeId, gradient: &[f64], values: &Values, steps: &Steps) -> Vec<[f64; 2]> {
    let Op::He(HeOp::Pbs { function }) = &graph.node(id).op else { return Vec::new() };
    let keyswitch = graph.operands(id)[0];
    let of = |((x, g), step): ((&f64, &f64), &(f64, f64, f64))| {
        let rate = slope(|x| function.apply(x), *x, *step);
        [g * g * rate, g * g * rate * rate]
    };
    values[&keyswitch].iter().zip(gradient).zip(&steps[&keyswitch]).map(of).collect()
}

/// Variance at the outputs of rounding with variance 1 in integer units, at amplitude 1 of every encoding.
#[derive(Clone, Debug, Default)]
pub struct Rounding {
    /// Weights, by linear map and the node that they multiply.
    pub weights: BTreeMap<(NodeId, NodeId), f64>,
    /// The same for what the floor under the gradients adds to each output element of the map.
    pub floors: BTreeMap<(NodeId, NodeId), f64>,
    /// Tables, by product.
    pub tables: BTreeMap<NodeId, f64>,
}

impl Rounding {
    fn add(&mut self, other: &Self, factor: f64) {
        other.weights.iter().for_each(|(k, v)| *self.weights.entry(*k).or_default() += factor * v);
        other.floors.iter().for_each(|(k, v)| *self.floors.entry(*k).or_default() += factor * v);
        other.tables.iter().for_each(|(k, v)| *self.tables.entry(*k).or_default() += factor * v);
    }
}

/// What rounding weights and tables does to the outputs, with floors from `sensitivity`. `scale` gives the scale of an element at amplitude 1; the mean
/// values in `sensitivity` are taken off, since a correction of the bias takes care of them.
///
/// # Errors
/// When the graph cannot be evaluated on the calibration data.
pub fn rounding(
    graph: &Graph,
    cx: &PassCx,
    sensitivity: &Sensitivity,
    scale: &(impl Fn(NodeId, usize) -> f64 + Sync),
) -> Result<Rounding> {
    let order = graph.topological();
    let steps = derivative_steps(graph, cx);
    let classes = column_classes(graph, scale);
    let samples = chosen_samples(graph, cx);
    let partial = |(seed, sample): (usize, &&Vec<Arc<Tensor>>)| -> Result<Rounding> {
        let values = interpret::run_all(graph, sample)?;
        let mut found = Rounding::default();
        backward(graph, &order, &values, &steps, seed as u64, |position, gradient| {
            let id = order[position];
            match &graph.node(id).op {
                Op::He(HeOp::Linear { map, .. }) => {
                    let site = Site { graph, id, gradient, values: &values, sensitivity };
                    weight_gradients(&site, map, &classes, scale, &mut found);
                }
                Op::He(HeOp::LutProduct { argument, accumulator, slots, sums, .. }) => {
                    let group_of = sum_of_products(argument.len(), sums.as_ref());
                    let site = Site { graph, id, gradient, values: &values, sensitivity };
                    let variance = table_gradients(&site, (argument, accumulator, *slots, &group_of), scale);
                    found.tables.insert(id, variance);
                }
                _ => {}
            }
        });
        Ok(found)
    };
    let partials = samples.par_iter().enumerate().map(partial).collect::<Result<Vec<_>>>()?;
    let mut sum = Rounding::default();
    partials.iter().for_each(|p| sum.add(p, 1.0 / samples.len().max(1) as f64));
    Ok(sum)
}

/// A node, with what is known of it in one sample.
struct Site<'a> {
    graph: &'a Graph,
    id: NodeId,
    gradient: &'a [f64],
    values: &'a Values,
    sensitivity: &'a Sensitivity,
}

/// Columns of a weight set that are equal, operand scales included, and so are rounded alike: the attended tokens of a channel
/// under an output projection.
struct ColumnClasses {
    /// Class of each column; [`u32::MAX`] for absent operands.
    class: Vec<u32>,
    /// First column of each class.
    first: Vec<usize>,
}

type Classes = BTreeMap<(NodeId, u32), ColumnClasses>;

/// Column classes of every weight set of every linear map.
fn column_classes(graph: &Graph, scale: &impl Fn(NodeId, usize) -> f64) -> Classes {
    let mut classes = Classes::new();
    for id in graph.ids() {
        let Op::He(HeOp::Linear { map, .. }) = &graph.node(id).op else { continue };
        let operands = graph.operands(id);
        for (g, &set) in map.set.iter().enumerate().filter(|_| map.operands > 0) {
            classes.entry((id, set)).or_insert_with(|| classify(map, g, set, &operands, scale));
        }
    }
    classes
}

fn classify(
    map: &HeLinear,
    group: usize,
    set: u32,
    operands: &[NodeId],
    scale: &impl Fn(NodeId, usize) -> f64,
) -> ColumnClasses {
    let (m, k) = (map.outputs, map.operands);
    let weights = &map.weights[set as usize * m * k..(set as usize + 1) * m * k];
    let mut known: BTreeMap<(NodeId, Vec<u64>), u32> = BTreeMap::new();
    let mut classes = ColumnClasses { class: Vec::with_capacity(k), first: Vec::new() };
    for (c, address) in map.gather[group * k..(group + 1) * k].iter().enumerate() {
        if *address == Address::ABSENT {
            classes.class.push(u32::MAX);
            continue;
        }
        let source = operands[address.port as usize];
        let mut bits: Vec<u64> = (0..m).map(|r| weights[r * k + c].to_bits()).collect();
        bits.push(scale(source, address.index as usize).to_bits());
        let class = *known.entry((source, bits)).or_insert_with(|| {
            classes.first.push(c);
            classes.first.len() as u32 - 1
        });
        classes.class.push(class);
    }
    classes
}

/// Squared gradients with respect to the rounded weights of a linear map.
fn weight_gradients(
    site: &Site<'_>,
    map: &HeLinear,
    classes: &Classes,
    scale: &impl Fn(NodeId, usize) -> f64,
    found: &mut Rounding,
) {
    let (m, k) = (map.outputs, map.operands);
    let operands = site.graph.operands(site.id);
    let centred: Vec<Vec<f64>> = operands
        .iter()
        .map(|o| site.values[o].iter().zip(&site.sensitivity.mean[o]).map(|(x, mean)| x - mean).collect())
        .collect();
    let mut groups: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    map.set.iter().enumerate().for_each(|(g, set)| groups.entry(*set).or_default().push(g));
    for (set, groups) in groups {
        let Some(columns) = classes.get(&(site.id, set)) else { continue };
        let n = columns.first.len();
        let first = groups[0];
        let out: Vec<f64> = (0..m).map(|r| scale(site.id, first * m + r)).collect();
        let floor = site.sensitivity.floor.get(&site.id);
        let mut total = vec![0.0; m * n];
        let mut squares = vec![0.0; n];
        for &g in &groups {
            let mut x = vec![0.0; n];
            for (a, class) in map.gather[g * k..(g + 1) * k].iter().zip(&columns.class).filter(|(_, c)| **c < u32::MAX)
            {
                x[*class as usize] += centred[a.port as usize][a.index as usize];
            }
            for (row, g) in total.chunks_exact_mut(n).zip(&site.gradient[g * m..(g + 1) * m]) {
                row.iter_mut().zip(&x).for_each(|(t, x)| *t += g * x);
            }
            let least: f64 =
                floor.map_or(0.0, |f| f[g * m..(g + 1) * m].iter().zip(&out).map(|(f, s)| f * s * s).sum());
            squares.iter_mut().zip(&x).for_each(|(s, x)| *s += least * x * x);
        }
        let weights = &map.weights[set as usize * m * k..(set as usize + 1) * m * k];
        for (class, &c) in columns.first.iter().enumerate() {
            let address = map.gather[first * k + c];
            let source = operands[address.port as usize];
            let down = scale(source, address.index as usize);
            let squared = |r: usize| (total[r * n + class] * out[r] / down).powi(2);
            let rounded = (0..m).filter(|r| weights[r * k + c] != 0.0).map(squared).sum::<f64>();
            *found.weights.entry((site.id, source)).or_default() += rounded;
            *found.floors.entry((site.id, source)).or_default() += squares[class] / (down * down);
        }
    }
}

/// Squared gradients with respect to the rounded table values of a product. Arguments at one position of one table meet the same rounding
/// error: all that they multiply is summed. (Probabilities of tokens that nothing attends to are all at 0.)
fn table_gradients(
    site: &Site<'_>,
    (argument, accumulator, slots, group_of): (&[u32], &[u32], usize, &[usize]),
    scale: &impl Fn(NodeId, usize) -> f64,
) -> f64 {
    let pack = site.graph.operands(site.id)[1];
    let Op::He(HeOp::Pack { gather, .. }) = &site.graph.node(pack).op else { return 0.0 };
    let sources = site.graph.operands(pack);
    let y: Vec<f64> = site.values[&pack].iter().copied().collect();
    let mut by_entry: BTreeMap<(u64, u64, i64), f64> = BTreeMap::new();
    for (r, (&a, &p)) in argument.iter().zip(accumulator).enumerate() {
        let entry = entry(site, a as usize);
        for s in 0..slots {
            let at = p as usize * slots + s;
            let address = gather[at];
            if address == Address::ABSENT {
                continue;
            }
            let down = scale(sources[address.port as usize], address.index as usize);
            let out = group_of[r] * slots + s;
            *by_entry.entry(entry).or_default() += site.gradient[out] * scale(site.id, out) * y[at] / down;
        }
    }
    by_entry.values().map(|g| g * g).sum()
}

/// Table and position that an argument of a product meets: tables differ by the range that they are made for.
fn entry(site: &Site<'_>, argument: usize) -> (u64, u64, i64) {
    let keyswitch = site.graph.operands(site.id)[0];
    let node = site.graph.node(keyswitch);
    let (Op::He(HeOp::Keyswitch { domain, .. }), Some(ranges)) = (&node.op, &node.facts.ranges) else {
        return (0, 0, argument as i64);
    };
    let (lo, hi) = ranges.of(argument);
    let x = site.values[&keyswitch].as_slice().map_or(0.0, |x| x[argument]);
    let position = (x - lo) / (hi - lo).max(f64::MIN_POSITIVE) * domain.positions as f64;
    (lo.to_bits(), hi.to_bits(), position as i64)
}

fn scatter(gather: &[Address], gradient: &[f64], operands: &[NodeId], gradients: &mut Gradients) {
    for (address, g) in gather.iter().zip(gradient).filter(|(a, _)| **a != Address::ABSENT) {
        if let Some(target) = gradients.get_mut(&operands[address.port as usize]) {
            target[address.index as usize] += g;
        }
    }
}

fn propagate(
    op: &HeOp,
    operands: &[NodeId],
    gradient: &[f64],
    values: &Values,
    steps: &Steps,
    gradients: &mut Gradients,
) {
    match op {
        HeOp::Encrypt => {}
        HeOp::Linear { map, .. } => propagate_linear(map, operands, gradient, gradients),
        HeOp::Keyswitch { gather, .. } | HeOp::Pack { gather, .. } | HeOp::Decrypt { gather } => {
            scatter(gather, gradient, operands, gradients);
        }
        HeOp::Pbs { function } => {
            let (x, steps) = (&values[&operands[0]], &steps[&operands[0]]);
            if let Some(target) = gradients.get_mut(&operands[0]) {
                for (i, (x, g)) in x.iter().zip(gradient).enumerate() {
                    target[i] += g * slope(|x| function.apply(x), *x, steps[i]);
                }
            }
        }
        HeOp::LutProduct { chain, argument, accumulator, slots, sums } => {
            let group_of = sum_of_products(argument.len(), sums.as_ref());
            let x: Vec<f64> = values[&operands[0]].iter().copied().collect();
            let y: Vec<f64> = values[&operands[1]].iter().copied().collect();
            let steps = &steps[&operands[0]];
            let (mut dx, mut dy) = (vec![0.0; x.len()], vec![0.0; y.len()]);
            for (r, (&a, &p)) in argument.iter().zip(accumulator.iter()).enumerate() {
                let (a, p) = (a as usize, p as usize);
                let (factor, rate) = (chain.apply(x[a]), slope(|x| chain.apply(x), x[a], steps[a]));
                for s in 0..*slots {
                    let g = gradient[group_of[r] * slots + s];
                    dx[a] += g * rate * y[p * slots + s];
                    dy[p * slots + s] += g * factor;
                }
            }
            for (operand, delta) in [(operands[0], dx), (operands[1], dy)] {
                if let Some(target) = gradients.get_mut(&operand) {
                    target.iter_mut().zip(delta).for_each(|(t, d)| *t += d);
                }
            }
        }
    }
}

fn propagate_linear(map: &HeLinear, operands: &[NodeId], gradient: &[f64], gradients: &mut Gradients) {
    let (m, k) = (map.outputs, map.operands);
    for (g, &set) in map.set.iter().enumerate() {
        let weights = &map.weights[set as usize * m * k..(set as usize + 1) * m * k];
        let out = &gradient[g * m..(g + 1) * m];
        let mut delta = vec![0.0; k];
        for (row, g) in weights.chunks(k.max(1)).zip(out) {
            delta.iter_mut().zip(row).for_each(|(d, w)| *d += g * w);
        }
        scatter(&map.gather[g * k..(g + 1) * k], &delta, operands, gradients);
    }
}
