//! `thex compare`.

use std::path::PathBuf;

use thex::compare::compare;
use thex::error::{CompileError, Result};
use thex::evaluate::{Mode, Workload};
use thex_runtime::commands::Device;

use crate::model::{ModelArgs, ProfileArg};
use crate::{print_json, print_out};

/// Compile a model under several profiles and show side by side what each loses (simulated on data) and what each costs. Writes no
/// file.
#[derive(clap::Args)]
pub(crate) struct CompareArgs {
    /// The model.
    #[arg(value_name = "MODEL.onnx")]
    model: PathBuf,
    /// Typical inputs, as for `compile`.
    #[arg(long, value_name = "CAL.npz")]
    calibration: PathBuf,
    /// Samples to evaluate on; `label`, if there, gives classes.
    #[arg(long, value_name = "DATA.npz")]
    data: PathBuf,
    /// Profiles, separated by commas.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "exact,the-x", conflicts_with = "profile")]
    profiles: Vec<ProfileArg>,
    #[command(flatten)]
    rewriting: ModelArgs,
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

pub(crate) fn run(args: &CompareArgs) -> Result<()> {
    let options = args.rewriting.plain_options(&args.model, &args.calibration)?;
    if args.profiles.iter().any(|p| matches!(p, ProfileArg::Auto)) {
        let help = "`auto` is no profile to compare: `thex compile --profile auto` searches, and shows every trial beside the others";
        return Err(CompileError::Usage(help.into()));
    }
    let profiles: Vec<_> = args.profiles.iter().map(|&p| p.into()).collect();
    let work = Workload {
        model: args.model.clone(),
        data: args.data.clone(),
        mode: Mode::Simulate,
        limit: args.limit,
        seed: args.seed,
        backend: Device::Cpu,
    };
    let comparison = compare(&options, &profiles, &work)?;
    if args.json { print_json(&comparison) } else { print_out(&comparison.text()) }
}
