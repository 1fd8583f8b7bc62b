//! Formats: how events are encoded once for all readers of a wire, and where encodings are cached.
//!
//! A format is a static value; a [`WireFormat`] is a reference to it, small enough to stand in every
//! client. It knows nothing of a single connection's state.

use std::{fmt, ptr, sync::OnceLock};

use bytes::Bytes;

use crate::protocol::{Channel, Event, Position, Positions, ServerFrame};

/// A reference to one of the registered formats.
pub type WireFormat = &'static Format;

/// How many formats there are: the number of encodings an event can have.
pub(super) const COUNT: usize = 4;

/// One byte format of events and frames.
pub struct Format {
    /// Its name in logs.
    pub name: &'static str,
    /// Where its encodings are cached: its place in [`FORMATS`](super::FORMATS).
    pub index: usize,
    /// What carries it.
    pub transport: Transport,
    /// Whether each event states the positions of all of its reader's channels, because the reader
    /// resumes by the last event alone (`Last-Event-ID`).
    pub states_positions: bool,
    /// Its encoder.
    pub codec: &'static dyn Codec,
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        ptr::eq(self, other)
    }
}

impl Eq for Format {}

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// What carries a connection. Rollouts move clients between the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A WebSocket.
    WebSocket,
    /// A response of Server-Sent Events.
    Sse,
}

impl Transport {
    /// Its name in metrics and frames.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Sse => "sse",
        }
    }
}

/// The encoder of a format. Stateless: what it returns is shared by all readers.
pub trait Codec: Sync {
    /// Encodes an event.
    fn event(&self, channel: &Channel, position: Position, event: &Event) -> Encoded;

    /// The same event for one reader that has several channels, with the positions of all of them.
    /// Called only where [`Format::states_positions`] is set.
    fn event_with_positions(&self, encoded: &Encoded, positions: &Positions) -> Bytes {
        let _ = positions;
        encoded.bytes.clone()
    }

    /// Encodes a frame that is the same for all its receivers.
    fn frame(&self, frame: &ServerFrame) -> Bytes;
}

/// An event in one format.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// All of it, ready to be written.
    pub bytes: Bytes,
    /// How many bytes at the front state the event's position. A reader with several channels gets
    /// other bytes in their place.
    pub position_len: usize,
}

impl Encoded {
    /// An encoding that states no position of its own.
    pub fn new(bytes: Bytes) -> Self {
        Self { bytes, position_len: 0 }
    }

    /// The event without the bytes that state its position.
    pub fn without_position(&self) -> Bytes {
        self.bytes.slice(self.position_len..)
    }
}

/// A cache of one value per format, each made by the first reader that needs it.
#[derive(Debug)]
pub struct PerFormat<T>([OnceLock<T>; COUNT]);

impl<T> PerFormat<T> {
    /// The value of a format, made now if it is the first time.
    pub fn get_or_init(&self, format: WireFormat, make: impl FnOnce() -> T) -> &T {
        self.0[format.index].get_or_init(make)
    }
}

impl<T> Default for PerFormat<T> {
    fn default() -> Self {
        Self(Default::default())
    }
}
