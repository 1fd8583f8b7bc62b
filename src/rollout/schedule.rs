//! How a rollout goes up and back: a closed machine of states.
//!
//! Pure: [`step`] takes a state, what happened and the time, and says the next state and what is to
//! be done. Whoever calls has to write the state with compare-and-set before doing it, so that of two
//! callers one is refused.
//!
//! ```text
//! pending ─► running ⇄ paused ─► completed
//!               └────────┴───────────┴──► rolled_back │ stopped │ failed ─► running, a new epoch
//! ```
//!
//! It goes up only if the bake time has passed, enough was seen, the news are of this stage, nothing
//! holds and who has to approve did. To go back is possible always, and beats all else.

mod plan;
mod transition;

use serde::{Deserialize, Serialize};

use super::{cohort::Percentage, guardrail::Demand};

pub use plan::{Schedule, ScheduleError, Step};
use transition::Transition;

/// Where a rollout stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Not begun.
    #[default]
    Pending,
    /// Going up by its schedule.
    Running,
    /// Waiting for a person, at the percentage it has.
    Paused,
    /// Everybody is on the new side.
    Completed,
    /// Nobody is, after a decision to go back.
    RolledBack,
    /// Ended at the percentage it has; nobody else is moved.
    Stopped,
    /// Ended by an emergency stop.
    Failed,
}

/// How a rollout is stopped, from soft to hard.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Stop {
    /// Nobody new is moved; who is assigned stays so.
    Freeze,
    /// Nobody is assigned; who is connected stays.
    StopAndKeep,
    /// Nobody is assigned, and who is connected is asked back at a pace.
    #[default]
    DrainBack,
    /// Nobody is assigned, and connections to the new side are closed.
    Hard,
}

/// All there is to know of a rollout's course; kept in the store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Where it stands.
    pub status: Status,
    /// How many users are in the new arm.
    pub percentage: Percentage,
    /// One more with each start; what was measured in another does not count.
    pub epoch: u64,
    /// One more with each change of the percentage, over all epochs.
    pub stage: u64,
    /// Which step of the schedule this is, from 0; none before the first.
    pub step: Option<usize>,
    /// Milliseconds of this stage that nothing held it.
    pub baked: u64,
    /// When it was last looked at, while running.
    pub looked: Option<u64>,
    /// Whether a person approved of going on from here.
    pub approved: bool,
    /// What is known of the two sides' deliveries in this stage.
    pub validation: Validation,
    /// Why it does not go on, for people.
    pub holds: Vec<String>,
    /// The guardrails that hold it, as far as people were told.
    pub held_by: Vec<String>,
    /// Why it stands where it does: of the last pause, stop or start.
    pub reason: String,
    /// How it was stopped, if it was.
    pub stop: Option<Stop>,
    /// Until when (milliseconds since 1970) it cannot be started again.
    pub cool_until: Option<u64>,
}

/// Whether both sides deliver the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Validation {
    /// Not asked yet.
    #[default]
    Unknown,
    /// Asked, not answered.
    Asked,
    /// They do.
    Passed,
    /// They do not.
    Failed(String),
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A person starts it, again with a reason. The components it still waits for are named.
    Start {
        /// Why; needed after it was stopped.
        reason: String,
        /// See [`Schedule::waits_for`].
        waits_for: Vec<String>,
        /// Whether not to wait until it has cooled down.
        force: bool,
    },
    /// A person stops the clock.
    Pause {
        /// Why.
        reason: String,
    },
    /// A person lets it go on.
    Resume,
    /// A person will not wait for the bake time. Everything else is still needed.
    Advance,
    /// A person approves of the next step.
    Approve,
    /// A person sets the percentage. The schedule pauses there.
    Set {
        /// To what.
        percentage: Percentage,
        /// Why.
        reason: String,
    },
    /// A person says that it is done.
    Complete,
    /// It has to stop, for whatever reason.
    Stop {
        /// How.
        how: Stop,
        /// Why.
        reason: String,
    },
    /// Everything has to stop.
    EmergencyStop {
        /// How.
        how: Stop,
        /// Why.
        reason: String,
    },
    /// Both sides were compared in a stage.
    Validated {
        /// Which.
        stage: u64,
        /// What was found to differ, if anything.
        differs: Option<String>,
    },
    /// What was measured and judged.
    Look(Look),
}

/// One look at a running rollout.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Look {
    /// The epoch and stage that the counts are of; another one's are no news.
    pub of: (u64, u64),
    /// Users of the new arm in this stage.
    pub users: u64,
    /// Attempts and deliveries of theirs.
    pub events: u64,
    /// The most that a verdict asks for.
    pub demand: Demand,
    /// The sentences of those that ask for it.
    pub reasons: Vec<String>,
    /// Their names: sentences have figures in them and change with each look.
    pub asking: Vec<String>,
    /// See [`Schedule::waits_for`].
    pub waits_for: Vec<String>,
}

/// What is to be done, in this order, once the state is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A new epoch begins: counts from nothing, and with another salt if it says so.
    Begin {
        /// Whether users are chosen anew.
        new_salt: bool,
    },
    /// The percentage changed. Up is moving users on, down is bringing them back as the state's
    /// `stop` says.
    Move {
        /// From.
        from: Percentage,
        /// To.
        to: Percentage,
    },
    /// Both sides are to be compared; the answer is [`Input::Validated`].
    Validate,
    /// People are to be told.
    Tell {
        /// Whether somebody should be woken.
        urgent: bool,
        /// What happened and why.
        text: String,
    },
}

/// Why something is not done, and what to do instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// The next state after an input at `now` (milliseconds since 1970), and what is to be done.
pub fn step(
    schedule: &Schedule,
    state: &State,
    input: Input,
    now: u64,
) -> Result<(State, Vec<Effect>), Refused> {
    let mut course = Transition::new(schedule, state.clone(), now);
    match input {
        Input::Start { reason, waits_for, force } => course.start(reason, &waits_for, force)?,
        Input::Pause { reason } => course.pause(reason)?,
        Input::Resume => course.resume()?,
        Input::Advance => course.hurry()?,
        Input::Approve => course.approve()?,
        Input::Set { percentage, reason } => course.set(percentage, reason)?,
        Input::Complete => course.complete()?,
        Input::Stop { how: Stop::Freeze, reason } => course.freeze(reason)?,
        Input::Stop { how, reason } => course.go_back(Status::RolledBack, how, reason),
        Input::EmergencyStop { how, reason } => course.go_back(Status::Failed, how, reason),
        Input::Validated { stage, differs } => course.validated(stage, differs),
        Input::Look(look) => course.look(&look),
    }
    Ok(course.outcome())
}

#[cfg(test)]
mod tests;
