//! Which channels have readers on this node, and keeping their logs whole.
//!
//! A [`OpenChannel`] is a channel's log with those who hold it open. The hub opens it at the broker when
//! the first one comes, gives it up a while after the last one left, appends what comes up the
//! feed, walks the readers, and reads from the broker what is missing. It knows nothing of clients:
//! a reader is a trait object.

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
    dedup::Window,
    lifecycle::Stage,
    metrics::Metrics,
    protocol::{Channel, Event, MessageId, Position},
};

/// Entries that a repair reads in one go.
const PAGE: usize = 256;

/// First and longest pause between two tries to read what is missing.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Opening and giving up of channels that share a turn happen one after the other.
const TURNS: usize = 1024;

/// The channels that have readers on this node.
#[derive(Debug)]
pub struct Hub {
    open_channels: DashMap<Channel, Arc<OpenChannel>>,
    /// Held while the broker is told of the first reader or the last one's leaving, so that the two
    /// calls cannot cross.
    turns: Box<[tokio::sync::Mutex<()>]>,
    hasher: RandomState,
    broker: Arc<dyn Broker>,
    reading: Arc<LogReader>,
    ring: RingLimits,
    delivered: Delivered,
    metrics: Arc<Metrics>,
    stage: Stage,
    this: Weak<Self>,
}

impl Hub {
    /// A hub without channels.
    pub(super) fn new(
        (broker, reading): (Arc<dyn Broker>, Arc<LogReader>),
        ring: RingLimits,
        (dedup_size, dedup_age): (NonZeroUsize, Duration),
        metrics: Arc<Metrics>,
        stage: Stage,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            open_channels: DashMap::new(),
            turns: (0..TURNS).map(|_| tokio::sync::Mutex::default()).collect(),
            hasher: RandomState::new(),
            broker,
            reading,
            ring,
            delivered: Delivered::new(dedup_size, dedup_age),
            metrics,
            stage,
            this: this.clone(),
        })
    }

    /// Opens a channel for one more reader. The returned hold keeps it open.
    ///
    /// # Errors
    /// When the broker cannot be asked; nothing is held then.
    pub async fn open(&self, channel: &Channel) -> Result<ChannelHandle, BrokerError> {
        let _turn = self.turn(channel).lock().await;
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
            self.follow_up(&open_channel, open_channel.log.open(head), false);
        }
        Ok(handle)
    }

    /// Gives up the channels that nobody held for `linger`.
    pub async fn give_up_idle(&self, linger: Duration) {
        let idle =
            |open_channel: &OpenChannel| open_channel.idle_for().is_some_and(|idle| linger <= idle);
        let candidates: Vec<Channel> = self
            .open_channels
            .iter()
            .filter(|open_channel| idle(open_channel))
            .map(|open_channel| open_channel.key().clone())
            .collect();
        for channel in candidates {
            let _turn = self.turn(&channel).lock().await;
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

    /// Takes an entry from the feed. `others_wait` says that it is not the last of it.
    pub fn ingest(&self, entry: Entry, others_wait: bool) {
        let Some(open_channel) = self.open_channel(&entry.channel) else { return };
        let Entry { channel, position, event } = entry;
        let repeat = |event: &Event| self.is_repeat(&channel, position, event);
        let next = open_channel.log.ingest(position, event, repeat);
        self.follow_up(&open_channel, next, others_wait);
    }

    /// Takes the news that a log reaches as far as `position`.
    pub fn observe_head(&self, channel: &Channel, position: Position) {
        let Some(open_channel) = self.open_channel(channel) else { return };
        self.follow_up(&open_channel, open_channel.log.observe_head(position), false);
    }

    /// Asks the broker where every open log stands, and repairs those that lack something.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    pub async fn verify(&self) -> Result<(), BrokerError> {
        let known: Vec<_> = self
            .open_channels
            .iter()
            .filter_map(|open_channel| Some((open_channel.key().clone(), open_channel.log.head()?)))
            .collect();
        for known in known.chunks(1000) {
            let heads = self.broker.verify(known).await?;
            for ((channel, _), head) in known.iter().zip(heads) {
                self.observe_head(channel, head);
            }
        }
        Ok(())
    }

    /// The open channels with the number of their readers here.
    pub fn occupied(&self) -> Vec<(Channel, usize)> {
        let open =
            self.open_channels.iter().filter(|open_channel| !open_channel.key().is_reserved());
        open.map(|open_channel| (open_channel.key().clone(), open_channel.log.readers())).collect()
    }

    /// Whether an event was delivered before, under an earlier offset.
    pub fn was_shown_before(&self, channel: &Channel, position: Position, event: &Event) -> bool {
        self.delivered.was_shown_before(channel, position, event)
    }

    fn open_channel(&self, channel: &Channel) -> Option<Arc<OpenChannel>> {
        self.open_channels.get(channel).map(|open_channel| Arc::clone(&open_channel))
    }

    fn turn(&self, channel: &Channel) -> &tokio::sync::Mutex<()> {
        let hash = usize::try_from(self.hasher.hash_one(channel) % TURNS as u64).unwrap_or(0);
        &self.turns[hash]
    }

    fn is_repeat(&self, channel: &Channel, position: Position, event: &Event) -> bool {
        if channel.is_reserved() {
            return false;
        }
        self.metrics.ingested.inc();
        let repeat = self.delivered.is_repeat(channel, position, event);
        if repeat {
            self.metrics.repeats.inc();
        }
        repeat
    }

    fn follow_up(&self, open_channel: &Arc<OpenChannel>, next: Next, others_wait: bool) {
        match next {
            Next::None => {}
            // A few readers are served on the spot. A crowd gets a task, so that other channels go on;
            // so do the few where more news wait, which may be theirs and then goes out with this.
            Next::FanOut if open_channel.log.readers() <= BLOCK_SIZE && !others_wait => {
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

    /// Reads what is missing until nothing is, however long the broker is away.
    async fn repair(&self, open_channel: Arc<OpenChannel>) {
        let mut pause = RETRY.0;
        loop {
            let after = Range::After(open_channel.log.missing_after());
            let slice = tokio::select! {
                slice = self.reading.read(open_channel.log.channel(), after, PAGE) => slice,
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
            self.metrics.holes.inc();
            if !self.apply_repair(&open_channel, slice).await {
                return;
            }
        }
    }

    /// Appends what a repair read. Whether it has to read on.
    async fn apply_repair(&self, open_channel: &Arc<OpenChannel>, slice: Slice) -> bool {
        let channel = open_channel.log.channel();
        let repaired =
            open_channel.log.apply_repair(slice, |at, event| self.is_repeat(channel, at, event));
        if repaired.broken {
            open_channel.log.wake_all();
        }
        if repaired.walk == Next::FanOut {
            fan_out(&open_channel.log).await;
        }
        repaired.again
    }
}

/// A channel that somebody here reads.
#[derive(Debug)]
pub struct OpenChannel {
    log: ChannelLog,
    holds: AtomicUsize,
    /// Since when nobody holds it.
    idle_since: Mutex<Option<Instant>>,
    /// Held while the ring is filled up from the broker, so that many who come back at once ask once.
    filling: tokio::sync::Mutex<()>,
}

impl OpenChannel {
    fn new(channel: Channel, ring: RingLimits) -> Self {
        Self {
            log: ChannelLog::new(channel, ring),
            holds: AtomicUsize::new(0),
            idle_since: Mutex::new(Some(Instant::now())),
            filling: tokio::sync::Mutex::default(),
        }
    }

    fn idle_for(&self) -> Option<Duration> {
        if self.holds.load(Ordering::Acquire) != 0 {
            return None;
        }
        self.idle_since.lock().map(|since| since.elapsed())
    }
}

/// Keeps a channel open on this node, and a seat in it once [`sit`](Self::sit) was called.
#[derive(Debug)]
pub struct ChannelHandle {
    open_channel: Arc<OpenChannel>,
    slot: Option<usize>,
}

impl ChannelHandle {
    fn new(open_channel: Arc<OpenChannel>) -> Self {
        open_channel.holds.fetch_add(1, Ordering::AcqRel);
        Self { open_channel, slot: None }
    }

    /// The channel's log.
    pub fn log(&self) -> &ChannelLog {
        &self.open_channel.log
    }

    /// From now on `reader` is offered what comes, until the hold is dropped.
    pub fn attach(&mut self, reader: Arc<dyn Reader>, tag: Tag) {
        if self.slot.is_none() {
            self.slot = Some(self.open_channel.log.attach(reader, tag));
        }
    }

    /// Fills the ring from the broker's log, so that all who come back to `offset` are served from
    /// it. Asks at most once for all of them.
    pub(super) async fn fill_back_to(
        &self,
        reading: &LogReader,
        offset: u64,
    ) -> Result<(), BrokerError> {
        let _filling = self.open_channel.filling.lock().await;
        let log = &self.open_channel.log;
        let (until, open_channel) = log.room_before();
        let lacking = usize::try_from(until.saturating_sub(offset)).unwrap_or(usize::MAX);
        if !log.covers(offset) && lacking <= open_channel {
            log.prepend(reading.read(log.channel(), Range::Until(until), lacking).await?);
        }
        Ok(())
    }
}

impl Drop for ChannelHandle {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.open_channel.log.detach(slot);
        }
        // Before the count: whoever sees it at zero finds when that was.
        *self.open_channel.idle_since.lock() = Some(Instant::now());
        self.open_channel.holds.fetch_sub(1, Ordering::AcqRel);
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

/// Offers what is new to every reader, batch after batch, a row of readers at a time.
async fn fan_out(log: &ChannelLog) {
    while let Some(batch) = log.next_batch() {
        for block in (0..).map_while(|number| log.block(number)) {
            block.offer(&batch);
            drop(block);
            tokio::task::yield_now().await;
        }
    }
}

/// The ids delivered lately: the same message under another offset is not shown twice.
///
/// Within one log the broker sees to that. This window is for what the broker cannot see: a failover
/// that lost the id but not the entry, or a second feed. It is half as wide as the broker's, so that
/// it never takes a rightly repeated id for a mishap.
#[derive(Debug)]
struct Delivered(Mutex<Window<(Channel, MessageId), Position>>);

impl Delivered {
    fn new(size: NonZeroUsize, age: Duration) -> Self {
        Self(Mutex::new(Window::new(size, age / 2)))
    }

    fn was_shown_before(&self, channel: &Channel, position: Position, event: &Event) -> bool {
        let key = (channel.clone(), event.id.clone());
        let first = self.0.lock().find(&key, event.time);
        first.is_some_and(|first| is_earlier(first, position))
    }

    fn is_repeat(&self, channel: &Channel, position: Position, event: &Event) -> bool {
        let key = (channel.clone(), event.id.clone());
        let mut window = self.0.lock();
        match window.find(&key, event.time) {
            Some(first) => is_earlier(first, position),
            None => {
                window.remember(key, position, event.time);
                false
            }
        }
    }
}

fn is_earlier(first: Position, position: Position) -> bool {
    first.epoch == position.epoch && first.offset < position.offset
}
