//! Errors of a placed graph's look-up arguments and outputs, seen by the simulator on calibration samples: what `widen-for-noise` asks for.

use std::sync::Arc;

use rayon::prelude::*;
use thex_circuit::{CircuitInfo, NoiseModel};
use thex_ir::he::Purpose;
use thex_ir::{Graph, HeOp, NodeId, Op, Tensor, interpret};
use thex_passes::{Errors, Measured, PassCx, Probe};
use thex_runtime::Simulator;

use crate::emit;
use crate::error::{CompileError, Result};
use crate::trace::sample::decode;
use crate::trace::{Traced, traced};

/// Samples that are simulated, evenly spaced.
const SAMPLES: usize = 16;

/// The probe that passes are lent.
pub(crate) fn probe() -> Probe {
    Probe::new(|graph, cx| measure(graph, cx).map_err(|error| error.to_string()))
}

fn measure(graph: &Graph, cx: &PassCx) -> Result<Measured> {
    let circuit = emit::circuit(graph, cx.parameters, CircuitInfo::default())?;
    let simulator = Simulator::new(&circuit, NoiseModel::new(&cx.parameters))?;
    let nodes = traced(graph, &circuit);
    let stride = cx.samples.len().div_ceil(SAMPLES).max(1);
    let chosen: Vec<&Vec<Arc<Tensor>>> = cx.samples.iter().step_by(stride).collect();
    let one = |(seed, sample): (usize, &&Vec<Arc<Tensor>>)| errors_of(graph, &simulator, &nodes, sample, seed as u64);
    let seen = chosen.par_iter().enumerate().map(one).collect::<Result<Vec<_>>>()?;
    let mut errors = Errors::new();
    let (mut squares, mut count) = (0.0, 0_usize);
    for sample in seen {
        squares += sample.outputs.iter().map(|e| e * e).sum::<f64>();
        count += sample.outputs.len();
        for (traced, of_elements) in sample.arguments {
            let known = errors.entry(traced.id).or_insert_with(|| vec![Vec::new(); of_elements.len()]);
            known.iter_mut().zip(of_elements).for_each(|(all, e)| all.push(f64::from(e)));
        }
    }
    Ok(Measured { arguments: errors, outputs: (squares / count.max(1) as f64).sqrt(), samples: chosen.len() })
}

/// Errors in one sample.
struct Seen<'a> {
    /// Of every argument. Single precision: there are many.
    arguments: Vec<(&'a Traced, Vec<f32>)>,
    outputs: Vec<f64>,
}

fn errors_of<'a>(
    graph: &Graph,
    simulator: &Simulator<'_>,
    nodes: &'a [Traced],
    sample: &[Arc<Tensor>],
    seed: u64,
) -> Result<Seen<'a>> {
    let values = interpret::run_all(graph, sample)?;
    let mut phases = Vec::new();
    for traced in nodes.iter().filter(|t| matches!(graph.node(t.id).op, Op::He(HeOp::Encrypt))) {
        let encodings = graph.node(traced.id).facts.encodings.as_ref();
        let encodings = encodings.ok_or_else(|| CompileError::Internal("an input has no encoding".into()))?;
        phases.extend(values[&traced.id].iter().zip(encodings.iter()).map(|(value, encoding)| encoding.encode(*value)));
    }
    let simulation = simulator.run(&phases, seed)?;
    let argument =
        |t: &&Traced| matches!(graph.node(t.id).op, Op::He(HeOp::Linear { purpose: Purpose::Argument { .. }, .. }));
    let errors = |traced: &Traced| -> Option<Vec<f64>> {
        let encodings = graph.node(traced.id).facts.encodings.as_ref()?;
        let ideal = &values[&traced.id];
        let phases = simulation.lwe().get(traced.start..traced.start + ideal.len())?;
        let error = |((value, phase), encoding): ((&f64, &u64), _)| decode(encoding, *phase, *value) - value;
        Some(ideal.iter().zip(phases).zip(encodings.iter()).map(error).collect())
    };
    let single = |errors: Vec<f64>| errors.into_iter().map(|e| e as f32).collect();
    let arguments = nodes.iter().filter(argument).filter_map(|t| Some((t, single(errors(t)?)))).collect();
    let decrypted: Vec<NodeId> = graph.outputs.iter().flat_map(|(_, id)| graph.operands(*id)).collect();
    let outputs = nodes.iter().filter(|t| decrypted.contains(&t.id)).filter_map(errors).flatten().collect();
    Ok(Seen { arguments, outputs })
}
