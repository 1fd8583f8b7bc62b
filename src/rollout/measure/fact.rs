//! What can happen to a user, and what of it is trouble.

use serde::{Deserialize, Serialize};

/// What can go wrong for a user, once or many times in a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// A connection could not be made.
    ConnectFailed,
    /// A session came back within a minute, without goodbye and not by our doing.
    Interrupted,
    /// A session could not go on.
    ResumeFailed,
    /// What a session had missed was gone.
    Reset,
    /// An event did not arrive.
    Dropped,
    /// Presence said that a member left who had not.
    Flapped,
    /// A request failed.
    Error,
    /// An event arrived later than the objective.
    Slow,
    /// A connection that we asked for could not be made.
    MoveFailed,
    /// The old side had to be taken instead of the new one.
    FellBack,
}

/// Whom a trouble can befall.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Exposed {
    /// Who is here.
    Present,
    /// Who tries something, and may never have been here.
    Comers,
    /// Users of one arm only, so it is no evidence.
    OneArm,
}

impl Failure {
    /// How many there are.
    pub const COUNT: usize = 10;
    /// In the order in which sums list them.
    pub const ALL: [Self; Self::COUNT] = [
        Self::ConnectFailed,
        Self::Interrupted,
        Self::ResumeFailed,
        Self::Reset,
        Self::Dropped,
        Self::Flapped,
        Self::Error,
        Self::Slow,
        Self::MoveFailed,
        Self::FellBack,
    ];

    pub(super) fn exposed(self) -> Exposed {
        match self {
            Self::ConnectFailed | Self::ResumeFailed | Self::Reset => Exposed::Comers,
            Self::MoveFailed | Self::FellBack => Exposed::OneArm,
            _ => Exposed::Present,
        }
    }

    pub(super) fn bit(self) -> u16 {
        1 << self as u8
    }
}

/// What happened to a user.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fact<'a> {
    /// The arm was decided: to be told before anything can fail.
    Assigned,
    /// A session of the user is here, and can be interrupted.
    Arrived,
    /// It is gone for good; not while it may still come back.
    Left,
    /// A connection was tried.
    Connect {
        /// Whether it was made.
        ok: bool,
        /// Whether to the new side.
        to_new: bool,
        /// Whether because we asked for it. Only one arm is asked, so it is no evidence.
        moved: bool,
    },
    /// See [`Failure::Interrupted`].
    Interrupted,
    /// A session came back with a position.
    Resumed(Resume),
    /// The new side could not be had, and the old one was taken.
    FellBack,
    /// See [`Failure::Flapped`].
    Flapped,
    /// A request ended.
    Request {
        /// Whether well.
        ok: bool,
    },
    /// Events arrived, some of which were timed.
    Delivered {
        /// How many.
        events: u32,
        /// From publish to receipt, in milliseconds.
        latencies: &'a [f64],
    },
    /// Events did not arrive.
    Dropped {
        /// How many.
        events: u32,
    },
    /// What a session costs, as this node accounts for it.
    Memory {
        /// In bytes.
        bytes: u64,
    },
}

/// How it went when a session came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// It goes on where it was.
    Whole,
    /// It goes on at the head of a log.
    Reset,
    /// It does not go on.
    Failed,
}
