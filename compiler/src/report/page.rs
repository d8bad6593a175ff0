//! The report: one HTML page that says what a circuit is, costs and errs, and why.
//!
//! Everything is in the page: style, script and data, so that it opens from a file, on a machine without a network, years
//! later. The numbers are one JSON object in it (`#report`), which programs can read too; the script draws from it
//! alone. Alternative rejected: a chart library, ten times the size of the data.

use serde_json::{Value, json};
use thex_circuit::Circuit;
use thex_runtime::KernelTimes;

use super::circuit_json;
use super::data::ReportData;
use crate::error::{CompileError, Result};

const SKELETON: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The object that the page shows: the circuit as `inspect` describes it, the compiler's data, and seconds of each instruction.
///
/// # Errors
/// [`CompileError::Internal`] when the data cannot be written as JSON.
pub fn report_json(circuit: &Circuit, digest: &str, data: &ReportData, times: &KernelTimes) -> Result<Value> {
    let seconds: Vec<f64> = circuit.instructions.iter().map(|i| times.instruction_ns(i) * 1e-9).collect();
    // Where calibration data lie is nobody's business but `verify`'s.
    let data = ReportData { recipe: None, ..data.clone() };
    let data = serde_json::to_value(data).map_err(|e| CompileError::Internal(format!("report data: {e}")))?;
    Ok(json!({
        "thex": env!("CARGO_PKG_VERSION"),
        "circuit": circuit_json(circuit, digest, times),
        "seconds": seconds,
        "data": data,
    }))
}

/// The page.
#[must_use]
pub fn page(report: &Value) -> String {
    // Nothing in a script element may look like its end.
    let data = report.to_string().replace('<', "\\u003c");
    let title = report["circuit"]["model"].as_str().unwrap_or("circuit");
    let title = title.replace('&', "&amp;").replace('<', "&lt;");
    SKELETON
        .replace("{title}", &title)
        .replace("/*style*/", STYLE)
        .replace("/*script*/", SCRIPT)
        .replace("{data}", &data)
}
