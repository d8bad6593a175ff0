//! Noise of every ciphertext of a placed graph, by the noise model: what it is born with and what it carries from its operands.
//!
//! A look-up or product is born anew: what its argument's noise does to its *value* is not in its own noise, but is counted at the
//! argument. So these are variances on the torus, element by element, from one look-up to the next, and bits say how much of an
//! element's range stands above them. What all of it does to the outputs is the business of `insert-rescale`.

use std::collections::BTreeMap;

use thex_circuit::{Encoding, NoiseModel, Parameters};
use thex_ir::he::sum_of_products;
use thex_ir::{Address, Graph, HeLinear, HeOp, NodeId, Op};

/// Variances by node and element.
pub(super) struct CiphertextNoise<'a> {
    graph: &'a Graph,
    model: NoiseModel,
    variance: BTreeMap<NodeId, Vec<f64>>,
}

impl<'a> CiphertextNoise<'a> {
    /// Walks the graph once.
    pub(super) fn new(graph: &'a Graph, parameters: &Parameters) -> Self {
        let mut noise = Self { graph, model: NoiseModel::new(parameters), variance: BTreeMap::new() };
        for id in graph.topological() {
            if let Op::He(op) = &graph.node(id).op {
                let variance = noise.of(id, op);
                noise.variance.insert(id, variance);
            }
        }
        noise
    }

    /// log2 of the range over the noise's deviation, of the worst element.
    pub(super) fn bits(&self, id: NodeId) -> Option<f64> {
        let ranges = self.graph.node(id).facts.ranges.as_ref()?;
        let variance = self.variance.get(&id)?;
        let bits = |(i, v): (usize, &f64)| {
            let (lo, hi) = ranges.of(i);
            Some(((hi - lo) / (self.scale(id, i)? * v.sqrt())).log2())
        };
        let all = variance.iter().enumerate().filter_map(bits);
        all.filter(|b| b.is_finite()).min_by(f64::total_cmp)
    }

    /// Value of one turn of the torus: an element's own, or that of the element which it was gathered from.
    fn scale(&self, id: NodeId, element: usize) -> Option<f64> {
        if let Some(encodings) = &self.graph.node(id).facts.encodings {
            return encodings.get(element).map(|e: &Encoding| e.scale);
        }
        let (Op::He(HeOp::Keyswitch { gather, .. }) | Op::He(HeOp::Pack { gather, .. })) = &self.graph.node(id).op
        else {
            return None;
        };
        let address = gather.get(element).filter(|a| **a != Address::ABSENT)?;
        self.scale(self.graph.operands(id)[address.port as usize], address.index as usize)
    }

    fn of(&self, id: NodeId, op: &HeOp) -> Vec<f64> {
        let elements = self.graph.node(id).shape.iter().product();
        let gathered = |gather: &[Address], more: f64| self.gather(id, gather).map(|v| v + more).collect();
        match op {
            HeOp::Encrypt => vec![self.model.fresh; elements],
            HeOp::Pbs { .. } => vec![self.model.bootstrap; elements],
            HeOp::Linear { map, .. } => self.linear(id, map),
            HeOp::Keyswitch { gather, domain } => gathered(gather, self.model.extended_argument(domain.extension)),
            HeOp::Pack { gather, .. } => gathered(gather, self.model.packing),
            HeOp::LutProduct { .. } => self.product(id, op),
            HeOp::Decrypt { gather } => gathered(gather, 0.0),
        }
    }

    /// Variances of gathered elements; an absent one has none.
    fn gather(&self, id: NodeId, gather: &[Address]) -> impl Iterator<Item = f64> {
        let operands = self.graph.operands(id);
        gather.iter().map(move |a| {
            let source = operands.get(a.port as usize).and_then(|o| self.variance.get(o));
            source.and_then(|v| v.get(a.index as usize)).copied().unwrap_or(0.0)
        })
    }

    fn linear(&self, id: NodeId, map: &HeLinear) -> Vec<f64> {
        let Some(integers) = &self.graph.node(id).facts.integers else { return Vec::new() };
        let (m, k) = (map.outputs, map.operands);
        let sources: Vec<f64> = self.gather(id, &map.gather).collect();
        let group = |(g, set): (usize, &u32)| {
            let sources = &sources[g * k..(g + 1) * k];
            let rows = &integers[*set as usize * m * k..(*set as usize + 1) * m * k];
            let row = move |r: usize| {
                rows[r * k..(r + 1) * k].iter().zip(sources).map(|(w, v)| f64::from(*w).powi(2) * v).sum()
            };
            (0..m).map(row).collect::<Vec<f64>>()
        };
        map.set.iter().enumerate().flat_map(group).collect()
    }

    /// ε² + P²·(noise of the slot) + the noise between slots, which the whole table multiplies.
    fn product(&self, id: NodeId, op: &HeOp) -> Vec<f64> {
        let HeOp::LutProduct { chain, argument, accumulator, slots, sums } = op else { return Vec::new() };
        let group_of = sum_of_products(argument.len(), sums.as_ref());
        let operands = self.graph.operands(id);
        let (keyswitch, pack) = (self.graph.node(operands[0]), operands[1]);
        let Op::He(HeOp::Keyswitch { domain, .. }) = keyswitch.op else { return Vec::new() };
        let Some(ranges) = &keyswitch.facts.ranges else { return Vec::new() };
        let mut variance = vec![0.0; sums.as_ref().map_or(argument.len(), |s| s.len()) * slots];
        for (r, (&a, &p)) in argument.iter().zip(accumulator.iter()).enumerate() {
            let (lo, hi) = ranges.of(a as usize);
            let (lo, hi) = (chain.apply(lo), chain.apply(hi));
            let square = (lo * lo + lo * hi + hi * hi) / 3.0;
            for slot in 0..*slots {
                let y = p as usize * slots + slot;
                let out = group_of[r] * slots + slot;
                let scales = self.scale(pack, y).zip(self.scale(id, out));
                let table = scales.map_or(0.0, |(y, out)| square * (y / out).powi(2));
                let (own, other) = match sums {
                    Some(_) => (self.model.external, self.model.external_rounding),
                    None => (self.model.bootstrap, self.model.packing * (*slots * domain.positions) as f64),
                };
                variance[out] += own + table * (self.variance[&pack][y] + other);
            }
        }
        variance
    }
}
