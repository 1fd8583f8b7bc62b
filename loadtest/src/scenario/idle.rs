//! Subscribers that only wait: what each costs the server in memory of its own.
//!
//! The kernel's share (about 3.8 KB for a socket) is not in it; no server can do without that.

use std::{thread, time::Duration};

use anyhow::bail;
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::json;

use super::progress;
use crate::{
    engine::{Pace, Plan, lane::Lane},
    measure::{Memory, Process},
    report::{Report, Run, Table},
    swarm::Watch,
    targets::{Hosting, TargetSpec},
    verify::Tally,
};

/// The arguments.
#[derive(Args, Debug)]
pub struct Idle {
    /// How many.
    #[arg(long, default_value_t = 5_000)]
    subscribers: usize,
    /// The targets, one after the other.
    #[arg(long, num_args = 1.., value_name = "TARGET",
          default_values = ["crossfade-ws", "crossfade-sse"])]
    compare: Vec<TargetSpec>,
    /// What they are subscribed to: a channel each, or all the same.
    #[arg(long, value_enum, default_value = "own")]
    channels: Channels,
    /// Wait this many seconds before each look at the memory: allocators give back late.
    #[arg(long, default_value_t = 3)]
    settle: u64,
    /// Fail when a subscriber costs more than this many KB.
    #[arg(long, value_name = "KB")]
    max_kb: Option<f64>,
    #[command(flatten)]
    hosting: Hosting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Channels {
    Own,
    Shared,
}

/// Messages to everybody after which memory is looked at again.
const WARM_UP: u64 = 2;

/// Data of one of them.
const BYTES: usize = 200;

/// Events published in one call, one for each of as many channels.
const BATCH: usize = 500;

/// How long the messages may take to reach everybody.
const PATIENCE: Duration = Duration::from_secs(30);

/// One target's figures.
#[derive(Serialize)]
struct Figures {
    target: String,
    before: Memory,
    connected: Memory,
    warm: Memory,
    connected_kb_each: f64,
    warm_kb_each: f64,
    tally: Tally,
}

impl Idle {
    /// Measures.
    ///
    /// # Errors
    /// When a server does not do its part.
    pub fn run(&self) -> anyhow::Result<Report> {
        if self.subscribers == 0 {
            bail!("at least one subscriber is needed");
        }
        self.hosting.prepare(self.subscribers)?;
        let figures = self.compare.iter().map(|spec| self.measure(spec));
        Ok(self.report(&figures.collect::<anyhow::Result<Vec<_>>>()?))
    }

    fn plan(&self) -> Plan {
        let channels = match self.channels {
            Channels::Own => self.subscribers,
            Channels::Shared => 1,
        };
        Plan {
            subscribers: self.subscribers,
            channels,
            publishers: 1,
            shared: false,
            bytes: BYTES,
            burst: 1,
            batch: BATCH,
            pace: Pace::Rate(1e6),
            publishes: WARM_UP * channels as u64,
            time: PATIENCE,
            patience: PATIENCE,
            watch: Watch::Epoll,
            names: false,
        }
    }

    fn measure(&self, spec: &TargetSpec) -> anyhow::Result<Figures> {
        let plan = self.plan();
        let target = self.hosting.open(spec, self.subscribers)?;
        let process = target.process();
        let before = self.look(process)?;
        let bar = progress(&spec.to_string(), self.subscribers as u64);
        let ready = |ready| bar.set_position(ready as u64);
        let mut lane = Lane::open(target, &plan, &spec.mix, ready)?;
        bar.finish_and_clear();
        let connected = self.look(process)?;
        lane.publish_unseen(&plan)?;
        let tally = lane.swarm.close_books();
        let warm = self.look(process)?;
        lane.target().expect_alive()?;
        let each = |after: Memory| {
            let grown = after.anonymous_kb.saturating_sub(before.anonymous_kb);
            grown as f64 / self.subscribers as f64
        };
        Ok(Figures {
            target: spec.to_string(),
            before,
            connected,
            warm,
            connected_kb_each: each(connected),
            warm_kb_each: each(warm),
            tally,
        })
    }

    fn look(&self, process: Process) -> anyhow::Result<Memory> {
        thread::sleep(Duration::from_secs(self.settle));
        process.memory()
    }

    fn report(&self, figures: &[Figures]) -> Report {
        let mut table = Table::new([
            "target",
            "before KB",
            "connected KB",
            "warm KB",
            "KB each",
            "KB each, warm",
        ]);
        let (mut failures, mut runs) = (Vec::new(), Vec::new());
        for one in figures {
            table.row([
                one.target.clone(),
                one.before.anonymous_kb.to_string(),
                one.connected.anonymous_kb.to_string(),
                one.warm.anonymous_kb.to_string(),
                format!("{:.2}", one.connected_kb_each),
                format!("{:.2}", one.warm_kb_each),
            ]);
            failures.extend(one.tally.complaint().map(|what| format!("{}: {what}", one.target)));
            let most = one.connected_kb_each.max(one.warm_kb_each);
            if self.max_kb.is_some_and(|max| max < most) {
                failures.push(format!("{}: {most:.2} KB for each subscriber", one.target));
            }
            runs.push(Run {
                target: one.target.clone(),
                figures: json!(one),
                latency: Vec::new(),
                answers: Vec::new(),
                samples: Vec::new(),
            });
        }
        let channels = match self.channels {
            Channels::Own => "a channel each",
            Channels::Shared => "one channel",
        };
        Report {
            scenario: "idle".to_owned(),
            title: format!("idle: {} subscribers, {channels}", self.subscribers),
            table,
            notes: vec![
                "Anonymous memory of the server; the kernel's for its sockets is not in it.".into(),
                format!("Warm: after {WARM_UP} messages of {BYTES} bytes to everybody."),
            ],
            runs,
            failures,
        }
    }
}
