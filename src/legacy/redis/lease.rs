//! Who writes: the node whose token stands in Redis under the lease's key, as long as it stands there.
//!
//! A node that does not hear its own marks lets go of the lease, or does not take it: somebody who
//! hears should write. The lease alone does not keep a paused holder from finishing what it was
//! about to write; that those messages have the same ids on all nodes does.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{info, warn};

use super::{Deadline, TakeIn, peers::NOTHING};

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

/// Sends marks and keeps the lease until the last is written, then lets go of it.
pub(super) async fn keep(taking: Arc<TakeIn>) {
    let finished = taking.finished.clone();
    let mut tick = interval(taking.config.lease / TICKS);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut keeper = Keeper { taking, connection: None, marks: 0, warned: false };
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = keeper.taking.hurry.notified() => {}
            () = finished.cancelled() => return keeper.let_go().await,
        }
        let stepped = tokio::select! {
            stepped = Box::pin(keeper.step()) => stepped,
            () = finished.cancelled() => return keeper.let_go().await,
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
        let (now, holds) = (Instant::now(), self.taking.held.lock().is_some());
        let (hears, may_try) = {
            let mut company = self.taking.company.lock();
            (company.hears(lease, now), company.may_try(lease, now))
        };
        if hears && (holds || may_try) {
            // From before it is asked: Redis counts from later.
            let until = Deadline::after(lease);
            let held: bool = self.ask(HOLD, &mut connection).await?;
            self.hold(held.then_some(until));
        } else if holds {
            self.hold(None);
            let _: i64 = self.ask(LET_GO, &mut connection).await?;
        }
        let mark = self.mark();
        let marks = self.taking.marks();
        redis::cmd("PUBLISH").arg(marks).arg(mark).exec_async(&mut connection).await?;
        self.connection = Some(connection);
        Ok(())
    }

    /// The next mark. The holder says with it what is in the logs, and what it cannot know of.
    fn mark(&mut self) -> String {
        self.marks += 1;
        let (done, since) = match self.taking.may_write() {
            true => {
                let tally = self.taking.tally.lock();
                (tally.done().cloned(), tally.since().cloned())
            }
            false => (None, None),
        };
        let [done, since] = [&done, &since].map(|mark| mark.as_deref().unwrap_or(NOTHING));
        let age = self.taking.company.lock().age(Instant::now()).as_millis();
        format!("M {}.{} {done} {since} {age}", self.taking.token, self.marks)
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

    fn hold(&self, until: Option<Deadline>) {
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

    /// The next node need not wait until the lease is over: what this one heard is written.
    async fn let_go(&mut self) {
        let held = self.taking.held.lock().take().is_some();
        let connection = match self.connection.take() {
            Some(connection) => Ok(connection),
            None => self.taking.connect().await,
        };
        let Ok(mut connection) = connection else { return };
        if held {
            let _: redis::RedisResult<i64> = self.ask(LET_GO, &mut connection).await;
            info!("another node may put what is PUBLISHed into the logs");
        }
        let goodbye = format!("B {}", self.taking.token);
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(self.taking.marks()).arg(goodbye);
        let _ = publish.exec_async(&mut connection).await;
    }
}
