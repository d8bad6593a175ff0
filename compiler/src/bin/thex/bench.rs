//! `thex bench`: the machine's kernels, a circuit on them, and models of any size on paper.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::json;
use thex::error::{CompileError, Result};
use thex::scale;
use thex_circuit::CircuitError;
use thex_circuit::file::read_limited;
use thex_runtime::bench::{self, BenchReport};
use thex_runtime::{KernelTimes, RuntimeError};

use crate::{print_json, print_out};

/// Measure the kernels on this machine; say where a circuit's time goes; or put models of many sizes on paper.
///
///   thex bench                      bare and batched PBS, products, keyswitch, packing, linear maps
///   thex bench OUT.circuit          and the share of each in this circuit, PBS count × time, memory
///   thex bench OUT.circuit --bandwidth 10Gbit   and the circuit on 1 to 256 machines behind such a network
///   thex bench --scale              BERT-like models of 8 to 128 tokens, 128 to 768 wide: PBS, hours
///   thex bench --threads 1 --parameters n=850,k=1,N=2048,ks=3x5,bs=15x2,pk=12x3,gf=2
///
/// No key is needed: kernels run on random numbers of the same sizes. A busy machine gives
/// longer times, so compare what one call prints, not calls.
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    kernels: bench::BenchArgs,
    /// A table of model sizes, from formulas (in compiler/src/scale.rs) and kernel times. Hours on 2 and 64 cores assume that time
    /// falls with the number of cores.
    #[arg(long, conflicts_with = "circuit")]
    scale: bool,
    /// With --scale: products that share a rotation. The planner takes 4 to 9 for BERT-tiny, about 4 for MiniLM, where precision is short.
    #[arg(long, value_name = "M", requires = "scale", default_value_t = scale::SLOTS, value_parser = clap::value_parser!(u64).range(1..=64))]
    slots: u64,
    /// With --scale or a circuit: kernel times from a file that `thex bench --json` printed, here or elsewhere, in place of measuring.
    #[arg(long, value_name = "BENCH.json", conflicts_with_all = ["threads", "parameters"])]
    kernels_from: Option<PathBuf>,
}

/// What is read of a file that `--json` printed.
#[derive(Deserialize)]
struct Kept {
    parameters: String,
    kernels: KernelTimes,
}

/// No such file is larger.
const MOST_BYTES: u64 = 1 << 20;

fn read_kept(path: &Path) -> Result<Kept> {
    let malformed = |reason: String| {
        CompileError::Circuit(CircuitError::Malformed { path: path.to_owned(), kind: "file of kernel times", reason })
    };
    let kept: Kept = serde_json::from_slice(&read_limited(path, MOST_BYTES)?).map_err(|e| malformed(e.to_string()))?;
    let k = &kept.kernels;
    let times = [k.pbs_ns, k.lut_product_ns, k.keyswitch_ns, k.pack_ns, k.multiply_add_ns];
    if k.threads == 0 || !times.iter().all(|t| t.is_finite() && *t > 0.0) {
        return Err(malformed("threads and times must be above zero".into()));
    }
    Ok(kept)
}

/// Kernel times to price models with: kept ones, or measured now.
fn kept_or_measured(args: &BenchArgs) -> Result<Kept> {
    if let Some(path) = &args.kernels_from {
        return read_kept(path);
    }
    let report = BenchReport::measure(&bench::BenchArgs { bandwidth: None, ..args.kernels.clone() })?;
    let BenchReport { parameters, kernels, .. } = report;
    Ok(Kept { parameters, kernels })
}

pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    if !args.scale {
        let kept = args.kernels_from.as_deref().map(read_kept).transpose()?;
        if kept.is_some() && args.kernels.circuit.is_none() {
            return Err(RuntimeError::Input("--kernels-from prices a circuit or --scale: give one".into()).into());
        }
        let report = BenchReport::new(&args.kernels, kept.map(|kept| kept.kernels))?;
        return if args.kernels.json { print_json(&report) } else { print_out(&report.text()) };
    }
    let Kept { parameters, kernels } = kept_or_measured(args)?;
    let rows = scale::table(args.slots, &kernels);
    if args.kernels.json {
        return print_json(&json!({ "kernels": kernels, "parameters": parameters, "scale": rows }));
    }
    let ranked = match args.kernels.network() {
        Some(network) => scale::ranked_text(args.slots, &parameters.parse()?, &kernels, &network),
        None => String::new(),
    };
    print_out(&format!("{parameters}\n{}{ranked}", scale::text(&rows, args.slots, &kernels)))
}
