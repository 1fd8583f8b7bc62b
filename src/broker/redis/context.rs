//! What the parts of one Redis broker share.

use std::{sync::Arc, time::Duration};

use dashmap::DashSet;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, timeout_at},
};

use super::{backoff::Backoff, library::Keys, slot_map::SlotMap};
use crate::{broker::Incoming, protocol::Channel};

/// What the parts of one broker share.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) keys: Keys,
    /// Notifications are published on the channel's shard (`SPUBLISH`), not everywhere.
    pub(super) sharded: bool,
    pub(super) timeout: Duration,
    pub(super) backoff: Backoff,
    /// The channels that the node subscribes to. Subscribers catch up with it.
    pub(super) interest: DashSet<Channel>,
    pub(super) feed: mpsc::Sender<Incoming>,
    pub(super) slots: watch::Sender<Arc<SlotMap>>,
    /// Notified when the slots do not fit what a server answered.
    pub(super) stale: Notify,
}

impl Context {
    /// The slots as they are known now.
    pub(super) fn slots(&self) -> Arc<SlotMap> {
        Arc::clone(&self.slots.borrow())
    }

    /// Has the slots read again, and waits for a change, a second at most.
    pub(super) async fn refresh_slots(&self, deadline: Instant) {
        let mut slots = self.slots.subscribe();
        self.stale.notify_one();
        let latest = Instant::now() + Duration::from_secs(1);
        let _ = timeout_at(deadline.min(latest), slots.changed()).await;
    }
}
