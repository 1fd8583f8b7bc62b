//! Circuit breaker: opens after consecutive failures, then lets a single trial attempt decide.
//!
//! Pure: the caller passes the time.

use std::time::{Duration, Instant};

/// Consecutive failures that open the breaker.
const FAILURE_THRESHOLD: u32 = 5;

/// How long the breaker stays open: at first, and at most. Doubles after each failed trial.
const OPEN_MIN: Duration = Duration::from_secs(30);
const OPEN_MAX: Duration = Duration::from_secs(300);

/// State of the breaker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Breaker {
    /// Attempts are allowed; this many in a row have failed.
    Closed { failures: u32 },
    /// Attempts are refused until then.
    Open { until: Instant, duration: Duration },
    /// The trial attempt is under way.
    HalfOpen { duration: Duration },
}

impl Breaker {
    pub(super) const fn new() -> Self {
        Self::Closed { failures: 0 }
    }

    /// Asks to make an attempt. If refused, returns when to ask again.
    pub(super) fn try_acquire(&mut self, now: Instant) -> Result<(), Instant> {
        match *self {
            Self::Closed { .. } => Ok(()),
            Self::Open { until, .. } if now < until => Err(until),
            Self::Open { duration, .. } => {
                *self = Self::HalfOpen { duration };
                Ok(())
            }
            // Only one trial at a time; its caller records the outcome soon.
            Self::HalfOpen { duration } => Err(now + duration),
        }
    }

    pub(super) fn record_success(&mut self) {
        *self = Self::new();
    }

    pub(super) fn record_failure(&mut self, now: Instant) {
        let open = |duration: Duration| Self::Open { until: now + duration, duration };
        *self = match *self {
            Self::Closed { failures } if failures + 1 < FAILURE_THRESHOLD => {
                Self::Closed { failures: failures + 1 }
            }
            Self::Closed { .. } => open(OPEN_MIN),
            Self::HalfOpen { duration } => open((duration * 2).min(OPEN_MAX)),
            Self::Open { .. } => return,
        };
    }

    pub(super) fn is_open(&self) -> bool {
        !matches!(self, Self::Closed { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_breaker(now: Instant) -> Breaker {
        let mut breaker = Breaker::new();
        for _ in 0..FAILURE_THRESHOLD {
            assert_eq!(breaker.try_acquire(now), Ok(()));
            breaker.record_failure(now);
        }
        breaker
    }

    #[test]
    fn only_consecutive_failures_open_the_breaker() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        for _ in 0..3 * FAILURE_THRESHOLD {
            breaker.record_failure(now);
            breaker.record_success();
        }
        assert!(!breaker.is_open());
        assert_eq!(open_breaker(now).try_acquire(now), Err(now + OPEN_MIN));
    }

    #[test]
    fn half_open_breaker_allows_a_single_trial() {
        let now = Instant::now();
        let mut breaker = open_breaker(now);
        let later = now + OPEN_MIN;
        assert_eq!(breaker.try_acquire(later), Ok(()));
        assert!(breaker.try_acquire(later).is_err());
        breaker.record_success();
        assert_eq!((breaker.is_open(), breaker.try_acquire(later)), (false, Ok(())));
    }

    #[test]
    fn open_time_doubles_up_to_the_limit() {
        let mut now = Instant::now();
        let mut breaker = open_breaker(now);
        let mut open_seconds = Vec::new();
        for _ in 0..6 {
            let until = breaker.try_acquire(now).unwrap_err();
            open_seconds.push((until - now).as_secs());
            now = until;
            assert_eq!(breaker.try_acquire(now), Ok(()));
            breaker.record_failure(now);
        }
        assert_eq!(open_seconds, [30, 60, 120, 240, 300, 300]);
    }
}
