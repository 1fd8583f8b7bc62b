//! The command line: a subcommand for each scenario, one that makes a page of several reports, and
//! two hidden ones that a child process of this binary is started with.

use std::{ffi::OsString, fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};

use crate::{
    process,
    report::{
        Report,
        page::{files, page},
    },
    scenario::{
        check::Check,
        churn::Churn,
        flow::{Flow, Preset},
        idle::Idle,
        rollout::Rollout,
        slow::Slow,
        soak::Soak,
        storm::Storm,
    },
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
    /// One event at a time at a fixed rate: how long it takes to everybody.
    Latency(Scenario<Flow>),
    /// One channel, many subscribers: what a delivery costs.
    Fanout(Scenario<Flow>),
    /// Many channels, few subscribers each.
    Rooms(Scenario<Flow>),
    /// Many publishers, as fast as they are answered.
    Firehose(Scenario<Flow>),
    /// Everybody reconnects at once, and wants what was published meanwhile.
    Storm(Scenario<Storm>),
    /// Subscribers come and go while events flow.
    Churn(Scenario<Churn>),
    /// Some subscribers never read.
    Slow(Scenario<Slow>),
    /// Memory of the server for each subscriber that only waits.
    Idle(Scenario<Idle>),
    /// For long: whether memory stays where it is.
    Soak(Scenario<Soak>),
    /// A rollout's percentage moves while events flow.
    Rollout(Scenario<Rollout>),
    /// A few small measurements with bounds as ratios, under a minute.
    Check(Scenario<Check>),
    /// Makes one page of reports that were written with --json.
    Page(PageArgs),
    /// Becomes another program, on CPUs of its own, that dies with its parent.
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
    /// Write a page with charts, which needs nothing else.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct PageArgs {
    /// Files with reports, one on each line.
    #[arg(required = true)]
    reports: Vec<PathBuf>,
    /// Where the page goes.
    #[arg(long, value_name = "FILE", required_unless_present = "svg")]
    html: Option<PathBuf>,
    /// A folder for each chart as a file of its own.
    #[arg(long, value_name = "FOLDER")]
    svg: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct GuardArgs {
    /// Who started it.
    #[arg(long)]
    parent: i32,
    /// The CPUs to stay on.
    #[arg(long)]
    cpu: Vec<usize>,
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
            Command::Latency(args) => args.tell(|flow| flow.run(&Preset::LATENCY)),
            Command::Fanout(args) => args.tell(|flow| flow.run(&Preset::FANOUT)),
            Command::Rooms(args) => args.tell(|flow| flow.run(&Preset::ROOMS)),
            Command::Firehose(args) => args.tell(|flow| flow.run(&Preset::FIREHOSE)),
            Command::Storm(args) => args.tell(Storm::run),
            Command::Churn(args) => args.tell(Churn::run),
            Command::Slow(args) => args.tell(Slow::run),
            Command::Idle(args) => args.tell(Idle::run),
            Command::Soak(args) => args.tell(Soak::run),
            Command::Rollout(args) => args.tell(Rollout::run),
            Command::Check(args) => args.tell(Check::run),
            Command::Page(args) => args.write(),
            Command::Guard(args) => {
                process::die_with(args.parent)?;
                process::stay_on(&args.cpu)?;
                process::become_program(&args.program)
            }
            Command::Limit(args) => limit::serve(&args).map(|()| ExitCode::SUCCESS),
        }
    }
}

impl<A: Args> Scenario<A> {
    fn tell(self, run: impl FnOnce(&A) -> anyhow::Result<Report>) -> anyhow::Result<ExitCode> {
        let report = run(&self.scenario)?;
        report.print(self.json)?;
        let failures = report.failures.join("; ");
        if let Some(file) = &self.html {
            write_page(file, &[report])?;
        }
        if !failures.is_empty() {
            bail!("the check failed: {failures}");
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl PageArgs {
    fn write(&self) -> anyhow::Result<ExitCode> {
        let mut reports = Vec::new();
        for file in &self.reports {
            let text = fs::read_to_string(file)
                .with_context(|| format!("{} cannot be read", file.display()))?;
            for line in text.lines().filter(|line| !line.trim().is_empty()) {
                let report = serde_json::from_str(line);
                reports.push(report.with_context(|| {
                    format!("{} holds something else than reports of --json", file.display())
                })?);
            }
        }
        if let Some(file) = &self.html {
            write_page(file, &reports)?;
        }
        let Some(folder) = &self.svg else { return Ok(ExitCode::SUCCESS) };
        for (name, svg) in reports.iter().flat_map(files) {
            let file = folder.join(name);
            fs::write(&file, svg)
                .with_context(|| format!("{} cannot be written", file.display()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn write_page(file: &PathBuf, reports: &[Report]) -> anyhow::Result<()> {
    fs::write(file, page(reports)).with_context(|| format!("{} cannot be written", file.display()))
}
