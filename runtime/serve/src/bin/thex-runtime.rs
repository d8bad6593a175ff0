//! The small program: keys, encryption, execution, decryption, the service and its client. It links no frontend, so that a
//! server need not.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use thex_runtime::bench::{self, BenchArgs};
use thex_runtime::commands::{self, DecryptArgs, EncryptArgs, KeygenArgs, RunArgs};
use thex_serve::commands::{self as service, ClientArgs, CompletionsArgs, ManArgs, ServeArgs, TokenArgs};
use thex_serve::{Result, ServeError};

/// Run transformers on encrypted data: keys, encryption, execution, decryption of circuits compiled by thex.
#[derive(Parser)]
#[command(name = "thex-runtime", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Keygen(KeygenArgs),
    Encrypt(EncryptArgs),
    Run(RunArgs),
    Decrypt(DecryptArgs),
    Bench(BenchArgs),
    Serve(ServeArgs),
    Token(TokenArgs),
    Client(ClientArgs),
    Man(ManArgs),
    Completions(CompletionsArgs),
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::Keygen(args) => commands::keygen(args).map_err(ServeError::from),
        Command::Encrypt(args) => commands::encrypt(args).map_err(ServeError::from),
        Command::Run(args) => commands::run(args).map_err(ServeError::from),
        Command::Decrypt(args) => commands::decrypt(args).map_err(ServeError::from),
        Command::Bench(args) => bench::bench(args).map_err(ServeError::from),
        Command::Serve(args) => service::serve(args),
        Command::Token(args) => service::token(args),
        Command::Client(args) => service::client(args),
        Command::Man(args) => service::man(Cli::command(), args),
        Command::Completions(args) => service::completions(Cli::command(), args),
    }
}

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error[{}]: {error}", error.code());
            ExitCode::from(error.exit_status())
        }
    }
}
