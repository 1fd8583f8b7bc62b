//! The connected shards, and which of them owns a channel.

use std::sync::Arc;

use parking_lot::RwLock;

use super::{context::Context, shard::Shard, slot_map::SlotMap};
use crate::protocol::Channel;

/// The connected shards.
#[derive(Debug)]
pub(super) struct Shards {
    pub(super) context: Arc<Context>,
    connected: RwLock<Vec<Arc<Shard>>>,
}

impl Shards {
    /// No shards yet.
    pub(super) fn new(context: Arc<Context>) -> Self {
        Self { context, connected: RwLock::default() }
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Arc<Shard>> {
        self.connected.read().clone()
    }

    /// The shard that owns a channel, if one does at the moment.
    pub(super) fn owner(&self, channel: &Channel) -> Option<Arc<Shard>> {
        let slots = self.context.slots();
        let name = slots.owner(channel)?;
        self.connected.read().iter().find(|shard| shard.name == name).cloned()
    }

    /// Replaces the shards and their slots. Shards that are not among them any more are closed.
    pub(super) fn replace(&self, shards: Vec<Arc<Shard>>, slots: Vec<Option<u16>>) {
        let names: Vec<_> = shards.iter().map(|shard| shard.name.clone()).collect();
        let before = std::mem::replace(&mut *self.connected.write(), shards);
        for shard in before {
            if !names.contains(&shard.name) {
                shard.close();
            }
        }
        self.context.slots.send_replace(Arc::new(SlotMap { shards: names, slots }));
    }
}
