//! Which nodes are there, by the marks that are heard of them, and whether this one may try for the
//! lease. Pure: the time is handed in.
//!
//! One that has just come has not heard what others may still have to write: they go first.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

/// What stands in a mark for nothing.
pub(super) const NOTHING: &str = "-";

/// Nodes of which marks are remembered.
const NODES: usize = 1000;

/// The nodes that hear the old channels.
#[derive(Debug, Default)]
pub(super) struct Peers {
    /// Since when this node hears, and when it last heard itself.
    itself: Option<(Instant, Instant)>,
    others: HashMap<String, Other>,
    joined: bool,
}

#[derive(Clone, Copy, Debug)]
struct Other {
    /// When a mark of its was heard last.
    last: Instant,
    /// For how long it had heard everything by then.
    age: Duration,
}

impl Peers {
    /// A mark of this node's own was heard.
    pub(super) fn heard_itself(&mut self, now: Instant) {
        self.itself = Some((self.itself.map_or(now, |(since, _)| since), now));
        self.joined = true;
    }

    /// A mark of another node was heard, which has heard everything for as long as that.
    pub(super) fn heard(&mut self, token: &str, age: Duration, now: Instant) {
        if self.others.len() < NODES || self.others.contains_key(token) {
            self.others.insert(token.to_owned(), Other { last: now, age });
        }
    }

    /// For how long this node has heard everything.
    pub(super) fn age(&self, now: Instant) -> Duration {
        self.itself.map_or(Duration::ZERO, |(since, _)| now - since)
    }

    /// A node said goodbye; it has written what it had to.
    pub(super) fn left(&mut self, token: &str) {
        self.others.remove(token);
    }

    /// This node hears nothing any more. Whether it did.
    pub(super) fn deaf(&mut self) -> bool {
        self.itself.take().is_some()
    }

    /// It heard everything at least once.
    pub(super) fn has_joined(&self) -> bool {
        self.joined
    }

    /// It hears everything at the moment.
    pub(super) fn hears(&self, lease: Duration, now: Instant) -> bool {
        self.itself.is_some_and(|(_, last)| now < last + lease / 2)
    }

    /// It may try for the lease: it has heard for so long that nobody has older messages to write, or
    /// none of the others has heard for longer.
    pub(super) fn may_try(&mut self, lease: Duration, now: Instant) -> bool {
        self.others.retain(|_, other| now < other.last + lease);
        let age = self.age(now);
        let older = |other: &Other| age < other.age + (now - other.last);
        let patience = if self.others.values().any(older) { lease } else { lease / 3 };
        self.hears(lease, now) && patience <= age
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(3);

    /// Hears for so many marks, and another one that has heard for as much longer.
    fn together(ticks: u32, longer: Duration) -> (Peers, Instant) {
        let mut company = Peers::default();
        let begin = Instant::now();
        for tick in 0..=ticks {
            let passed = LEASE / 6 * tick;
            company.heard_itself(begin + passed);
            company.heard("other", passed + longer, begin + passed);
        }
        (company, begin + LEASE / 6 * ticks)
    }

    #[test]
    fn who_has_just_come_lets_those_go_first_who_have_heard_more() {
        let hour = Duration::from_secs(3600);
        for ticks in 0..6 {
            let (mut company, now) = together(ticks, hour);
            assert!(!company.may_try(LEASE, now), "{ticks}");
            company.left("other");
            assert_eq!(company.may_try(LEASE, now), 2 <= ticks, "alone");
        }
        let (mut company, now) = together(6, hour);
        assert!(company.may_try(LEASE, now), "the other had its time");
        let (mut company, now) = together(2, Duration::ZERO);
        assert!(company.may_try(LEASE, now), "the other has heard no more");
    }

    #[test]
    fn who_hears_nothing_does_not_try() {
        let (mut company, now) = together(9, Duration::ZERO);
        assert!(!company.hears(LEASE, now + LEASE) && !company.may_try(LEASE, now + LEASE));
        assert!(company.deaf() && !company.may_try(LEASE, now) && !company.deaf());
        assert!(company.has_joined());
    }
}
