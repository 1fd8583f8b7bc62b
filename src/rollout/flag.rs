//! One rollout: what it moves, to how many, and how it stands. Pure: what may become of it, given
//! what somebody asks for.
//!
//! It knows no store, no clock and no connection. Who belongs where is [`super::verdict`]'s business.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::cohort::{HashRule, Percentage};

/// A rollout of one component from its old side to its new one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// How it stands.
    pub status: Status,
    /// The share of eligible users that belongs on the new side while nothing stops it.
    #[serde(rename = "rolloutPercentage")]
    pub percentage: Percentage,
    /// What a user's place is computed with; empty for the component's name.
    pub salt: String,
    /// How a user's place is computed.
    pub algorithm: HashRule,
    /// Who is eligible.
    pub conditions: Conditions,
    /// Whether clients may take the old side when the new one cannot be reached.
    pub fallback_enabled: bool,
    /// How often it was started. Figures of one epoch say nothing about another.
    pub epoch: u64,
    /// How it was stopped, while it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<StopMode>,
    /// Why it stands as it does, in the words of who last changed it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
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

/// How a rollout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Defined, not begun.
    Pending,
    /// Under way.
    Running,
    /// Held where it is.
    Paused,
    /// Everybody has been moved, for good.
    Completed,
    /// Turned back.
    RolledBack,
    /// Ended by somebody, with everybody where they were.
    Stopped,
    /// Ended by the emergency stop.
    Failed,
}

/// What becomes of those who are on the new side when a rollout is stopped, from soft to hard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopMode {
    /// Nobody new is sent there. Who is there stays, and may come back to it.
    Freeze,
    /// Nobody new is sent there. Who is there stays until the connection ends.
    StopAndKeep,
    /// Who is there is asked back at the emergency rate, who came last first.
    #[default]
    DrainBack,
    /// Who is there is cut off, and comes back on the old side.
    Hard,
}

/// What somebody wants to become of a rollout.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Begin, or begin anew after an end.
    Start {
        /// With so many; without it as many as it says already.
        percentage: Option<Percentage>,
        /// Keep the salt of the time before, and with it the same users.
        keep_salt: bool,
    },
    /// Say how it is to be.
    Set(Settings),
    /// Hold it where it is.
    Pause,
    /// Go on.
    Resume,
    /// Everybody belongs on the new side, for good.
    Complete,
    /// Turn back.
    Rollback(StopMode),
    /// End it with everybody where they are.
    Stop(StopMode),
    /// Off, and everybody back.
    EmergencyStop(StopMode),
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
}

/// Why something cannot become of a rollout.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

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
            status: Status::Pending,
            percentage: Percentage::ZERO,
            salt: String::new(),
            algorithm: HashRule::default(),
            conditions: Conditions::default(),
            fallback_enabled: true,
            epoch: 0,
            stop: None,
            reason: String::new(),
            changed_by: String::new(),
            changed_at: 0,
        })
    }

    /// The share of eligible users that belongs on the new side as it stands now.
    pub fn effective(&self) -> Percentage {
        let stopped = self.stop.is_some_and(|mode| mode != StopMode::Freeze);
        let begun = !matches!(self.status, Status::Pending);
        if self.enabled && begun && !stopped { self.percentage } else { Percentage::ZERO }
    }

    /// What it becomes.
    ///
    /// # Errors
    /// Says why it cannot, and what could.
    pub fn after(&self, change: &Change) -> Result<Self, Refused> {
        let mut next = self.clone();
        match change {
            Change::Start { percentage, keep_salt } => next.start(*percentage, *keep_salt)?,
            Change::Set(settings) => next.set(settings)?,
            Change::Pause => next.go("pause", &[Status::Running], Status::Paused)?,
            Change::Resume => next.go("resume", &[Status::Paused], Status::Running)?,
            Change::Complete => {
                next.go("complete", &[Status::Running, Status::Paused], Status::Completed)?;
                next.percentage = Percentage::ALL;
            }
            Change::Rollback(mode) => next.halt(Status::RolledBack, *mode),
            Change::Stop(mode) => next.halt(Status::Stopped, *mode),
            Change::EmergencyStop(mode) => {
                next.halt(Status::Failed, *mode);
                next.enabled = false;
            }
        }
        Ok(next)
    }

    /// Whether it has come to an end from which only a new start leads.
    pub fn has_ended(&self) -> bool {
        matches!(self.status, Status::RolledBack | Status::Stopped | Status::Failed)
    }

    fn start(&mut self, percentage: Option<Percentage>, keep_salt: bool) -> Result<(), Refused> {
        if matches!(self.status, Status::Running | Status::Paused) {
            return Err(Refused(format!(
                "{} is {} already: set its percentage, or pause, resume, advance it",
                self.component, self.status
            )));
        }
        let own = self.salt.is_empty() || self.salt == own_salt(&self.component, self.epoch);
        if 0 < self.epoch && !keep_salt && own && self.algorithm == HashRule::CrossfadeV1 {
            // Those who met a fault first the last time are not to meet it first again.
            self.salt = own_salt(&self.component, self.epoch + 1);
        }
        if self.has_ended() && percentage.is_none() {
            // What it had come to is not where it begins again.
            self.percentage = Percentage::ZERO;
        }
        self.epoch += 1;
        self.enabled = true;
        self.status = Status::Running;
        self.stop = None;
        self.percentage = percentage.unwrap_or(self.percentage);
        Ok(())
    }

    fn set(&mut self, settings: &Settings) -> Result<(), Refused> {
        let (sides, other) = ((&self.from, &self.to), (&settings.from, &settings.to));
        if other.0.as_ref().is_some_and(|from| from != sides.0)
            || other.1.as_ref().is_some_and(|to| to != sides.1)
        {
            return Err(Refused(format!("the sides of {} cannot be changed", self.component)));
        }
        let reshuffles = settings.salt.as_ref().is_some_and(|salt| *salt != self.salt)
            || settings.algorithm.is_some_and(|algorithm| algorithm != self.algorithm);
        if reshuffles && Percentage::ZERO < self.effective() {
            return Err(Refused(format!(
                "a new salt or algorithm would move users of {} at random while it is at {}: \
                 roll it back first, or start it anew",
                self.component, self.percentage
            )));
        }
        let wanted = settings.rollout_percentage.unwrap_or(self.percentage);
        let turns_on = settings.enabled == Some(true) && !self.enabled;
        if self.has_ended() && (self.percentage < wanted || turns_on) {
            return Err(Refused(format!(
                "{} was ended ({}): start it again to raise it",
                self.component, self.status
            )));
        }
        self.percentage = wanted;
        self.enabled = settings.enabled.unwrap_or(self.enabled);
        if self.status == Status::Pending && Percentage::ZERO < wanted && self.enabled {
            (self.status, self.epoch) = (Status::Running, self.epoch + 1);
        }
        if self.status == Status::Completed && wanted < Percentage::ALL {
            self.status = Status::Running;
        }
        self.conditions = settings.conditions.clone().unwrap_or_else(|| self.conditions.clone());
        self.fallback_enabled = settings.fallback_enabled.unwrap_or(self.fallback_enabled);
        self.salt = settings.salt.clone().unwrap_or_else(|| self.salt.clone());
        self.algorithm = settings.algorithm.unwrap_or(self.algorithm);
        Ok(())
    }

    fn go(&mut self, verb: &str, from: &[Status], to: Status) -> Result<(), Refused> {
        if !from.contains(&self.status) {
            return Err(Refused(format!(
                "{} is {}: there is nothing to {verb}",
                self.component, self.status
            )));
        }
        self.status = to;
        Ok(())
    }

    /// A stop always holds, and never becomes softer by another one.
    fn halt(&mut self, status: Status, mode: StopMode) {
        let before = self.stop.map_or(0, StopMode::strength);
        if before < mode.strength() {
            self.stop = Some(mode);
        }
        self.status = status;
    }
}

fn own_salt(component: &Component, epoch: u64) -> String {
    format!("{component}.{epoch}")
}

impl StopMode {
    fn strength(self) -> u8 {
        match self {
            Self::Freeze => 1,
            Self::StopAndKeep => 2,
            Self::DrainBack => 3,
            Self::Hard => 4,
        }
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
            Self::Complete => "complete",
            Self::Rollback(_) => "rollback",
            Self::Stop(_) => "stop",
            Self::EmergencyStop(_) => "emergency-stop",
        }
    }

    /// Whether it only ever takes users from the new side: it is honoured even where it cannot be
    /// written down.
    pub const fn is_stop(&self) -> bool {
        matches!(self, Self::Rollback(_) | Self::Stop(_) | Self::EmergencyStop(_))
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

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Completed => "completed",
            Self::RolledBack => "rolled back",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flag() -> Flag {
        Flag::new(TRANSPORT.parse().unwrap(), &Settings::default()).unwrap()
    }

    fn percent(percent: f64) -> Percentage {
        Percentage::new(percent).unwrap()
    }

    fn set(share: f64) -> Change {
        let rollout_percentage = Some(percent(share));
        Change::Set(Settings { rollout_percentage, ..Settings::default() })
    }

    fn begun(share: f64) -> Flag {
        flag().after(&Change::Start { percentage: Some(percent(share)), keep_salt: false }).unwrap()
    }

    #[test]
    fn a_rollout_runs_once_somebody_is_on_its_new_side() {
        assert_eq!(flag().effective(), Percentage::ZERO);
        let running = flag().after(&set(25.0)).unwrap();
        assert_eq!((running.status, running.epoch), (Status::Running, 1));
        assert_eq!(running.effective(), percent(25.0));
        let off = Settings { enabled: Some(false), ..Settings::default() };
        assert_eq!(running.after(&Change::Set(off)).unwrap().effective(), Percentage::ZERO);
    }

    #[test]
    fn an_end_is_left_only_by_a_start_with_another_epoch_and_other_first_users() {
        let ended = begun(50.0).after(&Change::Rollback(StopMode::DrainBack)).unwrap();
        assert_eq!(ended.effective(), Percentage::ZERO);
        assert!(ended.after(&set(60.0)).unwrap_err().0.contains("start it again"));
        assert!(ended.after(&Change::Resume).is_err());
        let again = Change::Start { percentage: None, keep_salt: false };
        let again = ended.after(&again).unwrap();
        assert_eq!((again.epoch, again.stop, again.percentage), (2, None, Percentage::ZERO));
        assert_ne!(again.salt, ended.salt);
        let same = Change::Start { percentage: Some(percent(1.0)), keep_salt: true };
        assert_eq!(ended.after(&same).unwrap().salt, ended.salt);
    }

    #[test]
    fn a_stop_holds_in_every_state_and_never_gets_softer() {
        let states = [flag(), begun(5.0), begun(5.0).after(&Change::Pause).unwrap()];
        for state in states {
            let hard = state.after(&Change::EmergencyStop(StopMode::Hard)).unwrap();
            assert_eq!((hard.status, hard.enabled), (Status::Failed, false));
            let softer = hard.after(&Change::Rollback(StopMode::Freeze)).unwrap();
            assert_eq!(softer.stop, Some(StopMode::Hard));
        }
    }

    #[test]
    fn users_are_not_shuffled_while_somebody_is_on_the_new_side() {
        let salted = Settings { salt: Some("other".to_owned()), ..Settings::default() };
        assert!(begun(5.0).after(&Change::Set(salted.clone())).is_err());
        assert_eq!(flag().after(&Change::Set(salted)).unwrap().salt, "other");
    }

    #[test]
    fn a_frozen_rollout_keeps_its_share_for_those_who_are_there() {
        let frozen = begun(40.0).after(&Change::Stop(StopMode::Freeze)).unwrap();
        assert_eq!(frozen.effective(), percent(40.0));
    }

    #[test]
    fn names_and_sides_are_checked() {
        assert!("a b".parse::<Component>().is_err() && "".parse::<Component>().is_err());
        let other: Component = "postgres-broker".parse().unwrap();
        assert!(Flag::new(other.clone(), &Settings::default()).is_err());
        let sides = Settings {
            from: "redis".parse().ok(),
            to: "postgres".parse().ok(),
            ..Settings::default()
        };
        let flag = Flag::new(other, &sides).unwrap();
        let json = serde_json::to_string(&flag).unwrap();
        assert_eq!(serde_json::from_str::<Flag>(&json).unwrap(), flag);
    }
}
