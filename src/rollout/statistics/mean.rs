//! Difference of two means or proportions, with an asymptotic confidence sequence.
//!
//! The formulas are those of Waudby-Smith et al. (arXiv:2103.06476v7, equations 9, 134, 155), as
//! `GrowthBook` implements them; the tests use its figures. It needs about ten failures per arm and
//! arms of similar size: at 1 % against 99 % it has no power.

use serde::{Deserialize, Serialize};

use super::Interval;

/// Number of users at which the interval is narrowest. Has to be fixed before the first look.
pub const TUNED_FOR: f64 = 5_000.0;

/// The estimated mean of one arm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    /// Number of independent units, which are users.
    pub users: f64,
    /// In the unit of the measured values; for a proportion 0 to 1.
    pub mean: f64,
    /// Variance of the estimate [`Mean::mean`] itself: the variance per user divided by the users.
    pub variance: f64,
}

impl Mean {
    /// The mean of values given by their count, sum and sum of squares; none for fewer than two.
    pub fn of_sums(users: u64, sum: f64, squares: f64) -> Option<Self> {
        let n = users as f64;
        let mean = sum / n;
        let variance = (squares - sum * mean) / (n - 1.0) / n;
        (users > 1).then_some(Self { users: n, mean, variance: variance.max(0.0) })
    }

    /// The proportion `having / users`; none for fewer than two users.
    pub fn of_proportion(having: u64, users: u64) -> Option<Self> {
        let n = users as f64;
        let mean = having as f64 / n;
        (users > 1).then_some(Self { users: n, mean, variance: mean * (1.0 - mean) / n })
    }

    /// The ratio `Σx / Σn` over groups of users `(n, x)`, by the linearised delete-a-group
    /// jackknife: the groups are independent of each other, whereas the deliveries of one user are
    /// not. None for fewer than two groups in use.
    pub fn of_groups(users: u64, groups: impl Iterator<Item = (f64, f64)> + Clone) -> Option<Self> {
        let used = groups.filter(|(n, _)| *n > 0.0);
        let number = used.clone().count() as f64;
        let (n, x) = used.clone().fold((0.0, 0.0), |sum, (n, x)| (sum.0 + n, sum.1 + x));
        let mean = x / n;
        let squares: f64 = used.map(|(n, x)| (x - mean * n).powi(2)).sum();
        let variance = squares / (n * n) * number / (number - 1.0);
        (number > 1.0).then_some(Self { users: users as f64, mean, variance })
    }

    /// The mean of the same values multiplied by `factor`.
    pub fn scaled(self, factor: f64) -> Self {
        Self { mean: self.mean * factor, variance: self.variance * factor * factor, ..self }
    }
}

/// Difference between the new and the control arm, with its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// New minus control; for a relative difference divided by the mean of control.
    pub estimate: f64,
    /// Standard error of `estimate`, in the same unit.
    pub standard_error: f64,
    users: f64,
}

impl Difference {
    /// The difference in the unit of the means.
    pub fn absolute(new: Mean, control: Mean) -> Self {
        let standard_error = (new.variance + control.variance).sqrt();
        Self { estimate: new.mean - control.mean, standard_error, users: new.users + control.users }
    }

    /// The difference relative to the mean of control, by the delta method; none if that mean is
    /// zero.
    pub fn relative(new: Mean, control: Mean) -> Option<Self> {
        let base = control.mean;
        let ratio = new.mean / base;
        let variance = (new.variance + control.variance * ratio * ratio) / (base * base);
        (base != 0.0).then_some(Self {
            estimate: ratio - 1.0,
            standard_error: variance.sqrt(),
            users: new.users + control.users,
        })
    }

    /// Two-sided confidence interval at level `alpha`, narrowest at `tuned_for` users.
    pub fn two_sided(&self, alpha: f64, tuned_for: f64) -> Interval {
        let spread = self.users * rho_squared(alpha, tuned_for);
        let log = ((spread + 1.0).sqrt() / alpha).ln();
        self.around(self.radius(spread, log))
    }

    /// Lower one-sided bound: the smallest difference that is not refuted at level `alpha`. It is
    /// harm if it exceeds the tolerated difference.
    pub fn lower(&self, alpha: f64, tuned_for: f64) -> f64 {
        self.estimate - self.one_sided_radius(alpha, tuned_for)
    }

    /// Upper one-sided bound: the largest difference that is not refuted at level `alpha`.
    pub fn upper(&self, alpha: f64, tuned_for: f64) -> f64 {
        self.estimate + self.one_sided_radius(alpha, tuned_for)
    }

    /// Two-sided p-value of "no difference", valid for all looks together. 1 without any variance.
    pub fn p_value(&self, alpha: f64, tuned_for: f64) -> f64 {
        let spread = self.users * rho_squared(alpha, tuned_for);
        let z = self.estimate / self.standard_error;
        let log = (1.0 + spread).ln() / 2.0 - z * z / 2.0 * spread / (1.0 + spread);
        if log.is_nan() { 1.0 } else { log.exp().min(1.0) }
    }

    fn one_sided_radius(&self, alpha: f64, tuned_for: f64) -> f64 {
        let spread = self.users * rho_squared(2.0 * alpha, tuned_for);
        let log = ((spread + 1.0).sqrt() / (2.0 * alpha)).ln_1p();
        self.radius(spread, log)
    }

    /// `spread` is `n ρ²`; the radius is `se √n √(2 (nρ² + 1) / (nρ)² · log)`.
    fn radius(&self, spread: f64, log: f64) -> f64 {
        self.standard_error * (2.0 * (spread + 1.0) / spread * log).sqrt()
    }

    fn around(&self, radius: f64) -> Interval {
        if radius.is_nan() {
            return Interval::ALL;
        }
        Interval { lower: self.estimate - radius, upper: self.estimate + radius }
    }
}

/// The tuning parameter `ρ²` for a level and a number of users.
fn rho_squared(alpha: f64, tuned_for: f64) -> f64 {
    let log = -2.0 * alpha.ln();
    (log + (log + 1.0).ln()) / tuned_for
}

#[cfg(test)]
mod tests {
    use super::{super::assert_near, *};

    const LEVEL: f64 = 0.05;

    fn a(users: u64) -> Mean {
        Mean::of_sums(users, 1396.87, 52_377.976_7).unwrap()
    }

    fn b() -> Mean {
        Mean::of_sums(3461, 2422.7, 134_698.29).unwrap()
    }

    #[test]
    fn differences_and_standard_errors_match_growthbook() {
        let absolute = Difference::absolute(b(), a(3407));
        assert_near(absolute.estimate, 0.29, 1e-5);
        assert_near(absolute.standard_error, 0.12478, 1e-5);
        let relative = Difference::relative(b(), a(3407)).unwrap();
        assert_near(relative.estimate, 0.70732, 1e-5);
        assert_near(relative.standard_error, 0.37879, 1e-5);
        let new = Mean::of_proportion(16, 30).unwrap();
        let proportion = Difference::relative(new, Mean::of_proportion(14, 28).unwrap()).unwrap();
        assert_near(proportion.estimate, 0.06667, 1e-5);
    }

    #[test]
    fn two_sided_intervals_match_growthbook() {
        let control = Mean::of_proportion(1396, 3000).unwrap();
        let new = Mean::of_proportion(2422, 3461).unwrap();
        let sure = Difference::relative(new, control).unwrap();
        assert_near(sure.estimate, 0.50386, 1e-5);
        assert_near(sure.standard_error, 0.03386, 1e-5);
        let interval = sure.two_sided(LEVEL, 5000.0);
        assert_near(interval.lower, 0.40098, 1e-5);
        assert_near(interval.upper, 0.60675, 1e-5);
        assert_near(sure.p_value(LEVEL, 5000.0), 0.0, 1e-5);

        let unsure = Difference::relative(b(), a(3000)).unwrap();
        assert_near(unsure.standard_error, 0.33341, 1e-5);
        let interval = unsure.two_sided(LEVEL, 1000.0);
        assert_near(interval.lower, -0.55844, 1e-5);
        assert_near(interval.upper, 1.56516, 1e-5);
        assert_near(unsure.p_value(LEVEL, 1000.0), 1.0, 1e-9);
    }

    #[test]
    fn one_sided_bounds_match_growthbook() {
        let absolute = Difference::absolute(b(), a(3000));
        assert_near(absolute.estimate, 0.234_376_666_7, 1e-9);
        assert_near(absolute.standard_error, 0.129_830_812_5, 1e-9);
        assert_near(absolute.lower(LEVEL, 5000.0), -0.126_568_441_728, 1e-9);
        assert_near(absolute.upper(LEVEL, 5000.0), 0.595_321_775_061_383_2, 1e-9);
        let relative = Difference::relative(b(), a(3000)).unwrap();
        assert_near(relative.lower(LEVEL, 5000.0), -0.423_564_546_027_908_83, 1e-9);
        assert_near(relative.upper(LEVEL, 5000.0), 1.430_286_717_740_380_6, 1e-9);
    }

    #[test]
    fn intervals_of_proportions_match_manual_calculation() {
        assert_near(rho_squared(0.05, 5000.0).sqrt(), 0.039_840_067, 1e-9);
        assert_near(rho_squared(0.10, 5000.0).sqrt(), 0.035_577_689, 1e-9);
        let examples = [
            (50, 10_000, 80, -0.000_553, 0.006_553),
            (500, 100_000, 560, -0.000_515, 0.001_715),
            (5, 1_000, 12, -0.005_815, 0.019_815),
        ];
        for (control, users, new, lower, upper) in examples {
            let new = Mean::of_proportion(new, users).unwrap();
            let control = Mean::of_proportion(control, users).unwrap();
            let interval = Difference::absolute(new, control).two_sided(LEVEL, 5000.0);
            assert_near(interval.lower, lower, 1e-6);
            assert_near(interval.upper, upper, 1e-6);
        }
    }

    #[test]
    fn half_widths_match_the_published_table() {
        let rows = [
            (1_000.0, 3.364, 3.152),
            (5_000.0, 3.035, 2.779),
            (50_000.0, 3.242, 2.989),
            (500_000.0, 3.562, 3.329),
        ];
        for (users, two_sided, one_sided) in rows {
            let unit = Difference { estimate: 0.0, standard_error: 1.0, users };
            assert_near(unit.two_sided(LEVEL, 5000.0).upper, two_sided, 1e-3);
            assert_near(unit.upper(LEVEL, 5000.0), one_sided, 1e-3);
        }
    }

    #[test]
    fn jackknife_variance_of_equal_groups_matches_the_sample_variance() {
        // 100 groups of 50 users, of which a few per group count one each: close to a binomial.
        let having = |group: u64| (group * 7_919 % 100).count_ones() as f64;
        let groups = (0..100).map(|group| (50.0, having(group)));
        let sum: f64 = (0..100).map(having).sum();
        let actual = Mean::of_groups(5_000, groups).unwrap();
        assert_near(actual.mean, sum / 5_000.0, 1e-12);
        let squares: f64 = (0..100).map(|group| having(group).powi(2)).sum();
        let expected = (squares - sum * sum / 100.0) / 99.0 * 100.0 / 5_000_f64.powi(2);
        assert_near(actual.variance, expected, 1e-12);
        assert_eq!(Mean::of_groups(9, [(0.0, 0.0), (5.0, 1.0)].into_iter()), None);
    }

    #[test]
    fn arms_without_variance_show_no_difference() {
        assert_eq!(Mean::of_proportion(0, 1), None);
        let constant = Mean::of_proportion(0, 100).unwrap();
        let difference = Difference::absolute(constant, constant);
        assert!(difference.lower(LEVEL, TUNED_FOR) <= 0.0);
        assert_near(difference.p_value(LEVEL, TUNED_FOR), 1.0, 0.0);
        assert_eq!(Difference::relative(constant, constant), None);
    }
}
