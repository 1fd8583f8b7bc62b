//! The hub: the channels that are open on this node, and keeping their logs complete.
//!
//! It subscribes to a channel at the broker when the first handle is taken, closes it a while after the
//! last one was dropped, appends what the feed brings, fans out to readers, and reads missing entries
//! from the broker. It knows nothing of clients: a reader is a trait object.

use std::{
    hash::{BuildHasher as _, RandomState},
    num::NonZeroUsize,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use dashmap::DashMap;
use parking_lot::Mutex;

use super::{
    log::{BLOCK_SIZE, ChannelLog, Next, Reader, RingLimits, Tag},
    log_reader::LogReader,
};
use crate::{
    broker::{Broker, BrokerError, Entry, Range, Slice},
    dedup::DedupWindow,
    lifecycle::Stage,
    metrics::Metrics,
    protocol::{Channel, Event, MessageId, Position},
};

/// Entries that a repair reads at a time.
const PAGE: usize = 256;

/// Heads in one request to the broker.
const HEADS_PER_REQUEST: usize = 1000;

/// First and longest pause between two tries to read missing entries.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Locks that order the opening and closing of channels. Channels are hashed onto them.
const LOCKS: usize = 1024;

/// The channels that are open on this node.
#[derive(Debug)]
pub struct Hub {
    open_channels: DashMap<Channel, Arc<OpenChannel>>,
    /// Held while a channel is subscribed to or unsubscribed from at the broker, so that the two calls
    /// cannot cross.
    locks: Box<[tokio::sync::Mutex<()>]>,
    hasher: RandomState,
    broker: Arc<dyn Broker>,
    log_reader: Arc<LogReader>,
    ring: RingLimits,
    delivered: DeliveredIds,
    metrics: Arc<Metrics>,
    stage: Stage,
    this: Weak<Self>,
}

impl Hub {
    /// A hub without channels.
    pub(super) fn new(
        (broker, log_reader): (Arc<dyn Broker>, Arc<LogReader>),
        ring: RingLimits,
        (dedup_size, dedup_age): (NonZeroUsize, Duration),
        metrics: Arc<Metrics>,
        stage: Stage,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            open_channels: DashMap::new(),
            locks: (0..LOCKS).map(|_| tokio::sync::Mutex::default()).collect(),
            hasher: RandomState::new(),
            broker,
            log_reader,
            ring,
            delivered: DeliveredIds::new(dedup_size, dedup_age),
            metrics,
            stage,
            this: this.clone(),
        })
    }

    /// Opens a channel. The returned handle keeps it open.
    ///
    /// # Errors
    /// When the broker is unavailable.
    pub async fn open(&self, channel: &Channel) -> Result<ChannelHandle, BrokerError> {
        let _lock = self.lock_of(channel).lock().await;
        let open_channel = {
            let new = || Arc::new(OpenChannel::new(channel.clone(), self.ring));
            let open_channel = self.open_channels.entry(channel.clone()).or_insert_with(new);
            Arc::clone(&open_channel)
        };
        let handle = ChannelHandle::new(Arc::clone(&open_channel));
        if open_channel.log.head().is_none() {
            let head = self.broker.subscribe(channel).await?;
            if !channel.is_reserved() {
                self.metrics.channels.inc();
            }
            self.dispatch(&open_channel, open_channel.log.open(head), false);
        }
        Ok(handle)
    }

    /// Closes channels that had no handle for `linger`.
    pub async fn close_idle(&self, linger: Duration) {
        let idle =
            |open_channel: &OpenChannel| open_channel.idle_for().is_some_and(|idle| linger <= idle);
        let candidates: Vec<Channel> = self
            .open_channels
            .iter()
            .filter(|open_channel| idle(open_channel))
            .map(|open_channel| open_channel.key().clone())
            .collect();
        for channel in candidates {
            let _lock = self.lock_of(&channel).lock().await;
            if let Some((_, open_channel)) =
                self.open_channels.remove_if(&channel, |_, open_channel| idle(open_channel))
            {
                self.broker.unsubscribe(&channel).await;
                if open_channel.log.head().is_some() && !channel.is_reserved() {
                    self.metrics.channels.dec();
                }
            }
        }
    }

    /// Takes an entry from the feed. `more_queued` says that the feed has more entries.
    pub fn ingest(&self, entry: Entry, more_queued: bool) {
        let Some(open_channel) = self.open_channel(&entry.channel) else { return };
        let Entry { channel, position, event } = entry;
        let repeat = |event: &Event| self.is_repeat(&channel, position, event);
        let next = open_channel.log.ingest(position, event, repeat);
        self.dispatch(&open_channel, next, more_queued);
    }

    /// Takes a report that a log has its head at `position`.
    pub fn observe_head(&self, channel: &Channel, position: Position) {
        let Some(open_channel) = self.open_channel(channel) else { return };
        self.dispatch(&open_channel, open_channel.log.observe_head(position), false);
    }

    /// Compares every open log's head with the broker's, and repairs logs that lack entries. One request
    /// to the broker per thousand channels.
    ///
    /// # Errors
    /// When the broker is unavailable.
    pub async fn check_heads(&self) -> Result<(), BrokerError> {
        let known: Vec<_> = self
            .open_channels
            .iter()
            .filter_map(|open_channel| Some((open_channel.key().clone(), open_channel.log.head()?)))
            .collect();
        for known in known.chunks(HEADS_PER_REQUEST) {
            let heads = self.broker.verify(known).await?;
            for ((channel, _), head) in known.iter().zip(heads) {
                self.observe_head(channel, head);
            }
        }
        Ok(())
    }

    /// The open channels, each with the number of its readers on this node.
    pub fn reader_counts(&self) -> Vec<(Channel, usize)> {
        let open =
            self.open_channels.iter().filter(|open_channel| !open_channel.key().is_reserved());
        open.map(|open_channel| (open_channel.key().clone(), open_channel.log.readers())).collect()
    }

    /// Whether an event was delivered before, under an earlier offset.
    pub fn was_delivered_before(
        &self,
        channel: &Channel,
        position: Position,
        event: &Event,
    ) -> bool {
        self.delivered.was_delivered_before(channel, position, event)
    }

    fn open_channel(&self, channel: &Channel) -> Option<Arc<OpenChannel>> {
        self.open_channels.get(channel).map(|open_channel| Arc::clone(&open_channel))
    }

    fn lock_of(&self, channel: &Channel) -> &tokio::sync::Mutex<()> {
        let hash = usize::try_from(self.hasher.hash_one(channel) % LOCKS as u64).unwrap_or(0);
        &self.locks[hash]
    }

    fn is_repeat(&self, channel: &Channel, position: Position, event: &Event) -> bool {
        if channel.is_reserved() {
            return false;
        }
        self.metrics.events_ingested.inc();
        let repeat = self.delivered.is_repeat(channel, position, event);
        if repeat {
            self.metrics.events_deduplicated.inc();
        }
        repeat
    }

    fn dispatch(&self, open_channel: &Arc<OpenChannel>, next: Next, more_queued: bool) {
        match next {
            Next::None => {}
            // Few readers are served inline. Many readers get a task, so that the pump continues with
            // other channels. So do few readers while the feed has more entries: if those are for the
            // same channel, they go out in the same write.
            Next::FanOut if open_channel.log.readers() <= BLOCK_SIZE && !more_queued => {
                fan_out_inline(&open_channel.log)
            }
            Next::FanOut => self.stage.spawn_client(fan_out_task(Arc::clone(open_channel))),
            Next::Repair => {
                let Some(hub) = self.this.upgrade() else { return };
                let open_channel = Arc::clone(open_channel);
                self.stage.spawn_client(async move { hub.repair(open_channel).await });
            }
        }
    }

    /// Reads missing entries until none is missing, however long the broker is unavailable.
    async fn repair(&self, open_channel: Arc<OpenChannel>) {
        let mut pause = RETRY.0;
        loop {
            let after = Range::After(open_channel.log.missing_after());
            let slice = tokio::select! {
                slice = self.log_reader.read(open_channel.log.channel(), after, PAGE) => slice,
                () = self.stage.stopping().cancelled() => return,
            };
            let Ok(slice) = slice else {
                let stopped = self.stage.stopping().cancelled();
                if tokio::time::timeout(pause, stopped).await.is_ok() {
                    return;
                }
                pause = (pause * 2).min(RETRY.1);
                continue;
            };
            self.metrics.log_repairs.inc();
            if !self.apply_repair(&open_channel, slice).await {
                return;
            }
        }
    }

    /// Appends what a repair read. Returns whether it has to read on.
    async fn apply_repair(&self, open_channel: &Arc<OpenChannel>, slice: Slice) -> bool {
        let channel = open_channel.log.channel();
        let repaired =
            open_channel.log.apply_repair(slice, |at, event| self.is_repeat(channel, at, event));
        if repaired.discontinuous {
            open_channel.log.wake_all();
        }
        if repaired.next == Next::FanOut {
            fan_out(&open_channel.log).await;
        }
        repaired.again
    }
}

/// A channel that is open on this node.
#[derive(Debug)]
pub struct OpenChannel {
    log: ChannelLog,
    handles: AtomicUsize,
    /// Since when it has no handle.
    idle_since: Mutex<Option<Instant>>,
    /// Held while the ring is filled from the broker, so that many readers that resume at once cause one
    /// read.
    backfill: tokio::sync::Mutex<()>,
}

impl OpenChannel {
    fn new(channel: Channel, ring: RingLimits) -> Self {
        Self {
            log: ChannelLog::new(channel, ring),
            handles: AtomicUsize::new(0),
            idle_since: Mutex::new(Some(Instant::now())),
            backfill: tokio::sync::Mutex::default(),
        }
    }

    fn idle_for(&self) -> Option<Duration> {
        if self.handles.load(Ordering::Acquire) != 0 {
            return None;
        }
        self.idle_since.lock().map(|since| since.elapsed())
    }
}

/// Keeps a channel open on this node, and a reader attached to it once [`attach`](Self::attach) was
/// called.
#[derive(Debug)]
pub struct ChannelHandle {
    open_channel: Arc<OpenChannel>,
    slot: Option<usize>,
}

impl ChannelHandle {
    fn new(open_channel: Arc<OpenChannel>) -> Self {
        open_channel.handles.fetch_add(1, Ordering::AcqRel);
        Self { open_channel, slot: None }
    }

    /// The channel's log.
    pub fn log(&self) -> &ChannelLog {
        &self.open_channel.log
    }

    /// Attaches a reader: it is offered what is appended, until the handle is dropped.
    pub fn attach(&mut self, reader: Arc<dyn Reader>, tag: Tag) {
        if self.slot.is_none() {
            self.slot = Some(self.open_channel.log.attach(reader, tag));
        }
    }

    /// Fills the ring from the broker's log back to `offset`, so that all readers that resume there are
    /// served from it with one read.
    pub(super) async fn backfill_to(
        &self,
        log_reader: &LogReader,
        offset: u64,
    ) -> Result<(), BrokerError> {
        let _backfill = self.open_channel.backfill.lock().await;
        let log = &self.open_channel.log;
        let (until, free) = log.free_before();
        let missing = usize::try_from(until.saturating_sub(offset)).unwrap_or(usize::MAX);
        if !log.covers(offset) && missing <= free {
            log.prepend(log_reader.read(log.channel(), Range::Until(until), missing).await?);
        }
        Ok(())
    }
}

impl Drop for ChannelHandle {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.open_channel.log.detach(slot);
        }
        // Before the count: `idle_for` must not find zero handles with an old time.
        *self.open_channel.idle_since.lock() = Some(Instant::now());
        self.open_channel.handles.fetch_sub(1, Ordering::AcqRel);
    }
}

fn fan_out_inline(log: &ChannelLog) {
    while let Some(batch) = log.next_batch() {
        for block in (0..).map_while(|number| log.block(number)) {
            block.offer(&batch);
        }
    }
}

async fn fan_out_task(open_channel: Arc<OpenChannel>) {
    fan_out(&open_channel.log).await;
}

/// Offers new entries to every reader, batch by batch, one block of readers at a time.
async fn fan_out(log: &ChannelLog) {
    while let Some(batch) = log.next_batch() {
        for block in (0..).map_while(|number| log.block(number)) {
            block.offer(&batch);
            drop(block);
            tokio::task::yield_now().await;
        }
    }
}

/// The window of delivered message ids: the same message under another offset is not delivered twice.
///
/// Within one log the broker deduplicates. This window is for what the broker cannot know: a failover
/// that lost the id but not the entry, or a second feed. It is half as long as the broker's, so that an
/// id that may be published again is never dropped here.
#[derive(Debug)]
struct DeliveredIds(Mutex<DedupWindow<(Channel, MessageId), Position>>);

impl DeliveredIds {
    fn new(size: NonZeroUsize, age: Duration) -> Self {
        Self(Mutex::new(DedupWindow::new(size, age / 2)))
    }

    fn was_delivered_before(&self, channel: &Channel, position: Position, event: &Event) -> bool {
        let key = (channel.clone(), event.id.clone());
        let first = self.0.lock().get(&key, event.time);
        first.is_some_and(|first| is_earlier(first, position))
    }

    fn is_repeat(&self, channel: &Channel, position: Position, event: &Event) -> bool {
        let key = (channel.clone(), event.id.clone());
        let mut window = self.0.lock();
        match window.get(&key, event.time) {
            Some(first) => is_earlier(first, position),
            None => {
                window.insert(key, position, event.time);
                false
            }
        }
    }
}

fn is_earlier(first: Position, position: Position) -> bool {
    first.epoch == position.epoch && first.offset < position.offset
}
