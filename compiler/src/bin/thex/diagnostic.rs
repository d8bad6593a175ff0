//! Errors as people see them: what, why, what to do, and an exit status by kind.

use std::process::ExitCode;

use miette::{GraphicalReportHandler, MietteDiagnostic, Severity};
use thex::error::{CompileError, Kind};

/// Prints an error on standard error and gives the exit status of its kind.
pub(crate) fn show(error: CompileError) -> ExitCode {
    let kind = error.kind();
    let mut diagnostic = MietteDiagnostic::new(error.to_string()).with_severity(Severity::Error).with_code(kind.code());
    if let Some(help) = kind.help() {
        diagnostic = diagnostic.with_help(help);
    }
    let mut text = String::new();
    let handler = GraphicalReportHandler::new().with_width(120);
    if handler.render_report(&mut text, &diagnostic).is_err() {
        text = format!("error: {error}\n");
    }
    eprint!("{text}");
    ExitCode::from(match kind {
        Kind::Invalid => 3,
        Kind::Unsupported => 4,
        Kind::Infeasible => 5,
        Kind::Internal => 70,
    })
}
