//! What nodes say to each other, as it stands in the log.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    presence::{NodeId, Snapshot, Word},
    protocol::{Channel, Member, MemberId, Position, UserId},
};

/// What a node says at once.
#[derive(Debug, Deserialize)]
pub(super) struct Speech {
    pub(super) from: NodeId,
    pub(super) say: Vec<Saying>,
}

/// One thing that is said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Saying {
    /// About who is where.
    Presence(Word),
    /// Everything as it was at that position, for a node that is new; with `last` the rest of it.
    Snapshot { to: NodeId, at: Position, part: Snapshot, last: bool },
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

/// Members of an announcement in one piece of it.
const MEMBERS: usize = 100;

/// The pieces of an announcement.
pub(super) fn announcement(mut held: Vec<(Channel, Arc<Member>)>) -> Vec<Saying> {
    let mut pieces = Vec::new();
    while MEMBERS < held.len() {
        let rest = held.split_off(MEMBERS);
        pieces.push(Saying::Presence(Word::Here(std::mem::replace(&mut held, rest), false)));
    }
    pieces.push(Saying::Presence(Word::Here(held, true)));
    pieces
}

/// The pieces of what a new node is shown.
pub(super) fn snapshot(to: NodeId, at: Position, mut whole: Snapshot) -> Vec<Saying> {
    let mut pieces = Vec::new();
    while MEMBERS < whole.records.len() {
        let rest = whole.records.split_off(MEMBERS);
        let records = std::mem::replace(&mut whole.records, rest);
        let part = Snapshot { records, nodes: Vec::new() };
        pieces.push(Saying::Snapshot { to, at, part, last: false });
    }
    pieces.push(Saying::Snapshot { to, at, part: whole, last: true });
    pieces
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
            Saying::Presence(Word::Hello),
            Saying::Claim(Claim {
                session: "00112233445566778899".parse().unwrap(),
                connection: 7,
                at: 1,
                overlap: true,
            }),
            Saying::Disconnect(Disconnect { user: "42".parse().ok(), ..Disconnect::default() }),
        ];
        let text = write(from, said.iter().map(|saying| serde_json::to_string(saying).unwrap()));
        let read: Speech = serde_json::from_str(&text).unwrap();
        assert_eq!((read.from, read.say.as_slice()), (from, said.as_slice()));
    }

    #[test]
    fn an_announcement_ends_with_its_last_piece_and_only_there() {
        let member = Arc::new(Member {
            session: "00112233445566778899".parse().unwrap(),
            user: None,
            info: None,
            state: None,
            since: 0,
        });
        for (members, expected) in [(0, 1), (100, 1), (101, 2), (250, 3)] {
            let held = vec![("a".parse().unwrap(), Arc::clone(&member)); members];
            let pieces = announcement(held);
            let last = |saying: &Saying| matches!(saying, Saying::Presence(Word::Here(_, true)));
            assert_eq!(pieces.len(), expected);
            assert_eq!(pieces.iter().position(last), Some(expected - 1));
        }
    }
}
