//! Removes members whose grace is over and nodes that are dead. Of all nodes that could, one does: the
//! coordinator.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::{
    message::Payload,
    shared::{Cluster, SYNC_TIMEOUT, State},
};
use crate::{
    lifecycle::Stage,
    presence::{PresenceUpdate, ReleasedMember, Snapshot},
};

/// How often members and nodes are checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// An update that had no effect, because it was lost or its sender was cut off, is sent again after
/// this time, by any node.
const RESEND: Duration = Duration::from_secs(2);

/// Checks members and nodes until the stage stops.
pub(super) async fn keep_house(cluster: Arc<Cluster>, stage: Stage) {
    let mut ticks = interval(CHECK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => cluster.check(),
            () = stage.stopping().cancelled() => return,
        }
    }
}

impl Cluster {
    fn check(&self) {
        let now = Instant::now();
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let waited = state.following_since.is_some_and(|since| SYNC_TIMEOUT <= now - since);
        if state.joining.is_some() && waited {
            warn!(
                "no node has sent a snapshot of presence: this one starts from what each node sends"
            );
            self.finish_join(state, Snapshot::default());
            self.send(state, &Payload::Presence(PresenceUpdate::Resync));
        }
        self.send_snapshots(state);
        let coordinates = self.is_coordinator(state, now);
        let connected = self.is_connected(state, now);
        let mut updates = Vec::new();
        for (released, tries) in due(state, now) {
            if connected && (coordinates || 0 < tries) {
                let ReleasedMember { channel, session, at } = released.clone();
                updates.push(PresenceUpdate::Expire(channel, session, at));
            }
            state.released.push_back((now + RESEND, released, tries + u32::from(connected)));
        }
        if connected {
            let resend = if coordinates { Duration::ZERO } else { RESEND };
            updates.extend(dead_nodes(state, now, self.config.node_timeout + resend));
        }
        for update in updates {
            self.send(state, &Payload::Presence(update));
        }
    }

    /// Whether this node receives its own messages: one that does not receives no others either, and
    /// must not judge them by their silence.
    fn is_connected(&self, state: &State, now: Instant) -> bool {
        let recently = self.config.node_timeout / 2;
        state.last_heard.get(&self.me).is_some_and(|heard| now - *heard < recently)
    }

    /// Whether this node coordinates: it is the first of those that are alive and have joined.
    pub(super) fn is_coordinator(&self, state: &State, now: Instant) -> bool {
        let timeout = self.config.node_timeout;
        let alive = state.last_heard.iter().filter(|(node, heard)| {
            now - **heard < timeout && !state.newcomers.contains_key(*node)
        });
        self.is_connected(state, now)
            && state.joining.is_none()
            && alive.map(|(node, _)| *node).min() == Some(self.me)
    }
}

/// The updates that report nodes as dead which have been silent for `timeout`.
fn dead_nodes(state: &mut State, now: Instant, timeout: Duration) -> Vec<PresenceUpdate> {
    let State { roster, last_heard, reported_dead, .. } = state;
    // Nodes that are not in the roster hold no members: they are only forgotten.
    last_heard.retain(|node, heard| roster.last_heard(*node).is_some() || now - *heard < timeout);
    let mut updates = Vec::new();
    for (node, at) in roster.nodes() {
        let is_silent = timeout <= now - *last_heard.entry(node).or_insert(now);
        let reported_lately =
            reported_dead.get(&node).is_some_and(|reported| now - *reported < RESEND);
        if is_silent && !reported_lately {
            info!(%node, "a node has been silent for cluster.node_timeout: its sessions have left");
            reported_dead.insert(node, now);
            updates.push(PresenceUpdate::NodeDead(node, at));
        }
    }
    updates
}

/// Released members whose grace is over and that did not reconnect.
fn due(state: &mut State, now: Instant) -> Vec<(ReleasedMember, u32)> {
    let mut due = Vec::new();
    while let Some((until, ..)) = state.released.front()
        && *until <= now
        && let Some((_, member, tries)) = state.released.pop_front()
    {
        if state.roster.released(&member.channel, member.session) == Some(member.at) {
            due.push((member, tries));
        }
    }
    due
}
