//! What nodes say to each other, as it stands in the log.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    presence::{NodeId, PresenceUpdate, Snapshot},
    protocol::{MemberId, Position, UserId},
};

/// What a node says at once.
#[derive(Debug, Deserialize)]
pub(super) struct ClusterMessage {
    pub(super) from: NodeId,
    pub(super) say: Vec<Payload>,
}

/// One thing that is said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Payload {
    /// About who is where.
    Presence(PresenceUpdate),
    /// Everything as it was at that position, for a node that is new.
    Snapshot { to: NodeId, at: Position, whole: Snapshot },
    /// A session has come to me: whoever has it lets go.
    Claim(Claim),
    /// Cut somebody off.
    Disconnect(Disconnect),
    /// Whoever has the stream of this session: do what its client asks for, and tell what came of it.
    Ask { number: u64, session: MemberId, frames: String },
    /// What came of it.
    Answer { to: NodeId, number: u64, replies: String },
}

/// One connection of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Which session.
    pub session: MemberId,
    /// The connection's number on the node that says so.
    pub connection: u64,
    /// When the connection came, in milliseconds since 1970 by its node's clock. A claim may be heard
    /// late, after one that was made later.
    pub at: u64,
    /// It is a move by plan: the connection before may go on for a while.
    pub overlap: bool,
}

/// Whom to cut off, and what to tell them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disconnect {
    /// This session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<MemberId>,
    /// All sessions of this user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
    /// Whether they may come back by themselves.
    #[serde(default)]
    pub reconnect: bool,
    /// Why, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Arc<str>>,
}

/// Writes down what is said.
pub(super) fn write(from: NodeId, sayings: impl IntoIterator<Item = String>) -> String {
    let from = serde_json::to_string(&from).unwrap_or_default();
    let say: Vec<String> = sayings.into_iter().collect();
    format!(r#"{{"from":{from},"say":[{}]}}"#, say.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let from = NodeId::generate();
        let said = [
            Payload::Presence(PresenceUpdate::Hello),
            Payload::Claim(Claim {
                session: "00112233445566778899".parse().unwrap(),
                connection: 7,
                at: 1,
                overlap: true,
            }),
            Payload::Disconnect(Disconnect { user: "42".parse().ok(), ..Disconnect::default() }),
        ];
        let text = write(from, said.iter().map(|saying| serde_json::to_string(saying).unwrap()));
        let read: ClusterMessage = serde_json::from_str(&text).unwrap();
        assert_eq!((read.from, read.say.as_slice()), (from, said.as_slice()));
    }
}
