//! What two sides got of one channel, compared event by event. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::protocol::Channel;

/// An event as a side got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Where it stands in the log.
    pub(super) offset: u64,
    /// Of all that it says.
    pub(super) digest: u64,
    /// When, in milliseconds since the run began.
    pub(super) at: u64,
}

/// What both sides should have got of a channel.
#[derive(Clone, Debug)]
pub(super) struct ExpectedRange<'a> {
    pub(super) channel: &'a Channel,
    /// Behind this offset.
    pub(super) after: u64,
    /// Up to this one.
    pub(super) until: u64,
    /// Both sides were there from then on: nothing is late before.
    pub(super) begun: u64,
    /// Offsets of events that are known to be in the log, whoever got them.
    pub(super) known: &'a [u64],
}

/// Milliseconds by which an event may come after it came on the other side.
pub(super) const LATE_MS: u64 = 500;

/// Examples that are kept.
const EXAMPLES: usize = 10;

/// One of the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The one that is left.
    Old,
    /// The one that is moved to.
    New,
}

/// What is wrong with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Discrepancy {
    /// The side did not get it.
    Missing,
    /// It got it more than once.
    Duplicated,
    /// It got it after a later one.
    Reordered,
    /// It says something else than on the other side.
    Different,
    /// It came long after it came on the other side.
    Late,
}

/// What one side got, over all its sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Counts {
    /// Events, each once.
    pub received: u64,
    /// Events that the other side got or that were published, and this one did not get.
    pub missing: u64,
    /// Times an event came again.
    pub duplicated: u64,
    /// Events that came after a later one.
    pub reordered: u64,
    /// Events that came more than half a second after the other side had them.
    pub late: u64,
    /// Times it was told that something is lost.
    pub resets: u64,
    /// Sessions that could not be opened, or ended before the end.
    pub broken: u64,
}

/// An event that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// On which side.
    pub side: Side,
    /// What is wrong.
    pub fault: Discrepancy,
    /// In which channel.
    pub channel: Channel,
    /// Where in its log.
    pub offset: u64,
}

/// What was found so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// Events that both sides should have got, summed over the sessions.
    pub(super) events: u64,
    pub(super) old: Counts,
    pub(super) new: Counts,
    pub(super) different: u64,
    pub(super) examples: Vec<Example>,
}

impl Findings {
    /// Compares what two sessions got, each in the order in which it got it.
    pub(super) fn compare(&mut self, span: &ExpectedRange<'_>, old: &[Seen], new: &[Seen]) {
        let old = self.read(span, Side::Old, old);
        let new = self.read(span, Side::New, new);
        let inside = |offset: &u64| span.after < *offset && *offset <= span.until;
        let known = span.known.iter().copied().filter(inside);
        let all: BTreeSet<u64> = old.keys().chain(new.keys()).copied().chain(known).collect();
        self.events += all.len() as u64;
        for offset in all {
            let (on_old, on_new) = (old.get(&offset), new.get(&offset));
            if on_old.is_none() {
                self.note(span, Side::Old, Discrepancy::Missing, offset);
            }
            if on_new.is_none() {
                self.note(span, Side::New, Discrepancy::Missing, offset);
            }
            let (Some(on_old), Some(on_new)) = (on_old, on_new) else { continue };
            if on_old.digest != on_new.digest {
                self.note(span, Side::New, Discrepancy::Different, offset);
            }
            let late = |one: &Seen, other: &Seen| other.at.max(span.begun) + LATE_MS < one.at;
            if late(on_old, on_new) {
                self.note(span, Side::Old, Discrepancy::Late, offset);
            }
            if late(on_new, on_old) {
                self.note(span, Side::New, Discrepancy::Late, offset);
            }
        }
    }

    pub(super) fn side(&mut self, side: Side) -> &mut Counts {
        match side {
            Side::Old => &mut self.old,
            Side::New => &mut self.new,
        }
    }

    /// The first of each event, and what is wrong with their order.
    fn read(&mut self, span: &ExpectedRange<'_>, side: Side, seen: &[Seen]) -> BTreeMap<u64, Seen> {
        let mut first = BTreeMap::new();
        let mut last = 0;
        for one in seen {
            let offset = one.offset;
            if offset <= span.after || span.until < offset {
                continue;
            }
            if first.contains_key(&offset) {
                self.note(span, side, Discrepancy::Duplicated, offset);
                continue;
            }
            if offset < last {
                self.note(span, side, Discrepancy::Reordered, offset);
            }
            last = last.max(offset);
            first.insert(offset, *one);
        }
        self.side(side).received += first.len() as u64;
        first
    }

    fn note(&mut self, span: &ExpectedRange<'_>, side: Side, fault: Discrepancy, offset: u64) {
        let counts = self.side(side);
        match fault {
            Discrepancy::Missing => counts.missing += 1,
            Discrepancy::Duplicated => counts.duplicated += 1,
            Discrepancy::Reordered => counts.reordered += 1,
            Discrepancy::Late => counts.late += 1,
            Discrepancy::Different => self.different += 1,
        }
        if self.examples.len() < EXAMPLES {
            self.examples.push(Example { side, fault, channel: span.channel.clone(), offset });
        }
    }
}

#[cfg(test)]
mod tests;
