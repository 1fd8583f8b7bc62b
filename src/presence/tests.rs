//! The roster against a model cluster: in every order of operations, the view and the diffs that a
//! subscriber received add up to the roster on every node, and every member leaves exactly once.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{
    subscribers::{Delivery, PresenceDiff, PresenceSubscriber, PresenceSubscribers, View},
    *,
};
use crate::protocol::{Epoch, ServerFrame, SessionId};

const NODES: usize = 3;
const SESSIONS: usize = 4;
/// Steps of the model's clock within which a released member may reconnect.
const GRACE: u64 = 3;

/// An operation of the model cluster. One that is not possible does nothing.
#[derive(Clone, Debug)]
enum Operation {
    Join {
        session: usize,
        node: usize,
        state: u8,
    },
    Release {
        session: usize,
        node: usize,
    },
    Leave {
        session: usize,
    },
    /// A node dies without a message, and another one reports it dead.
    Kill {
        node: usize,
    },
    /// A node sends its members again, as after a lost log.
    Resend {
        node: usize,
    },
    /// A node is reported dead although it is alive.
    FalseReport {
        node: usize,
    },
    Restart {
        node: usize,
    },
    Wait {
        steps: u64,
    },
    /// A node delivers pending diffs to its subscriber.
    Deliver {
        node: usize,
    },
    /// A node applies the next updates of the log.
    Apply {
        node: usize,
        updates: usize,
    },
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let node = || 0..NODES;
    let session = || 0..SESSIONS;
    prop::collection::vec(
        prop_oneof![
            6 => (session(), node(), 0..3u8)
                .prop_map(|(session, node, state)| Operation::Join { session, node, state }),
            5 => (session(), node()).prop_map(|(session, node)| Operation::Release { session, node }),
            1 => session().prop_map(|session| Operation::Leave { session }),
            1 => node().prop_map(|node| Operation::Kill { node }),
            1 => node().prop_map(|node| Operation::Resend { node }),
            1 => node().prop_map(|node| Operation::FalseReport { node }),
            2 => node().prop_map(|node| Operation::Restart { node }),
            3 => (1..4u64).prop_map(|steps| Operation::Wait { steps }),
            4 => node().prop_map(|node| Operation::Deliver { node }),
            6 => (node(), 0..6usize).prop_map(|(node, updates)| Operation::Apply { node, updates }),
        ],
        1..80,
    )
}

fn channel() -> Channel {
    "room:1".parse().unwrap()
}

fn member(session: usize, state: u8) -> Arc<Member> {
    let id: SessionId = format!("00000000-0000-4000-8000-00000000000{session}").parse().unwrap();
    Arc::new(Member {
        session: MemberId::of(id),
        user: None,
        info: None,
        state: Some(crate::protocol::Data::json(&state.to_string()).unwrap()),
        since: 0,
    })
}

/// A node of the model: its roster, and a subscriber that adds up what it receives.
struct Replica {
    id: NodeId,
    alive: bool,
    roster: Roster,
    subscribers: PresenceSubscribers,
    read: usize,
    held_locally: BTreeMap<usize, u8>,
    released: Vec<(u64, ReleasedMember)>,
    received: BTreeMap<MemberId, Arc<Member>>,
    /// Joins minus leaves that were delivered.
    joins: BTreeMap<MemberId, i64>,
}

struct NullSubscriber;

impl PresenceSubscriber for NullSubscriber {
    fn deliver(&self, _: u32, _: &Arc<PresenceDiff>) {}
}

impl Replica {
    fn new(id: u64) -> Self {
        let (roster, mut subscribers) = (Roster::default(), PresenceSubscribers::new(100));
        let (_, View { members, .. }) =
            subscribers.subscribe(&roster, &channel(), Arc::new(NullSubscriber), 0);
        assert_eq!(members, Some(Vec::new()));
        Self {
            id: NodeId(id),
            alive: true,
            roster,
            subscribers,
            read: 0,
            held_locally: BTreeMap::new(),
            released: Vec::new(),
            received: BTreeMap::new(),
            joins: BTreeMap::new(),
        }
    }

    fn apply(&mut self, log: &[(NodeId, PresenceUpdate)], updates: usize, now: u64) {
        for (from, update) in log.iter().skip(self.read).take(updates) {
            self.read += 1;
            let at = Position::new(Epoch::new(1), self.read as u64);
            self.roster.node_heard(*from, at);
            let outcome = self.roster.apply(*from, at, update.clone());
            self.subscribers.record(outcome.changes);
            let until = now + GRACE;
            self.released.extend(outcome.released.into_iter().map(|released| (until, released)));
            self.check_view();
        }
    }

    fn deliver(&mut self) {
        for Delivery { diff: delivered, .. } in self.subscribers.take_diffs(&self.roster, true) {
            let ServerFrame::Presence { frame: diff, .. } = &delivered.frame else {
                panic!("not a presence frame: {delivered:?}")
            };
            for member in &diff.joined {
                assert!(self.received.insert(member.session, Arc::clone(member)).is_none());
                *self.joins.entry(member.session).or_default() += 1;
            }
            for member in &diff.updated {
                let before = self.received.insert(member.session, Arc::clone(member));
                assert!(before.is_some_and(|before| !before.looks_like(member)));
            }
            for left in &diff.left {
                assert!(self.received.remove(&left.session).is_some());
                *self.joins.entry(left.session).or_default() -= 1;
            }
            assert_eq!(diff.count, self.received.len());
        }
        let members: Vec<_> =
            self.roster.members(&channel()).map(|m| (m.session, &m.state)).collect();
        let received: Vec<_> = self.received.iter().map(|(id, m)| (*id, &m.state)).collect();
        assert_eq!(members, received, "the delivered diffs do not add up to the roster");
    }

    /// A new subscriber's view would be exactly what this subscriber has received.
    fn check_view(&self) {
        let view = self.subscribers.view(&self.roster, &channel()).unwrap();
        let members = view.members.unwrap();
        assert_eq!(
            members.iter().map(|m| m.session).collect::<Vec<_>>(),
            self.received.keys().copied().collect::<Vec<_>>()
        );
        assert!(members.iter().all(|member| self.received[&member.session].looks_like(member)));
    }
}

struct ModelCluster {
    log: Vec<(NodeId, PresenceUpdate)>,
    nodes: Vec<Replica>,
    now: u64,
    next_id: u64,
}

impl ModelCluster {
    fn new() -> Self {
        let nodes = (0..NODES as u64).map(Replica::new).collect();
        Self { log: Vec::new(), nodes, now: 0, next_id: NODES as u64 }
    }

    fn publish(&mut self, node: usize, update: PresenceUpdate) {
        self.log.push((self.nodes[node].id, update));
    }

    fn resend(&mut self, node: usize) {
        let held = self.nodes[node].held_locally.iter();
        let held = held.map(|(session, state)| (channel(), member(*session, *state))).collect();
        self.publish(node, PresenceUpdate::Members(held));
    }

    /// The position of a node's last update.
    fn last_heard(&self, node: NodeId) -> Option<Position> {
        let last = self.log.iter().rposition(|(from, _)| *from == node)?;
        Some(Position::new(Epoch::new(1), last as u64 + 1))
    }

    fn run(&mut self, operation: Operation) {
        match operation {
            Operation::Join { session, node, state } if self.nodes[node].alive => {
                self.nodes[node].held_locally.insert(session, state);
                self.publish(node, PresenceUpdate::Hold(channel(), member(session, state)));
            }
            Operation::Release { session, node }
                if self.nodes[node].held_locally.remove(&session).is_some() =>
            {
                self.publish(node, PresenceUpdate::Release(channel(), member(session, 0).session));
            }
            Operation::Leave { session } => {
                let with =
                    (0..NODES).find(|node| self.nodes[*node].held_locally.contains_key(&session));
                if let Some(node) = with {
                    for node in &mut self.nodes {
                        node.held_locally.remove(&session);
                    }
                    self.publish(
                        node,
                        PresenceUpdate::Leave(channel(), member(session, 0).session),
                    );
                }
            }
            Operation::Kill { node } if 1 < self.nodes.iter().filter(|node| node.alive).count() => {
                self.nodes[node].alive = false;
                self.nodes[node].held_locally.clear();
                self.report_dead(node);
            }
            Operation::Resend { node } if self.nodes[node].alive => self.resend(node),
            Operation::FalseReport { node } if self.nodes[node].alive => {
                self.report_dead(node);
                self.resend(node);
            }
            Operation::Restart { node } if !self.nodes[node].alive => {
                let mut new = Replica::new(self.next_id);
                self.next_id += 1;
                // The snapshot is of the log's end: the sender has applied everything before it.
                let Some(other) = self.nodes.iter_mut().find(|node| node.alive) else { return };
                other.apply(&self.log, usize::MAX, self.now);
                let outcome = new.roster.restore(other.roster.snapshot());
                new.read = self.log.len();
                new.subscribers.record(outcome.changes);
                let until = self.now + GRACE;
                new.released.extend(outcome.released.into_iter().map(|released| (until, released)));
                new.deliver();
                self.nodes[node] = new;
                self.publish(node, PresenceUpdate::NodeStarted);
            }
            Operation::Wait { steps } => {
                self.now += steps;
                self.expire();
            }
            Operation::Deliver { node } => self.nodes[node].deliver(),
            Operation::Apply { node, updates } => {
                let Self { nodes, log, now, .. } = self;
                nodes[node].apply(log, updates, *now);
            }
            _ => {}
        }
    }

    fn report_dead(&mut self, node: usize) {
        let (Some(heard), Some(reporter)) =
            (self.last_heard(self.nodes[node].id), self.nodes.iter().position(|node| node.alive))
        else {
            return;
        };
        let dead = self.nodes[node].id;
        self.publish(reporter, PresenceUpdate::NodeDead(dead, heard));
    }

    /// Every node may expire members: several at once, and one whose roster lags behind.
    fn expire(&mut self) {
        for node in (0..NODES).filter(|node| self.nodes[*node].alive).collect::<Vec<_>>() {
            let now = self.now;
            let (due, waiting) = std::mem::take(&mut self.nodes[node].released)
                .into_iter()
                .partition(|(until, _)| *until <= now);
            self.nodes[node].released = waiting;
            let due: Vec<(u64, ReleasedMember)> = due;
            for (_, released) in due {
                if self.nodes[node].roster.released(&channel(), released.session)
                    == Some(released.at)
                {
                    self.publish(
                        node,
                        PresenceUpdate::Expire(channel(), released.session, released.at),
                    );
                    self.nodes[node].released.push((now + 1, released));
                }
            }
        }
    }

    /// All nodes apply the whole log, every grace ends, and all diffs are delivered.
    fn settle(&mut self) {
        for _ in 0..3 {
            let Self { nodes, log, now, .. } = self;
            for node in nodes.iter_mut().filter(|node| node.alive) {
                node.apply(log, usize::MAX, *now);
                node.deliver();
            }
            self.now += GRACE + 1;
            self.expire();
        }
        let Self { nodes, log, now, .. } = self;
        for node in nodes.iter_mut().filter(|node| node.alive) {
            node.apply(log, usize::MAX, *now);
            node.deliver();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn delivered_diffs_add_up_to_the_same_roster_on_every_node(operations in operations()) {
        let mut cluster = ModelCluster::new();
        for operation in operations {
            cluster.run(operation);
        }
        cluster.settle();
        // Exactly the sessions that a live node holds are members, on all nodes.
        let mut held: Vec<MemberId> =
            cluster.nodes.iter().flat_map(|node| node.held_locally.keys()).map(|s| member(*s, 0).session).collect();
        held.sort_unstable();
        held.dedup();
        for node in cluster.nodes.iter().filter(|node| node.alive) {
            prop_assert_eq!(&node.received.keys().copied().collect::<Vec<_>>(), &held);
            for (session, balance) in &node.joins {
                prop_assert_eq!(*balance, i64::from(node.received.contains_key(session)));
            }
        }
    }

    #[test]
    fn a_member_that_reconnects_within_the_grace_does_not_leave(moves in prop::collection::vec((0..NODES, 0..GRACE), 1..30)) {
        let mut cluster = ModelCluster::new();
        cluster.run(Operation::Join { session: 0, node: 0, state: 1 });
        let mut at = 0;
        for (node, away) in moves {
            cluster.run(Operation::Release { session: 0, node: at });
            for node in 0..NODES {
                cluster.run(Operation::Apply { node, updates: usize::MAX });
            }
            cluster.run(Operation::Wait { steps: away });
            cluster.run(Operation::Join { session: 0, node, state: 1 });
            at = node;
            for node in 0..NODES {
                cluster.run(Operation::Apply { node, updates: usize::MAX });
                // Only the first join is delivered.
                cluster.run(Operation::Deliver { node });
                prop_assert_eq!(cluster.nodes[node].joins.values().sum::<i64>(), 1);
                prop_assert_eq!(cluster.nodes[node].received.len(), 1);
            }
        }
        let numbers = cluster.nodes.iter().map(|node| node.subscribers.view(&node.roster, &channel()).unwrap().number);
        prop_assert!(numbers.into_iter().all(|number| number == 1), "more than the join was delivered");
    }
}

#[test]
fn sessions_of_a_dead_node_leave_once_and_those_that_migrated_stay() {
    let mut cluster = ModelCluster::new();
    cluster.run(Operation::Join { session: 0, node: 0, state: 0 });
    cluster.run(Operation::Join { session: 1, node: 0, state: 0 });
    cluster.run(Operation::Join { session: 1, node: 1, state: 0 });
    for node in 0..NODES {
        cluster.run(Operation::Apply { node, updates: usize::MAX });
        cluster.run(Operation::Deliver { node });
    }
    cluster.run(Operation::Kill { node: 0 });
    cluster.report_dead(0);
    cluster.settle();
    for node in &cluster.nodes[1..] {
        assert_eq!(node.received.keys().copied().collect::<Vec<_>>(), [member(1, 0).session]);
        assert_eq!(node.joins[&member(0, 0).session], 0);
    }
}

#[test]
fn a_channel_over_the_list_limit_is_counted_and_listed_again_below_it() {
    let mut roster = Roster::default();
    let mut subscribers = PresenceSubscribers::new(2);
    let from = NodeId(1);
    let mut offset = 0;
    let mut apply = |roster: &mut Roster, subscribers: &mut PresenceSubscribers, update| {
        offset += 1;
        let at = Position::new(Epoch::new(1), offset);
        roster.node_heard(from, at);
        subscribers.record(roster.apply(from, at, update).changes);
    };
    subscribers.subscribe(&roster, &channel(), Arc::new(NullSubscriber), 0);
    let diff = |roster: &Roster, subscribers: &mut PresenceSubscribers| {
        let delivered = subscribers.take_diffs(roster, true).pop().unwrap().diff;
        let ServerFrame::Presence { frame, .. } = &delivered.frame else { panic!() };
        (frame.members.as_ref().map(Vec::len), frame.joined.len(), frame.left.len(), frame.count)
    };
    for session in 0..3 {
        apply(&mut roster, &mut subscribers, PresenceUpdate::Hold(channel(), member(session, 0)));
    }
    assert_eq!(diff(&roster, &mut subscribers), (None, 0, 0, 3));
    let (_, view) = subscribers.subscribe(&roster, &channel(), Arc::new(NullSubscriber), 0);
    assert_eq!((view.members.is_none(), view.count), (true, 3));
    apply(&mut roster, &mut subscribers, PresenceUpdate::Leave(channel(), member(0, 0).session));
    assert!(subscribers.take_diffs(&roster, false).is_empty(), "counts are not due yet");
    assert_eq!(diff(&roster, &mut subscribers), (Some(2), 0, 0, 2));
    apply(&mut roster, &mut subscribers, PresenceUpdate::Leave(channel(), member(1, 0).session));
    assert_eq!(diff(&roster, &mut subscribers), (None, 0, 1, 1));
}
