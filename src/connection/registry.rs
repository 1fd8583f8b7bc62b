//! What all connections of a gateway share: where they read, what they may, and who is here.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Instant, SystemTime},
};

use dashmap::{DashMap, mapref::entry::Entry};
use serde_json::value::RawValue;
use smallvec::{SmallVec, smallvec};
use tokio_util::sync::CancellationToken;

use super::{
    ConnectRequest, ConnectionConfig,
    client::{Client, ClientState},
    migration::MigrationState,
    requests,
    session_stats::DisconnectedSessions,
    welcome,
};
use crate::{
    auth::{Auth, Identity, Verb},
    cluster::{Claim, Cluster},
    metrics::RefusedLabel,
    node::Node,
    protocol::{Channel, ClientFrame, ErrorCode, FrameError, MemberId, ServerFrame, SessionId},
    rollout::Rollouts,
    session::LimitsConfig,
};

/// What all connections of a gateway share.
#[derive(Debug)]
pub struct Connections {
    /// What the connections read from and publish to.
    pub node: Arc<Node>,
    /// Who somebody is, and what they may do.
    pub auth: Arc<Auth>,
    /// The other nodes, and who is where.
    pub cluster: Arc<Cluster>,
    /// The rollouts.
    pub rollouts: Rollouts,
    /// Section `[connection]`.
    pub config: ConnectionConfig,
    /// Section `[limits]`.
    pub limits: LimitsConfig,
    /// Tells all connections to part.
    pub stopping: CancellationToken,
    /// The sessions of this node. One may have two connections while it moves.
    pub(super) sessions: DashMap<MemberId, SmallVec<[Arc<Client>; 1]>>,
    /// Clients that came over from another transport by plan.
    pub(super) moved: AtomicU64,
    /// Sessions that may come back.
    pub(super) departures: DisconnectedSessions,
}

impl Connections {
    /// A floor without connections.
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
            moved: AtomicU64::new(0),
            departures: DisconnectedSessions::default(),
        }
    }

    /// Performs what an SSE session asks for beside its stream, on whichever node that is: a frame or
    /// a list of them, as it came. The replies likewise; none when no node has the session's stream.
    pub async fn ask(&self, session: SessionId, frames: String) -> Option<String> {
        let session = MemberId::of(session);
        match self.ask_here(session, &frames).await {
            Some(replies) => Some(replies),
            // What nodes tell each other is written down; a token is not to be.
            None if brings_a_token(&frames) => None,
            None => self.cluster.ask(session, frames).await,
        }
    }

    /// The same for a session of this node.
    pub(super) async fn ask_here(&self, session: MemberId, frames: &str) -> Option<String> {
        let client = if only_tells(frames) {
            // A page that closes has no time for its WebSocket: what it measured comes beside it.
            self.sessions.get(&session)?.last().map(Arc::clone)?
        } else {
            self.stream_of(session)?
        };
        let Ok(frames) = serde_json::from_str::<Vec<&RawValue>>(frames) else {
            let reply = self.perform(&client, frames).await;
            return Some(reply.as_ref().map_or_else(String::new, to_json));
        };
        let mut replies = Vec::with_capacity(frames.len());
        for frame in frames {
            replies.extend(self.perform(&client, frame.get()).await);
        }
        Some(to_json(&replies))
    }

    /// Whether the rules and the client's rights allow what a frame asks for. What is not allowed is
    /// refused before anything else is said about it.
    pub(super) fn check(
        &self,
        client_state: &mut ClientState,
        frame: &ClientFrame,
    ) -> Result<(), ServerFrame> {
        let nobody = Identity::default();
        let identity = client_state.identity.as_deref().unwrap_or(&nobody);
        let renews = matches!(frame, ClientFrame::Connect { .. });
        if !renews && identity.expires_at.is_some_and(|at| at <= SystemTime::now()) {
            let message = "the token has expired: connect with a new one".to_owned();
            return Err(frame.refused(ErrorCode::TokenExpired, message));
        }
        for (verb, channel) in needs(frame) {
            if !self.auth.may(identity, verb, channel) {
                self.count_refused("forbidden");
                let message = format!("you may not {} {channel}", verb.as_words());
                return Err(frame.refused(ErrorCode::Forbidden, message));
            }
        }
        client_state.session.check(frame, &self.limits)?;
        let (rate, burst) = (self.limits.publishes_per_second, self.limits.publishes_burst);
        let publishes = matches!(frame, ClientFrame::Publish { .. });
        if publishes && !client_state.publishing.take(Instant::now(), rate, burst) {
            self.count_refused("publishes");
            let message = format!("a session may publish {rate} events a second: wait a moment");
            return Err(frame.refused(ErrorCode::LimitExceeded, message));
        }
        Ok(())
    }

    /// Counts somebody who was refused something.
    pub fn count_refused(&self, reason: &'static str) {
        self.node.metrics().refused.get_or_create(&RefusedLabel { reason }).inc();
    }

    /// Welcomes a client of a known identity, with the session it had before or a new one.
    pub(super) fn welcome(
        &self,
        client: &Arc<Client>,
        ConnectRequest { id, session, overlap, about }: ConnectRequest,
    ) {
        {
            let mut client_state = client.state();
            if let Some(session) = session {
                client_state.session.resume(session);
            }
            client_state.mobility = MigrationState::new(about);
        }
        self.enlist(client, session.is_some(), overlap);
        let mut client_state = client.state();
        let welcome = welcome(self, client_state.session.id(), id);
        client.send(&mut client_state, &welcome);
    }

    /// Enters the session among those of this node. One that was elsewhere before leaves there.
    pub(super) fn enlist(&self, client: &Arc<Client>, resumed: bool, overlap: bool) {
        let session = {
            let mut client_state = client.state();
            client_state.returning = resumed;
            client_state.claiming = resumed;
            client_state.by_plan = overlap;
            MemberId::of(client_state.session.id())
        };
        self.sessions.entry(session).or_default().push(Arc::clone(client));
        self.arrived(client, overlap);
        if overlap {
            self.moved.fetch_add(1, Ordering::Relaxed);
        }
        if resumed {
            let (connection, at) = (client.number, client.arrived);
            self.cluster.claim(Claim { session, connection, at, overlap });
        }
    }

    /// A connection has gone.
    pub(super) fn strike(&self, session: SessionId, client: &Arc<Client>) {
        if let Entry::Occupied(mut clients) = self.sessions.entry(MemberId::of(session)) {
            clients.get_mut().retain(|other| !Arc::ptr_eq(other, client));
            if clients.get().is_empty() {
                clients.remove();
            }
        }
    }

    /// The newest stream of a session.
    fn stream_of(&self, session: MemberId) -> Option<Arc<Client>> {
        let clients = self.sessions.get(&session)?;
        let current = |client: &&Arc<Client>| client.format.is_sse() && !client.state().superseded;
        clients.iter().rev().find(current).map(Arc::clone)
    }

    async fn perform(&self, client: &Arc<Client>, text: &str) -> Option<ServerFrame> {
        let frame = match ClientFrame::parse(text) {
            Ok(frame) => frame,
            Err(err) => return Some(err.into()),
        };
        let checked = {
            let mut client_state = client.state();
            if client_state.is_closed() || client_state.parting().is_some() {
                let message = "the session's stream has ended".to_owned();
                return Some(frame.refused(ErrorCode::SessionUnknown, message));
            }
            let (rate, burst) = (self.limits.frames_per_second, self.limits.frames_burst);
            if client_state.allowance.take(Instant::now(), rate, burst) {
                self.check(&mut client_state, &frame)
            } else {
                self.count_refused("frames");
                let message = format!("a session may send {rate} frames a second");
                Err(frame.refused(ErrorCode::LimitExceeded, message))
            }
        };
        match checked {
            Ok(()) => requests::perform(self, client, frame, false).await,
            Err(refusal) => Some(refusal),
        }
    }
}

fn brings_a_token(frames: &str) -> bool {
    each(frames).any(|frame| matches!(frame, Ok(ClientFrame::Connect { .. }) | Err(_)))
}

/// Whether nothing is asked for.
fn only_tells(frames: &str) -> bool {
    let tells = |frame| matches!(frame, Ok(ClientFrame::Report { .. } | ClientFrame::Goodbye));
    each(frames).all(tells)
}

/// A frame or a list of them.
fn each(frames: &str) -> impl Iterator<Item = Result<ClientFrame, FrameError>> {
    let list = serde_json::from_str::<Vec<&RawValue>>(frames);
    let texts =
        list.map_or_else(|_| vec![frames], |list| list.into_iter().map(RawValue::get).collect());
    texts.into_iter().map(ClientFrame::parse)
}

/// What has to be allowed for a frame.
fn needs(frame: &ClientFrame) -> SmallVec<[(Verb, &Channel); 2]> {
    match frame {
        ClientFrame::Subscribe { channel, presence, state, .. } => {
            let shows = *presence || state.is_some();
            let presence = shows.then_some((Verb::Presence, channel));
            [(Verb::Subscribe, channel)].into_iter().chain(presence).collect()
        }
        ClientFrame::Publish { channel, .. } => smallvec![(Verb::Publish, channel)],
        // Whoever is shown may leave.
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

fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("no map of ours has a key that is not text")
}
