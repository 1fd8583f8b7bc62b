//! How much a client may send: a bucket that fills at a steady rate.

use std::time::{Duration, Instant};

/// A token bucket in sixteen bytes: it keeps the moment at which it would be empty (GCRA).
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    spent_until: Instant,
}

impl Allowance {
    /// A full bucket.
    pub fn full(now: Instant) -> Self {
        Self { spent_until: now }
    }

    /// Takes one token of `per_second`, of which at most `burst` are there at once. Whether there
    /// was one.
    pub fn take(&mut self, now: Instant, per_second: u32, burst: u32) -> bool {
        let one = Duration::from_secs(1) / per_second.max(1);
        let spent_until = self.spent_until.max(now) + one;
        if one * burst.max(1) < spent_until - now {
            return false;
        }
        self.spent_until = spent_until;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_let_through_and_then_the_rate() {
        let start = Instant::now();
        let mut allowance = Allowance::full(start);
        let taken = |allowance: &mut Allowance, at_ms: u64| {
            let now = start + Duration::from_millis(at_ms);
            (0..100).filter(|_| allowance.take(now, 10, 5)).count()
        };
        assert_eq!(taken(&mut allowance, 0), 5);
        assert_eq!(taken(&mut allowance, 300), 3);
        assert_eq!(taken(&mut allowance, 60_000), 5);
    }
}
