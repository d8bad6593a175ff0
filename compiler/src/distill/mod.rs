//! Distillation: an approximated model learns to do what its original does.
//!
//! THE-X replaces functions and trains what the replacement breaks. Here the student is a graph of the IR: the model as imported,
//! rewritten by the passes that `compile` uses, for the same profile and `--approximate` forms. Its constants are trained in
//! candle ([`program`](self)), and it is written as an ordinary ONNX file that compiles like any model: approximations are
//! spelled out in it (ReLU, normalised cubes, lines), so no profile changes them again; what stays exact stays a GELU, a softmax, a
//! layer norm.
//!
//! Order, as in THE-X: first GELU and softmax are replaced, with the real layer norms, and all weights trained; then layer norms, one by
//! one, each fitted to the real norm's output with everything else frozen (in closed form, which is where gradient
//! descent on that error ends) before all weights go on; at last everything together. From the first norm on the circuit's noise is in the
//! loop, and weights are rounded (straight-through). (THE-X reports that training all replacements jointly is worse on every task.)
//!
//! Alternative rejected: training the graph that `fold-affine` leaves. Its merged maps are no longer the model's layers, and layer
//! norms are already gone.

mod adam;
mod checkpoint;
mod data;
mod loss;
mod noise;
mod norms;
mod parameters;
mod program;
mod random;
#[cfg(test)]
mod tests;
mod train;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::DType;
use serde::{Deserialize, Serialize};
use thex_circuit::clear::ClearGraph;
use thex_circuit::file::digest;
use thex_ir::Graph;
use thex_passes::choice::Form;
use thex_passes::{PassCx, options, registry};

use crate::error::{CompileError, Result};
use crate::export::GraphFile;
use crate::pipeline::{CompileOptions, graph_file, prepare, with_suffix};

use checkpoint::{Checkpoint, Position};
use data::Data;
use program::Program;
use train::{Course, Plan, Trainee};

pub use loss::LossWeights;
pub(crate) use program::brief;

/// Suffix of the checkpoint.
pub const CHECKPOINT: &str = ".checkpoint";

/// What to distil and how.
#[derive(Clone, Debug)]
pub struct DistilOptions {
    /// Model, training data (as `calibration`), profile and forms.
    pub compile: CompileOptions,
    /// Prefix of the student and of the checkpoint.
    pub output: PathBuf,
    /// Most epochs of the first and the last phase; each layer norm has a quarter.
    pub epochs: usize,
    /// Samples a step.
    pub batch: usize,
    /// Learning rate at the start of each phase.
    pub rate: f64,
    /// Weight decay of matrices.
    pub decay: f64,
    /// Multiple of the modelled noise to train with.
    pub noise: f64,
    /// Bits of weights in training.
    pub weight_bits: u32,
    /// Weights of the terms of the loss.
    pub weights: LossWeights,
    /// Part of the samples that is not trained on.
    pub held_out: f64,
    /// Epochs without a better held-out loss before a phase ends.
    pub patience: usize,
    /// Seed of everything random.
    pub seed: u64,
    /// Forget an earlier checkpoint.
    pub restart: bool,
}

/// Held-out figures after a phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseScore {
    /// What was trained.
    pub phase: String,
    /// Epochs that it took.
    pub epochs: usize,
    /// Loss; with the noise of the phase.
    pub loss: f64,
    /// Share of samples with the teacher's class.
    pub agreement: f64,
    /// Share of samples with the label's class.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub accuracy: Option<f64>,
}

/// A distilled model.
#[derive(Clone, Debug)]
pub struct Distilled {
    /// The student, client and server in one.
    pub file: GraphFile,
    /// What each phase came to, first the untrained student's.
    pub scores: Vec<PhaseScore>,
    /// Samples that were trained on, and held out.
    pub samples: (usize, usize),
    /// Trained numbers.
    pub parameters: usize,
}

/// Hears how far a distillation is.
pub trait Progress: Sync {
    /// A phase of at most so many epochs begins.
    fn phase(&self, name: &str, epochs: usize);
    /// So many are done; the held-out loss.
    fn epoch(&self, done: usize, loss: f64);
}

/// What a phase begins with.
enum Change {
    /// GELU and softmax.
    Functions,
    /// A layer norm.
    Norm(String, Form),
    /// Nothing new.
    Together,
}

/// The model, split and ready to be approximated.
struct Material {
    cx: PassCx,
    graph: Graph,
    teacher: Arc<Graph>,
    prologue: ClearGraph,
    epilogue: ClearGraph,
}

/// Distils a model.
///
/// # Errors
/// [`CompileError`]: data or labels do not fit the model, training diverged, the checkpoint is of another distillation.
pub fn distil(options: &DistilOptions, progress: &dyn Progress) -> Result<Distilled> {
    let mut material = material(&options.compile)?;
    let mut data = Data::new(&material.cx.samples, options.held_out, options.seed)?;
    let class_output = class_output(&material.teacher, &material.epilogue);
    if let Some((_, classes)) = class_output {
        data.labels = data::labels(&options.compile.calibration, material.cx.samples.len(), classes)?;
    }
    let train = data.train.iter().map(|&i| material.cx.samples[i].clone()).collect();
    material.cx.samples = Arc::new(train);
    let program = Program::new(&material.teacher, DType::F32)?;
    let (student, position) =
        School { options, data: &data, program: &program, class_output: class_output.map(|c| c.0), progress }
            .teach(&mut material)?;
    let parameters = parameters::parameters(&student, DType::F32)?.iter().map(|p| p.var.elem_count()).sum();
    material.cx.approximations = position.approximations;
    material.cx.prologue = Some(material.prologue);
    material.cx.epilogue = Some(material.epilogue);
    Ok(Distilled {
        file: graph_file(&options.compile, &material.cx, &student)?,
        scores: position.scores,
        samples: (data.train.len(), data.held_out.len()),
        parameters,
    })
}

/// Imports the model and splits it.
fn material(compile: &CompileOptions) -> Result<Material> {
    let (mut graph, mut cx, _) = prepare(compile)?;
    norms::run_passes(
        pipeline(compile)?,
        &["canonicalize", "choose-forms", "bound-masks", "split-client-server"],
        &mut graph,
        &mut cx,
    )?;
    let (Some(prologue), Some(epilogue), Some(teacher)) =
        (cx.prologue.clone(), cx.epilogue.clone(), cx.teacher.clone())
    else {
        return Err(CompileError::Internal("the model was not split into client and server".into()));
    };
    Ok(Material { cx, graph, teacher, prologue, epilogue })
}

fn pipeline(compile: &CompileOptions) -> Result<Vec<Box<dyn thex_passes::Pass>>> {
    let mut pipeline = registry::pipeline();
    options::apply(&mut pipeline, &compile.pass_options)?;
    Ok(pipeline)
}

/// The output that labels are about (`logits`, else the last), if it is one row of classes a sample: its place among what the server
/// computes, and the number of classes.
fn class_output(teacher: &Graph, epilogue: &ClearGraph) -> Option<(usize, usize)> {
    let names = || epilogue.outputs.iter().map(|(name, _)| name.as_str());
    let name = names().find(|n| *n == "logits").or_else(|| names().next_back())?;
    let place = teacher.outputs.iter().position(|(n, _)| n == name).or((teacher.outputs.len() == 1).then_some(0))?;
    let shape = &teacher.node(teacher.outputs[place].1).shape;
    let classes = *shape.last()?;
    (classes > 1 && shape.iter().product::<usize>() == classes).then_some((place, classes))
}

/// What stays the same from phase to phase.
struct School<'a> {
    options: &'a DistilOptions,
    data: &'a Data,
    program: &'a Program,
    class_output: Option<usize>,
    progress: &'a dyn Progress,
}

impl School<'_> {
    /// All phases, from the checkpoint on if there is one.
    fn teach(&self, material: &mut Material) -> Result<(Graph, Position)> {
        let changes = changes(material);
        let path = with_suffix(&self.options.output, CHECKPOINT);
        let fingerprint = fingerprint(self.options)?;
        let mut checkpoint = if self.options.restart { None } else { Checkpoint::load(&path, &fingerprint)? };
        let mut position = checkpoint.as_ref().map_or_else(Position::default, |c| c.position.clone());
        let mut graph = material.graph.clone();
        while position.phase < changes.len() {
            let resumed = checkpoint.take();
            let bytes = match &resumed {
                Some(checkpoint) => checkpoint.graph.clone(),
                None => self.begin(&changes[position.phase], &mut graph, &mut position, material)?,
            };
            // Read back in either case, so that a resumed phase is the same to the last bit.
            graph =
                GraphFile::from_bytes(&bytes).map_err(|e| CompileError::Internal(format!("the student: {e}")))?.graph;
            let plan = self.plan(&changes[position.phase]);
            let course = Course {
                options: self.options,
                cx: &material.cx,
                teacher: &material.teacher,
                program: self.program,
                data: self.data,
                class_output: self.class_output,
                progress: self.progress,
            };
            let mut trainee = Trainee::new(&course, &plan, &graph)?;
            match &resumed {
                Some(checkpoint) => trainee.resume(checkpoint)?,
                None if position.scores.is_empty() => {
                    let untrained =
                        PhaseScore { phase: format!("{}, untrained", plan.name), ..trainee.score(&position)? };
                    position.scores.push(untrained);
                }
                None => {}
            }
            trainee.train(&mut position, &mut |trainee, position| {
                trainee.checkpoint(position, &bytes)?.save(&path, &fingerprint)
            })?;
            position.scores.push(trainee.score(&position)?);
            trainee.store(&mut graph)?;
            position = Position {
                phase: position.phase + 1,
                scores: position.scores,
                approximations: position.approximations,
                ..Position::default()
            };
        }
        Ok((graph, position))
    }

    /// Makes a phase's change to the student; gives its bytes.
    fn begin(
        &self,
        change: &Change,
        graph: &mut Graph,
        position: &mut Position,
        material: &mut Material,
    ) -> Result<Vec<u8>> {
        let cx = &mut material.cx;
        cx.approximations.clear();
        let pipeline = pipeline(&self.options.compile)?;
        match change {
            Change::Functions => norms::run_passes(pipeline, &["the-x-gelu", "the-x-softmax"], graph, cx)?,
            Change::Norm(name, form) => norms::replace(pipeline, graph, cx, (name, *form))?,
            Change::Together => {}
        }
        position.approximations.append(&mut cx.approximations);
        let file = GraphFile {
            model: String::new(),
            profile: String::new(),
            approximations: Vec::new(),
            dtypes: std::collections::BTreeMap::new(),
            graph: graph.clone(),
        };
        file.to_bytes()
    }

    fn plan(&self, change: &Change) -> Plan {
        let (epochs, rate) = (self.options.epochs, self.options.rate);
        match change {
            Change::Functions => Plan { name: "GELU and softmax".into(), epochs, rate, robust: false },
            Change::Norm(name, _) => Plan { name: name.clone(), epochs: epochs.div_ceil(4), rate, robust: true },
            Change::Together => Plan { name: "all together".into(), epochs, rate, robust: true },
        }
    }
}

/// The phases.
fn changes(material: &Material) -> Vec<Change> {
    let chosen = norms::norms(&material.graph, &material.cx).into_iter().filter(|(_, form)| *form != Form::Exact);
    let norms = chosen.map(|(name, form)| Change::Norm(name, form));
    std::iter::once(Change::Functions).chain(norms).chain([Change::Together]).collect()
}

/// What must be the same for a checkpoint to be of use.
fn fingerprint(options: &DistilOptions) -> Result<String> {
    let content = |path: &Path| -> Result<String> { Ok(digest(&thex_circuit::file::read_limited(path, 8 << 30)?)) };
    let (model, data) = (content(&options.compile.model)?, content(&options.compile.calibration)?);
    let settings = DistilOptions {
        compile: CompileOptions { model: PathBuf::new(), calibration: PathBuf::new(), ..options.compile.clone() },
        output: PathBuf::new(),
        restart: false,
        ..options.clone()
    };
    let text = format!("{} {model} {data} {settings:?}", env!("CARGO_PKG_VERSION"));
    Ok(digest(text.as_bytes()))
}

impl Distilled {
    /// For people: a line for each phase.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = format!(
            "{} trained numbers, {} samples to train on and {} held out, on which:\n\n{:<40} {:>6} {:>9} {:>11} {:>10}\n",
            self.parameters, self.samples.0, self.samples.1, "phase", "epochs", "loss", "agreement %", "accuracy %"
        );
        for score in &self.scores {
            let accuracy = score.accuracy.map_or_else(|| "-".to_owned(), |a| format!("{:.1}", 100.0 * a));
            // Writing to a string cannot fail.
            let _ = writeln!(
                out,
                "{:<40} {:>6} {:>9.4} {:>11.1} {:>10}",
                score.phase,
                score.epochs,
                score.loss,
                100.0 * score.agreement,
                accuracy
            );
        }
        out
    }
}
