//! Simulation runs: small ones as tests, large ones for the figures in docs/statistics.md.

use std::fmt;

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::population::{Population, Profile};
use crate::rollout::{
    cohort::Percentage,
    guardrail::{Counts, Demand, Tripwires},
    measure::Failure,
};

const PLAIN: Profile =
    Profile { users: 20_000, harm: 1.0, flapping: false, stuck: false, margin: 0.1 };
const STRICT: Profile = Profile { margin: 0.0, ..PLAIN };
const FLAPPING: Profile = Profile { flapping: true, ..PLAIN };
const STUCK: Profile = Profile { stuck: true, ..PLAIN };
const PROFILES: [(&str, Profile); 4] =
    [("plain", PLAIN), ("flapping", FLAPPING), ("stuck", STUCK), ("no margin", STRICT)];
const STEPS: [u32; 4] = [1, 5, 25, 50];
const COMPARED: [Failure; 4] =
    [Failure::Interrupted, Failure::ConnectFailed, Failure::Dropped, Failure::RequestFailed];

/// Outcomes of rollouts without harm.
#[derive(Debug, Default)]
struct HarmlessRuns {
    runs: u64,
    rolled_back: u64,
    /// Held by a signal at any evaluation.
    held: u64,
    /// Rolled back by the naive test of interruptions, evaluated equally often.
    naive: u64,
}

fn percentage(percent: u32) -> Percentage {
    Percentage::of_thousandths(1_000 * percent).unwrap()
}

/// Runs rollouts through all steps, with `failures` failures and as many deliveries in each step.
fn harmless(profile: Profile, runs: u64, failures: usize) -> HarmlessRuns {
    let mut outcome = HarmlessRuns { runs, ..HarmlessRuns::default() };
    for seed in 0..runs {
        let mut population = Population::new(profile, seed);
        let (mut rolled_back, mut held, mut naive) = (false, false, false);
        for (stage, percent) in STEPS.into_iter().enumerate() {
            population.set_percentage(1 + stage as u64, percentage(percent));
            for number in 0..failures {
                rolled_back |= population.fail_random_user(COMPARED[number % COMPARED.len()]);
                naive |= population.naive_test_rolls_back();
                population.deliver_to_random_user();
                if number % 500 == 499 || number + 1 == failures {
                    let demand = population.evaluate().0;
                    rolled_back |= demand == Demand::RollBack;
                    held |= demand == Demand::Hold;
                }
            }
        }
        outcome.rolled_back += u64::from(rolled_back);
        outcome.held += u64::from(held);
        outcome.naive += u64::from(naive);
    }
    outcome
}

/// Outcomes of rollouts with harm.
#[derive(Debug)]
struct HarmfulRuns {
    /// Share of runs in which the harm was detected.
    detected: f64,
    /// Median number of affected users until detection: in the new arm, and in all arms.
    new: u64,
    all: u64,
}

impl fmt::Display for HarmfulRuns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { detected, new, all } = self;
        write!(f, "{:.1} % detected, median {new} users of the new arm of {all}", 100.0 * detected)
    }
}

fn harmful(
    profile: Profile,
    failure: Failure,
    percent: u32,
    runs: u64,
    max_failures: usize,
) -> HarmfulRuns {
    let mut counts = Vec::new();
    for seed in 0..runs {
        let mut population = Population::new(profile, 1_000_000 + seed);
        population.set_percentage(1, percentage(percent));
        if (0..max_failures).any(|_| population.fail_random_user(failure)) {
            let evidence = population.evidence(failure);
            counts.push((evidence.new_events(), evidence.events()));
            let demand = population.evaluate().0;
            assert_eq!(demand, Demand::RollBack, "all guardrails together demand the same");
        }
    }
    let detected = counts.len() as f64 / runs as f64;
    // Undetected runs count as the longest.
    counts.resize(runs as usize, (u64::MAX, u64::MAX));
    let median = |mut counts: Vec<u64>| {
        counts.sort_unstable();
        counts[counts.len() / 2]
    };
    let new = median(counts.iter().map(|(new, _)| *new).collect());
    HarmfulRuns { detected, new, all: median(counts.iter().map(|(_, all)| *all).collect()) }
}

/// How often a given failure rate violates the error rate tripwire by chance.
fn false_violation_rate(rate: f64, attempts: u64, runs: u64) -> f64 {
    let tripwire = Tripwires::default().error_rate;
    let violated = |seed: &u64| {
        let mut rng = StdRng::seed_from_u64(*seed);
        let mut counts = Counts::default();
        (0..attempts).any(|_| {
            counts.total += 1;
            counts.affected += u64::from(rng.random_bool(rate));
            tripwire.is_violated_by(counts)
        })
    };
    (0..runs).filter(violated).count() as f64 / runs as f64
}

#[test]
fn harmless_rollouts_are_rarely_rolled_back() {
    let small = |profile| Profile { users: 3_000, ..profile };
    for profile in [PLAIN, FLAPPING, STUCK] {
        let outcome = harmless(small(profile), 12, 400);
        // At a probability of at most 0.05 each, four of twelve happen once in five hundred tests.
        assert!(outcome.rolled_back < 4 && outcome.held < 2, "{profile:?}: {outcome:?}");
    }
}

#[test]
fn harm_at_one_percent_is_detected() {
    let tripled = Profile { harm: 3.0, users: 8_000, ..PLAIN };
    let outcome = harmful(tripled, Failure::Interrupted, 1, 9, 4_000);
    assert!(outcome.detected > 0.8 && outcome.new <= 30, "{outcome:?}");
}

#[test]
#[ignore = "takes minutes; prints the figures of docs/statistics.md"]
#[allow(clippy::print_stdout, reason = "the figures are its purpose")]
fn figures_of_harmless_rollouts() {
    let runs = 1_000;
    for (name, profile) in PROFILES {
        let HarmlessRuns { runs, rolled_back, held, naive } = harmless(profile, runs, 4_000);
        println!("{name}: of {runs}, {rolled_back} rolled back, {held} held, textbook {naive}");
    }
}

#[test]
#[ignore = "takes minutes; prints the figures of docs/statistics.md"]
#[allow(clippy::print_stdout, reason = "the figures are its purpose")]
fn figures_of_harmful_rollouts() {
    let runs = 1_000;
    for (users, runs) in [(20_000, runs), (100_000, 300)] {
        for (name, profile) in PROFILES {
            for failure in [Failure::Interrupted, Failure::ConnectFailed] {
                let profile = Profile { harm: 2.0, users, ..profile };
                let outcome = harmful(profile, failure, 1, runs, 20_000);
                println!("doubled at 1 % of {users} {name} {failure:?}: {outcome}");
            }
        }
    }
    for percent in STEPS {
        for harm in [1.5, 2.0, 3.0, 5.0, 10.0] {
            let profile = Profile { harm, ..PLAIN };
            let outcome = harmful(profile, Failure::Interrupted, percent, 300, 20_000);
            println!("{harm} times as often at {percent} %: {outcome}");
        }
    }
    for rate in [0.001, 0.002, 0.003, 0.005, 0.0075, 0.02, 0.1] {
        let violated = false_violation_rate(rate, 20_000, 2_000);
        println!("tripwire at an error rate of {:.2} %: {violated:.4}", 100.0 * rate);
    }
}
