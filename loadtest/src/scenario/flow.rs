//! Events flow, targets take turns. `latency`, `fanout`, `rooms` and `firehose` are this with
//! different numbers; others do something beside it.
//!
//! Compared targets take turns (A B C A B C …), because the machine is never equally fast for long;
//! what counts is the ratio within a round.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use indicatif::ProgressBar;

use super::progress;
use crate::{
    engine::{
        Pace, Plan,
        figures::Figures,
        lane::{Calm, Lane},
    },
    report::{Report, findings::Findings},
    swarm::Watch,
    targets::{Hosting, TargetSpec},
};

/// The arguments. What is left out is the scenario's own choice.
#[derive(Args, Clone, Debug)]
pub struct Flow {
    /// How many listen.
    #[arg(long)]
    pub(super) subscribers: Option<usize>,
    /// Channels, which the subscribers fill in turn.
    #[arg(long)]
    pub(super) channels: Option<usize>,
    /// Connections that publish.
    #[arg(long)]
    pub(super) publishers: Option<usize>,
    /// Bytes of an event's data.
    #[arg(long, default_value_t = 200)]
    pub(super) bytes: usize,
    /// Events that are due together.
    #[arg(long)]
    pub(super) burst: Option<u64>,
    /// The most events in one call, when more than one is due.
    #[arg(long)]
    pub(super) batch: Option<usize>,
    /// Bursts each second, from an open loop: latency counts from when one was due.
    #[arg(long, conflicts_with = "window")]
    pub(super) rate: Option<f64>,
    /// As fast as all but this many bursts have reached everybody.
    #[arg(long)]
    pub(super) window: Option<u64>,
    /// Bursts in a round.
    #[arg(long)]
    pub(super) publishes: Option<u64>,
    /// A round ends after this many seconds, however far it got.
    #[arg(long)]
    pub(super) seconds: Option<f64>,
    /// The targets, which take turns: crossfade, limit, limit-each, redis, nchan, sockudo, centrifugo, mercure,
    /// with -ws, -sse or :ws=70,sse=30 behind the name.
    #[arg(long, num_args = 1.., value_name = "TARGET")]
    pub(super) compare: Vec<TargetSpec>,
    /// Turns of each target.
    #[arg(long)]
    pub(super) rounds: Option<usize>,
    /// Milliseconds after which an event that did not come is given up.
    #[arg(long, default_value_t = 5_000)]
    pub(super) patience: u64,
    /// How the subscribers are watched. Sweeping costs the server nothing; being woken is cheaper
    /// for the load where few of many have something to read.
    #[arg(long, value_enum)]
    pub(super) watch: Option<Watch>,
    /// Fail when anything is lost, doubled or reordered, or a ratio is above --max-ratio.
    #[arg(long)]
    pub(super) check: bool,
    /// The most CPU a delivery may cost, as a multiple of what it costs `limit`, or else the first
    /// target.
    #[arg(long, requires = "check")]
    pub(super) max_ratio: Option<f64>,
    #[command(flatten)]
    pub(super) hosting: Hosting,
}

/// A scenario's own choices.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// What it is called.
    pub(super) name: &'static str,
    pub(super) subscribers: usize,
    pub(super) channels: usize,
    pub(super) publishers: usize,
    /// See [`Plan::shared`].
    pub(super) shared: bool,
    pub(super) burst: u64,
    pub(super) batch: usize,
    pub(super) pace: Pace,
    pub(super) publishes: u64,
    pub(super) seconds: f64,
    pub(super) rounds: usize,
    pub(super) compare: &'static [&'static str],
    pub(super) watch: Watch,
    pub(super) names: bool,
}

impl Preset {
    /// One channel, many subscribers, the next event when the last has reached everybody.
    pub const FANOUT: Self = Self {
        name: "fanout",
        subscribers: 1_000,
        channels: 1,
        publishers: 1,
        shared: false,
        burst: 1,
        batch: 1,
        pace: Pace::Window(1),
        publishes: 1_000,
        seconds: 20.0,
        rounds: 5,
        compare: &["crossfade-ws", "limit"],
        watch: Watch::Sweep,
        names: false,
    };

    /// One event at a time, at a fixed rate.
    pub const LATENCY: Self = Self {
        name: "latency",
        pace: Pace::Rate(50.0),
        publishes: u64::MAX,
        seconds: 5.0,
        ..Self::FANOUT
    };

    /// Many channels, few subscribers each.
    pub const ROOMS: Self = Self {
        name: "rooms",
        subscribers: 50_000,
        channels: 10_000,
        publishers: 4,
        batch: 200,
        pace: Pace::Rate(20_000.0),
        publishes: u64::MAX,
        seconds: 5.0,
        watch: Watch::Epoll,
        ..Self::FANOUT
    };

    /// Many publishers, as fast as they are answered.
    pub const FIREHOSE: Self = Self {
        name: "firehose",
        subscribers: 1,
        channels: 1,
        publishers: 64,
        shared: true,
        pace: Pace::Window(1_000),
        publishes: u64::MAX,
        seconds: 3.0,
        compare: &["crossfade-ws"],
        ..Self::FANOUT
    };
}

impl Flow {
    /// Measures, with nothing beside the flow.
    ///
    /// # Errors
    /// When a server does not do its part.
    pub fn run(&self, preset: &Preset) -> anyhow::Result<Report> {
        let plan = self.plan(preset)?;
        let figures =
            self.measure(preset, &plan, &mut |_, lane, bar| lane.turn(&plan, &mut Calm, bar))?;
        Ok(self.findings(preset, &plan, figures).into_report())
    }

    /// What the arguments make of a preset.
    ///
    /// # Errors
    /// When they make no sense.
    pub fn plan(&self, preset: &Preset) -> anyhow::Result<Plan> {
        let pace = match (self.rate, self.window) {
            (Some(rate), _) => Pace::Rate(rate),
            (None, Some(window)) => Pace::Window(window),
            (None, None) => preset.pace,
        };
        let seconds = self.seconds.unwrap_or(preset.seconds);
        let plan = Plan {
            subscribers: self.subscribers.unwrap_or(preset.subscribers),
            channels: self.channels.unwrap_or(preset.channels),
            publishers: self.publishers.unwrap_or(preset.publishers),
            shared: preset.shared,
            bytes: self.bytes,
            burst: self.burst.unwrap_or(preset.burst),
            batch: self.batch.unwrap_or(preset.batch),
            pace,
            publishes: self.publishes.unwrap_or(preset.publishes),
            time: Duration::try_from_secs_f64(seconds)?,
            patience: Duration::from_millis(self.patience),
            watch: self.watch.unwrap_or(preset.watch),
            names: preset.names,
        };
        let Plan { subscribers, channels, publishers, burst, publishes, .. } = plan;
        if [subscribers as u64, channels as u64, publishers as u64, burst, publishes].contains(&0) {
            bail!("subscribers, channels, publishers, burst and publishes are at least 1");
        }
        if 9_999 < publishers || !(0.01..=1e6).contains(&seconds) {
            bail!("--publishers is at most 9999, --seconds between 0.01 and 1000000");
        }
        match pace {
            Pace::Rate(rate) if !(0.001..=1e7).contains(&rate) => {
                bail!("--rate is between 0.001 and 10000000")
            }
            Pace::Window(0) => bail!("--window is at least 1"),
            _ => Ok(plan),
        }
    }

    /// The targets that are compared.
    ///
    /// # Errors
    /// When a preset names one that there is not.
    pub fn targets(&self, preset: &Preset) -> anyhow::Result<Vec<TargetSpec>> {
        if self.compare.is_empty() {
            return preset.compare.iter().map(|name| name.parse()).collect();
        }
        Ok(self.compare.clone())
    }

    /// How often each has its turn.
    pub fn rounds(&self, preset: &Preset) -> usize {
        self.rounds.unwrap_or(preset.rounds).max(1)
    }

    /// Opens all targets and lets them take turns, which `conduct` conducts.
    ///
    /// # Errors
    /// When a server does not do its part.
    pub fn measure(
        &self,
        preset: &Preset,
        plan: &Plan,
        conduct: &mut dyn FnMut(usize, &mut Lane, &ProgressBar) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<Figures>> {
        let specs = self.targets(preset)?;
        self.hosting.prepare((plan.subscribers + plan.publishers) * specs.len())?;
        let mut lanes = Vec::new();
        for spec in &specs {
            let target = self.hosting.open(spec, plan.subscribers)?;
            let bar = progress(&format!("{spec} connects"), plan.subscribers as u64);
            let ready = |ready| bar.set_position(ready as u64);
            lanes.push(Lane::open(target, plan, &spec.mix, ready)?);
            bar.finish_and_clear();
        }
        for lane in &mut lanes {
            lane.warm_up(plan)?;
        }
        let rounds = self.rounds(preset);
        for round in 1..=rounds {
            for turn in 0..lanes.len() {
                let name = format!("{} {round}/{rounds}", lanes[turn].name());
                let bar = progress(&name, bursts(plan));
                conduct(turn, &mut lanes[turn], &bar)?;
                bar.finish_and_clear();
                // Those who wait have pings to answer.
                lanes.iter_mut().try_for_each(Lane::tend)?;
            }
        }
        Ok(lanes.into_iter().map(Lane::into_figures).collect())
    }

    /// What is to be said of the figures.
    pub fn findings(&self, preset: &Preset, plan: &Plan, figures: Vec<Figures>) -> Findings {
        let rounds = self.rounds(preset);
        let mut findings = Findings::new(preset.name, plan, rounds, figures);
        if !self.hosting.is_pinned() {
            findings.note("Server and load share the CPUs: --pin keeps them apart.");
        }
        if self.check {
            findings.check(self.max_ratio);
        }
        findings
    }
}

/// Bursts that are to be expected of a turn.
fn bursts(plan: &Plan) -> u64 {
    match plan.pace {
        Pace::Rate(rate) => plan.publishes.min((rate * plan.time.as_secs_f64()) as u64),
        Pace::Window(_) => plan.publishes,
    }
}

impl Flow {
    /// One with nothing chosen, which checks.
    pub fn bare(compare: Vec<TargetSpec>, hosting: Hosting) -> Self {
        Self {
            subscribers: None,
            channels: None,
            publishers: None,
            bytes: 200,
            burst: None,
            batch: None,
            rate: None,
            window: None,
            publishes: None,
            seconds: None,
            compare,
            rounds: None,
            patience: 5_000,
            watch: None,
            check: true,
            max_ratio: None,
            hosting,
        }
    }
}
