//! Confidence sequence of a quantile, for display next to a latency distribution.
//!
//! The two-sided beta-binomial confidence sequence of Howard and Ramdas (arXiv:1906.09712), as in
//! their library confseq. It treats samples as independent: where a few users give most samples its
//! bounds are too narrow, so no verdict depends on it.

use libm::lgamma;

use super::bisect;

/// Number of samples at which the bounds are narrowest.
pub const TUNED_FOR: f64 = 5_000.0;

/// Ranks in a sorted sample, from 1: the quantile lies between these two order statistics. A bound
/// is none while there are too few samples for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranks {
    /// Rank of the lower bound.
    pub lower: Option<u64>,
    /// Rank of the upper bound.
    pub upper: Option<u64>,
}

/// The ranks between which the `quantile` (0 to 1, exclusive) of `samples` samples lies, at level
/// `alpha`.
pub fn ranks(samples: u64, quantile: f64, alpha: f64, tuned_for: f64) -> Ranks {
    let n = samples as f64;
    let variance = quantile * (1.0 - quantile);
    let optimal = variance * tuned_for;
    let below = Mixture::new(1.0 - quantile, quantile, optimal, alpha).bound(variance * n, alpha);
    let above = Mixture::new(quantile, 1.0 - quantile, optimal, alpha).bound(variance * n, alpha);
    let lower = below.map(|bound| (quantile * n - bound + 1.0).floor());
    let upper = above.map(|bound| (quantile * n + bound).ceil());
    let within = |rank: &f64| (1.0..=n).contains(rank);
    Ranks {
        lower: lower.filter(within).map(|rank| rank as u64),
        upper: upper.filter(within).map(|rank| rank as u64),
    }
}

/// Beta-binomial mixture martingale of a sum of centred coin flips that step up by `h` and down by
/// `g`.
struct Mixture {
    g: f64,
    h: f64,
    r: f64,
}

impl Mixture {
    fn new(g: f64, h: f64, optimal_variance: f64, alpha: f64) -> Self {
        let rho = best_rho(optimal_variance, alpha);
        Self { g, h, r: (rho - g * h).max(1e-3 * g * h) }
    }

    /// The logarithm of the martingale at a sum `s` with variance `v`; none where no sample can
    /// lie.
    fn log(&self, s: f64, v: f64) -> Option<f64> {
        let Self { g, h, r } = *self;
        let total = g + h;
        let a = (r + v - g * s) / (g * total);
        let b = (r + v + h * s) / (h * total);
        if a <= 0.0 || b <= 0.0 {
            return None;
        }
        let scale = v / (g * h) * total.ln()
            - (v + h * s) / (h * total) * g.ln()
            - (v - g * s) / (g * total) * h.ln();
        Some(scale + log_beta(a, b) - log_beta(r / (g * total), r / (h * total)))
    }

    /// The largest sum that is not refuted; none if no possible sum is refuted.
    fn bound(&self, v: f64, alpha: f64) -> Option<f64> {
        let refuted = -alpha.ln();
        let largest = v / self.g;
        if self.log(largest, v).is_none_or(|log| log < refuted) {
            return None;
        }
        let holds = |s: f64| self.log(s, v).is_some_and(|log| log < refuted);
        Some(bisect(0.0, largest, holds))
    }
}

/// The tuning parameter that makes the bound narrowest at a variance.
fn best_rho(variance: f64, alpha: f64) -> f64 {
    let log = 2.0 * (1.0 / alpha).ln();
    variance / (log + log.ln_1p())
}

fn log_beta(a: f64, b: f64) -> f64 {
    lgamma(a) + lgamma(b) - lgamma(a + b)
}

#[cfg(test)]
mod tests {
    use super::{super::assert_near, *};

    #[test]
    fn bounds_match_confseq() {
        assert_near(best_rho(100.0, 0.05), 12.60056, 1e-5);
        let mixture = Mixture::new(0.2, 0.8, 100.0, 0.05);
        assert_near(mixture.log(10.0, 100.0).unwrap(), -0.694_101_2, 1e-6);
        assert_near(mixture.bound(100.0, 0.05).unwrap(), 31.4308, 1e-4);
    }

    #[test]
    fn ranks_of_the_95th_percentile_match_the_table() {
        let rows = [
            (1_000, 926, 972),
            (5_000, 4_702, 4_796),
            (20_000, 18_902, 19_095),
            (100_000, 94_768, 95_228),
        ];
        for (samples, lower, upper) in rows {
            let actual = ranks(samples, 0.95, 0.05, TUNED_FOR);
            assert_eq!(actual, Ranks { lower: Some(lower), upper: Some(upper) }, "{samples}");
        }
        assert_eq!(ranks(200, 0.95, 0.05, TUNED_FOR).upper, None);
        assert_eq!(ranks(0, 0.95, 0.05, TUNED_FOR), Ranks { lower: None, upper: None });
    }
}
