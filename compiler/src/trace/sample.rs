//! One sample: float values, the circuit's decoded values, and the errors between them.

use std::collections::BTreeSet;
use std::sync::Arc;

use thex_circuit::{ClientBundle, Encoding, Port};
use thex_ir::interpret::{self, Values};
use thex_ir::{Graph, NodeId, Op, Tensor};
use thex_runtime::client::Named;

use super::{Traced, Tracer};
use crate::error::{CompileError, Result};

/// Values this much of their range's width beyond it are rounding, not outside.
const TOLERANCE: f64 = 1e-9;

/// Sums over the elements of a node. Squares are relative to the width of the element's range.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// Elements with a range.
    pub(super) counted: usize,
    /// Of squared accumulated errors.
    pub(super) accumulated: f64,
    /// Of squared local errors.
    pub(super) local: f64,
    /// Of their modelled variances.
    pub(super) modelled: Option<f64>,
    /// Float values outside their range.
    pub(super) outside: u64,
    /// Mean squared change of an output element by the local errors alone.
    pub(super) effect: f64,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        self.counted += other.counted;
        self.accumulated += other.accumulated;
        self.local += other.local;
        self.outside += other.outside;
        self.effect += other.effect;
        self.modelled = other.modelled.map(|m| m + self.modelled.unwrap_or(0.0));
    }
}

/// What one sample shows.
pub(super) struct Outcome {
    /// Of the traced nodes, in their order.
    pub(super) tallies: Vec<Tally>,
    /// Mean squared error of an output element of the circuit.
    pub(super) error: f64,
    /// Mean squared difference of the approximated model's outputs from the float model's.
    pub(super) approximation: f64,
}

/// What the client's clear prologue makes of a sample: the values of the placed graph's inputs.
pub(super) fn prologue(bundle: &ClientBundle, named: &[Named]) -> Result<Vec<Arc<Tensor>>> {
    let pick = |(name, shape): &(String, Vec<usize>)| {
        let value = named.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        value.filter(|v| v.shape() == shape.as_slice()).map(Arc::new).ok_or_else(|| {
            CompileError::Data(format!("a sample of `{name}` does not have the shape {shape:?} that the model takes"))
        })
    };
    let inputs = bundle.prologue.inputs.iter().map(pick).collect::<Result<Vec<_>>>()?;
    Ok(bundle.prologue.run(&inputs)?)
}

/// The value of a phase that is nearest to `near`: phases are values modulo the scale.
pub(crate) fn decode(encoding: &Encoding, phase: u64, near: f64) -> f64 {
    let distance = encoding.decode(phase) - near;
    near + distance - (distance / encoding.scale).round() * encoding.scale
}

/// See the module.
pub(super) struct Sample<'a> {
    tracer: &'a Tracer<'a>,
    inputs: Vec<Arc<Tensor>>,
    lwe: &'a [u64],
    /// Values of the graph on real numbers.
    float: Values,
    /// Values as the circuit has them, as far as it has been walked.
    seen: Values,
}

impl<'a> Sample<'a> {
    pub(super) fn new(tracer: &'a Tracer<'a>, inputs: Vec<Arc<Tensor>>, lwe: &'a [u64]) -> Result<Self> {
        let float = interpret::run_all(tracer.graph, &inputs)?;
        Ok(Self { tracer, inputs, lwe, float, seen: Values::new() })
    }

    fn graph(&self) -> &'a Graph {
        self.tracer.graph
    }

    /// Walks the graph. `wanted` are the float model's outputs.
    pub(super) fn run(mut self, wanted: &[Named]) -> Result<Outcome> {
        let tracer = self.tracer;
        let mut tallies = vec![Tally::default(); tracer.traced.len()];
        for &id in &tracer.order {
            let ideal = interpret::evaluate_node(tracer.graph, id, &self.inputs, &self.seen)?;
            let Some(at) = tracer.traced.iter().position(|t| t.id == id) else {
                self.seen.insert(id, ideal);
                continue;
            };
            let real = self.decoded(&tracer.traced[at], &ideal)?;
            tallies[at] = self.tally(&tracer.traced[at], &ideal, &real)?;
            self.seen.insert(id, Arc::new(real));
        }
        Ok(Outcome { tallies, error: self.output_change(&self.seen), approximation: self.approximation(wanted)? })
    }

    /// Mean squared difference between the graph on real numbers, with the client's clear epilogue, and the float model.
    fn approximation(&self, wanted: &[Named]) -> Result<f64> {
        let bundle = self.tracer.bundle;
        let shaped = |(port, (_, id)): (&Port, &(String, NodeId))| {
            let value = (*self.float[id]).clone().into_shape_with_order(port.shape.as_slice());
            value.map(Arc::new).map_err(|e| CompileError::Internal(format!("output `{}`: {e}", port.name)))
        };
        let values = bundle.outputs.iter().zip(&self.graph().outputs).map(shaped).collect::<Result<Vec<_>>>()?;
        let (mut sum, mut count) = (0.0, 0_usize);
        for ((name, _), value) in bundle.epilogue.outputs.iter().zip(bundle.epilogue.run(&values)?) {
            let Some((_, float)) = wanted.iter().find(|(n, _)| n == name) else { continue };
            sum += value.iter().zip(float).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
            count += value.len();
        }
        Ok(sum / count.max(1) as f64)
    }

    /// The circuit's value of a node.
    fn decoded(&self, traced: &Traced, ideal: &Tensor) -> Result<Tensor> {
        let node = self.graph().node(traced.id);
        let phases = self.lwe.get(traced.start..traced.start + ideal.len());
        let (Some(phases), Some(encodings)) = (phases, &node.facts.encodings) else {
            return Err(CompileError::Internal(format!("`{}` has no encoding or no place in the circuit", node.name)));
        };
        let mut real = ideal.clone();
        for ((value, phase), encoding) in real.iter_mut().zip(phases).zip(encodings.iter()) {
            *value = decode(encoding, *phase, *value);
        }
        Ok(real)
    }

    fn tally(&self, traced: &Traced, ideal: &Tensor, real: &Tensor) -> Result<Tally> {
        let model = self.tracer.model.variances(traced.id, traced.instruction, &self.seen);
        let mut tally = Tally { modelled: model.as_ref().map(|_| 0.0), ..Tally::default() };
        let float = &self.float[&traced.id];
        for (i, ((ideal, real), float)) in ideal.iter().zip(real).zip(float.iter()).enumerate() {
            let Some((lo, hi)) = self.range(traced.id, i).filter(|(lo, hi)| hi > lo) else { continue };
            let width = hi - lo;
            tally.counted += 1;
            tally.local += ((real - ideal) / width).powi(2);
            tally.accumulated += ((real - float) / width).powi(2);
            tally.outside += u64::from(*float < lo - TOLERANCE * width || *float > hi + TOLERANCE * width);
            let variance = model.as_ref().and_then(|m| m.get(i)).map(|v| v / (width * width));
            tally.modelled = tally.modelled.zip(variance).map(|(sum, v)| sum + v);
        }
        tally.effect = self.effect(traced.id, ideal, real)?;
        Ok(tally)
    }

    fn range(&self, id: NodeId, element: usize) -> Option<(f64, f64)> {
        self.graph().node(id).facts.ranges.as_ref().map(|r| r.of(element))
    }

    /// Mean squared change of an output element when the float values of one node have its local error.
    fn effect(&self, id: NodeId, ideal: &Tensor, real: &Tensor) -> Result<f64> {
        let graph = self.graph();
        let mut values = self.float.clone();
        values.insert(id, Arc::new(&*self.float[&id] + &(real - ideal)));
        let mut changed = BTreeSet::from([id]);
        let later = self.tracer.order.iter().skip_while(|x| **x != id).skip(1);
        for &node in later.filter(|n| matches!(graph.node(**n).op, Op::He(_) | Op::Clear(_))) {
            if graph.operands(node).iter().any(|o| changed.contains(o)) {
                changed.insert(node);
                let value = interpret::evaluate_node(graph, node, &self.inputs, &values)?;
                values.insert(node, value);
            }
        }
        Ok(self.output_change(&values))
    }

    /// Mean squared difference of an output element from the float value.
    fn output_change(&self, values: &Values) -> f64 {
        let (mut sum, mut count) = (0.0, 0_usize);
        for (_, id) in &self.graph().outputs {
            sum += values[id].iter().zip(self.float[id].iter()).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
            count += values[id].len();
        }
        sum / count.max(1) as f64
    }
}
