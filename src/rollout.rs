//! Crossfading: who belongs on the new side, and whether it does well there.
//!
//! Everything here that judges is pure: time comes in as a number, and what was seen as counts.

pub mod board;
pub mod cohort;
pub mod flag;
pub mod guardrail;
pub mod measure;
mod percentage;
pub mod schedule;
pub mod statistics;
pub mod tally;
pub mod verdict;

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Section `[rollout]`, besides what concerns moving.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RolloutConfig {
    /// The store is looked at this often; all nodes agree within twice this time.
    #[serde(with = "humantime_serde")]
    pub poll: Duration,
    /// How fast clients are moved.
    pub drain: DrainConfig,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self { poll: Duration::from_millis(400), drain: DrainConfig::default() }
    }
}

/// Section `[rollout.drain]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrainConfig {
    /// Sessions per second that are asked to move, over all nodes.
    pub rate: u32,
    /// The same when a rollout is turned back.
    pub emergency_rate: u32,
    /// A client that is asked moves at a moment of its own within this time.
    #[serde(with = "humantime_serde")]
    pub within: Duration,
    /// A client that was asked and is still there is asked again after this time.
    #[serde(with = "humantime_serde")]
    pub ask_again: Duration,
}

impl Default for DrainConfig {
    fn default() -> Self {
        Self {
            rate: 200,
            emergency_rate: 2000,
            within: Duration::from_secs(1),
            ask_again: Duration::from_secs(60),
        }
    }
}
