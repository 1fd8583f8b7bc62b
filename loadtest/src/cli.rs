//! The command line: a subcommand for each scenario, and two hidden ones that a child process of
//! this binary is started with.

use std::{ffi::OsString, process::ExitCode};

use anyhow::bail;
use clap::{Args, Parser, Subcommand};

use crate::{
    process,
    report::Report,
    scenario::{fanout::Fanout, idle::Idle},
    targets::limit,
};

/// Many clients from outside: what a connection costs an event gateway, and what a delivery does.
#[derive(Debug, Parser)]
#[command(name = "crossfade-load", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Memory of the server for each subscriber that only waits.
    Idle(Scenario<Idle>),
    /// CPU and time for each delivery of one channel's events to many subscribers.
    Fanout(Scenario<Fanout>),
    /// Becomes another program, on a CPU of its own, that dies with its parent.
    #[command(hide = true)]
    Guard(GuardArgs),
    /// The yardstick's server.
    #[command(hide = true)]
    Limit(limit::LimitArgs),
}

#[derive(Args, Debug)]
struct Scenario<A: Args> {
    #[command(flatten)]
    scenario: A,
    /// Print the figures as JSON, on one line.
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct GuardArgs {
    /// Who started it.
    #[arg(long)]
    parent: i32,
    /// The CPU to stay on.
    #[arg(long)]
    cpu: Option<usize>,
    #[arg(last = true, required = true)]
    program: Vec<OsString>,
}

impl Cli {
    /// Does what the arguments say.
    ///
    /// # Errors
    /// With what went wrong, for a person.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Idle(Scenario { scenario, json }) => tell(&scenario.run()?, json),
            Command::Fanout(Scenario { scenario, json }) => tell(&scenario.run()?, json),
            Command::Guard(args) => {
                process::die_with(args.parent)?;
                process::stay_on(args.cpu)?;
                process::become_program(&args.program)
            }
            Command::Limit(args) => limit::serve(&args).map(|()| ExitCode::SUCCESS),
        }
    }
}

fn tell(report: &Report, json: bool) -> anyhow::Result<ExitCode> {
    report.print(json)?;
    if !report.failures.is_empty() {
        bail!("the check failed: {}", report.failures.join("; "));
    }
    Ok(ExitCode::SUCCESS)
}
