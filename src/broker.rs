//! The port to the logs: what a broker promises, and nothing of how it keeps it.
//!
//! A broker owns the channels' logs and carries news of them between nodes. It knows nothing of
//! subscribers, sessions or HTTP; calls come down through [`Broker`], entries go up through the
//! [`Feed`] that came with it. Three keep these promises: [`memory`], [`redis`] and [`postgres`],
//! and one suite (tests/it/broker_contract.rs) holds all three to them.

pub mod memory;
pub mod postgres;
pub mod redis;
pub mod store;

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub use self::store::Store;
use crate::protocol::{Channel, Draft, Epoch, Event, MessageId, Position};

/// Keeps the channels' logs and carries their news between nodes.
///
/// # Promises
/// - **Dense.** Within one epoch a channel's offsets are 1, 2, 3 … without holes. An epoch ends
///   when entries were lost or the log was recreated; a later one never repeats its number.
/// - **Once.** A draft whose id the channel has seen within [`Retention::dedup`] is not appended
///   again, whichever node it comes through; its receipt is that of the first try.
/// - **Kept.** `Ok` from [`publish`](Self::publish) means: in the log, and readable until
///   [`Retention`] lets go of it. Any error means: not known to be stored.
/// - **In order.** What one batch holds for one channel is appended in the batch's order.
/// - **Heard, at most once.** After [`subscribe`](Self::subscribe) returned a position, entries
///   behind it come up the feed, in the log's order, but some may be missing: the listener
///   compares offsets and reads what it lacks.
/// - **Interruptions are told.** When news may have been missed, [`Incoming::Interrupted`] comes
///   up the feed once the broker can be read again.
///
/// Every call ends within the backend's configured timeout.
#[async_trait]
pub trait Broker: fmt::Debug + Send + Sync + 'static {
    /// Appends each publication to its channel's log. One answer for each, in the same order.
    async fn publish(&self, batch: Vec<Publication>) -> Vec<Result<Receipt, BrokerError>>;

    /// Starts to hear of a channel and returns its head; the log is created if there is none.
    /// Idempotent.
    async fn subscribe(&self, channel: &Channel) -> Result<Position, BrokerError>;

    /// Stops to hear of a channel. Idempotent; entries under way may still come up.
    async fn unsubscribe(&self, channel: &Channel);

    /// Reads a piece of a channel's log.
    async fn read(
        &self,
        channel: &Channel,
        range: Range,
        limit: usize,
    ) -> Result<Slice, BrokerError>;

    /// Tells the head of each channel, in the same order and in as few round trips as can be.
    /// A log that ends before the position it is said to have lost entries (a failover, a restored
    /// backup): it is given a new epoch by this call, so that nobody mistakes new offsets for old.
    async fn verify(&self, known: &[(Channel, Position)]) -> Result<Vec<Position>, BrokerError>;

    /// Whether it can be reached at the moment, as far as is known without asking.
    fn health(&self) -> Health;

    /// What it keeps besides the logs: the records that nodes decide by.
    fn store(&self) -> Arc<dyn Store>;
}

/// A draft on its way to a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Where to.
    pub channel: Channel,
    /// What.
    pub draft: Draft,
}

/// The answer to a publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Where the event stands.
    pub position: Position,
    /// It stood there already: the id had been seen.
    pub duplicate: bool,
}

/// Which piece of a log to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// Forwards, the events behind this offset.
    After(u64),
    /// Backwards, the newest event at or before this offset first. `u64::MAX` is the head.
    Until(u64),
}

/// A piece of a log, in the order asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The log's life at the moment of reading.
    pub epoch: Epoch,
    /// The newest offset at the moment of reading; 0 when nothing was ever published.
    pub head: u64,
    /// Offsets and events. Retention may have let go of the first of those asked for: then the
    /// first offset here is not the next one, or there is none though the head lies further on.
    pub events: Vec<(u64, Event)>,
}

/// What comes up from a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A new entry, content included.
    Entry(Entry),
    /// The log has grown up to here; the content is there to be read.
    Head {
        /// Which log.
        channel: Channel,
        /// Its head.
        position: Position,
    },
    /// News may have been missed, of any channel. The broker can be read again.
    Interrupted,
}

/// An event in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which log.
    pub channel: Channel,
    /// Where in it.
    pub position: Position,
    /// The event.
    pub event: Event,
}

/// The receiving end of a broker's news.
pub type Feed = mpsc::Receiver<Incoming>;

/// How many news wait for the node before the broker has to. A full feed slows the broker's reader
/// down, it loses nothing.
pub const FEED_CAPACITY: usize = 4096;

/// Whether a broker can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It answered last time.
    Up,
    /// It did not.
    Down {
        /// Which, where and why, for a person.
        reason: String,
    },
}

/// Why a broker did not do as asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BrokerError {
    /// It cannot be reached, did not answer in time, or answered with a failure that may pass.
    #[error("{broker} is unavailable: {reason}")]
    Unavailable {
        /// Which and where.
        broker: String,
        /// Why.
        reason: String,
    },
    /// It cannot keep this, now or later.
    #[error("{broker} refused it: {reason}")]
    Refused {
        /// Which and where.
        broker: String,
        /// Why.
        reason: String,
    },
}

/// How long a channel's events are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// At most so many events.
    pub events: u64,
    /// None older than this.
    pub age: Duration,
    /// A message id is remembered for so long.
    pub dedup: Duration,
}

/// The retention of each namespace.
#[derive(Clone, Debug)]
pub struct Retentions {
    default: Retention,
    by_namespace: HashMap<String, Retention>,
}

impl Retentions {
    /// Those of `by_namespace`, and `default` for every other.
    pub fn new(default: Retention, by_namespace: HashMap<String, Retention>) -> Self {
        Self { default, by_namespace }
    }

    /// That of a channel.
    pub fn of(&self, channel: &Channel) -> Retention {
        self.by_namespace.get(channel.namespace()).copied().unwrap_or(self.default)
    }

    /// That of every namespace without its own.
    pub fn default_retention(&self) -> Retention {
        self.default
    }
}

/// Which broker keeps the logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BrokerKind {
    /// Inside the gateway: one node, nothing survives a restart.
    #[default]
    Memory,
    /// Redis 7, alone, with Sentinel or as a Cluster.
    Redis,
    /// PostgreSQL 15 or newer.
    Postgres,
}

/// A message id within its channel: what a dedup window remembers.
pub type MessageKey = (Channel, MessageId);
