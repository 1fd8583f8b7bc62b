//! Tripwires: limits of the new arm alone, over a sliding time window.

use std::collections::VecDeque;

use super::{Counts, Demand, GuardrailName, Guardrails, Mode, Outcome, Tripwire, Verdict};
use crate::rollout::measure::{ArmCounts, Failure, Measurements};

/// The counts of one arm that tripwires are evaluated on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TripwireCounts {
    failures: Counts,
    slow: Counts,
    drops: Counts,
    fallbacks: Counts,
}

impl TripwireCounts {
    /// The counts of an arm since its stage began.
    pub fn from_arm(arm: &ArmCounts) -> Self {
        let (failed, attempts) = arm.failures();
        let (dropped, due) = arm.drops();
        let (timed, slow) = arm.slow.pairs().fold((0.0, 0.0), |sum, (n, x)| (sum.0 + n, sum.1 + x));
        let attempts_to_new = arm.connects + arm.migrations;
        Self {
            failures: Counts { affected: failed, total: attempts },
            slow: Counts { affected: slow as u64, total: timed as u64 },
            drops: Counts { affected: dropped, total: due },
            fallbacks: Counts {
                affected: arm.fallbacks,
                total: attempts_to_new.max(arm.fallbacks),
            },
        }
    }

    fn since(self, before: Self) -> Self {
        let since = |now: Counts, before: Counts| Counts {
            affected: now.affected.saturating_sub(before.affected),
            total: now.total.saturating_sub(before.total),
        };
        Self {
            failures: since(self.failures, before.failures),
            slow: since(self.slow, before.slow),
            drops: since(self.drops, before.drops),
            fallbacks: since(self.fallbacks, before.fallbacks),
        }
    }
}

/// Samples of a stage's counts, from which the counts of the last minutes are calculated. A node
/// that has just started sampling sees the whole stage.
#[derive(Clone, Debug, Default)]
pub struct RecentCounts {
    stage: Option<(u64, u64)>,
    pub(super) samples: VecDeque<(u64, [TripwireCounts; 2])>,
}

impl RecentCounts {
    /// Number of samples per time window.
    const PARTS: u64 = 100;

    /// Takes a sample at `now` (milliseconds since 1970), and drops samples older than
    /// `window_seconds`.
    pub fn sample(&mut self, measurements: &Measurements, window_seconds: u64, now: u64) {
        let stage = measurements.window.map(|window| (window.epoch, window.stage));
        if stage != self.stage {
            self.samples.clear();
            self.stage = stage;
        }
        let window = 1_000 * window_seconds;
        // The last sample before the window stays: the window is counted from there.
        while self.samples.get(1).is_some_and(|(at, _)| at + window <= now) {
            self.samples.pop_front();
        }
        if self.samples.back().is_none_or(|(at, _)| at + window / Self::PARTS <= now) {
            self.samples.push_back((now, arm_counts(measurements)));
        }
    }

    /// The counts of both arms since the time window began, or since the stage began if that was
    /// later.
    fn arm_counts(
        &self,
        measurements: &Measurements,
        window_seconds: u64,
        now: u64,
    ) -> [TripwireCounts; 2] {
        let totals = arm_counts(measurements);
        match self.samples.front() {
            Some((at, before)) if at + 1_000 * window_seconds <= now => {
                [totals[0].since(before[0]), totals[1].since(before[1])]
            }
            _ => totals,
        }
    }
}

fn arm_counts(measurements: &Measurements) -> [TripwireCounts; 2] {
    [
        TripwireCounts::from_arm(&measurements.current.new),
        TripwireCounts::from_arm(&measurements.current.control),
    ]
}

pub(super) fn judge(
    guardrails: &Guardrails,
    measurements: &Measurements,
    recent: &RecentCounts,
    now: u64,
) -> Vec<Verdict> {
    let tripwires = &guardrails.tripwires;
    let [new, control] = recent.arm_counts(measurements, tripwires.window_seconds, now);
    let arm = &measurements.current.new;
    let failing_users = [
        Failure::ConnectFailed,
        Failure::MigrationFailed,
        Failure::ResumeFailed,
        Failure::RequestFailed,
    ];
    // A user can have several of these failures, so only the most frequent kind counts users once.
    let failing_users =
        failing_users.iter().map(|failure| arm.users_with(*failure)).max().unwrap_or(0);
    let fallback_users = arm.users_with(Failure::FellBack);
    let rates = [
        (
            GuardrailName::ErrorRate,
            &tripwires.error_rate,
            new.failures,
            control.failures,
            failing_users,
        ),
        (
            GuardrailName::Latency,
            &tripwires.slow,
            new.slow,
            control.slow,
            arm.users_with(Failure::SlowDelivery),
        ),
        (
            GuardrailName::DropRate,
            &tripwires.drops,
            new.drops,
            control.drops,
            arm.users_with(Failure::Dropped),
        ),
        (
            GuardrailName::Fallbacks,
            &tripwires.fallbacks,
            new.fallbacks,
            Counts::default(),
            fallback_users,
        ),
    ];
    let mut verdicts: Vec<_> = rates
        .into_iter()
        .map(|(name, tripwire, new, control, affected)| {
            let enough = affected >= guardrails.min_affected_users;
            rate(guardrails, name, tripwire, [new, control], enough)
        })
        .collect();
    verdicts.push(memory(&tripwires.memory, measurements));
    verdicts
}

impl Tripwire {
    /// Whether `counts` exceed the limit.
    pub fn is_violated_by(&self, counts: Counts) -> bool {
        let total = counts.total.max(self.min_count) as f64;
        counts.total > 0 && counts.affected as f64 > self.above / 100.0 * total
    }
}

fn rate(
    guardrails: &Guardrails,
    name: GuardrailName,
    tripwire: &Tripwire,
    [new, control]: [Counts; 2],
    enough_users: bool,
) -> Verdict {
    let outcome =
        match (tripwire.is_violated_by(new) && enough_users, new.total >= tripwire.min_count) {
            (true, _) => Outcome::Violated,
            (false, true) => Outcome::Passed,
            (false, false) => Outcome::Unknown,
        };
    let mut verdict = Verdict::new(name, tripwire.mode, outcome);
    // Both arms exceed the limit, the new one by less than twice the rate: a shared dependency
    // fails.
    let both = tripwire.is_violated_by(control) && new.percent() <= 2.0 * control.percent();
    if both && verdict.demand == Demand::RollBack {
        verdict.demand = guardrails.tripwires.if_both;
    }
    (verdict.new, verdict.control) = (new, control);
    verdict.estimate = (new.total > 0).then(|| new.percent());
    verdict.threshold = tripwire.above;
    let subject = match name {
        GuardrailName::Latency => format!("deliveries above {} ms", guardrails.slow_above_ms),
        GuardrailName::DropRate => "lost events".to_owned(),
        GuardrailName::Fallbacks => "fallbacks to the old side".to_owned(),
        _ => "failures".to_owned(),
    };
    let limit = tripwire.above;
    verdict.summary = match outcome {
        Outcome::Violated if both => format!(
            "{subject} in the new arm: {new}, above {limit} %, but the control arm has {control}: \
             check what both sides share"
        ),
        Outcome::Violated => {
            format!("{subject} in the new arm: {new}, above {limit} %; control arm: {control}")
        }
        Outcome::Passed => format!("{subject} in the new arm: {new}, limit {limit} %"),
        Outcome::Unknown => {
            format!(
                "{subject} in the new arm: {new}, too few to judge: {} are needed",
                tripwire.min_count
            )
        }
    };
    verdict
}

fn memory(tripwire: &Tripwire, measurements: &Measurements) -> Verdict {
    let percent = 100.0 * measurements.memory;
    let outcome = match measurements.nodes {
        0 => Outcome::Unknown,
        _ if percent > tripwire.above => Outcome::Violated,
        _ => Outcome::Passed,
    };
    let mut verdict = Verdict::new(GuardrailName::NodeMemory, tripwire.mode, outcome);
    verdict.estimate = (measurements.nodes > 0).then_some(percent);
    verdict.threshold = tripwire.above;
    let limit = tripwire.above;
    verdict.summary = format!(
        "the node with the highest usage has {percent:.0} % of its memory in use, limit {limit} %"
    );
    if tripwire.mode == Mode::Guardrail && outcome == Outcome::Violated {
        verdict.summary += "; both sides use it, so fewer users on the new side free memory";
    }
    verdict
}
