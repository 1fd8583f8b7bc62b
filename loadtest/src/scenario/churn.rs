//! Subscribers come and go while events flow: who returns goes on from where it was.

use anyhow::bail;
use clap::Args;

use super::flow::{Flow, Preset};
use crate::{
    clock,
    engine::{Pace, lane::Turmoil},
    report::Report,
    swarm::{Swarm, Watch},
};

/// The arguments.
#[derive(Args, Debug)]
pub struct Churn {
    /// Subscribers that leave and return, each second.
    #[arg(long, default_value_t = 100.0)]
    per_second: f64,
    #[command(flatten)]
    flow: Flow,
}

const PRESET: Preset = Preset {
    name: "churn",
    pace: Pace::Rate(50.0),
    publishes: u64::MAX,
    seconds: 10.0,
    rounds: 1,
    compare: &["crossfade-ws"],
    watch: Watch::Epoll,
    ..Preset::FANOUT
};

impl Churn {
    /// Measures.
    ///
    /// # Errors
    /// When a server does not do its part.
    pub fn run(&self) -> anyhow::Result<Report> {
        if !(0.001..=1e5).contains(&self.per_second) {
            bail!("--per-second is between 0.001 and 100000");
        }
        let plan = self.flow.plan(&PRESET)?;
        let mut returns = vec![0; self.flow.targets(&PRESET)?.len()];
        let figures = self.flow.measure(&PRESET, &plan, &mut |at, lane, bar| {
            lane.target().expect_visitors()?;
            lane.swarm.remember_positions();
            let mut comings = Comings::new(self.per_second);
            lane.turn(&plan, &mut comings, bar)?;
            returns[at] += comings.returns;
            Ok(())
        })?;
        let mut findings = self.flow.findings(&PRESET, &plan, figures);
        findings.column("returns", returns.iter().map(u64::to_string).collect());
        findings.note("A subscriber that goes on from its position is owed what it missed; with a server that knows no positions it begins anew, and is owed nothing of what was before.");
        Ok(findings.into_report())
    }
}

/// Lets subscribers leave and return.
#[derive(Debug)]
pub struct Comings {
    every: u64,
    next: u64,
    who: usize,
    /// How many returned.
    pub returns: u64,
}

/// Spreads those who leave over the numbers.
const STRIDE: usize = 7_919;

impl Comings {
    /// So many each second.
    pub fn new(per_second: f64) -> Self {
        let every = clock::seconds(1.0 / per_second);
        Self { every, next: clock::now() + every, who: 0, returns: 0 }
    }
}

impl Turmoil for Comings {
    fn stir(&mut self, swarm: &mut Swarm, now: u64) -> anyhow::Result<()> {
        while self.next <= now {
            self.next += self.every;
            self.who = (self.who + STRIDE) % swarm.len();
            if swarm.is_subscribed(self.who) {
                swarm.leave(self.who);
                swarm.join(self.who, true)?;
                self.returns += 1;
            }
        }
        Ok(())
    }
}
