//! One clock for everything that is measured: nanoseconds since this process first asked.
//!
//! A number instead of an [`Instant`], because it travels in payloads.

use std::{sync::OnceLock, time::Instant};

static BEGAN: OnceLock<Instant> = OnceLock::new();

/// Nanoseconds since the first call.
pub fn now() -> u64 {
    let began = *BEGAN.get_or_init(Instant::now);
    u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Nanoseconds of so many seconds.
pub fn seconds(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}
