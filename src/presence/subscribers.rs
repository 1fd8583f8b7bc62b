//! Presence subscribers, and the diffs that they are sent.
//!
//! Changes are gathered for a moment, so that a thousand joins are a few frames. At any moment, what
//! was sent plus the pending diff is the roster: a new subscriber gets the view that the others have,
//! and then the same diffs. Nothing here waits or knows a socket.

use std::{collections::HashMap, fmt, sync::Arc};

use bytes::Bytes;
use slab::Slab;

use super::{MemberChange, Roster};
use crate::protocol::{Channel, Left, Member, MemberId, PresenceFrame, ServerFrame};
use crate::wire::{PerFormat, WireFormat};

/// A receiver of presence diffs: a client's connection.
pub trait PresenceSubscriber: Send + Sync {
    /// Takes a diff of a channel. Each has a number above that of the one before.
    fn deliver(&self, tag: u32, diff: &Arc<PresenceDiff>);
}

/// A diff of a channel's presence, encoded once per format for all subscribers.
#[derive(Debug)]
pub struct PresenceDiff {
    /// Its number among the channel's diffs.
    pub number: u64,
    /// The frame.
    pub frame: ServerFrame,
    encoded: PerFormat<Bytes>,
}

impl PresenceDiff {
    fn new(number: u64, channel: Channel, diff: PresenceFrame) -> Self {
        let frame = ServerFrame::Presence { channel, frame: Box::new(diff) };
        Self { number, frame, encoded: Default::default() }
    }

    /// The frame in a format.
    pub fn encoded(&self, format: WireFormat) -> &Bytes {
        self.encoded.get_or_init(format, || format.codec.frame(&self.frame))
    }
}

/// A channel's presence as its subscribers know it.
#[derive(Debug)]
pub struct View {
    /// The number of the last diff that is in it.
    pub number: u64,
    /// The number of members.
    pub count: usize,
    /// The members, unless they are too many to be listed.
    pub members: Option<Vec<Arc<Member>>>,
}

impl From<View> for PresenceFrame {
    fn from(view: View) -> Self {
        Self { members: view.members, count: view.count, ..Self::default() }
    }
}

/// A diff and its receivers.
pub struct Delivery {
    /// The diff.
    pub diff: Arc<PresenceDiff>,
    /// The receivers, each with its tag for the channel.
    pub to: Vec<(Arc<dyn PresenceSubscriber>, u32)>,
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery").field("diff", &self.diff).finish_non_exhaustive()
    }
}

/// The presence subscribers of this node.
#[derive(Debug)]
pub struct PresenceSubscribers {
    channels: HashMap<Channel, ChannelSubscribers>,
    /// Channels with up to this many members are listed, larger ones counted.
    list_max: usize,
    /// Channels with a pending diff.
    dirty: Vec<Channel>,
}

struct ChannelSubscribers {
    subscribers: Slab<(Arc<dyn PresenceSubscriber>, u32)>,
    number: u64,
    /// Members that changed since the last diff, as they were in it.
    before: HashMap<MemberId, Option<Arc<Member>>>,
    /// Whether the subscribers have the members, or only their number.
    listed: bool,
    dirty: bool,
}

impl fmt::Debug for ChannelSubscribers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelSubscribers")
            .field("subscribers", &self.subscribers.len())
            .finish_non_exhaustive()
    }
}

impl PresenceSubscribers {
    /// No subscribers. Channels with more than `list_max` members are counted, not listed.
    pub fn new(list_max: usize) -> Self {
        Self { channels: HashMap::new(), list_max, dirty: Vec::new() }
    }

    /// Adds a subscriber. Returns its slot and the channel's view.
    pub fn subscribe(
        &mut self,
        roster: &Roster,
        channel: &Channel,
        subscriber: Arc<dyn PresenceSubscriber>,
        tag: u32,
    ) -> (usize, View) {
        let listed = roster.count(channel) <= self.list_max;
        let channel_subscribers =
            self.channels.entry(channel.clone()).or_insert_with(|| ChannelSubscribers::new(listed));
        let slot = channel_subscribers.subscribers.insert((subscriber, tag));
        (slot, channel_subscribers.view(roster, channel))
    }

    /// The channel's view now.
    pub fn view(&self, roster: &Roster, channel: &Channel) -> Option<View> {
        self.channels
            .get(channel)
            .map(|channel_subscribers| channel_subscribers.view(roster, channel))
    }

    /// Removes a subscriber.
    pub fn unsubscribe(
        &mut self,
        channel: &Channel,
        slot: usize,
    ) -> Option<Arc<dyn PresenceSubscriber>> {
        let channel_subscribers = self.channels.get_mut(channel)?;
        let gone = channel_subscribers.subscribers.try_remove(slot);
        if channel_subscribers.subscribers.is_empty() {
            self.channels.remove(channel);
        }
        gone.map(|(subscriber, _)| subscriber)
    }

    /// Records changes for the next diff.
    pub fn record(&mut self, changes: Vec<MemberChange>) {
        for MemberChange { channel, session, was, .. } in changes {
            let Some(channel_subscribers) = self.channels.get_mut(&channel) else { continue };
            channel_subscribers.before.entry(session).or_insert(was);
            if !std::mem::replace(&mut channel_subscribers.dirty, true) {
                self.dirty.push(channel);
            }
        }
    }

    /// Whether a diff is pending.
    pub fn has_changes(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// The pending diffs of all channels; of those that are only counted, if `counts` are due.
    pub fn take_diffs(&mut self, roster: &Roster, counts: bool) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        let mut later = Vec::new();
        for channel in std::mem::take(&mut self.dirty) {
            let Some(channel_subscribers) = self
                .channels
                .get_mut(&channel)
                .filter(|channel_subscribers| channel_subscribers.dirty)
            else {
                continue;
            };
            if !channel_subscribers.listed && !counts {
                // Which members joined or left does not matter where they are only counted.
                channel_subscribers.before.clear();
                later.push(channel);
                continue;
            }
            channel_subscribers.dirty = false;
            if let Some(diff) = channel_subscribers.take_diff(roster, &channel, self.list_max) {
                let to = channel_subscribers
                    .subscribers
                    .iter()
                    .map(|(_, subscriber)| subscriber.clone())
                    .collect();
                deliveries.push(Delivery { diff: Arc::new(diff), to });
            }
        }
        self.dirty = later;
        deliveries
    }
}

impl ChannelSubscribers {
    fn new(listed: bool) -> Self {
        Self { subscribers: Slab::new(), number: 0, before: HashMap::new(), listed, dirty: false }
    }

    /// The roster as it was sent: without what changed since.
    fn view(&self, roster: &Roster, channel: &Channel) -> View {
        if !self.listed {
            return View { number: self.number, count: roster.count(channel), members: None };
        }
        let unchanged = roster.members(channel).filter(|m| !self.before.contains_key(&m.session));
        let before = self.before.values().flatten();
        let mut members: Vec<_> = unchanged.chain(before).cloned().collect();
        members.sort_unstable_by_key(|member| member.session);
        View { number: self.number, count: members.len(), members: Some(members) }
    }

    fn take_diff(
        &mut self,
        roster: &Roster,
        channel: &Channel,
        list_max: usize,
    ) -> Option<PresenceDiff> {
        let before = std::mem::take(&mut self.before);
        let count = roster.count(channel);
        let mut diff = PresenceFrame { count, ..PresenceFrame::default() };
        let was_listed = self.listed;
        // With hysteresis: a channel around the limit does not switch with every member.
        self.listed = count <= if was_listed { list_max } else { list_max - list_max / 10 };
        match (was_listed, self.listed) {
            (_, false) => {}
            (false, true) => diff.members = Some(roster.members(channel).cloned().collect()),
            (true, true) => {
                for (session, was) in before {
                    note(&mut diff, session, was, roster.member(channel, session));
                }
                if diff.joined.is_empty() && diff.left.is_empty() && diff.updated.is_empty() {
                    return None;
                }
                // In the order in which they joined.
                diff.joined.sort_by_key(|member| (member.since, member.session));
            }
        }
        self.number += 1;
        Some(PresenceDiff::new(self.number, channel.clone(), diff))
    }
}

fn note(
    diff: &mut PresenceFrame,
    session: MemberId,
    was: Option<Arc<Member>>,
    is: Option<&Arc<Member>>,
) {
    match (was, is) {
        (None, None) => {}
        (None, Some(is)) => diff.joined.push(Arc::clone(is)),
        (Some(_), None) => diff.left.push(Left { session }),
        (Some(was), Some(is)) if was.looks_like(is) => {}
        (Some(_), Some(is)) => diff.updated.push(Arc::clone(is)),
    }
}
