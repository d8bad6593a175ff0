//! `thex bench`: the machine's kernels, a circuit on them, and models of any size on paper.

use serde_json::json;
use thex::error::Result;
use thex::scale;
use thex_runtime::bench::{self, BenchReport};

use crate::{print_json, print_out};

/// Measure the kernels on this machine; say where a circuit's time goes; or put models of many sizes on paper.
///
///   thex bench                      bare and batched PBS, products, keyswitch, packing, linear maps
///   thex bench OUT.circuit          and the share of each in this circuit, PBS count × time, memory
///   thex bench --scale              BERT-like models of 8 to 128 tokens, 128 to 768 wide: PBS, hours
///   thex bench --threads 1 --parameters n=850,k=1,N=2048,ks=3x5,bs=15x2,pk=12x3
///
/// No key is needed: kernels run on random numbers of the same sizes. A busy machine gives longer times, so compare what one
/// call prints, not calls.
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    kernels: bench::BenchArgs,
    /// A table of model sizes, from formulas (in compiler/src/scale.rs) and the kernels measured now. Hours on 64 cores assume
    /// that time falls with the number of cores.
    #[arg(long, conflicts_with = "circuit")]
    scale: bool,
    /// With --scale: products that share a rotation. The planner takes 4 where precision is short (MiniLM), 8 where it is not.
    #[arg(long, value_name = "M", requires = "scale", default_value_t = scale::SLOTS, value_parser = clap::value_parser!(u64).range(1..=64))]
    slots: u64,
}

pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    let report = BenchReport::measure(&args.kernels)?;
    if !args.scale {
        return if args.kernels.json { print_json(&report) } else { print_out(&report.text()) };
    }
    let rows = scale::table(args.slots, &report.kernels);
    if args.kernels.json {
        return print_json(&json!({ "kernels": report.kernels, "parameters": report.parameters, "scale": rows }));
    }
    print_out(&scale::text(&rows, args.slots, &report.kernels))
}
