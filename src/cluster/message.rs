//! Messages between nodes, as they are written in the nodes' log.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    presence::{NodeId, PresenceUpdate, Snapshot},
    protocol::{MemberId, Position, UserId},
};

/// One event of the nodes' log.
#[derive(Debug, Deserialize)]
pub(super) struct ClusterMessage {
    pub(super) from: NodeId,
    pub(super) payloads: Vec<Payload>,
}

/// One part of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Payload {
    /// A change of presence.
    Presence(PresenceUpdate),
    /// The roster at a position, for a node that joins.
    Snapshot { to: NodeId, at: Position, snapshot: Snapshot },
    /// A session has connected to the sender: the node that had it releases it.
    Claim(Claim),
    /// Disconnect sessions.
    Disconnect(Disconnect),
    /// For the node that has this session's stream: perform what its client asks for, and respond.
    Request { number: u64, session: MemberId, frames: String },
    /// The response to a request.
    Response { to: NodeId, number: u64, replies: String },
}

/// A new connection of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The session.
    pub session: MemberId,
    /// The connection's number on its node.
    pub connection: u64,
    /// When it connected, in milliseconds since 1970 by its node's clock. A claim may be received late,
    /// after one that was made later.
    pub at: u64,
    /// The client migrates: the session's connection so far may stay open for a while.
    pub overlap: bool,
}

/// Which sessions to disconnect, and what to tell their clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disconnect {
    /// This session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<MemberId>,
    /// All sessions of this user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
    /// Whether the clients may reconnect by themselves.
    #[serde(default)]
    pub reconnect: bool,
    /// Why, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Arc<str>>,
}

/// Writes a message of payloads that are JSON already.
pub(super) fn write(from: NodeId, payloads: impl IntoIterator<Item = String>) -> String {
    let from = serde_json::to_string(&from).unwrap_or_default();
    let payloads: Vec<String> = payloads.into_iter().collect();
    format!(r#"{{"from":{from},"payloads":[{}]}}"#, payloads.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_message_is_read_back() {
        let from = NodeId::generate();
        let payloads = [
            Payload::Presence(PresenceUpdate::NodeStarted),
            Payload::Claim(Claim {
                session: "00112233445566778899".parse().unwrap(),
                connection: 7,
                at: 1,
                overlap: true,
            }),
            Payload::Disconnect(Disconnect { user: "42".parse().ok(), ..Disconnect::default() }),
        ];
        let text = write(from, payloads.iter().map(|one| serde_json::to_string(one).unwrap()));
        let read: ClusterMessage = serde_json::from_str(&text).unwrap();
        assert_eq!((read.from, read.payloads.as_slice()), (from, payloads.as_slice()));
    }
}
