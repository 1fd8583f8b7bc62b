//! Some subscribers never read: what that costs the server, and the others.

use anyhow::bail;
use clap::Args;

use super::flow::{Flow, Preset};
use crate::{
    engine::{Pace, lane::Calm},
    report::Report,
};

/// The arguments.
#[derive(Args, Debug)]
pub struct Slow {
    /// Subscribers in a hundred that read nothing after the first events.
    #[arg(long, default_value_t = 5.0)]
    percent: f64,
    #[command(flatten)]
    flow: Flow,
}

/// Events large enough to fill what a socket holds within a round.
const PRESET: Preset = Preset {
    name: "slow",
    pace: Pace::Rate(500.0),
    publishes: u64::MAX,
    seconds: 20.0,
    rounds: 1,
    compare: &["crossfade-ws"],
    ..Preset::FANOUT
};

impl Slow {
    /// Measures.
    ///
    /// # Errors
    /// When a server does not do its part.
    pub fn run(&self) -> anyhow::Result<Report> {
        if !(0.0..100.0).contains(&self.percent) {
            bail!("--percent is at least 0 and below 100");
        }
        let plan = self.flow.plan(&PRESET)?;
        let silent = (plan.subscribers as f64 * self.percent / 100.0).round() as usize;
        let count = self.flow.targets(&PRESET)?.len();
        let (mut cut, mut grown) = (vec![0; count], vec![0.0; count]);
        let figures = self.flow.measure(&PRESET, &plan, &mut |at, lane, bar| {
            lane.target().expect_visitors()?;
            for number in 0..silent {
                lane.swarm.mute(number * plan.subscribers / silent)?;
            }
            let process = lane.target().process();
            let before = process.memory()?.anonymous_kb as f64;
            lane.turn(&plan, &mut Calm, bar)?;
            grown[at] = (process.memory()?.anonymous_kb as f64 - before) / 1024.0;
            cut[at] = lane.swarm.muted_and_cut();
            Ok(())
        })?;
        let mut findings = self.flow.findings(&PRESET, &plan, figures);
        findings.column("silent", vec![silent.to_string(); count]);
        findings.column("of which cut off", cut.iter().map(u64::to_string).collect());
        findings.column("memory grew MB", grown.iter().map(|mb| format!("{mb:.1}")).collect());
        findings.note("The counts and latencies are of those who read.");
        Ok(findings.into_report())
    }
}
