//! When to ping a client and when to give it up. One timer per connection.

use std::{pin::Pin, time::Duration};

use tokio::time::{Instant, Sleep, sleep};

/// What it is time for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeartbeatEvent {
    /// Send a ping.
    Ping,
    /// Nothing was heard for two heartbeats.
    Silent,
    /// The client did not say who it is.
    NoFirstWord,
}

/// The pulse of one connection.
pub(super) struct Heartbeat {
    timer: Pin<Box<Sleep>>,
    period: Duration,
    patience: Duration,
    heard: Instant,
    awaits_first_word: bool,
}

impl Heartbeat {
    /// Beats every `heartbeat`, or more often where stalls are to be noticed sooner.
    pub(super) fn new(heartbeat: Duration, stall_timeout: Duration) -> Self {
        let period = heartbeat.min(stall_timeout);
        let timer = Box::pin(new_timer(first(period)));
        let patience = heartbeat * 2;
        Self { timer, period, patience, heard: Instant::now(), awaits_first_word: false }
    }

    /// The client has to say its first word within `timeout`.
    pub(super) fn expect_first_word(&mut self, timeout: Duration) {
        self.awaits_first_word = true;
        self.timer.as_mut().reset(Instant::now() + timeout);
    }

    /// The first word was said.
    pub(super) fn begin(&mut self) {
        self.awaits_first_word = false;
        self.timer.as_mut().reset(Instant::now() + first(self.period));
    }

    /// The client said something.
    pub(super) fn heard(&mut self) {
        self.heard = Instant::now();
    }

    /// Waits for the next beat. Cancel-safe: the timer keeps running.
    pub(super) async fn next(&mut self) -> HeartbeatEvent {
        self.timer.as_mut().await;
        if self.awaits_first_word {
            return HeartbeatEvent::NoFirstWord;
        }
        self.timer.as_mut().reset(Instant::now() + self.period);
        if self.patience <= self.heard.elapsed() {
            HeartbeatEvent::Silent
        } else {
            HeartbeatEvent::Ping
        }
    }
}

/// The first beat falls anywhere in the period, so that those who came together drift apart.
fn first(period: Duration) -> Duration {
    period.mul_f64(rand::random_range(0.5..1.0))
}

fn new_timer(after: Duration) -> Sleep {
    #[expect(clippy::disallowed_methods, reason = "the heartbeat's timer, awaited beside the rest")]
    sleep(after)
}
