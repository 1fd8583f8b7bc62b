//! Opening a session: its entry in the registry, its claim among the nodes, and the welcome frame.

use std::sync::{Arc, atomic::Ordering};

use super::{client::Client, migration_state::MigrationState, registry::Connections};
use crate::{
    cluster::Claim,
    lifecycle,
    protocol::{
        MemberId, ServerFrame, SessionId,
        frame::{About, RequestId},
    },
};

/// The version of the protocol that a welcome frame states.
const PROTOCOL_VERSION: u32 = 1;

/// What a client's first frame asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct ConnectRequest {
    pub(super) id: Option<RequestId>,
    /// The session it had before.
    pub(super) session: Option<SessionId>,
    /// The session's connection so far stays open for a while.
    pub(super) overlap: bool,
    pub(super) about: About,
}

impl Connections {
    /// Opens the session of an authenticated client, the one it had before or a new one, and welcomes
    /// it.
    pub(super) fn open_session(&self, client: &Arc<Client>, request: ConnectRequest) {
        let ConnectRequest { id, session, overlap, about } = request;
        {
            let mut state = client.state();
            if let Some(session) = session {
                state.session.resume(session);
            }
            state.migration = MigrationState::new(about);
        }
        self.register(client, session.is_some(), overlap);
        let mut state = client.state();
        let welcome = self.welcome(state.session.id(), id);
        client.send(&mut state, &welcome);
    }

    /// Enters a client in the registry. A session that had a connection elsewhere is claimed from
    /// there.
    pub(super) fn register(&self, client: &Arc<Client>, resumed: bool, overlap: bool) {
        let session = {
            let mut state = client.state();
            state.resumed = resumed;
            state.claim_pending = resumed;
            state.migrated = overlap;
            MemberId::of(state.session.id())
        };
        self.insert(session, Arc::clone(client));
        self.record_connect(client, overlap);
        if overlap {
            self.migrated.fetch_add(1, Ordering::Relaxed);
        }
        if resumed {
            let (connection, at) = (client.number, client.connected_at);
            self.cluster.claim(Claim { session, connection, at, overlap });
        }
    }

    /// The frame that opens a session.
    pub(super) fn welcome(&self, session: SessionId, id: Option<RequestId>) -> ServerFrame {
        let heartbeat = self.config.heartbeat.as_millis();
        ServerFrame::Welcome {
            id,
            session,
            member: MemberId::of(session),
            node: Arc::clone(self.node.name()),
            heartbeat: u64::try_from(heartbeat).unwrap_or(u64::MAX),
            time: lifecycle::unix_ms(),
            version: PROTOCOL_VERSION,
        }
    }
}
