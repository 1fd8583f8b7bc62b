//! What the gateway observes of a user's sessions, and which of it is a failure.

use serde::{Deserialize, Serialize};

/// A way in which a user's session can fail. Each can occur once or many times in a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// A connection could not be established.
    ConnectFailed,
    /// A session reconnected within a minute, without a goodbye and without the gateway having
    /// closed it.
    Interrupted,
    /// A session could not be resumed.
    ResumeFailed,
    /// The events that a session had missed were no longer in the log.
    Reset,
    /// An event was not delivered.
    Dropped,
    /// Presence reported that a member left who had not.
    Flapped,
    /// A request failed.
    RequestFailed,
    /// An event was delivered later than the latency objective.
    SlowDelivery,
    /// A connection that the gateway asked for, to migrate a client, could not be established.
    MigrationFailed,
    /// The client used the old side because the new one was unreachable.
    FellBack,
}

/// The users a failure can happen to, and so is compared with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum RiskSet {
    /// Users with a session.
    Connected,
    /// Users who try to connect, who may not have had a session before.
    Connecting,
    /// Users of one arm only, so the failure is no evidence.
    OneArm,
}

impl Failure {
    /// Number of failure kinds.
    pub const COUNT: usize = 10;
    /// All kinds, in the order of the arrays in totals.
    pub const ALL: [Self; Self::COUNT] = [
        Self::ConnectFailed,
        Self::Interrupted,
        Self::ResumeFailed,
        Self::Reset,
        Self::Dropped,
        Self::Flapped,
        Self::RequestFailed,
        Self::SlowDelivery,
        Self::MigrationFailed,
        Self::FellBack,
    ];

    pub(super) fn risk_set(self) -> RiskSet {
        match self {
            Self::ConnectFailed | Self::ResumeFailed | Self::Reset => RiskSet::Connecting,
            Self::MigrationFailed | Self::FellBack => RiskSet::OneArm,
            _ => RiskSet::Connected,
        }
    }

    pub(super) fn bit(self) -> u16 {
        1 << self as u8
    }
}

/// Something that happened to a user, as input of the counters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Observation<'a> {
    /// The user was assigned to an arm. Has to be recorded before any failure.
    Assigned,
    /// A session of the user started, and can be interrupted from now on.
    SessionStarted,
    /// A session ended for good, not merely disconnected with a chance to come back.
    SessionEnded,
    /// A connection attempt.
    Connect {
        /// Whether it succeeded.
        ok: bool,
        /// Whether it went to the new side.
        to_new: bool,
        /// Whether the gateway asked for it, to migrate the client. Only clients of one arm are
        /// asked, so it is no evidence.
        migrated: bool,
    },
    /// See [`Failure::Interrupted`].
    Interrupted,
    /// A session resumed from a position.
    Resumed(Resume),
    /// The new side was unreachable, and the client used the old one.
    FellBack,
    /// See [`Failure::Flapped`].
    Flapped,
    /// A request of the client completed.
    Request {
        /// Whether it succeeded.
        ok: bool,
    },
    /// Events were delivered; some deliveries were timed.
    Delivered {
        /// Number of events.
        events: u32,
        /// Publish-to-receipt latencies in milliseconds.
        latencies: &'a [f64],
    },
    /// Events were not delivered.
    Dropped {
        /// Number of events.
        events: u32,
    },
    /// Memory of a session, as this node accounts for it.
    Memory {
        /// In bytes.
        bytes: u64,
    },
}

/// Outcome of resuming a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// It continues at its position.
    Complete,
    /// It continues at the head of the log, because its position is gone.
    Reset,
    /// It could not be resumed.
    Failed,
}
