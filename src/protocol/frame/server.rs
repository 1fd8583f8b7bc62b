//! Server frames: what the gateway sends, and the pages of a history.

use std::sync::Arc;

use serde::Serialize;

use super::{FrameError, RequestId};
use crate::protocol::{
    Channel, CloseCode, Data, ErrorCode, Event, EventName, MemberId, MessageId, Position,
    PresenceFrame, SessionId,
};

/// What the gateway sends.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerFrame {
    /// The session is open.
    Welcome {
        /// The connect frame's number.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
        /// The session to reconnect with. A secret: who knows it can take the session over.
        session: SessionId,
        /// The session's public id.
        member: MemberId,
        /// The name of this node.
        node: Arc<str>,
        /// Milliseconds between two pings; silence of twice that ends the connection.
        heartbeat: u64,
        /// The node's clock, in milliseconds since 1970.
        time: u64,
        /// The protocol's version.
        version: u32,
    },
    /// The channel is delivered from here on.
    Subscribed {
        /// The request's number.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
        /// The channel.
        channel: Channel,
        /// The log's head; what was missed up to here follows.
        position: Position,
        /// Whether everything after the request's `since` follows.
        recovered: bool,
        /// The members, if the request asked for presence.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[serde(flatten)]
        presence: Option<Box<PresenceFrame>>,
    },
    /// The members of a channel, or what changed among them.
    Presence {
        /// The channel.
        channel: Channel,
        /// The members, or the changes.
        #[serde(flatten)]
        frame: Box<PresenceFrame>,
    },
    /// The session joined a channel's presence or left it: the reply to a presence frame.
    Shown {
        /// The request's number.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
        /// The channel.
        channel: Channel,
        /// The session's public id; none when it left.
        #[serde(skip_serializing_if = "Option::is_none")]
        session: Option<MemberId>,
    },
    /// The channel is delivered no longer.
    Unsubscribed {
        /// The request's number; none when the gateway ended the subscription.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
        /// The channel.
        channel: Channel,
        /// Why the gateway ended it.
        #[serde(skip_serializing_if = "Option::is_none")]
        code: Option<ErrorCode>,
    },
    /// The token expires soon: send a new one in a connect frame.
    Expiring {
        /// In this many milliseconds.
        #[serde(rename = "in")]
        within: u64,
    },
    /// Events were missed that the log no longer holds: load the state anew.
    Reset {
        /// The channel.
        channel: Channel,
        /// Delivery goes on after this position.
        position: Position,
        /// Why.
        reason: ResetReason,
    },
    /// The event is in the log.
    Published {
        /// The request's number.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
        /// The event's id.
        message_id: MessageId,
        /// Its position in the log.
        position: Position,
        /// Whether this id was published before; the position is that of the first time.
        duplicate: bool,
    },
    /// A page of a channel's log.
    History {
        /// The request's number.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
        /// The page.
        #[serde(flatten)]
        page: Page,
    },
    /// The connection ends.
    Goodbye {
        /// The close code.
        code: u16,
        /// Why, in words.
        reason: Arc<str>,
        /// Whether to reconnect.
        reconnect: bool,
        /// After this many milliseconds.
        after: u64,
    },
    /// Reconnect over another transport with the session and the positions held, then leave this one.
    Migrate {
        /// `websocket` or `sse`.
        transport: &'static str,
        /// At a moment of the client's choice within this many milliseconds.
        within: u64,
        /// Why.
        reason: Arc<str>,
    },
    /// Answer with `pong`.
    Ping {
        /// The node's clock, in milliseconds since 1970.
        time: u64,
    },
    /// The request was refused.
    Error {
        /// The request's number.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
        /// The kind of refusal.
        code: ErrorCode,
        /// What is wrong and what would be right.
        message: String,
    },
}

impl ServerFrame {
    /// The goodbye that belongs to a close code.
    pub fn goodbye(code: CloseCode, after_ms: u64) -> Self {
        Self::Goodbye {
            code: code.number(),
            reason: code.as_str().into(),
            reconnect: code.reconnect(),
            after: after_ms,
        }
    }
}

impl From<FrameError> for ServerFrame {
    fn from(err: FrameError) -> Self {
        Self::Error { id: err.id, code: err.code, message: err.message }
    }
}

/// Why a subscriber has to load its state anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ResetReason {
    /// The log no longer holds what was missed.
    Expired,
    /// The log was lost or recreated, or the position belongs to another log.
    Epoch,
}

/// A page of a channel's log.
#[derive(Clone, Debug, Serialize)]
pub struct Page {
    /// The channel.
    pub channel: Channel,
    /// The events, in the requested order.
    pub events: Vec<PageEvent>,
    /// The log's head when it was read.
    pub position: Position,
    /// Whether the page holds everything between `since` and the head.
    pub complete: bool,
}

/// An event of a page.
#[derive(Clone, Debug, Serialize)]
pub struct PageEvent {
    /// The event's id.
    pub id: MessageId,
    /// The event's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<EventName>,
    /// Its content.
    pub data: Data,
    /// Its position.
    pub position: Position,
    /// When the broker accepted it, in milliseconds since 1970.
    pub time: u64,
}

impl PageEvent {
    /// An event at its position.
    pub fn new(position: Position, event: &Event) -> Self {
        Self {
            id: event.id.clone(),
            name: event.name.clone(),
            data: event.data.clone(),
            position,
            time: event.time,
        }
    }
}
