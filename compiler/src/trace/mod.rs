//! Which node of a circuit loses the accuracy.
//!
//! `evaluate` says how far the outputs are from the float model's, and the error budget says what was planned; neither says where a plan fails.
//! Here the circuit is run on samples, every block of ciphertexts is decoded, and each is held against the placed graph's real value in two
//! ways: with all that went wrong before (the *accumulated* error), and given the operands as the circuit has them (the *local* error, which
//! this node alone makes). The local error has a model, so that a node which departs from it is where to look; and it is put into the float
//! values to see what it alone does to the outputs.
//!
//! Keyswitches and packs have no error of their own here: theirs shows at the look-up or product that reads them. The placed graph computes the
//! profile's approximations, so what they do is no error of any node; it is measured apart, against the ONNX model.
//!
//! **Units.** Errors of a node are in bits of its calibrated range: -log2 of the root mean square of error ÷ width, over elements and
//! samples; elements whose range has no width do not count. Effects are in the units of the outputs: root mean square over output
//! elements and samples.

mod predict;
pub(crate) mod sample;
mod text;
pub mod verify;

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Serialize;
use thex_circuit::{Circuit, ClientBundle, Instruction, NoiseModel};
use thex_ir::{Graph, HeOp, NodeId, Op, interpret};
use thex_runtime::client::Named;
use thex_runtime::{Simulator, simulate};

use crate::error::{CompileError, Result};
use crate::evaluate::{Mode, Workload, float_outputs, noise_model, read_samples, reference, sample_seed};
use crate::pipeline::{CompileOptions, Compiled, compile};

use predict::Model;
use sample::{Outcome, Sample, Tally};

/// Local errors this many times the modelled one depart from it.
pub const DEPARTURE: f64 = 2.0;

/// Share of the outputs' squared error that a node must cause to be named: what departs and does no harm is of no interest.
pub const LEAST_SHARE: f64 = 0.01;

/// Nodes that are named as the most harmful ones.
pub const MOST_HARMFUL: usize = 5;

/// Errors of this many bits are those of floating-point numbers, not the circuit's.
const EXACT_BITS: f64 = 44.0;

/// Calibration samples that means are taken over; at most 48 serve `insert-rescale` too.
const MEAN_SAMPLES: usize = 48;

/// A circuit on data, node by node.
#[derive(Clone, Debug, Serialize)]
pub struct Trace {
    /// Samples that were run.
    pub samples: usize,
    /// How.
    pub mode: &'static str,
    /// Root mean square error of the circuit's outputs, in their units.
    pub output_rms_error: f64,
    /// What the profile's approximations do to the model's outputs, without any circuit: root mean square difference from the ONNX
    /// model, in the units of its outputs.
    pub approximation_rms_error: f64,
    /// What the noise model predicts of the circuit's error.
    pub predicted_rms_error: Option<f64>,
    /// The first node whose local error is more than [`DEPARTURE`] times the modelled one and does harm.
    pub first_departure: Option<String>,
    /// The nodes whose local errors move the outputs most, the worst first.
    pub largest_effects: Vec<String>,
    /// All nodes that make ciphertexts, in execution order.
    pub nodes: Vec<NodeTrace>,
}

/// One node.
#[derive(Clone, Debug, Serialize)]
pub struct NodeTrace {
    /// Its name in the placed graph.
    pub name: String,
    /// Its kind.
    pub op: &'static str,
    /// ONNX nodes that it came from.
    pub onnx: Vec<String>,
    /// Ciphertexts that it makes.
    pub elements: usize,
    /// Those whose range has a width, over all samples: what the means are taken over.
    pub counted: usize,
    /// Bits of its range above the error, with all errors before it. None where there is no error, or no range.
    pub accumulated_bits: Option<f64>,
    /// The same for the error that it makes itself.
    pub local_bits: Option<f64>,
    /// What the model says of the local error.
    pub modelled_bits: Option<f64>,
    /// Float values outside their calibrated range, over all samples.
    pub outside: u64,
    /// What its local error alone does to the outputs, in their units.
    pub effect: f64,
}

/// A node whose ciphertexts can be decoded.
pub(crate) struct Traced {
    pub(crate) id: NodeId,
    /// First address in lwe memory.
    pub(crate) start: usize,
    /// Number of the instruction; inputs have none.
    instruction: Option<usize>,
}

/// A compiled model, prepared.
struct Tracer<'a> {
    graph: &'a Graph,
    bundle: &'a ClientBundle,
    order: Vec<NodeId>,
    traced: Vec<Traced>,
    simulator: Simulator<'a>,
    model: Model<'a>,
}

/// Compiles a model in memory and traces it on data.
///
/// # Errors
/// The model cannot be compiled, the data do not fit it, or `work` asks for ciphertexts, in which nothing can be seen.
pub fn trace(options: &CompileOptions, work: &Workload) -> Result<Trace> {
    let blind = "a trace looks into the circuit: choose --mode clear or --mode simulate";
    if work.mode == Mode::Encrypted {
        return Err(CompileError::Usage(blind.into()));
    }
    let compiled = compile(options)?;
    let noise = noise_model(&compiled.emitted.circuit, work.mode).ok_or_else(|| CompileError::Usage(blind.into()))?;
    let means = calibrated_means(&compiled, options, work)?;
    let tracer = Tracer::new(&compiled, noise, means)?;
    let samples = read_samples(tracer.bundle, work)?;
    tracer.run(work, &samples, |i, named| tracer.simulated(work.seed, i, named))
}

type Means = BTreeMap<NodeId, Vec<f64>>;

/// Means over the calibration data of a compilation.
fn calibrated_means(compiled: &Compiled, options: &CompileOptions, work: &Workload) -> Result<Means> {
    let bundle = &compiled.emitted.bundle;
    let calibration = Workload { data: options.calibration.clone(), limit: None, ..work.clone() };
    means(&compiled.placed, bundle, &read_samples(bundle, &calibration)?)
}

/// The nodes that make blocks of lwe memory, in execution order.
pub(crate) fn traced(graph: &Graph, circuit: &Circuit) -> Vec<Traced> {
    let order = graph.topological();
    let inputs = order.iter().filter(|id| matches!(graph.node(**id).op, Op::He(HeOp::Encrypt)));
    let inputs = inputs.zip(&circuit.inputs).map(|(&id, (_, block))| (id, block.start, None));
    let ids: BTreeMap<&str, NodeId> = order.iter().map(|&id| (graph.node(id).name.as_str(), id)).collect();
    let steps = circuit.instructions.iter().zip(&circuit.provenance).enumerate();
    let steps = steps.filter_map(|(i, (instruction, provenance))| {
        let block = match instruction {
            Instruction::Linear(x) => x.dst,
            Instruction::Pbs(x) => x.dst,
            Instruction::LutProduct(x) => x.dst,
            Instruction::ExternalProduct(x) => x.dst,
            Instruction::Keyswitch(_) | Instruction::Pack(_) => return None,
        };
        Some((*ids.get(provenance.name.as_str())?, block.start, Some(i)))
    });
    inputs.chain(steps).map(|(id, start, instruction)| Traced { id, start: start as usize, instruction }).collect()
}

/// Mean value of every homomorphic element over calibration samples, evenly spaced: what the correction of biases takes off.
fn means(graph: &Graph, bundle: &ClientBundle, samples: &[Vec<Named>]) -> Result<Means> {
    let chosen: Vec<_> = samples.iter().step_by(samples.len().div_ceil(MEAN_SAMPLES).max(1)).collect();
    let mut means = Means::new();
    for named in &chosen {
        let values = interpret::run_all(graph, &sample::prologue(bundle, named)?)?;
        for (id, value) in values {
            let sums = means.entry(id).or_insert_with(|| vec![0.0; value.len()]);
            sums.iter_mut().zip(value.iter()).for_each(|(sum, v)| *sum += v / chosen.len() as f64);
        }
    }
    Ok(means)
}

/// Bits of a range above a mean squared relative error; none for what is rounding of floating-point numbers.
fn bits(mean_square: f64) -> Option<f64> {
    let bits = -0.5 * mean_square.log2();
    (bits < EXACT_BITS).then_some(bits)
}

impl<'a> Tracer<'a> {
    fn new(compiled: &'a Compiled, noise: NoiseModel, means: Means) -> Result<Self> {
        let Compiled { emitted, placed, .. } = compiled;
        Ok(Self {
            graph: placed,
            bundle: &emitted.bundle,
            order: placed.topological(),
            traced: traced(placed, &emitted.circuit),
            simulator: Simulator::new(&emitted.circuit, noise)?,
            model: Model { graph: placed, circuit: &emitted.circuit, noise, means },
        })
    }

    /// Phases of all big LWEs of one sample, simulated.
    fn simulated(&self, seed: u64, i: usize, named: &[Named]) -> Result<Vec<u64>> {
        let inference = simulate::infer(self.bundle, &self.simulator, named, sample_seed(seed, i))?;
        Ok(inference.simulation.lwe().to_vec())
    }

    /// Holds what `phases` gives for each sample, the phase of every big LWE, against the graph.
    fn run(
        &self,
        work: &Workload,
        samples: &[Vec<Named>],
        phases: impl Fn(usize, &[Named]) -> Result<Vec<u64>> + Sync,
    ) -> Result<Trace> {
        let reference = reference(self.bundle, &work.model)?;
        let one = |(i, named): (usize, &Vec<_>)| -> Result<Outcome> {
            let inputs = sample::prologue(self.bundle, named)?;
            Sample::new(self, inputs, &phases(i, named)?)?.run(&float_outputs(&reference, named)?)
        };
        let results = samples.par_iter().enumerate().map(one).collect::<Result<Vec<_>>>()?;
        // Summed in order, so that the result does not depend on the number of threads.
        let mut sums = vec![Tally::default(); self.traced.len()];
        results.iter().for_each(|o| sums.iter_mut().zip(&o.tallies).for_each(|(sum, t)| sum.add(t)));
        let count = samples.len() as f64;
        let rms = |of: fn(&Outcome) -> f64| (results.iter().map(of).sum::<f64>() / count).sqrt();
        let nodes: Vec<NodeTrace> = self.traced.iter().zip(&sums).map(|(t, sum)| self.node(t, sum, count)).collect();
        Ok(Trace {
            samples: samples.len(),
            mode: work.mode.name(),
            output_rms_error: rms(|o| o.error),
            approximation_rms_error: rms(|o| o.approximation),
            predicted_rms_error: self.model.circuit.info.predicted_output_error,
            first_departure: first_departure(&nodes),
            largest_effects: largest_effects(&nodes),
            nodes,
        })
    }

    fn node(&self, traced: &Traced, sum: &Tally, samples: f64) -> NodeTrace {
        let node = self.graph.node(traced.id);
        let mean = |squares: f64| bits(squares / (sum.counted.max(1) as f64));
        NodeTrace {
            name: node.name.clone(),
            op: node.op.mnemonic(),
            onnx: node.origin.clone(),
            elements: node.shape.iter().product(),
            counted: sum.counted,
            accumulated_bits: mean(sum.accumulated),
            local_bits: mean(sum.local),
            modelled_bits: sum.modelled.and_then(mean),
            outside: sum.outside,
            effect: (sum.effect / samples).sqrt(),
        }
    }
}

fn first_departure(nodes: &[NodeTrace]) -> Option<String> {
    let total: f64 = nodes.iter().map(|n| n.effect.powi(2)).sum();
    let harms = |n: &&NodeTrace| total > 0.0 && n.effect.powi(2) >= LEAST_SHARE * total;
    nodes.iter().filter(harms).find(|n| n.departs()).map(|n| n.name.clone())
}

fn largest_effects(nodes: &[NodeTrace]) -> Vec<String> {
    let mut sorted: Vec<&NodeTrace> = nodes.iter().filter(|n| n.effect > 0.0).collect();
    sorted.sort_by(|a, b| b.effect.total_cmp(&a.effect));
    sorted.iter().take(MOST_HARMFUL).map(|n| n.name.clone()).collect()
}

/// A mean square of so many errors is above its expectation by this factor about once in 30,000 times, if they are Gaussian and independent: the
/// quantile of χ² by Wilson and Hilferty (1931).
fn chance(count: usize) -> f64 {
    let n = 2.0 / (9.0 * count.max(1) as f64);
    (1.0 - n + 4.0 * n.sqrt()).powi(3)
}

impl NodeTrace {
    /// Whether its local error is more than [`DEPARTURE`] times the modelled one, and more than chance makes of as few errors as these.
    #[must_use]
    pub fn departs(&self) -> bool {
        let least = DEPARTURE.max(chance(self.counted).sqrt()).log2();
        self.local_bits.zip(self.modelled_bits).is_some_and(|(local, model)| model - local > least)
    }
}

#[cfg(test)]
mod tests {
    use super::chance;

    #[test]
    fn few_errors_may_be_larger() {
        assert!((4.0..5.0).contains(&chance(1).sqrt()), "about four deviations");
        assert!(chance(10) < chance(1) && chance(10_000) < 1.1);
    }
}
