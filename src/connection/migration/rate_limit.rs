//! An even rate: so many a second, without bursts.

use std::time::Instant;

/// An even rate. Time that a late caller lost is made up for, but never more than a second of it.
#[derive(Debug)]
pub(super) struct RateLimit {
    since: Instant,
    credit: f64,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self { since: Instant::now(), credit: 0.0 }
    }
}

impl RateLimit {
    /// Starts anew, without credit.
    pub(super) fn restart(&mut self) {
        *self = Self::default();
    }

    /// How many may pass now, at `rate` a second.
    pub(super) fn take(&mut self, rate: f64) -> usize {
        let passed = self.since.elapsed().as_secs_f64();
        self.since = Instant::now();
        self.credit = (self.credit + rate * passed).min(rate.max(1.0));
        let whole = self.credit.floor();
        self.credit -= whole;
        whole as usize
    }
}
