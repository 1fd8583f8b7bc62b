//! Sample ratio mismatch: whether the arms have their planned sizes.
//!
//! If they do not, users were lost before they were counted and no comparison can be trusted. The
//! sequential test is the Bayes factor of a Dirichlet-multinomial against the planned shares
//! (Optimizely's ssrm), averaged over three strengths of the prior so that it reacts quickly for
//! small and for large numbers. It can be evaluated at any time; chi square only once.

use libm::{erfc, lgamma};

use super::log_sum_exp;

/// Strengths of the prior around the planned shares.
const STRENGTHS: [f64; 3] = [100.0, 1_000.0, 10_000.0];

/// The natural logarithm of the Bayes factor against the planned shares (positive, adding to 1).
/// At `ln(1/α)` they are refuted at level `α` by all looks together. Counts may be fractional after
/// division by their [`dispersion`].
pub fn log_bayes_factor(counts: &[f64], shares: &[f64]) -> f64 {
    let each = STRENGTHS.iter().map(|strength| log_bayes_factor_at(*strength, counts, shares));
    log_sum_exp(each) - (STRENGTHS.len() as f64).ln()
}

fn log_bayes_factor_at(strength: f64, counts: &[f64], shares: &[f64]) -> f64 {
    let all: f64 = counts.iter().sum();
    let terms = counts.iter().zip(shares).map(|(count, share)| {
        lgamma(strength * share + count) - lgamma(strength * share) - count * share.ln()
    });
    lgamma(strength) - lgamma(strength + all) + terms.sum::<f64>()
}

/// Chi square of two or three counts against their planned shares, and its p-value for a single
/// look; none for another number of counts or if all are zero.
pub fn chi_square(counts: &[f64], shares: &[f64]) -> Option<(f64, f64)> {
    let all: f64 = counts.iter().sum();
    let square = |(count, share): (&f64, &f64)| (count - all * share).powi(2) / (all * share);
    let chi: f64 = counts.iter().zip(shares).map(square).sum();
    let p = match counts.len() {
        2 => erfc((chi / 2.0).sqrt()),
        3 => (-chi / 2.0).exp(),
        _ => return None,
    };
    (all > 0.0).then_some((chi, p))
}

/// Overdispersion of two counts over groups, at least 1: how many times as much they vary as if
/// every user were counted once. A user seen by several nodes is counted by each and looks like
/// several users.
pub fn dispersion(groups: impl Iterator<Item = (f64, f64)> + Clone) -> f64 {
    let used = groups.filter(|(one, other)| one + other > 0.0);
    let number = used.clone().count() as f64;
    let (one, other) = used.clone().fold((0.0, 0.0), |sum, (x, y)| (sum.0 + x, sum.1 + y));
    let share = one / (one + other);
    let square = |(x, y): (f64, f64)| {
        let all = x + y;
        (x - share * all).powi(2) / (all * share * (1.0 - share))
    };
    let dispersion = used.map(square).sum::<f64>() / (number - 1.0);
    if dispersion.is_finite() { dispersion.max(1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::{super::assert_near, *};

    const EVEN: [f64; 2] = [0.5, 0.5];

    #[test]
    fn chi_square_matches_published_values() {
        let third = [1.0 / 3.0; 3];
        let cases: [(&[f64], &[f64], f64, f64); 7] = [
            (&[502.0, 498.0], &EVEN, 0.016, 0.8993),
            (&[600.0, 400.0], &EVEN, 40.0, 2.54e-10),
            (&[9463.0, 7681.0], &EVEN, 185.23, 3.5e-42),
            (&[821_588.0, 815_482.0], &EVEN, 22.774, 1.82e-6),
            (&[1_003_000.0, 997_000.0], &EVEN, 18.0, 2.209e-5),
            (&[166_080.0, 171_180.0, 166_300.0], &third, 99.04, 3.1e-22),
            (&[1_150.0, 98_850.0], &[0.01, 0.99], 22.727, 1.87e-6),
        ];
        for (counts, shares, chi, p) in cases {
            let (actual_chi, actual_p) = chi_square(counts, shares).unwrap();
            assert_near(actual_chi, chi, 0.005);
            assert_near(actual_p / p, 1.0, 0.02);
        }
        assert_eq!(chi_square(&[0.0, 0.0], &EVEN), None);
    }

    #[test]
    fn bayes_factors_match_calculated_values() {
        let small = [600.0, 400.0];
        assert_near(log_bayes_factor_at(1e4, &small, &EVEN), 1.77, 0.005);
        assert_near(log_bayes_factor_at(1e3, &small, &EVEN), 9.68, 0.005);
        assert_near(log_bayes_factor_at(1e2, &small, &EVEN), 17.10, 0.005);
        let large = [50_500.0, 49_500.0];
        assert_near(log_bayes_factor_at(1e4, &large, &EVEN), 3.35, 0.005);
        assert_near(log_bayes_factor_at(1e3, &large, &EVEN), 2.64, 0.005);
        assert_near(log_bayes_factor_at(1e2, &large, &EVEN), 1.54, 0.005);
        assert_near(log_bayes_factor(&small, &EVEN), 17.10 - 3_f64.ln(), 0.01);
        assert_near(log_bayes_factor(&[0.0, 0.0], &EVEN), 0.0, 1e-9);
    }

    /// Optimizely's published run. Its prior is 1 per arm and so not a multiple of the shares.
    #[test]
    fn published_batches_are_reproduced() {
        let shares = [0.4_f64, 0.4, 0.2];
        let batches = [[20.0, 17.0, 9.0], [18.0, 21.0, 8.0], [4.0, 6.0, 4.0], [18.0, 19.0, 11.0]];
        let alternative = [-7.028_201_432_058, -11.947_847_738_359, -15.471_401_950_258];
        let null = [-4.077_640_646_606, -8.265_946_861_100, -11.610_743_519_545];
        let last = (-19.964_845_210_904, -15.781_031_228_536);
        let mut counts = [0.0; 3];
        // Both are probabilities of the batches; their multinomial coefficients cancel in the
        // ratio.
        let mut coefficients = 0.0;
        let rows = alternative.into_iter().zip(null).chain([last]);
        for (batch, (alternative, null)) in batches.iter().zip(rows) {
            let size: f64 = batch.iter().sum();
            coefficients += lgamma(size + 1.0) - batch.iter().map(|n| lgamma(n + 1.0)).sum::<f64>();
            counts.iter_mut().zip(batch).for_each(|(count, more)| *count += more);
            let all: f64 = counts.iter().sum();
            let terms: f64 = counts.iter().map(|count| lgamma(1.0 + count)).sum();
            let actual = lgamma(3.0) - lgamma(3.0 + all) + terms + coefficients;
            assert_near(actual, alternative, 1e-9);
            let plain: f64 = counts.iter().zip(shares).map(|(n, share)| n * share.ln()).sum();
            assert_near(plain + coefficients, null, 1e-9);
        }
    }

    #[test]
    fn users_counted_twice_double_the_dispersion() {
        // Two hundred groups of ten users; the number in the new arm is pseudo-random like ten coin
        // flips.
        let heads =
            |group: u32| f64::from((group.wrapping_mul(2_654_435_761) >> 20 & 0x3ff).count_ones());
        let once = (0..200).map(|group| (heads(group), 10.0 - heads(group)));
        let twice = once.clone().map(|(new, control)| (2.0 * new, 2.0 * control));
        let single = dispersion(once);
        assert!((1.0..1.4).contains(&single), "{single}");
        assert!((1.6..2.8).contains(&dispersion(twice)));
        assert_near(dispersion([(0.0, 0.0)].into_iter()), 1.0, 0.0);
    }
}
