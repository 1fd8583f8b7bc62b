//! What a rollout must not do, and whether it does: settings and counts in, verdicts out.
//!
//! Pure. A verdict keeps the numbers it was made from and a sentence for whoever is woken by it.
//! What is done about it is [`schedule`](super::schedule)'s business.
//!
//! Tripwires are limits of the new arm alone, judged in seconds and without statistics. Comparisons
//! set it against the others, and keep their error for all looks together: the guardrails among
//! them share `alpha`. Page: docs/statistics.md.

mod compare;
mod settings;
mod tripwire;

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{
    measure::{Failure, Measured},
    statistics::Interval,
};

pub use settings::{
    Comparison, Comparisons, GuardrailError, Guardrails, Mode, Tripwire, Tripwires,
};
pub use tripwire::{Recent, Tally};

/// Which limit is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Name {
    /// Tripwire.
    ErrorRate,
    /// Tripwire: the 95th percentile of latency.
    Latency,
    /// Tripwire.
    DropRate,
    /// Tripwire.
    Fallbacks,
    /// Tripwire: the fullest node.
    NodeMemory,
    /// Comparison.
    ConnectFailures,
    /// Comparison.
    Interruptions,
    /// Comparison.
    Drops,
    /// Comparison.
    Errors,
    /// Comparison of slow deliveries.
    Slow,
    /// Comparison.
    ResumeFailures,
    /// Comparison.
    Resets,
    /// Comparison of presence.
    Flaps,
    /// Comparison of sessions.
    Memory,
    /// Comparison of the arms' sizes.
    SampleRatio,
    /// Whether there are news at all.
    FreshData,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ErrorRate => "error rate",
            Self::Latency => "latency",
            Self::DropRate => "drop rate",
            Self::Fallbacks => "fallbacks to the old side",
            Self::NodeMemory => "memory of a node",
            Self::ConnectFailures => "failed connects",
            Self::Interruptions => "interruptions",
            Self::Drops => "lost events",
            Self::Errors => "failed requests",
            Self::Slow => "slow deliveries",
            Self::ResumeFailures => "failed resumes",
            Self::Resets => "resets",
            Self::Flaps => "presence flaps",
            Self::Memory => "memory of a session",
            Self::SampleRatio => "sizes of the arms",
            Self::FreshData => "fresh data",
        })
    }
}

/// What the numbers say about a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is kept, as far as can be known yet.
    Kept,
    /// It is broken.
    Broken,
    /// There is too little to tell.
    Unknown,
}

/// What a verdict asks for. The greater beats the less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Demand {
    /// Nothing.
    #[default]
    Nothing,
    /// Not to go on until it is kept again.
    Hold,
    /// To go back.
    RollBack,
}

/// So many of so many: events of attempts, users of users, slow deliveries of all timed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Those with trouble.
    pub with: u64,
    /// All.
    pub of: u64,
}

impl Counts {
    /// In percent; 0 of none.
    pub fn percent(self) -> f64 {
        if self.of == 0 { 0.0 } else { 100.0 * self.with as f64 / self.of as f64 }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} ({:.2} %)", self.with, self.of, self.percent())
    }
}

/// What was found about one limit, with its numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Which limit.
    pub name: Name,
    /// How it is set.
    pub mode: Mode,
    /// What the numbers say.
    pub outcome: Outcome,
    /// What it asks for.
    pub demand: Demand,
    /// Of the new arm.
    pub new: Counts,
    /// Of the control arm; for evidence on users, of all who are not in the new one.
    pub control: Counts,
    /// A percentage, or for comparisons how many times the other arm's rate or mean.
    pub estimate: Option<f64>,
    /// Between which values the estimate lies, at the level of this limit and by all looks together.
    pub interval: Option<Interval>,
    /// What the estimate has to stay below; for a comparison the lower end of its interval.
    pub threshold: f64,
    /// The natural logarithm of the evidence against "no worse than tolerated" (or, of the arms'
    /// sizes, against the planned ones), where the comparison is a bet.
    pub log_e: Option<f64>,
    /// At which evidence that is refuted: `ln(1/α)`.
    pub log_e_needed: Option<f64>,
    /// All of it for a person at 3 a.m.
    pub sentence: String,
}

impl Verdict {
    fn new(name: Name, mode: Mode, outcome: Outcome) -> Self {
        let demand = match (outcome, mode) {
            (Outcome::Broken, Mode::Guardrail) => Demand::RollBack,
            (Outcome::Broken, Mode::Signal) => Demand::Hold,
            _ => Demand::Nothing,
        };
        Self {
            name,
            mode,
            outcome,
            demand,
            new: Counts::default(),
            control: Counts::default(),
            estimate: None,
            interval: None,
            threshold: 0.0,
            log_e: None,
            log_e_needed: None,
            sentence: String::new(),
        }
    }
}

/// Judges what was measured at `now` (milliseconds since 1970). `recent` is what happened lately.
pub fn judge(
    guardrails: &Guardrails,
    measured: &Measured,
    recent: &Recent,
    now: u64,
) -> Vec<Verdict> {
    let mut verdicts = vec![fresh_data(guardrails, measured, now)];
    verdicts.extend(tripwire::judge(guardrails, measured, recent, now));
    verdicts.extend(compare::judge(guardrails, measured));
    verdicts
}

/// The most that any verdict asks for, and who asks for it.
pub fn demand(verdicts: &[Verdict]) -> (Demand, Vec<&Verdict>) {
    let most = verdicts.iter().map(|verdict| verdict.demand).max().unwrap_or_default();
    let asks = |verdict: &&Verdict| verdict.demand == most && most > Demand::Nothing;
    (most, verdicts.iter().filter(asks).collect())
}

/// No news hold the rollout: they are neither good nor bad.
fn fresh_data(guardrails: &Guardrails, measured: &Measured, now: u64) -> Verdict {
    let age = now.saturating_sub(measured.freshest) / 1_000;
    let fresh = measured.nodes > 0 && age <= guardrails.fresh_within_seconds;
    let outcome = if fresh { Outcome::Kept } else { Outcome::Broken };
    let mut verdict = Verdict::new(Name::FreshData, Mode::Signal, outcome);
    verdict.threshold = guardrails.fresh_within_seconds as f64;
    verdict.sentence = if measured.nodes == 0 {
        "no node has reported in this epoch; the rollout holds until one does".to_owned()
    } else if fresh {
        verdict.estimate = Some(age as f64);
        format!("the last report is {age} s old")
    } else {
        verdict.estimate = Some(age as f64);
        format!(
            "no node has reported for {age} s; the rollout holds, look at the nodes and the store"
        )
    };
    verdict
}

/// Which users a comparison of troubles is about.
fn troubles(comparisons: &Comparisons) -> [(Name, Failure, &Comparison); 7] {
    [
        (Name::ConnectFailures, Failure::ConnectFailed, &comparisons.connect_failures),
        (Name::Interruptions, Failure::Interrupted, &comparisons.interruptions),
        (Name::Drops, Failure::Dropped, &comparisons.drops),
        (Name::Errors, Failure::Error, &comparisons.errors),
        (Name::ResumeFailures, Failure::ResumeFailed, &comparisons.resume_failures),
        (Name::Resets, Failure::Reset, &comparisons.resets),
        (Name::Flaps, Failure::Flapped, &comparisons.flaps),
    ]
}

#[cfg(test)]
mod tests;
