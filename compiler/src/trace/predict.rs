//! The modelled local error of every node, given the operands that the circuit has.
//!
//! * An input: fresh noise. Clamping is not modelled.
//! * A linear map: weights rounded to integers, uniformly and independently but for equal columns, on what the operands differ from their
//!   calibrated mean (the correction of the bias takes off the rest). Weights that are integers already are exact.
//! * A look-up: the noise of keyswitch and modulus switch, and the width of a table position, through the function; and the
//!   bootstrap's own noise. Argument and result are held inside their ranges, as the table holds them; what that changes is not modelled, so
//!   values outside their ranges depart from the model.
//! * A product: the same times the slot's value; rounding of the integer table times the slot; packing noise of all filled slots times the whole
//!   table; the bootstrap.

use std::collections::BTreeMap;

use thex_circuit::instruction::LutProduct;
use thex_circuit::{Circuit, Encoding, Instruction, NoiseModel};
use thex_ir::he::sum_of_products;
use thex_ir::interpret::Values;
use thex_ir::{Address, Graph, HeLinear, HeOp, LookUp, NodeId, Op};

/// Variance of rounding to integers.
const ROUNDING: f64 = 1.0 / 12.0;

/// An integer weight nearer to the real one than this is exact.
const EXACT: f64 = 1e-6;

/// Gauss-Hermite quadrature of five points: those on one side in standard deviations, with their weights. The middle one adds nothing.
const QUADRATURE: [(f64, f64); 2] =
    [(1.355_626_179_974_266, 0.222_075_922_005_612_6), (2.856_970_013_872_806, 0.011_257_411_327_720_69)];

/// What predictions need.
pub(super) struct Model<'a> {
    pub(super) graph: &'a Graph,
    pub(super) circuit: &'a Circuit,
    /// Silent where the circuit runs without noise.
    pub(super) noise: NoiseModel,
    /// Mean of every element over calibration data.
    pub(super) means: BTreeMap<NodeId, Vec<f64>>,
}

/// One argument of a look-up.
struct Argument {
    /// Value of one turn of the torus.
    scale: f64,
    /// What the table holds it inside.
    range: (f64, f64),
    /// ν of the look-up.
    extension: u32,
}

impl Model<'_> {
    /// Variance of each element's local error, in its own units squared. None where something is not known.
    pub(super) fn variances(&self, id: NodeId, instruction: Option<usize>, seen: &Values) -> Option<Vec<f64>> {
        let Op::He(op) = &self.graph.node(id).op else { return None };
        match op {
            HeOp::Encrypt => Some(self.encodings(id)?.iter().map(|e| self.noise.fresh * e.scale.powi(2)).collect()),
            HeOp::Linear { map, .. } => self.linear(id, map, seen),
            HeOp::Pbs { function } => self.look_up(id, function, seen),
            HeOp::LutProduct { .. } => self.product(id, op, instruction?, seen),
            HeOp::Keyswitch { .. } | HeOp::Pack { .. } | HeOp::Decrypt { .. } => None,
        }
    }

    fn encodings(&self, id: NodeId) -> Option<&[Encoding]> {
        self.graph.node(id).facts.encodings.as_deref().map(Vec::as_slice)
    }

    /// Encoding of what an address points at.
    fn source(&self, operands: &[NodeId], address: Address) -> Option<Encoding> {
        let source = operands.get(address.port as usize)?;
        self.encodings(*source)?.get(address.index as usize).copied()
    }

    fn linear(&self, id: NodeId, map: &HeLinear, seen: &Values) -> Option<Vec<f64>> {
        let integers = self.graph.node(id).facts.integers.as_ref()?;
        let (encodings, operands) = (self.encodings(id)?, self.graph.operands(id));
        let flat: Vec<Vec<f64>> = operands.iter().map(|o| self.centred(*o, seen)).collect::<Option<_>>()?;
        let (m, k) = (map.outputs, map.operands);
        let mut known: BTreeMap<u32, Columns> = BTreeMap::new();
        let mut variances = Vec::with_capacity(map.bias.len());
        for (g, &set) in map.set.iter().enumerate() {
            let gather = &map.gather[g * k..(g + 1) * k];
            let scales = gather.iter().map(|a| self.source(&operands, *a).map_or(1.0, |e| e.scale)).collect::<Vec<_>>();
            let columns = known.entry(set).or_insert_with(|| Columns::new(map, set as usize, gather, &scales));
            let turns = columns.sums(gather, |c, a| flat[a.port as usize][a.index as usize] / scales[c]);
            for r in 0..m {
                let out = encodings.get(g * m + r)?.scale;
                let rounded = |&c: &usize| {
                    let at = (set as usize * m + r) * k + c;
                    (map.weights[at] * scales[c] / out - f64::from(integers[at])).abs() >= EXACT
                };
                let inexact = columns.first.iter().zip(&turns).filter(|(c, _)| rounded(c));
                variances.push(inexact.map(|(_, t)| ROUNDING * (t * out).powi(2)).sum());
            }
        }
        Some(variances)
    }

    /// What the values of a node differ from their means.
    fn centred(&self, id: NodeId, seen: &Values) -> Option<Vec<f64>> {
        Some(seen.get(&id)?.iter().zip(self.means.get(&id)?).map(|(x, mean)| x - mean).collect())
    }

    fn argument(&self, keyswitch: NodeId, element: usize) -> Option<Argument> {
        let node = self.graph.node(keyswitch);
        let Op::He(HeOp::Keyswitch { gather, domain }) = &node.op else { return None };
        let encoding = self.source(&self.graph.operands(keyswitch), *gather.get(element)?)?;
        let range = node.facts.ranges.as_ref()?.of(element);
        Some(Argument { scale: encoding.scale, range, extension: domain.extension })
    }

    /// E (f(x + noise) - f(x))², by Gauss-Hermite quadrature: sees kinks, and what the ends of the range hold back.
    fn through(&self, argument: &Argument, x: f64, f: impl Fn(f64) -> f64) -> f64 {
        let entry = 1.0 / (self.circuit.parameters.positions() << argument.extension) as f64;
        let noise = self.noise.extended_argument(argument.extension);
        let deviation = argument.scale * (noise + ROUNDING * entry * entry).sqrt();
        let (lo, hi) = (argument.range.0, argument.range.1.max(argument.range.0));
        let at = |x: f64| f(x.clamp(lo, hi));
        let middle = at(x);
        let square = |z: f64| (at(x + z * deviation) - middle).powi(2);
        QUADRATURE.iter().map(|(z, weight)| weight * (square(*z) + square(-z))).sum()
    }

    fn look_up(&self, id: NodeId, function: &LookUp, seen: &Values) -> Option<Vec<f64>> {
        let keyswitch = *self.graph.operands(id).first()?;
        let results = self.graph.node(id).facts.ranges.as_ref()?;
        let one = |(i, (x, encoding)): (usize, (&f64, &Encoding))| {
            let (least, most) = results.of(i);
            let table = |x: f64| function.apply(x).clamp(least, most.max(least));
            let spread = self.through(&self.argument(keyswitch, i)?, *x, table);
            Some(spread + self.noise.bootstrap * encoding.scale.powi(2))
        };
        seen.get(&keyswitch)?.iter().zip(self.encodings(id)?).enumerate().map(one).collect()
    }

    fn product(&self, id: NodeId, op: &HeOp, instruction: usize, seen: &Values) -> Option<Vec<f64>> {
        let HeOp::LutProduct { chain, argument, accumulator, slots, sums } = op else { return None };
        let (table_of, norms) = match self.circuit.instructions.get(instruction)? {
            Instruction::LutProduct(x) => (&x.table_of, norms(x)),
            Instruction::ExternalProduct(x) => (&x.table_of, Vec::new()),
            _ => return None,
        };
        let group_of = sum_of_products(argument.len(), sums.as_ref());
        let operands = self.graph.operands(id);
        let Op::He(HeOp::Pack { gather, .. }) = &self.graph.node(operands[1]).op else { return None };
        let (x, y, encodings) = (seen.get(&operands[0])?, seen.get(&operands[1])?, self.encodings(id)?);
        let (x, y): (Vec<f64>, Vec<f64>) = (x.iter().copied().collect(), y.iter().copied().collect());
        let sources = self.graph.operands(operands[1]);
        let mut variances = vec![0.0; encodings.len()];
        for (r, (&a, &p)) in argument.iter().zip(accumulator.iter()).enumerate() {
            let spread = self.through(&self.argument(operands[0], a as usize)?, x[a as usize], |x| chain.apply(x));
            let pack = &gather[p as usize * slots..(p as usize + 1) * slots];
            let filled = pack.iter().filter(|s| **s != Address::ABSENT).count() as f64;
            let factor = chain.apply(x[a as usize]);
            for (s, slot) in pack.iter().enumerate() {
                let y = y[p as usize * slots + s];
                let source = self.source(&sources, *slot).map_or(0.0, |e| e.scale);
                let turns = if source > 0.0 { y / source } else { 0.0 };
                let place = group_of[r] * slots + s;
                let out = encodings.get(place)?.scale;
                let own = match sums {
                    Some(_) => self.noise.external + self.noise.external_rounding * (factor * source / out).powi(2),
                    None => {
                        let norm = norms.get(*table_of.get(r)? as usize)?;
                        self.noise.packing * filled * norm + self.noise.bootstrap
                    }
                };
                *variances.get_mut(place)? += y * y * spread + (own + ROUNDING * turns * turns) * out * out;
            }
        }
        Some(variances)
    }
}

/// Columns of a weight set in classes that are rounded alike, since weights, source and its scale are equal: the tokens that a mean
/// is taken over.
struct Columns {
    /// Class of each column; none for absent operands.
    class: Vec<Option<usize>>,
    /// First column of each class.
    first: Vec<usize>,
}

impl Columns {
    fn new(map: &HeLinear, set: usize, gather: &[Address], scales: &[f64]) -> Self {
        let (m, k) = (map.outputs, map.operands);
        let mut known: BTreeMap<(u32, Vec<u64>), usize> = BTreeMap::new();
        let mut columns = Self { class: Vec::with_capacity(k), first: Vec::new() };
        for (c, address) in gather.iter().enumerate() {
            if *address == Address::ABSENT {
                columns.class.push(None);
                continue;
            }
            let weights = (0..m).map(|r| map.weights[(set * m + r) * k + c]);
            let bits: Vec<u64> = weights.chain([scales[c]]).map(f64::to_bits).collect();
            let class = *known.entry((address.port, bits)).or_insert_with(|| {
                columns.first.push(c);
                columns.first.len() - 1
            });
            columns.class.push(Some(class));
        }
        columns
    }

    /// Sums of a group's operands over each class.
    fn sums(&self, gather: &[Address], value: impl Fn(usize, Address) -> f64) -> Vec<f64> {
        let mut sums = vec![0.0; self.first.len()];
        for (c, (address, class)) in gather.iter().zip(&self.class).enumerate() {
            if let Some(class) = class.filter(|_| *address != Address::ABSENT) {
                sums[class] += value(c, *address);
            }
        }
        sums
    }
}

/// ‖P‖² of each table.
fn norms(x: &LutProduct) -> Vec<f64> {
    let lanes = f64::from(1_u32 << x.extension);
    let norm = |t: &[i32]| t.iter().map(|&p| f64::from(p).powi(2)).sum::<f64>() / lanes;
    x.tables.chunks(x.entries().max(1)).map(norm).collect()
}
