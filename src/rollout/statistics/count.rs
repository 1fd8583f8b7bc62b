//! Count e-process: a sequential test of whether the new arm has more failures than its share.
//!
//! Each failure contributes two things: whether its user is in the new arm, and the share `w` of
//! the new arm among the users it could have happened to. If the new arm's rate is `q` times that
//! of the others, the user is in the new arm with probability `qw / (1 + (q - 1) w)`. The ratio of
//! two such likelihoods is a bet against the null hypothesis: under it, the ratio ever exceeds
//! `1/α` with a probability of at most `α`, at any percentage and with a look after every event
//! (Lindon and Malek, Anytime-Valid Inference for Multinomial Count Data, arXiv:2011.03567; Ville's
//! inequality).
//!
//! The log-likelihood of a ratio `q` is `S ln q - D(q)`, where `S` is the number of failures in the
//! new arm and `D(q) = Σ ln(1 + (q - 1) w)` is the log-normalizer. `D` is stored at 32 Chebyshev
//! points of `ln q` and interpolated between them to within 1e-10 per failure. So the evidence is a
//! few sums that add over nodes and stages, and margin, `α` and interval can be chosen when it is
//! evaluated.

use std::{array, f64::consts::PI, iter, sync::LazyLock};

use serde::{Deserialize, Serialize};

use super::{Interval, bisect, log_sum_exp};

/// The rate ratios of the alternatives that bet against the null hypothesis, equally weighted.
const ALTERNATIVE_RATIOS: [f64; 7] = [1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0];

/// Largest rate ratio that has a likelihood; the smallest is its inverse.
pub const MAX_RATIO: f64 = 32.0;

/// Largest margin at which every alternative has a likelihood.
pub const MAX_MARGIN: f64 = 2.0;

const POINTS: usize = 32;

/// The evidence from failures of one kind. Adding two gives the evidence of both.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    events: u64,
    new_events: u64,
    log_normalizers: [f64; POINTS],
}

impl Evidence {
    /// Adds one failure: whether its user is in the new arm, and the new arm's share (0 to 1) of
    /// the users it could have happened to, including that user. Returns false, and adds nothing,
    /// if the failure is impossible at this share.
    pub fn observe(&mut self, in_new: bool, share: f64) -> bool {
        let possible =
            if in_new { share > 0.0 && share <= 1.0 } else { (0.0..1.0).contains(&share) };
        if !possible {
            return false;
        }
        self.events += 1;
        self.new_events += u64::from(in_new);
        for (log_normalizer, point) in self.log_normalizers.iter_mut().zip(&*CHEBYSHEV) {
            *log_normalizer += (share * point.log_ratio.exp_m1()).ln_1p();
        }
        true
    }

    /// Adds the evidence of another node or an earlier stage.
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.new_events += other.new_events;
        for (log_normalizer, more) in self.log_normalizers.iter_mut().zip(other.log_normalizers) {
            *log_normalizer += more;
        }
    }

    /// Failures in all arms.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Failures in the new arm.
    pub fn new_events(&self) -> u64 {
        self.new_events
    }

    /// Whether the sums can result from failures. Checked for what was read from a store.
    pub fn is_consistent(&self) -> bool {
        let limit = self.events as f64 * MAX_RATIO.ln() * 1.01 + 1e-6;
        self.new_events <= self.events
            && self.log_normalizers.iter().all(|log_normalizer| log_normalizer.abs() <= limit)
    }

    /// The natural logarithm of the e-value against "the rate of the new arm is at most `1 +
    /// margin` times that of the others". At `ln(1/α)` this is refuted at level `α`. `margin` is 0
    /// to [`MAX_MARGIN`].
    pub fn log_e(&self, margin: f64) -> f64 {
        let null = margin.clamp(0.0, MAX_MARGIN).ln_1p();
        let bets = ALTERNATIVE_RATIOS.iter().map(|ratio| self.log_likelihood(null + ratio.ln()));
        log_sum_exp(bets) - (ALTERNATIVE_RATIOS.len() as f64).ln() - self.log_likelihood(null)
    }

    /// The maximum-likelihood rate ratio, clamped to the range that has a likelihood; none without
    /// any failure.
    pub fn rate_ratio(&self) -> Option<f64> {
        (self.events > 0).then(|| self.peak().exp())
    }

    /// The rate ratios that are not refuted at level `alpha` by all looks together: a confidence
    /// sequence by inversion, with alternatives weighted by a normal distribution of `ln q` around
    /// 0 with standard deviation 1.
    pub fn interval(&self, alpha: f64) -> Interval {
        let end = MAX_RATIO.ln();
        let steps = 200;
        let weights: Vec<_> = (0..=steps)
            .map(|step| end * (2.0 * f64::from(step) / f64::from(steps) - 1.0))
            .map(|log_ratio| (log_ratio, -log_ratio * log_ratio / 2.0))
            .collect();
        let total = log_sum_exp(weights.iter().map(|(_, weight)| *weight));
        let mixture = log_sum_exp(
            weights.iter().map(|(log_ratio, weight)| weight + self.log_likelihood(*log_ratio)),
        );
        let threshold = mixture - total + alpha.ln();
        let holds = |log_ratio: f64| self.log_likelihood(log_ratio) > threshold;
        let peak = self.peak();
        let lower = if holds(-end) { 0.0 } else { bisect(peak, -end, holds).exp() };
        let upper = if holds(end) { f64::INFINITY } else { bisect(peak, end, holds).exp() };
        Interval { lower, upper }
    }

    /// The `ln q` at which the log-likelihood, which is concave, is largest (ternary search).
    fn peak(&self) -> f64 {
        let (mut low, mut high) = (-MAX_RATIO.ln(), MAX_RATIO.ln());
        for _ in 0..60 {
            let third = (high - low) / 3.0;
            if self.log_likelihood(low + third) < self.log_likelihood(high - third) {
                low += third;
            } else {
                high -= third;
            }
        }
        f64::midpoint(low, high)
    }

    /// The log-likelihood of a rate ratio, given as its logarithm, relative to that of ratio 1.
    fn log_likelihood(&self, log_ratio: f64) -> f64 {
        self.new_events as f64 * log_ratio - self.log_normalizer_at(log_ratio)
    }

    /// Barycentric interpolation at Chebyshev points of the first kind.
    fn log_normalizer_at(&self, log_ratio: f64) -> f64 {
        let (mut numerator, mut denominator) = (0.0, 0.0);
        for (log_normalizer, point) in self.log_normalizers.iter().zip(&*CHEBYSHEV) {
            let distance = log_ratio - point.log_ratio;
            if distance.abs() < 1e-14 {
                return *log_normalizer;
            }
            let weight = point.weight / distance;
            numerator += weight * log_normalizer;
            denominator += weight;
        }
        numerator / denominator
    }
}

impl iter::Sum for Evidence {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, one| {
            sum.add(&one);
            sum
        })
    }
}

struct Point {
    log_ratio: f64,
    /// Weight in the barycentric interpolation.
    weight: f64,
}

static CHEBYSHEV: LazyLock<[Point; POINTS]> = LazyLock::new(|| {
    array::from_fn(|index| {
        let angle = PI * (2 * index + 1) as f64 / (2 * POINTS) as f64;
        let sign = if index.is_multiple_of(2) { 1.0 } else { -1.0 };
        Point { log_ratio: MAX_RATIO.ln() * angle.cos(), weight: sign * angle.sin() }
    })
});

#[cfg(test)]
mod tests {
    use super::{super::assert_near, *};

    fn evidence(new: u64, all: u64, share: f64) -> Evidence {
        let mut evidence = Evidence::default();
        for event in 0..all {
            assert!(evidence.observe(event < new, share));
        }
        evidence
    }

    #[test]
    fn worked_examples() {
        let examples = [
            (30, 40, 0.5, [2.4786, 7.2644, 25.4881, 97.1068, 187.2569, 76.6037, 2.4294], 56.947),
            (5, 20, 0.05, [1.4576, 2.3804, 4.6342, 12.0605, 36.1204, 81.5127, 59.2434], 28.2013),
        ];
        for (new, all, share, singles, mixture) in examples {
            let evidence = evidence(new, all, share);
            for (ratio, expected) in ALTERNATIVE_RATIOS.iter().zip(singles) {
                let actual = evidence.log_likelihood(ratio.ln()) - evidence.log_likelihood(0.0);
                assert_near(actual.exp(), expected, 1e-4);
            }
            assert_near(evidence.log_e(0.0).exp(), mixture, 1e-3);
        }
        assert_near(evidence(1, 20, 0.05).log_e(0.0).exp(), 0.6031, 1e-4);
    }

    #[test]
    fn margin_is_equivalent_to_a_larger_share_of_the_new_arm() {
        let (margin, share) = (0.1, 0.2);
        let shifted = (1.0 + margin) * share / (1.0 + margin * share);
        let expected = evidence(12, 30, shifted).log_e(0.0);
        assert_near(evidence(12, 30, share).log_e(margin), expected, 1e-8);
    }

    #[test]
    fn log_normalizer_is_exact_between_chebyshev_points() {
        let mut evidence = Evidence::default();
        let shares = [1e-6, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.99, 0.999_999];
        shares.iter().for_each(|share| assert!(evidence.observe(true, *share)));
        for step in -200..=200 {
            let at = MAX_RATIO.ln() * f64::from(step) / 200.0;
            let exact: f64 = shares.iter().map(|share| (share * at.exp_m1()).ln_1p()).sum();
            assert_near(evidence.log_normalizer_at(at), exact, 1e-9);
        }
    }

    #[test]
    fn evidence_adds_in_any_order_and_round_trips_through_json() {
        let parts = [evidence(3, 9, 0.1), evidence(1, 4, 0.5), evidence(0, 7, 0.01)];
        let forward: Evidence = parts.iter().cloned().sum();
        let backward: Evidence = parts.iter().rev().cloned().sum();
        assert_eq!((forward.events(), forward.new_events()), (20, 4));
        assert_near(forward.log_e(0.1), backward.log_e(0.1), 1e-9);
        let written = serde_json::to_string(&forward).unwrap();
        let read: Evidence = serde_json::from_str(&written).unwrap();
        assert_near(read.log_e(0.1), forward.log_e(0.1), 1e-9);
        assert!(forward.is_consistent());
    }

    #[test]
    fn impossible_shares_are_not_counted() {
        let mut evidence = Evidence::default();
        for (in_new, share) in [(true, 0.0), (false, 1.0), (true, 1.1), (false, -0.1)] {
            assert!(!evidence.observe(in_new, share));
        }
        assert!(!evidence.observe(true, f64::NAN) && !evidence.observe(false, f64::NAN));
        assert!(evidence.observe(true, 1.0), "possible, but no evidence: there is no other arm");
        assert_near(evidence.log_e(0.0), 0.0, 1e-9);
        let forged = Evidence { events: 1, new_events: 1, log_normalizers: [-100.0; POINTS] };
        assert!(!forged.is_consistent());
    }

    #[test]
    fn interval_contains_the_ratio_and_narrows_with_more_failures() {
        // Four times as many failures in the new arm, with arms of equal size.
        let few = evidence(20, 25, 0.5);
        let many = evidence(320, 400, 0.5);
        for evidence in [&few, &many] {
            assert_near(evidence.rate_ratio().unwrap(), 4.0, 1e-4);
            let interval = evidence.interval(0.05);
            assert!(interval.contains(4.0) && !interval.contains(1.0), "{interval:?}");
        }
        let (few, many) = (few.interval(0.05), many.interval(0.05));
        assert!(few.lower < many.lower && many.upper < few.upper, "{few:?} {many:?}");
        // The fixed-sample interval at this size is 3.16 to 5.12.
        assert!((2.5..3.16).contains(&many.lower) && (5.12..6.5).contains(&many.upper), "{many:?}");
    }

    #[test]
    fn no_failures_leave_the_ratio_unknown() {
        let none = Evidence::default();
        assert_eq!(none.rate_ratio(), None);
        assert_near(none.log_e(0.1), 0.0, 1e-12);
        let interval = none.interval(0.05);
        assert_eq!((interval.lower, interval.upper), (0.0, f64::INFINITY));
        let none_in_new = evidence(0, 3, 0.01).interval(0.05);
        assert_eq!(none_in_new.lower, 0.0);
    }
}
