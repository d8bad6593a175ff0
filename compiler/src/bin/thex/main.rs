//! The `thex` program: the only place that parses arguments for people and renders diagnostics for them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use thex::demo::{DemoOptions, demo};
use thex::error::{CompileError, Result};
use thex::evaluate::{EvaluateOptions, Mode, evaluate};
use thex::export::SUFFIX;
use thex::pipeline::{CompileOptions, Compiled, compile, rewrite, with_suffix};
use thex::report;
use thex_circuit::Circuit;
use thex_circuit::file::write_atomic;
use thex_passes::{Precision, Profile, registry};
use thex_runtime::commands::{self, DecryptArgs, EncryptArgs, KeygenArgs, RunArgs};
use thex_runtime::{calibrate, check_writable};

mod diagnostic;
mod export;

/// Compile transformers from ONNX to homomorphic-encryption circuits, and run them on encrypted data.
///
/// A round trip:
///
///   thex compile model.onnx --calibration data.npz -o model
///   thex keygen model.client -o keys
///   thex encrypt model.client --key keys/client.key --input data.npz --sample 0 -o in.ct
///   thex run model.circuit --key keys/server.key --input in.ct -o out.ct
///   thex decrypt model.client --key keys/client.key --input out.ct
///
/// The server needs model.circuit, keys/server.key and in.ct, and never the client key.
#[derive(Parser)]
#[command(name = "thex", version, verbatim_doc_comment)]
struct Cli {
    /// More log lines on standard error; twice for what every pass decided.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Compile(CompileArgs),
    Inspect(InspectArgs),
    Keygen(KeygenArgs),
    Encrypt(EncryptArgs),
    Run(RunArgs),
    Decrypt(DecryptArgs),
    Evaluate(EvaluateArgs),
    Export(export::ExportArgs),
    /// List the passes in pipeline order.
    Passes,
    Demo(DemoArgs),
}

#[derive(Clone, Copy, ValueEnum)]
enum ProfileArg {
    /// Every function by look-up.
    Exact,
    /// THE-X: ReLU, cubic softmax, affine layer norms.
    TheX,
}

impl From<ProfileArg> for Profile {
    fn from(arg: ProfileArg) -> Self {
        match arg {
            ProfileArg::Exact => Self::Exact,
            ProfileArg::TheX => Self::TheX,
        }
    }
}

/// Compile an ONNX transformer. Writes OUT.circuit (for the server), OUT.client (for the client), and OUT.graph, which
/// neither needs: `thex export` makes an ONNX model of it.
#[derive(clap::Args)]
struct CompileArgs {
    /// The model.
    #[arg(value_name = "MODEL.onnx")]
    model: PathBuf,
    /// Typical inputs: one array for each input of the model, the first axis counting samples. 500 samples or more are
    /// a good number; labels and other arrays are ignored.
    #[arg(long, value_name = "DATA.npz")]
    calibration: PathBuf,
    /// How non-linear functions are computed.
    #[arg(long, value_enum, default_value = "exact")]
    profile: ProfileArg,
    /// Shape of an input, batch included, for example `input_ids=1x16`. Taken from the calibration data if not given.
    #[arg(long = "shape", value_name = "NAME=1x16", value_parser = parse_shape)]
    shapes: Vec<(String, Vec<usize>)>,
    /// Goal for the modelled error of the outputs, relative to their spread. Less costs more bootstraps.
    #[arg(long, value_name = "E", default_value_t = Precision::default().output_error)]
    output_error: f64,
    /// Widening of calibrated ranges, as a fraction of their width on each side.
    #[arg(long, value_name = "M", default_value_t = Precision::default().margin)]
    margin: f64,
    /// Write the IR after every pass into this folder.
    #[arg(long, value_name = "DIR")]
    dump_ir: Option<PathBuf>,
    /// Print the IR after this pass instead of compiling to the end; `thex passes` lists them.
    #[arg(long, value_name = "PASS")]
    stop_after: Option<String>,
    /// Prefix of the files.
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
}

/// Say what a circuit is, and what running it costs.
#[derive(clap::Args)]
struct InspectArgs {
    /// The circuit.
    #[arg(value_name = "OUT.circuit")]
    circuit: PathBuf,
    /// For people or for programs.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Compare a compiled model with its float original on data.
#[derive(clap::Args)]
struct EvaluateArgs {
    /// Prefix of the compiled files.
    #[arg(value_name = "OUT")]
    prefix: PathBuf,
    /// The model that it was compiled from.
    #[arg(long, value_name = "MODEL.onnx")]
    model: PathBuf,
    /// Samples; `label`, if there, gives classes.
    #[arg(long, value_name = "DATA.npz")]
    data: PathBuf,
    /// How the circuit is run: its integers without noise, with modelled noise, or on ciphertexts.
    #[arg(long, value_enum, default_value = "simulate")]
    mode: Mode,
    /// At most so many samples.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Seed of simulated noise.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// One JSON object on standard output.
    #[arg(long)]
    json: bool,
}

/// Compile the model that comes with thex, encrypt an image, classify it encrypted, and show the answer.
#[derive(clap::Args)]
struct DemoArgs {
    /// How non-linear functions are computed.
    #[arg(long, value_enum, default_value = "exact")]
    profile: ProfileArg,
    /// Which of the images that come with thex.
    #[arg(long, value_name = "I", default_value_t = 0)]
    sample: usize,
}

fn parse_shape(text: &str) -> std::result::Result<(String, Vec<usize>), String> {
    let wrong = || format!("`{text}` is no shape: write NAME=1x16");
    let (name, dims) = text.split_once('=').ok_or_else(wrong)?;
    let dims: Vec<usize> =
        dims.split('x').map(str::parse).collect::<std::result::Result<_, _>>().map_err(|_| wrong())?;
    let elements = dims.iter().try_fold(1_usize, |a, &b| a.checked_mul(b)).filter(|&n| n <= 1 << 28);
    if name.is_empty() || elements.is_none_or(|n| n == 0) {
        return Err(format!("{} and between 1 and 2^28 elements in all", wrong()));
    }
    Ok((name.to_owned(), dims))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = match cli.verbose {
        0 => "warn,tract=error",
        1 => "info,tract=warn",
        _ => "debug,tract=warn",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
    match run(&cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => diagnostic::show(error),
    }
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::Compile(args) => run_compile(args),
        Command::Inspect(args) => run_inspect(args),
        Command::Keygen(args) => Ok(commands::keygen(args)?),
        Command::Encrypt(args) => Ok(commands::encrypt(args)?),
        Command::Run(args) => Ok(commands::run(args)?),
        Command::Decrypt(args) => Ok(commands::decrypt(args)?),
        Command::Evaluate(args) => run_evaluate(args),
        Command::Export(args) => export::run(args),
        Command::Passes => {
            let lines: Vec<String> =
                registry::pipeline().iter().map(|p| format!("{:<20} {}\n", p.name(), p.description())).collect();
            print_out(&lines.concat())
        }
        Command::Demo(args) => demo(&DemoOptions { profile: args.profile.into(), sample: args.sample }),
    }
}

/// Writes to standard output; a closed pipe is no error.
fn print_out(text: &str) -> Result<()> {
    use std::io::Write;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(CompileError::Invalid(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

fn run_compile(args: &CompileArgs) -> Result<()> {
    let (circuit_path, bundle_path) = (with_suffix(&args.output, ".circuit"), with_suffix(&args.output, ".client"));
    let graph_path = with_suffix(&args.output, SUFFIX);
    for path in [&circuit_path, &bundle_path, &graph_path] {
        check_writable(path)?;
    }
    let sensible = args.output_error > 0.0 && args.output_error.is_finite() && (0.0..=10.0).contains(&args.margin);
    if !sensible {
        return Err(CompileError::Invalid("--output-error must be positive, --margin between 0 and 10".into()));
    }
    let options = CompileOptions {
        model: args.model.clone(),
        calibration: args.calibration.clone(),
        profile: args.profile.into(),
        shapes: args.shapes.iter().cloned().collect::<BTreeMap<_, _>>(),
        precision: Precision { output_error: args.output_error, margin: args.margin },
        dump_ir: args.dump_ir.clone(),
    };
    if let Some(pass) = &args.stop_after {
        let rewritten = rewrite(&options, Some(pass))?;
        eprint!("{}", report::pass_table(&rewritten.records));
        return print_out(&thex_ir::print::print(&rewritten.graph));
    }
    let Compiled { emitted, graph_bytes, records, log } = compile(&options)?;
    write_atomic(&circuit_path, &emitted.circuit_bytes, false)?;
    write_atomic(&bundle_path, &emitted.bundle_bytes, false)?;
    write_atomic(&graph_path, &graph_bytes, false)?;
    let times = calibrate::measure(emitted.circuit.parameters, 0)?;
    eprint!("{}", report::pass_table(&records));
    log.iter().for_each(|line| eprintln!("  {line}"));
    eprintln!();
    print_out(&report::circuit_text(&emitted.circuit, &emitted.bundle.circuit, &times))?;
    let size = |bytes: &[u8]| format!("{:.1} MB", bytes.len() as f64 / 1e6);
    print_out(&format!(
        "\nwrote {} ({}) for the server, {} ({}) for the client, {} ({}) for `thex export`\n",
        circuit_path.display(),
        size(&emitted.circuit_bytes),
        bundle_path.display(),
        size(&emitted.bundle_bytes),
        graph_path.display(),
        size(&graph_bytes)
    ))
}

fn run_inspect(args: &InspectArgs) -> Result<()> {
    let (circuit, digest) = Circuit::load(&args.circuit)?;
    let times = calibrate::measure(circuit.parameters, 0)?;
    match args.format {
        Format::Text => print_out(&report::circuit_text(&circuit, &digest, &times)),
        Format::Json => print_out(&format!("{}\n", report::circuit_json(&circuit, &digest, &times))),
    }
}

fn run_evaluate(args: &EvaluateArgs) -> Result<()> {
    let evaluation = evaluate(&EvaluateOptions {
        prefix: args.prefix.clone(),
        model: args.model.clone(),
        data: args.data.clone(),
        mode: args.mode,
        limit: args.limit,
        seed: args.seed,
    })?;
    if !args.json {
        return print_out(&evaluation.text());
    }
    let text = serde_json::to_string(&evaluation).map_err(|e| CompileError::Internal(e.to_string()))?;
    print_out(&format!("{text}\n"))
}
