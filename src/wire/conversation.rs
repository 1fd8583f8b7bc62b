//! A conversation: one client's side of a wire, from the handshake to the close.
//!
//! `connection` drives it: it feeds received bytes to [`Inbound`] and asks [`Replies`] how to write
//! what the gateway answers. Both may keep state of their connection; neither touches a socket.

use std::{fmt, time::Duration};

use bytes::Bytes;

use super::WireFormat;
use crate::protocol::{
    Channel, ClientFrame, CloseCode, FrameError, Position, Positions, ServerFrame, SessionId,
    frame::About,
};

/// One client's side of a wire.
pub struct Conversation {
    /// How events and shared frames are encoded for it.
    pub format: WireFormat,
    /// Its decoder; none where the client sends nothing after its request.
    pub inbound: Option<Box<dyn Inbound>>,
    /// Its encoder of replies.
    pub replies: Box<dyn Replies>,
}

impl fmt::Debug for Conversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conversation").field("format", &self.format).finish_non_exhaustive()
    }
}

/// Turns received bytes into requests. An idle decoder should hold no buffer: there is one per
/// connection.
pub trait Inbound: Send {
    /// Takes the next bytes, in whatever pieces they arrive, and appends what they complete.
    ///
    /// # Errors
    /// With the code to close with. What was complete before the mistake is in `inputs`.
    fn feed(
        &mut self,
        bytes: &[u8],
        message_max: usize,
        inputs: &mut Vec<Input>,
    ) -> Result<(), CloseCode>;
}

/// What a client sent. Each counts against `limits.frames_per_second`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A request of the session.
    Request(ClientFrame),
    /// A message that is no valid request: it is answered, and fatal ones end the connection.
    Invalid(FrameError),
    /// A ping of the wire's own; the bytes answer it.
    Ping(Bytes),
    /// A sign of life that needs no answer.
    Pong,
    /// The client closes.
    Close,
}

/// Encodes what the gateway says to one client.
pub trait Replies: Send {
    /// What is written before anything else, given the delay after which the client should reconnect.
    fn preamble(&mut self, reconnect_after: Duration) -> Option<Bytes> {
        let _ = reconnect_after;
        None
    }

    /// Encodes a frame. `positions` states where the client is in all of its channels, for wires that
    /// resume by what they were sent last.
    fn frame(&mut self, frame: &ServerFrame, positions: &dyn Fn() -> Positions) -> Bytes;

    /// Encodes the end of the connection: the goodbye, unless the client closed first, and whatever
    /// the wire puts behind it.
    fn close(&mut self, code: CloseCode, goodbye: Option<&ServerFrame>) -> Bytes;
}

/// How a conversation begins.
#[derive(Clone, Debug)]
pub enum Opening {
    /// The client states its session, and its token if the handshake had none, in its first frame.
    Connect,
    /// The request stated everything: the channels are delivered at once.
    Stream(StreamRequest),
}

/// What a stream is opened with.
#[derive(Clone, Debug)]
pub struct StreamRequest {
    /// The session that the client had before.
    pub session: Option<SessionId>,
    /// The channels, each with the last position that the client holds.
    pub channels: Vec<(Channel, Option<Position>)>,
    /// The client resumes from an id that is no position of these logs: every channel begins with a
    /// reset.
    pub unknown_position: bool,
    /// Deliver presence of the channels too.
    pub presence: bool,
    /// The session's connection so far stays open for a while: the client migrates.
    pub overlap: bool,
    /// What the client says of itself.
    pub about: About,
}
