//! One channel, many subscribers: what a delivery costs and how long it takes.
//!
//! Compared targets take turns, round by round, because the machine is never equally fast for long;
//! what counts is the ratio within a round.

mod figures;
mod lane;
#[cfg(test)]
mod tests;

use anyhow::bail;
use clap::Args;
use serde_json::json;

use self::{
    figures::{Figures, Spread},
    lane::Lane,
};
use super::progress;
use crate::{
    report::{Report, Table},
    swarm::Watch,
    targets::{Hosting, TargetKind},
};

/// The arguments.
#[derive(Args, Debug)]
pub struct Fanout {
    /// How many.
    #[arg(long, default_value_t = 1_000)]
    subscribers: usize,
    /// Bytes of an event's data.
    #[arg(long, default_value_t = 200)]
    bytes: usize,
    /// Publish calls in a round.
    #[arg(long, default_value_t = 1_000)]
    publishes: u64,
    /// Events in a publish call.
    #[arg(long, default_value_t = 1)]
    burst: u64,
    /// Publish calls each second. Without it the next goes out when the last has reached everybody.
    #[arg(long)]
    rate: Option<f64>,
    /// The targets, which take turns.
    #[arg(long, value_enum, num_args = 1.., default_value = "crossfade-ws")]
    compare: Vec<TargetKind>,
    /// Turns of each target.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// A round ends after this many seconds, however far it got.
    #[arg(long, default_value_t = 60)]
    max_seconds: u64,
    /// Milliseconds after which an event that did not come is given up.
    #[arg(long, default_value_t = 5_000)]
    patience: u64,
    /// How the subscribers are watched.
    #[arg(long, value_enum, default_value = "sweep")]
    watch: Watch,
    /// Fail when anything is lost, doubled or reordered, or a ratio is above --max-ratio.
    #[arg(long)]
    check: bool,
    /// The most CPU a delivery may cost, as a multiple of what it costs `limit`.
    #[arg(long, requires = "check")]
    max_ratio: Option<f64>,
    #[command(flatten)]
    hosting: Hosting,
}

impl Fanout {
    /// Measures.
    ///
    /// # Errors
    /// When a server does not do its part.
    pub fn run(&self) -> anyhow::Result<Report> {
        self.refuse_nonsense()?;
        self.hosting.prepare(self.subscribers * self.compare.len())?;
        let mut lanes = Vec::new();
        for kind in &self.compare {
            let target = self.hosting.open(*kind, self.subscribers)?;
            lanes.push(Lane::open(target, self)?);
        }
        for lane in &mut lanes {
            lane.warm_up(self)?;
        }
        for round in 1..=self.rounds {
            for turn in 0..lanes.len() {
                let name = format!("{} {round}/{}", lanes[turn].name(), self.rounds);
                let bar = progress(&name, self.publishes);
                lanes[turn].round(self, &bar)?;
                bar.finish_and_clear();
                // Those who wait have pings to answer.
                lanes.iter_mut().try_for_each(Lane::tend)?;
            }
        }
        let figures: Vec<Figures> = lanes.into_iter().map(Lane::into_figures).collect();
        Ok(self.report(&figures))
    }

    fn refuse_nonsense(&self) -> anyhow::Result<()> {
        if self.subscribers == 0 || self.publishes == 0 || self.burst == 0 || self.rounds == 0 {
            bail!("subscribers, publishes, burst and rounds are at least 1");
        }
        if self.rate.is_some_and(|rate| !(0.001..=1e6).contains(&rate)) {
            bail!("--rate is between 0.001 and 1000000");
        }
        if self.max_ratio.is_some() && !self.compare.contains(&TargetKind::Limit) {
            bail!("--max-ratio needs `limit` among the compared");
        }
        Ok(())
    }

    fn report(&self, figures: &[Figures]) -> Report {
        let limit = figures.iter().find(|one| one.target == "limit").map(Figures::costs);
        let ratios: Vec<Option<Spread>> = figures
            .iter()
            .map(|one| limit.as_ref().map(|limit| Spread::of_ratios(&one.costs(), limit)))
            .collect();
        let mut table = Table::new([
            "target",
            "deliveries/s",
            "CPU µs each",
            "ratio",
            "lowest",
            "highest",
            "bytes each",
            "p50 ms",
            "p99 ms",
            "max ms",
            "lost",
            "doubled",
            "reordered",
        ]);
        let mut failures = Vec::new();
        for (one, ratio) in figures.iter().zip(&ratios) {
            table.row(one.row(*ratio));
            if self.check {
                failures.extend(one.complaints(*ratio, self.max_ratio));
            }
        }
        let with_ratio =
            |(one, ratio): (&Figures, &Option<Spread>)| json!({ "figures": one, "ratio": ratio });
        let json = json!({ "scenario": "fanout", "subscribers": self.subscribers,
            "bytes": self.bytes, "burst": self.burst, "rate": self.rate, "rounds": self.rounds,
            "targets": figures.iter().zip(&ratios).map(with_ratio).collect::<Vec<_>>(),
            "failures": failures });
        Report { title: self.title(), table, notes: self.notes(), json, failures }
    }

    fn title(&self) -> String {
        let Self { subscribers, bytes, burst, publishes, rounds, .. } = self;
        let pace = match self.rate {
            Some(rate) => format!("{rate} calls/s"),
            None => "as fast as everybody has the last".to_owned(),
        };
        format!(
            "fanout: {subscribers} subscribers, {bytes} bytes, {burst} events a call, \
             {publishes} calls × {rounds} rounds, {pace}"
        )
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = vec![
            "CPU: user and system time of the server's process, the median of the rounds.".into(),
            "Latency: from when an event was due to be published until a subscriber read it."
                .into(),
        ];
        if self.compare.contains(&TargetKind::Limit) {
            notes.push("Ratio: CPU for a delivery, limit = 1; the median of the rounds.".into());
        }
        if 1 < self.burst {
            notes.push("limit writes a call's events to a socket as one piece.".into());
        }
        notes
    }
}
