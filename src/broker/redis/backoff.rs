//! The pause before trying again: random, so that nodes do not come back in step, and growing.

use std::{ops::ControlFlow, time::Duration};

use rand::Rng as _;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Full jitter under a limit that doubles.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    limit: Duration,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, limit: min }
    }

    /// It worked: the next pause is a short one again.
    pub(crate) fn reset(&mut self) {
        self.limit = self.min;
    }

    /// Waits; breaks when it is time to stop.
    pub(crate) async fn pause(&mut self, stop: &CancellationToken) -> ControlFlow<()> {
        let pause = self.limit.mul_f64(rand::rng().random());
        self.limit = (self.limit * 2).min(self.max);
        match timeout(pause, stop.cancelled()).await {
            Ok(()) => ControlFlow::Break(()),
            Err(_) => ControlFlow::Continue(()),
        }
    }
}
