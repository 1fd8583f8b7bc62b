//! The nodes that ingest from the same Redis, as seen in their marks, and whether this node may try
//! to take the lease. Pure: the time is passed in.
//!
//! A node that has just started has not received messages that longer-running nodes may still have to
//! write, so those go first.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

/// Stands for a field without a value in a mark.
pub(super) const ABSENT: &str = "-";

/// Limit of peers that are tracked.
const PEERS_MAX: usize = 1000;

/// This node's own reception and the other nodes that send marks.
#[derive(Debug, Default)]
pub(super) struct Peers {
    /// When this node's own marks were first and last received; none while disconnected.
    own_marks: Option<(Instant, Instant)>,
    others: HashMap<String, Peer>,
    joined: bool,
}

#[derive(Clone, Copy, Debug)]
struct Peer {
    last_mark: Instant,
    /// For how long the peer had received everything when it sent the mark.
    uptime: Duration,
}

impl Peers {
    /// Records a mark of this node.
    pub(super) fn own_mark_received(&mut self, now: Instant) {
        self.own_marks = Some((self.own_marks.map_or(now, |(first, _)| first), now));
        self.joined = true;
    }

    /// Records a mark of another node; `uptime` is for how long that node has received everything.
    pub(super) fn peer_mark_received(&mut self, token: &str, uptime: Duration, now: Instant) {
        if self.others.len() < PEERS_MAX || self.others.contains_key(token) {
            self.others.insert(token.to_owned(), Peer { last_mark: now, uptime });
        }
    }

    /// For how long this node has received everything.
    pub(super) fn receiving_for(&self, now: Instant) -> Duration {
        self.own_marks.map_or(Duration::ZERO, |(first, _)| now - first)
    }

    /// Removes a node that said goodbye: it has written what it received.
    pub(super) fn remove(&mut self, token: &str) {
        self.others.remove(token);
    }

    /// Records that this node's subscription broke, and returns whether it was receiving before.
    pub(super) fn disconnected(&mut self) -> bool {
        self.own_marks.take().is_some()
    }

    /// Whether this node has ever received its own mark.
    pub(super) fn has_joined(&self) -> bool {
        self.joined
    }

    /// Whether this node's own marks arrive: the last one within half a lease.
    pub(super) fn is_receiving(&self, lease: Duration, now: Instant) -> bool {
        self.own_marks.is_some_and(|(_, last)| now < last + lease / 2)
    }

    /// Whether this node may try to take the lease: it has received everything for a third of a
    /// lease, or for a whole lease where another node has received for longer.
    pub(super) fn may_acquire(&mut self, lease: Duration, now: Instant) -> bool {
        self.others.retain(|_, peer| now < peer.last_mark + lease);
        let own = self.receiving_for(now);
        let is_longer = |peer: &Peer| own < peer.uptime + (now - peer.last_mark);
        let required = if self.others.values().any(is_longer) { lease } else { lease / 3 };
        self.is_receiving(lease, now) && required <= own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(3);

    /// State after `ticks` marks of this node and of a peer that has received for `longer`.
    fn with_peer(ticks: u32, longer: Duration) -> (Peers, Instant) {
        let mut peers = Peers::default();
        let begin = Instant::now();
        for tick in 0..=ticks {
            let elapsed = LEASE / 6 * tick;
            peers.own_mark_received(begin + elapsed);
            peers.peer_mark_received("peer", elapsed + longer, begin + elapsed);
        }
        (peers, begin + LEASE / 6 * ticks)
    }

    #[test]
    fn a_new_node_yields_to_a_longer_running_peer() {
        let hour = Duration::from_secs(3600);
        for ticks in 0..6 {
            let (mut peers, now) = with_peer(ticks, hour);
            assert!(!peers.may_acquire(LEASE, now), "after {ticks} ticks");
            peers.remove("peer");
            assert_eq!(peers.may_acquire(LEASE, now), 2 <= ticks, "alone, after {ticks} ticks");
        }
        let (mut peers, now) = with_peer(6, hour);
        assert!(peers.may_acquire(LEASE, now), "the peer had a lease's time to take it");
        let (mut peers, now) = with_peer(2, Duration::ZERO);
        assert!(peers.may_acquire(LEASE, now), "the peer has not received for longer");
    }

    #[test]
    fn a_node_that_receives_nothing_may_not_acquire() {
        let (mut peers, now) = with_peer(9, Duration::ZERO);
        assert!(!peers.is_receiving(LEASE, now + LEASE));
        assert!(!peers.may_acquire(LEASE, now + LEASE));
        assert!(peers.disconnected() && !peers.may_acquire(LEASE, now) && !peers.disconnected());
        assert!(peers.has_joined());
    }
}
