//! The node: publishes to channels, attaches readers to their logs, and reads slices of them.
//!
//! It is the layer between clients and the broker, and owns the logs of the channels that are open in
//! this process. It knows channels, positions and entries; it knows no socket, no JSON and no token.

pub mod follower;
pub mod hub;
pub mod log;
mod log_reader;

use std::{
    fmt,
    num::NonZeroUsize,
    sync::{Arc, OnceLock},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::{info, warn};

pub use self::{
    hub::ChannelHandle,
    log::{Batch, ChannelLog, LogEntry, Read, Reader, Tag},
};
use self::{hub::Hub, log::RingLimits, log_reader::LogReader};
use crate::{
    broker::{
        Broker, BrokerError, Feed, Health, Incoming, Publication, Range, Receipt, Slice, Store,
    },
    lifecycle::Stage,
    metrics::Metrics,
    protocol::{Channel, Event, Position, frame::ResetReason},
};

/// Section `[node]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// The name of this node in logs and to clients; random when empty.
    pub name: String,
    /// Events kept in memory per channel. A reader further behind is served from the broker's log.
    pub ring_events: NonZeroUsize,
    /// The same in bytes, per channel.
    pub ring_bytes: NonZeroUsize,
    /// How often the heads of open channels are compared with the broker's: a lost notification of the
    /// last event is noticed within this time.
    #[serde(with = "humantime_serde")]
    pub head_check: Duration,
    /// How long a channel stays open after its last reader has detached.
    #[serde(with = "humantime_serde")]
    pub linger: Duration,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            ring_events: NonZeroUsize::new(1024).expect("not zero"),
            ring_bytes: NonZeroUsize::new(1 << 20).expect("not zero"),
            head_check: Duration::from_secs(2),
            linger: Duration::from_secs(10),
        }
    }
}

/// Section `[dedup]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DedupConfig {
    /// A repeated message id is recognised for this long after it was first published.
    #[serde(with = "humantime_serde")]
    pub window: Duration,
    /// Delivered message ids that this node remembers, over all channels.
    pub delivered_ids: NonZeroUsize,
}

impl Default for DedupConfig {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(120),
            delivered_ids: NonZeroUsize::new(100_000).expect("not zero"),
        }
    }
}

/// How long this node's log may take to learn of an epoch that a client knows already.
const EPOCH_TIMEOUT: Duration = Duration::from_secs(2);

/// This gateway process's node.
#[derive(Debug)]
pub struct Node {
    name: Arc<str>,
    broker: Arc<dyn Broker>,
    log_reader: Arc<LogReader>,
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    tap: OnceLock<Arc<dyn Tap>>,
}

/// Receives what is published through this node. It must not wait.
pub trait Tap: fmt::Debug + Send + Sync {
    /// Whether it wants the events of a channel.
    fn wants(&self, channel: &Channel) -> bool;

    /// An event was appended that was not a duplicate.
    fn stored(&self, publication: Publication);
}

impl Node {
    /// Starts the tasks that take entries from the broker's feed and check heads.
    pub fn start(
        config: &NodeConfig,
        dedup: &DedupConfig,
        (broker, feed): (Arc<dyn Broker>, Feed),
        metrics: Arc<Metrics>,
        stage: &Stage,
    ) -> Arc<Self> {
        let ring = RingLimits { events: config.ring_events.get(), bytes: config.ring_bytes.get() };
        let window = (dedup.delivered_ids, dedup.window);
        let log_reader = Arc::new(LogReader::new(Arc::clone(&broker)));
        let source = (Arc::clone(&broker), Arc::clone(&log_reader));
        let hub = Hub::new(source, ring, window, Arc::clone(&metrics), stage.clone());
        let name = if config.name.is_empty() {
            format!("node-{:04x}", rand::random::<u16>()).into()
        } else {
            config.name.as_str().into()
        };
        let node = Arc::new(Self { name, broker, log_reader, hub, metrics, tap: OnceLock::new() });
        stage.spawn("pump", pump(Arc::clone(&node), feed, stage.clone()));
        let housekeeping = housekeeping(Arc::clone(&node), config.clone(), stage.clone());
        stage.spawn("housekeeping", housekeeping);
        node
    }

    /// The node's name (`node.name`).
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The gateway's metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The broker's store of records, such as rollouts.
    pub fn store(&self) -> Arc<dyn Store> {
        self.broker.store()
    }

    /// Whether the broker is available.
    pub fn health(&self) -> Health {
        self.broker.health()
    }

    /// Sets the receiver of what is published from now on. The first one stays.
    pub fn tap(&self, tap: Arc<dyn Tap>) {
        let _ = self.tap.set(tap);
    }

    /// Appends each publication to its channel's log. Returns one answer for each, in the same order.
    pub async fn publish(&self, batch: Vec<Publication>) -> Vec<Result<Receipt, BrokerError>> {
        let Some(tap) = self.tap.get() else { return self.append(batch).await };
        let tapped: Vec<_> =
            batch.iter().map(|p| tap.wants(&p.channel).then(|| p.clone())).collect();
        let receipts = self.append(batch).await;
        for (publication, receipt) in tapped.into_iter().zip(&receipts) {
            if let (Some(publication), Ok(Receipt { duplicate: false, .. })) =
                (publication, receipt)
            {
                tap.stored(publication);
            }
        }
        receipts
    }

    /// As [`publish`](Self::publish), without the tap: for events that come from where the tap leads.
    pub async fn append(&self, batch: Vec<Publication>) -> Vec<Result<Receipt, BrokerError>> {
        let begin = Instant::now();
        let receipts = self.broker.publish(batch).await;
        self.metrics.publish_seconds.observe(begin.elapsed().as_secs_f64());
        for receipt in &receipts {
            match receipt {
                Ok(receipt) if receipt.duplicate => self.metrics.publish_duplicates.inc(),
                Ok(_) => self.metrics.events_published.inc(),
                Err(_) => self.metrics.publish_failures.inc(),
            };
        }
        receipts
    }

    /// Appends to one of the gateway's own logs, without metrics and tap. Returns whether it succeeded.
    pub async fn append_internal(&self, publication: Publication) -> bool {
        self.broker.publish(vec![publication]).await.iter().all(Result::is_ok)
    }

    /// Opens a channel for a reader that holds `since`, and finds where it starts.
    ///
    /// # Errors
    /// When the broker is unavailable.
    pub async fn attach(
        &self,
        channel: &Channel,
        since: Option<Position>,
    ) -> Result<(ChannelHandle, Start), BrokerError> {
        let handle = self.hub.open(channel).await?;
        let start = self.start_at(&handle, since).await?;
        Ok((handle, start))
    }

    /// Reads a slice of a channel's log.
    ///
    /// # Errors
    /// When the broker is unavailable.
    pub async fn read(
        &self,
        channel: &Channel,
        range: Range,
        limit: usize,
    ) -> Result<Slice, BrokerError> {
        self.log_reader.read(channel, range, limit).await
    }

    /// Whether an event was delivered before, under an earlier offset.
    pub fn was_delivered_before(
        &self,
        channel: &Channel,
        position: Position,
        event: &Event,
    ) -> bool {
        self.hub.was_delivered_before(channel, position, event)
    }

    /// Takes a report that a channel's log has its head at `position`.
    pub fn observe_head(&self, channel: &Channel, position: Position) {
        self.hub.observe_head(channel, position);
    }

    /// The open channels, each with the number of its readers on this node.
    pub fn reader_counts(&self) -> Vec<(Channel, usize)> {
        self.hub.reader_counts()
    }

    async fn start_at(
        &self,
        handle: &ChannelHandle,
        since: Option<Position>,
    ) -> Result<Start, BrokerError> {
        let head = handle.log().head().unwrap_or(Position::new(crate::protocol::Epoch::new(0), 0));
        let Some(since) = since else {
            return Ok(Start { cursor: head, head, lost: None, recovered: false });
        };
        let lost = |reason| Start { cursor: head, head, lost: Some(reason), recovered: false };
        if since.epoch != head.epoch || head.offset < since.offset {
            // This node may lag behind the one that sent the position: the broker decides.
            return self.start_beyond_head(handle, since).await;
        }
        if !handle.log().covers(since.offset) {
            handle.backfill_to(&self.log_reader, since.offset).await?;
        }
        if !handle.log().covers(since.offset) && !self.is_retained(handle, since).await? {
            return Ok(lost(ResetReason::Expired));
        }
        Ok(Start { cursor: since, head, lost: None, recovered: true })
    }

    async fn start_beyond_head(
        &self,
        handle: &ChannelHandle,
        since: Position,
    ) -> Result<Start, BrokerError> {
        let channel = handle.log().channel();
        let slice = self.log_reader.read(channel, Range::After(since.offset), 1).await?;
        let head = Position::new(slice.epoch, slice.head);
        self.hub.observe_head(channel, head);
        let known = handle.log().reaches_epoch(head.epoch, EPOCH_TIMEOUT).await;
        let next = slice.events.first().map(|(offset, _)| *offset);
        let lost = |reason| Start { cursor: head, head, lost: Some(reason), recovered: false };
        Ok(if !known || slice.epoch != since.epoch || slice.head < since.offset {
            lost(ResetReason::Epoch)
        } else if slice.head == since.offset || next == Some(since.offset + 1) {
            Start { cursor: since, head, lost: None, recovered: true }
        } else {
            lost(ResetReason::Expired)
        })
    }

    async fn is_retained(
        &self,
        handle: &ChannelHandle,
        since: Position,
    ) -> Result<bool, BrokerError> {
        let slice =
            self.log_reader.read(handle.log().channel(), Range::After(since.offset), 1).await?;
        let next = slice.events.first().map(|(offset, _)| *offset);
        Ok(slice.epoch == since.epoch && next == Some(since.offset + 1))
    }
}

/// Where a reader starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// After this position.
    pub cursor: Position,
    /// The log's head at that time.
    pub head: Position,
    /// Why the reader lost events, if it did.
    pub lost: Option<ResetReason>,
    /// Whether everything after the reader's position can be read.
    pub recovered: bool,
}

/// Takes what the broker's feed brings.
async fn pump(node: Arc<Node>, mut feed: Feed, stage: Stage) {
    loop {
        let incoming = tokio::select! {
            incoming = feed.recv() => incoming,
            () = stage.stopping().cancelled() => return,
        };
        match incoming {
            None => return,
            Some(Incoming::Entry(entry)) => node.hub.ingest(entry, !feed.is_empty()),
            Some(Incoming::Head { channel, position }) => node.hub.observe_head(&channel, position),
            // Housekeeping checks the heads too, but later.
            Some(Incoming::Interrupted) => {
                let _ = node.hub.check_heads().await;
            }
        }
    }
}

/// Compares heads, closes idle channels, and logs when the broker becomes unavailable.
async fn housekeeping(node: Arc<Node>, config: NodeConfig, stage: Stage) {
    // Not at once: the broker has only started to connect.
    let mut checks = interval_at(Instant::now() + config.head_check, config.head_check);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_up = None;
    loop {
        tokio::select! {
            _ = checks.tick() => {}
            () = stage.stopping().cancelled() => return,
        }
        let health = node.health();
        let up = health == Health::Up;
        node.metrics.broker_up.set(i64::from(up));
        match health {
            Health::Up if was_up == Some(false) => info!("the broker is available again"),
            Health::Down { reason } if was_up != Some(false) => {
                warn!(%reason, "the broker is unavailable: publishes are refused, subscribers wait");
            }
            Health::Up | Health::Down { .. } => {}
        }
        was_up = Some(up);
        if up {
            let _ = node.hub.check_heads().await;
        }
        node.hub.close_idle(config.linger).await;
    }
}
