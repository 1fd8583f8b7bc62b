//! Limits of the new arm alone, over the last minutes.

use std::collections::VecDeque;

use super::{Counts, Demand, Guardrails, Mode, Name, Outcome, Tripwire, Verdict};
use crate::rollout::measure::{Arm, Failure, Measured};

/// What was counted of one arm, as far as tripwires care.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    failures: Counts,
    slow: Counts,
    drops: Counts,
    fallbacks: Counts,
}

impl Tally {
    /// Of a stage so far.
    pub fn of(arm: &Arm) -> Self {
        let (failed, tried) = arm.failures();
        let (dropped, due) = arm.drops();
        let (timed, slow) = arm.slow.pairs().fold((0.0, 0.0), |sum, (n, x)| (sum.0 + n, sum.1 + x));
        let tried_new = arm.connects + arm.moves;
        Self {
            failures: Counts { with: failed, of: tried },
            slow: Counts { with: slow as u64, of: timed as u64 },
            drops: Counts { with: dropped, of: due },
            fallbacks: Counts { with: arm.fallbacks, of: tried_new.max(arm.fallbacks) },
        }
    }

    fn since(self, before: Self) -> Self {
        let since = |now: Counts, before: Counts| Counts {
            with: now.with.saturating_sub(before.with),
            of: now.of.saturating_sub(before.of),
        };
        Self {
            failures: since(self.failures, before.failures),
            slow: since(self.slow, before.slow),
            drops: since(self.drops, before.drops),
            fallbacks: since(self.fallbacks, before.fallbacks),
        }
    }
}

/// Looks at the counts of a stage, so that the last minutes can be told from the hours before. A
/// node that has only begun to look sees the whole stage.
#[derive(Clone, Debug, Default)]
pub struct Recent {
    stage: Option<(u64, u64)>,
    pub(super) looks: VecDeque<(u64, [Tally; 2])>,
}

impl Recent {
    /// A window is looked at in so many parts.
    const PARTS: u64 = 100;

    /// Looks at `now`, in milliseconds, and forgets what lies further back than `window_seconds`.
    pub fn look(&mut self, measured: &Measured, window_seconds: u64, now: u64) {
        let stage = measured.window.map(|window| (window.epoch, window.stage));
        if stage != self.stage {
            self.looks.clear();
            self.stage = stage;
        }
        let window = 1_000 * window_seconds;
        // The look before the window is kept: it is what the window is counted from.
        while self.looks.get(1).is_some_and(|(at, _)| at + window <= now) {
            self.looks.pop_front();
        }
        if self.looks.back().is_none_or(|(at, _)| at + window / Self::PARTS <= now) {
            self.looks.push_back((now, node_counts(measured)));
        }
    }

    /// What happened in both arms since the window began, or the stage if that was later.
    fn node_counts(&self, measured: &Measured, window_seconds: u64, now: u64) -> [Tally; 2] {
        let sums = node_counts(measured);
        match self.looks.front() {
            Some((at, before)) if at + 1_000 * window_seconds <= now => {
                [sums[0].since(before[0]), sums[1].since(before[1])]
            }
            _ => sums,
        }
    }
}

fn node_counts(measured: &Measured) -> [Tally; 2] {
    [Tally::of(&measured.current.new), Tally::of(&measured.current.control)]
}

pub(super) fn judge(
    guardrails: &Guardrails,
    measured: &Measured,
    recent: &Recent,
    now: u64,
) -> Vec<Verdict> {
    let wires = &guardrails.tripwires;
    let [new, control] = recent.node_counts(measured, wires.window_seconds, now);
    let arm = &measured.current.new;
    let failing =
        [Failure::ConnectFailed, Failure::MoveFailed, Failure::ResumeFailed, Failure::Error];
    // A user can have several of them; the most of one kind are certainly different users.
    let failing = failing.iter().map(|trouble| arm.users_with(*trouble)).max().unwrap_or(0);
    let fallen_back = arm.users_with(Failure::FellBack);
    let rates = [
        (Name::ErrorRate, &wires.error_rate, new.failures, control.failures, failing),
        (Name::Latency, &wires.slow, new.slow, control.slow, arm.users_with(Failure::Slow)),
        (Name::DropRate, &wires.drops, new.drops, control.drops, arm.users_with(Failure::Dropped)),
        (Name::Fallbacks, &wires.fallbacks, new.fallbacks, Counts::default(), fallen_back),
    ];
    let mut verdicts: Vec<_> = rates
        .into_iter()
        .map(|(name, wire, new, control, affected)| {
            let enough = affected >= guardrails.min_affected_users;
            rate(guardrails, name, wire, [new, control], enough)
        })
        .collect();
    verdicts.push(memory(&wires.memory, measured));
    verdicts
}

impl Tripwire {
    /// Whether so many of so many are too many.
    pub fn is_broken_by(&self, counts: Counts) -> bool {
        let of = counts.of.max(self.min_count) as f64;
        counts.of > 0 && counts.with as f64 > self.above / 100.0 * of
    }
}

fn rate(
    guardrails: &Guardrails,
    name: Name,
    wire: &Tripwire,
    [new, control]: [Counts; 2],
    enough_users: bool,
) -> Verdict {
    let outcome = match (wire.is_broken_by(new) && enough_users, new.of >= wire.min_count) {
        (true, _) => Outcome::Broken,
        (false, true) => Outcome::Kept,
        (false, false) => Outcome::Unknown,
    };
    let mut verdict = Verdict::new(name, wire.mode, outcome);
    // Both break the limit, and the new side not twice as much: something behind both fails.
    let both = wire.is_broken_by(control) && new.percent() <= 2.0 * control.percent();
    if both && verdict.demand == Demand::RollBack {
        verdict.demand = guardrails.tripwires.if_both;
    }
    (verdict.new, verdict.control) = (new, control);
    verdict.estimate = (new.of > 0).then(|| new.percent());
    verdict.threshold = wire.above;
    let what = match name {
        Name::Latency => format!("deliveries above {} ms", guardrails.slow_above_ms),
        Name::DropRate => "lost events".to_owned(),
        Name::Fallbacks => "fallbacks to the old side".to_owned(),
        _ => "failures".to_owned(),
    };
    let limit = wire.above;
    verdict.sentence = match outcome {
        Outcome::Broken if both => format!(
            "{what} in the new arm: {new}, above {limit} %, but the control arm has {control}: \
             look for what both sides share"
        ),
        Outcome::Broken => {
            format!("{what} in the new arm: {new}, above {limit} %; control arm: {control}")
        }
        Outcome::Kept => format!("{what} in the new arm: {new}, limit {limit} %"),
        Outcome::Unknown => {
            format!("{what} in the new arm: {new}, too few to tell before {}", wire.min_count)
        }
    };
    verdict
}

fn memory(wire: &Tripwire, measured: &Measured) -> Verdict {
    let percent = 100.0 * measured.memory;
    let outcome = match measured.nodes {
        0 => Outcome::Unknown,
        _ if percent > wire.above => Outcome::Broken,
        _ => Outcome::Kept,
    };
    let mut verdict = Verdict::new(Name::NodeMemory, wire.mode, outcome);
    verdict.estimate = (measured.nodes > 0).then_some(percent);
    verdict.threshold = wire.above;
    let limit = wire.above;
    verdict.sentence =
        format!("the fullest node uses {percent:.0} % of its memory, limit {limit} %");
    if wire.mode == Mode::Guardrail && outcome == Outcome::Broken {
        verdict.sentence += "; both sides live on it, so fewer on the new one make room";
    }
    verdict
}
