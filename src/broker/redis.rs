//! The logs in Redis: alone, behind Sentinel, or spread over a Cluster.
//!
//! A channel is a stream with a small hash beside it that outlives it. One function of the library
//! `crossfade.lua` appends, remembers the id and rings the bell, all at once; so does a backend
//! service that calls it without the gateway. The stream is the truth, the bell (a PUBLISH with the
//! event in it) may be missed: this module says when, and the node reads what it lacks.
//!
//! Each master has three connections of its own: [`link`] for writing and one for reading, [`ear`]
//! for listening. What moves between masters ([`cluster`]) or is promoted ([`server`]) is followed.
//! It knows nothing of who listens in this process.

pub(crate) mod backoff;
mod cluster;
mod command_connection;
mod commands;
mod config;
pub(crate) mod dial;
mod library;
pub(crate) mod resp;
mod server;
mod shard;
mod store;
mod subscriber;
mod subscriber_connection;

use std::sync::Arc;

use async_trait::async_trait;
use dashmap::DashSet;
use parking_lot::Mutex;
use redis::{RedisResult, Value};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, timeout_at},
};

pub use self::config::{RedisConfig, RedisConfigError, RedisMode, RedisUrl};
use self::{
    backoff::Backoff,
    cluster::Follower,
    commands::{Commands, Route, failure, unavailable},
    library::Keys,
    server::Server,
    shard::{Context, Map, Shard},
    store::RedisStore,
    subscriber::NotSubscribed,
};
use super::{
    Broker, BrokerError, FEED_CAPACITY, Feed, Health, Publication, Range, Receipt, Retentions,
    Slice, Store,
};
use crate::{
    lifecycle::Stage,
    protocol::{Channel, Position},
};

/// Keeps the logs in Redis.
#[derive(Debug)]
pub struct RedisBroker {
    site: Arc<Context>,
    retentions: Arc<Retentions>,
    /// Why the Cluster is not known.
    trouble: Arc<Mutex<Option<String>>>,
}

impl RedisBroker {
    /// Starts to connect, and goes on trying in the background.
    ///
    /// # Errors
    /// When the section cannot work whatever the servers do.
    pub fn connect(
        config: &RedisConfig,
        retentions: Arc<Retentions>,
        stage: &Stage,
    ) -> Result<(Self, Feed), RedisConfigError> {
        config.check()?;
        let (feed, receiver) = mpsc::channel(FEED_CAPACITY);
        let site = Arc::new(Context {
            keys: Keys::new(&config.prefix),
            sharded: config.mode == RedisMode::Cluster,
            timeout: config.timeout,
            backoff: Backoff::new(config.backoff_min, config.backoff_max),
            interest: DashSet::new(),
            feed,
            map: watch::channel(Arc::default()).0,
            stale: Notify::new(),
        });
        let broker = Self { site, retentions, trouble: Arc::default() };
        broker.start(config, stage)?;
        Ok((broker, receiver))
    }

    fn start(&self, config: &RedisConfig, stage: &Stage) -> Result<(), RedisConfigError> {
        let nodes = config.nodes.iter().map(RedisUrl::info).collect::<Result<Vec<_>, _>>()?;
        let url = config.url.info()?;
        let name = config.master.clone();
        let server = match config.mode {
            RedisMode::Standalone => Server::Fixed(url),
            RedisMode::Sentinel => Server::Master { sentinels: nodes, name, like: url },
            RedisMode::Cluster => {
                let seeds = if nodes.is_empty() { vec![url] } else { nodes };
                let (site, trouble) = (Arc::clone(&self.site), Arc::clone(&self.trouble));
                let follower = Follower { site, stage: stage.clone(), seeds, trouble };
                stage.spawn("redis-cluster", follower.follow());
                return Ok(());
            }
        };
        let shards = vec![Shard::open(&self.site, server, stage)];
        self.site.map.send_replace(Arc::new(Map { shards, slots: Vec::new() }));
        Ok(())
    }

    /// Subscribes where the channel lies; on the way there it may move once.
    async fn hear(&self, channel: &Channel) -> Result<(), BrokerError> {
        let deadline = Instant::now() + self.site.timeout;
        let mut why = "no master has the channel's slot".to_owned();
        let mut place = "redis".to_owned();
        for _try in 0..2 {
            let map = self.site.map();
            let Some(shard) = map.owner(channel) else { break };
            place = shard.place();
            why = match timeout_at(deadline, shard.ear.hear(channel)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(NotSubscribed::Because(why))) => return Err(unavailable(&place, why)),
                Ok(Err(NotSubscribed::Moved)) => "the channel's slot is on the move".to_owned(),
                Err(_) => return Err(unavailable(&place, "no answer in time")),
            };
            self.site.remap(deadline).await;
        }
        Err(unavailable(&place, why))
    }

    /// The head as the function tells it: begun if there is none, begun anew if it ends too early.
    async fn begin(
        &self,
        calls: &Commands<'_>,
        odd: &[(&Channel, Option<Position>)],
    ) -> Vec<Result<Position, BrokerError>> {
        let channels: Vec<_> = odd.iter().map(|(channel, _)| *channel).collect();
        let command = |number: usize| {
            let (channel, known) = odd[number];
            library::head(&self.site.keys.head(channel), self.retentions.of(channel), known)
        };
        let answers = calls.each(Route::Writing, &channels, command).await;
        answers.into_iter().map(|answer| understood(library::head_of(answer?))).collect()
    }

    async fn head(&self, calls: &Commands<'_>, channel: &Channel) -> Result<Position, BrokerError> {
        self.begin(calls, &[(channel, None)]).await.remove(0)
    }

    /// A piece of the log, and its epoch before and after: with the same on both sides it is of
    /// that epoch. No transaction, so that the server can do others' work in between.
    async fn piece(
        &self,
        calls: &Commands<'_>,
        channel: &Channel,
        range: Range,
        limit: usize,
    ) -> Result<Option<Slice>, BrokerError> {
        let command = |number| match number {
            1 => library::piece(&self.site.keys.log(channel), range, limit),
            _ => library::stored(&self.site.keys.head(channel)),
        };
        let mut answers = calls.each(Route::Reading, &[channel; 3], command).await.into_iter();
        let mut next = || answers.next().unwrap_or(Ok(Value::Nil));
        let before = understood(library::stored_head(next()?))?;
        let events = understood(library::events(next()?))?;
        let after = understood(library::stored_head(next()?))?;
        let Some(Position { epoch, offset }) = before else {
            let Position { epoch, offset: head } = self.head(calls, channel).await?;
            return Ok((head == 0).then_some(Slice { epoch, head, events: Vec::new() }));
        };
        let newest = events.iter().map(|(offset, _)| *offset).max().unwrap_or(0);
        let same = after.is_some_and(|after| after.epoch == epoch);
        Ok(same.then_some(Slice { epoch, head: offset.max(newest), events }))
    }
}

#[async_trait]
impl Broker for RedisBroker {
    async fn publish(&self, batch: Vec<Publication>) -> Vec<Result<Receipt, BrokerError>> {
        let channels: Vec<_> = batch.iter().map(|publication| &publication.channel).collect();
        let command = |number: usize| {
            let Publication { channel, draft } = &batch[number];
            library::publish(&self.site.keys.head(channel), draft, self.retentions.of(channel))
        };
        let answers = Commands::new(&self.site).each(Route::Writing, &channels, command).await;
        answers.into_iter().map(|answer| understood(library::receipt(answer?))).collect()
    }

    async fn subscribe(&self, channel: &Channel) -> Result<Position, BrokerError> {
        // The interest comes first: if the connection breaks meanwhile, the next one catches up.
        let new = self.site.interest.insert(channel.clone());
        let subscribed = match self.hear(channel).await {
            Ok(()) => self.head(&Commands::new(&self.site), channel).await,
            Err(error) => Err(error),
        };
        if new && subscribed.is_err() {
            self.unsubscribe(channel).await;
        }
        subscribed
    }

    async fn unsubscribe(&self, channel: &Channel) {
        self.site.interest.remove(channel);
        let map = self.site.map();
        if let Some(shard) = map.owner(channel) {
            let deadline = Instant::now() + self.site.timeout;
            let _ = timeout_at(deadline, shard.ear.leave(channel)).await;
        }
    }

    async fn read(
        &self,
        channel: &Channel,
        range: Range,
        limit: usize,
    ) -> Result<Slice, BrokerError> {
        let calls = Commands::new(&self.site);
        for _try in 0..3 {
            if let Some(slice) = self.piece(&calls, channel, range, limit).await? {
                return Ok(slice);
            }
        }
        Err(unavailable("redis", "the log began anew while it was read"))
    }

    async fn verify(&self, known: &[(Channel, Position)]) -> Result<Vec<Position>, BrokerError> {
        let calls = Commands::new(&self.site);
        let channels: Vec<_> = known.iter().map(|(channel, _)| channel).collect();
        let command = |number: usize| library::stored(&self.site.keys.head(channels[number]));
        let stored = calls.each(Route::Reading, &channels, command).await;
        let mut heads = Vec::with_capacity(known.len());
        let mut odd = Vec::new();
        for (number, (answer, (channel, known))) in stored.into_iter().zip(known).enumerate() {
            let head = answer.and_then(|answer| understood(library::stored_head(answer)));
            let behind = |head: &Position| head.epoch == known.epoch && head.offset < known.offset;
            if matches!(&head, Ok(head) if head.as_ref().is_none_or(behind)) {
                odd.push((number, (channel, Some(*known))));
            }
            heads.push(head.map(|head| head.unwrap_or(*known)));
        }
        let asked: Vec<_> = odd.iter().map(|(_, asked)| *asked).collect();
        for ((number, _), head) in odd.iter().zip(self.begin(&calls, &asked).await) {
            heads[*number] = head;
        }
        // One master of a Cluster that is away must not hide the news of the others.
        if heads.iter().all(Result::is_err) {
            return heads.into_iter().collect();
        }
        Ok(heads.into_iter().zip(known).map(|(head, (_, known))| head.unwrap_or(*known)).collect())
    }

    fn health(&self) -> Health {
        let map = self.site.map();
        let unknown = || self.trouble.lock().clone().unwrap_or_else(|| "not asked yet".to_owned());
        let trouble = match &map.shards[..] {
            [] => Some(format!("redis cluster: {}", unknown())),
            shards => shards.iter().find_map(|shard| shard.trouble()),
        };
        trouble.map_or(Health::Up, |reason| Health::Down { reason })
    }

    fn store(&self) -> Arc<dyn Store> {
        Arc::new(RedisStore::new(Arc::clone(&self.site)))
    }
}

/// The server's answers are the library's own: one that cannot be read is a failure of the server.
fn understood<T>(answer: RedisResult<T>) -> Result<T, BrokerError> {
    answer.map_err(|error| failure("redis", &error))
}
