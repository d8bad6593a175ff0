//! `thex inspect`: a circuit, a client bundle, or what one pass does to a model.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use thex::bundle_report;
use thex::diff::GraphDiff;
use thex::error::{CompileError, Result};
use thex::pipeline::around;
use thex::report;
use thex_circuit::file::is_bundle;
use thex_circuit::{Circuit, ClientBundle};
use thex_runtime::calibrate;

use crate::model::ModelArgs;
use crate::print_out;

/// Say what a circuit is and what running it costs; or what a client bundle holds; or, with --pass, what a pass does to a model.
///
///   thex inspect OUT.circuit --format json
///   thex inspect MODEL.onnx --calibration DATA.npz --pass fold-affine --format dot | dot -Tsvg > fold.svg
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct InspectArgs {
    /// The circuit or client bundle, or with --pass the model.
    #[arg(value_name = "OUT.circuit|OUT.client|MODEL.onnx")]
    file: PathBuf,
    /// For people, for programs, or for Graphviz (with --pass).
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Show the graph before and after this pass, and their difference; `thex passes` lists them.
    #[arg(long, value_name = "PASS", requires = "calibration")]
    pass: Option<String>,
    /// With --pass: typical inputs, as for `compile`.
    #[arg(long, value_name = "DATA.npz", requires = "pass")]
    calibration: Option<PathBuf>,
    #[command(flatten)]
    rewriting: ModelArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
    Dot,
}

pub(crate) fn run(args: &InspectArgs) -> Result<()> {
    match (&args.pass, &args.calibration) {
        (Some(pass), Some(calibration)) => inspect_pass(args, pass, calibration),
        _ if args.rewriting.any() => Err(CompileError::Usage(
            "--profile, --shape, -x and the like say how --pass rewrites: give --pass NAME".into(),
        )),
        _ => inspect_circuit(args),
    }
}

fn inspect_circuit(args: &InspectArgs) -> Result<()> {
    if matches!(args.format, Format::Dot) {
        return Err(CompileError::Usage(
            "--format dot shows a pass: give --pass and --calibration, and a model".into(),
        ));
    }
    if is_bundle(&args.file) {
        return inspect_bundle(args);
    }
    let (circuit, digest) = Circuit::load(&args.file)?;
    let times = calibrate::measure(circuit.parameters, 0)?;
    match args.format {
        Format::Json => print_out(&format!("{}\n", report::circuit_json(&circuit, &digest, &times))),
        Format::Text | Format::Dot => print_out(&report::circuit_text(&circuit, &digest, &times)),
    }
}

fn inspect_bundle(args: &InspectArgs) -> Result<()> {
    let bundle = ClientBundle::load(&args.file)?;
    match args.format {
        Format::Json => print_out(&format!("{}\n", bundle_report::bundle_json(&bundle)?)),
        Format::Text | Format::Dot => print_out(&bundle_report::bundle_text(&bundle)?),
    }
}

fn inspect_pass(args: &InspectArgs, pass: &str, calibration: &Path) -> Result<()> {
    let around = around(&args.rewriting.plain_options(&args.file, calibration)?, pass)?;
    let diff = GraphDiff::new(&around);
    print_out(&match args.format {
        Format::Text => diff.text(),
        Format::Json => format!("{}\n", diff.json()),
        Format::Dot => diff.dot(),
    })
}
