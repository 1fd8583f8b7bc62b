//! A channel's log as this node holds it: the newest entries as ready-made frames, and who reads.
//!
//! The log decides what is next, what is a repeat and what is missing. It performs no I/O and never
//! waits; fetching what is missing is [`super::hub`]'s business, writing to a socket a [`Reader`]'s.
//!
//! Invariants: the ring holds consecutive offsets up to the head; one walk at a time, so that no
//! reader sees two entries swapped. A reader's own lock may be held while the log's is taken, never
//! the other way round.

mod reader_blocks;

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::time::{Instant, interval};

use self::reader_blocks::ReaderBlocks;
pub use self::reader_blocks::{BLOCK_SIZE, ReaderBlock};
use crate::{
    broker::Slice,
    protocol::{Channel, Epoch, Event, Position},
    wire::{Encoded, PerFormat, WireFormat},
};

/// Somebody who reads logs: a client's connection.
pub trait Reader: Send + Sync {
    /// Takes a batch if it can be written at once and follows on what was written before;
    /// otherwise remembers that there is news.
    fn offer(&self, tag: Tag, batch: &Batch);

    /// Remembers that the log changed in another way than by growing.
    fn wake(&self, tag: Tag);
}

/// About how much is offered to a reader in one piece.
const BATCH_BYTES: usize = 64 << 10;

/// How often one who waits for a new life of the log looks for it. It comes once in a disaster.
const EPOCH_LOOKS: Duration = Duration::from_millis(10);

/// Which of its subscriptions a reader reads this log for.
pub type Tag = u32;

/// How much of a log is kept ready.
#[derive(Clone, Copy, Debug)]
pub struct RingLimits {
    /// At most so many entries.
    pub events: usize,
    /// At most so many bytes of them, and one entry in any case.
    pub bytes: usize,
}

/// An entry, with its frames once somebody needed them.
pub struct LogEntry {
    channel: Channel,
    /// Where it stands.
    pub position: Position,
    event: Event,
    /// Delivered before under another offset: it keeps its place and is not shown.
    repeat: bool,
    frames: PerFormat<Encoded>,
}

impl LogEntry {
    /// An entry nobody has asked for yet.
    pub fn new(channel: Channel, position: Position, event: Event, repeat: bool) -> Self {
        Self { channel, position, event, repeat, frames: Default::default() }
    }

    /// The entry as a frame, made by the first reader of that format.
    pub fn frame(&self, format: WireFormat) -> &Encoded {
        self.frames
            .get_or_init(format, || format.codec.event(&self.channel, self.position, &self.event))
    }

    /// What happened.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// Whether readers get to see it.
    pub fn is_shown(&self) -> bool {
        !self.repeat
    }

    /// What it costs, with one frame made.
    fn weight(&self) -> usize {
        size_of::<Self>() + 2 * self.event.weight()
    }
}

impl fmt::Debug for LogEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.channel, self.position)
    }
}

/// Consecutive entries that are offered to every reader.
#[derive(Debug)]
pub struct Batch {
    /// The entries, at least one.
    pub entries: SmallVec<[Arc<LogEntry>; 4]>,
    joined: PerFormat<Bytes>,
}

impl Batch {
    fn new(entries: SmallVec<[Arc<LogEntry>; 4]>) -> Self {
        Self { entries, joined: Default::default() }
    }

    /// What a reader has to hold to take the batch as a whole.
    pub fn starts_after(&self) -> Position {
        let first = self.entries[0].position;
        Position::new(first.epoch, first.offset - 1)
    }

    /// What a reader holds that took it.
    pub fn ends_at(&self) -> Position {
        self.entries[self.entries.len() - 1].position
    }

    /// How many entries readers get to see.
    pub fn shown(&self) -> usize {
        self.entries.iter().filter(|entry| entry.is_shown()).count()
    }

    /// All frames in one piece, put together once for all readers.
    pub fn joined(&self, format: WireFormat) -> &Bytes {
        self.joined.get_or_init(format, || match self.entries.as_slice() {
            [only] if only.is_shown() => only.frame(format).bytes.clone(),
            entries => {
                let mut all = BytesMut::new();
                for entry in entries.iter().filter(|entry| entry.is_shown()) {
                    all.extend_from_slice(&entry.frame(format).bytes);
                }
                all.freeze()
            }
        })
    }
}

/// What is there behind a position.
#[derive(Debug)]
pub enum Read {
    /// These, one after the other.
    Entries(SmallVec<[Arc<LogEntry>; 16]>),
    /// Nothing yet.
    UpToDate,
    /// More than the ring holds: the broker's log has to be asked.
    FellBehind,
    /// The position belongs to another life of the log, which now stands here.
    OtherEpoch(Position),
}

/// What an arrival calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing: it was known, or somebody is at it already.
    None,
    /// Offer what is new to the readers.
    FanOut,
    /// Read what is missing from the broker.
    Repair,
}

/// One channel's log.
pub struct ChannelLog {
    channel: Channel,
    limits: RingLimits,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The newest entry appended; none until the broker told where the log stands.
    head: Option<Position>,
    ring: VecDeque<Arc<LogEntry>>,
    ring_bytes: usize,
    readers: ReaderBlocks,
    /// Readers were offered everything up to this offset.
    walked: u64,
    walking: bool,
    /// The broker's log is known to reach this far, or to have another epoch.
    reported_head: Option<Position>,
    repairing: bool,
}

impl ChannelLog {
    /// A log of which nothing is known yet.
    pub fn new(channel: Channel, limits: RingLimits) -> Self {
        Self { channel, limits, state: Mutex::default() }
    }

    /// Whose it is.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// The newest entry, once the log is open.
    pub fn head(&self) -> Option<Position> {
        self.state.lock().head
    }

    /// How many read it.
    pub fn readers(&self) -> usize {
        self.state.lock().readers.len()
    }

    /// Begins at `head`. News that came before are not lost: they are missing now, so to say.
    pub fn open(&self, head: Position) -> Next {
        let mut state = self.state.lock();
        state.head = Some(head);
        state.walked = head.offset;
        state.hunt()
    }

    /// Takes an entry from the broker's feed. `is_repeat` is asked only for one that is new.
    pub fn ingest(
        &self,
        position: Position,
        event: Event,
        is_repeat: impl FnOnce(&Event) -> bool,
    ) -> Next {
        let mut state = self.state.lock();
        let Some(head) = state.head else {
            state.reported_head = state.reported_head.max_by_offset(position);
            return Next::None;
        };
        if position.epoch == head.epoch && position.offset <= head.offset {
            return Next::None;
        }
        if position.epoch == head.epoch && position.offset == head.offset + 1 && !state.repairing {
            let repeat = is_repeat(&event);
            let entry = LogEntry::new(self.channel.clone(), position, event, repeat);
            state.append(entry, self.limits);
            return state.fan_out();
        }
        state.reported_head = state.reported_head.max_by_offset(position);
        state.hunt()
    }

    /// Hears that the broker's log stands at `position`.
    pub fn observe_head(&self, position: Position) -> Next {
        let mut state = self.state.lock();
        state.reported_head = state.reported_head.max_by_offset(position);
        state.hunt()
    }

    /// The offset to read behind, for the repair that [`Next::Repair`] called for. What is heard
    /// from now on may not be in that reading, and is looked into afterwards.
    pub fn missing_after(&self) -> u64 {
        let mut state = self.state.lock();
        state.reported_head = None;
        state.head.map_or(0, |head| head.offset)
    }

    /// Takes what a repair read behind the head.
    pub fn apply_repair(
        &self,
        slice: Slice,
        is_repeat: impl Fn(Position, &Event) -> bool,
    ) -> Repaired {
        let mut state = self.state.lock();
        let reached = Position::new(slice.epoch, slice.head);
        let same_log = state.head.is_some_and(|head| head.epoch == slice.epoch);
        // Nothing to read though the log reaches further: retention let go of all of it.
        let all_gone = slice.events.is_empty() && state.next_offset() <= slice.head;
        let mut broken = !same_log || all_gone;
        if broken {
            state.start_anew(reached);
        }
        for (offset, event) in slice.events.into_iter().filter(|_| same_log) {
            if offset < state.next_offset() {
                continue;
            }
            if state.next_offset() < offset {
                // It let go of the first of them. Readers who need those find out themselves.
                state.start_anew(Position::new(slice.epoch, offset - 1));
                broken = true;
            }
            let position = Position::new(slice.epoch, offset);
            let repeat = is_repeat(position, &event);
            let entry = LogEntry::new(self.channel.clone(), position, event, repeat);
            state.append(entry, self.limits);
        }
        state.repairing = state.next_offset() <= reached.offset || state.is_behind_rumour();
        Repaired { again: state.repairing, walk: state.fan_out(), broken }
    }

    /// What there is behind `cursor`, about `budget` bytes of it.
    pub fn read_after(&self, cursor: Position, budget: usize) -> Read {
        let state = self.state.lock();
        let Some(head) = state.head else { return Read::UpToDate };
        if cursor.epoch != head.epoch {
            return Read::OtherEpoch(head);
        }
        // A cursor from another node may be ahead of this one's news: they will come.
        if head.offset <= cursor.offset {
            return Read::UpToDate;
        }
        let Some(index) = state.index_after(cursor.offset) else { return Read::FellBehind };
        let mut entries = SmallVec::new();
        let mut bytes = 0;
        for entry in state.ring.range(index..) {
            if budget <= bytes {
                break;
            }
            bytes += entry.event.weight();
            entries.push(Arc::clone(entry));
        }
        Read::Entries(entries)
    }

    /// Waits until the log is in its life `epoch`, at most `within`; whether it is.
    pub async fn reaches_epoch(&self, epoch: Epoch, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let mut looks = interval(EPOCH_LOOKS);
        loop {
            looks.tick().await;
            if self.head().is_some_and(|head| head.epoch == epoch) {
                return true;
            }
            if deadline <= Instant::now() {
                return false;
            }
        }
    }

    /// Whether everything behind `offset` is in the ring.
    pub fn covers(&self, offset: u64) -> bool {
        let state = self.state.lock();
        state.head.is_some_and(|head| head.offset <= offset) || state.index_after(offset).is_some()
    }

    /// How much of what lies before the ring would fit into it: the offset to read back from, and
    /// how many entries.
    pub fn room_before(&self) -> (u64, usize) {
        let state = self.state.lock();
        (state.before_ring(), self.limits.events.saturating_sub(state.ring.len()))
    }

    /// Puts what was read backwards from the log in front of the ring, as far as it fits.
    pub fn prepend(&self, slice: Slice) {
        let mut state = self.state.lock();
        if state.head.is_none_or(|head| head.epoch != slice.epoch) {
            return;
        }
        for (offset, event) in slice.events {
            let entry = LogEntry::new(
                self.channel.clone(),
                Position::new(slice.epoch, offset),
                event,
                false,
            );
            let full = self.limits.events <= state.ring.len()
                || self.limits.bytes < state.ring_bytes + entry.weight();
            if full || offset != state.before_ring() {
                break;
            }
            state.ring_bytes += entry.weight();
            state.ring.push_front(Arc::new(entry));
        }
    }

    /// Adds a reader; it is offered what comes from now on. Returns its seat.
    pub fn attach(&self, reader: Arc<dyn Reader>, tag: Tag) -> usize {
        self.state.lock().readers.attach(reader, tag)
    }

    /// Takes a reader away.
    pub fn detach(&self, slot: usize) {
        let gone = self.state.lock().readers.detach(slot);
        // Outside the lock: it may be the last hold on the reader, whose end comes here.
        drop(gone);
    }

    /// What readers were not offered yet; none ends the walk.
    pub fn next_batch(&self) -> Option<Batch> {
        let mut state = self.state.lock();
        let Some(head) = state.head.filter(|head| state.walked < head.offset) else {
            state.walking = false;
            return None;
        };
        let from = state.index_after(state.walked).unwrap_or(0);
        let mut entries: SmallVec<[Arc<LogEntry>; 4]> = SmallVec::new();
        let mut bytes = 0;
        for entry in state.ring.range(from..) {
            bytes += entry.event.weight();
            entries.push(Arc::clone(entry));
            if BATCH_BYTES < bytes {
                break;
            }
        }
        state.walked = entries.last().map_or(head.offset, |last| last.position.offset);
        if entries.is_empty() {
            state.walking = false;
            return None;
        }
        Some(Batch::new(entries))
    }

    /// A row of readers, for as long as there are any.
    pub fn block(&self, number: usize) -> Option<ReaderBlock> {
        self.state.lock().readers.block(number)
    }

    /// Tells every reader that the log changed in another way than by growing.
    pub fn wake_all(&self) {
        let blocks = self.state.lock().readers.all();
        for block in blocks {
            block.wake();
        }
    }
}

impl fmt::Debug for ChannelLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChannelLog({}, {:?})", self.channel, self.head())
    }
}

/// What a repair achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// Something is still missing: read on.
    pub again: bool,
    /// Whether there is something to offer.
    pub walk: Next,
    /// Continuity was lost: readers have to look for themselves.
    pub broken: bool,
}

impl State {
    fn append(&mut self, entry: LogEntry, limits: RingLimits) {
        self.head = Some(entry.position);
        self.ring_bytes += entry.weight();
        self.ring.push_back(Arc::new(entry));
        while limits.events < self.ring.len()
            || (limits.bytes < self.ring_bytes && 1 < self.ring.len())
        {
            self.ring_bytes -= self.ring.pop_front().map_or(0, |oldest| oldest.weight());
        }
    }

    fn start_anew(&mut self, head: Position) {
        self.ring.clear();
        self.ring_bytes = 0;
        self.walked = head.offset;
        self.head = Some(head);
        self.reported_head = None;
    }

    fn fan_out(&mut self) -> Next {
        let news = self.head.is_some_and(|head| self.walked < head.offset);
        if !news || std::mem::replace(&mut self.walking, true) {
            return Next::None;
        }
        Next::FanOut
    }

    /// Starts a repair if something is missing and nobody repairs already.
    fn hunt(&mut self) -> Next {
        if self.repairing || !self.is_behind_rumour() {
            return Next::None;
        }
        self.repairing = true;
        Next::Repair
    }

    /// Whether the broker's log is said to hold more than this one, or to be another.
    fn is_behind_rumour(&self) -> bool {
        let (Some(head), Some(reported_head)) = (self.head, self.reported_head) else {
            return false;
        };
        reported_head.epoch != head.epoch || head.offset < reported_head.offset
    }

    fn next_offset(&self) -> u64 {
        self.head.map_or(0, |head| head.offset) + 1
    }

    /// The offset just before the ring's oldest entry.
    fn before_ring(&self) -> u64 {
        match self.ring.front() {
            Some(oldest) => oldest.position.offset - 1,
            None => self.head.map_or(0, |head| head.offset),
        }
    }

    /// Where in the ring the entry behind `offset` is.
    fn index_after(&self, offset: u64) -> Option<usize> {
        let oldest = self.ring.front()?.position.offset;
        let index = usize::try_from((offset + 1).checked_sub(oldest)?).ok()?;
        (index < self.ring.len()).then_some(index)
    }
}

/// The further of two rumours. One of another epoch counts as further: it has to be looked into.
trait MaxByOffset {
    fn max_by_offset(self, other: Position) -> Self;
}

impl MaxByOffset for Option<Position> {
    fn max_by_offset(self, other: Position) -> Self {
        match self {
            Some(known) if known.epoch == other.epoch && other.offset <= known.offset => {
                Some(known)
            }
            _ => Some(other),
        }
    }
}

#[cfg(test)]
mod tests;
