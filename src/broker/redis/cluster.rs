//! Following a Cluster: which master has which slot, now.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use redis::{ConnectionInfo, RedisResult, Value};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use super::{
    server::{Server, connect, moved, place},
    shard::{Context, Map, SLOTS, Shard},
};
use crate::lifecycle::Stage;

/// How often the Cluster is asked even though nothing seems wrong.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How long it is left in peace however wrong it seems.
const PEACE: Duration = Duration::from_millis(50);

/// Keeps the site's map.
pub(super) struct Follower {
    pub(super) site: Arc<Context>,
    pub(super) stage: Stage,
    /// Any of them will do.
    pub(super) seeds: Vec<ConnectionInfo>,
    /// Why there is no map.
    pub(super) trouble: Arc<Mutex<Option<String>>>,
}

/// Who has the slots from the first to the second.
type View = BTreeMap<(usize, usize), Node>;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    host: String,
    port: u16,
}

impl Follower {
    pub(super) async fn follow(self) {
        let stop = self.stage.stopping().clone();
        let mut known = View::new();
        let mut tick = interval(ASK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for turn in 0usize.. {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
                () = self.site.stale.notified() => {}
            }
            let asked = tokio::select! {
                () = stop.cancelled() => return,
                asked = self.ask(turn) => asked,
            };
            match asked {
                Ok((view, seed)) => {
                    *self.trouble.lock() = None;
                    if view != known {
                        self.adopt(&view, &seed);
                        known = view;
                    }
                }
                Err(why) => {
                    if self.trouble.lock().replace(why.clone()).is_none() {
                        warn!(%why, "the Redis Cluster does not tell its slots, trying on");
                    }
                }
            }
            let _ = timeout(PEACE, stop.cancelled()).await;
        }
    }

    /// Asks a master that is connected, another one each turn; else the seeds.
    async fn ask(&self, turn: usize) -> Result<(View, ConnectionInfo), String> {
        let map = self.site.map();
        let lines: Vec<_> = map.shards.iter().filter_map(|s| s.reading.line().ok()).collect();
        let mut reasons = Vec::new();
        if let Some(line) = lines.get(turn.checked_rem(lines.len()).unwrap_or(0)) {
            match timeout(self.site.timeout, slots(line.connection.clone(), &line.info)).await {
                Ok(Ok(view)) => return Ok((view, (*line.info).clone())),
                Ok(Err(error)) => reasons.push(format!("{}: {error}", place(&line.info))),
                Err(_) => reasons.push(format!("{} did not answer", place(&line.info))),
            }
        }
        let each = self.site.timeout / u32::try_from(self.seeds.len().max(1)).unwrap_or(u32::MAX);
        for seed in &self.seeds {
            let asked = async { slots(connect(seed, each).await?, seed).await };
            match timeout(each, asked).await {
                Ok(Ok(view)) => return Ok((view, seed.clone())),
                Ok(Err(error)) => reasons.push(format!("{}: {error}", place(seed))),
                Err(_) => reasons.push(format!("{} did not answer", place(seed))),
            }
        }
        Err(reasons.join("; "))
    }

    /// Connects to the masters that are new, parts from those that are none any more.
    fn adopt(&self, view: &View, seed: &ConnectionInfo) {
        let old = self.site.map();
        let mut map = Map { shards: Vec::new(), slots: vec![None; SLOTS] };
        for ((first, last), Node { host, port }) in view {
            let server = Server::Fixed(moved(seed, host.clone(), *port));
            let name = server.name();
            let index = map.shards.iter().position(|shard| shard.name == name);
            let index = index.unwrap_or_else(|| {
                let known = old.shards.iter().find(|shard| shard.name == name).cloned();
                let shard = known.unwrap_or_else(|| Shard::open(&self.site, server, &self.stage));
                map.shards.push(shard);
                map.shards.len() - 1
            });
            let range = map.slots.iter_mut().take(last + 1).skip(*first);
            range.for_each(|slot| *slot = u16::try_from(index).ok());
        }
        let names: Vec<_> = map.shards.iter().map(|shard| shard.name.clone()).collect();
        info!(masters = ?names, "the Redis Cluster's slots lie so");
        for shard in &old.shards {
            if !names.contains(&shard.name) {
                shard.close();
            }
        }
        self.site.map.send_replace(Arc::new(map));
    }
}

/// What CLUSTER SLOTS answers: `[first, last, [host, port, …], replicas …]` for each range.
async fn slots(
    mut connection: redis::aio::MultiplexedConnection,
    asked: &ConnectionInfo,
) -> RedisResult<View> {
    let answer = redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await?;
    let ranges = if let Value::Array(ranges) = answer { ranges } else { Vec::new() };
    let view: View = ranges.iter().filter_map(|range| range_of(range, asked)).collect();
    if view.is_empty() {
        // A node that was taken out of the Cluster knows nothing about it.
        return Err((redis::ErrorKind::UnexpectedReturnType, "it knows no slots").into());
    }
    Ok(view)
}

fn range_of(range: &Value, asked: &ConnectionInfo) -> Option<((usize, usize), Node)> {
    let Value::Array(range) = range else { return None };
    let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = &range[..] else {
        return None;
    };
    let [host, Value::Int(port), ..] = &master[..] else { return None };
    let host = match host {
        Value::BulkString(host) if !host.is_empty() => String::from_utf8(host.clone()).ok()?,
        // A node that does not know its own name means: where you asked.
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
