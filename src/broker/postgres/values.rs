//! Conversions between our values and PostgreSQL's.

use std::time::Duration;

use crate::protocol::{Epoch, Position};

/// A duration as the server counts it, in milliseconds.
pub(super) fn millis(duration: Duration) -> i64 {
    // Half of what fits, so that adding it to a time of day never overflows.
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).min(i64::MAX / 2)
}

/// A position, from its two columns.
pub(super) fn position(epoch: i64, offset: i64) -> Position {
    Position::new(Epoch::new(epoch.cast_unsigned()), offset.cast_unsigned())
}
