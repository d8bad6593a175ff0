//! `thex passes`: what there is, in pipeline order, and one pass at length.

use std::fmt::Write;

use thex::error::{CompileError, Result};
use thex::pipeline::no_pass;
use thex_passes::options::module_docs;
use thex_passes::{Pass, registry};

use crate::print_out;

/// List the passes in pipeline order, with options; or show one at length.
#[derive(clap::Args)]
pub(crate) struct PassesArgs {
    /// A pass.
    name: Option<String>,
}

pub(crate) fn run(args: &PassesArgs) -> Result<()> {
    let mut pipeline = registry::pipeline();
    let Some(name) = &args.name else {
        let shown: Vec<String> = pipeline.iter_mut().map(|pass| brief(pass.as_mut())).collect();
        return print_out(&shown.concat());
    };
    let unknown = no_pass(name, &pipeline);
    let pass = pipeline.iter_mut().find(|p| p.name() == name).ok_or(CompileError::Usage(unknown))?;
    print_out(&at_length(pass.as_mut()))
}

/// Options with their defaults, a line each.
fn options(pass: &mut dyn Pass, indent: &str) -> String {
    let name = pass.name();
    let mut out = String::new();
    for option in pass.options() {
        let setting = format!("-x {name}:{}={option}", option.name);
        let _ = writeln!(out, "{indent}{setting:<36}  {} ({})", option.help, option.domain());
    }
    out
}

fn brief(pass: &mut dyn Pass) -> String {
    let head = format!("{:<22} {}\n", pass.name(), pass.description());
    head + &options(pass, "    ")
}

fn at_length(pass: &mut dyn Pass) -> String {
    let options = options(pass, "  ");
    let options = if options.is_empty() { String::new() } else { format!("\noptions and their defaults\n{options}") };
    format!("{}: {}\n\n{}{options}", pass.name(), pass.description(), module_docs(pass.source()))
}
