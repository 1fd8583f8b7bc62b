//! The `crossfade` binary: parses the arguments and runs the command.

use std::process::ExitCode;

use clap::Parser as _;
use crossfade::cli::Cli;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> ExitCode {
    match Cli::parse().run().await {
        Ok(code) => code,
        Err(err) => {
            eprintln!("crossfade: {err:#}");
            ExitCode::FAILURE
        }
    }
}
