//! The Redis broker: logs in one Redis, behind Sentinel, or spread over a Cluster.
//!
//! A channel is a stream, with a small hash beside it that outlives it. One function of the library
//! `crossfade.lua` appends, remembers the message id and publishes a notification, atomically; so does a
//! backend service that calls it without the gateway. The stream is the truth. A notification (a
//! PUBLISH with the event in it) may be missed: this module reports when, and the node reads the gap.
//!
//! Each shard has three connections: two [`command_connection`]s, for writes and for reads, and a
//! [`subscriber`]. Slots that migrate ([`cluster`]) and masters that are promoted ([`server`]) are
//! followed. It knows nothing of this process's readers.

pub(crate) mod backoff;
mod cluster;
mod command_connection;
mod commands;
mod config;
mod context;
pub(crate) mod dial;
mod error;
mod library;
pub(crate) mod resp;
mod server;
mod shard;
mod shards;
mod slot_map;
mod store;
mod subscriber;
mod subscriber_connection;
mod subscription;

use std::sync::Arc;

use async_trait::async_trait;
use dashmap::DashSet;
use parking_lot::Mutex;
use redis::Value;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, timeout_at},
};

pub use self::config::{RedisConfig, RedisConfigError, RedisMode, RedisUrl};
use self::{
    backoff::Backoff,
    cluster::Follower,
    commands::{Commands, Route},
    context::Context,
    error::{decoded, unavailable},
    library::Keys,
    server::Server,
    shard::Shard,
    shards::Shards,
    store::RedisStore,
    subscription::NotSubscribed,
};
use super::{
    Broker, BrokerError, FEED_CAPACITY, Feed, Health, Publication, Range, Receipt, Retentions,
    Slice, Store,
};
use crate::{
    lifecycle::Stage,
    protocol::{Channel, Position},
};

/// The Redis broker.
#[derive(Debug)]
pub struct RedisBroker {
    shards: Arc<Shards>,
    retentions: Arc<Retentions>,
    /// Why the Cluster's topology is not known.
    failure: Arc<Mutex<Option<String>>>,
}

impl RedisBroker {
    /// Starts to connect, and keeps retrying in the background.
    ///
    /// # Errors
    /// When the section is not valid, whatever the servers answer.
    pub fn connect(
        config: &RedisConfig,
        retentions: Arc<Retentions>,
        stage: &Stage,
    ) -> Result<(Self, Feed), RedisConfigError> {
        config.check()?;
        let (feed, receiver) = mpsc::channel(FEED_CAPACITY);
        let context = Arc::new(Context {
            keys: Keys::new(&config.prefix),
            sharded: config.mode == RedisMode::Cluster,
            timeout: config.timeout,
            backoff: Backoff::new(config.backoff_min, config.backoff_max),
            interest: DashSet::new(),
            feed,
            slots: watch::channel(Arc::default()).0,
            stale: Notify::new(),
        });
        let shards = Arc::new(Shards::new(context));
        let broker = Self { shards, retentions, failure: Arc::default() };
        broker.start(config, stage)?;
        Ok((broker, receiver))
    }

    fn context(&self) -> &Context {
        &self.shards.context
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
                let (shards, failure) = (Arc::clone(&self.shards), Arc::clone(&self.failure));
                let follower = Follower { shards, stage: stage.clone(), seeds, failure };
                stage.spawn("redis-cluster", follower.follow());
                return Ok(());
            }
        };
        let shards = vec![Shard::open(&self.shards.context, server, stage)];
        self.shards.replace(shards, Vec::new());
        Ok(())
    }

    /// Subscribes at the shard that owns the channel, which may change once meanwhile.
    async fn subscribe_at_owner(&self, channel: &Channel) -> Result<(), BrokerError> {
        let deadline = Instant::now() + self.context().timeout;
        let mut why = "no master has the channel's slot".to_owned();
        let mut place = "redis".to_owned();
        for _try in 0..2 {
            let Some(shard) = self.shards.owner(channel) else { break };
            place = shard.place();
            why = match timeout_at(deadline, shard.subscriber.subscribe(channel)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(NotSubscribed::Because(why))) => return Err(unavailable(&place, why)),
                Ok(Err(NotSubscribed::Moved)) => "the channel's slot is migrating".to_owned(),
                Err(_) => return Err(unavailable(&place, "no answer in time")),
            };
            self.context().refresh_slots(deadline).await;
        }
        Err(unavailable(&place, why))
    }

    /// The heads as the function library reports them: a log that does not exist is created, one that
    /// ends before the position that was known gets a new epoch.
    async fn repaired_heads(
        &self,
        calls: &Commands<'_>,
        odd: &[(&Channel, Option<Position>)],
    ) -> Vec<Result<Position, BrokerError>> {
        let channels: Vec<_> = odd.iter().map(|(channel, _)| *channel).collect();
        let command = |number: usize| {
            let (channel, known) = odd[number];
            library::head(&self.context().keys.head(channel), self.retentions.of(channel), known)
        };
        let answers = calls.each(Route::Writing, &channels, command).await;
        answers.into_iter().map(|answer| decoded(library::head_of(answer?))).collect()
    }

    async fn head(&self, calls: &Commands<'_>, channel: &Channel) -> Result<Position, BrokerError> {
        self.repaired_heads(calls, &[(channel, None)]).await.remove(0)
    }

    /// A slice of a log, read between two reads of its epoch: with the same epoch on both sides the
    /// slice is of that epoch. Not a transaction, so that the server can serve others in between. None
    /// when the epochs differ.
    async fn piece(
        &self,
        calls: &Commands<'_>,
        channel: &Channel,
        range: Range,
        limit: usize,
    ) -> Result<Option<Slice>, BrokerError> {
        let command = |number| match number {
            1 => library::piece(&self.context().keys.log(channel), range, limit),
            _ => library::stored(&self.context().keys.head(channel)),
        };
        let mut answers = calls.each(Route::Reading, &[channel; 3], command).await.into_iter();
        let mut next = || answers.next().unwrap_or(Ok(Value::Nil));
        let before = decoded(library::stored_head(next()?))?;
        let events = decoded(library::events(next()?))?;
        let after = decoded(library::stored_head(next()?))?;
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
            library::publish(&self.context().keys.head(channel), draft, self.retentions.of(channel))
        };
        let answers = Commands::new(&self.shards).each(Route::Writing, &channels, command).await;
        answers.into_iter().map(|answer| decoded(library::receipt(answer?))).collect()
    }

    async fn subscribe(&self, channel: &Channel) -> Result<Position, BrokerError> {
        // The interest is recorded first: if the connection breaks meanwhile, the next one catches up.
        let new = self.context().interest.insert(channel.clone());
        let subscribed = match self.subscribe_at_owner(channel).await {
            Ok(()) => self.head(&Commands::new(&self.shards), channel).await,
            Err(error) => Err(error),
        };
        if new && subscribed.is_err() {
            self.unsubscribe(channel).await;
        }
        subscribed
    }

    async fn unsubscribe(&self, channel: &Channel) {
        self.context().interest.remove(channel);
        if let Some(shard) = self.shards.owner(channel) {
            let deadline = Instant::now() + self.context().timeout;
            let _ = timeout_at(deadline, shard.subscriber.unsubscribe(channel)).await;
        }
    }

    async fn read(
        &self,
        channel: &Channel,
        range: Range,
        limit: usize,
    ) -> Result<Slice, BrokerError> {
        let calls = Commands::new(&self.shards);
        for _try in 0..3 {
            if let Some(slice) = self.piece(&calls, channel, range, limit).await? {
                return Ok(slice);
            }
        }
        Err(unavailable("redis", "the log got a new epoch while it was read"))
    }

    async fn verify(&self, known: &[(Channel, Position)]) -> Result<Vec<Position>, BrokerError> {
        let calls = Commands::new(&self.shards);
        let channels: Vec<_> = known.iter().map(|(channel, _)| channel).collect();
        let command = |number: usize| library::stored(&self.context().keys.head(channels[number]));
        let stored = calls.each(Route::Reading, &channels, command).await;
        let mut heads = Vec::with_capacity(known.len());
        let mut odd = Vec::new();
        for (number, (answer, (channel, known))) in stored.into_iter().zip(known).enumerate() {
            let head = answer.and_then(|answer| decoded(library::stored_head(answer)));
            let behind = |head: &Position| head.epoch == known.epoch && head.offset < known.offset;
            if matches!(&head, Ok(head) if head.as_ref().is_none_or(behind)) {
                odd.push((number, (channel, Some(*known))));
            }
            heads.push(head.map(|head| head.unwrap_or(*known)));
        }
        let asked: Vec<_> = odd.iter().map(|(_, asked)| *asked).collect();
        for ((number, _), head) in odd.iter().zip(self.repaired_heads(&calls, &asked).await) {
            heads[*number] = head;
        }
        // One unavailable shard of a Cluster must not hide the heads of the others.
        if heads.iter().all(Result::is_err) {
            return heads.into_iter().collect();
        }
        Ok(heads.into_iter().zip(known).map(|(head, (_, known))| head.unwrap_or(*known)).collect())
    }

    fn health(&self) -> Health {
        let unknown = || self.failure.lock().clone().unwrap_or_else(|| "not asked yet".to_owned());
        let failure = match &self.shards.all()[..] {
            [] => Some(format!("redis cluster: {}", unknown())),
            shards => shards.iter().find_map(|shard| shard.failure()),
        };
        failure.map_or(Health::Up, |reason| Health::Down { reason })
    }

    fn store(&self) -> Arc<dyn Store> {
        Arc::new(RedisStore::new(Arc::clone(&self.shards)))
    }
}
