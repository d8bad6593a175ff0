//! `thex trace`.

use std::path::PathBuf;

use thex::error::Result;
use thex::evaluate::{Mode, Workload};
use thex::trace::trace;
use thex_runtime::commands::Device;

use crate::model::ModelArgs;
use crate::{print_json, print_out};

/// Show which node of the circuit loses the accuracy: compile a model in memory, run it on data, and compare every node with its real
/// value. Writes no file.
///
/// Errors are in bits of the node's calibrated range: -log2 of the root mean square of error ÷ width. `accumulated` holds all errors
/// before the node, `local` only what it does itself, `modelled` what was predicted of that, with ! where the local error is more than
/// twice the modelled one. `outside` counts float values outside the node's range. `effect` is what the local error alone does to the
/// outputs, in their units.
#[derive(clap::Args)]
pub(crate) struct TraceArgs {
    /// The model.
    #[arg(value_name = "MODEL.onnx")]
    model: PathBuf,
    /// Typical inputs, as for `compile`.
    #[arg(long, value_name = "CAL.npz")]
    calibration: PathBuf,
    /// Samples to trace.
    #[arg(long, value_name = "DATA.npz")]
    data: PathBuf,
    #[command(flatten)]
    rewriting: ModelArgs,
    /// At most so many samples.
    #[arg(long, value_name = "N", default_value_t = 8)]
    limit: usize,
    /// Seed of simulated noise.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// How the circuit is run: `clear` shows rounding alone, `simulate` noise too. On ciphertexts nothing can be seen.
    #[arg(long, value_enum, default_value = "simulate")]
    mode: Mode,
    /// One JSON object on standard output.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &TraceArgs) -> Result<()> {
    let options = args.rewriting.plain_options(&args.model, &args.calibration)?;
    let work = Workload {
        model: args.model.clone(),
        data: args.data.clone(),
        mode: args.mode,
        limit: Some(args.limit),
        seed: args.seed,
        backend: Device::Cpu,
    };
    let trace = trace(&options, &work)?;
    if args.json { print_json(&trace) } else { print_out(&trace.text()) }
}
