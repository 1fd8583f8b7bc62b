//! Whether troubles happen to users of the new arm more often than its size explains.
//!
//! A count e-process. Of each trouble only this is used: whether its user was in the new arm, and
//! the share `w` of the new arm among the users it could have happened to. If the new arm's rate is
//! `q` times the other's, the user is a new one with probability `qw / (1 + (q - 1) w)`. The ratio
//! of two such likelihoods is a bet against the null hypothesis: it grows beyond `1/α` with a
//! probability of at most `α`, at any percentage and with a look after every event (Lindon and
//! Malek, Anytime-Valid Inference for Multinomial Count Data, arXiv:2011.03567; Ville's
//! inequality).
//!
//! The log-likelihood of a ratio `q` is `S ln q - D(q)`, `S` the troubles of new users and
//! `D(q) = Σ ln(1 + (q - 1) w)`. `D` is kept at 32 Chebyshev points of `ln q`, and interpolated
//! between them to within 1e-10 per trouble. So evidence is a few sums that add over nodes, and
//! margin, α and interval are chosen by whoever looks.

use std::{array, f64::consts::PI, iter, sync::LazyLock};

use serde::{Deserialize, Serialize};

use super::{Interval, last_where, log_sum};

/// How many times as frequent troubles may be in the bets against the null hypothesis; each has a
/// seventh of the stake.
const BETS: [f64; 7] = [1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0];

/// The largest rate ratio there is a likelihood for; the smallest is its inverse.
pub const LARGEST_RATIO: f64 = 32.0;

/// The largest margin for which all bets have a likelihood.
pub const LARGEST_MARGIN: f64 = 2.0;

const POINTS: usize = 32;

/// What the troubles of one kind say. Adding two is the evidence of both.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    events: u64,
    new_events: u64,
    depth: [f64; POINTS],
}

impl Evidence {
    /// One trouble: whether its user is in the new arm, and the new arm's share (0 to 1) of the
    /// users it could have happened to, that user included. A trouble that was impossible by its
    /// share is not counted, and says false.
    pub fn observe(&mut self, in_new: bool, share: f64) -> bool {
        let possible =
            if in_new { share > 0.0 && share <= 1.0 } else { (0.0..1.0).contains(&share) };
        if !possible {
            return false;
        }
        self.events += 1;
        self.new_events += u64::from(in_new);
        for (depth, point) in self.depth.iter_mut().zip(&*CHEBYSHEV) {
            *depth += (share * point.log_ratio.exp_m1()).ln_1p();
        }
        true
    }

    /// Adds what another node, or an earlier stage, has seen.
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.new_events += other.new_events;
        for (depth, more) in self.depth.iter_mut().zip(other.depth) {
            *depth += more;
        }
    }

    /// Troubles in both arms.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Troubles of users in the new arm.
    pub fn new_events(&self) -> u64 {
        self.new_events
    }

    /// Whether the sums can have come from troubles; what a store hands out is checked.
    pub fn is_sound(&self) -> bool {
        let limit = self.events as f64 * LARGEST_RATIO.ln() * 1.01 + 1e-6;
        self.new_events <= self.events && self.depth.iter().all(|depth| depth.abs() <= limit)
    }

    /// The natural logarithm of the e-value against "the new arm's rate is at most `1 + margin`
    /// times the other's". At `ln(1/α)` that is refuted at level α. `margin` lies between 0 and
    /// [`LARGEST_MARGIN`].
    pub fn log_e(&self, margin: f64) -> f64 {
        let null = margin.clamp(0.0, LARGEST_MARGIN).ln_1p();
        let bets = BETS.iter().map(|bet| self.log_likelihood(null + bet.ln()));
        log_sum(bets) - (BETS.len() as f64).ln() - self.log_likelihood(null)
    }

    /// The rate ratio that explains the troubles best; none without any. At the ends of the range,
    /// the end.
    pub fn rate_ratio(&self) -> Option<f64> {
        (self.events > 0).then(|| self.peak().exp())
    }

    /// The rate ratios that are not refuted at level `alpha`, by all looks together: a confidence
    /// sequence by inversion, with alternatives spread around 1 as a normal distribution of
    /// `ln q`, standard deviation 1.
    pub fn interval(&self, alpha: f64) -> Interval {
        let end = LARGEST_RATIO.ln();
        let steps = 200;
        let stakes: Vec<_> = (0..=steps)
            .map(|step| end * (2.0 * f64::from(step) / f64::from(steps) - 1.0))
            .map(|at| (at, -at * at / 2.0))
            .collect();
        let whole = log_sum(stakes.iter().map(|(_, stake)| *stake));
        let mixture = log_sum(stakes.iter().map(|(at, stake)| stake + self.log_likelihood(*at)));
        let least = mixture - whole + alpha.ln();
        let holds = |at: f64| self.log_likelihood(at) > least;
        let peak = self.peak();
        let lower = if holds(-end) { 0.0 } else { last_where(peak, -end, holds).exp() };
        let upper = if holds(end) { f64::INFINITY } else { last_where(peak, end, holds).exp() };
        Interval { lower, upper }
    }

    /// Where the log-likelihood, which is concave, is largest.
    fn peak(&self) -> f64 {
        let (mut low, mut high) = (-LARGEST_RATIO.ln(), LARGEST_RATIO.ln());
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

    /// The log-likelihood of a rate ratio given as its logarithm, against the ratio 1.
    fn log_likelihood(&self, log_ratio: f64) -> f64 {
        self.new_events as f64 * log_ratio - self.depth_at(log_ratio)
    }

    /// Barycentric interpolation at Chebyshev points of the first kind.
    fn depth_at(&self, log_ratio: f64) -> f64 {
        let (mut above, mut below) = (0.0, 0.0);
        for (depth, point) in self.depth.iter().zip(&*CHEBYSHEV) {
            let distance = log_ratio - point.log_ratio;
            if distance.abs() < 1e-14 {
                return *depth;
            }
            let weight = point.weight / distance;
            above += weight * depth;
            below += weight;
        }
        above / below
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
    /// In barycentric interpolation.
    weight: f64,
}

static CHEBYSHEV: LazyLock<[Point; POINTS]> = LazyLock::new(|| {
    array::from_fn(|index| {
        let angle = PI * (2 * index + 1) as f64 / (2 * POINTS) as f64;
        let sign = if index.is_multiple_of(2) { 1.0 } else { -1.0 };
        Point { log_ratio: LARGEST_RATIO.ln() * angle.cos(), weight: sign * angle.sin() }
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
    fn the_worked_examples_come_out() {
        let examples = [
            (30, 40, 0.5, [2.4786, 7.2644, 25.4881, 97.1068, 187.2569, 76.6037, 2.4294], 56.947),
            (5, 20, 0.05, [1.4576, 2.3804, 4.6342, 12.0605, 36.1204, 81.5127, 59.2434], 28.2013),
        ];
        for (new, all, share, singles, mixture) in examples {
            let evidence = evidence(new, all, share);
            for (bet, expected) in BETS.iter().zip(singles) {
                let found = evidence.log_likelihood(bet.ln()) - evidence.log_likelihood(0.0);
                assert_near(found.exp(), expected, 1e-4);
            }
            assert_near(evidence.log_e(0.0).exp(), mixture, 1e-3);
        }
        assert_near(evidence(1, 20, 0.05).log_e(0.0).exp(), 0.6031, 1e-4);
    }

    #[test]
    fn a_margin_is_the_share_of_an_arm_that_is_so_much_worse() {
        let (margin, share) = (0.1, 0.2);
        let shifted = (1.0 + margin) * share / (1.0 + margin * share);
        let expected = evidence(12, 30, shifted).log_e(0.0);
        assert_near(evidence(12, 30, share).log_e(margin), expected, 1e-8);
    }

    #[test]
    fn between_its_points_the_depth_is_right() {
        let mut evidence = Evidence::default();
        let shares = [1e-6, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.99, 0.999_999];
        shares.iter().for_each(|share| assert!(evidence.observe(true, *share)));
        for step in -200..=200 {
            let at = LARGEST_RATIO.ln() * f64::from(step) / 200.0;
            let exact: f64 = shares.iter().map(|share| (share * at.exp_m1()).ln_1p()).sum();
            assert_near(evidence.depth_at(at), exact, 1e-9);
        }
    }

    #[test]
    fn evidence_adds_in_any_order() {
        let parts = [evidence(3, 9, 0.1), evidence(1, 4, 0.5), evidence(0, 7, 0.01)];
        let there: Evidence = parts.iter().cloned().sum();
        let back: Evidence = parts.iter().rev().cloned().sum();
        assert_eq!((there.events(), there.new_events()), (20, 4));
        assert_near(there.log_e(0.1), back.log_e(0.1), 1e-9);
        let written = serde_json::to_string(&there).unwrap();
        let read: Evidence = serde_json::from_str(&written).unwrap();
        assert_near(read.log_e(0.1), there.log_e(0.1), 1e-9);
        assert!(there.is_sound());
    }

    #[test]
    fn what_is_impossible_is_not_counted() {
        let mut evidence = Evidence::default();
        for (in_new, share) in [(true, 0.0), (false, 1.0), (true, 1.1), (false, -0.1)] {
            assert!(!evidence.observe(in_new, share));
        }
        assert!(!evidence.observe(true, f64::NAN) && !evidence.observe(false, f64::NAN));
        assert!(evidence.observe(true, 1.0), "with nobody to compare with it says nothing");
        assert_near(evidence.log_e(0.0), 0.0, 1e-9);
        let forged = Evidence { events: 1, new_events: 1, depth: [-100.0; POINTS] };
        assert!(!forged.is_sound());
    }

    #[test]
    fn the_interval_holds_the_ratio_and_narrows() {
        // Four times as many from arms of one size.
        let few = evidence(20, 25, 0.5);
        let many = evidence(320, 400, 0.5);
        for evidence in [&few, &many] {
            assert_near(evidence.rate_ratio().unwrap(), 4.0, 1e-4);
            let interval = evidence.interval(0.05);
            assert!(interval.contains(4.0) && !interval.contains(1.0), "{interval:?}");
        }
        let (few, many) = (few.interval(0.05), many.interval(0.05));
        assert!(few.lower < many.lower && many.upper < few.upper, "{few:?} {many:?}");
        // At that size the fixed-sample interval is 3.16 to 5.12.
        assert!((2.5..3.16).contains(&many.lower) && (5.12..6.5).contains(&many.upper), "{many:?}");
    }

    #[test]
    fn without_troubles_nothing_is_known() {
        let none = Evidence::default();
        assert_eq!(none.rate_ratio(), None);
        assert_near(none.log_e(0.1), 0.0, 1e-12);
        let interval = none.interval(0.05);
        assert_eq!((interval.lower, interval.upper), (0.0, f64::INFINITY));
        let none_in_new = evidence(0, 3, 0.01).interval(0.05);
        assert_eq!(none_in_new.lower, 0.0);
    }
}
