//! `thex compile`.

use std::path::PathBuf;

use thex::auto::{Budget, search};
use thex::error::{CompileError, Result};
use thex::export;
use thex::pipeline::{CompileOptions, Compiled, compile, rewrite, with_suffix};
use thex::report::{self, data};
use thex_circuit::file::write_atomic;
use thex_runtime::{calibrate, check_writable};

use crate::interface::InterfaceArgs;
use crate::model::ModelArgs;
use crate::print_out;

/// Compile an ONNX transformer. Writes OUT.circuit (for the server), OUT.client (for the client), and two files that
/// neither needs: OUT.report.json (for `thex report` and `thex verify`) and OUT.graph (for `thex export`).
#[derive(clap::Args)]
pub(crate) struct CompileArgs {
    /// The model.
    #[arg(value_name = "MODEL.onnx")]
    model: PathBuf,
    /// Typical inputs: one array for each input of the model, the first axis counting samples. 500 samples or more are
    /// a good number; labels and other arrays are ignored.
    #[arg(long, value_name = "DATA.npz")]
    calibration: PathBuf,
    #[command(flatten)]
    rewriting: ModelArgs,
    /// With `--profile auto`: points that the circuit may lose against the exact one, of accuracy where the calibration data have
    /// `label`, else of agreement with the float model, for embeddings of the cosine. [default: 0.5]
    #[arg(long, value_name = "POINTS", conflicts_with = "budget_seconds")]
    budget_accuracy: Option<f64>,
    /// With `--profile auto`: seconds that a run may take on this machine, at the least loss.
    #[arg(long, value_name = "S")]
    budget_seconds: Option<f64>,
    /// Write the IR after every pass into this folder.
    #[arg(long, value_name = "DIR")]
    dump_ir: Option<PathBuf>,
    /// Print the IR after this pass instead of compiling to the end; `thex passes` lists them.
    #[arg(long, value_name = "PASS")]
    stop_after: Option<String>,
    /// Prefix of the files.
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    #[command(flatten)]
    interface: InterfaceArgs,
}

pub(crate) fn run(args: &CompileArgs) -> Result<()> {
    let paths = [".circuit", ".client", data::SUFFIX, export::SUFFIX].map(|suffix| with_suffix(&args.output, suffix));
    paths.iter().try_for_each(|path| check_writable(path))?;
    let mut options = args.rewriting.options(&args.model, &args.calibration, args.dump_ir.clone())?;
    options.interface = args.interface.options();
    if args.rewriting.auto() {
        search_forms(args, &mut options)?;
    } else if args.budget_accuracy.is_some() || args.budget_seconds.is_some() {
        return Err(CompileError::Usage("--budget-accuracy and --budget-seconds are for `--profile auto`".into()));
    }
    if let Some(pass) = &args.stop_after {
        let rewritten = rewrite(&options, Some(pass))?;
        eprint!("{}", report::pass_table(&rewritten.records));
        return print_out(&thex_ir::print::print(&rewritten.graph));
    }
    let compiled = compile(&options)?;
    let recipe = Some(data::Recipe::new(&options));
    let side = data::ReportData { recipe, ..data::collect(&compiled) }.to_bytes()?;
    let emitted = &compiled.emitted;
    for (path, bytes) in paths.iter().zip([&emitted.circuit_bytes, &emitted.bundle_bytes, &side, &compiled.graph_bytes])
    {
        write_atomic(path, bytes, false)?;
    }
    show(&compiled)?;
    let size = |bytes: &[u8]| format!("{:.1} MB", bytes.len() as f64 / 1e6);
    print_out(&format!(
        "\nwrote {} ({}) for the server, {} ({}) for the client, {} for `thex report`, {} ({}) for `thex export`\n",
        paths[0].display(),
        size(&emitted.circuit_bytes),
        paths[1].display(),
        size(&emitted.bundle_bytes),
        paths[2].display(),
        paths[3].display(),
        size(&compiled.graph_bytes),
    ))
}

/// Searches for the forms that the budget allows, and asks for them.
fn search_forms(args: &CompileArgs, options: &mut CompileOptions) -> Result<()> {
    let budget = Budget::of(args.budget_accuracy, args.budget_seconds)?;
    let mut number = 0;
    let found = search(options, budget, &mut |trial| {
        number += 1;
        eprintln!(
            "{number:>3}  {:>8} PBS {:>8.1} s {:>7.2} points lost  {}",
            trial.pbs, trial.seconds, trial.loss, trial.name
        );
    })?;
    print_out(&format!("{}\n", found.text()))?;
    let chosen = &found.trials[found.chosen];
    if !found.kept {
        eprintln!(
            "warning: nothing that was tried keeps to the budget; the nearest is taken ({:.1} s, {:.2} points lost)",
            chosen.seconds, chosen.loss
        );
    }
    found.apply(options);
    Ok(())
}

fn show(compiled: &Compiled) -> Result<()> {
    let times = calibrate::measure(compiled.emitted.circuit.parameters, 0)?;
    eprint!("{}", report::pass_table(&compiled.records));
    compiled.log.iter().for_each(|line| eprintln!("  {line}"));
    eprintln!();
    print_out(&report::circuit_text(&compiled.emitted.circuit, &compiled.emitted.bundle.circuit, &times))
}
