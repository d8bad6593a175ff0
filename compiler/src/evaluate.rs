//! A compiled model against its float original, sample by sample.
//!
//! Three modes run the same circuit: `clear` its integers and tables without noise, `simulate` with the noise that
//! the model predicts, `encrypted` on ciphertexts with fresh keys. The reference is always tract's own run of
//! the ONNX file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::ValueEnum;
use ndarray::{ArrayD, IxDyn};
use rayon::prelude::*;
use serde::Serialize;
use thex_circuit::{Circuit, ClientBundle, FrozenInput, NoiseModel};
use thex_ir::{Graph, NodeId};
use thex_runtime::client::{self, Named, Rounding};
use thex_runtime::commands::{self, Bar, Device};
use thex_runtime::executor::Executor;
use thex_runtime::{Simulator, keys, npz, simulate};

use crate::error::{CompileError, Result};
use crate::import::{self, ImportOptions, InputInfo, Reference};
use crate::interval::Interval;
use crate::noise_check::{self, NoiseCheck};
use crate::pipeline::{read_data, with_suffix};

/// How the circuit is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// The circuit's integers and tables, without noise.
    Clear,
    /// The same with modelled noise.
    Simulate,
    /// Real keys and ciphertexts.
    Encrypted,
}

impl Mode {
    /// As the command line spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Clear => "clear",
            Self::Simulate => "simulate",
            Self::Encrypted => "encrypted",
        }
    }
}

/// What to evaluate.
#[derive(Clone, Debug)]
pub struct EvaluateOptions {
    /// Prefix of `.circuit` and `.client`.
    pub prefix: PathBuf,
    /// On what and how.
    pub workload: Workload,
}

/// Samples, and how a circuit is run on them.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The ONNX file that the circuit was compiled from.
    pub model: PathBuf,
    /// Samples, and labels if there are any.
    pub data: PathBuf,
    /// How.
    pub mode: Mode,
    /// At most so many samples.
    pub limit: Option<usize>,
    /// Seed of simulated noise; in encrypted mode, of that which it is compared with.
    pub seed: u64,
    /// What runs it on ciphertexts.
    pub backend: Device,
}

/// Differences of one output from the float model's.
#[derive(Clone, Debug, Serialize)]
pub struct OutputScore {
    /// Its name.
    pub name: String,
    /// Mean over samples of the cosine between circuit and float.
    pub mean_cosine: f64,
    /// Largest absolute difference.
    pub max_abs_error: f64,
    /// Root of the mean squared difference.
    pub rms_error: f64,
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub struct Evaluation {
    /// Samples evaluated.
    pub samples: usize,
    /// Share of correct classes, where the data has labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// 95 % interval of the accuracy, by Wilson's score. Rows of one sample count as if they were independent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy_interval: Option<Interval>,
    /// Accuracy of the float model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub float_accuracy: Option<f64>,
    /// Its 95 % interval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub float_accuracy_interval: Option<Interval>,
    /// Share of samples with the float model's class.
    pub agreement: f64,
    /// Its 95 % interval.
    pub agreement_interval: Interval,
    /// Of the first output.
    pub mean_cosine: f64,
    /// Of the output named `logits`, else the last.
    pub max_abs_error: f64,
    /// Root mean square error of the same output that the noise model predicts; approximations are not in it.
    pub predicted_rms_error: Option<f64>,
    /// Execution, summed over samples.
    pub seconds: f64,
    /// Keys and encryption.
    pub setup_seconds: f64,
    /// Look-up arguments outside their domain, and clamped inputs. Not visible in encrypted mode, where only clamped inputs count.
    pub overflows: u64,
    /// The same by look-up argument, for those that had any. Inputs are listed as `input`.
    pub overflows_by_argument: BTreeMap<String, u64>,
    /// Class of each row of each sample (argmax over the last axis).
    pub classes: Vec<Vec<usize>>,
    /// The float model's.
    pub float_classes: Vec<Vec<usize>>,
    /// Blind rotations of one sample.
    pub pbs_count: u64,
    /// The mode.
    pub mode: &'static str,
    /// Each output.
    pub outputs: Vec<OutputScore>,
    /// In encrypted mode: whether the noise is the simulated one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise: Option<NoiseCheck>,
}

/// One sample's results.
struct Outcome {
    circuit: Vec<Named>,
    float: Vec<Named>,
    overflows: BTreeMap<String, u64>,
    seconds: f64,
}

/// Overflows by the name of the look-up argument, clamped inputs among them.
fn overflows(circuit: &Circuit, counts: &[u32], clamped: usize) -> BTreeMap<String, u64> {
    let mut by_name: BTreeMap<String, u64> = BTreeMap::new();
    for (count, provenance) in counts.iter().zip(&circuit.provenance).filter(|(c, _)| **c > 0) {
        *by_name.entry(provenance.name.clone()).or_default() += u64::from(*count);
    }
    if clamped > 0 {
        by_name.insert("input".to_owned(), clamped as u64);
    }
    by_name
}

/// Loads a circuit and its bundle and checks that they belong together.
///
/// # Errors
/// A file is damaged, or they are of different compilations.
pub fn load_pair(prefix: &Path) -> Result<(Circuit, ClientBundle)> {
    let (circuit_path, bundle_path) = (with_suffix(prefix, ".circuit"), with_suffix(prefix, ".client"));
    let (circuit, digest) = Circuit::load(&circuit_path)?;
    let bundle = ClientBundle::load(&bundle_path)?;
    if bundle.circuit != digest {
        return Err(CompileError::Circuit(thex_circuit::CircuitError::Mismatch {
            left: format!("`{}`", circuit_path.display()),
            right: format!("`{}`", bundle_path.display()),
            reason: "they come from different compilations; compile the model again".into(),
        }));
    }
    Ok((circuit, bundle))
}

/// Runs the evaluation.
///
/// # Errors
/// [`CompileError`]: a file is not usable or does not fit the others.
pub fn evaluate(options: &EvaluateOptions) -> Result<Evaluation> {
    let (circuit, bundle) = load_pair(&options.prefix)?;
    evaluate_pair(&circuit, &bundle, &options.workload)
}

/// The same for a circuit in memory.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_pair(circuit: &Circuit, bundle: &ClientBundle, work: &Workload) -> Result<Evaluation> {
    let samples = read_samples(bundle, work)?;
    let labels = labels(&work.data, samples.len())?;
    let reference = reference(bundle, &work.model)?;
    let (outcomes, setup) = match noise_model(circuit, work.mode) {
        None => encrypted(circuit, bundle, &reference, &samples, work.backend)?,
        Some(noise) => (simulated(circuit, bundle, &reference, &samples, noise, work.seed)?, 0.0),
    };
    let mut evaluation = score(&outcomes, labels.as_deref())?;
    if work.mode == Mode::Encrypted {
        let results: Vec<&[Named]> = outcomes.iter().map(|o| o.circuit.as_slice()).collect();
        evaluation.noise = Some(noise_check::check(circuit, bundle, &samples, &results, work.seed)?);
    }
    evaluation.setup_seconds = setup;
    evaluation.mode = work.mode.name();
    evaluation.pbs_count = circuit.pbs_count();
    evaluation.predicted_rms_error = circuit.info.predicted_output_error;
    Ok(evaluation)
}

/// The real function that a circuit computes, `graph` from the model's inputs to its outputs, with neither rounding nor noise: what
/// approximations lose by themselves.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_graph(graph: &Graph, bundle: &ClientBundle, work: &Workload) -> Result<Evaluation> {
    let samples = read_samples(bundle, work)?;
    let labels = labels(&work.data, samples.len())?;
    let reference = reference(bundle, &work.model)?;
    let run = |sample: &Vec<Named>| -> Result<Outcome> {
        let start = Instant::now();
        let circuit = run_graph(graph, sample)?;
        let seconds = start.elapsed().as_secs_f64();
        Ok(Outcome { circuit, float: float_outputs(&reference, sample)?, overflows: BTreeMap::new(), seconds })
    };
    let outcomes: Vec<Outcome> = samples.par_iter().map(run).collect::<Result<_>>()?;
    score(&outcomes, labels.as_deref())
}

fn run_graph(graph: &Graph, sample: &[Named]) -> Result<Vec<Named>> {
    let named = |id: &NodeId| {
        let name = &graph.node(*id).name;
        let value = sample.iter().find(|(n, _)| n == name).map(|(_, value)| Arc::new(value.clone()));
        value.ok_or_else(|| CompileError::Data(format!("no value was given for input `{name}`")))
    };
    let inputs: Vec<Arc<ArrayD<f64>>> = graph.inputs.iter().map(named).collect::<Result<_>>()?;
    let outputs = thex_ir::interpret::run(graph, &inputs)?;
    Ok(graph.outputs.iter().zip(outputs).map(|((name, _), value)| (name.clone(), (*value).clone())).collect())
}

/// The float model at the shapes that the bundle was compiled for.
///
/// # Errors
/// The file is no model, or not that one.
pub(crate) fn reference(bundle: &ClientBundle, model: &Path) -> Result<Reference> {
    let frozen = bundle.interface.frozen.iter().map(|f| (f.name.clone(), f.shape.clone()));
    let shapes = bundle.prologue.inputs.iter().cloned().chain(frozen).collect();
    Ok(import::import(model, &ImportOptions { shapes })?.reference)
}

/// The noise that a mode simulates; none is simulated where ciphertexts bring their own.
pub(crate) fn noise_model(circuit: &Circuit, mode: Mode) -> Option<NoiseModel> {
    match mode {
        Mode::Clear => Some(NoiseModel::silent()),
        Mode::Simulate => Some(NoiseModel::new(&circuit.parameters)),
        Mode::Encrypted => None,
    }
}

/// Seed of a sample's noise.
#[must_use]
pub fn sample_seed(seed: u64, sample: usize) -> u64 {
    seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(sample as u64)
}

/// The samples of a data set, each with all inputs of the model; public inputs that the data lack have their constant value.
///
/// # Errors
/// The file is none, lacks an input, or holds no sample.
pub(crate) fn read_samples(bundle: &ClientBundle, work: &Workload) -> Result<Vec<Vec<Named>>> {
    if work.limit == Some(0) {
        return Err(CompileError::Usage("--limit must be at least 1".into()));
    }
    let inputs = import::inputs(&work.model)?;
    let there = npz::names(&work.data)?;
    let absent: Vec<&FrozenInput> = bundle.interface.frozen.iter().filter(|f| !there.contains(&f.name)).collect();
    let read: Vec<InputInfo> = inputs.into_iter().filter(|i| absent.iter().all(|f| f.name != i.name)).collect();
    let arrays = read_data(&work.data, &read)?;
    let count = npz::samples(&arrays).min(work.limit.unwrap_or(usize::MAX));
    if count == 0 {
        return Err(CompileError::Data(format!("`{}` holds no sample", work.data.display())));
    }
    let sample = |i| -> Result<Vec<Named>> {
        let mut sample = with_batch(bundle, npz::sample(&arrays, i)?);
        sample.extend(absent.iter().filter_map(|f| Some((f.name.clone(), frozen_value(f)?))));
        Ok(sample)
    };
    (0..count).map(sample).collect()
}

fn frozen_value(frozen: &FrozenInput) -> Option<ArrayD<f64>> {
    ArrayD::from_shape_vec(IxDyn(&frozen.shape), frozen.values.clone()).ok()
}

/// Gives every sample the batch axis of the model's inputs.
fn with_batch(bundle: &ClientBundle, sample: Vec<Named>) -> Vec<Named> {
    let shape_of = |name: &str| {
        let frozen = bundle.interface.frozen.iter().map(|f| (&f.name, &f.shape));
        let mut inputs = bundle.prologue.inputs.iter().map(|(n, s)| (n, s)).chain(frozen);
        inputs.find(|(n, _)| *n == name).map(|(_, s)| s.clone())
    };
    sample
        .into_iter()
        .map(|(name, value)| {
            let reshaped = shape_of(&name).and_then(|s| value.clone().into_shape_with_order(s).ok());
            (name, reshaped.unwrap_or(value))
        })
        .collect()
}

fn labels(path: &Path, count: usize) -> Result<Option<Vec<usize>>> {
    let Ok(arrays) = npz::read(path, &["label"]) else { return Ok(None) };
    let Some((_, array)) = arrays.first() else { return Ok(None) };
    let labels: Vec<usize> = array.iter().take(count).map(|&v| v as usize).collect();
    if labels.len() < count {
        return Err(CompileError::Data(format!("`{}` has fewer labels than samples", path.display())));
    }
    Ok(Some(labels))
}

/// The float model's outputs.
///
/// # Errors
/// tract cannot run it on the sample.
pub fn float_outputs(reference: &Reference, sample: &[Named]) -> Result<Vec<Named>> {
    let inputs: Vec<(&str, ArrayD<f64>)> = sample.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    Ok(reference.run(&inputs)?)
}

fn simulated(
    circuit: &Circuit,
    bundle: &ClientBundle,
    reference: &Reference,
    samples: &[Vec<Named>],
    noise: NoiseModel,
    seed: u64,
) -> Result<Vec<Outcome>> {
    let simulator = Simulator::new(circuit, noise)?;
    samples
        .par_iter()
        .enumerate()
        .map(|(i, sample)| {
            let seed = sample_seed(seed, i);
            let start = Instant::now();
            let inference = simulate::infer(bundle, &simulator, sample, seed)?;
            let seconds = start.elapsed().as_secs_f64();
            let clamped = inference.encoded.clamped_total();
            Ok(Outcome {
                circuit: inference.outputs,
                float: float_outputs(reference, sample)?,
                overflows: overflows(circuit, inference.simulation.overflows(), clamped),
                seconds,
            })
        })
        .collect()
}

fn encrypted(
    circuit: &Circuit,
    bundle: &ClientBundle,
    reference: &Reference,
    samples: &[Vec<Named>],
    device: Device,
) -> Result<(Vec<Outcome>, f64)> {
    let start = Instant::now();
    let (key, server) = keys::generate(bundle, None)?;
    let backend = commands::backend(server, device)?;
    let executor = Executor::new(circuit, &*backend)?;
    let mut setup = start.elapsed().as_secs_f64();
    let bar = Bar::new(circuit.pbs_count() * samples.len() as u64);
    let progress = TotalBar { bar: &bar, samples: samples.len() as u64 };
    let mut outcomes = Vec::new();
    for sample in samples {
        let start = Instant::now();
        let (input, encoded) = client::encrypt(bundle, &key, sample)?;
        let words = input.expand(&circuit.parameters)?;
        setup += start.elapsed().as_secs_f64();
        let start = Instant::now();
        let lwes = executor.run(&words, &progress)?;
        let seconds = start.elapsed().as_secs_f64();
        let phases = client::phases(&key, &lwes);
        outcomes.push(Outcome {
            circuit: client::decode(bundle, &phases, Rounding::Raw)?,
            float: float_outputs(reference, sample)?,
            overflows: overflows(circuit, &[], encoded.clamped_total()),
            seconds,
        });
    }
    bar.finish();
    Ok((outcomes, setup))
}

/// A bar over all samples: a run announces the total of one.
struct TotalBar<'a> {
    bar: &'a Bar,
    samples: u64,
}

impl thex_runtime::Progress for TotalBar<'_> {
    fn step(&self, name: &str, total: u64) {
        thex_runtime::Progress::step(self.bar, name, total * self.samples);
    }

    fn advance(&self, count: u64) {
        thex_runtime::Progress::advance(self.bar, count);
    }
}

/// Index of the largest value along the last axis, for each row.
fn argmax(value: &ArrayD<f64>) -> Vec<usize> {
    let n = value.shape().last().copied().unwrap_or(1).max(1);
    let flat: Vec<f64> = value.iter().copied().collect();
    let best = |row: &[f64]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0);
    flat.chunks(n).map(best).collect()
}

/// The output that classes are read from: `logits`, else the last.
pub(crate) fn class_output(outputs: &[Named]) -> usize {
    outputs.iter().position(|(name, _)| name == "logits").unwrap_or(outputs.len().saturating_sub(1))
}

fn share(hits: usize, of: usize) -> f64 {
    hits as f64 / of.max(1) as f64
}

fn score(outcomes: &[Outcome], labels: Option<&[usize]>) -> Result<Evaluation> {
    let first = outcomes.first().map(|o| &o.float).filter(|o| !o.is_empty());
    let first = first.ok_or_else(|| CompileError::Invalid("the model has no output".into()))?;
    let outputs: Vec<OutputScore> = (0..first.len()).map(|o| output_score(outcomes, o)).collect::<Result<_>>()?;
    let class = class_output(first);
    let (mut agree, mut rows, mut correct, mut float_correct) = (0, 0, 0, 0);
    let (mut classes, mut float_classes) = (Vec::new(), Vec::new());
    for (i, outcome) in outcomes.iter().enumerate() {
        let (ours, theirs) = (argmax(&outcome.circuit[class].1), argmax(&outcome.float[class].1));
        agree += ours.iter().zip(&theirs).filter(|(a, b)| a == b).count();
        rows += ours.len();
        if let Some(labels) = labels {
            correct += ours.iter().filter(|&&c| c == labels[i]).count();
            float_correct += theirs.iter().filter(|&&c| c == labels[i]).count();
        }
        classes.push(ours);
        float_classes.push(theirs);
    }
    let mut overflows_by_argument: BTreeMap<String, u64> = BTreeMap::new();
    for (name, count) in outcomes.iter().flat_map(|o| &o.overflows) {
        *overflows_by_argument.entry(name.clone()).or_default() += count;
    }
    Ok(Evaluation {
        samples: outcomes.len(),
        accuracy: labels.map(|_| share(correct, rows)),
        accuracy_interval: labels.map(|_| Interval::wilson(correct, rows)),
        float_accuracy: labels.map(|_| share(float_correct, rows)),
        float_accuracy_interval: labels.map(|_| Interval::wilson(float_correct, rows)),
        agreement: share(agree, rows),
        agreement_interval: Interval::wilson(agree, rows),
        mean_cosine: outputs[0].mean_cosine,
        max_abs_error: outputs[class].max_abs_error,
        predicted_rms_error: None,
        seconds: outcomes.iter().map(|o| o.seconds).sum(),
        setup_seconds: 0.0,
        overflows: outcomes.iter().flat_map(|o| o.overflows.values()).sum(),
        overflows_by_argument,
        classes,
        float_classes,
        pbs_count: 0,
        mode: "",
        outputs,
        noise: None,
    })
}

fn output_score(outcomes: &[Outcome], index: usize) -> Result<OutputScore> {
    let (mut cosines, mut largest, mut squares, mut count) = (0.0, 0.0_f64, 0.0, 0.0);
    for outcome in outcomes {
        let (name, float) = &outcome.float[index];
        let ours = outcome.circuit.iter().find(|(n, _)| n == name).map(|(_, v)| v).filter(|v| v.len() == float.len());
        let ours = ours.ok_or_else(|| {
            CompileError::Invalid(format!(
                "output `{name}` of the model is not one of the circuit's: is it the same model?"
            ))
        })?;
        let (mut dot, mut a, mut b) = (0.0, 0.0, 0.0);
        for (x, y) in ours.iter().zip(float) {
            dot += x * y;
            a += x * x;
            b += y * y;
            largest = largest.max((x - y).abs());
            squares += (x - y) * (x - y);
            count += 1.0;
        }
        cosines += if a > 0.0 && b > 0.0 { dot / (a * b).sqrt() } else { 0.0 };
    }
    Ok(OutputScore {
        name: outcomes[0].float[index].0.clone(),
        mean_cosine: cosines / outcomes.len() as f64,
        max_abs_error: largest,
        rms_error: f64::sqrt(squares / f64::max(count, 1.0)),
    })
}

impl Evaluation {
    /// Root mean square error of the output that classes are read from, in its units.
    #[must_use]
    pub fn class_rms_error(&self) -> f64 {
        let logits = self.outputs.iter().find(|o| o.name == "logits").or(self.outputs.last());
        logits.map_or(0.0, |o| o.rms_error)
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let percent = |share: Option<f64>, interval: Option<Interval>| {
            share
                .zip(interval)
                .map_or_else(|| "-".to_owned(), |(share, i)| format!("{:.1} % {}", 100.0 * share, i.percent()))
        };
        let mut out = format!(
            "{} samples, {}: accuracy {}, float {}, agreement {}, mean cosine {:.4}, max abs error {:.4}\n",
            self.samples,
            self.mode,
            percent(self.accuracy, self.accuracy_interval),
            percent(self.float_accuracy, self.float_accuracy_interval),
            percent(Some(self.agreement), Some(self.agreement_interval)),
            self.mean_cosine,
            self.max_abs_error,
        );
        for output in &self.outputs {
            out += &format!(
                "  {}: cosine {:.4}, max abs error {:.4}, rms error {:.4}{}\n",
                output.name,
                output.mean_cosine,
                output.max_abs_error,
                output.rms_error,
                self.predicted_rms_error.map_or_else(String::new, |e| format!(" (noise model: {e:.4})")),
            );
        }
        out += &format!(
            "{} PBS a sample, {:.2} s in all, {:.2} s set-up, {} overflows\n",
            self.pbs_count, self.seconds, self.setup_seconds, self.overflows
        );
        if let Some(noise) = &self.noise {
            out += &noise.text();
        }
        for (name, count) in &self.overflows_by_argument {
            out += &format!("  {count} at {name}\n");
        }
        out
    }
}
