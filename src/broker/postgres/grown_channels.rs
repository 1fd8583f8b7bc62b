//! The channels that this node's publishes made longer than their retention: the pruner trims them.

use std::collections::HashSet;

use crate::protocol::Channel;

/// Channels remembered. The pruner's scan of all channels finds the others, only later.
const CHANNELS_MAX: usize = 100_000;

/// The channels that have grown beyond their retention.
#[derive(Debug, Default)]
pub(super) struct GrownChannels(HashSet<Channel>);

impl GrownChannels {
    /// Adds a channel.
    pub(super) fn add(&mut self, channel: &Channel) {
        if self.0.len() < CHANNELS_MAX && !self.0.contains(channel) {
            self.0.insert(channel.clone());
        }
    }

    /// Takes all of them.
    pub(super) fn take(&mut self) -> Vec<Channel> {
        std::mem::take(&mut self.0).into_iter().collect()
    }
}
