//! Anytime-valid statistics: tests and confidence sequences that may be evaluated repeatedly.
//!
//! A classical test that is evaluated after every event blames a harmless change in every second
//! rollout. The tests here can be evaluated at any time, as often as wanted. Each module cites the
//! source of its formulas. All functions are pure and take sums; what is counted is decided in
//! [`measure`](super::measure), and what a result leads to in [`guardrail`](super::guardrail).

pub mod count;
pub mod mean;
pub mod quantile;
pub mod ratio;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A confidence interval: the values that the data do not refute. An unbounded end is infinite, and
/// `null` in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    #[serde(serialize_with = "finite_or_null", deserialize_with = "or_negative_infinity")]
    pub lower: f64,
    /// Upper end.
    #[serde(serialize_with = "finite_or_null", deserialize_with = "or_positive_infinity")]
    pub upper: f64,
}

impl Interval {
    /// The interval that excludes nothing.
    pub const ALL: Self = Self { lower: f64::NEG_INFINITY, upper: f64::INFINITY };

    /// Whether a value lies within, ends included.
    pub fn contains(self, value: f64) -> bool {
        (self.lower..=self.upper).contains(&value)
    }
}

fn finite_or_null<S: Serializer>(bound: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    bound.is_finite().then_some(*bound).serialize(serializer)
}

fn or_negative_infinity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NEG_INFINITY))
}

fn or_positive_infinity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::INFINITY))
}

/// The logarithm of a sum whose terms are given as logarithms.
fn log_sum_exp(logs: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = logs.clone().fold(f64::NEG_INFINITY, f64::max);
    if largest.is_infinite() {
        return largest;
    }
    largest + logs.map(|log| (log - largest).exp()).sum::<f64>().ln()
}

/// The boundary between `holds_at` and `fails_at` at which a monotonic condition stops holding.
fn bisect(mut holds_at: f64, mut fails_at: f64, holds: impl Fn(f64) -> bool) -> f64 {
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
fn assert_near(actual: f64, expected: f64, tolerance: f64) {
    assert!(
        (actual - expected).abs() <= tolerance,
        "{actual} differs from {expected} by more than {tolerance}"
    );
}
