//! Entries of a log and batches of them, each encoded once per format and shared by all readers.

use std::{fmt, sync::Arc};

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

use crate::{
    protocol::{Channel, Event, Position},
    wire::{Encoded, PerFormat, WireFormat},
};

/// An entry of a log, with its encodings once a reader has needed them.
pub struct LogEntry {
    channel: Channel,
    /// Its position.
    pub position: Position,
    event: Event,
    /// Delivered before under another offset: it keeps its position and is not delivered again.
    repeat: bool,
    frames: PerFormat<Encoded>,
}

impl LogEntry {
    /// An entry without encodings.
    pub fn new(channel: Channel, position: Position, event: Event, repeat: bool) -> Self {
        Self { channel, position, event, repeat, frames: Default::default() }
    }

    /// The entry's encoding, made by the first reader of that format.
    pub fn frame(&self, format: WireFormat) -> &Encoded {
        self.frames
            .get_or_init(format, || format.codec.event(&self.channel, self.position, &self.event))
    }

    /// The event.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// Whether readers receive it: a repeat is suppressed.
    pub fn is_visible(&self) -> bool {
        !self.repeat
    }

    /// About how many bytes of memory it takes, with one encoding.
    pub(super) fn weight(&self) -> usize {
        size_of::<Self>() + 2 * self.event.weight()
    }
}

impl fmt::Debug for LogEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.channel, self.position)
    }
}

/// Consecutive entries that are offered to every reader in one piece.
#[derive(Debug)]
pub struct Batch {
    /// The entries, at least one.
    pub entries: SmallVec<[Arc<LogEntry>; 4]>,
    joined: PerFormat<Bytes>,
}

impl Batch {
    pub(super) fn new(entries: SmallVec<[Arc<LogEntry>; 4]>) -> Self {
        Self { entries, joined: Default::default() }
    }

    /// The position of readers that take the batch as a whole.
    pub fn starts_after(&self) -> Position {
        let first = self.entries[0].position;
        Position::new(first.epoch, first.offset - 1)
    }

    /// The position of readers that took it.
    pub fn ends_at(&self) -> Position {
        self.entries[self.entries.len() - 1].position
    }

    /// How many of its entries readers receive.
    pub fn visible_count(&self) -> usize {
        self.entries.iter().filter(|entry| entry.is_visible()).count()
    }

    /// All encodings joined, once for all readers of a format.
    pub fn joined(&self, format: WireFormat) -> &Bytes {
        self.joined.get_or_init(format, || match self.entries.as_slice() {
            [only] if only.is_visible() => only.frame(format).bytes.clone(),
            entries => {
                let mut all = BytesMut::new();
                for entry in entries.iter().filter(|entry| entry.is_visible()) {
                    all.extend_from_slice(&entry.frame(format).bytes);
                }
                all.freeze()
            }
        })
    }
}
