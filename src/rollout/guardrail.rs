//! Guardrails of a rollout: settings and measurements in, verdicts out.
//!
//! A tripwire is a limit of the new arm alone, evaluated within seconds and without statistics. A
//! comparison tests the new arm against the others, with an error rate that holds for all looks
//! together; the comparisons in mode `guardrail` share `alpha`. Described in docs/statistics.md.
//!
//! Pure. A verdict carries the numbers it is based on and a summary for the operator. What a
//! rollout does about it is decided in [`schedule`](super::schedule).

mod compare;
mod settings;
mod tripwire;

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{
    measure::{Failure, Measurements},
    statistics::Interval,
};

pub use settings::{
    Comparison, Comparisons, GuardrailError, Guardrails, Mode, Tripwire, Tripwires,
};
pub use tripwire::{RecentCounts, TripwireCounts};

/// Identifies a guardrail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardrailName {
    /// Tripwire: failed connects, migrations, resumes and requests.
    ErrorRate,
    /// Tripwire: slow deliveries; the default limit of 5 % bounds the 95th percentile of latency.
    Latency,
    /// Tripwire: dropped events.
    DropRate,
    /// Tripwire: clients that used the old side because the new one was unreachable.
    Fallbacks,
    /// Tripwire: memory of the node that uses the most.
    NodeMemory,
    /// Comparison: users with a failed connect.
    ConnectFailures,
    /// Comparison: users with an interrupted session.
    Interruptions,
    /// Comparison: users with a dropped event.
    Drops,
    /// Comparison: users with a failed request.
    Errors,
    /// Comparison: share of slow deliveries.
    Slow,
    /// Comparison: users with a failed resume.
    ResumeFailures,
    /// Comparison: users with a resume at the head of a log.
    Resets,
    /// Comparison: users whom presence wrongly reported as left.
    Flaps,
    /// Comparison: memory per session.
    Memory,
    /// Comparison: sizes of the arms against their planned sizes.
    SampleRatio,
    /// Signal: a recent report exists.
    FreshData,
}

impl fmt::Display for GuardrailName {
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

/// Result of evaluating a guardrail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The guardrail is not violated, as far as the data show.
    Passed,
    /// The guardrail is violated.
    Violated,
    /// There are too few data to tell.
    Unknown,
}

/// What a verdict demands of the rollout, in ascending order of severity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Demand {
    /// No action.
    #[default]
    Nothing,
    /// Not to advance until the guardrail passes again.
    Hold,
    /// To roll back.
    RollBack,
}

/// A count out of a total: failures of attempts, affected users of all users, slow of timed
/// deliveries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Those that failed or are affected.
    pub affected: u64,
    /// All.
    pub total: u64,
}

impl Counts {
    /// `affected` in percent of `total`; 0 if `total` is 0.
    pub fn percent(self) -> f64 {
        if self.total == 0 { 0.0 } else { 100.0 * self.affected as f64 / self.total as f64 }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} ({:.2} %)", self.affected, self.total, self.percent())
    }
}

/// The evaluation of one guardrail, with its numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The guardrail.
    pub name: GuardrailName,
    /// The mode it is configured with.
    pub mode: Mode,
    /// What the data show.
    pub outcome: Outcome,
    /// What it demands.
    pub demand: Demand,
    /// Counts of the new arm.
    pub new: Counts,
    /// Counts of the control arm; for failures of users, of all users outside the new arm.
    pub control: Counts,
    /// A percentage; for a comparison the ratio to the other arm's rate or mean.
    pub estimate: Option<f64>,
    /// Confidence interval of the estimate, at the level of this guardrail and for all looks
    /// together.
    pub interval: Option<Interval>,
    /// The limit of the estimate; for a comparison the limit of the lower end of its interval.
    pub threshold: f64,
    /// Natural logarithm of the e-value against "no worse than tolerated" (for the sample ratio:
    /// against the planned sizes), if the comparison is an e-process.
    pub log_e: Option<f64>,
    /// The value of `log_e` at which that is refuted: `ln(1/α)`.
    pub log_e_needed: Option<f64>,
    /// All of it in one sentence for the operator.
    pub summary: String,
}

impl Verdict {
    fn new(name: GuardrailName, mode: Mode, outcome: Outcome) -> Self {
        let demand = match (outcome, mode) {
            (Outcome::Violated, Mode::Guardrail) => Demand::RollBack,
            (Outcome::Violated, Mode::Signal) => Demand::Hold,
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
            summary: String::new(),
        }
    }
}

/// Evaluates all guardrails at `now` (milliseconds since 1970). `recent` provides the counts of the
/// tripwires' time window.
pub fn judge(
    guardrails: &Guardrails,
    measurements: &Measurements,
    recent: &RecentCounts,
    now: u64,
) -> Vec<Verdict> {
    let mut verdicts = vec![fresh_data(guardrails, measurements, now)];
    verdicts.extend(tripwire::judge(guardrails, measurements, recent, now));
    verdicts.extend(compare::judge(guardrails, measurements));
    verdicts
}

/// The most severe demand, and the verdicts that make it; none of them if it is
/// [`Demand::Nothing`].
pub fn strongest_demand(verdicts: &[Verdict]) -> (Demand, Vec<&Verdict>) {
    let strongest = verdicts.iter().map(|verdict| verdict.demand).max().unwrap_or_default();
    let makes_it = |verdict: &&Verdict| verdict.demand == strongest && strongest > Demand::Nothing;
    (strongest, verdicts.iter().filter(makes_it).collect())
}

/// A rollout without recent reports holds: missing data are neither good nor bad.
fn fresh_data(guardrails: &Guardrails, measurements: &Measurements, now: u64) -> Verdict {
    let age = now.saturating_sub(measurements.last_report_at) / 1_000;
    let fresh = measurements.nodes > 0 && age <= guardrails.fresh_within_seconds;
    let outcome = if fresh { Outcome::Passed } else { Outcome::Violated };
    let mut verdict = Verdict::new(GuardrailName::FreshData, Mode::Signal, outcome);
    verdict.threshold = guardrails.fresh_within_seconds as f64;
    verdict.summary = if measurements.nodes == 0 {
        "no node has reported in this epoch: the rollout holds until one does".to_owned()
    } else if fresh {
        verdict.estimate = Some(age as f64);
        format!("the last report is {age} s old")
    } else {
        verdict.estimate = Some(age as f64);
        format!(
            "no node has reported for {age} s: the rollout holds, check the nodes and the store"
        )
    };
    verdict
}

/// The comparisons of users with a failure.
fn failure_comparisons(comparisons: &Comparisons) -> [(GuardrailName, Failure, &Comparison); 7] {
    [
        (GuardrailName::ConnectFailures, Failure::ConnectFailed, &comparisons.connect_failures),
        (GuardrailName::Interruptions, Failure::Interrupted, &comparisons.interruptions),
        (GuardrailName::Drops, Failure::Dropped, &comparisons.drops),
        (GuardrailName::Errors, Failure::RequestFailed, &comparisons.errors),
        (GuardrailName::ResumeFailures, Failure::ResumeFailed, &comparisons.resume_failures),
        (GuardrailName::Resets, Failure::Reset, &comparisons.resets),
        (GuardrailName::Flaps, Failure::Flapped, &comparisons.flaps),
    ]
}

#[cfg(test)]
mod tests;
