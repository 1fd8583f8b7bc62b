//! Presence: the members of every channel, cluster-wide. A replicated state machine: every node keeps
//! a [`Roster`], and all rosters are the same, since all nodes apply the same updates in the same order.
//!
//! Pure: no clock, no broker, no client. A session is a member of a channel for as long as a node
//! *holds* it there. Several nodes may at once, while the session migrates; the last one's release
//! starts the grace, and the member leaves only by the update that ends the grace or by the death of
//! its node. [`subscribers`] derives what subscribers are sent; `cluster` carries the updates.

pub mod subscribers;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::protocol::{Channel, Member, MemberId, Position};

/// The id of one run of one gateway process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(u64);

impl NodeId {
    /// A new random id.
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

/// A change of presence that a node publishes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PresenceUpdate {
    /// The sender holds this member.
    Hold(Channel, Arc<Member>),
    /// The sender holds it no longer; its session may reconnect, to any node.
    Release(Channel, MemberId),
    /// The member left on purpose.
    Leave(Channel, MemberId),
    /// The member did not reconnect after it was released at this position.
    Expire(Channel, MemberId, Position),
    /// The sender joins: it asks for a snapshot as of this update.
    NodeStarted,
    /// All nodes are asked for the members that they hold.
    Resync,
    /// All members that the sender holds.
    Members(Vec<(Channel, Arc<Member>)>),
    /// This node has been silent since that position.
    NodeDead(NodeId, Position),
    /// The sender stops.
    NodeStopped,
}

/// A change of a member, as subscribers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberChange {
    /// The channel.
    pub channel: Channel,
    /// The member.
    pub session: MemberId,
    /// The member before, if there was one.
    pub was: Option<Arc<Member>>,
    /// The member now, if there is one.
    pub is: Option<Arc<Member>>,
}

/// A member that no node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleasedMember {
    /// The channel.
    pub channel: Channel,
    /// The member.
    pub session: MemberId,
    /// The position of the update that released it.
    pub at: Position,
}

/// What follows from an update.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What subscribers have to be sent.
    pub changes: Vec<MemberChange>,
    /// Members whose grace begins.
    pub released: Vec<ReleasedMember>,
}

/// The members of all channels.
#[derive(Debug, Default)]
pub struct Roster {
    channels: HashMap<Channel, BTreeMap<MemberId, MemberRecord>>,
    /// The nodes, each with the position of its last message.
    nodes: HashMap<NodeId, Position>,
}

/// A member and the nodes that hold it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    member: Arc<Member>,
    holders: SmallVec<[NodeId; 2]>,
    /// The position of the last holder's release.
    released: Option<Position>,
}

/// A roster, as one node sends it to another that joins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// All members.
    pub records: Vec<(Channel, MemberRecord)>,
    /// The nodes, each with the position of its last message.
    pub nodes: Vec<(NodeId, Position)>,
}

impl Roster {
    /// All members and nodes.
    pub fn snapshot(&self) -> Snapshot {
        let channels = self.channels.iter();
        let records = channels
            .flat_map(|(channel, members)| members.values().map(|r| (channel.clone(), r.clone())))
            .collect();
        Snapshot { records, nodes: self.nodes().collect() }
    }

    /// Starts from a snapshot.
    pub fn restore(&mut self, snapshot: Snapshot) -> Outcome {
        let mut outcome = Outcome::default();
        for (node, heard) in snapshot.nodes {
            self.node_heard(node, heard);
        }
        for (channel, record) in snapshot.records {
            let (session, is) = (record.member.session, Some(Arc::clone(&record.member)));
            if let Some(at) = record.released {
                outcome.released.push(ReleasedMember { channel: channel.clone(), session, at });
            }
            let members = self.channels.entry(channel.clone()).or_default();
            let was = members.insert(session, record).map(|record| record.member);
            outcome.changes.push(MemberChange { channel, session, was, is });
        }
        outcome
    }

    /// Records that a node sent a message at a position.
    pub fn node_heard(&mut self, from: NodeId, at: Position) {
        self.nodes.insert(from, at);
    }

    /// Applies an update that `from` sent at a position.
    pub fn apply(&mut self, from: NodeId, at: Position, update: PresenceUpdate) -> Outcome {
        let mut outcome = Outcome::default();
        match update {
            PresenceUpdate::Hold(channel, member) => self.hold(from, channel, member, &mut outcome),
            PresenceUpdate::Release(channel, session) => {
                self.release(from, at, channel, session, &mut outcome);
            }
            PresenceUpdate::Leave(channel, session) => self.remove(channel, session, &mut outcome),
            PresenceUpdate::Expire(channel, session, released) => {
                if self.released(&channel, session) == Some(released) {
                    self.remove(channel, session, &mut outcome);
                }
            }
            PresenceUpdate::NodeStarted | PresenceUpdate::Resync => {}
            PresenceUpdate::Members(all) => self.replace_members(from, at, all, &mut outcome),
            PresenceUpdate::NodeDead(node, heard) => {
                if self.last_heard(node) == Some(heard) {
                    self.remove_node(node, &mut outcome);
                }
            }
            PresenceUpdate::NodeStopped => {
                self.nodes.remove(&from);
                for (channel, session) in self.members_held_by(from) {
                    self.release(from, at, channel, session, &mut outcome);
                }
            }
        }
        outcome
    }

    /// The members of a channel, in the order of their ids.
    pub fn members(&self, channel: &Channel) -> impl Iterator<Item = &Arc<Member>> {
        self.channels.get(channel).into_iter().flatten().map(|(_, record)| &record.member)
    }

    /// How many members a channel has.
    pub fn count(&self, channel: &Channel) -> usize {
        self.channels.get(channel).map_or(0, BTreeMap::len)
    }

    /// How many members all channels have together.
    pub fn total(&self) -> usize {
        self.channels.values().map(BTreeMap::len).sum()
    }

    /// One member of a channel.
    pub fn member(&self, channel: &Channel, session: MemberId) -> Option<&Arc<Member>> {
        Some(&self.channels.get(channel)?.get(&session)?.member)
    }

    /// The position of the release of a member that no node holds.
    pub fn released(&self, channel: &Channel, session: MemberId) -> Option<Position> {
        self.channels.get(channel)?.get(&session)?.released
    }

    /// The nodes, each with the position of its last message.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, Position)> {
        self.nodes.iter().map(|(node, heard)| (*node, *heard))
    }

    /// The position of a node's last message.
    pub fn last_heard(&self, node: NodeId) -> Option<Position> {
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
        let members = self.channels.entry(channel.clone()).or_default();
        let Some(record) = members.get_mut(&session) else {
            let is = Some(Arc::clone(&member));
            let holders = SmallVec::from_slice(&[from]);
            members.insert(session, MemberRecord { member, holders, released: None });
            outcome.changes.push(MemberChange { channel, session, was: None, is });
            return;
        };
        record.released = None;
        if !record.holders.contains(&from) {
            record.holders.push(from);
        }
        if !record.member.looks_like(&member) {
            // It changed its state, it did not join anew.
            Arc::make_mut(&mut member).since = record.member.since;
            let was = Some(std::mem::replace(&mut record.member, member));
            let is = Some(Arc::clone(&record.member));
            outcome.changes.push(MemberChange { channel, session, was, is });
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
        let Some(record) =
            self.channels.get_mut(&channel).and_then(|members| members.get_mut(&session))
        else {
            return;
        };
        let held = record.holders.len();
        record.holders.retain(|holder| *holder != from);
        if record.holders.is_empty() && held != 0 {
            record.released = Some(at);
            outcome.released.push(ReleasedMember { channel, session, at });
        }
    }

    fn remove(&mut self, channel: Channel, session: MemberId, outcome: &mut Outcome) {
        let Some(members) = self.channels.get_mut(&channel) else { return };
        let Some(record) = members.remove(&session) else { return };
        if members.is_empty() {
            self.channels.remove(&channel);
        }
        outcome.changes.push(MemberChange { channel, session, was: Some(record.member), is: None });
    }

    fn replace_members(
        &mut self,
        from: NodeId,
        at: Position,
        all: Vec<(Channel, Arc<Member>)>,
        outcome: &mut Outcome,
    ) {
        let held: HashSet<_> = all.iter().map(|(c, member)| (c.clone(), member.session)).collect();
        for (channel, session) in self.members_held_by(from) {
            if !held.contains(&(channel.clone(), session)) {
                self.release(from, at, channel, session, outcome);
            }
        }
        for (channel, member) in all {
            self.hold(from, channel, member, outcome);
        }
    }

    /// Removes a dead node and the members that only it held: they had more than the grace to reconnect
    /// elsewhere.
    fn remove_node(&mut self, node: NodeId, outcome: &mut Outcome) {
        self.nodes.remove(&node);
        for (channel, session) in self.members_held_by(node) {
            let record =
                self.channels.get_mut(&channel).and_then(|members| members.get_mut(&session));
            let Some(record) = record else { continue };
            record.holders.retain(|holder| *holder != node);
            if record.holders.is_empty() {
                self.remove(channel, session, outcome);
            }
        }
    }

    fn members_held_by(&self, node: NodeId) -> Vec<(Channel, MemberId)> {
        let channels = self.channels.iter();
        channels
            .flat_map(|(channel, members)| {
                let held = members.iter().filter(|(_, record)| record.holders.contains(&node));
                held.map(|(session, _)| (channel.clone(), *session))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
