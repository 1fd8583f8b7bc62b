//! Who looks on, and what they have been told.
//!
//! Changes are gathered for a moment, so that a thousand joins are a few frames. What was told and
//! what will be told next add up to the roster at any moment: who comes new is shown what the others
//! were told so far, and then hears what they hear. Nothing here waits or knows a socket.

use std::{collections::HashMap, fmt, sync::Arc};

use bytes::Bytes;
use slab::Slab;

use super::{Change, Roster};
use crate::protocol::{Channel, Left, Member, MemberId, PresenceFrame, ServerFrame};
use crate::wire::{PerFormat, WireFormat};

/// Somebody who looks on: a client's connection.
pub trait PresenceSubscriber: Send + Sync {
    /// Hears news of a channel. Each has a number above that of the one before.
    fn tell(&self, tag: u32, news: &Arc<PresenceDiff>);
}

/// News of a channel, encoded once for all who hear it.
#[derive(Debug)]
pub struct PresenceDiff {
    /// Of this channel's news the so-manieth.
    pub number: u64,
    /// What is told.
    pub frame: ServerFrame,
    encoded: PerFormat<Bytes>,
}

impl PresenceDiff {
    fn new(number: u64, channel: Channel, news: PresenceFrame) -> Self {
        let frame = ServerFrame::Presence { channel, news: Box::new(news) };
        Self { number, frame, encoded: Default::default() }
    }

    /// As it goes out.
    pub fn encoded(&self, format: WireFormat) -> &Bytes {
        self.encoded.get_or_init(format, || format.codec.frame(&self.frame))
    }
}

/// How a channel looks to those who were told everything so far.
#[derive(Debug)]
pub struct View {
    /// The number of the last news that is in it.
    pub number: u64,
    /// How many members.
    pub count: usize,
    /// Who, unless they are too many to be listed.
    pub members: Option<Vec<Arc<Member>>>,
}

impl From<View> for PresenceFrame {
    fn from(view: View) -> Self {
        Self { members: view.members, count: view.count, ..Self::default() }
    }
}

/// News and who is to hear them.
pub struct Delivery {
    /// What.
    pub news: Arc<PresenceDiff>,
    /// Who.
    pub to: Vec<(Arc<dyn PresenceSubscriber>, u32)>,
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery").field("news", &self.news).finish_non_exhaustive()
    }
}

/// All who look on.
#[derive(Debug)]
pub struct PresenceSubscribers {
    rooms: HashMap<Channel, ChannelSubscribers>,
    /// Channels with up to so many members are listed, larger ones counted.
    list_max: usize,
    /// Channels with something to tell.
    dirty: Vec<Channel>,
}

struct ChannelSubscribers {
    watchers: Slab<(Arc<dyn PresenceSubscriber>, u32)>,
    number: u64,
    /// Members that changed since the last news, as they were told.
    told: HashMap<MemberId, Option<Arc<Member>>>,
    /// Whether the onlookers have the list, or only a number.
    listed: bool,
    dirty: bool,
}

impl fmt::Debug for ChannelSubscribers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelSubscribers")
            .field("watchers", &self.watchers.len())
            .finish_non_exhaustive()
    }
}

impl PresenceSubscribers {
    /// Nobody yet. Channels with more than `list_max` members are not listed.
    pub fn new(list_max: usize) -> Self {
        Self { rooms: HashMap::new(), list_max, dirty: Vec::new() }
    }

    /// Somebody comes to look on. Returns the seat and what there is to be seen.
    pub fn join(
        &mut self,
        roster: &Roster,
        channel: &Channel,
        watcher: Arc<dyn PresenceSubscriber>,
        tag: u32,
    ) -> (usize, View) {
        let listed = roster.count(channel) <= self.list_max;
        let room =
            self.rooms.entry(channel.clone()).or_insert_with(|| ChannelSubscribers::new(listed));
        let seat = room.watchers.insert((watcher, tag));
        (seat, room.view(roster, channel))
    }

    /// What somebody on a seat would see now.
    pub fn look(&self, roster: &Roster, channel: &Channel) -> Option<View> {
        self.rooms.get(channel).map(|room| room.view(roster, channel))
    }

    /// Somebody goes.
    pub fn leave(&mut self, channel: &Channel, seat: usize) -> Option<Arc<dyn PresenceSubscriber>> {
        let room = self.rooms.get_mut(channel)?;
        let gone = room.watchers.try_remove(seat);
        if room.watchers.is_empty() {
            self.rooms.remove(channel);
        }
        gone.map(|(watcher, _)| watcher)
    }

    /// Takes note of what changed.
    pub fn note(&mut self, changes: Vec<Change>) {
        for Change { channel, session, was, .. } in changes {
            let Some(room) = self.rooms.get_mut(&channel) else { continue };
            room.told.entry(session).or_insert(was);
            if !std::mem::replace(&mut room.dirty, true) {
                self.dirty.push(channel);
            }
        }
    }

    /// Whether there is something to tell.
    pub fn has_news(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// The news of all channels that have some; of those that are only counted, if `counts` are due.
    pub fn news(&mut self, roster: &Roster, counts: bool) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        let mut later = Vec::new();
        for channel in std::mem::take(&mut self.dirty) {
            let Some(room) = self.rooms.get_mut(&channel).filter(|room| room.dirty) else {
                continue;
            };
            if !room.listed && !counts {
                // Who it was that came or went does not matter where they are only counted.
                room.told.clear();
                later.push(channel);
                continue;
            }
            room.dirty = false;
            if let Some(news) = room.tell(roster, &channel, self.list_max) {
                let to = room.watchers.iter().map(|(_, watcher)| watcher.clone()).collect();
                deliveries.push(Delivery { news: Arc::new(news), to });
            }
        }
        self.dirty = later;
        deliveries
    }
}

impl ChannelSubscribers {
    fn new(listed: bool) -> Self {
        Self { watchers: Slab::new(), number: 0, told: HashMap::new(), listed, dirty: false }
    }

    /// The roster as it was told: without what changed since.
    fn view(&self, roster: &Roster, channel: &Channel) -> View {
        if !self.listed {
            return View { number: self.number, count: roster.count(channel), members: None };
        }
        let unchanged = roster.members(channel).filter(|m| !self.told.contains_key(&m.session));
        let before = self.told.values().flatten();
        let mut members: Vec<_> = unchanged.chain(before).cloned().collect();
        members.sort_unstable_by_key(|member| member.session);
        View { number: self.number, count: members.len(), members: Some(members) }
    }

    fn tell(
        &mut self,
        roster: &Roster,
        channel: &Channel,
        list_max: usize,
    ) -> Option<PresenceDiff> {
        let told = std::mem::take(&mut self.told);
        let count = roster.count(channel);
        let mut news = PresenceFrame { count, ..PresenceFrame::default() };
        let was_listed = self.listed;
        // A channel about the limit does not change its ways with every member.
        self.listed = count <= if was_listed { list_max } else { list_max - list_max / 10 };
        match (was_listed, self.listed) {
            (_, false) => {}
            (false, true) => news.members = Some(roster.members(channel).cloned().collect()),
            (true, true) => {
                for (session, was) in told {
                    note(&mut news, session, was, roster.member(channel, session));
                }
                if news.joined.is_empty() && news.left.is_empty() && news.updated.is_empty() {
                    return None;
                }
                // Who came first is told first.
                news.joined.sort_by_key(|member| (member.since, member.session));
            }
        }
        self.number += 1;
        Some(PresenceDiff::new(self.number, channel.clone(), news))
    }
}

fn note(
    news: &mut PresenceFrame,
    session: MemberId,
    was: Option<Arc<Member>>,
    is: Option<&Arc<Member>>,
) {
    match (was, is) {
        (None, None) => {}
        (None, Some(is)) => news.joined.push(Arc::clone(is)),
        (Some(_), None) => news.left.push(Left { session }),
        (Some(was), Some(is)) if was.looks_like(is) => {}
        (Some(_), Some(is)) => news.updated.push(Arc::clone(is)),
    }
}
