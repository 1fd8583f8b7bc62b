//! Section `[cluster]`: presence across nodes, and when a node counts as dead.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::broker::Retention;

/// Section `[cluster]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterConfig {
    /// How long a disconnected session may take to reconnect before it leaves its channels' presence.
    #[serde(with = "humantime_serde")]
    pub presence_grace: Duration,
    /// Changes of presence are gathered for this long, then sent as one diff.
    #[serde(with = "humantime_serde")]
    pub presence_batch: Duration,
    /// Subscribers of channels with up to this many members receive the members, of larger ones the
    /// count.
    pub presence_list: usize,
    /// A node that is silent for this long is dead, and its sessions have left.
    #[serde(with = "humantime_serde")]
    pub node_timeout: Duration,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            presence_grace: Duration::from_secs(5),
            presence_batch: Duration::from_millis(50),
            presence_list: 1000,
            node_timeout: Duration::from_secs(30),
        }
    }
}

impl ClusterConfig {
    /// How long the nodes' own log is kept: long enough to find out which nodes are alive.
    pub fn retention(&self) -> Retention {
        let age = (self.node_timeout * 4).max(Duration::from_secs(60));
        Retention { events: 100_000, age, dedup: Duration::from_secs(60) }
    }

    /// How often a node sends something in any case.
    pub(super) fn heartbeat(&self) -> Duration {
        self.node_timeout / 6
    }
}
