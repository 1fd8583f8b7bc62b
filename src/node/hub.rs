//! Which channels have readers on this node, and keeping their logs whole.
//!
//! A [`Room`] is a channel's log with those who hold it open. The hub opens it at the broker when
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
    log::{ChannelLog, Next, Reader, RingLimits, SEATS, Tag},
    reading::Reading,
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
    rooms: DashMap<Channel, Arc<Room>>,
    /// Held while the broker is told of the first reader or the last one's leaving, so that the two
    /// calls cannot cross.
    turns: Box<[tokio::sync::Mutex<()>]>,
    hasher: RandomState,
    broker: Arc<dyn Broker>,
    reading: Arc<Reading>,
    ring: RingLimits,
    delivered: Delivered,
    metrics: Arc<Metrics>,
    stage: Stage,
    this: Weak<Self>,
}

impl Hub {
    /// A hub without channels.
    pub(super) fn new(
        (broker, reading): (Arc<dyn Broker>, Arc<Reading>),
        ring: RingLimits,
        (dedup_size, dedup_age): (NonZeroUsize, Duration),
        metrics: Arc<Metrics>,
        stage: Stage,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            rooms: DashMap::new(),
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
    pub async fn enter(&self, channel: &Channel) -> Result<Hold, BrokerError> {
        let _turn = self.turn(channel).lock().await;
        let room = {
            let new = || Arc::new(Room::new(channel.clone(), self.ring));
            let room = self.rooms.entry(channel.clone()).or_insert_with(new);
            Arc::clone(&room)
        };
        let hold = Hold::new(Arc::clone(&room));
        if room.log.head().is_none() {
            let head = self.broker.subscribe(channel).await?;
            if !channel.is_reserved() {
                self.metrics.channels.inc();
            }
            self.follow_up(&room, room.log.open(head), false);
        }
        Ok(hold)
    }

    /// Gives up the channels that nobody held for `linger`.
    pub async fn give_up_idle(&self, linger: Duration) {
        let idle = |room: &Room| room.idle_for().is_some_and(|idle| linger <= idle);
        let candidates: Vec<Channel> =
            self.rooms.iter().filter(|room| idle(room)).map(|room| room.key().clone()).collect();
        for channel in candidates {
            let _turn = self.turn(&channel).lock().await;
            if let Some((_, room)) = self.rooms.remove_if(&channel, |_, room| idle(room)) {
                self.broker.unsubscribe(&channel).await;
                if room.log.head().is_some() && !channel.is_reserved() {
                    self.metrics.channels.dec();
                }
            }
        }
    }

    /// Takes an entry from the feed. `others_wait` says that it is not the last of it.
    pub fn ingest(&self, entry: Entry, others_wait: bool) {
        let Some(room) = self.room(&entry.channel) else { return };
        let Entry { channel, position, event } = entry;
        let repeat = |event: &Event| self.is_repeat(&channel, position, event);
        let next = room.log.ingest(position, event, repeat);
        self.follow_up(&room, next, others_wait);
    }

    /// Takes the news that a log reaches as far as `position`.
    pub fn heard_of(&self, channel: &Channel, position: Position) {
        let Some(room) = self.room(channel) else { return };
        self.follow_up(&room, room.log.heard_of(position), false);
    }

    /// Asks the broker where every open log stands, and repairs those that lack something.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    pub async fn verify(&self) -> Result<(), BrokerError> {
        let known: Vec<_> = self
            .rooms
            .iter()
            .filter_map(|room| Some((room.key().clone(), room.log.head()?)))
            .collect();
        for known in known.chunks(1000) {
            let heads = self.broker.verify(known).await?;
            for ((channel, _), head) in known.iter().zip(heads) {
                self.heard_of(channel, head);
            }
        }
        Ok(())
    }

    /// The open channels with the number of their readers here.
    pub fn occupied(&self) -> Vec<(Channel, usize)> {
        let open = self.rooms.iter().filter(|room| !room.key().is_reserved());
        open.map(|room| (room.key().clone(), room.log.readers())).collect()
    }

    /// Whether an event was delivered before, under an earlier offset.
    pub fn was_shown_before(&self, channel: &Channel, position: Position, event: &Event) -> bool {
        self.delivered.was_shown_before(channel, position, event)
    }

    fn room(&self, channel: &Channel) -> Option<Arc<Room>> {
        self.rooms.get(channel).map(|room| Arc::clone(&room))
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

    fn follow_up(&self, room: &Arc<Room>, next: Next, others_wait: bool) {
        match next {
            Next::Rest => {}
            // A few readers are served on the spot. A crowd gets a task, so that other channels go on;
            // so do the few where more news wait, which may be theirs and then goes out with this.
            Next::Walk if room.log.readers() <= SEATS && !others_wait => walk_few(&room.log),
            Next::Walk => self.stage.spawn_client(walk_many(Arc::clone(room))),
            Next::Repair => {
                let Some(hub) = self.this.upgrade() else { return };
                let room = Arc::clone(room);
                self.stage.spawn_client(async move { hub.repair(room).await });
            }
        }
    }

    /// Reads what is missing until nothing is, however long the broker is away.
    async fn repair(&self, room: Arc<Room>) {
        let mut pause = RETRY.0;
        loop {
            let after = Range::After(room.log.missing_after());
            let slice = tokio::select! {
                slice = self.reading.read(room.log.channel(), after, PAGE) => slice,
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
            if !self.mend(&room, slice).await {
                return;
            }
        }
    }

    /// Appends what a repair read. Whether it has to read on.
    async fn mend(&self, room: &Arc<Room>, slice: Slice) -> bool {
        let channel = room.log.channel();
        let mended = room.log.mend(slice, |at, event| self.is_repeat(channel, at, event));
        if mended.broken {
            room.log.nudge_all();
        }
        if mended.walk == Next::Walk {
            walk(&room.log).await;
        }
        mended.again
    }
}

/// A channel that somebody here reads.
#[derive(Debug)]
pub struct Room {
    log: ChannelLog,
    holds: AtomicUsize,
    /// Since when nobody holds it.
    idle_since: Mutex<Option<Instant>>,
    /// Held while the ring is filled up from the broker, so that many who come back at once ask once.
    filling: tokio::sync::Mutex<()>,
}

impl Room {
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
pub struct Hold {
    room: Arc<Room>,
    seat: Option<usize>,
}

impl Hold {
    fn new(room: Arc<Room>) -> Self {
        room.holds.fetch_add(1, Ordering::AcqRel);
        Self { room, seat: None }
    }

    /// The channel's log.
    pub fn log(&self) -> &ChannelLog {
        &self.room.log
    }

    /// From now on `reader` is offered what comes, until the hold is dropped.
    pub fn sit(&mut self, reader: Arc<dyn Reader>, tag: Tag) {
        if self.seat.is_none() {
            self.seat = Some(self.room.log.sit(reader, tag));
        }
    }

    /// Fills the ring from the broker's log, so that all who come back to `offset` are served from
    /// it. Asks at most once for all of them.
    pub(super) async fn fill_back_to(
        &self,
        reading: &Reading,
        offset: u64,
    ) -> Result<(), BrokerError> {
        let _filling = self.room.filling.lock().await;
        let log = &self.room.log;
        let (until, room) = log.room_before();
        let lacking = usize::try_from(until.saturating_sub(offset)).unwrap_or(usize::MAX);
        if !log.covers(offset) && lacking <= room {
            log.prepend(reading.read(log.channel(), Range::Until(until), lacking).await?);
        }
        Ok(())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(seat) = self.seat {
            self.room.log.stand_up(seat);
        }
        // Before the count: whoever sees it at zero finds when that was.
        *self.room.idle_since.lock() = Some(Instant::now());
        self.room.holds.fetch_sub(1, Ordering::AcqRel);
    }
}

fn walk_few(log: &ChannelLog) {
    while let Some(batch) = log.next_batch() {
        for row in (0..).map_while(|number| log.row(number)) {
            row.offer(&batch);
        }
    }
}

async fn walk_many(room: Arc<Room>) {
    walk(&room.log).await;
}

/// Offers what is new to every reader, batch after batch, a row of readers at a time.
async fn walk(log: &ChannelLog) {
    while let Some(batch) = log.next_batch() {
        for row in (0..).map_while(|number| log.row(number)) {
            row.offer(&batch);
            drop(row);
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
