//! Everybody reconnects at once, and wants what was published meanwhile.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use indicatif::ProgressBar;

use super::flow::{Flow, Preset};
use crate::{
    clock,
    engine::{
        Pace, Plan,
        figures::Spread,
        lane::{Lane, Records},
    },
    report::Report,
    swarm::Watch,
};

/// The arguments.
#[derive(Args, Debug)]
pub struct Storm {
    /// Events that are published on each channel while everybody is away.
    #[arg(long, default_value_t = 20)]
    missed: u64,
    /// Connections under way at once; all of them when left out.
    #[arg(long)]
    at_once: Option<usize>,
    #[command(flatten)]
    flow: Flow,
}

const PRESET: Preset = Preset {
    name: "storm",
    subscribers: 10_000,
    seconds: 60.0,
    rounds: 3,
    compare: &["crossfade-ws"],
    watch: Watch::Epoll,
    pace: Pace::Window(1),
    ..Preset::FANOUT
};

/// What one storm came to.
#[derive(Clone, Copy)]
struct Passed {
    subscribed: f64,
    caught_up: f64,
    refused: u64,
}

impl Storm {
    /// One that takes a moment.
    pub fn small(flow: Flow) -> Self {
        let flow = Flow { subscribers: Some(400), rounds: Some(2), ..flow };
        Self { missed: 5, at_once: None, flow }
    }

    /// Measures.
    ///
    /// # Errors
    /// When a server does not do its part.
    pub fn run(&self) -> anyhow::Result<Report> {
        let plan = self.flow.plan(&PRESET)?;
        if self.at_once == Some(0) {
            bail!("--at-once is at least 1");
        }
        let mut passed = vec![Vec::new(); self.flow.targets(&PRESET)?.len()];
        let figures = self.flow.measure(&PRESET, &plan, &mut |at, lane, bar| {
            lane.target().expect_visitors()?;
            passed[at].push(self.pass(lane, &plan, bar)?);
            Ok(())
        })?;
        let mut findings = self.flow.findings(&PRESET, &plan, figures);
        let median = |of: fn(&Passed) -> f64| -> Vec<String> {
            let of_one = |all: &Vec<Passed>| Spread::of(all.iter().map(of).collect()).median;
            passed.iter().map(|all| format!("{:.2}", of_one(all))).collect()
        };
        findings.column("all subscribed s", median(|one| one.subscribed));
        findings.column("all caught up s", median(|one| one.caught_up));
        let refused = |all: &Vec<Passed>| all.iter().map(|one| one.refused).sum::<u64>();
        findings.column("refused", passed.iter().map(|all| refused(all).to_string()).collect());
        findings.note(&format!(
            "{} events were published on each channel while everybody was away. With a server that \
             knows no positions nobody is owed them, and none are delivered.",
            self.missed
        ));
        findings.note("Latencies count from the publish: they hold the time away.");
        Ok(findings.into_report())
    }

    fn pass(&self, lane: &mut Lane, plan: &Plan, bar: &ProgressBar) -> anyhow::Result<Passed> {
        // Positions come with events: one that is there for all.
        lane.swarm.remember_positions();
        let channels = plan.channels as u64;
        let one_each = Plan { publishes: channels, time: plan.time, ..plan.clone() };
        lane.publish_unseen(&one_each)?;
        lane.swarm.tend(&mut |_| {})?;
        let count = lane.swarm.len();
        (0..count).for_each(|who| lane.swarm.leave(who));
        let missed = Plan { publishes: self.missed * channels, ..one_each };
        lane.publish_unseen(&missed)?;
        bar.set_length(count as u64);
        self.return_of_all(lane, plan, bar)
    }

    fn return_of_all(
        &self,
        lane: &mut Lane,
        plan: &Plan,
        bar: &ProgressBar,
    ) -> anyhow::Result<Passed> {
        let (count, process) = (lane.swarm.len(), lane.target().process());
        let at_once = self.at_once.unwrap_or(usize::MAX);
        let mut records = Records::counted();
        let (cpu, began) = (process.cpu()?, clock::now());
        lane.begin()?;
        let deadline = began + clock::seconds(plan.time.as_secs_f64());
        let (mut opened, mut subscribed) = (0, None);
        loop {
            let now = clock::now();
            // In slices, so that those who are there already are read meanwhile.
            let slice = opened + SLICE;
            while opened < count.min(slice) && lane.swarm.under_way() < at_once {
                lane.swarm.join(opened, true)?;
                opened += 1;
            }
            lane.attend(&mut records)?;
            bar.set_position(lane.swarm.subscribed());
            if subscribed.is_none() && opened == count && lane.swarm.under_way() == 0 {
                subscribed = Some(clock::now());
            }
            let over = subscribed.is_some() && lane.swarm.owed() == 0;
            if over || deadline < now {
                break;
            }
        }
        let ended = clock::now();
        let refused = lane.swarm.tally().gone;
        let cpu = process.cpu()?.saturating_sub(cpu);
        lane.add(records, Duration::from_nanos(ended - began), cpu)?;
        let seconds = |at: u64| (at - began) as f64 / 1e9;
        Ok(Passed {
            subscribed: subscribed.map_or(f64::INFINITY, seconds),
            caught_up: seconds(ended),
            refused,
        })
    }
}

/// Connections that are begun between two looks at what has come.
const SLICE: usize = 200;
