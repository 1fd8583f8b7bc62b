//! How failures of Redis are reported.

use redis::{RedisError, RedisResult};

use crate::broker::BrokerError;

/// A server's error. What it says about the command itself is final; everything else may pass: it is
/// full, loading, no master, or a slot migrates.
pub(super) fn failure(place: &str, error: &RedisError) -> BrokerError {
    let reason = error.to_string();
    let broker = place.to_owned();
    let ours = error.detail().is_some_and(|detail| detail.starts_with("crossfade:"));
    if ours || matches!(error.code(), Some("WRONGTYPE" | "NOPERM" | "CROSSSLOT")) {
        return BrokerError::Refused { broker, reason };
    }
    BrokerError::Unavailable { broker, reason }
}

pub(super) fn unavailable(place: &str, why: impl std::fmt::Display) -> BrokerError {
    BrokerError::Unavailable { broker: place.to_owned(), reason: why.to_string() }
}

/// The function library's answers have the library's own form: one that cannot be read is a failure of
/// the server.
pub(super) fn decoded<T>(answer: RedisResult<T>) -> Result<T, BrokerError> {
    answer.map_err(|error| failure("redis", &error))
}
