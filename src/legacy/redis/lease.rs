//! The ingest lease: a Redis key with a TTL that holds the token of the node that writes; this task
//! also sends the node's marks.
//!
//! A node that does not receive its own marks neither takes nor keeps the lease, because a node that
//! receives messages should write. The lease does not stop a paused holder from completing a write
//! after it expired; deduplication does, because message ids are the same on all nodes.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{info, warn};

use super::{Deadline, Ingest, peers::ABSENT};

/// Takes the lease if it is free, or renews it.
const ACQUIRE_OR_RENEW: &str = "\
local holder = redis.call('GET', KEYS[1]) \
if holder == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) return 1 end \
if holder then return 0 end \
redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) return 1";

/// Deletes the lease if this node holds it.
const RELEASE: &str = "\
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

/// Marks, and attempts to take or renew the lease, per lease duration.
const TICKS_PER_LEASE: u32 = 6;

/// Sends marks and keeps the lease until the writer is done, then releases the lease.
pub(super) async fn run(ingest: Arc<Ingest>) {
    let writer_done = ingest.writer_done.clone();
    let mut tick = interval(ingest.config.lease / TICKS_PER_LEASE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut task = LeaseTask { ingest, connection: None, marks: 0, warned: false };
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = task.ingest.wake_lease.notified() => {}
            () = writer_done.cancelled() => return task.release().await,
        }
        let result = tokio::select! {
            result = Box::pin(task.tick()) => result,
            () = writer_done.cancelled() => return task.release().await,
        };
        task.handle_result(result);
    }
}

struct LeaseTask {
    ingest: Arc<Ingest>,
    connection: Option<MultiplexedConnection>,
    /// Marks sent so far.
    marks: u64,
    warned: bool,
}

impl LeaseTask {
    /// Takes, renews or releases the lease, then sends a mark.
    async fn tick(&mut self) -> redis::RedisResult<()> {
        let lease = self.ingest.config.lease;
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.ingest.connect().await?,
        };
        let (now, holds) = (Instant::now(), self.ingest.lease_deadline.lock().is_some());
        let (is_receiving, may_acquire) = {
            let mut peers = self.ingest.peers.lock();
            (peers.is_receiving(lease, now), peers.may_acquire(lease, now))
        };
        if is_receiving && (holds || may_acquire) {
            // Taken before the command is sent: the TTL in Redis then ends later than the deadline.
            let deadline = Deadline::after(lease);
            let held: bool = self.eval(ACQUIRE_OR_RENEW, &mut connection).await?;
            self.set_lease(held.then_some(deadline));
        } else if holds {
            self.set_lease(None);
            let _: i64 = self.eval(RELEASE, &mut connection).await?;
        }
        let mark = self.next_mark();
        let marks = self.ingest.marks_channel();
        redis::cmd("PUBLISH").arg(marks).arg(mark).exec_async(&mut connection).await?;
        self.connection = Some(connection);
        Ok(())
    }

    /// The payload of the next mark. The lease holder adds which mark it has written up to and since
    /// which mark it has received everything.
    fn next_mark(&mut self) -> String {
        self.marks += 1;
        let (written, since) = match self.ingest.holds_lease() {
            true => {
                let sequence = self.ingest.sequence.lock();
                (sequence.written_mark().cloned(), sequence.since_mark().cloned())
            }
            false => (None, None),
        };
        let [written, since] = [&written, &since].map(|mark| mark.as_deref().unwrap_or(ABSENT));
        let uptime = self.ingest.peers.lock().receiving_for(Instant::now()).as_millis();
        format!("M {}.{} {written} {since} {uptime}", self.ingest.token, self.marks)
    }

    async fn eval<T: redis::FromRedisValue>(
        &self,
        script: &str,
        connection: &mut MultiplexedConnection,
    ) -> redis::RedisResult<T> {
        let millis = u64::try_from(self.ingest.config.lease.as_millis()).unwrap_or(u64::MAX);
        let key = format!("{}:lease", self.ingest.config.prefix);
        let mut command = redis::cmd("EVAL");
        command.arg(script).arg(1).arg(key).arg(&self.ingest.token).arg(millis);
        command.query_async(connection).await
    }

    fn set_lease(&self, deadline: Option<Deadline>) {
        let before = std::mem::replace(&mut *self.ingest.lease_deadline.lock(), deadline);
        self.ingest.metrics().holder.set(i64::from(deadline.is_some()));
        match (before, deadline) {
            (None, Some(_)) => {
                info!("legacy.redis: lease acquired, this node writes messages to the logs");
                self.ingest.wake_writer.notify_one();
            }
            (Some(_), None) => {
                info!("legacy.redis: lease lost, this node does not write messages to the logs");
            }
            _ => {}
        }
    }

    fn handle_result(&mut self, result: redis::RedisResult<()>) {
        match result {
            Ok(()) => self.warned = false,
            Err(error) => {
                if !self.warned {
                    let redis = &self.ingest.config.url;
                    warn!(%redis, %error, "legacy.redis: the lease could not be renewed, retrying");
                }
                self.warned = true;
                // Whether the renewal took effect is unknown: the lease counts until its deadline.
                let expired =
                    self.ingest.lease_deadline.lock().is_some_and(|deadline| deadline.has_passed());
                if expired {
                    self.set_lease(None);
                }
            }
        }
    }

    /// Releases the lease and says goodbye, so that the next node need not wait for the TTL: all that
    /// this node received is written.
    async fn release(&mut self) {
        let held = self.ingest.lease_deadline.lock().take().is_some();
        let connection = match self.connection.take() {
            Some(connection) => Ok(connection),
            None => self.ingest.connect().await,
        };
        let Ok(mut connection) = connection else { return };
        if held {
            let _: redis::RedisResult<i64> = self.eval(RELEASE, &mut connection).await;
            info!("legacy.redis: lease released");
        }
        let goodbye = format!("B {}", self.ingest.token);
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(self.ingest.marks_channel()).arg(goodbye);
        let _ = publish.exec_async(&mut connection).await;
    }
}
