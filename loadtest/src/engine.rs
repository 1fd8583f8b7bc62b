//! Events flow while subscribers listen: what all scenarios have in common.
//!
//! A [`Plan`] says who sits where and what is published when; a [`Lane`](lane::Lane) is one target
//! with its subscribers and publishers, which runs the plan in turns; [`Figures`](figures::Figures)
//! keep what came of them.

pub mod desk;
pub mod figures;
pub mod lane;
pub mod sampler;
pub mod schedule;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use crate::{
    swarm::{Seating, Watch},
    target::Mix,
};

/// What is done to each target.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many listen.
    pub subscribers: usize,
    /// To how many channels, which they fill in turn.
    pub channels: usize,
    /// Connections that publish.
    pub publishers: usize,
    /// Whether all of them publish to each channel; otherwise a channel has one of its own.
    pub shared: bool,
    /// Bytes of an event's data.
    pub bytes: usize,
    /// Events that are due together, on one channel.
    pub burst: u64,
    /// The most events that go out in one call, when more than one is due.
    pub batch: usize,
    /// When publishing is due.
    pub pace: Pace,
    /// Turns of publishing end after so many bursts,
    pub publishes: u64,
    /// or after this time.
    pub time: Duration,
    /// An event that did not come within this time is given up.
    pub patience: Duration,
    /// How subscribers are watched.
    pub watch: Watch,
    /// Whether they say who they are, which a server may have to remember.
    pub names: bool,
}

/// When publishing is due.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// So often a second, whatever became of what was published before: an event's latency counts
    /// from when it was due.
    Rate(f64),
    /// As soon as all but so many bursts, the next one counted in, have reached everybody.
    Window(u64),
}

impl Plan {
    /// Who sits where.
    pub fn seating(&self, mix: &Mix) -> Seating {
        Seating {
            subscribers: self.subscribers,
            rooms: (0..self.channels).map(|number| Arc::from(format!("load-{number}"))).collect(),
            streams: if self.shared { self.publishers } else { 1 },
            mix: mix.clone(),
            names: self.names,
        }
    }
}
