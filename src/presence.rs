//! Who is in which channel, cluster-wide: a state that every node keeps for itself and that is the
//! same on all, since all apply the same words in the same order.
//!
//! Pure: no clock, no broker, no client. A session is in a channel for as long as a node *holds* it
//! there. Several may at once, while it moves; the last one's release starts the grace, and only the
//! word that ends it, or a node's death, lets the member leave. Who looks on is [`audience`]'s
//! business, how the words travel the cluster's.

pub mod subscribers;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::protocol::{Channel, Member, MemberId, Position};

/// One run of one gateway process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(u64);

impl NodeId {
    /// One that nobody had before.
    pub fn generate() -> Self {
        // JSON's numbers are exact up to 2^53.
        Self(rand::random::<u64>() >> 11)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a node says about presence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PresenceUpdate {
    /// I hold this member here, and this is how it looks.
    Hold(Channel, Arc<Member>),
    /// I hold it no longer; it may come back, to me or to another.
    Release(Channel, MemberId),
    /// It left by its own will.
    Quit(Channel, MemberId),
    /// It did not come back after it was released at this position.
    Expire(Channel, MemberId, Position),
    /// I am new: show me everything as it is at this word.
    Hello,
    /// Say what you hold, all of you.
    Call,
    /// This is all I hold.
    Here(Vec<(Channel, Arc<Member>)>),
    /// Nothing was heard of this node since that position.
    Dead(NodeId, Position),
    /// I stop.
    Bye,
}

/// What became of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where.
    pub channel: Channel,
    /// Who.
    pub session: MemberId,
    /// How it looked before, if it was there.
    pub was: Option<Arc<Member>>,
    /// How it looks now, if it is there.
    pub is: Option<Arc<Member>>,
}

/// A member that nobody holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parted {
    /// Where.
    pub channel: Channel,
    /// Who.
    pub session: MemberId,
    /// The word that released it.
    pub at: Position,
}

/// What came of a word.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What onlookers are to be told.
    pub changes: Vec<Change>,
    /// Who has the grace to come back from now on.
    pub parted: Vec<Parted>,
}

/// Everybody who is in a channel.
#[derive(Debug, Default)]
pub struct Roster {
    channels: HashMap<Channel, BTreeMap<MemberId, Record>>,
    /// The nodes that speak, and where each did last.
    nodes: HashMap<NodeId, Position>,
}

/// A member and who holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    member: Arc<Member>,
    holders: SmallVec<[NodeId; 2]>,
    /// Where the last holder's release stands.
    parted: Option<Position>,
}

/// A roster as one node shows it to another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Everybody, wherever they are.
    pub records: Vec<(Channel, Record)>,
    /// The nodes that speak, each with where it did last.
    pub nodes: Vec<(NodeId, Position)>,
}

impl Roster {
    /// Everything there is.
    pub fn snapshot(&self) -> Snapshot {
        let rooms = self.channels.iter();
        let records = rooms
            .flat_map(|(channel, room)| room.values().map(|r| (channel.clone(), r.clone())))
            .collect();
        Snapshot { records, nodes: self.nodes().collect() }
    }

    /// Begins with what another node shows, instead of nothing.
    pub fn restore(&mut self, snapshot: Snapshot) -> Outcome {
        let mut outcome = Outcome::default();
        for (node, heard) in snapshot.nodes {
            self.hear(node, heard);
        }
        for (channel, record) in snapshot.records {
            let (session, is) = (record.member.session, Some(Arc::clone(&record.member)));
            if let Some(at) = record.parted {
                outcome.parted.push(Parted { channel: channel.clone(), session, at });
            }
            let room = self.channels.entry(channel.clone()).or_default();
            let was = room.insert(session, record).map(|record| record.member);
            outcome.changes.push(Change { channel, session, was, is });
        }
        outcome
    }

    /// Hears that `from` spoke at `at`.
    pub fn hear(&mut self, from: NodeId, at: Position) {
        self.nodes.insert(from, at);
    }

    /// Applies a word that `from` said at `at`.
    pub fn apply(&mut self, from: NodeId, at: Position, word: PresenceUpdate) -> Outcome {
        let mut outcome = Outcome::default();
        match word {
            PresenceUpdate::Hold(channel, member) => self.hold(from, channel, member, &mut outcome),
            PresenceUpdate::Release(channel, session) => {
                self.release(from, at, channel, session, &mut outcome);
            }
            PresenceUpdate::Quit(channel, session) => self.remove(channel, session, &mut outcome),
            PresenceUpdate::Expire(channel, session, parted) => {
                if self.parted(&channel, session) == Some(parted) {
                    self.remove(channel, session, &mut outcome);
                }
            }
            PresenceUpdate::Hello | PresenceUpdate::Call => {}
            PresenceUpdate::Here(all) => self.here(from, at, all, &mut outcome),
            PresenceUpdate::Dead(node, heard) => {
                if self.heard(node) == Some(heard) {
                    self.bury(node, &mut outcome);
                }
            }
            PresenceUpdate::Bye => {
                self.nodes.remove(&from);
                for (channel, session) in self.held_by(from) {
                    self.release(from, at, channel, session, &mut outcome);
                }
            }
        }
        outcome
    }

    /// Who is in a channel, in the order of their names.
    pub fn members(&self, channel: &Channel) -> impl Iterator<Item = &Arc<Member>> {
        self.channels.get(channel).into_iter().flatten().map(|(_, record)| &record.member)
    }

    /// How many are in a channel.
    pub fn count(&self, channel: &Channel) -> usize {
        self.channels.get(channel).map_or(0, BTreeMap::len)
    }

    /// How many are in all channels together.
    pub fn total(&self) -> usize {
        self.channels.values().map(BTreeMap::len).sum()
    }

    /// One of those who are in a channel.
    pub fn member(&self, channel: &Channel, session: MemberId) -> Option<&Arc<Member>> {
        Some(&self.channels.get(channel)?.get(&session)?.member)
    }

    /// Where the release stands of a member that nobody holds.
    pub fn parted(&self, channel: &Channel, session: MemberId) -> Option<Position> {
        self.channels.get(channel)?.get(&session)?.parted
    }

    /// The nodes that speak, each with where it did last.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, Position)> {
        self.nodes.iter().map(|(node, heard)| (*node, *heard))
    }

    /// Where a node spoke last.
    pub fn heard(&self, node: NodeId) -> Option<Position> {
        self.nodes.get(&node).copied()
    }

    fn hold(
        &mut self,
        from: NodeId,
        channel: Channel,
        mut member: Arc<Member>,
        outcome: &mut Outcome,
    ) {
        let session = member.session;
        let room = self.channels.entry(channel.clone()).or_default();
        let Some(record) = room.get_mut(&session) else {
            let is = Some(Arc::clone(&member));
            let holders = SmallVec::from_slice(&[from]);
            room.insert(session, Record { member, holders, parted: None });
            outcome.changes.push(Change { channel, session, was: None, is });
            return;
        };
        record.parted = None;
        if !record.holders.contains(&from) {
            record.holders.push(from);
        }
        if !record.member.looks_like(&member) {
            // It changed, it did not come anew.
            Arc::make_mut(&mut member).since = record.member.since;
            let was = Some(std::mem::replace(&mut record.member, member));
            let is = Some(Arc::clone(&record.member));
            outcome.changes.push(Change { channel, session, was, is });
        }
    }

    fn release(
        &mut self,
        from: NodeId,
        at: Position,
        channel: Channel,
        session: MemberId,
        outcome: &mut Outcome,
    ) {
        let Some(record) = self.channels.get_mut(&channel).and_then(|room| room.get_mut(&session))
        else {
            return;
        };
        let held = record.holders.len();
        record.holders.retain(|holder| *holder != from);
        if record.holders.is_empty() && held != 0 {
            record.parted = Some(at);
            outcome.parted.push(Parted { channel, session, at });
        }
    }

    fn remove(&mut self, channel: Channel, session: MemberId, outcome: &mut Outcome) {
        let Some(room) = self.channels.get_mut(&channel) else { return };
        let Some(record) = room.remove(&session) else { return };
        if room.is_empty() {
            self.channels.remove(&channel);
        }
        outcome.changes.push(Change { channel, session, was: Some(record.member), is: None });
    }

    fn here(
        &mut self,
        from: NodeId,
        at: Position,
        all: Vec<(Channel, Arc<Member>)>,
        outcome: &mut Outcome,
    ) {
        let held: HashSet<_> = all.iter().map(|(c, member)| (c.clone(), member.session)).collect();
        for (channel, session) in self.held_by(from) {
            if !held.contains(&(channel.clone(), session)) {
                self.release(from, at, channel, session, outcome);
            }
        }
        for (channel, member) in all {
            self.hold(from, channel, member, outcome);
        }
    }

    /// A dead node's members had more than the grace to come back elsewhere.
    fn bury(&mut self, node: NodeId, outcome: &mut Outcome) {
        self.nodes.remove(&node);
        for (channel, session) in self.held_by(node) {
            let record = self.channels.get_mut(&channel).and_then(|room| room.get_mut(&session));
            let Some(record) = record else { continue };
            record.holders.retain(|holder| *holder != node);
            if record.holders.is_empty() {
                self.remove(channel, session, outcome);
            }
        }
    }

    fn held_by(&self, node: NodeId) -> Vec<(Channel, MemberId)> {
        let rooms = self.channels.iter();
        rooms
            .flat_map(|(channel, room)| {
                let held = room.iter().filter(|(_, record)| record.holders.contains(&node));
                held.map(|(session, _)| (channel.clone(), *session))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
