//! `thex report`.

use std::path::PathBuf;

use thex::error::Result;
use thex::pipeline::with_suffix;
use thex::report::data::{ReportData, SUFFIX};
use thex::report::page::{page, report_json};
use thex_circuit::Circuit;
use thex_circuit::file::write_atomic;
use thex_runtime::{calibrate, check_writable};

use crate::print_out;

/// Write one HTML page about a compiled model: cost, error, ranges, decisions. It needs no network.
#[derive(clap::Args)]
pub(crate) struct ReportArgs {
    /// Prefix of the compiled files: OUT.circuit and OUT.report.json are read.
    #[arg(value_name = "OUT")]
    prefix: PathBuf,
    /// The page.
    #[arg(short, long, value_name = "REPORT.html")]
    output: PathBuf,
}

pub(crate) fn run(args: &ReportArgs) -> Result<()> {
    check_writable(&args.output)?;
    let (circuit, digest) = Circuit::load(&with_suffix(&args.prefix, ".circuit"))?;
    let data = ReportData::load(&with_suffix(&args.prefix, SUFFIX), &digest)?;
    let times = calibrate::measure(circuit.parameters, 0)?;
    let html = page(&report_json(&circuit, &digest, &data, &times)?);
    write_atomic(&args.output, html.as_bytes(), false)?;
    print_out(&format!("wrote {} ({:.1} MB)\n", args.output.display(), html.len() as f64 / 1e6))
}
