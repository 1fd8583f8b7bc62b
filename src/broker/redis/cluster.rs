//! Follows a Redis Cluster's topology: which master owns which slots.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use redis::{ConnectionInfo, RedisResult, Value};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use super::{
    server::{Server, connect, moved, place},
    shard::Shard,
    shards::Shards,
    slot_map::SLOTS,
};
use crate::lifecycle::Stage;

/// How often the topology is read although nothing seems wrong.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// The topology is read no sooner again than after this.
const MIN_PAUSE: Duration = Duration::from_millis(50);

/// Keeps the shards and their slots up to date.
pub(super) struct Follower {
    pub(super) shards: Arc<Shards>,
    pub(super) stage: Stage,
    /// Addresses to ask first; any of them will do.
    pub(super) seeds: Vec<ConnectionInfo>,
    /// Why the topology is not known.
    pub(super) failure: Arc<Mutex<Option<String>>>,
}

/// The owner of each range of slots, first to last.
type Topology = BTreeMap<(usize, usize), Node>;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    host: String,
    port: u16,
}

impl Follower {
    pub(super) async fn follow(self) {
        let stop = self.stage.stopping().clone();
        let mut known = Topology::new();
        let mut tick = interval(ASK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for turn in 0usize.. {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
                () = self.shards.context.stale.notified() => {}
            }
            let asked = tokio::select! {
                () = stop.cancelled() => return,
                asked = self.ask(turn) => asked,
            };
            match asked {
                Ok((topology, seed)) => {
                    *self.failure.lock() = None;
                    if topology != known {
                        self.adopt(&topology, &seed);
                        known = topology;
                    }
                }
                Err(why) => {
                    if self.failure.lock().replace(why.clone()).is_none() {
                        warn!(%why, "the topology of the Redis Cluster cannot be read; retrying");
                    }
                }
            }
            let _ = timeout(MIN_PAUSE, stop.cancelled()).await;
        }
    }

    /// Asks a connected master, another one each turn; else the seeds.
    async fn ask(&self, turn: usize) -> Result<(Topology, ConnectionInfo), String> {
        let shards = self.shards.all();
        let lines: Vec<_> = shards.iter().filter_map(|s| s.reading.line().ok()).collect();
        let mut reasons = Vec::new();
        if let Some(line) = lines.get(turn.checked_rem(lines.len()).unwrap_or(0)) {
            match timeout(self.shards.context.timeout, slots(line.connection.clone(), &line.info))
                .await
            {
                Ok(Ok(topology)) => return Ok((topology, (*line.info).clone())),
                Ok(Err(error)) => reasons.push(format!("{}: {error}", place(&line.info))),
                Err(_) => reasons.push(format!("{} did not answer", place(&line.info))),
            }
        }
        let each = self.shards.context.timeout
            / u32::try_from(self.seeds.len().max(1)).unwrap_or(u32::MAX);
        for seed in &self.seeds {
            let asked = async { slots(connect(seed, each).await?, seed).await };
            match timeout(each, asked).await {
                Ok(Ok(topology)) => return Ok((topology, seed.clone())),
                Ok(Err(error)) => reasons.push(format!("{}: {error}", place(seed))),
                Err(_) => reasons.push(format!("{} did not answer", place(seed))),
            }
        }
        Err(reasons.join("; "))
    }

    /// Connects to new masters and closes the connections to former ones.
    fn adopt(&self, topology: &Topology, seed: &ConnectionInfo) {
        let before = self.shards.all();
        let (mut shards, mut slots) = (Vec::<Arc<Shard>>::new(), vec![None; SLOTS]);
        for ((first, last), Node { host, port }) in topology {
            let server = Server::Fixed(moved(seed, host.clone(), *port));
            let name = server.name();
            let index = shards.iter().position(|shard| shard.name == name);
            let index = index.unwrap_or_else(|| {
                let known = before.iter().find(|shard| shard.name == name).cloned();
                let shard =
                    known.unwrap_or_else(|| Shard::open(&self.shards.context, server, &self.stage));
                shards.push(shard);
                shards.len() - 1
            });
            let range = slots.iter_mut().take(last + 1).skip(*first);
            range.for_each(|slot| *slot = u16::try_from(index).ok());
        }
        let names: Vec<_> = shards.iter().map(|shard| &shard.name).collect();
        info!(masters = ?names, "the Redis Cluster's topology changed");
        self.shards.replace(shards, slots);
    }
}

/// What CLUSTER SLOTS answers: `[first, last, [host, port, …], replicas …]` for each range.
async fn slots(
    mut connection: redis::aio::MultiplexedConnection,
    asked: &ConnectionInfo,
) -> RedisResult<Topology> {
    let answer = redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await?;
    let ranges = if let Value::Array(ranges) = answer { ranges } else { Vec::new() };
    let topology: Topology = ranges.iter().filter_map(|range| range_of(range, asked)).collect();
    if topology.is_empty() {
        // A node that was removed from the Cluster knows no slots.
        return Err((redis::ErrorKind::UnexpectedReturnType, "the node knows no slots").into());
    }
    Ok(topology)
}

fn range_of(range: &Value, asked: &ConnectionInfo) -> Option<((usize, usize), Node)> {
    let Value::Array(range) = range else { return None };
    let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = &range[..] else {
        return None;
    };
    let [host, Value::Int(port), ..] = &master[..] else { return None };
    let host = match host {
        Value::BulkString(host) if !host.is_empty() => String::from_utf8(host.clone()).ok()?,
        // A node that does not know its own name means the address it was asked at.
        _ => host_of(asked)?,
    };
    let slot = |number: &i64| usize::try_from(*number).ok().filter(|slot| *slot < SLOTS);
    Some(((slot(first)?, slot(last)?), Node { host, port: u16::try_from(*port).ok()? }))
}

fn host_of(info: &ConnectionInfo) -> Option<String> {
    match info.addr() {
        redis::ConnectionAddr::Tcp(host, _) | redis::ConnectionAddr::TcpTls { host, .. } => {
            Some(host.clone())
        }
        _ => None,
    }
}
