//! `thex compile`.

use std::path::PathBuf;

use thex::error::Result;
use thex::export;
use thex::pipeline::{Compiled, compile, rewrite, with_suffix};
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

fn show(compiled: &Compiled) -> Result<()> {
    let times = calibrate::measure(compiled.emitted.circuit.parameters, 0)?;
    eprint!("{}", report::pass_table(&compiled.records));
    compiled.log.iter().for_each(|line| eprintln!("  {line}"));
    eprintln!();
    print_out(&report::circuit_text(&compiled.emitted.circuit, &compiled.emitted.bundle.circuit, &times))
}
