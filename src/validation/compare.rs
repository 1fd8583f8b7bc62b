//! Compares the events that the two sides received from a channel. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::protocol::Channel;

/// An event as a session received it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReceivedEvent {
    /// Offset in the channel's log.
    pub(super) offset: u64,
    /// Hash of id, name, data and time.
    pub(super) digest: u64,
    /// Arrival in milliseconds since the run started.
    pub(super) at: u64,
}

/// The events that both sides should have received from a channel.
#[derive(Clone, Debug)]
pub(super) struct ExpectedRange<'a> {
    pub(super) channel: &'a Channel,
    /// The range starts behind this offset.
    pub(super) after: u64,
    /// The range ends with this offset.
    pub(super) until: u64,
    /// When the sessions of both sides were open, in milliseconds since the run started. An event
    /// received earlier by the other side counts as received at this time.
    pub(super) started: u64,
    /// Offsets of events that are known to be in the log, whether or not a side received them.
    pub(super) known: &'a [u64],
}

/// Delay in milliseconds behind the other side from which on an event is late.
pub(super) const LATE_AFTER_MS: u64 = 500;

/// Limit of examples.
const MAX_EXAMPLES: usize = 10;

/// One of the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The side that clients are migrated from.
    Old,
    /// The side that clients are migrated to.
    New,
}

/// A way in which the delivery of an event differs from what is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Discrepancy {
    /// Not received on this side.
    Missing,
    /// Received more than once.
    Duplicated,
    /// Received after a later event.
    Reordered,
    /// Received with another content than on the other side.
    Different,
    /// Received more than half a second later than on the other side.
    Late,
}

/// Counts of one side, over all its sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Counts {
    /// Distinct events received.
    pub received: u64,
    /// Events received by the other side or known to be published, and not received by this side.
    pub missing: u64,
    /// Repeated deliveries of an event.
    pub duplicated: u64,
    /// Events received after a later one.
    pub reordered: u64,
    /// Events received more than half a second later than by the other side.
    pub late: u64,
    /// Resets: the session was told that events are lost.
    pub resets: u64,
    /// Sessions that could not be opened or ended early.
    pub broken: u64,
}

/// An event with a discrepancy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// The side with the discrepancy.
    pub side: Side,
    /// What is wrong.
    pub discrepancy: Discrepancy,
    /// The channel of the event.
    pub channel: Channel,
    /// The offset in the channel's log.
    pub offset: u64,
}

/// The comparison so far, over all pairs of sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Comparison {
    /// Events that each side should have received, summed over its sessions.
    pub(super) events: u64,
    pub(super) old: Counts,
    pub(super) new: Counts,
    pub(super) different: u64,
    pub(super) examples: Vec<Example>,
}

impl Comparison {
    /// Compares what two sessions received, each list in the order of arrival.
    pub(super) fn compare(
        &mut self,
        range: &ExpectedRange<'_>,
        old: &[ReceivedEvent],
        new: &[ReceivedEvent],
    ) {
        let old = self.first_deliveries(range, Side::Old, old);
        let new = self.first_deliveries(range, Side::New, new);
        let in_range = |offset: &u64| range.after < *offset && *offset <= range.until;
        let known = range.known.iter().copied().filter(in_range);
        let all: BTreeSet<u64> = old.keys().chain(new.keys()).copied().chain(known).collect();
        self.events += all.len() as u64;
        for offset in all {
            let (on_old, on_new) = (old.get(&offset), new.get(&offset));
            if on_old.is_none() {
                self.record(range, Side::Old, Discrepancy::Missing, offset);
            }
            if on_new.is_none() {
                self.record(range, Side::New, Discrepancy::Missing, offset);
            }
            let (Some(on_old), Some(on_new)) = (on_old, on_new) else { continue };
            if on_old.digest != on_new.digest {
                self.record(range, Side::New, Discrepancy::Different, offset);
            }
            let late = |event: &ReceivedEvent, other: &ReceivedEvent| {
                other.at.max(range.started) + LATE_AFTER_MS < event.at
            };
            if late(on_old, on_new) {
                self.record(range, Side::Old, Discrepancy::Late, offset);
            }
            if late(on_new, on_old) {
                self.record(range, Side::New, Discrepancy::Late, offset);
            }
        }
    }

    pub(super) fn side(&mut self, side: Side) -> &mut Counts {
        match side {
            Side::Old => &mut self.old,
            Side::New => &mut self.new,
        }
    }

    /// The first delivery of each event in the range. Records duplicates and reordered events.
    fn first_deliveries(
        &mut self,
        range: &ExpectedRange<'_>,
        side: Side,
        received: &[ReceivedEvent],
    ) -> BTreeMap<u64, ReceivedEvent> {
        let mut first = BTreeMap::new();
        let mut last = 0;
        for event in received {
            let offset = event.offset;
            if offset <= range.after || range.until < offset {
                continue;
            }
            if first.contains_key(&offset) {
                self.record(range, side, Discrepancy::Duplicated, offset);
                continue;
            }
            if offset < last {
                self.record(range, side, Discrepancy::Reordered, offset);
            }
            last = last.max(offset);
            first.insert(offset, *event);
        }
        self.side(side).received += first.len() as u64;
        first
    }

    fn record(
        &mut self,
        range: &ExpectedRange<'_>,
        side: Side,
        discrepancy: Discrepancy,
        offset: u64,
    ) {
        let counts = self.side(side);
        match discrepancy {
            Discrepancy::Missing => counts.missing += 1,
            Discrepancy::Duplicated => counts.duplicated += 1,
            Discrepancy::Reordered => counts.reordered += 1,
            Discrepancy::Late => counts.late += 1,
            Discrepancy::Different => self.different += 1,
        }
        if self.examples.len() < MAX_EXAMPLES {
            self.examples.push(Example {
                side,
                discrepancy,
                channel: range.channel.clone(),
                offset,
            });
        }
    }
}

#[cfg(test)]
mod tests;
