//! The `crossfade` process: arguments, then the command they name.

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
