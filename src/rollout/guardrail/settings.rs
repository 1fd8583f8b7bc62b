//! Guardrail settings of a rollout, with their defaults and their checks.

use serde::{Deserialize, Serialize};

use super::Demand;
use crate::rollout::statistics::count;

/// All guardrails of one rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Guardrails {
    /// Probability, 0 to 0.5 exclusive, that any comparison rolls back a harmless rollout, over all
    /// looks together. Shared by the comparisons in mode `guardrail`.
    pub alpha: f64,
    /// How much worse than the control arm is tolerated, as a share of it, 0 to 2: 0.1 is 10 %.
    pub margin: f64,
    /// Latency objective in milliseconds, below 60000: a delivery that takes longer is slow.
    pub slow_above_ms: f64,
    /// Failures violate a guardrail only if at least this many users of the arm are affected.
    pub min_affected_users: u64,
    /// The rollout holds if no node has reported for this many seconds.
    pub fresh_within_seconds: u64,
    /// Limits of the new arm alone.
    pub tripwires: Tripwires,
    /// Comparisons of the new arm with the others.
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

/// What happens when a guardrail is violated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The rollout is rolled back.
    #[default]
    Guardrail,
    /// The rollout holds, and continues when the guardrail passes again.
    Signal,
    /// Nothing; the verdict is only shown.
    DryRun,
}

/// Limits of the new arm alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tripwires {
    /// Length of the time window they cover, in seconds.
    pub window_seconds: u64,
    /// Demand of a violated tripwire in mode `guardrail` if the control arm violates it too. Then
    /// usually a shared dependency fails, and rolling back would not help.
    pub if_both: Demand,
    /// Percent of connects, migrations, resumes and requests that fail.
    pub error_rate: Tripwire,
    /// Percent of timed deliveries that are slow; 5 means that the 95th percentile is above the
    /// objective.
    pub slow: Tripwire,
    /// Percent of events that are dropped.
    pub drops: Tripwire,
    /// Percent of connects to the new side that fall back to the old one.
    pub fallbacks: Tripwire,
    /// Percent of its memory that any node uses.
    pub memory: Tripwire,
}

impl Default for Tripwires {
    fn default() -> Self {
        let tripwire = |above, min_count| Tripwire { mode: Mode::Guardrail, above, min_count };
        Self {
            window_seconds: 300,
            if_both: Demand::Hold,
            error_rate: tripwire(1.0, 500),
            slow: tripwire(5.0, 200),
            drops: tripwire(1.0, 1_000),
            fallbacks: Tripwire { mode: Mode::Signal, ..tripwire(5.0, 100) },
            memory: tripwire(90.0, 1),
        }
    }
}

/// A limit of the new arm.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tripwire {
    /// What happens when it is violated.
    #[serde(default)]
    pub mode: Mode,
    /// The limit in percent, 0 to 100 exclusive.
    pub above: f64,
    /// The percentage is calculated of at least this many. So with few attempts a single failure
    /// never violates the limit, and a burst of failures violates it at once.
    pub min_count: u64,
}

/// Comparisons of the new arm with the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Comparisons {
    /// Users with a failed connect.
    pub connect_failures: Comparison,
    /// Users with an interrupted session.
    pub interruptions: Comparison,
    /// Users with a dropped event.
    pub drops: Comparison,
    /// Users with a failed request.
    pub errors: Comparison,
    /// Share of slow deliveries.
    pub slow: Comparison,
    /// Users with a failed resume.
    pub resume_failures: Comparison,
    /// Users with a resume at the head of a log.
    pub resets: Comparison,
    /// Users whom presence wrongly reported as left.
    pub flaps: Comparison,
    /// Memory per session.
    pub memory: Comparison,
    /// Sizes of the arms against their planned sizes.
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

/// Settings of one comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Comparison {
    /// What happens when the new arm is worse.
    pub mode: Mode,
    /// Overrides the rollout's `margin`.
    pub margin: Option<f64>,
    /// Overrides the equal share of the rollout's `alpha`.
    pub alpha: Option<f64>,
}

/// An invalid guardrail setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guardrails.{key}: {reason}")]
pub struct GuardrailError {
    key: &'static str,
    reason: String,
}

impl Guardrails {
    /// Checks the settings.
    ///
    /// # Errors
    /// Names the invalid key and the values it accepts.
    pub fn check(&self) -> Result<(), GuardrailError> {
        let wrong = |key, reason: &str| Err(GuardrailError { key, reason: reason.to_owned() });
        let level = |alpha: f64| alpha > 0.0 && alpha < 0.5;
        let margin = |margin: f64| (0.0..=count::MAX_MARGIN).contains(&margin);
        let each = self.comparisons.all();
        if !level(self.alpha) || each.iter().filter_map(|one| one.alpha).any(|one| !level(one)) {
            return wrong("alpha", "set a probability above 0 and below 0.5, such as 0.05");
        }
        if !margin(self.margin) || each.iter().filter_map(|one| one.margin).any(|one| !margin(one))
        {
            return wrong("margin", "set a share from 0 to 2: 0.1 tolerates 10 % more");
        }
        if self.remaining_alpha() < 0.0 {
            return wrong(
                "alpha",
                "the alphas of single comparisons add up to more: raise it, or lower theirs",
            );
        }
        if !(self.slow_above_ms > 0.0 && self.slow_above_ms < 60_000.0) {
            return wrong("slow_above_ms", "set milliseconds above 0 and below 60000");
        }
        if self.fresh_within_seconds == 0 || self.tripwires.window_seconds == 0 {
            return wrong("fresh_within_seconds, tripwires.window_seconds", "set 1 or more");
        }
        let tripwires = &self.tripwires;
        let tripwires = [
            &tripwires.error_rate,
            &tripwires.slow,
            &tripwires.drops,
            &tripwires.fallbacks,
            &tripwires.memory,
        ];
        if tripwires.iter().any(|tripwire| !(tripwire.above > 0.0 && tripwire.above < 100.0)) {
            return wrong("tripwires", "set `above` to a percentage above 0 and below 100");
        }
        Ok(())
    }

    /// The significance level of one comparison: its own `alpha`, or an equal share of what those
    /// with their own leave. A signal gets the same share without reducing it for others: it only
    /// pauses.
    pub fn level(&self, comparison: &Comparison) -> f64 {
        let sharing = |one: &&&Comparison| one.mode == Mode::Guardrail && one.alpha.is_none();
        let sharing = self.comparisons.all().iter().filter(sharing).count().max(1);
        comparison.alpha.unwrap_or_else(|| self.remaining_alpha().max(0.0) / sharing as f64)
    }

    fn remaining_alpha(&self) -> f64 {
        let guardrails = self.comparisons.all();
        let own = guardrails.iter().filter(|one| one.mode == Mode::Guardrail);
        self.alpha - own.filter_map(|one| one.alpha).sum::<f64>()
    }
}
