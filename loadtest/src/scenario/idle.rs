//! Subscribers that only wait: what each costs the server in memory of its own.
//!
//! The kernel's share (about 3.8 KB for a socket) is not in it; no server can do without that.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::bail;
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::json;

use super::{connect_time, progress};
use crate::{
    measure::Memory,
    publisher::{Event, Publisher},
    report::{Report, Table},
    swarm::Swarm,
    target::Target,
    targets::{Hosting, TargetKind},
    verify::{self, Tally},
};

/// The arguments.
#[derive(Args, Debug)]
pub struct Idle {
    /// How many.
    #[arg(long, default_value_t = 5_000)]
    subscribers: usize,
    /// How they are connected.
    #[arg(long, value_enum, default_value = "both")]
    transport: Transports,
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
enum Transports {
    Ws,
    Sse,
    Both,
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

/// How long a message may take to reach everybody.
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
        let kinds: &[TargetKind] = match self.transport {
            Transports::Ws => &[TargetKind::CrossfadeWs],
            Transports::Sse => &[TargetKind::CrossfadeSse],
            Transports::Both => &[TargetKind::CrossfadeWs, TargetKind::CrossfadeSse],
        };
        let figures = kinds.iter().map(|kind| self.measure(*kind));
        Ok(self.report(&figures.collect::<anyhow::Result<Vec<_>>>()?))
    }

    fn measure(&self, kind: TargetKind) -> anyhow::Result<Figures> {
        let mut target = self.hosting.open(kind, self.subscribers)?;
        let before = self.look(&*target)?;
        let bar = progress(target.name(), self.subscribers as u64);
        let within = connect_time(self.subscribers);
        let channel_of = |index| self.channel(index);
        let mut swarm = Swarm::connect(&*target, self.subscribers, within, channel_of, |ready| {
            bar.set_position(ready as u64);
        })?;
        bar.finish();
        let connected = self.look(&*target)?;
        let mut publisher = target.publisher()?;
        for seq in 0..WARM_UP {
            self.publish_to_all(&mut *publisher, &mut swarm, seq)?;
        }
        let tally = swarm.close_books(WARM_UP);
        let warm = self.look(&*target)?;
        target.expect_alive()?;
        let each = |after: Memory| {
            let grown = after.anonymous_kb.saturating_sub(before.anonymous_kb);
            grown as f64 / self.subscribers as f64
        };
        Ok(Figures {
            target: target.name().to_owned(),
            before,
            connected,
            warm,
            connected_kb_each: each(connected),
            warm_kb_each: each(warm),
            tally,
        })
    }

    fn look(&self, target: &dyn Target) -> anyhow::Result<Memory> {
        thread::sleep(Duration::from_secs(self.settle));
        target.process().memory()
    }

    fn channel(&self, index: usize) -> Arc<str> {
        match self.channels {
            Channels::Own => format!("idle:{index}").into(),
            Channels::Shared => "idle".into(),
        }
    }

    fn publish_to_all(
        &self,
        publisher: &mut dyn Publisher,
        swarm: &mut Swarm,
        seq: u64,
    ) -> anyhow::Result<()> {
        let channels = match self.channels {
            Channels::Own => self.subscribers,
            Channels::Shared => 1,
        };
        let deadline = Instant::now() + PATIENCE;
        let mut published = 0;
        while published < channels || !swarm.has_all(seq + 1) {
            if publisher.is_settled()? && published < channels {
                let until = channels.min(published + BATCH);
                let event = |index| Event {
                    channel: self.channel(index).to_string(),
                    data: verify::payload(seq, BYTES),
                };
                publisher.publish(&(published..until).map(event).collect::<Vec<_>>())?;
                published = until;
            }
            swarm.attend(seq + 1, &mut |_| {})?;
            if deadline < Instant::now() {
                bail!("a message did not reach everybody within {PATIENCE:?}");
            }
        }
        while !publisher.is_settled()? {
            swarm.attend(seq + 1, &mut |_| {})?;
        }
        Ok(())
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
        let mut failures = Vec::new();
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
        }
        let channels = match self.channels {
            Channels::Own => "a channel each",
            Channels::Shared => "one channel",
        };
        Report {
            title: format!("idle: {} subscribers, {channels}", self.subscribers),
            table,
            notes: vec![
                "Anonymous memory of the server; the kernel's for its sockets is not in it.".into(),
                format!("Warm: after {WARM_UP} messages of {BYTES} bytes to everybody."),
            ],
            json: json!({ "scenario": "idle", "subscribers": self.subscribers,
                "channels": channels, "targets": figures, "failures": failures }),
            failures,
        }
    }
}
