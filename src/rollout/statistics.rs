//! Comparisons that stay right however often one looks.
//!
//! Pure functions of sums. A classical test that is looked at after every event blames a harmless
//! change in every second rollout; those here keep their error for all looks together. Where each
//! formula comes from stands with it. What is counted is decided in
//! [`measure`](super::measure), what follows from it in [`guardrail`](super::guardrail).

pub mod count;
pub mod mean;
pub mod quantile;
pub mod ratio;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A range of values that the data do not contradict. A side without a bound is infinite, and
/// `null` in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The smallest such value.
    #[serde(serialize_with = "finite", deserialize_with = "or_least")]
    pub lower: f64,
    /// The largest.
    #[serde(serialize_with = "finite", deserialize_with = "or_greatest")]
    pub upper: f64,
}

impl Interval {
    /// The range that contradicts nothing.
    pub const ALL: Self = Self { lower: f64::NEG_INFINITY, upper: f64::INFINITY };

    /// Whether a value lies within, bounds included.
    pub fn contains(self, value: f64) -> bool {
        (self.lower..=self.upper).contains(&value)
    }
}

fn finite<S: Serializer>(bound: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    bound.is_finite().then_some(*bound).serialize(serializer)
}

fn or_least<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NEG_INFINITY))
}

fn or_greatest<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::INFINITY))
}

/// The logarithm of a sum of numbers given as logarithms.
fn log_sum(logs: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = logs.clone().fold(f64::NEG_INFINITY, f64::max);
    if largest.is_infinite() {
        return largest;
    }
    largest + logs.map(|log| (log - largest).exp()).sum::<f64>().ln()
}

/// The place between two where a condition that holds at the first ceases to hold.
fn last_where(mut holds_at: f64, mut fails_at: f64, holds: impl Fn(f64) -> bool) -> f64 {
    for _ in 0..80 {
        let between = f64::midpoint(holds_at, fails_at);
        if holds(between) {
            holds_at = between;
        } else {
            fails_at = between;
        }
    }
    holds_at
}

#[cfg(test)]
fn assert_near(found: f64, expected: f64, within: f64) {
    assert!((found - expected).abs() <= within, "{found} is not {expected} within {within}");
}
