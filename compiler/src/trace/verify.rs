//! A compiled circuit, node by node: float against quantised against simulated against decrypted.
//!
//! Each of the three *lanes* is a [trace](super) of its own, against the same graph on real numbers: **quantised**, the circuit's integers and
//! tables without noise, against the modelled rounding; **simulated**, with the noise that the model predicts; **decrypted**, what the
//! executor's ciphertexts hold, for whoever has the client key and runs the server's part beside it. A fault in the emission shows in all
//! lanes, one in the noise model in the last two, one in keys or kernels in the last alone. Decrypting what lies inside a circuit is a thing
//! for the owner of key and model: nothing here sends it anywhere.
//!
//! The placed graph is not in any file. The circuit is compiled again, by the recipe in `OUT.report.json`, and must come out with the
//! same digest; so `verify` also tells that a circuit is the one that model, data and options give.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::Serialize;
use thex_circuit::{Circuit, CircuitError, Instruction, NoiseModel};
use thex_runtime::client::{self, Named};
use thex_runtime::commands::Bar;
use thex_runtime::{ClientKey, CpuBackend, Executor, Progress, Run, RunOptions, ServerKey};

use super::{NodeTrace, Trace, Tracer, calibrated_means};
use crate::error::{CompileError, Result};
use crate::evaluate::{Mode, Workload, load_pair, read_samples};
use crate::pipeline::{CompileOptions, Compiled, compile, with_suffix};
use crate::report::data::{self, ReportData};

/// What to verify.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// Prefix of the compiled files.
    pub prefix: PathBuf,
    /// The model that they were compiled from.
    pub model: PathBuf,
    /// Samples.
    pub data: PathBuf,
    /// Calibration data, if they are not where `compile` found them.
    pub calibration: Option<PathBuf>,
    /// The client key, for the decrypted lane.
    pub key: Option<PathBuf>,
    /// The server key that goes with it.
    pub server_key: Option<PathBuf>,
    /// At most so many samples.
    pub limit: usize,
    /// At most so many of them encrypted.
    pub encrypted: usize,
    /// Seed of simulated noise.
    pub seed: u64,
}

/// One way to run the circuit.
#[derive(Clone, Debug, Serialize)]
pub struct Lane {
    /// `quantised`, `simulated`, `decrypted`.
    pub name: &'static str,
    /// What it shows.
    pub trace: Trace,
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub struct Verification {
    /// Digest of the circuit, from the file and compiled again.
    pub circuit: String,
    /// Quantised, simulated, and with a key decrypted.
    pub lanes: Vec<Lane>,
    /// The first node that departs from its prediction, in execution order, and its lane.
    pub first_departure: Option<(String, &'static str)>,
}

/// Verifies a circuit.
///
/// # Errors
/// A file is not usable or does not fit the others, or the circuit is not what the model compiles to. That a node
/// departs from its prediction is a result: see [`Verification::check`].
pub fn verify(options: &VerifyOptions) -> Result<Verification> {
    let (circuit, bundle) = load_pair(&options.prefix)?;
    let (compiled, recipe) = compile_again(options, &bundle.circuit)?;
    let work = Workload {
        model: options.model.clone(),
        data: options.data.clone(),
        mode: Mode::Simulate,
        limit: Some(options.limit),
        seed: options.seed,
        backend: thex_runtime::commands::Device::Cpu,
    };
    let means = calibrated_means(&compiled, &recipe, &work)?;
    let samples = read_samples(&bundle, &work)?;
    let mut lanes = Vec::new();
    for (name, noise) in [("quantised", NoiseModel::silent()), ("simulated", NoiseModel::new(&circuit.parameters))] {
        let tracer = Tracer::new(&compiled, noise, means.clone())?;
        let trace = tracer.run(&work, &samples, |i, named| tracer.simulated(options.seed, i, named))?;
        lanes.push(Lane { name, trace });
    }
    if let Some(key) = &options.key {
        let tracer = Tracer::new(&compiled, NoiseModel::new(&circuit.parameters), means)?;
        let samples = &samples[..samples.len().min(options.encrypted.max(1))];
        let phases = decrypted(options, key, &circuit, &tracer, samples)?;
        let trace = tracer.run(&work, samples, |i, _| Ok(phases[i].clone()))?;
        lanes.push(Lane { name: "decrypted", trace: Trace { mode: "encrypted", ..trace } });
    }
    let first_departure = first_departure(&lanes);
    Ok(Verification { circuit: bundle.circuit, lanes, first_departure })
}

/// Compiles by the recipe, and compares the digest.
fn compile_again(options: &VerifyOptions, circuit: &str) -> Result<(Compiled, CompileOptions)> {
    let path = with_suffix(&options.prefix, data::SUFFIX);
    let recipe = ReportData::load(&path, circuit)?.recipe.ok_or_else(|| {
        let reason = format!("`{}` does not say how the circuit was compiled: compile the model again", path.display());
        CompileError::Invalid(reason)
    })?;
    let recipe = recipe.options(&options.model, options.calibration.as_deref());
    let compiled = compile(&recipe)?;
    let again = &compiled.emitted.bundle.circuit;
    if again == circuit {
        return Ok((compiled, recipe));
    }
    let short = |digest: &str| digest.chars().take(12).collect::<String>();
    Err(CompileError::Circuit(CircuitError::Mismatch {
        left: format!("`{}`", with_suffix(&options.prefix, ".circuit").display()),
        right: format!("`{}`", options.model.display()),
        reason: format!(
            "the circuit is {}…, and compiling the model again with `{}` gives {}…; model, calibration data or the version of thex is another",
            short(circuit),
            recipe.calibration.display(),
            short(again)
        ),
    }))
}

/// A bar that several runs fill.
struct Total<'a>(&'a Bar, u64);

impl Progress for Total<'_> {
    fn step(&self, name: &str, total: u64) {
        self.0.step(name, total * self.1);
    }
    fn advance(&self, count: u64) {
        self.0.advance(count);
    }
}

/// Phase of every big LWE of each sample, by encrypting, running and decrypting.
fn decrypted(
    options: &VerifyOptions,
    key: &Path,
    circuit: &Circuit,
    tracer: &Tracer<'_>,
    samples: &[Vec<Named>],
) -> Result<Vec<Vec<u64>>> {
    let client = ClientKey::load(key)?;
    let beside = options.server_key.clone().unwrap_or_else(|| key.with_file_name("server.key"));
    let server = ServerKey::load(&beside)?;
    if server.info != client.info {
        return Err(CompileError::Circuit(CircuitError::Mismatch {
            left: format!("`{}`", key.display()),
            right: format!("`{}`", beside.display()),
            reason: "they were not generated together; give the server key with --server-key".into(),
        }));
    }
    let backend = CpuBackend::new(server.expand());
    let executor = Executor::new(circuit, &backend)?;
    let bar = Bar::new(circuit.pbs_count() * samples.len() as u64);
    let progress = Total(&bar, samples.len() as u64);
    let one = |named: &Vec<Named>| -> Result<Vec<u64>> {
        let (input, _) = client::encrypt(tracer.bundle, &client, named)?;
        let words = input.expand(&circuit.parameters)?;
        let phases = Mutex::new(client::phases(&client, &words));
        let seen = |start: u32, words: &[u64]| keep(&phases, start, client::phases(&client, words));
        let run = RunOptions { observer: Some(&seen), ..RunOptions::new(&progress) };
        Run::new(&executor, &words, run)?.complete()?;
        Ok(phases.into_inner().unwrap_or_default())
    };
    let phases = samples.iter().map(one).collect::<Result<Vec<_>>>();
    bar.finish();
    let phases = phases?;
    match phases.iter().all(|p| p.len() == elements(circuit)) {
        true => Ok(phases),
        false => Err(CompileError::Internal("not every block of the circuit was seen".into())),
    }
}

/// Puts the phases of a block behind those of the blocks before it, which end where it starts.
fn keep(phases: &Mutex<Vec<u64>>, start: u32, block: Vec<u64>) {
    if let Ok(mut phases) = phases.lock() {
        phases.truncate(start as usize);
        phases.extend(block);
    }
}

/// Addresses of lwe memory.
fn elements(circuit: &Circuit) -> usize {
    let inputs = circuit.inputs.iter().map(|(_, block)| block.end());
    let written = circuit.instructions.iter().filter_map(|x| match x {
        Instruction::Linear(_) | Instruction::Pbs(_) | Instruction::LutProduct(_) | Instruction::ExternalProduct(_) => {
            Some(x.destination().end())
        }
        Instruction::Keyswitch(_) | Instruction::Pack(_) => None,
    });
    inputs.chain(written).max().unwrap_or(0) as usize
}

/// The first node in execution order, and the first lane in which it departs.
fn first_departure(lanes: &[Lane]) -> Option<(String, &'static str)> {
    let order = |name: &str| lanes.first().and_then(|l| l.trace.nodes.iter().position(|n| n.name == name));
    let named = lanes.iter().filter_map(|l| Some((l.trace.first_departure.clone()?, l.name)));
    named.min_by_key(|(name, _)| order(name))
}

impl Verification {
    /// Whether every node does what was predicted.
    ///
    /// # Errors
    /// [`CompileError::Departure`] names the first that does not.
    pub fn check(&self) -> Result<()> {
        let Some((node, lane)) = &self.first_departure else { return Ok(()) };
        let found = self.lanes.iter().find(|l| l.name == *lane).and_then(|l| l.node(node));
        let bits = |bits: Option<f64>| bits.map_or_else(|| "no".to_owned(), |b| format!("{b:.2}"));
        let (local, model, outside) = found.map_or((None, None, 0), |n| (n.local_bits, n.modelled_bits, n.outside));
        let reason = format!(
            "its own error leaves {} bits of its range, where {} were modelled; {outside} float values lie outside the range",
            bits(local),
            bits(model)
        );
        Err(CompileError::Departure { node: node.clone(), lane, reason })
    }

    /// A table for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out =
            format!("circuit {}…, compiled again from model and calibration data: the same\n\n", &self.circuit[..12]);
        out += "Own error of each node over its model, in bits of the node's range; ! where it departs.\n\n";
        self.lanes.iter().for_each(|lane| _ = write!(out, "{:>16} ", lane.name));
        out += " outside  op           node\n";
        let Some(first) = self.lanes.first() else { return out };
        for node in &first.trace.nodes {
            self.lanes.iter().for_each(|lane| out += &cell(lane.node(&node.name)));
            let _ = writeln!(out, " {:>7}  {:<11}  {}", node.outside, node.op, node.name);
        }
        out += "\nrms error of the outputs:";
        for Lane { name, trace } in &self.lanes {
            let _ = write!(out, " {name} {:.4} ({} samples)", trace.output_rms_error, trace.samples);
        }
        let predicted = first.trace.predicted_rms_error.map_or_else(|| "-".to_owned(), |e| format!("{e:.4}"));
        let _ = writeln!(out, "; modelled {predicted}; the approximations' {:.4}", first.trace.approximation_rms_error);
        out + &match &self.first_departure {
            Some((node, lane)) => format!("first node that departs from its prediction: {node} ({lane})\n"),
            None => "no node that matters departs from its prediction\n".to_owned(),
        }
    }
}

impl Lane {
    fn node(&self, name: &str) -> Option<&NodeTrace> {
        self.trace.nodes.iter().find(|n| n.name == name)
    }
}

fn cell(node: Option<&NodeTrace>) -> String {
    let bits = |bits: Option<f64>| bits.map_or_else(|| "-".to_owned(), |b| format!("{b:.2}"));
    node.map_or_else(String::new, |n| {
        let mark = if n.departs() { "!" } else { " " };
        format!("{:>7} /{:>7}{mark} ", bits(n.local_bits), bits(n.modelled_bits))
    })
}
