//! The roster against a model: whatever happens in whatever order, what onlookers were shown and
//! told adds up to who is there, on every node, and everybody leaves once.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{
    subscribers::{Delivery, PresenceDiff, PresenceSubscriber, PresenceSubscribers, View},
    *,
};
use crate::protocol::{Epoch, ServerFrame, SessionId};

const NODES: usize = 3;
const SESSIONS: usize = 4;
/// Steps of the model's clock that a session may stay away.
const GRACE: u64 = 3;

/// What may happen. Numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Act {
    Join {
        session: usize,
        node: usize,
        state: u8,
    },
    Part {
        session: usize,
        node: usize,
    },
    Quit {
        session: usize,
    },
    /// A node is gone without a word, and another finds out.
    Kill {
        node: usize,
    },
    /// A node says anew what it holds, as after a lost log.
    Announce {
        node: usize,
    },
    /// A node was taken for dead though it lives.
    Slander {
        node: usize,
    },
    Restart {
        node: usize,
    },
    Wait {
        steps: u64,
    },
    /// A node's onlookers hear what it has for them.
    Tell {
        node: usize,
    },
    /// A node catches up with the log.
    Listen {
        node: usize,
        words: usize,
    },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let node = || 0..NODES;
    let session = || 0..SESSIONS;
    prop::collection::vec(
        prop_oneof![
            6 => (session(), node(), 0..3u8)
                .prop_map(|(session, node, state)| Act::Join { session, node, state }),
            5 => (session(), node()).prop_map(|(session, node)| Act::Part { session, node }),
            1 => session().prop_map(|session| Act::Quit { session }),
            1 => node().prop_map(|node| Act::Kill { node }),
            1 => node().prop_map(|node| Act::Announce { node }),
            1 => node().prop_map(|node| Act::Slander { node }),
            2 => node().prop_map(|node| Act::Restart { node }),
            3 => (1..4u64).prop_map(|steps| Act::Wait { steps }),
            4 => node().prop_map(|node| Act::Tell { node }),
            6 => (node(), 0..6usize).prop_map(|(node, words)| Act::Listen { node, words }),
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

/// A node of the model: its replica, and an onlooker who adds up what it is told.
struct Replica {
    id: NodeId,
    alive: bool,
    roster: Roster,
    subscribers: PresenceSubscribers,
    read: usize,
    mine: BTreeMap<usize, u8>,
    released: Vec<(u64, ReleasedMember)>,
    shown: BTreeMap<MemberId, Arc<Member>>,
    joined: BTreeMap<MemberId, i64>,
}

struct Nobody;

impl PresenceSubscriber for Nobody {
    fn deliver(&self, _: u32, _: &Arc<PresenceDiff>) {}
}

impl Replica {
    fn new(id: u64) -> Self {
        let (roster, mut subscribers) = (Roster::default(), PresenceSubscribers::new(100));
        let (_, View { members, .. }) =
            subscribers.subscribe(&roster, &channel(), Arc::new(Nobody), 0);
        assert_eq!(members, Some(Vec::new()));
        Self {
            id: NodeId(id),
            alive: true,
            roster,
            subscribers,
            read: 0,
            mine: BTreeMap::new(),
            released: Vec::new(),
            shown: BTreeMap::new(),
            joined: BTreeMap::new(),
        }
    }

    fn listen(&mut self, log: &[(NodeId, PresenceUpdate)], words: usize, now: u64) {
        for (from, word) in log.iter().skip(self.read).take(words) {
            self.read += 1;
            let at = Position::new(Epoch::new(1), self.read as u64);
            self.roster.node_heard(*from, at);
            let outcome = self.roster.apply(*from, at, word.clone());
            self.subscribers.record(outcome.changes);
            let until = now + GRACE;
            self.released.extend(outcome.released.into_iter().map(|released| (until, released)));
            self.check();
        }
    }

    fn tell(&mut self) {
        for Delivery { diff, .. } in self.subscribers.take_diffs(&self.roster, true) {
            let ServerFrame::Presence { frame: news, .. } = &diff.frame else { panic!("{diff:?}") };
            for member in &news.joined {
                assert!(self.shown.insert(member.session, Arc::clone(member)).is_none());
                *self.joined.entry(member.session).or_default() += 1;
            }
            for member in &news.updated {
                let before = self.shown.insert(member.session, Arc::clone(member));
                assert!(before.is_some_and(|before| !before.looks_like(member)));
            }
            for left in &news.left {
                assert!(self.shown.remove(&left.session).is_some());
                *self.joined.entry(left.session).or_default() -= 1;
            }
            assert_eq!(news.count, self.shown.len());
        }
        let there: Vec<_> =
            self.roster.members(&channel()).map(|m| (m.session, &m.state)).collect();
        let shown: Vec<_> = self.shown.iter().map(|(id, m)| (*id, &m.state)).collect();
        assert_eq!(there, shown, "what was told is not what is there");
    }

    /// Whoever came new would be shown exactly what this onlooker has.
    fn check(&self) {
        let view = self.subscribers.view(&self.roster, &channel()).unwrap();
        let members = view.members.unwrap();
        assert_eq!(
            members.iter().map(|m| m.session).collect::<Vec<_>>(),
            self.shown.keys().copied().collect::<Vec<_>>()
        );
        assert!(members.iter().all(|member| self.shown[&member.session].looks_like(member)));
    }
}

struct World {
    log: Vec<(NodeId, PresenceUpdate)>,
    nodes: Vec<Replica>,
    now: u64,
    next_id: u64,
}

impl World {
    fn new() -> Self {
        let nodes = (0..NODES as u64).map(Replica::new).collect();
        Self { log: Vec::new(), nodes, now: 0, next_id: NODES as u64 }
    }

    fn say(&mut self, node: usize, word: PresenceUpdate) {
        self.log.push((self.nodes[node].id, word));
    }

    fn announce(&mut self, node: usize) {
        let held = self.nodes[node].mine.iter();
        let held = held.map(|(session, state)| (channel(), member(*session, *state))).collect();
        self.say(node, PresenceUpdate::Members(held));
    }

    /// Where a node spoke last.
    fn heard(&self, node: NodeId) -> Option<Position> {
        let last = self.log.iter().rposition(|(from, _)| *from == node)?;
        Some(Position::new(Epoch::new(1), last as u64 + 1))
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Join { session, node, state } if self.nodes[node].alive => {
                self.nodes[node].mine.insert(session, state);
                self.say(node, PresenceUpdate::Hold(channel(), member(session, state)));
            }
            Act::Part { session, node } if self.nodes[node].mine.remove(&session).is_some() => {
                self.say(node, PresenceUpdate::Release(channel(), member(session, 0).session));
            }
            Act::Quit { session } => {
                let with = (0..NODES).find(|node| self.nodes[*node].mine.contains_key(&session));
                if let Some(node) = with {
                    for node in &mut self.nodes {
                        node.mine.remove(&session);
                    }
                    self.say(node, PresenceUpdate::Leave(channel(), member(session, 0).session));
                }
            }
            Act::Kill { node } if 1 < self.nodes.iter().filter(|node| node.alive).count() => {
                self.nodes[node].alive = false;
                self.nodes[node].mine.clear();
                self.remove_node(node);
            }
            Act::Announce { node } if self.nodes[node].alive => self.announce(node),
            Act::Slander { node } if self.nodes[node].alive => {
                self.remove_node(node);
                self.announce(node);
            }
            Act::Restart { node } if !self.nodes[node].alive => {
                let mut new = Replica::new(self.next_id);
                self.next_id += 1;
                // It says hello, and whoever shows it the roster has read exactly so far.
                let Some(other) = self.nodes.iter_mut().find(|node| node.alive) else { return };
                other.listen(&self.log, usize::MAX, self.now);
                let outcome = new.roster.restore(other.roster.snapshot());
                new.read = self.log.len();
                new.subscribers.record(outcome.changes);
                let until = self.now + GRACE;
                new.released.extend(outcome.released.into_iter().map(|released| (until, released)));
                new.tell();
                self.nodes[node] = new;
                self.say(node, PresenceUpdate::NodeStarted);
            }
            Act::Wait { steps } => {
                self.now += steps;
                self.expire();
            }
            Act::Tell { node } => self.nodes[node].tell(),
            Act::Listen { node, words } => {
                let Self { nodes, log, now, .. } = self;
                nodes[node].listen(log, words, *now);
            }
            _ => {}
        }
    }

    fn remove_node(&mut self, node: usize) {
        let (Some(heard), Some(judge)) =
            (self.heard(self.nodes[node].id), self.nodes.iter().position(|node| node.alive))
        else {
            return;
        };
        let dead = self.nodes[node].id;
        self.say(judge, PresenceUpdate::NodeDead(dead, heard));
    }

    /// Any node may judge, also two of them, also one that lags behind.
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
                    self.say(
                        node,
                        PresenceUpdate::Expire(channel(), released.session, released.at),
                    );
                    self.nodes[node].released.push((now + 1, released));
                }
            }
        }
    }

    /// Everybody reads to the end, the grace of all is over, and everything is told.
    fn settle(&mut self) {
        for _ in 0..3 {
            let Self { nodes, log, now, .. } = self;
            for node in nodes.iter_mut().filter(|node| node.alive) {
                node.listen(log, usize::MAX, *now);
                node.tell();
            }
            self.now += GRACE + 1;
            self.expire();
        }
        let Self { nodes, log, now, .. } = self;
        for node in nodes.iter_mut().filter(|node| node.alive) {
            node.listen(log, usize::MAX, *now);
            node.tell();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_told_adds_up_on_every_node(acts in acts()) {
        let mut world = World::new();
        for act in acts {
            world.act(act);
        }
        world.settle();
        // Who is held by somebody alive is there, nobody else is, and all nodes say so.
        let mut held: Vec<MemberId> =
            world.nodes.iter().flat_map(|node| node.mine.keys()).map(|s| member(*s, 0).session).collect();
        held.sort_unstable();
        held.dedup();
        for node in world.nodes.iter().filter(|node| node.alive) {
            prop_assert_eq!(&node.shown.keys().copied().collect::<Vec<_>>(), &held);
            for (session, balance) in &node.joined {
                prop_assert_eq!(*balance, i64::from(node.shown.contains_key(session)));
            }
        }
    }

    #[test]
    fn who_comes_back_in_time_was_never_away(moves in prop::collection::vec((0..NODES, 0..GRACE), 1..30)) {
        let mut world = World::new();
        world.act(Act::Join { session: 0, node: 0, state: 1 });
        let mut at = 0;
        for (node, away) in moves {
            world.act(Act::Part { session: 0, node: at });
            for node in 0..NODES {
                world.act(Act::Listen { node, words: usize::MAX });
            }
            world.act(Act::Wait { steps: away });
            world.act(Act::Join { session: 0, node, state: 1 });
            at = node;
            for node in 0..NODES {
                world.act(Act::Listen { node, words: usize::MAX });
                // Nothing but the first join.
                world.act(Act::Tell { node });
                prop_assert_eq!(world.nodes[node].joined.values().sum::<i64>(), 1);
                prop_assert_eq!(world.nodes[node].shown.len(), 1);
            }
        }
        let left = world.nodes.iter().map(|node| node.subscribers.view(&node.roster, &channel()).unwrap().number);
        prop_assert!(left.into_iter().all(|news| news == 1), "more was told than that it came");
    }
}

#[test]
fn a_dead_nodes_sessions_leave_once_and_those_who_went_elsewhere_stay() {
    let mut world = World::new();
    world.act(Act::Join { session: 0, node: 0, state: 0 });
    world.act(Act::Join { session: 1, node: 0, state: 0 });
    world.act(Act::Join { session: 1, node: 1, state: 0 });
    for node in 0..NODES {
        world.act(Act::Listen { node, words: usize::MAX });
        world.act(Act::Tell { node });
    }
    world.act(Act::Kill { node: 0 });
    world.remove_node(0);
    world.settle();
    for node in &world.nodes[1..] {
        assert_eq!(node.shown.keys().copied().collect::<Vec<_>>(), [member(1, 0).session]);
        assert_eq!(node.joined[&member(0, 0).session], 0);
    }
}

#[test]
fn a_channel_beyond_the_limit_is_counted_and_listed_again_when_it_is_small() {
    let mut roster = Roster::default();
    let mut subscribers = PresenceSubscribers::new(2);
    let from = NodeId(1);
    let mut offset = 0;
    let mut apply = |roster: &mut Roster, subscribers: &mut PresenceSubscribers, word| {
        offset += 1;
        let at = Position::new(Epoch::new(1), offset);
        roster.node_heard(from, at);
        subscribers.record(roster.apply(from, at, word).changes);
    };
    subscribers.subscribe(&roster, &channel(), Arc::new(Nobody), 0);
    let told = |roster: &Roster, subscribers: &mut PresenceSubscribers| {
        let diff = subscribers.take_diffs(roster, true).pop().unwrap().diff;
        let ServerFrame::Presence { frame: news, .. } = &diff.frame else { panic!() };
        (news.members.as_ref().map(Vec::len), news.joined.len(), news.left.len(), news.count)
    };
    for session in 0..3 {
        apply(&mut roster, &mut subscribers, PresenceUpdate::Hold(channel(), member(session, 0)));
    }
    assert_eq!(told(&roster, &mut subscribers), (None, 0, 0, 3));
    let (_, view) = subscribers.subscribe(&roster, &channel(), Arc::new(Nobody), 0);
    assert_eq!((view.members.is_none(), view.count), (true, 3));
    apply(&mut roster, &mut subscribers, PresenceUpdate::Leave(channel(), member(0, 0).session));
    assert!(subscribers.take_diffs(&roster, false).is_empty(), "counts are not due yet");
    assert_eq!(told(&roster, &mut subscribers), (Some(2), 0, 0, 2));
    apply(&mut roster, &mut subscribers, PresenceUpdate::Leave(channel(), member(1, 0).session));
    assert_eq!(told(&roster, &mut subscribers), (None, 0, 1, 1));
}
