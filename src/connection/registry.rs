//! The registry of this node's connections, and the context that all of them share.
//!
//! It finds clients by session and checks what a client may do. It performs nothing and waits for
//! nothing.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::{Instant, SystemTime},
};

use dashmap::{DashMap, mapref::entry::Entry};
use smallvec::{SmallVec, smallvec};
use tokio_util::sync::CancellationToken;

use super::{
    client::Client, client_state::ClientState, config::ConnectionConfig,
    disconnected_sessions::DisconnectedSessions,
};
use crate::{
    auth::{Auth, Identity, Verb},
    cluster::Cluster,
    metrics::RefusedLabel,
    node::Node,
    protocol::{Channel, ClientFrame, ErrorCode, MemberId, ServerFrame, SessionId},
    rollout::Rollouts,
    session::LimitsConfig,
    wire::Transport,
};

/// The connections of this node and what they share.
#[derive(Debug)]
pub struct Connections {
    /// The logs that connections read from and publish to.
    pub node: Arc<Node>,
    /// Identities and permissions.
    pub auth: Arc<Auth>,
    /// The other nodes, and presence.
    pub cluster: Arc<Cluster>,
    /// The rollouts.
    pub rollouts: Rollouts,
    /// Section `[connection]`.
    pub config: ConnectionConfig,
    /// Section `[limits]`.
    pub limits: LimitsConfig,
    /// Cancelled when all connections have to close.
    pub stopping: CancellationToken,
    /// Clients by session. A session has two while it migrates.
    pub(super) sessions: DashMap<MemberId, SmallVec<[Arc<Client>; 1]>>,
    /// How many clients migrated to this node from another transport.
    pub(super) migrated: AtomicU64,
    /// Sessions that may reconnect.
    pub(super) disconnected: DisconnectedSessions,
}

impl Connections {
    /// A registry without connections.
    pub fn new(
        node: Arc<Node>,
        (auth, cluster): (Arc<Auth>, Arc<Cluster>),
        rollouts: Rollouts,
        config: ConnectionConfig,
        limits: LimitsConfig,
        stopping: CancellationToken,
    ) -> Self {
        Self {
            node,
            auth,
            cluster,
            rollouts,
            config,
            limits,
            stopping,
            sessions: DashMap::new(),
            migrated: AtomicU64::new(0),
            disconnected: DisconnectedSessions::default(),
        }
    }

    /// Adds a client under its session.
    pub(super) fn insert(&self, session: MemberId, client: Arc<Client>) {
        self.sessions.entry(session).or_default().push(client);
    }

    /// Removes a client whose connection ended.
    pub(super) fn remove(&self, session: SessionId, client: &Arc<Client>) {
        if let Entry::Occupied(mut clients) = self.sessions.entry(MemberId::of(session)) {
            clients.get_mut().retain(|other| !Arc::ptr_eq(other, client));
            if clients.get().is_empty() {
                clients.remove();
            }
        }
    }

    /// The clients of a session.
    pub(super) fn clients_of(&self, session: MemberId) -> Vec<Arc<Client>> {
        self.sessions.get(&session).map(|clients| clients.to_vec()).unwrap_or_default()
    }

    /// The newest client of a session.
    pub(super) fn newest_client_of(&self, session: MemberId) -> Option<Arc<Client>> {
        self.sessions.get(&session)?.last().map(Arc::clone)
    }

    /// The newest SSE client of a session.
    pub(super) fn newest_stream_of(&self, session: MemberId) -> Option<Arc<Client>> {
        let clients = self.sessions.get(&session)?;
        let is_current = |client: &&Arc<Client>| {
            client.format.transport == Transport::Sse && !client.state().superseded
        };
        clients.iter().rev().find(is_current).map(Arc::clone)
    }

    /// All clients that match.
    pub(super) fn clients_where(&self, matches: impl Fn(&Client) -> bool) -> Vec<Arc<Client>> {
        let all = self.sessions.iter();
        all.flat_map(|clients| clients.to_vec()).filter(|client| matches(client)).collect()
    }

    /// Checks a request against the session's rules, the client's permissions and its rate of
    /// publishes.
    ///
    /// # Errors
    /// With the reply that refuses it. A missing permission is reported before anything else.
    pub(super) fn check(
        &self,
        state: &mut ClientState,
        frame: &ClientFrame,
    ) -> Result<(), ServerFrame> {
        let anonymous = Identity::default();
        let identity = state.identity.as_deref().unwrap_or(&anonymous);
        let renews = matches!(frame, ClientFrame::Connect { .. });
        if !renews && identity.expires_at.is_some_and(|at| at <= SystemTime::now()) {
            let message = "the token has expired: connect with a new one".to_owned();
            return Err(frame.refused(ErrorCode::TokenExpired, message));
        }
        for (verb, channel) in required_permissions(frame) {
            if !self.auth.allows(identity, verb, channel) {
                self.count_refused("forbidden");
                let message = format!("you may not {} {channel}", verb.as_words());
                return Err(frame.refused(ErrorCode::Forbidden, message));
            }
        }
        state.session.check(frame, &self.limits)?;
        let (rate, burst) = (self.limits.publishes_per_second, self.limits.publishes_burst);
        let publishes = matches!(frame, ClientFrame::Publish { .. });
        if publishes && !state.publish_bucket.take(Instant::now(), rate, burst) {
            self.count_refused("publishes_per_second");
            let message = format!("a session may publish {rate} events a second: wait a moment");
            return Err(frame.refused(ErrorCode::LimitExceeded, message));
        }
        Ok(())
    }

    /// Counts a refusal in `crossfade_refused_total`.
    pub fn count_refused(&self, reason: &'static str) {
        self.node.metrics().refused.get_or_create(&RefusedLabel { reason }).inc();
    }
}

/// The permissions that a request needs.
fn required_permissions(frame: &ClientFrame) -> SmallVec<[(Verb, &Channel); 2]> {
    match frame {
        ClientFrame::Subscribe { channel, presence, state, .. } => {
            let uses_presence = *presence || state.is_some();
            let presence = uses_presence.then_some((Verb::Presence, channel));
            [(Verb::Subscribe, channel)].into_iter().chain(presence).collect()
        }
        ClientFrame::Publish { channel, .. } => smallvec![(Verb::Publish, channel)],
        // Every member may leave.
        ClientFrame::Presence { state: None, .. } => SmallVec::new(),
        ClientFrame::Presence { channel, .. } => smallvec![(Verb::Presence, channel)],
        ClientFrame::History { channel, .. } => smallvec![(Verb::History, channel)],
        ClientFrame::Connect { .. }
        | ClientFrame::Unsubscribe { .. }
        | ClientFrame::Report { .. }
        | ClientFrame::Goodbye
        | ClientFrame::Pong => SmallVec::new(),
    }
}
