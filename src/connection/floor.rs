//! What all connections of a gateway share: where they read, what they may, and who is here.

use std::{sync::Arc, time::Instant};

use dashmap::{DashMap, mapref::entry::Entry};
use serde_json::value::RawValue;
use smallvec::SmallVec;
use tokio_util::sync::CancellationToken;

use super::{ConnectionConfig, client::Client, requests};
use crate::{
    cluster::Cluster,
    node::Node,
    protocol::{ClientFrame, ErrorCode, MemberId, ServerFrame, SessionId},
    session::LimitsConfig,
};

/// What all connections of a gateway share.
#[derive(Debug)]
pub struct Floor {
    /// What the connections read from and publish to.
    pub node: Arc<Node>,
    /// The other nodes, and who is where.
    pub cluster: Arc<Cluster>,
    /// Section `[connection]`.
    pub config: ConnectionConfig,
    /// Section `[limits]`.
    pub limits: LimitsConfig,
    /// Tells all connections to part.
    pub stopping: CancellationToken,
    /// The sessions of this node. One may have two connections while it moves.
    pub(super) sessions: DashMap<MemberId, SmallVec<[Arc<Client>; 1]>>,
}

impl Floor {
    /// A floor without connections.
    pub fn new(
        node: Arc<Node>,
        cluster: Arc<Cluster>,
        config: ConnectionConfig,
        limits: LimitsConfig,
        stopping: CancellationToken,
    ) -> Self {
        Self { node, cluster, config, limits, stopping, sessions: DashMap::new() }
    }

    /// Performs what an SSE session asks for beside its stream, on whichever node that is: a frame or
    /// a list of them, as it came. The replies likewise; none when no node has the session's stream.
    pub async fn ask(&self, session: SessionId, frames: String) -> Option<String> {
        let session = MemberId::of(session);
        match self.ask_here(session, &frames).await {
            Some(replies) => Some(replies),
            None => self.cluster.ask(session, frames).await,
        }
    }

    /// The same for a session of this node.
    pub(super) async fn ask_here(&self, session: MemberId, frames: &str) -> Option<String> {
        let client = self.stream_of(session)?;
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

    /// A session has come.
    pub(super) fn enlist(&self, session: SessionId, client: &Arc<Client>) {
        self.sessions.entry(MemberId::of(session)).or_default().push(Arc::clone(client));
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
        clients.iter().rev().find(|client| client.format.is_sse()).map(Arc::clone)
    }

    async fn perform(&self, client: &Arc<Client>, text: &str) -> Option<ServerFrame> {
        let frame = match ClientFrame::parse(text) {
            Ok(frame) => frame,
            Err(err) => return Some(err.into()),
        };
        let checked = {
            let mut desk = client.desk();
            let (rate, burst) = (self.limits.frames_per_second, self.limits.frames_burst);
            if desk.allowance.take(Instant::now(), rate, burst) {
                desk.session.check(&frame, &self.limits)
            } else {
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

fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("no map of ours has a key that is not text")
}
