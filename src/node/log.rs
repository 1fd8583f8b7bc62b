//! One channel's log as this node holds it: a ring of the newest entries, and its readers.
//!
//! The log decides which entry is next, which is a repeat and whether entries are missing. It performs
//! no I/O and never waits: [`super::hub`] reads what is missing, a [`Reader`] writes to its socket.
//!
//! Invariants:
//! - The ring holds consecutive offsets, up to the head.
//! - At most one fan-out runs at a time, so that no reader is offered two entries in the wrong order.
//! - At most one repair runs at a time, and while it runs nothing is appended from the feed.
//! - A reader's own lock may be held while the log's is taken, never the other way round.

mod entry;
mod reader_blocks;

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::time::{Instant, interval};

use self::reader_blocks::ReaderBlocks;
pub use self::{
    entry::{Batch, LogEntry},
    reader_blocks::{BLOCK_SIZE, ReaderBlock},
};
use crate::{
    broker::Slice,
    protocol::{Channel, Epoch, Event, Position},
};

/// A reader of logs: a client's connection.
pub trait Reader: Send + Sync {
    /// Takes a batch if it can be written at once and follows what was written before; otherwise
    /// remembers that the log has grown.
    fn offer(&self, tag: Tag, batch: &Batch);

    /// Remembers that the log changed otherwise than by growing.
    fn wake(&self, tag: Tag);
}

/// Bytes of a batch, about.
const BATCH_BYTES: usize = 64 << 10;

/// How often a caller that waits for an epoch checks. It happens after a disaster only.
const EPOCH_CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// Which of its subscriptions a reader attached for.
pub type Tag = u32;

/// The limits of a ring.
#[derive(Clone, Copy, Debug)]
pub struct RingLimits {
    /// Entries (`node.ring_events`).
    pub events: usize,
    /// Bytes of them (`node.ring_bytes`); one entry is kept in any case.
    pub bytes: usize,
}

/// What follows a position in the ring.
#[derive(Debug)]
pub enum Read {
    /// These consecutive entries.
    Entries(SmallVec<[Arc<LogEntry>; 16]>),
    /// Nothing yet.
    UpToDate,
    /// The ring no longer holds what comes next: it has to be read from the broker.
    FellBehind,
    /// The position belongs to another epoch. The log's head is this.
    OtherEpoch(Position),
}

/// What has to be done after a change of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing: the entry was known, or a fan-out or repair is running.
    None,
    /// Offer the new entries to the readers.
    FanOut,
    /// Read the missing entries from the broker.
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
    /// The position of the newest entry; none until the broker has reported the head.
    head: Option<Position>,
    ring: VecDeque<Arc<LogEntry>>,
    ring_bytes: usize,
    readers: ReaderBlocks,
    /// Readers have been offered everything up to this offset.
    offered: u64,
    fanning_out: bool,
    /// The highest head reported while entries were missing, or one of another epoch.
    reported_head: Option<Position>,
    repairing: bool,
}

impl ChannelLog {
    /// A log whose head is not known yet.
    pub fn new(channel: Channel, limits: RingLimits) -> Self {
        Self { channel, limits, state: Mutex::default() }
    }

    /// The channel.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// The position of the newest entry, once the log is open.
    pub fn head(&self) -> Option<Position> {
        self.state.lock().head
    }

    /// The number of readers.
    pub fn readers(&self) -> usize {
        self.state.lock().readers.len()
    }

    /// Opens the log at `head`. Entries that arrived before count as reported: they are read in a
    /// repair.
    pub fn open(&self, head: Position) -> Next {
        let mut state = self.state.lock();
        state.head = Some(head);
        state.offered = head.offset;
        state.start_repair()
    }

    /// Takes an entry from the broker's feed. An entry beyond the next offset only raises the reported
    /// head and calls for a repair. `is_repeat` is called only for an entry that is appended.
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
            return state.start_fan_out();
        }
        state.reported_head = state.reported_head.max_by_offset(position);
        state.start_repair()
    }

    /// Takes a report that the broker's log has its head at `position`.
    pub fn observe_head(&self, position: Position) -> Next {
        let mut state = self.state.lock();
        state.reported_head = state.reported_head.max_by_offset(position);
        state.start_repair()
    }

    /// The offset after which to read, for the repair that [`Next::Repair`] called for. Heads that are
    /// reported from now on may be beyond what that reads, and are checked afterwards.
    pub fn missing_after(&self) -> u64 {
        let mut state = self.state.lock();
        state.reported_head = None;
        state.head.map_or(0, |head| head.offset)
    }

    /// Appends what a repair read after the head.
    pub fn apply_repair(
        &self,
        slice: Slice,
        is_repeat: impl Fn(Position, &Event) -> bool,
    ) -> Repaired {
        let mut state = self.state.lock();
        let reached = Position::new(slice.epoch, slice.head);
        let same_epoch = state.head.is_some_and(|head| head.epoch == slice.epoch);
        // Nothing to read although the head is further: retention removed all of it.
        let all_gone = slice.events.is_empty() && state.next_offset() <= slice.head;
        let mut discontinuous = !same_epoch || all_gone;
        if discontinuous {
            state.restart(reached);
        }
        for (offset, event) in slice.events.into_iter().filter(|_| same_epoch) {
            if offset < state.next_offset() {
                continue;
            }
            if state.next_offset() < offset {
                // Retention removed the first of them. Readers that need those are reset.
                state.restart(Position::new(slice.epoch, offset - 1));
                discontinuous = true;
            }
            let position = Position::new(slice.epoch, offset);
            let repeat = is_repeat(position, &event);
            let entry = LogEntry::new(self.channel.clone(), position, event, repeat);
            state.append(entry, self.limits);
        }
        state.repairing = state.next_offset() <= reached.offset || state.is_behind_reported_head();
        Repaired { again: state.repairing, next: state.start_fan_out(), discontinuous }
    }

    /// The entries after `cursor`, about `budget` bytes of them.
    pub fn read_after(&self, cursor: Position, budget: usize) -> Read {
        let state = self.state.lock();
        let Some(head) = state.head else { return Read::UpToDate };
        if cursor.epoch != head.epoch {
            return Read::OtherEpoch(head);
        }
        // A cursor from another node may be ahead of this node's log: the entries will arrive.
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
            bytes += entry.event().weight();
            entries.push(Arc::clone(entry));
        }
        Read::Entries(entries)
    }

    /// Waits until the log has this epoch, at most `within`. Returns whether it has.
    pub async fn reaches_epoch(&self, epoch: Epoch, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let mut checks = interval(EPOCH_CHECK_INTERVAL);
        loop {
            checks.tick().await;
            if self.head().is_some_and(|head| head.epoch == epoch) {
                return true;
            }
            if deadline <= Instant::now() {
                return false;
            }
        }
    }

    /// Whether everything after `offset` is in the ring.
    pub fn covers(&self, offset: u64) -> bool {
        let state = self.state.lock();
        state.head.is_some_and(|head| head.offset <= offset) || state.index_after(offset).is_some()
    }

    /// How much of the log before the ring would fit into it: the offset to read backwards from, and the
    /// number of entries.
    pub fn free_before(&self) -> (u64, usize) {
        let state = self.state.lock();
        (state.before_ring(), self.limits.events.saturating_sub(state.ring.len()))
    }

    /// Puts entries that were read backwards in front of the ring, as far as they fit.
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

    /// Attaches a reader: it is offered what is appended from now on. Returns its slot.
    pub fn attach(&self, reader: Arc<dyn Reader>, tag: Tag) -> usize {
        self.state.lock().readers.attach(reader, tag)
    }

    /// Detaches a reader.
    pub fn detach(&self, slot: usize) {
        let reader = self.state.lock().readers.detach(slot);
        // Outside the lock: it may be the last reference to the reader, whose drop detaches too.
        drop(reader);
    }

    /// The next entries that readers have not been offered; none ends the fan-out.
    pub fn next_batch(&self) -> Option<Batch> {
        let mut state = self.state.lock();
        let Some(head) = state.head.filter(|head| state.offered < head.offset) else {
            state.fanning_out = false;
            return None;
        };
        let from = state.index_after(state.offered).unwrap_or(0);
        let mut entries: SmallVec<[Arc<LogEntry>; 4]> = SmallVec::new();
        let mut bytes = 0;
        for entry in state.ring.range(from..) {
            bytes += entry.event().weight();
            entries.push(Arc::clone(entry));
            if BATCH_BYTES < bytes {
                break;
            }
        }
        state.offered = entries.last().map_or(head.offset, |last| last.position.offset);
        if entries.is_empty() {
            state.fanning_out = false;
            return None;
        }
        Some(Batch::new(entries))
    }

    /// A block of readers; none after the last.
    pub fn block(&self, number: usize) -> Option<ReaderBlock> {
        self.state.lock().readers.block(number)
    }

    /// Wakes every reader: the log changed otherwise than by growing.
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

/// The outcome of a repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// Entries are still missing: read on.
    pub again: bool,
    /// Whether there are entries to offer.
    pub next: Next,
    /// The log has a gap or another epoch: readers have to be woken.
    pub discontinuous: bool,
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

    fn restart(&mut self, head: Position) {
        self.ring.clear();
        self.ring_bytes = 0;
        self.offered = head.offset;
        self.head = Some(head);
        self.reported_head = None;
    }

    /// Starts a fan-out if there are entries to offer and none is running.
    fn start_fan_out(&mut self) -> Next {
        let has_new = self.head.is_some_and(|head| self.offered < head.offset);
        if !has_new || std::mem::replace(&mut self.fanning_out, true) {
            return Next::None;
        }
        Next::FanOut
    }

    /// Starts a repair if entries are missing and none is running.
    fn start_repair(&mut self) -> Next {
        if self.repairing || !self.is_behind_reported_head() {
            return Next::None;
        }
        self.repairing = true;
        Next::Repair
    }

    /// Whether a reported head is beyond this log's head, or of another epoch.
    fn is_behind_reported_head(&self) -> bool {
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

    /// The index in the ring of the entry after `offset`.
    fn index_after(&self, offset: u64) -> Option<usize> {
        let oldest = self.ring.front()?.position.offset;
        let index = usize::try_from((offset + 1).checked_sub(oldest)?).ok()?;
        (index < self.ring.len()).then_some(index)
    }
}

/// The higher of two reported heads. One of another epoch counts as higher: a repair has to check it.
trait MaxByOffset {
    fn max_by_offset(self, other: Position) -> Self;
}

impl MaxByOffset for Option<Position> {
    fn max_by_offset(self, other: Position) -> Self {
        match self {
            Some(reported) if reported.epoch == other.epoch && other.offset <= reported.offset => {
                Some(reported)
            }
            _ => Some(other),
        }
    }
}

#[cfg(test)]
mod tests;
