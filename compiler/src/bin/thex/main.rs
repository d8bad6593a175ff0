//! The `thex` program: the only place that parses arguments for people and renders diagnostics for them.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use thex::demo::{DemoOptions, demo};
use thex::error::{CompileError, Result};
use thex::evaluate::{EvaluateOptions, Mode, Workload, evaluate};
use thex_runtime::commands::{self, DecryptArgs, Device, EncryptArgs, KeygenArgs, RunArgs};
use thex_serve::commands::{self as service, ClientArgs, CompletionsArgs, ManArgs, ServeArgs, TokenArgs};

use compile::CompileArgs;
use explain::ExplainArgs;
use inspect::InspectArgs;
use model::ProfileArg;
use passes::PassesArgs;
use report::ReportArgs;

mod bench;
mod compare;
mod compile;
mod diagnostic;
mod distill;
mod explain;
mod export;
mod inspect;
mod interface;
mod model;
mod passes;
mod report;
mod trace;
mod verify;

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
    Report(ReportArgs),
    Keygen(KeygenArgs),
    Encrypt(EncryptArgs),
    Run(RunArgs),
    Decrypt(DecryptArgs),
    Serve(ServeArgs),
    Token(TokenArgs),
    Client(ClientArgs),
    Evaluate(EvaluateArgs),
    Trace(trace::TraceArgs),
    Verify(verify::VerifyArgs),
    Compare(compare::CompareArgs),
    Distill(Box<distill::DistillArgs>),
    Export(export::ExportArgs),
    Bench(bench::BenchArgs),
    Passes(PassesArgs),
    Explain(ExplainArgs),
    Demo(DemoArgs),
    Man(ManArgs),
    Completions(CompletionsArgs),
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
    /// What runs it on ciphertexts.
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    backend: Device,
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
    #[command(flatten)]
    settings: model::SettingArgs,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if !matches!(cli.command, Command::Serve(_)) {
        log(cli.verbose);
    }
    match run(&cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => diagnostic::show(&error),
    }
}

/// Log lines on standard error; `serve` has its own.
fn log(verbose: u8) {
    let level = match verbose {
        0 => "warn,tract=error",
        1 => "info,tract=warn",
        _ => "debug,tract=warn",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::Compile(args) => compile::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Report(args) => report::run(args),
        Command::Keygen(args) => Ok(commands::keygen(args)?),
        Command::Encrypt(args) => Ok(commands::encrypt(args)?),
        Command::Run(args) => Ok(commands::run(args)?),
        Command::Decrypt(args) => Ok(commands::decrypt(args)?),
        Command::Serve(args) => Ok(service::serve(args)?),
        Command::Token(args) => Ok(service::token(args)?),
        Command::Client(args) => Ok(service::client(args)?),
        Command::Evaluate(args) => run_evaluate(args),
        Command::Trace(args) => trace::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Distill(args) => distill::run(args),
        Command::Export(args) => export::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Passes(args) => passes::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Man(args) => Ok(service::man(Cli::command(), args)?),
        Command::Completions(args) => Ok(service::completions(Cli::command(), args)?),
        Command::Demo(args) => demo(&DemoOptions {
            profile: args.profile.into(),
            sample: args.sample,
            pass_options: args.settings.pass_options.clone(),
        }),
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

fn run_evaluate(args: &EvaluateArgs) -> Result<()> {
    let evaluation = evaluate(&EvaluateOptions {
        prefix: args.prefix.clone(),
        workload: Workload {
            model: args.model.clone(),
            data: args.data.clone(),
            mode: args.mode,
            limit: args.limit,
            seed: args.seed,
            backend: args.backend,
        },
    })?;
    if args.json { print_json(&evaluation) } else { print_out(&evaluation.text()) }
}

/// Writes one JSON object and a line end to standard output.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string(value).map_err(|e| CompileError::Internal(e.to_string()))?;
    print_out(&format!("{text}\n"))
}
