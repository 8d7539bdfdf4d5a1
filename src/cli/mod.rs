//! The command line.

pub mod local;

use clap::Parser as _;
use std::process::ExitCode;

#[derive(Debug, clap::Parser)]
#[command(name = "backjob", version, about)]
struct Cli {
    #[command(subcommand)]
    command: local::Command,
}

/// Runs the program.
pub fn main() -> ExitCode {
    match Cli::parse().command.run() {
        Ok(code) => code,
        Err(fault) => {
            eprintln!("backjob: {fault}");
            ExitCode::from(2)
        }
    }
}
