//! When to ping a client and when to give it up. One timer per connection.

use std::{pin::Pin, time::Duration};

use tokio::time::{Instant, Sleep, sleep};

/// What the timer calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeartbeatEvent {
    /// Send a ping.
    Ping,
    /// The client has been silent for two heartbeats.
    Silent,
    /// The client sent no first frame in time.
    ConnectTimeout,
}

/// The heartbeat of one connection.
pub(super) struct Heartbeat {
    timer: Pin<Box<Sleep>>,
    period: Duration,
    silence_max: Duration,
    last_received: Instant,
    awaits_first_frame: bool,
}

impl Heartbeat {
    /// Fires every `heartbeat`, or more often where stalls have to be noticed sooner.
    pub(super) fn new(heartbeat: Duration, stall_timeout: Duration) -> Self {
        let period = heartbeat.min(stall_timeout);
        let timer = Box::pin(new_timer(first(period)));
        let silence_max = heartbeat * 2;
        let last_received = Instant::now();
        Self { timer, period, silence_max, last_received, awaits_first_frame: false }
    }

    /// The client has to send its first frame within `timeout`.
    pub(super) fn expect_first_frame(&mut self, timeout: Duration) {
        self.awaits_first_frame = true;
        self.timer.as_mut().reset(Instant::now() + timeout);
    }

    /// The first frame was received.
    pub(super) fn begin(&mut self) {
        self.awaits_first_frame = false;
        self.timer.as_mut().reset(Instant::now() + first(self.period));
    }

    /// Bytes were received.
    pub(super) fn received(&mut self) {
        self.last_received = Instant::now();
    }

    /// Waits for the timer. Cancel-safe: it keeps running.
    pub(super) async fn next(&mut self) -> HeartbeatEvent {
        self.timer.as_mut().await;
        if self.awaits_first_frame {
            return HeartbeatEvent::ConnectTimeout;
        }
        self.timer.as_mut().reset(Instant::now() + self.period);
        if self.silence_max <= self.last_received.elapsed() {
            HeartbeatEvent::Silent
        } else {
            HeartbeatEvent::Ping
        }
    }
}

/// The first ping falls at a random moment of the period, so that clients that connected together are
/// not pinged together.
fn first(period: Duration) -> Duration {
    period.mul_f64(rand::random_range(0.5..1.0))
}

fn new_timer(after: Duration) -> Sleep {
    #[expect(clippy::disallowed_methods, reason = "the heartbeat's timer, awaited beside the rest")]
    sleep(after)
}
