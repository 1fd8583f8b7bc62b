//! PostgreSQL keeps the logs: tables of the schema `crossfade`, and NOTIFY as the bell.
//!
//! The tables are the truth, a notification only says that there is something to read. Channels'
//! heads are raised by gateways alone, in short transactions that commit many publications at once;
//! what other programs publish with `crossfade.publish` waits in an outbox, so that no transaction
//! of theirs is ever waited for.

mod config;
mod failure;
mod grown_channels;
mod health;
mod interest;
mod listener;
mod logs;
mod notification;
mod pool;
mod pruner;
mod schema;
mod sequencer;
mod session;
mod store;
mod tls;
mod values;
mod writers;

use std::{future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::{sync::mpsc, time::timeout};

pub use self::config::{ConnectionUrl, PostgresConfig};
use self::{
    failure::{Backoff, Failure},
    grown_channels::GrownChannels,
    health::HealthTracker,
    interest::Interest,
    listener::{Listener, Probe},
    pool::Pool,
    pruner::Pruner,
    sequencer::{Seat, Sequencer},
    session::Target,
    store::PostgresStore,
    writers::{WriteSender, Writer},
};
use super::{
    Broker, BrokerError, FEED_CAPACITY, Feed, Health, Publication, Range, Receipt, Retentions,
    Slice, Store,
};
use crate::{
    lifecycle::Stage,
    protocol::{Channel, Position},
};

/// Publishes committed at the same time. More would only wait for each other: a commit that
/// notifies holds a lock on the whole database.
const WRITERS: usize = 2;

/// Keeps the logs in PostgreSQL.
#[derive(Debug)]
pub struct PostgresBroker {
    inlet: WriteSender,
    pool: Pool,
    ears: Arc<Interest>,
    vitals: Arc<HealthTracker>,
    timeout: Duration,
}

impl PostgresBroker {
    /// Starts to connect, and returns at once, whether the server is there or not:
    /// [`health`](Broker::health) tells.
    ///
    /// # Errors
    /// When the configuration can never work.
    pub fn connect(
        config: &PostgresConfig,
        retentions: Arc<Retentions>,
        stage: &Stage,
    ) -> Result<(Self, Feed), BrokerError> {
        let (target, direct) = targets(config).map_err(|reason| BrokerError::Refused {
            broker: "PostgreSQL".to_owned(),
            reason: format!("broker.postgres: {reason}"),
        })?;
        let vitals = Arc::new(HealthTracker::new(target.label()));
        let pool = Pool::new(&target, config.pool_size).map_err(|why| vitals.refused(&why))?;
        let (inlet, outlet) = writers::queue(Arc::clone(&vitals), config.timeout);
        let (feed, receiver) = mpsc::channel(FEED_CAPACITY);
        let (ears, probe) = (Arc::new(Interest::new()), Arc::new(Probe::new()));
        let (grown, seat) =
            (Arc::new(Mutex::new(GrownChannels::default())), Arc::new(Seat::default()));
        let backoff = Backoff::new(config.reconnect_min, config.reconnect_max);
        for which in 0..WRITERS {
            let writer = Writer {
                which,
                target: target.clone(),
                outlet: outlet.clone(),
                vitals: Arc::clone(&vitals),
                retentions: Arc::clone(&retentions),
                grown: Arc::clone(&grown),
                backoff: backoff.clone(),
            };
            until_stopped(stage, "postgres writer", writer.run());
        }
        let listener = Listener {
            target: direct.clone(),
            pool: pool.clone(),
            ears: Arc::clone(&ears),
            probe: Arc::clone(&probe),
            feed,
            vitals: Arc::clone(&vitals),
            backoff: backoff.clone(),
            polled: Default::default(),
        };
        until_stopped(stage, "postgres listener", listener.run());
        let ringing = pool.clone();
        until_stopped(stage, "postgres probe", async move { probe.keep_ringing(&ringing).await });
        let sequencer = Sequencer {
            target: direct,
            ears: Arc::clone(&ears),
            seat: Arc::clone(&seat),
            vitals: Arc::clone(&vitals),
            retentions: Arc::clone(&retentions),
            notify: config.notify_on_sql_publish,
            poll_min: config.poll_min,
            poll_max: config.poll_max,
            backoff,
        };
        until_stopped(stage, "postgres sequencer", sequencer.run());
        let every = config.prune_interval;
        let pruner = Pruner { pool: pool.clone(), retentions, grown, seat, every, walked_to: 0 };
        until_stopped(stage, "postgres pruner", pruner.run());
        let (closing, stopping) = (pool.clone(), stage.stopping().clone());
        stage.spawn("postgres pool", async move {
            stopping.cancelled().await;
            closing.close();
        });
        Ok((Self { inlet, pool, ears, vitals, timeout: config.timeout }, receiver))
    }

    /// Within the timeout, and trouble put into words for the caller.
    async fn within<T>(
        &self,
        call: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, BrokerError> {
        let answer = timeout(self.timeout, call).await;
        let answer = answer.unwrap_or(Err(Failure::Slow(self.timeout)));
        answer.map_err(|trouble| self.vitals.unavailable(&trouble))
    }
}

#[async_trait]
impl Broker for PostgresBroker {
    async fn publish(&self, batch: Vec<Publication>) -> Vec<Result<Receipt, BrokerError>> {
        self.inlet.append(batch).await
    }

    async fn subscribe(&self, channel: &Channel) -> Result<Position, BrokerError> {
        let before = self.ears.add(channel);
        let head = self.within(async {
            let (head, shard) = logs::open(&self.pool, channel).await?;
            if self.ears.assign(channel, shard, before) {
                return Ok(head);
            }
            // What came between that look and the LISTEN was heard by nobody: look again.
            self.ears.confirmed(shard).await;
            logs::open(&self.pool, channel).await.map(|(head, _)| head)
        });
        let head = head.await;
        if head.is_err() && before.new {
            self.ears.remove(channel);
        }
        head
    }

    async fn unsubscribe(&self, channel: &Channel) {
        self.ears.remove(channel);
    }

    async fn read(
        &self,
        channel: &Channel,
        range: Range,
        limit: usize,
    ) -> Result<Slice, BrokerError> {
        self.within(async {
            if let Some(slice) = logs::read(&self.pool, channel, range, limit).await? {
                return Ok(slice);
            }
            // Created here or by another just now, who may have published already: read again.
            logs::open(&self.pool, channel).await?;
            let slice = logs::read(&self.pool, channel, range, limit).await?;
            slice.ok_or_else(|| Failure::Other(format!("the log of {channel} was deleted")))
        })
        .await
    }

    async fn verify(&self, known: &[(Channel, Position)]) -> Result<Vec<Position>, BrokerError> {
        self.within(logs::verify(&self.pool, known)).await
    }

    fn health(&self) -> Health {
        self.vitals.health()
    }

    fn store(&self) -> Arc<dyn Store> {
        let (pool, vitals) = (self.pool.clone(), Arc::clone(&self.vitals));
        Arc::new(PostgresStore { pool, vitals })
    }
}

/// The ways for calls and for listening.
fn targets(config: &PostgresConfig) -> Result<(Target, Target), String> {
    let Some(listen_url) = &config.listen_url else {
        let target = Target::new(&config.url, config, true)?;
        return Ok((target.clone(), target));
    };
    let target = Target::new(&config.url, config, false).map_err(|why| format!("url: {why}"))?;
    let direct =
        Target::new(listen_url, config, true).map_err(|why| format!("listen_url: {why}"))?;
    Ok((target, direct))
}

fn until_stopped(
    stage: &Stage,
    name: &'static str,
    task: impl Future<Output = ()> + Send + 'static,
) {
    let stopping = stage.stopping().clone();
    stage.spawn(name, async move {
        let _ = stopping.run_until_cancelled(task).await;
    });
}
