//! Latencies in a hundred fixed bins, which merge by adding.

use serde::{Deserialize, Serialize};

use crate::rollout::statistics::quantile;

/// Bins between the first and the last, which take what is less and what is more.
const INNER: usize = 98;
/// Upper end of the first bin, in milliseconds.
const LEAST: f64 = 1.0;
/// Lower end of the last.
const MOST: f64 = 60_000.0;

/// How often which latency was seen. Each bin's end is 12 % above its beginning, so a quantile is
/// right to within that; zeros at the end are not kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Histogram(Vec<u64>);

/// A quantile of what was seen, in milliseconds: the upper end of its bin, and of the bins of the
/// order statistics around it, which hold at the level that was asked for by all looks together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantile {
    /// The quantile.
    pub value: f64,
    /// It is hardly less than this; unknown while there are few samples.
    pub lower: Option<f64>,
    /// It is hardly more than this.
    pub upper: Option<f64>,
}

impl Histogram {
    /// How many bins there are.
    pub const BINS: usize = INNER + 2;

    /// One latency in milliseconds. What is no number from 0 on is not counted, and says false.
    pub fn record(&mut self, milliseconds: f64) -> bool {
        if !(milliseconds.is_finite() && milliseconds >= 0.0) {
            return false;
        }
        let bin = bin(milliseconds);
        if self.0.len() <= bin {
            self.0.resize(bin + 1, 0);
        }
        self.0[bin] += 1;
        true
    }

    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (count, more) in self.0.iter_mut().zip(&other.0) {
            *count = count.saturating_add(*more);
        }
    }

    /// How many latencies were seen.
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The bins that were used: upper end in milliseconds (none for the last) and count.
    pub fn bins(&self) -> impl Iterator<Item = (Option<f64>, u64)> {
        self.0.iter().enumerate().map(|(bin, count)| (end(bin), *count))
    }

    /// The `quantile` (0 to 1, exclusive), with bounds at level `alpha`; none without any latency.
    pub fn quantile(&self, quantile: f64, alpha: f64) -> Option<Quantile> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = ((quantile * count as f64).ceil() as u64).clamp(1, count);
        let ranks = quantile::ranks(count, quantile, alpha, quantile::TUNED_FOR);
        Some(Quantile {
            value: self.at(rank),
            lower: ranks.lower.map(|rank| self.at(rank)),
            upper: ranks.upper.map(|rank| self.at(rank)),
        })
    }

    /// Whether it has no more bins than there are.
    pub(super) fn is_sound(&self) -> bool {
        self.0.len() <= Self::BINS
    }

    /// The upper end of the bin with the latency of this rank, from 1; of the last, its beginning.
    fn at(&self, rank: u64) -> f64 {
        let mut before = 0;
        let bin = self.0.iter().position(|count| {
            before += count;
            before >= rank
        });
        bin.and_then(end).unwrap_or(MOST)
    }
}

fn bin(milliseconds: f64) -> usize {
    if milliseconds < LEAST {
        return 0;
    }
    let place = (milliseconds / LEAST).ln() / (MOST / LEAST).ln() * INNER as f64;
    // A value on an end belongs to the bin below, but for the error of a logarithm.
    1 + (place - 1e-9).max(0.0).min(INNER as f64) as usize
}

fn end(bin: usize) -> Option<f64> {
    let place = bin as f64 / INNER as f64;
    (bin <= INNER).then(|| LEAST * (MOST / LEAST).powf(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_right_to_within_a_bin() {
        let mut histogram = Histogram::default();
        for latency in 1..=10_000 {
            assert!(histogram.record(f64::from(latency)));
        }
        for quantile in [0.5, 0.95, 0.99] {
            let found = histogram.quantile(quantile, 0.05).unwrap();
            let exact = quantile * 10_000.0;
            assert!((exact..exact * 1.13).contains(&found.value), "{quantile}: {found:?}");
            assert!(found.lower.unwrap() <= found.value && found.value <= found.upper.unwrap());
        }
    }

    #[test]
    fn ends_belong_to_the_bin_below_and_extremes_have_theirs() {
        for index in 1..=INNER {
            assert_eq!(bin(end(index).unwrap()), index, "end of {index}");
            assert_eq!(bin(end(index).unwrap() * 1.000_001), index + 1);
        }
        let mut histogram = Histogram::default();
        for latency in [0.0, 0.2, 1e9, 60_001.0] {
            assert!(histogram.record(latency));
        }
        for none in [f64::NAN, f64::INFINITY, -1.0] {
            assert!(!histogram.record(none));
        }
        assert_eq!(histogram.count(), 4);
        assert_eq!(histogram.bins().last(), Some((None, 2)));
        assert_eq!(histogram.quantile(0.99, 0.05).unwrap().value, MOST);
        assert_eq!(Histogram::default().quantile(0.5, 0.05), None);
    }

    #[test]
    fn adding_is_as_if_one_had_seen_all() {
        let (mut one, mut other, mut all) = Default::default();
        let _: [&mut Histogram; 3] = [&mut one, &mut other, &mut all];
        for latency in 0..500 {
            let part = if latency % 3 == 0 { &mut one } else { &mut other };
            part.record(f64::from(latency * latency));
            all.record(f64::from(latency * latency));
        }
        one.add(&other);
        assert_eq!(one, all);
    }
}
