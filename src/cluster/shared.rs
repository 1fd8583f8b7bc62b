//! What the cluster's tasks and the connections share: this node's view of the others, behind a mutex.

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
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tracing::{debug, warn};

use super::{
    config::ClusterConfig,
    message::{Claim, Disconnect, Payload},
    outbox::Outbox,
};
use crate::{
    metrics::Metrics,
    node::Node,
    presence::{NodeId, PresenceUpdate, ReleasedMember, Roster, subscribers::PresenceSubscribers},
    protocol::{Channel, Member, MemberId, Position},
};

/// The channel of the nodes' own log.
pub(super) const LOG: &str = "crossfade:cluster";

/// How long the first request for presence waits for the other nodes' members, and a joining node for
/// the roster.
pub(super) const SYNC_TIMEOUT: Duration = Duration::from_secs(3);

/// Requests to other nodes under way at the same time.
const REQUESTS_AT_ONCE: usize = 64;

/// This node among the others.
pub struct Cluster {
    pub(super) me: NodeId,
    pub(super) node: Arc<Node>,
    pub(super) config: ClusterConfig,
    pub(super) metrics: Arc<Metrics>,
    pub(super) state: Mutex<State>,
    /// Wakes the task that sends.
    pub(super) outbox_filled: Notify,
    /// Wakes the task that notifies presence subscribers.
    pub(super) presence_changed: Notify,
    pub(super) synced: watch::Sender<bool>,
    /// Requests to other nodes that wait for a response, by number.
    pub(super) pending: DashMap<u64, oneshot::Sender<String>>,
    pub(super) request_permits: Semaphore,
    numbers: AtomicU64,
}

/// This node's view of the others.
pub(super) struct State {
    pub(super) roster: Roster,
    pub(super) subscribers: PresenceSubscribers,
    /// The members that this node holds.
    pub(super) local: HashMap<(Channel, MemberId), LocalMember>,
    /// When each node was last heard from, by this node's clock.
    pub(super) last_heard: HashMap<NodeId, Instant>,
    /// Nodes that were reported dead, and when.
    pub(super) reported_dead: HashMap<NodeId, Instant>,
    /// Since when this node follows the log.
    pub(super) following_since: Option<Instant>,
    /// Nodes that join and wait for a snapshot, and since when.
    pub(super) newcomers: HashMap<NodeId, Instant>,
    /// The position of the last message received.
    pub(super) position: Option<Position>,
    /// This node waits for a snapshot.
    pub(super) joining: Option<JoiningNode>,
    /// Released members: until when they may reconnect, and how often their expiry was sent.
    pub(super) released: VecDeque<(Instant, ReleasedMember, u32)>,
    pub(super) outbox: Outbox,
    /// Claims may have been dropped: those not read back have to be repeated.
    pub(super) repeat_claims: bool,
}

/// What a node received while it waits for a snapshot.
#[derive(Debug, Default)]
pub(super) struct JoiningNode {
    pub(super) received: Vec<(NodeId, Position, Option<PresenceUpdate>)>,
}

/// A member that this node holds.
pub(super) struct LocalMember {
    pub(super) member: Arc<Member>,
    /// By how many connections.
    pub(super) connections: usize,
    /// Tells memberships of the same session apart: a handle from before it left has no effect on it.
    pub(super) generation: u64,
}

impl State {
    pub(super) fn forget_node(&mut self, node: NodeId) {
        self.last_heard.remove(&node);
        self.newcomers.remove(&node);
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("me", &self.me).finish_non_exhaustive()
    }
}

impl Cluster {
    pub(super) fn new(node: Arc<Node>, config: ClusterConfig) -> Self {
        let metrics = Arc::clone(node.metrics());
        let state = State {
            roster: Roster::default(),
            subscribers: PresenceSubscribers::new(config.presence_list),
            local: HashMap::new(),
            last_heard: HashMap::new(),
            reported_dead: HashMap::new(),
            following_since: None,
            newcomers: HashMap::new(),
            position: None,
            joining: None,
            released: VecDeque::new(),
            outbox: Outbox::default(),
            repeat_claims: false,
        };
        Self {
            me: NodeId::generate(),
            node,
            config,
            metrics,
            state: Mutex::new(state),
            outbox_filled: Notify::new(),
            presence_changed: Notify::new(),
            synced: watch::Sender::new(false),
            pending: DashMap::new(),
            request_permits: Semaphore::new(REQUESTS_AT_ONCE),
            numbers: AtomicU64::new(1),
        }
    }

    /// The id of this run of this process.
    pub fn node_id(&self) -> NodeId {
        self.me
    }

    /// Section `[cluster]`.
    pub fn config(&self) -> &ClusterConfig {
        &self.config
    }

    /// A number that no other connection of this node has.
    pub fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether this node follows the log and knows the other nodes' members.
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Waits until the other nodes' members are known, [`SYNC_TIMEOUT`] at most.
    pub async fn synced(&self) {
        let mut synced = self.synced.subscribe();
        if tokio::time::timeout(SYNC_TIMEOUT, synced.wait_for(|synced| *synced)).await.is_err() {
            debug!("presence is not complete: not every node has sent its members yet");
        }
    }

    /// A page of a channel's members: how many there are, and up to `limit` of those after `after`.
    pub fn members(
        &self,
        channel: &Channel,
        after: Option<MemberId>,
        limit: usize,
    ) -> (usize, Vec<Arc<Member>>) {
        let state = self.state.lock();
        let is_after = |member: &&Arc<Member>| after.is_none_or(|after| after < member.session);
        let members = state.roster.members(channel).filter(is_after).take(limit).cloned().collect();
        (state.roster.count(channel), members)
    }

    /// Tells all nodes that a session has connected to this one.
    pub fn claim(&self, claim: Claim) {
        self.send(&mut self.state.lock(), &Payload::Claim(claim));
    }

    /// Disconnects sessions, on whichever node they are.
    pub fn disconnect(&self, target: Disconnect) {
        self.send(&mut self.state.lock(), &Payload::Disconnect(target));
    }

    /// Queues a payload for all nodes.
    pub(super) fn send(&self, state: &mut State, payload: &Payload) {
        if !state.outbox.push(payload) {
            warn!(
                "the broker has been unavailable for too long: messages to other nodes were dropped, \
                 members and claims are sent again"
            );
            state.repeat_claims = true;
            self.send_local_members(state);
        }
        self.outbox_filled.notify_one();
    }

    /// Queues all members that this node holds.
    pub(super) fn send_local_members(&self, state: &mut State) {
        let local = state.local.iter();
        let members = local.map(|((c, _), local)| (c.clone(), Arc::clone(&local.member))).collect();
        let payload = Payload::Presence(PresenceUpdate::Members(members));
        state.outbox.push_uncounted(&payload);
        self.outbox_filled.notify_one();
    }
}
