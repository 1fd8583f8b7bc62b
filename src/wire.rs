//! Wires: the byte formats and handshakes by which clients reach the gateway.
//!
//! A wire is a folder here. It owns its addresses and subprotocol, how a handshake becomes a
//! [`Conversation`], how received bytes become requests of a session, how an event is encoded once
//! for all its readers, and how a reply or a close is written. It does not own sockets, sessions,
//! logs or permissions: `http` performs the handshake, `connection` drives the conversation, `node`
//! and `presence` cache one encoding per [`Format`].
//!
//! To add a wire: write its folder, then list it in [`WEBSOCKETS`] or [`STREAMS`] and its formats in
//! [`FORMATS`]. Nothing in `connection`, `session` or `node` changes.

mod conversation;
mod format;
mod json;
pub mod sse;
pub mod websocket;

use axum::http::{HeaderMap, Uri};

pub use self::{
    conversation::{Conversation, Inbound, Input, Opening, Replies, StreamRequest},
    format::{Codec, Encoded, Format, PerFormat, Transport, WireFormat},
};
use crate::protocol::ErrorCode;

/// Every format, at the index that it caches its encodings under.
pub static FORMATS: [WireFormat; format::COUNT] =
    [websocket::TEXT, sse::ENVELOPE, sse::RAW, sse::FRAMES];

/// Every wire whose clients upgrade to a WebSocket. Several may share a path and differ by
/// subprotocol; the first of a path serves clients that offer none.
pub static WEBSOCKETS: [&dyn WebSocketWire; 1] = [&websocket::Crossfade];

/// Every wire whose clients read one endless HTTP response.
pub static STREAMS: [&dyn StreamWire; 1] = [&sse::Crossfade];

/// A wire whose clients upgrade to a WebSocket.
pub trait WebSocketWire: Sync {
    /// The address, such as `/ws`.
    fn path(&self) -> &'static str;

    /// The `Sec-WebSocket-Protocol` that selects this wire.
    fn subprotocol(&self) -> &'static str;

    /// Begins a conversation with the client that sent this handshake.
    ///
    /// # Errors
    /// When the request's query or headers are not what the wire requires.
    fn open(&self, request: Handshake<'_>) -> Result<Conversation, HandshakeError>;
}

/// A wire whose clients read one endless HTTP response.
pub trait StreamWire: Sync {
    /// The address, such as `/events`.
    fn path(&self) -> &'static str;

    /// Begins a conversation with the client that sent this request, which names the channels that
    /// the stream delivers.
    ///
    /// # Errors
    /// When the request's query or headers are not what the wire requires.
    fn open(&self, request: Handshake<'_>)
    -> Result<(Conversation, StreamRequest), HandshakeError>;
}

/// What a wire may read of the request that opens a connection.
#[derive(Clone, Copy, Debug)]
pub struct Handshake<'a> {
    /// The address, with its query.
    pub uri: &'a Uri,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// Channels that one session may subscribe to (`limits.subscriptions`).
    pub subscriptions: usize,
}

/// Why a handshake was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct HandshakeError {
    /// The kind of mistake; it decides the HTTP status.
    pub code: ErrorCode,
    /// What is wrong and what would be right.
    pub message: String,
}

impl HandshakeError {
    /// A refusal with this code.
    pub fn new(code: ErrorCode, message: impl ToString) -> Self {
        Self { code, message: message.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_format_is_registered_at_its_own_index() {
        for (index, format) in FORMATS.iter().enumerate() {
            assert_eq!(format.index, index, "{}", format.name);
        }
    }

    #[test]
    fn no_two_wires_share_an_address() {
        let mut seen = HashSet::new();
        for wire in WEBSOCKETS {
            assert!(seen.insert((wire.path(), wire.subprotocol())), "{}", wire.path());
        }
        for wire in STREAMS {
            assert!(seen.insert((wire.path(), "")), "{}", wire.path());
        }
    }
}
