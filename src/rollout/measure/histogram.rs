//! Latency histogram with a hundred fixed logarithmic bins; histograms merge by addition.

use serde::{Deserialize, Serialize};

use crate::rollout::statistics::quantile;

/// Bins besides the first and the last, which take everything below and above.
const INNER_BINS: usize = 98;
/// Upper end of the first bin, in milliseconds.
const FIRST_END: f64 = 1.0;
/// Lower end of the last bin, in milliseconds.
const LAST_START: f64 = 60_000.0;

/// Counts per latency bin. The upper end of each bin is 12 % above its lower end, so a quantile is
/// exact to within 12 %. Trailing zeros are not stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Histogram(Vec<u64>);

/// A quantile with its confidence bounds, in milliseconds. Each is the upper end of a bin. The
/// bounds hold at the requested level for all looks together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantile {
    /// The estimated quantile.
    pub value: f64,
    /// Lower confidence bound; none while there are too few samples.
    pub lower: Option<f64>,
    /// Upper confidence bound; none while there are too few samples.
    pub upper: Option<f64>,
}

impl Histogram {
    /// Number of bins.
    pub const BINS: usize = INNER_BINS + 2;

    /// Counts one latency in milliseconds. Returns false, and counts nothing, for a negative or
    /// non-finite number.
    pub fn record(&mut self, milliseconds: f64) -> bool {
        if !(milliseconds.is_finite() && milliseconds >= 0.0) {
            return false;
        }
        let bin = bin_of(milliseconds);
        if self.0.len() <= bin {
            self.0.resize(bin + 1, 0);
        }
        self.0[bin] += 1;
        true
    }

    /// Adds the counts of another histogram.
    pub fn add(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (count, more) in self.0.iter_mut().zip(&other.0) {
            *count = count.saturating_add(*more);
        }
    }

    /// Number of latencies counted.
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The bins up to the last one in use: upper end in milliseconds (none for the last bin) and
    /// count.
    pub fn bins(&self) -> impl Iterator<Item = (Option<f64>, u64)> {
        self.0.iter().enumerate().map(|(bin, count)| (upper_end(bin), *count))
    }

    /// The `quantile` (0 to 1, exclusive) with bounds at level `alpha`; none without any latency.
    pub fn quantile(&self, quantile: f64, alpha: f64) -> Option<Quantile> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = ((quantile * count as f64).ceil() as u64).clamp(1, count);
        let ranks = quantile::ranks(count, quantile, alpha, quantile::TUNED_FOR);
        Some(Quantile {
            value: self.value_at(rank),
            lower: ranks.lower.map(|rank| self.value_at(rank)),
            upper: ranks.upper.map(|rank| self.value_at(rank)),
        })
    }

    /// Whether the number of bins is valid. Checked for what was read from a store.
    pub(super) fn is_consistent(&self) -> bool {
        self.0.len() <= Self::BINS
    }

    /// The upper end of the bin that holds the latency of this rank (from 1); for the last bin its
    /// lower end.
    fn value_at(&self, rank: u64) -> f64 {
        let mut before = 0;
        let bin = self.0.iter().position(|count| {
            before += count;
            before >= rank
        });
        bin.and_then(upper_end).unwrap_or(LAST_START)
    }
}

fn bin_of(milliseconds: f64) -> usize {
    if milliseconds < FIRST_END {
        return 0;
    }
    let position =
        (milliseconds / FIRST_END).ln() / (LAST_START / FIRST_END).ln() * INNER_BINS as f64;
    // A value on the boundary belongs to the bin below; the epsilon absorbs the rounding of the
    // logarithm.
    1 + (position - 1e-9).max(0.0).min(INNER_BINS as f64) as usize
}

fn upper_end(bin: usize) -> Option<f64> {
    let position = bin as f64 / INNER_BINS as f64;
    (bin <= INNER_BINS).then(|| FIRST_END * (LAST_START / FIRST_END).powf(position))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantile_is_exact_to_within_one_bin() {
        let mut histogram = Histogram::default();
        for latency in 1..=10_000 {
            assert!(histogram.record(f64::from(latency)));
        }
        for quantile in [0.5, 0.95, 0.99] {
            let actual = histogram.quantile(quantile, 0.05).unwrap();
            let exact = quantile * 10_000.0;
            assert!((exact..exact * 1.13).contains(&actual.value), "{quantile}: {actual:?}");
            assert!(actual.lower.unwrap() <= actual.value && actual.value <= actual.upper.unwrap());
        }
    }

    #[test]
    fn boundaries_belong_to_the_bin_below_and_extremes_are_counted() {
        for index in 1..=INNER_BINS {
            assert_eq!(bin_of(upper_end(index).unwrap()), index, "upper end of bin {index}");
            assert_eq!(bin_of(upper_end(index).unwrap() * 1.000_001), index + 1);
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
        assert_eq!(histogram.quantile(0.99, 0.05).unwrap().value, LAST_START);
        assert_eq!(Histogram::default().quantile(0.5, 0.05), None);
    }

    #[test]
    fn merging_equals_recording_everything_in_one() {
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
