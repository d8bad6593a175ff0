//! `thex verify`.

use std::path::PathBuf;

use thex::error::Result;
use thex::trace::verify::{VerifyOptions, verify};

use crate::{print_json, print_out};

/// Check a compiled circuit node by node: float against quantised against simulated against, with the client key, decrypted values.
///
/// The circuit is compiled again from the model and the calibration data, by the options in OUT.report.json, and must come out the
/// same. Then every node's own error, given its operands as the circuit has them, is held against what was modelled. Exits with status
/// 6 and names the first node that departs from its prediction, if one does.
///
///   thex verify OUT --model MODEL.onnx --data DATA.npz
///   thex verify OUT --model MODEL.onnx --data DATA.npz --key keys/client.key
///
/// With --key everything is encrypted, run and decrypted here, intermediate values included: for the owner of the key alone.
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct VerifyArgs {
    /// Prefix of the compiled files.
    #[arg(value_name = "OUT")]
    prefix: PathBuf,
    /// The model that it was compiled from.
    #[arg(long, value_name = "MODEL.onnx")]
    model: PathBuf,
    /// Samples.
    #[arg(long, value_name = "DATA.npz")]
    data: PathBuf,
    /// The calibration data, if they are not where `compile` found them.
    #[arg(long, value_name = "CAL.npz")]
    calibration: Option<PathBuf>,
    /// The client key: also run on ciphertexts, and decrypt what every node makes.
    #[arg(long, value_name = "KEYS/client.key")]
    key: Option<PathBuf>,
    /// The server key; `server.key` beside the client key if not given.
    #[arg(long, value_name = "KEYS/server.key", requires = "key")]
    server_key: Option<PathBuf>,
    /// At most so many samples.
    #[arg(long, value_name = "N", default_value_t = 8)]
    limit: usize,
    /// At most so many of them on ciphertexts.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "key")]
    encrypted: usize,
    /// Seed of simulated noise.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// One JSON object on standard output.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &VerifyArgs) -> Result<()> {
    let verification = verify(&VerifyOptions {
        prefix: args.prefix.clone(),
        model: args.model.clone(),
        data: args.data.clone(),
        calibration: args.calibration.clone(),
        key: args.key.clone(),
        server_key: args.server_key.clone(),
        limit: args.limit,
        encrypted: args.encrypted,
        seed: args.seed,
    })?;
    if args.json {
        print_json(&verification)?
    } else {
        print_out(&verification.text())?
    }
    verification.check()
}
