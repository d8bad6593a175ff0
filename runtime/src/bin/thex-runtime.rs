//! The small program: keys, encryption, execution, decryption, and the speed of it all. It links no frontend, so that a server need not.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use thex_runtime::bench::{self, BenchArgs};
use thex_runtime::commands::{self, DecryptArgs, EncryptArgs, KeygenArgs, RunArgs};

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
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Keygen(args) => commands::keygen(&args),
        Command::Encrypt(args) => commands::encrypt(&args),
        Command::Run(args) => commands::run(&args),
        Command::Decrypt(args) => commands::decrypt(&args),
        Command::Bench(args) => bench::bench(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error[{}]: {error}", error.code());
            ExitCode::from(error.kind().exit_status())
        }
    }
}
