//! A circuit breaker: after failures in a row nothing is tried for a while, then one try decides.
//!
//! Pure: whoever asks brings the time.

use std::time::{Duration, Instant};

/// Failures in a row that open it.
const FAILURES: u32 = 5;

/// How long it is open at first, and at most: twice as long after each try that failed.
const OPEN_MIN: Duration = Duration::from_secs(30);
const OPEN_MAX: Duration = Duration::from_secs(300);

/// Whether something may be tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Breaker {
    /// It may; so many tries in a row have failed.
    Closed { failures: u32 },
    /// It may not, until then.
    Open { until: Instant, lasts: Duration },
    /// One try is under way that decides.
    HalfOpen { lasted: Duration },
}

impl Breaker {
    pub(super) const fn new() -> Self {
        Self::Closed { failures: 0 }
    }

    /// Asks to try. Says until when not to, if so.
    pub(super) fn ask(&mut self, now: Instant) -> Result<(), Instant> {
        match *self {
            Self::Closed { .. } => Ok(()),
            Self::Open { until, .. } if now < until => Err(until),
            Self::Open { lasts, .. } => {
                *self = Self::HalfOpen { lasted: lasts };
                Ok(())
            }
            // Nobody else may before it is known; whoever tries says soon.
            Self::HalfOpen { lasted } => Err(now + lasted),
        }
    }

    pub(super) fn succeeded(&mut self) {
        *self = Self::new();
    }

    pub(super) fn failed(&mut self, now: Instant) {
        let open = |lasts: Duration| Self::Open { until: now + lasts, lasts };
        *self = match *self {
            Self::Closed { failures } if failures + 1 < FAILURES => {
                Self::Closed { failures: failures + 1 }
            }
            Self::Closed { .. } => open(OPEN_MIN),
            Self::HalfOpen { lasted } => open((lasted * 2).min(OPEN_MAX)),
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

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::new();
        for _ in 0..FAILURES {
            assert_eq!(breaker.ask(now), Ok(()));
            breaker.failed(now);
        }
        breaker
    }

    #[test]
    fn failures_in_a_row_open_it_others_do_not() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        for _ in 0..3 * FAILURES {
            breaker.failed(now);
            breaker.succeeded();
        }
        assert!(!breaker.is_open());
        assert_eq!(opened(now).ask(now), Err(now + OPEN_MIN));
    }

    #[test]
    fn one_try_decides_and_nobody_else_tries_meanwhile() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let later = now + OPEN_MIN;
        assert_eq!(breaker.ask(later), Ok(()));
        assert!(breaker.ask(later).is_err());
        breaker.succeeded();
        assert_eq!((breaker.is_open(), breaker.ask(later)), (false, Ok(())));
    }

    #[test]
    fn it_stays_open_longer_each_time_but_not_for_ever() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        let mut lasted = Vec::new();
        for _ in 0..6 {
            let until = breaker.ask(now).unwrap_err();
            lasted.push((until - now).as_secs());
            now = until;
            assert_eq!(breaker.ask(now), Ok(()));
            breaker.failed(now);
        }
        assert_eq!(lasted, [30, 60, 120, 240, 300, 300]);
    }
}
