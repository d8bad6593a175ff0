//! `thex explain`: what an error code means.

use thex::error::{CompileError, Result};
use thex::explain::{find, list};

use crate::print_out;

/// Explain an error code at length; without one, list all.
#[derive(clap::Args)]
pub(crate) struct ExplainArgs {
    /// As printed with the error.
    #[arg(value_name = "TX0012")]
    code: Option<String>,
}

pub(crate) fn run(args: &ExplainArgs) -> Result<()> {
    let Some(code) = &args.code else { return print_out(&list()) };
    let unknown = || CompileError::Usage(format!("there is no code `{code}`; `thex explain` lists all"));
    print_out(&find(code).ok_or_else(unknown)?.page())
}
