//! What all connections of a gateway share: where they read, what they may, and who is here.

use std::{sync::Arc, time::Instant};

use dashmap::DashMap;
use tokio_util::sync::CancellationToken;

use super::{ConnectionConfig, client::Client, requests};
use crate::{
    node::Node,
    protocol::{ClientFrame, ErrorCode, ServerFrame, SessionId},
    session::LimitsConfig,
};

/// What all connections of a gateway share.
#[derive(Debug)]
pub struct Floor {
    /// What the connections read from and publish to.
    pub node: Arc<Node>,
    /// Section `[connection]`.
    pub config: ConnectionConfig,
    /// Section `[limits]`.
    pub limits: LimitsConfig,
    /// Tells all connections to part.
    pub stopping: CancellationToken,
    /// The SSE sessions of this node, which POST their frames.
    pub(super) streams: DashMap<SessionId, Arc<Client>>,
}

impl Floor {
    /// A floor without connections.
    pub fn new(
        node: Arc<Node>,
        config: ConnectionConfig,
        limits: LimitsConfig,
        stopping: CancellationToken,
    ) -> Self {
        Self { node, config, limits, stopping, streams: DashMap::new() }
    }

    /// Performs what an SSE session asks for beside its stream; none when it is not here.
    pub async fn ask(&self, session: SessionId, frame: ClientFrame) -> Option<Option<ServerFrame>> {
        let client = self.streams.get(&session).map(|client| Arc::clone(&client))?;
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
        Some(match checked {
            Ok(()) => requests::perform(self, &client, frame, false).await,
            Err(refusal) => Some(refusal),
        })
    }
}
