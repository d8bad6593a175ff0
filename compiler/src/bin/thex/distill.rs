//! `thex distill`.

use std::io::IsTerminal;
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use thex::distill::{CHECKPOINT, DistilOptions, LossWeights, PhaseScore, Progress, distil};
use thex::error::{CompileError, Result};
use thex::export;
use thex::pipeline::with_suffix;
use thex_circuit::file::write_atomic;
use thex_runtime::check_writable;

use crate::model::ModelArgs;
use crate::{print_json, print_out};

/// Train an approximated model to do what its original does. Writes OUT.onnx, which compiles like
/// any model.
///
/// The student is the model with the approximations of --profile and --approximate; the teacher is
/// the model itself. First GELU and softmax are replaced and all weights trained, then layer norms
/// one by one, at last everything together, with the circuit's noise and rounded weights in the loop.
/// Targets are the teacher's outputs and hidden states, and the labels in the array `label` of
/// TRAIN.npz, if it is there.
///
///   thex distill model.onnx --data train.npz --profile the-x -o student
///   thex compile student.onnx --calibration calibration.npz -o student
///   thex evaluate student --model model.onnx --data dev.npz
///
/// The last command compares with the original model, on data that are in neither of the other files.
/// Approximations are written out in OUT.onnx as ordinary operators, so --profile of `compile` does
/// not change them again; it decides on what is left exact.
///
/// OUT.checkpoint is written after every epoch. After an interruption the same command goes on from
/// it, and comes to the same student. It is removed at the end. Same model, data, options and seed
/// give the same student, on any number of threads.
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct DistillArgs {
    /// The model.
    #[arg(value_name = "MODEL.onnx")]
    model: PathBuf,
    /// Samples to train on: one array for each input, the first axis counting samples; `label`, if there, gives classes.
    /// Some hundred at least. A tenth is held out to decide when to stop; keep what you evaluate on out of it.
    #[arg(long, value_name = "TRAIN.npz")]
    data: PathBuf,
    #[command(flatten)]
    rewriting: ModelArgs,
    /// Prefix of the student.
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Most epochs of the first phase and of the last; each layer norm takes a quarter of it.
    #[arg(long, value_name = "N", default_value_t = 60)]
    epochs: usize,
    /// Samples in a step.
    #[arg(long, value_name = "N", default_value_t = 64)]
    batch: usize,
    /// Learning rate at the start of a phase; it falls along a cosine.
    #[arg(long, value_name = "R", default_value_t = 2e-3)]
    learning_rate: f64,
    /// Weight decay of matrices.
    #[arg(long, value_name = "D", default_value_t = 0.01)]
    weight_decay: f64,
    /// Noise to train with, as a multiple of what the circuit is modelled to have; 0 for none.
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    noise: f64,
    /// Bits of weights in training, sign included.
    #[arg(long, value_name = "B", default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=16))]
    weight_bits: u32,
    /// Weight of the distance between hidden states, relative to that between outputs.
    #[arg(long, value_name = "W", default_value_t = LossWeights::default().hidden)]
    hidden: f64,
    /// Weight of the labels.
    #[arg(long, value_name = "W", default_value_t = LossWeights::default().labels)]
    labels: f64,
    /// Weight of attention scores beyond the range that the teacher's have: such scores overflow.
    #[arg(long, value_name = "W", default_value_t = LossWeights::default().scores)]
    scores: f64,
    /// Part of the samples that decides when to stop.
    #[arg(long, value_name = "P", default_value_t = 0.1)]
    held_out: f64,
    /// Epochs without a better held-out loss before a phase ends.
    #[arg(long, value_name = "N", default_value_t = 15)]
    patience: usize,
    /// Seed of batches, noise and the split.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Begin anew even if there is a checkpoint.
    #[arg(long)]
    restart: bool,
    /// One JSON object on standard output.
    #[arg(long)]
    json: bool,
}

impl DistillArgs {
    fn options(&self) -> Result<DistilOptions> {
        let weights =
            LossWeights { hidden: self.hidden, labels: self.labels, scores: self.scores, ..LossWeights::default() };
        let legal = |v: f64, hi: f64| (0.0..=hi).contains(&v);
        let sensible = [weights.hidden, weights.labels, weights.scores].iter().all(|w| legal(*w, 1e6))
            && self.learning_rate > 0.0
            && legal(self.learning_rate, 1.0)
            && legal(self.weight_decay, 10.0)
            && legal(self.noise, 100.0)
            && self.held_out > 0.0
            && legal(self.held_out, 0.9)
            && (1..=100_000).contains(&self.epochs)
            && (1..=65_536).contains(&self.batch)
            && self.patience > 0;
        if !sensible {
            return Err(CompileError::Usage(
                "--learning-rate must be above 0 and at most 1, --held-out above 0 and at most 0.9, --epochs, --batch and --patience \
                 at least 1, --weight-decay at most 10, --noise at most 100, weights of the loss no less than 0"
                    .into(),
            ));
        }
        Ok(DistilOptions {
            compile: self.rewriting.plain_options(&self.model, &self.data)?,
            output: self.output.clone(),
            epochs: self.epochs,
            batch: self.batch,
            rate: self.learning_rate,
            decay: self.weight_decay,
            noise: self.noise,
            weight_bits: self.weight_bits,
            weights,
            held_out: self.held_out,
            patience: self.patience,
            seed: self.seed,
            restart: self.restart,
        })
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Summary<'a> {
    student: String,
    parameters: usize,
    trained_on: usize,
    held_out: usize,
    phases: &'a [PhaseScore],
    approximations: &'a [String],
}

pub(crate) fn run(args: &DistillArgs) -> Result<()> {
    let student = with_suffix(&args.output, ".onnx");
    if student == args.model {
        return Err(CompileError::Usage(format!("-o {} would overwrite the model", args.output.display())));
    }
    let checkpoint = with_suffix(&args.output, CHECKPOINT);
    [&student, &checkpoint].into_iter().try_for_each(|path| check_writable(path))?;
    let options = args.options()?;
    let bar = Bar::new();
    let distilled = distil(&options, &bar)?;
    bar.0.finish_and_clear();
    write_atomic(&student, &export::onnx_bytes(&distilled.file)?, false)?;
    // It may be gone already; what is left of it does no harm.
    let _ = std::fs::remove_file(&checkpoint);
    if args.json {
        return print_json(&Summary {
            student: student.display().to_string(),
            parameters: distilled.parameters,
            trained_on: distilled.samples.0,
            held_out: distilled.samples.1,
            phases: &distilled.scores,
            approximations: &distilled.file.approximations,
        });
    }
    print_out(&format!("{}\nwrote {}\n", distilled.text(), student.display()))
}

/// A bar on a terminal, else a line for each phase.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{msg:40!} {wide_bar} {pos}/{len} epochs, {eta} left") {
            bar.set_style(style);
        }
        Self(bar)
    }
}

impl Progress for Bar {
    fn phase(&self, name: &str, epochs: usize) {
        self.0.reset();
        self.0.set_length(epochs as u64);
        self.0.set_message(name.to_owned());
        if !std::io::stderr().is_terminal() {
            eprintln!("{name}: at most {epochs} epochs");
        }
    }

    fn epoch(&self, done: usize, loss: f64) {
        self.0.set_position(done as u64);
        self.0.set_message(format!("loss {loss:.4}"));
    }
}
