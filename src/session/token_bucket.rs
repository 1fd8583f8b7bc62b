//! Rate limiting of one client or address: a token bucket. Pure: the caller passes the time.

use std::time::{Duration, Instant};

/// A token bucket in sixteen bytes, as GCRA: it keeps only the time at which it is full again. Rate and
/// burst are the caller's, who passes the same ones each time.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    full_at: Instant,
}

impl TokenBucket {
    /// A full bucket.
    pub fn full(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Takes one token of a bucket that holds `burst` tokens and gains `per_second` of them. Returns
    /// false if the bucket is empty. Zero counts as one for both.
    pub fn take(&mut self, now: Instant, per_second: u32, burst: u32) -> bool {
        let interval = Duration::from_secs(1) / per_second.max(1);
        let full_at = self.full_at.max(now) + interval;
        if interval * burst.max(1) < full_at - now {
            return false;
        }
        self.full_at = full_at;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::full(start);
        let taken = |bucket: &mut TokenBucket, at_ms: u64| {
            let now = start + Duration::from_millis(at_ms);
            (0..100).filter(|_| bucket.take(now, 10, 5)).count()
        };
        assert_eq!(taken(&mut bucket, 0), 5);
        assert_eq!(taken(&mut bucket, 300), 3);
        assert_eq!(taken(&mut bucket, 60_000), 5);
    }
}
