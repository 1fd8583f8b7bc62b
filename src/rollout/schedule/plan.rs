//! What a schedule is planned to do.

use serde::{Deserialize, Serialize};

use super::{Percentage, Status};

/// How a rollout goes up, and what it waits for. Without steps it is set by hand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// In rising order.
    pub steps: Vec<Step>,
    /// After going back, so many seconds have to pass before a new start.
    pub cool_down_seconds: u64,
    /// Whether a new start keeps who belongs to the new arm. A new choice is fairer, since who had
    /// trouble is otherwise first again.
    pub keep_salt: bool,
    /// Components that have to be completed before, and while, this one goes up.
    pub after: Vec<String>,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { steps: Vec::new(), cool_down_seconds: 3_600, keep_salt: false, after: Vec::new() }
    }
}

/// A percentage, and what has to be seen there before the next.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// How many users are in the new arm.
    pub percentage: Percentage,
    /// So many seconds without a hold.
    #[serde(default)]
    pub bake_seconds: u64,
    /// At least so many users of the new arm.
    #[serde(default)]
    pub min_users: u64,
    /// At least so many things seen of them: attempts and deliveries.
    #[serde(default)]
    pub min_events: u64,
    /// Whether a person has to approve of going on.
    #[serde(default)]
    pub approval: bool,
    /// Whether both sides have to deliver the same before going on.
    #[serde(default)]
    pub validation: bool,
}

/// A schedule that cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("schedule.{key}: {reason}")]
pub struct ScheduleError {
    key: String,
    reason: &'static str,
}

impl Schedule {
    /// The steps a schedule can have.
    pub const STEPS: usize = 32;

    /// The usual one: 1, 5, 25, 50 and 100 %, an hour each at first, with a validation before each.
    pub fn usual() -> Self {
        let step = |percent: u32, hours: u64, min_users| Step {
            percentage: Percentage::of_thousandths(percent * 1_000).unwrap_or(Percentage::ALL),
            bake_seconds: hours * 3_600,
            min_users,
            min_events: 10 * min_users,
            approval: false,
            validation: true,
        };
        let steps = [(1, 1, 20), (5, 1, 100), (25, 4, 500), (50, 12, 1_000), (100, 24, 2_000)];
        let steps = steps.map(|(percent, hours, users)| step(percent, hours, users)).to_vec();
        Self { steps, ..Self::default() }
    }

    /// Whether it can be meant, with the key and the remedy if not.
    pub fn check(&self, component: &str) -> Result<(), ScheduleError> {
        let wrong = |key: String, reason| Err(ScheduleError { key, reason });
        if self.steps.len() > Self::STEPS {
            return wrong("steps".to_owned(), "leave out some, 32 are possible");
        }
        let mut before = Percentage::ZERO;
        for (index, step) in self.steps.iter().enumerate() {
            if step.percentage <= before {
                let reason = "set percentages above 0 that rise from step to step";
                return wrong(format!("steps[{index}].percentage"), reason);
            }
            if step.bake_seconds > 365 * 86_400 {
                return wrong(format!("steps[{index}].bake_seconds"), "set a year at most");
            }
            before = step.percentage;
        }
        if self.after.iter().any(|other| other == component) {
            return wrong("after".to_owned(), "a component cannot wait for itself");
        }
        Ok(())
    }

    /// Which components this one still waits for.
    pub fn waits_for(&self, status_of: impl Fn(&str) -> Option<Status>) -> Vec<String> {
        let waits = |other: &&String| status_of(other) != Some(Status::Completed);
        self.after.iter().filter(waits).cloned().collect()
    }
}
