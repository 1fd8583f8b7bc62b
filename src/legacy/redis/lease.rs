//! Who writes: the node whose token stands in Redis under the lease's key, as long as it stands there.
//!
//! A node that does not hear its own marks lets go of the lease, or does not take it: somebody who
//! hears should write. The lease alone does not keep a paused holder from finishing what it was
//! about to write; that those messages have the same ids on all nodes does.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{TakeIn, Until};

/// Takes the lease if nobody has it, or holds it longer.
const HOLD: &str = "\
local holder = redis.call('GET', KEYS[1]) \
if holder == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) return 1 end \
if holder then return 0 end \
redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) return 1";

/// Lets go of the lease.
const LET_GO: &str = "\
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

/// Marks, and tries for the lease, this often within one.
const TICKS: u32 = 6;

/// Sends marks and keeps the lease until it is time to stop, then lets go of it.
pub(super) async fn keep(taking: Arc<TakeIn>, stop: CancellationToken) {
    let mut tick = interval(taking.config.lease / TICKS);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut keeper = Keeper { taking, connection: None, marks: 0, warned: false };
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = keeper.taking.deaf.notified() => {}
            () = stop.cancelled() => return keeper.let_go().await,
        }
        let stepped = tokio::select! {
            stepped = Box::pin(keeper.step()) => stepped,
            () = stop.cancelled() => return keeper.let_go().await,
        };
        keeper.note(stepped);
    }
}

struct Keeper {
    taking: Arc<TakeIn>,
    connection: Option<MultiplexedConnection>,
    marks: u64,
    warned: bool,
}

impl Keeper {
    async fn step(&mut self) -> redis::RedisResult<()> {
        let lease = self.taking.config.lease;
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.taking.connect().await?,
        };
        let heard = *self.taking.heard_itself.lock();
        let hears = heard.is_some_and(|at| at.elapsed() < lease / 2);
        if hears {
            // From before it is asked: Redis counts from later.
            let until = Until::after(lease);
            let held: bool = self.ask(HOLD, &mut connection).await?;
            self.hold(held.then_some(until));
        } else if self.taking.held.lock().is_some() {
            self.hold(None);
            let _: i64 = self.ask(LET_GO, &mut connection).await?;
        }
        self.marks += 1;
        let done = match self.taking.may_write() {
            true => self.taking.tally.lock().done().cloned(),
            false => None,
        };
        let done = done.as_deref().unwrap_or_default();
        let mark = format!("M {}.{} {done}", self.taking.token, self.marks);
        let marks = self.taking.marks();
        redis::cmd("PUBLISH").arg(marks).arg(mark).exec_async(&mut connection).await?;
        self.connection = Some(connection);
        Ok(())
    }

    async fn ask<T: redis::FromRedisValue>(
        &self,
        script: &str,
        connection: &mut MultiplexedConnection,
    ) -> redis::RedisResult<T> {
        let millis = u64::try_from(self.taking.config.lease.as_millis()).unwrap_or(u64::MAX);
        let key = format!("{}:lease", self.taking.config.prefix);
        let mut command = redis::cmd("EVAL");
        command.arg(script).arg(1).arg(key).arg(&self.taking.token).arg(millis);
        command.query_async(connection).await
    }

    fn hold(&self, until: Option<Until>) {
        let before = std::mem::replace(&mut *self.taking.held.lock(), until);
        self.taking.metrics().holder.set(i64::from(until.is_some()));
        match (before, until) {
            (None, Some(_)) => {
                info!("this node puts what is PUBLISHed into the logs from now on");
                self.taking.due.notify_one();
            }
            (Some(_), None) => info!("another node puts what is PUBLISHed into the logs now"),
            _ => {}
        }
    }

    fn note(&mut self, stepped: redis::RedisResult<()>) {
        match stepped {
            Ok(()) => self.warned = false,
            Err(error) => {
                if !self.warned {
                    let redis = &self.taking.config.url;
                    warn!(%redis, %error, "no word with the old channels' Redis, trying on");
                }
                self.warned = true;
                // Whether the lease could be held longer is not known: it is not, once it is over.
                let over = self.taking.held.lock().is_some_and(|until| until.is_over());
                if over {
                    self.hold(None);
                }
            }
        }
    }

    /// The next node need not wait until the lease is over.
    async fn let_go(&mut self) {
        let held = self.taking.held.lock().take().is_some();
        if let Some(mut connection) = self.connection.take().filter(|_| held) {
            let began = Instant::now();
            let _: redis::RedisResult<i64> = self.ask(LET_GO, &mut connection).await;
            info!(took = ?began.elapsed(), "another node may put what is PUBLISHed into the logs");
        }
    }
}
