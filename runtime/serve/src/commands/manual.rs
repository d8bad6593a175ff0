//! `man` and `completions`: what clap knows of a program, as pages for `man` and as scripts for shells. Written by the program
//! itself, so that they are never those of another version, and nothing has to be installed beside it.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;
use thex_runtime::RuntimeError;

use crate::error::{Result, ServeError};

/// Write man pages, one for the program and one for each command.
#[derive(Clone, Debug, Args)]
pub struct ManArgs {
    /// Folder for the pages; made if there is none. Name it `…/man1` and `man -M …` finds them.
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
}

/// Print what a shell needs to complete commands and options, on standard output.
///
///   thex completions bash > ~/.local/share/bash-completion/completions/thex
#[derive(Clone, Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    pub shell: Shell,
}

fn cannot<'a>(action: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> ServeError + 'a {
    move |source| RuntimeError::Io { action, path: path.to_owned(), source }.into()
}

/// Writes `DIR/PROGRAM.1`, and `DIR/PROGRAM-COMMAND.1` for every command of `program`, commands of commands included.
///
/// # Errors
/// The folder cannot be made or written to.
pub fn man(program: Command, args: &ManArgs) -> Result<()> {
    let mut program = program.disable_help_subcommand(true);
    program.build();
    let source = format!("{} {}", program.get_name(), program.get_version().unwrap_or_default());
    std::fs::create_dir_all(&args.output).map_err(cannot("make folder", &args.output))?;
    pages(&program, &source, &args.output)
}

/// The page of a command, and those of its commands.
fn pages(command: &Command, source: &str, folder: &Path) -> Result<()> {
    let page = Man::new(command.clone()).source(source).manual("User commands");
    let (path, mut text) = (folder.join(page.get_filename()), Vec::new());
    page.render(&mut text).and_then(|()| std::fs::write(&path, &text)).map_err(cannot("write", &path))?;
    command.get_subcommands().try_for_each(|command| pages(command, source, folder))
}

/// Prints the completions of `program`; a closed pipe is no error.
///
/// # Errors
/// Standard output cannot be written.
pub fn completions(mut program: Command, args: &CompletionsArgs) -> Result<()> {
    let (name, mut script) = (program.get_name().to_owned(), Vec::new());
    clap_complete::generate(args.shell, &mut program, name, &mut script);
    match std::io::stdout().lock().write_all(&script) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(cannot("write to", Path::new("standard output"))(error))
        }
        _ => Ok(()),
    }
}
