//! The limits of a rollout as they are written down, and their defaults.

use serde::{Deserialize, Serialize};

use super::Demand;
use crate::rollout::statistics::count;

/// All limits of one rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Guardrails {
    /// The probability that a harmless rollout is rolled back by any comparison, over all looks; the
    /// comparisons in mode `guardrail` share it.
    pub alpha: f64,
    /// How much worse than the control arm is tolerated, as a share of it: 0.1 is 10 %.
    pub margin: f64,
    /// A delivery that takes longer, in milliseconds, is slow.
    pub slow_above_ms: f64,
    /// Nothing counts against an arm that befell fewer of its users.
    pub min_affected_users: u64,
    /// Without a report for so many seconds the rollout holds.
    pub fresh_within_seconds: u64,
    /// Limits of the new arm alone.
    pub tripwires: Tripwires,
    /// The new arm against the others.
    pub comparisons: Comparisons,
}

impl Default for Guardrails {
    fn default() -> Self {
        Self {
            alpha: 0.05,
            margin: 0.1,
            slow_above_ms: 500.0,
            min_affected_users: 3,
            fresh_within_seconds: 30,
            tripwires: Tripwires::default(),
            comparisons: Comparisons::default(),
        }
    }
}

/// What follows when a limit is broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The rollout is rolled back.
    #[default]
    Guardrail,
    /// It holds, and goes on when the limit is kept again.
    Signal,
    /// It is only told.
    DryRun,
}

/// Limits of the new arm alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tripwires {
    /// How many seconds back they look.
    pub window_seconds: u64,
    /// What follows when the control arm breaks the same limit, as both do when what lies behind
    /// them fails: to go back would not help.
    pub if_both: Demand,
    /// Percent of connects, resumes and requests that fail.
    pub error_rate: Tripwire,
    /// Percent of timed deliveries that are slow; 5 is "the 95th percentile is above".
    pub slow: Tripwire,
    /// Percent of events that are lost.
    pub drops: Tripwire,
    /// Percent of connects to the new side that end on the old one.
    pub fallbacks: Tripwire,
    /// Percent of its memory that a node uses.
    pub memory: Tripwire,
}

impl Default for Tripwires {
    fn default() -> Self {
        let wire = |above, min_count| Tripwire { mode: Mode::Guardrail, above, min_count };
        Self {
            window_seconds: 300,
            if_both: Demand::Hold,
            error_rate: wire(1.0, 500),
            slow: wire(5.0, 200),
            drops: wire(1.0, 1_000),
            fallbacks: Tripwire { mode: Mode::Signal, ..wire(5.0, 100) },
            memory: wire(90.0, 1),
        }
    }
}

/// One limit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tripwire {
    /// What follows when it is broken.
    #[serde(default)]
    pub mode: Mode,
    /// The limit, in percent.
    pub above: f64,
    /// The percentage is taken of at least so many: broken are `above` percent of that number and
    /// more. So a handful of failures breaks it at once, and one alone never does.
    pub min_count: u64,
}

/// The new arm against the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Comparisons {
    /// Users whose connects fail.
    pub connect_failures: Comparison,
    /// Users whose sessions are interrupted.
    pub interruptions: Comparison,
    /// Users to whom events are lost.
    pub drops: Comparison,
    /// Users whose requests fail.
    pub errors: Comparison,
    /// Slow deliveries.
    pub slow: Comparison,
    /// Users whose sessions cannot go on.
    pub resume_failures: Comparison,
    /// Users whose sessions go on at the head of a log.
    pub resets: Comparison,
    /// Users of whom presence said wrongly that they left.
    pub flaps: Comparison,
    /// Memory of a session.
    pub memory: Comparison,
    /// Whether both arms have the sizes they should have.
    pub sample_ratio: Comparison,
}

impl Default for Comparisons {
    fn default() -> Self {
        let guardrail = Comparison::default();
        let signal = Comparison { mode: Mode::Signal, ..guardrail };
        Self {
            connect_failures: guardrail,
            interruptions: guardrail,
            drops: guardrail,
            errors: guardrail,
            slow: guardrail,
            resume_failures: signal,
            resets: signal,
            flaps: signal,
            memory: Comparison { margin: Some(0.5), ..signal },
            sample_ratio: Comparison { alpha: Some(0.001), ..signal },
        }
    }
}

impl Comparisons {
    fn all(&self) -> [&Comparison; 10] {
        [
            &self.connect_failures,
            &self.interruptions,
            &self.drops,
            &self.errors,
            &self.slow,
            &self.resume_failures,
            &self.resets,
            &self.flaps,
            &self.memory,
            &self.sample_ratio,
        ]
    }
}

/// One comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Comparison {
    /// What follows when the new arm is worse.
    pub mode: Mode,
    /// Instead of the rollout's margin.
    pub margin: Option<f64>,
    /// Instead of an equal part of what the rollout's `alpha` leaves.
    pub alpha: Option<f64>,
}

/// Settings that cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guardrails.{key}: {reason}")]
pub struct GuardrailError {
    key: &'static str,
    reason: String,
}

impl Guardrails {
    /// Whether the settings can be meant, with the key and the remedy if not.
    pub fn check(&self) -> Result<(), GuardrailError> {
        let wrong = |key, reason: &str| Err(GuardrailError { key, reason: reason.to_owned() });
        let level = |alpha: f64| alpha > 0.0 && alpha < 0.5;
        let margin = |margin: f64| (0.0..=count::LARGEST_MARGIN).contains(&margin);
        let each = self.comparisons.all();
        if !level(self.alpha) || each.iter().filter_map(|one| one.alpha).any(|one| !level(one)) {
            return wrong("alpha", "set a probability above 0 and below 0.5, such as 0.05");
        }
        if !margin(self.margin) || each.iter().filter_map(|one| one.margin).any(|one| !margin(one))
        {
            return wrong("margin", "set a share from 0 to 2: 0.1 tolerates 10 % more");
        }
        if self.left_alpha() < 0.0 {
            return wrong(
                "alpha",
                "single guardrails take more than there is; raise it or lower theirs",
            );
        }
        if !(self.slow_above_ms > 0.0 && self.slow_above_ms < 60_000.0) {
            return wrong("slow_above_ms", "set milliseconds above 0 and below 60000");
        }
        if self.fresh_within_seconds == 0 || self.tripwires.window_seconds == 0 {
            return wrong("fresh_within_seconds, tripwires.window_seconds", "set 1 or more");
        }
        let wires = &self.tripwires;
        let wires = [&wires.error_rate, &wires.slow, &wires.drops, &wires.fallbacks, &wires.memory];
        if wires.iter().any(|wire| !(wire.above > 0.0 && wire.above < 100.0)) {
            return wrong("tripwires", "set `above` to a percentage above 0 and below 100");
        }
        Ok(())
    }

    /// The level of one comparison: its own, or its part of what the guardrails' own leave. A signal
    /// costs only a pause and is given the same.
    pub fn level(&self, comparison: &Comparison) -> f64 {
        let sharing = |one: &&&Comparison| one.mode == Mode::Guardrail && one.alpha.is_none();
        let sharing = self.comparisons.all().iter().filter(sharing).count().max(1);
        comparison.alpha.unwrap_or_else(|| self.left_alpha().max(0.0) / sharing as f64)
    }

    fn left_alpha(&self) -> f64 {
        let guardrails = self.comparisons.all();
        let own = guardrails.iter().filter(|one| one.mode == Mode::Guardrail);
        self.alpha - own.filter_map(|one| one.alpha).sum::<f64>()
    }
}
