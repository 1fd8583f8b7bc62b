//! What the nodes of one gateway tell each other: over a log of their own, like any channel.
//!
//! One log gives all nodes the same words in the same order, whatever the broker. From it each keeps
//! the [`Roster`]; orders to clients go up to the connections. A node says what it *holds*; the
//! oldest node alive ends what nobody holds any more. Knows no socket and no frame of a client.

mod message;
mod tasks;

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use dashmap::DashMap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tracing::{debug, info, trace, warn};

pub use self::message::{Claim, Disconnect};
use self::message::{ClusterMessage, Payload};
use crate::{
    broker::Retention,
    lifecycle::{self, Stage},
    metrics::Metrics,
    node::Node,
    presence::{
        NodeId, Outcome, Parted, PresenceUpdate, Roster, Snapshot,
        subscribers::{PresenceSubscriber, PresenceSubscribers, View},
    },
    protocol::{Channel, Data, Event, Member, MemberId, Position, UserId},
};

/// Section `[cluster]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterConfig {
    /// How long a session that went without a word may take to come back before it counts as left.
    #[serde(with = "humantime_serde")]
    pub presence_grace: Duration,
    /// Changes of presence are gathered for this long.
    #[serde(with = "humantime_serde")]
    pub presence_batch: Duration,
    /// Channels with up to so many members are listed to those who look on, larger ones counted.
    pub presence_list: usize,
    /// A node of which nothing is heard for this long is dead, and its sessions have left.
    #[serde(with = "humantime_serde")]
    pub node_timeout: Duration,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            presence_grace: Duration::from_secs(5),
            presence_batch: Duration::from_millis(50),
            presence_list: 1000,
            node_timeout: Duration::from_secs(30),
        }
    }
}

impl ClusterConfig {
    /// How long the nodes' own log is kept: long enough to find out who is alive.
    pub fn retention(&self) -> Retention {
        let age = (self.node_timeout * 4).max(Duration::from_secs(60));
        Retention { events: 100_000, age, dedup: Duration::from_secs(60) }
    }

    fn beat(&self) -> Duration {
        self.node_timeout / 6
    }
}

/// The log the nodes share.
const LOG: &str = "crossfade:cluster";

/// Orders that wait for the connections.
const ORDERS: usize = 1024;

/// How long another node may take to do what a client asked for.
const ANSWER: Duration = Duration::from_secs(3);

/// Bytes of what may be asked of another node, and of what it may answer: questions must not push out
/// what else nodes have to say.
const ASKED_BYTES: usize = 512 << 10;
const ANSWERED_BYTES: usize = 1 << 20;

/// Questions to other nodes that may be under way.
const ASKED_AT_ONCE: usize = 64;

/// How long the first question about presence waits for the other nodes to tell what they hold.
const SYNC: Duration = Duration::from_secs(3);

/// Bytes that wait to be said. Beyond, they are dropped, and all that is held is said anew.
const UNSAID_BYTES: usize = 32 << 20;

/// Something that connections have to do.
#[derive(Debug)]
pub enum Order {
    /// A connection took a session over.
    Claimed {
        /// On which node.
        node: NodeId,
        /// Which.
        claim: Claim,
    },
    /// Claims may have been lost: those under way are to be made again.
    ClaimAgain,
    /// Cut off.
    Disconnect(Disconnect),
    /// Do what a client asks for beside its stream.
    Asked {
        /// Whose stream.
        session: MemberId,
        /// What it asks for, as it came.
        frames: String,
        /// Where the answer goes.
        asker: RequestOrigin,
    },
}

/// Who waits for an answer.
#[derive(Clone, Copy, Debug)]
pub struct RequestOrigin {
    node: NodeId,
    number: u64,
}

/// This node among the others.
pub struct Cluster {
    me: NodeId,
    node: Arc<Node>,
    config: ClusterConfig,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    /// There is something to say.
    unsaid: Notify,
    /// There is something to tell those who look on.
    news: Notify,
    synced: watch::Sender<bool>,
    asking: DashMap<u64, oneshot::Sender<String>>,
    turns: Semaphore,
    numbers: AtomicU64,
}

struct State {
    roster: Roster,
    audience: PresenceSubscribers,
    /// What this node holds.
    mine: HashMap<(Channel, MemberId), LocalMember>,
    /// When each node spoke last, by this node's clock.
    heard: HashMap<NodeId, Instant>,
    /// Who was said to be dead, and when.
    accused: HashMap<NodeId, Instant>,
    /// Since when this node listens.
    joined: Option<Instant>,
    /// Who has said hello and has been shown nothing yet, and since when.
    newcomers: HashMap<NodeId, Instant>,
    /// The last event that was heard.
    reached: Option<Position>,
    /// It has said hello and waits to be shown everything.
    joining: Option<JoiningNode>,
    /// Who may still come back, until when, and how often that has been over.
    parted: VecDeque<(Instant, Parted, u32)>,
    /// What is to be said, and whether it counts towards the limit.
    unsaid: VecDeque<(String, bool)>,
    unsaid_bytes: usize,
    /// Claims may have been dropped: those that are under way are made again.
    reclaims: bool,
}

/// A node that waits to be shown everything.
#[derive(Debug, Default)]
struct JoiningNode {
    /// Who spoke since, and what was said.
    since: Vec<(NodeId, Position, Option<PresenceUpdate>)>,
}

/// A member that this node holds.
struct LocalMember {
    member: Arc<Member>,
    /// For so many connections.
    connections: usize,
    /// Which time it is that it is held: who came before it left has nothing to do with it.
    time: u64,
}

impl State {
    fn forget(&mut self, node: NodeId) {
        self.heard.remove(&node);
        self.newcomers.remove(&node);
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("me", &self.me).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Joins the other nodes. What connections have to do comes up the receiver.
    pub fn start(
        node: Arc<Node>,
        config: ClusterConfig,
        stage: &Stage,
    ) -> (Arc<Self>, mpsc::Receiver<Order>) {
        let metrics = Arc::clone(node.metrics());
        let state = State {
            roster: Roster::default(),
            audience: PresenceSubscribers::new(config.presence_list),
            mine: HashMap::new(),
            heard: HashMap::new(),
            accused: HashMap::new(),
            joined: None,
            newcomers: HashMap::new(),
            reached: None,
            joining: None,
            parted: VecDeque::new(),
            unsaid: VecDeque::new(),
            unsaid_bytes: 0,
            reclaims: false,
        };
        let cluster = Arc::new(Self {
            me: NodeId::generate(),
            node,
            config,
            metrics,
            state: Mutex::new(state),
            unsaid: Notify::new(),
            news: Notify::new(),
            synced: watch::Sender::new(false),
            asking: DashMap::new(),
            turns: Semaphore::new(ASKED_AT_ONCE),
            numbers: AtomicU64::new(1),
        });
        let (orders, receiver) = mpsc::channel(ORDERS);
        stage.spawn("cluster-listen", tasks::listen(Arc::clone(&cluster), orders, stage.clone()));
        stage.spawn("cluster-speak", tasks::speak(Arc::clone(&cluster), stage.clone()));
        stage.spawn("cluster-tell", tasks::tell(Arc::clone(&cluster), stage.clone()));
        stage.spawn("cluster-keep", tasks::keep(Arc::clone(&cluster), stage.clone()));
        (cluster, receiver)
    }

    /// This run of this process.
    pub fn me(&self) -> NodeId {
        self.me
    }

    /// Its settings.
    pub fn config(&self) -> &ClusterConfig {
        &self.config
    }

    /// A number that no other connection of this node has.
    pub fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether this node hears the others and knows what they hold.
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Waits until the other nodes have told what they hold, for a while at most.
    pub async fn synced(&self) {
        let mut synced = self.synced.subscribe();
        if tokio::time::timeout(SYNC, synced.wait_for(|synced| *synced)).await.is_err() {
            debug!("not every node has told its members yet");
        }
    }

    /// Shows a session in a channel until the returned value is dropped and the grace is over.
    /// A session that is there already goes on as it looked, unless it says something else.
    pub fn enter(
        self: &Arc<Self>,
        channel: &Channel,
        session: MemberId,
        look: Look,
    ) -> Option<PresenceHandle> {
        let mut state = self.state.lock();
        let held = state.mine.get(&(channel.clone(), session)).map(|held| &held.member);
        let before = held.or_else(|| state.roster.member(channel, session)).cloned();
        if look.state.is_none() && before.is_none() {
            return None;
        }
        let Look { user, info, state: shown } = look;
        let member = Arc::new(Member {
            session,
            user,
            info,
            state: shown.or_else(|| before.as_ref().and_then(|before| before.state.clone())),
            since: before.map_or_else(lifecycle::unix_ms, |before| before.since),
        });
        let time = self.next_number();
        let new = || LocalMember { member: Arc::clone(&member), connections: 0, time };
        let held = state.mine.entry((channel.clone(), session)).or_insert_with(new);
        held.member = Arc::clone(&member);
        held.connections += 1;
        let time = held.time;
        self.say(&mut state, &Payload::Presence(PresenceUpdate::Hold(channel.clone(), member)));
        Some(PresenceHandle { cluster: Arc::clone(self), channel: channel.clone(), session, time })
    }

    /// Shows a channel to somebody, who is told from then on what changes.
    pub fn watch(
        self: &Arc<Self>,
        channel: &Channel,
        watcher: Arc<dyn PresenceSubscriber>,
        tag: u32,
    ) -> (SubscriberHandle, View) {
        let mut state = self.state.lock();
        let State { roster, audience, .. } = &mut *state;
        let (seat, view) = audience.join(roster, channel, watcher, tag);
        drop(state);
        (SubscriberHandle { cluster: Arc::clone(self), channel: channel.clone(), seat }, view)
    }

    /// Who is in a channel: how many, and up to `limit` of those behind `after`.
    pub fn members(
        &self,
        channel: &Channel,
        after: Option<MemberId>,
        limit: usize,
    ) -> (usize, Vec<Arc<Member>>) {
        let state = self.state.lock();
        let behind = |member: &&Arc<Member>| after.is_none_or(|after| after < member.session);
        let members = state.roster.members(channel).filter(behind).take(limit).cloned().collect();
        (state.roster.count(channel), members)
    }

    /// Tells all nodes that a session came to a connection of this one.
    pub fn claim(&self, claim: Claim) {
        self.say(&mut self.state.lock(), &Payload::Claim(claim));
    }

    /// Cuts off, on whichever node.
    pub fn disconnect(&self, whom: Disconnect) {
        self.say(&mut self.state.lock(), &Payload::Disconnect(whom));
    }

    /// Has the node that has a session's stream do what its client asks for. None if no node has it.
    pub async fn ask(&self, session: MemberId, frames: String) -> Option<String> {
        if ASKED_BYTES < frames.len() {
            return None;
        }
        let Ok(_turn) = self.turns.try_acquire() else { return None };
        let number = self.next_number();
        let (answer, answered) = oneshot::channel();
        let asking = PendingRequest { cluster: self, number };
        {
            let mut state = self.state.lock();
            if state.heard.keys().all(|node| *node == self.me) {
                return None;
            }
            self.asking.insert(number, answer);
            self.say(&mut state, &Payload::Ask { number, session, frames });
        }
        let answered = tokio::time::timeout(ANSWER, answered).await;
        drop(asking);
        answered.ok()?.ok()
    }

    /// Answers what another node asked.
    pub fn answer(&self, asker: RequestOrigin, replies: String) {
        let RequestOrigin { node, number } = asker;
        let replies = if ANSWERED_BYTES < replies.len() {
            r#"{"type":"error","code":"too_large","message":"done, but the answer is too large to be passed between nodes: ask for less at once"}"#.to_owned()
        } else {
            replies
        };
        self.say(&mut self.state.lock(), &Payload::Answer { to: node, number, replies });
    }

    fn say(&self, state: &mut State, saying: &Payload) {
        let Ok(saying) = serde_json::to_string(saying) else { return };
        state.unsaid_bytes += saying.len();
        state.unsaid.push_back((saying, true));
        if UNSAID_BYTES < state.unsaid_bytes {
            warn!("the broker is away for too long: what was to be said to other nodes is dropped");
            state.unsaid.retain(|(_, counted)| !counted);
            state.unsaid_bytes = 0;
            state.reclaims = true;
            self.announce(state);
        }
        self.unsaid.notify_one();
    }

    /// Says all that is held here.
    fn announce(&self, state: &mut State) {
        let held = state.mine.iter();
        let held = held.map(|((c, _), held)| (c.clone(), Arc::clone(&held.member))).collect();
        self.say_in_any_case(state, &Payload::Presence(PresenceUpdate::Here(held)));
    }

    /// Says what is as large as what is held, and so does not count as something that piles up.
    fn say_in_any_case(&self, state: &mut State, saying: &Payload) {
        if let Ok(saying) = serde_json::to_string(saying) {
            state.unsaid.push_back((saying, false));
        }
        self.unsaid.notify_one();
    }

    /// Hears an event of the log. What connections have to do is returned.
    fn hear(&self, at: Position, event: &Event) -> Vec<Order> {
        let ClusterMessage { from, say } = match serde_json::from_str(event.data.as_str()) {
            Ok(speech) => speech,
            Err(err) => {
                warn!(%err, position = %at, "an event in {LOG} is none of a node's: passed over");
                return Vec::new();
            }
        };
        let mut state = self.state.lock();
        self.note_presence_of(&mut state, from, at);
        let mut orders = Vec::new();
        for saying in say {
            match saying {
                Payload::Presence(word) => self.listen_to(&mut state, from, at, word),
                Payload::Snapshot { to, at, whole } if to == self.me => {
                    self.take_snapshot(&mut state, at, whole);
                }
                Payload::Claim(claim) => orders.push(Order::Claimed { node: from, claim }),
                Payload::Disconnect(whom) => orders.push(Order::Disconnect(whom)),
                Payload::Ask { number, session, frames } if from != self.me => {
                    let asker = RequestOrigin { node: from, number };
                    orders.push(Order::Asked { session, frames, asker });
                }
                Payload::Answer { to, number, replies } if to == self.me => {
                    if let Some((_, asking)) = self.asking.remove(&number) {
                        let _ = asking.send(replies);
                    }
                }
                Payload::Snapshot { to, .. } => drop(state.newcomers.remove(&to)),
                Payload::Ask { .. } | Payload::Answer { .. } => {}
            }
        }
        state.reached = Some(at);
        self.show_newcomers(&mut state);
        if std::mem::take(&mut state.reclaims) {
            orders.push(Order::ClaimAgain);
        }
        if state.audience.has_news() {
            self.news.notify_one();
        }
        self.metrics.members.set(i64::try_from(state.roster.total()).unwrap_or(i64::MAX));
        orders
    }

    /// Shows everything to those who are new: the judge at once, another if that took too long.
    fn show_newcomers(&self, state: &mut State) {
        let now = Instant::now();
        let Some(at) = state.reached.filter(|_| state.joining.is_none()) else { return };
        if state.newcomers.is_empty() {
            return;
        }
        let is_judge = self.is_judge(state, now);
        let waits = |since: &Instant| is_judge || tasks::PATIENCE <= now - *since;
        let waiting: Vec<_> = state
            .newcomers
            .iter()
            .filter(|(_, since)| waits(since))
            .map(|(node, _)| *node)
            .collect();
        for node in waiting {
            state.newcomers.remove(&node);
            let whole = state.roster.snapshot();
            self.say_in_any_case(state, &Payload::Snapshot { to: node, at, whole });
        }
    }

    fn note_presence_of(&self, state: &mut State, from: NodeId, at: Position) {
        let now = Instant::now();
        match &mut state.joining {
            None => state.roster.hear(from, at),
            Some(joining) => joining.since.push((from, at, None)),
        }
        state.accused.remove(&from);
        let before = state.heard.insert(from, now);
        // This node did not hear itself for a while: nor could it hear the others.
        let gap = before.map_or(Duration::MAX, |before| now - before);
        if from == self.me && self.config.node_timeout / 2 < gap {
            state.heard.values_mut().for_each(|heard| *heard = now);
            // Nor could those be heard who came back meanwhile.
            let until = now + self.config.presence_grace;
            state.parted.iter_mut().for_each(|(at, ..)| *at = until.max(*at));
        }
    }

    /// Until it was shown everything, a new node keeps what is said for later.
    fn listen_to(&self, state: &mut State, from: NodeId, at: Position, word: PresenceUpdate) {
        match &mut state.joining {
            None => self.apply(state, from, at, word),
            Some(joining) => joining.since.push((from, at, Some(word))),
        }
    }

    fn take_snapshot(&self, state: &mut State, at: Position, whole: Snapshot) {
        let Some(joining) = &mut state.joining else { return };
        joining.since.retain(|(_, said, _)| said.epoch != at.epoch || at.offset < said.offset);
        self.begin(state, whole);
    }

    /// Begins with what it was shown, and catches up with what was said since.
    fn begin(&self, state: &mut State, shown: Snapshot) {
        let since = state.joining.take().map(|joining| joining.since).unwrap_or_default();
        let now = Instant::now();
        for (node, _) in &shown.nodes {
            state.heard.entry(*node).or_insert(now);
        }
        let outcome = state.roster.restore(shown);
        self.take_note(state, outcome);
        for (from, at, word) in since {
            state.roster.hear(from, at);
            if let Some(word) = word {
                self.apply(state, from, at, word);
            }
        }
        // What was said before this node listened, it did not hear itself.
        self.announce(state);
        self.synced.send_replace(true);
    }

    fn apply(&self, state: &mut State, from: NodeId, at: Position, word: PresenceUpdate) {
        trace!(%from, %at, ?word, "heard");
        match &word {
            PresenceUpdate::Hello if from != self.me => {
                state.newcomers.insert(from, Instant::now());
            }
            PresenceUpdate::Here(_) => drop(state.newcomers.remove(&from)),
            PresenceUpdate::Call if from != self.me => self.announce(state),
            PresenceUpdate::Bye => state.forget(from),
            PresenceUpdate::Dead(node, heard)
                if *node == self.me && state.roster.heard(*node) == Some(*heard) =>
            {
                info!("the other nodes took this one for dead: it tells anew what it holds");
                self.announce(state);
            }
            PresenceUpdate::Dead(node, heard) if state.roster.heard(*node) == Some(*heard) => {
                state.forget(*node);
            }
            _ => {}
        }
        let outcome = state.roster.apply(from, at, word);
        self.take_note(state, outcome);
    }

    fn take_note(&self, state: &mut State, Outcome { changes, parted }: Outcome) {
        state.audience.note(changes);
        let until = Instant::now() + self.config.presence_grace;
        state.parted.extend(parted.into_iter().map(|parted| (until, parted, 0)));
    }
}

/// A question under way; whoever stops waiting for the answer takes it back.
struct PendingRequest<'a> {
    cluster: &'a Cluster,
    number: u64,
}

impl Drop for PendingRequest<'_> {
    fn drop(&mut self) {
        self.cluster.asking.remove(&self.number);
    }
}

/// How a session shows itself.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Whose it is.
    pub user: Option<UserId>,
    /// What the user's token says about it.
    pub info: Option<Data>,
    /// What the session says of itself; none to go on as it was.
    pub state: Option<Data>,
}

/// A session's place in a channel. Dropped, it has the grace to come back.
#[derive(Debug)]
pub struct PresenceHandle {
    cluster: Arc<Cluster>,
    channel: Channel,
    session: MemberId,
    time: u64,
}

impl PresenceHandle {
    /// Shows another state. Whether it is still shown: another connection may have made it leave.
    pub fn update(&self, shown: Data) -> bool {
        let mut state = self.cluster.state.lock();
        let Some(held) = self.held(&mut state) else { return false };
        Arc::make_mut(&mut held.member).state = Some(shown);
        let word = PresenceUpdate::Hold(self.channel.clone(), Arc::clone(&held.member));
        self.cluster.say(&mut state, &Payload::Presence(word));
        true
    }

    /// Leaves at once, for all connections of the session.
    pub fn quit(self) {
        let mut state = self.cluster.state.lock();
        if self.held(&mut state).is_some() {
            state.mine.remove(&(self.channel.clone(), self.session));
            let word = PresenceUpdate::Quit(self.channel.clone(), self.session);
            self.cluster.say(&mut state, &Payload::Presence(word));
        }
    }

    fn held<'a>(&self, state: &'a mut State) -> Option<&'a mut LocalMember> {
        let held = state.mine.get_mut(&(self.channel.clone(), self.session))?;
        (held.time == self.time).then_some(held)
    }
}

impl Drop for PresenceHandle {
    fn drop(&mut self) {
        let mut state = self.cluster.state.lock();
        let Some(held) = self.held(&mut state) else { return };
        held.connections -= 1;
        if held.connections == 0 {
            state.mine.remove(&(self.channel.clone(), self.session));
            let word = PresenceUpdate::Release(self.channel.clone(), self.session);
            self.cluster.say(&mut state, &Payload::Presence(word));
        }
    }
}

/// A seat from which a channel's presence is watched, until it is dropped.
#[derive(Debug)]
pub struct SubscriberHandle {
    cluster: Arc<Cluster>,
    channel: Channel,
    seat: usize,
}

impl SubscriberHandle {
    /// What is there to be seen now.
    pub fn look(&self) -> Option<View> {
        let state = self.cluster.state.lock();
        state.audience.look(&state.roster, &self.channel)
    }
}

impl Drop for SubscriberHandle {
    fn drop(&mut self) {
        let gone = self.cluster.state.lock().audience.leave(&self.channel, self.seat);
        // Outside the lock: it may be the last hold on the watcher.
        drop(gone);
    }
}
