//! The `crossfade-load` process: arguments, then the scenario they name.

use std::process::ExitCode;

use clap::Parser as _;
use crossfade_load::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(err) => {
            eprintln!("crossfade-load: {err:#}");
            ExitCode::FAILURE
        }
    }
}
