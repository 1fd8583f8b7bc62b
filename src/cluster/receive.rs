//! Applies the nodes' log: every node applies the same messages in the same order.

use std::time::{Duration, Instant};

use tracing::{info, trace, warn};

use super::{
    command::{Command, RequestOrigin},
    message::{ClusterMessage, Payload},
    shared::{Cluster, LOG, State},
};
use crate::{
    presence::{NodeId, Outcome, PresenceUpdate, Snapshot},
    protocol::{Event, Position},
};

/// How long a joining node waits for a snapshot from the coordinator before another node sends one.
const SNAPSHOT_PATIENCE: Duration = Duration::from_millis(300);

impl Cluster {
    /// Applies an event of the log. Returns what this node's connections have to do.
    pub(super) fn receive(&self, at: Position, event: &Event) -> Vec<Command> {
        let ClusterMessage { from, payloads } = match serde_json::from_str(event.data.as_str()) {
            Ok(message) => message,
            Err(err) => {
                warn!(%err, position = %at, "an event in {LOG} is no message of a node: ignored");
                return Vec::new();
            }
        };
        let mut state = self.state.lock();
        self.record_sender(&mut state, from, at);
        let mut commands = Vec::new();
        for payload in payloads {
            match payload {
                Payload::Presence(update) => self.receive_presence(&mut state, from, at, update),
                Payload::Snapshot { to, at, snapshot } if to == self.me => {
                    self.receive_snapshot(&mut state, at, snapshot);
                }
                Payload::Claim(claim) => commands.push(Command::Takeover { node: from, claim }),
                Payload::Disconnect(target) => commands.push(Command::Disconnect(target)),
                Payload::Request { number, session, frames } if from != self.me => {
                    let origin = RequestOrigin { node: from, number };
                    commands.push(Command::Perform { session, frames, origin });
                }
                Payload::Response { to, number, replies } if to == self.me => {
                    if let Some((_, pending)) = self.pending.remove(&number) {
                        let _ = pending.send(replies);
                    }
                }
                Payload::Snapshot { to, .. } => {
                    state.newcomers.remove(&to);
                }
                Payload::Request { .. } | Payload::Response { .. } => {}
            }
        }
        state.position = Some(at);
        self.send_snapshots(&mut state);
        if std::mem::take(&mut state.repeat_claims) {
            commands.push(Command::RepeatClaims);
        }
        if state.subscribers.has_changes() {
            self.presence_changed.notify_one();
        }
        self.metrics.members.set(i64::try_from(state.roster.total()).unwrap_or(i64::MAX));
        commands
    }

    /// Sends snapshots to joining nodes: as the coordinator at once, else when that took too long.
    pub(super) fn send_snapshots(&self, state: &mut State) {
        let now = Instant::now();
        let Some(at) = state.position.filter(|_| state.joining.is_none()) else { return };
        if state.newcomers.is_empty() {
            return;
        }
        let coordinates = self.is_coordinator(state, now);
        let is_due = |since: &Instant| coordinates || SNAPSHOT_PATIENCE <= now - *since;
        let due: Vec<_> = state
            .newcomers
            .iter()
            .filter(|(_, since)| is_due(since))
            .map(|(node, _)| *node)
            .collect();
        for to in due {
            state.newcomers.remove(&to);
            let snapshot = state.roster.snapshot();
            state.outbox.push_uncounted(&Payload::Snapshot { to, at, snapshot });
            self.outbox_filled.notify_one();
        }
    }

    /// Ends the join: starts from a snapshot, and applies what was received since.
    pub(super) fn finish_join(&self, state: &mut State, snapshot: Snapshot) {
        let received = state.joining.take().map(|joining| joining.received).unwrap_or_default();
        let now = Instant::now();
        for (node, _) in &snapshot.nodes {
            state.last_heard.entry(*node).or_insert(now);
        }
        let outcome = state.roster.restore(snapshot);
        self.record_outcome(state, outcome);
        for (from, at, update) in received {
            state.roster.node_heard(from, at);
            if let Some(update) = update {
                self.apply(state, from, at, update);
            }
        }
        // This node has not received its own messages from before it followed the log.
        self.send_local_members(state);
        self.synced.send_replace(true);
    }

    fn record_sender(&self, state: &mut State, from: NodeId, at: Position) {
        let now = Instant::now();
        match &mut state.joining {
            None => state.roster.node_heard(from, at),
            Some(joining) => joining.received.push((from, at, None)),
        }
        state.reported_dead.remove(&from);
        let before = state.last_heard.insert(from, now);
        // A node that did not receive its own heartbeat for a while did not receive the others' either:
        // their silence counts from now, and so does the grace of sessions that reconnected meanwhile.
        let gap = before.map_or(Duration::MAX, |before| now - before);
        if from == self.me && self.config.node_timeout / 2 < gap {
            state.last_heard.values_mut().for_each(|heard| *heard = now);
            let until = now + self.config.presence_grace;
            state.released.iter_mut().for_each(|(at, ..)| *at = until.max(*at));
        }
    }

    /// Applies an update, or keeps it until the snapshot has been received.
    fn receive_presence(
        &self,
        state: &mut State,
        from: NodeId,
        at: Position,
        update: PresenceUpdate,
    ) {
        match &mut state.joining {
            None => self.apply(state, from, at, update),
            Some(joining) => joining.received.push((from, at, Some(update))),
        }
    }

    fn receive_snapshot(&self, state: &mut State, at: Position, snapshot: Snapshot) {
        let Some(joining) = &mut state.joining else { return };
        let is_newer = |sent: Position| sent.epoch != at.epoch || at.offset < sent.offset;
        joining.received.retain(|(_, sent, _)| is_newer(*sent));
        self.finish_join(state, snapshot);
    }

    fn apply(&self, state: &mut State, from: NodeId, at: Position, update: PresenceUpdate) {
        trace!(%from, %at, ?update, "presence update");
        match &update {
            PresenceUpdate::NodeStarted if from != self.me => {
                state.newcomers.insert(from, Instant::now());
            }
            PresenceUpdate::Members(_) => {
                state.newcomers.remove(&from);
            }
            PresenceUpdate::Resync if from != self.me => self.send_local_members(state),
            PresenceUpdate::NodeStopped => state.forget_node(from),
            PresenceUpdate::NodeDead(node, heard)
                if *node == self.me && state.roster.last_heard(*node) == Some(*heard) =>
            {
                info!("the other nodes took this one for dead: it sends its members again");
                self.send_local_members(state);
            }
            PresenceUpdate::NodeDead(node, heard)
                if state.roster.last_heard(*node) == Some(*heard) =>
            {
                state.forget_node(*node);
            }
            _ => {}
        }
        let outcome = state.roster.apply(from, at, update);
        self.record_outcome(state, outcome);
    }

    fn record_outcome(&self, state: &mut State, Outcome { changes, released }: Outcome) {
        state.subscribers.record(changes);
        let until = Instant::now() + self.config.presence_grace;
        state.released.extend(released.into_iter().map(|released| (until, released, 0)));
    }
}
