//! One rollout: what it moves, to whom, how it is to go, and how far it has come. Pure: what may become
//! of it, given what somebody asks for.
//!
//! It knows no store, no clock and no connection. Who belongs where is [`super::assignment`]'s business,
//! and how it goes up and back that of [`super::schedule`].

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{
    cohort::{HashRule, Percentage},
    guardrail::Guardrails,
    schedule::{self, Effect, Input, Look, Refused, Schedule, State, Status, Stop},
};

/// A rollout of one component from its old side to its new one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flag {
    /// What is rolled out.
    pub component: Component,
    /// The old side.
    pub from: Side,
    /// The new side.
    pub to: Side,
    /// Off means that everybody belongs on the old side.
    pub enabled: bool,
    /// What a user's place is computed with; empty for the component's name.
    pub salt: String,
    /// How a user's place is computed.
    pub algorithm: HashRule,
    /// Who is eligible.
    pub conditions: Conditions,
    /// Whether clients may take the old side when the new one cannot be reached.
    pub fallback_enabled: bool,
    /// How it is to go up.
    pub schedule: Schedule,
    /// What it must not do.
    pub guardrails: Guardrails,
    /// How far it has come.
    pub course: State,
    /// One more with each change that somebody should know of; a look that changes nothing is none.
    pub version: u64,
    /// Who last changed it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub changed_by: String,
    /// When, in milliseconds since 1970.
    #[serde(default)]
    pub changed_at: u64,
}

/// The rollout that moves clients from SSE to WebSocket.
pub const TRANSPORT: &str = "websocket-transport";

/// The rollout that moves users from an old system behind the gateway to the gateway itself.
pub const TAKEOVER: &str = "legacy-takeover";

/// What is rolled out.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Component(String);

/// One side of a rollout.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Side(String);

/// Who is eligible. Evaluated before hashing, and alike for both sides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Conditions {
    /// Only in these environments; empty for all.
    pub environment: Vec<String>,
    /// Only users of these groups; empty for all.
    pub user_groups: Vec<String>,
    /// These users belong on the new side whatever the percentage, and count in no comparison.
    pub allow: Vec<String>,
    /// These users belong on the old side, and count in no comparison.
    pub deny: Vec<String>,
}

/// What is to become of a rollout.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Begin, or begin anew after an end.
    Start {
        /// With so many, where there is no schedule.
        percentage: Option<Percentage>,
        /// Keep the salt of the time before, and with it the same users.
        keep_salt: bool,
        /// Do not wait until it has cooled down.
        force: bool,
        /// What has to be completed first.
        waits_for: Vec<String>,
    },
    /// Say how it is to be.
    Set(Box<Settings>),
    /// Hold it where it is.
    Pause,
    /// Go on.
    Resume,
    /// Do not wait for the rest of the bake time.
    Advance,
    /// Somebody approves of the next step.
    Approve,
    /// Everybody is on the new side, for good.
    Complete,
    /// End it: frozen where it is, or with everybody back.
    Stop(Stop),
    /// Off, and everybody back.
    EmergencyStop(Stop),
    /// Both sides were compared.
    Validated {
        /// In which stage.
        stage: u64,
        /// What was found to differ.
        differs: Option<String>,
    },
    /// It was looked at.
    Look(Box<Look>),
}

/// What can be said of a rollout directly; what is left out stays.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// Whether it counts at all.
    pub enabled: Option<bool>,
    /// The share of users for the new side.
    pub rollout_percentage: Option<Percentage>,
    /// Who is eligible.
    pub conditions: Option<Conditions>,
    /// Whether clients may fall back.
    pub fallback_enabled: Option<bool>,
    /// What a user's place is computed with.
    pub salt: Option<String>,
    /// How it is computed.
    pub algorithm: Option<HashRule>,
    /// The old side, for a component that is new here.
    pub from: Option<Side>,
    /// The new side, for a component that is new here.
    pub to: Option<Side>,
    /// How it is to go up.
    pub schedule: Option<Schedule>,
    /// What it must not do.
    pub guardrails: Option<Guardrails>,
}

impl Flag {
    /// A rollout that nobody has begun. The two that the gateway knows have their sides already.
    ///
    /// # Errors
    /// When it is another component and its sides are not named.
    pub fn new(component: Component, settings: &Settings) -> Result<Self, Refused> {
        let (from, to) = match component.as_str() {
            TRANSPORT => (Side("sse".to_owned()), Side("websocket".to_owned())),
            TAKEOVER => (Side("legacy".to_owned()), Side("gateway".to_owned())),
            _ => settings.from.clone().zip(settings.to.clone()).ok_or_else(|| {
                Refused(format!("{component} is new here: name its sides, \"from\" and \"to\""))
            })?,
        };
        Ok(Self {
            component,
            from,
            to,
            enabled: true,
            salt: String::new(),
            algorithm: HashRule::default(),
            conditions: Conditions::default(),
            fallback_enabled: true,
            schedule: Schedule::default(),
            guardrails: Guardrails::default(),
            course: State::default(),
            version: 0,
            changed_by: String::new(),
            changed_at: 0,
        })
    }

    /// Counts a change: a new version, made now by this actor.
    pub fn mark_changed(&mut self, now: u64, by: &str) {
        self.version += 1;
        // A clock that is behind must not make the newer version look older.
        self.changed_at = now.max(self.changed_at + 1);
        by.clone_into(&mut self.changed_by);
    }

    /// The share of eligible users that belongs on the new side as it stands now.
    pub fn effective(&self) -> Percentage {
        if self.enabled { self.course.percentage } else { Percentage::ZERO }
    }

    /// What it becomes for this reason at `now` (milliseconds since 1970), and what is to be done then.
    ///
    /// # Errors
    /// Says why it cannot, and what could.
    pub fn after(
        &self,
        change: &Change,
        reason: &str,
        now: u64,
    ) -> Result<(Self, Vec<Effect>), Refused> {
        let mut next = self.clone();
        let said = reason.to_owned();
        let input = match change {
            Change::Start { percentage, keep_salt, force, waits_for } => {
                next.schedule.keep_salt |= *keep_salt;
                let (waits_for, force) = (waits_for.clone(), *force);
                let mut acts = next.go(Input::Start { reason: said, waits_for, force }, now)?;
                next.schedule.keep_salt = self.schedule.keep_salt;
                next.enabled = true;
                if let Some(percentage) = *percentage {
                    acts.extend(next.begin_at(percentage, reason, now)?);
                }
                return Ok((next.salted(&acts), acts));
            }
            Change::Set(settings) => {
                let acts = next.set(settings, reason, now)?;
                return Ok((next.salted(&acts), acts));
            }
            Change::EmergencyStop(how) => {
                next.enabled = false;
                Input::EmergencyStop { how: *how, reason: said }
            }
            Change::Pause => Input::Pause { reason: said },
            Change::Resume => Input::Resume,
            Change::Advance => Input::Advance,
            Change::Approve => Input::Approve,
            Change::Complete => Input::Complete,
            Change::Stop(how) => Input::Stop { how: *how, reason: said },
            Change::Validated { stage, differs } => {
                Input::Validated { stage: *stage, differs: differs.clone() }
            }
            Change::Look(look) => Input::Look(Look::clone(look)),
        };
        let acts = next.go(input, now)?;
        Ok((next, acts))
    }

    /// Whether it has come to an end from which only a new start leads.
    pub fn has_ended(&self) -> bool {
        matches!(self.course.status, Status::RolledBack | Status::Stopped | Status::Failed)
    }

    fn go(&mut self, input: Input, now: u64) -> Result<Vec<Effect>, Refused> {
        let (course, acts) = schedule::step(&self.schedule, &self.course, input, now)?;
        self.course = course;
        Ok(acts)
    }

    fn begin_at(
        &mut self,
        percentage: Percentage,
        reason: &str,
        now: u64,
    ) -> Result<Vec<Effect>, Refused> {
        if !self.schedule.steps.is_empty() {
            return Err(Refused(
                "its schedule says where it begins: leave the percentage out".into(),
            ));
        }
        self.go(Input::Set { percentage, reason: reason.to_owned() }, now)
    }

    /// Those who met a fault first the last time are not to meet it first again. The salt of another
    /// system's rule is that system's.
    fn salted(mut self, acts: &[Effect]) -> Self {
        let own = self.algorithm == HashRule::CrossfadeV1;
        if own && acts.contains(&Effect::Begin { new_salt: true }) {
            self.salt = format!("{}.{}", self.component, self.course.epoch);
        }
        self
    }

    fn set(&mut self, settings: &Settings, reason: &str, now: u64) -> Result<Vec<Effect>, Refused> {
        let other = |said: &Option<Side>, is: &Side| said.as_ref().is_some_and(|side| side != is);
        if other(&settings.from, &self.from) || other(&settings.to, &self.to) {
            return Err(Refused(format!("the sides of {} cannot be changed", self.component)));
        }
        let reshuffles = settings.salt.as_ref().is_some_and(|salt| *salt != self.salt)
            || settings.algorithm.is_some_and(|algorithm| algorithm != self.algorithm);
        let begun = self.course.status != Status::Pending && !self.has_ended();
        if reshuffles && begun {
            return Err(Refused(format!(
                "a new salt or algorithm would move users of {} at random while it is under way: \
                 roll it back first, then start it anew",
                self.component
            )));
        }
        if self.has_ended() && settings.enabled == Some(true) && !self.enabled {
            return Err(Refused(format!("{} was ended: start it again", self.component)));
        }
        self.take(settings);
        let wrong = |err: &dyn fmt::Display| Refused(err.to_string());
        self.schedule.check(self.component.as_str()).map_err(|err| wrong(&err))?;
        self.guardrails.check().map_err(|err| wrong(&err))?;
        match settings.rollout_percentage {
            Some(percentage) => self.go(Input::Set { percentage, reason: reason.to_owned() }, now),
            None => Ok(Vec::new()),
        }
    }

    fn take(&mut self, settings: &Settings) {
        fn take<T: Clone>(place: &mut T, said: &Option<T>) {
            if let Some(said) = said {
                place.clone_from(said);
            }
        }
        take(&mut self.enabled, &settings.enabled);
        take(&mut self.conditions, &settings.conditions);
        take(&mut self.fallback_enabled, &settings.fallback_enabled);
        take(&mut self.salt, &settings.salt);
        take(&mut self.algorithm, &settings.algorithm);
        take(&mut self.schedule, &settings.schedule);
        take(&mut self.guardrails, &settings.guardrails);
    }
}

impl Change {
    /// As the journal and the shell call it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Start { .. } => "start",
            Self::Set(_) => "set",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Advance => "advance",
            Self::Approve => "approve",
            Self::Complete => "complete",
            Self::Stop(Stop::Freeze) => "stop",
            Self::Stop(_) => "rollback",
            Self::EmergencyStop(_) => "emergency-stop",
            Self::Validated { .. } => "validated",
            Self::Look(_) => "look",
        }
    }

    /// Whether it only ever takes users from the new side: it is honoured even where it cannot be
    /// written down.
    pub const fn is_stop(&self) -> bool {
        matches!(self, Self::Stop(_) | Self::EmergencyStop(_))
    }
}

/// Why a text is no name of a component or a side.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name: write 1 to 64 of a-z 0-9 - _ .")]
pub struct NameError(String);

fn name(raw: &str) -> Result<String, NameError> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    match raw.len() {
        1..=64 if raw.chars().all(fits) => Ok(raw.to_owned()),
        _ => Err(NameError(raw.chars().take(64).collect())),
    }
}

macro_rules! named {
    ($kind:ident) => {
        impl $kind {
            /// The name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $kind {
            type Err = NameError;

            fn from_str(raw: &str) -> Result<Self, NameError> {
                name(raw).map(Self)
            }
        }

        impl TryFrom<String> for $kind {
            type Error = NameError;

            fn try_from(raw: String) -> Result<Self, NameError> {
                raw.parse()
            }
        }

        impl From<$kind> for String {
            fn from(name: $kind) -> Self {
                name.0
            }
        }

        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

named!(Component);
named!(Side);

#[cfg(test)]
mod tests;
