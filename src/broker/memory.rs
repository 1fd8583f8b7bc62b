//! The embedded broker: the logs live in this process, and end with it.
//!
//! For one node. Its memory is bounded whatever is published: per channel by [`Retention`], over
//! all channels by `max_bytes`, for which the channels that were quiet longest give up their events
//! first.

mod store;

use std::{
    collections::VecDeque,
    hash::{BuildHasher as _, RandomState},
    num::NonZeroUsize,
    path::PathBuf,
    sync::Arc,
};

use async_trait::async_trait;
use dashmap::DashSet;
use lru::LruCache;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use self::store::MemoryStore;
use super::{
    Broker, BrokerError, Entry, FEED_CAPACITY, Feed, Health, Incoming, MessageKey, Publication,
    Range, Receipt, Retention, Retentions, Slice, Store,
};
use crate::{
    dedup::DedupWindow,
    lifecycle,
    protocol::{Channel, Epoch, Event, Position},
};

/// Section `[broker.memory]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryConfig {
    /// All events of all channels together, in bytes.
    pub max_bytes: usize,
    /// Message ids remembered over all channels.
    pub max_ids: NonZeroUsize,
    /// Channels whose end is remembered. One forgotten starts anew, and its readers are told.
    pub max_channels: NonZeroUsize,
    /// Where rollouts and their journal are kept. Unset, a restart forgets them.
    pub data_dir: Option<PathBuf>,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        let million = NonZeroUsize::new(1_000_000).expect("not zero");
        Self { max_bytes: 256 << 20, max_ids: million, max_channels: million, data_dir: None }
    }
}

/// Keeps the logs in memory.
#[derive(Debug)]
pub struct MemoryBroker {
    logs: Mutex<Logs>,
    heard: DashSet<Channel>,
    feed: mpsc::Sender<Incoming>,
    retentions: Arc<Retentions>,
    store: Arc<MemoryStore>,
}

impl MemoryBroker {
    /// One without events.
    ///
    /// # Errors
    /// When the directory for what must survive a restart cannot be used.
    pub fn open(
        config: &MemoryConfig,
        retentions: Arc<Retentions>,
    ) -> Result<(Self, Feed), BrokerError> {
        let store = Arc::new(open_store(config)?);
        let (feed, receiver) = mpsc::channel(FEED_CAPACITY);
        let dedup = retentions.default_retention().dedup;
        let logs = Mutex::new(Logs {
            heads: LruCache::sparse(config.max_channels),
            life: 0,
            epochs: RandomState::new(),
            kept: LruCache::unbounded(),
            kept_bytes: 0,
            max_bytes: config.max_bytes,
            ids: DedupWindow::new(config.max_ids, dedup),
        });
        Ok((Self { logs, heard: DashSet::new(), feed, retentions, store }, receiver))
    }
}

fn open_store(config: &MemoryConfig) -> Result<MemoryStore, BrokerError> {
    let Some(directory) = &config.data_dir else { return Ok(MemoryStore::volatile()) };
    MemoryStore::open(directory).map_err(|err| BrokerError::Refused {
        broker: "broker.memory.data_dir".to_owned(),
        reason: format!("{}: {err}", directory.display()),
    })
}

#[async_trait]
impl Broker for MemoryBroker {
    async fn publish(&self, batch: Vec<Publication>) -> Vec<Result<Receipt, BrokerError>> {
        let mut receipts = Vec::with_capacity(batch.len());
        for publication in batch {
            // The place in the feed comes first: from the append on nothing may wait or be
            // cancelled, and under the lock news come up in the log's order.
            let Ok(place) = self.feed.reserve().await else {
                receipts.push(Err(closed()));
                continue;
            };
            let retention = self.retentions.of(&publication.channel);
            let mut logs = self.logs.lock();
            let (receipt, entry) = logs.append(publication, retention, lifecycle::unix_ms());
            if let Some(entry) = entry.filter(|entry| self.heard.contains(&entry.channel)) {
                place.send(Incoming::Entry(entry));
            }
            receipts.push(Ok(receipt));
        }
        receipts
    }

    async fn subscribe(&self, channel: &Channel) -> Result<Position, BrokerError> {
        self.heard.insert(channel.clone());
        Ok(self.logs.lock().head(channel))
    }

    async fn unsubscribe(&self, channel: &Channel) {
        self.heard.remove(channel);
    }

    async fn read(
        &self,
        channel: &Channel,
        range: Range,
        limit: usize,
    ) -> Result<Slice, BrokerError> {
        let age_ms = millis(self.retentions.of(channel).age);
        Ok(self.logs.lock().read(channel, range, limit, lifecycle::unix_ms(), age_ms))
    }

    async fn verify(&self, known: &[(Channel, Position)]) -> Result<Vec<Position>, BrokerError> {
        let mut logs = self.logs.lock();
        Ok(known.iter().map(|(channel, _)| logs.head(channel)).collect())
    }

    fn health(&self) -> Health {
        Health::Up
    }

    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store) as Arc<dyn Store>
    }
}

fn closed() -> BrokerError {
    BrokerError::Unavailable {
        broker: "the embedded broker".to_owned(),
        reason: "the gateway is stopping".to_owned(),
    }
}

/// All logs. Where one ends is remembered for longer than what is in it: that costs the memory.
#[derive(Debug)]
struct Logs {
    heads: LruCache<Channel, Position>,
    /// Goes into the epoch of the logs that begin now. It changes whenever a head is forgotten, so
    /// that a log that begins anew never looks like the one before.
    life: u64,
    epochs: RandomState,
    /// The channel that was quiet longest is the first to go.
    kept: LruCache<Channel, VecDeque<(u64, Event)>>,
    kept_bytes: usize,
    max_bytes: usize,
    ids: DedupWindow<MessageKey, Position>,
}

impl Logs {
    fn head(&mut self, channel: &Channel) -> Position {
        if let Some(head) = self.heads.get(channel) {
            return *head;
        }
        let head = self.beginning(channel);
        if let Some((forgotten, _)) = self.heads.push(channel.clone(), head) {
            self.life += 1;
            let log = self.kept.pop(&forgotten).unwrap_or_default();
            self.kept_bytes -= log.iter().map(|(_, event)| event.weight()).sum::<usize>();
        }
        head
    }

    /// Where a log stands that has no head yet.
    fn beginning(&self, channel: &Channel) -> Position {
        Position::new(Epoch::new(self.epochs.hash_one((self.life, channel))), 0)
    }

    fn append(
        &mut self,
        publication: Publication,
        retention: Retention,
        now_ms: u64,
    ) -> (Receipt, Option<Entry>) {
        let Publication { channel, draft } = publication;
        let key = (channel.clone(), draft.id.clone());
        if let Some(position) = self.ids.get(&key, now_ms) {
            return (Receipt { position, duplicate: true }, None);
        }
        let mut position = self.head(&channel);
        position.offset += 1;
        self.heads.put(channel.clone(), position);
        self.ids.insert(key, position, now_ms);
        let event = Event { id: draft.id, name: draft.name, data: draft.data, time: now_ms };
        self.keep(&channel, position.offset, event.clone(), retention, now_ms);
        (Receipt { position, duplicate: false }, Some(Entry { channel, position, event }))
    }

    fn keep(
        &mut self,
        channel: &Channel,
        offset: u64,
        event: Event,
        retention: Retention,
        now_ms: u64,
    ) {
        self.kept_bytes += event.weight();
        let log = self.kept.get_or_insert_mut(channel.clone(), VecDeque::new);
        log.push_back((offset, event));
        let oldest_ms = now_ms.saturating_sub(millis(retention.age));
        while log.front().is_some_and(|(_, oldest)| {
            retention.events < log.len() as u64 || oldest.time < oldest_ms
        }) {
            self.kept_bytes -= log.pop_front().map_or(0, |(_, event)| event.weight());
        }
        while self.max_bytes < self.kept_bytes {
            let Some((_, quiet)) = self.kept.peek_lru() else { break };
            if quiet.is_empty() || self.kept.len() > 1 {
                let quiet = self.kept.pop_lru().map(|(_, log)| log).unwrap_or_default();
                self.kept_bytes -= quiet.iter().map(|(_, event)| event.weight()).sum::<usize>();
                continue;
            }
            let only = self.kept.get_mut(channel).and_then(VecDeque::pop_front);
            self.kept_bytes -= only.map_or(0, |(_, event)| event.weight());
        }
    }

    fn read(
        &self,
        channel: &Channel,
        range: Range,
        limit: usize,
        now_ms: u64,
        age_ms: u64,
    ) -> Slice {
        // Reading makes no log: asking for names that nobody uses must not push out those in use.
        let head = self.heads.peek(channel).copied();
        let Position { epoch, offset: head } = head.unwrap_or_else(|| self.beginning(channel));
        let Some(log) = self.kept.peek(channel) else {
            return Slice { epoch, head, events: Vec::new() };
        };
        let first = log.front().map_or(0, |(first, _)| *first);
        let index =
            |offset: u64| usize::try_from(offset.saturating_sub(first)).unwrap_or(log.len());
        let oldest_ms = now_ms.saturating_sub(age_ms);
        let fresh = |(_, event): &&(u64, Event)| oldest_ms <= event.time;
        let events = match range {
            Range::After(offset) => {
                let from = index(offset.saturating_add(1)).min(log.len());
                log.range(from..).filter(fresh).take(limit).cloned().collect()
            }
            Range::Until(offset) if offset < first => Vec::new(),
            Range::Until(offset) => {
                let to = index(offset.saturating_add(1)).min(log.len());
                log.range(..to).rev().take_while(fresh).take(limit).cloned().collect()
            }
        };
        Slice { epoch, head, events }
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, time::Duration};

    use super::*;
    use crate::protocol::{Data, Draft, MessageId};

    const KEEP: Retention =
        Retention { events: 5, age: Duration::from_secs(60), dedup: Duration::from_secs(10) };

    fn logs(max_bytes: usize) -> Logs {
        logs_with(MemoryConfig { max_bytes, ..MemoryConfig::default() })
    }

    fn logs_with(config: MemoryConfig) -> Logs {
        let default = Retentions::new(KEEP, HashMap::new());
        MemoryBroker::open(&config, Arc::new(default)).unwrap().0.logs.into_inner()
    }

    fn publish(logs: &mut Logs, channel: &str, now_ms: u64) {
        let draft = Draft { id: MessageId::generate(), name: None, data: Data::json("1").unwrap() };
        logs.append(Publication { channel: channel.parse().unwrap(), draft }, KEEP, now_ms);
    }

    fn offsets(logs: &mut Logs, channel: &str, range: Range, now_ms: u64) -> Vec<u64> {
        let slice = logs.read(&channel.parse().unwrap(), range, 100, now_ms, 60_000);
        slice.events.iter().map(|(offset, _)| *offset).collect()
    }

    #[test]
    fn retention_lets_go_of_the_oldest_by_number_and_by_age() {
        let mut logs = logs(usize::MAX);
        for second in 1..=8 {
            publish(&mut logs, "news", second * 1000);
        }
        assert_eq!(offsets(&mut logs, "news", Range::After(0), 8000), [4, 5, 6, 7, 8]);
        assert_eq!(offsets(&mut logs, "news", Range::After(6), 8000), [7, 8]);
        assert_eq!(offsets(&mut logs, "news", Range::Until(6), 8000), [6, 5, 4]);
        assert_eq!(offsets(&mut logs, "news", Range::After(0), 66_500), [7, 8]);
    }

    #[test]
    fn a_log_whose_head_was_forgotten_begins_anew_and_empty() {
        let two = NonZeroUsize::new(2).unwrap();
        let mut logs = logs_with(MemoryConfig { max_channels: two, ..MemoryConfig::default() });
        let head = |logs: &mut Logs| logs.head(&"a".parse().unwrap());
        publish(&mut logs, "a", 1);
        publish(&mut logs, "a", 2);
        let before = head(&mut logs);
        publish(&mut logs, "b", 3);
        publish(&mut logs, "c", 4);
        publish(&mut logs, "a", 5);
        assert_eq!(offsets(&mut logs, "a", Range::After(0), 5), [1]);
        let after = head(&mut logs);
        assert_eq!(after.offset, 1);
        assert_ne!(after.epoch, before.epoch);
        let kept = logs.kept.iter().flat_map(|(_, log)| log).map(|(_, event)| event.weight());
        assert_eq!(logs.kept_bytes, kept.sum::<usize>());
    }

    #[test]
    fn reading_what_nobody_wrote_pushes_nothing_out() {
        let two = NonZeroUsize::new(2).unwrap();
        let mut logs = logs_with(MemoryConfig { max_channels: two, ..MemoryConfig::default() });
        publish(&mut logs, "a", 1);
        for n in 0..10 {
            assert!(offsets(&mut logs, &format!("made-up:{n}"), Range::After(0), 1).is_empty());
        }
        assert_eq!(offsets(&mut logs, "a", Range::After(0), 1), [1]);
    }

    #[test]
    fn over_the_byte_limit_the_quietest_channel_gives_up_its_events_but_not_its_head() {
        let mut logs = logs(1500);
        for n in 0..5 {
            publish(&mut logs, "quiet", n);
        }
        for n in 0..100 {
            publish(&mut logs, &format!("loud:{}", n % 3), n);
        }
        assert!(logs.kept_bytes <= 1500);
        assert!(offsets(&mut logs, "quiet", Range::After(0), 100).is_empty());
        assert_eq!(logs.head(&"quiet".parse().unwrap()).offset, 5);
    }
}
