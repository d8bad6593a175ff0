//! The commands that both programs, `thex` and `thex-runtime`, offer: `serve`, `token` and `client`; and `man` and
//! `completions`, which describe either.

mod client;
mod manual;
mod serve;

use std::path::PathBuf;

use clap::Args;

pub use client::{ClientArgs, client};
pub use manual::{CompletionsArgs, ManArgs, completions, man};
pub use serve::{ServeArgs, serve};

use crate::error::{Result, ServeError};
use crate::tokens;

/// Make a bearer token for a client of `serve`. It is printed once; the file keeps its hash alone.
#[derive(Clone, Debug, Args)]
pub struct TokenArgs {
    /// Whose it is: jobs, keys and quotas go by this name.
    #[arg(value_name = "CLIENT")]
    pub client: String,
    /// The file of tokens that `serve --tokens` reads; made if there is none.
    #[arg(long, value_name = "TOKENS.json")]
    pub tokens: PathBuf,
    /// Days until it ends; never, if not given.
    #[arg(long, value_name = "N")]
    pub days: Option<u64>,
}

/// Makes a token and prints it.
///
/// # Errors
/// The name is no name, or the file is not usable.
pub fn token(args: &TokenArgs) -> Result<()> {
    print_line(&tokens::issue(&args.tokens, &args.client, args.days)?)
}

/// Writes a line to standard output.
fn print_line(line: &str) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    written.map_err(|e| ServeError::Usage(format!("cannot write to standard output: {e}")))
}
