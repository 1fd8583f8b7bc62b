//! What came out: small runs as tests, large ones for the page.

use std::fmt;

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::crowd::{Crowd, Nature};
use crate::rollout::{
    cohort::Percentage,
    guardrail::{Counts, Demand, Tripwires},
    measure::Failure,
};

const PLAIN: Nature =
    Nature { users: 20_000, harm: 1.0, flapping: false, stuck: false, margin: 0.1 };
const STRICT: Nature = Nature { margin: 0.0, ..PLAIN };
const FLAPPING: Nature = Nature { flapping: true, ..PLAIN };
const STUCK: Nature = Nature { stuck: true, ..PLAIN };
const NATURES: [(&str, Nature); 4] =
    [("plain", PLAIN), ("flapping", FLAPPING), ("stuck", STUCK), ("no margin", STRICT)];
const STEPS: [u32; 4] = [1, 5, 25, 50];
const COMPARED: [Failure; 4] =
    [Failure::Interrupted, Failure::ConnectFailed, Failure::Dropped, Failure::Error];

/// What became of rollouts that did no harm.
#[derive(Debug, Default)]
struct Harmless {
    runs: u64,
    rolled_back: u64,
    /// Held by a signal at any look of the judge's.
    held: u64,
    /// By a textbook's test of interruptions alone, looked at as often.
    naively: u64,
}

fn percentage(percent: u32) -> Percentage {
    Percentage::of_thousandths(1_000 * percent).unwrap()
}

/// Rollouts through all steps, with so many troubles and a tenth as many deliveries at each.
fn harmless(nature: Nature, runs: u64, troubles: usize) -> Harmless {
    let mut found = Harmless { runs, ..Harmless::default() };
    for seed in 0..runs {
        let mut crowd = Crowd::new(nature, seed);
        let (mut back, mut held, mut naively) = (false, false, false);
        for (stage, percent) in STEPS.into_iter().enumerate() {
            crowd.enter(1 + stage as u64, percentage(percent));
            for number in 0..troubles {
                back |= crowd.suffer(COMPARED[number % COMPARED.len()]);
                naively |= crowd.naive_goes_back();
                crowd.receive();
                if number % 500 == 499 || number + 1 == troubles {
                    let asked = crowd.judged().0;
                    back |= asked == Demand::RollBack;
                    held |= asked == Demand::Hold;
                }
            }
        }
        found.rolled_back += u64::from(back);
        found.held += u64::from(held);
        found.naively += u64::from(naively);
    }
    found
}

/// What became of rollouts that did harm.
#[derive(Debug)]
struct Harmful {
    found: f64,
    /// Medians: users of the new arm with trouble until it was found, and of all arms.
    new: u64,
    all: u64,
}

impl fmt::Display for Harmful {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { found, new, all } = self;
        write!(f, "{:.1} % found, median {new} users of the new arm of {all}", 100.0 * found)
    }
}

fn harmful(nature: Nature, trouble: Failure, percent: u32, runs: u64, most: usize) -> Harmful {
    let mut counts = Vec::new();
    for seed in 0..runs {
        let mut crowd = Crowd::new(nature, 1_000_000 + seed);
        crowd.enter(1, percentage(percent));
        if (0..most).any(|_| crowd.suffer(trouble)) {
            let evidence = crowd.evidence(trouble);
            counts.push((evidence.new_events(), evidence.events()));
            assert_eq!(crowd.judged().0, Demand::RollBack, "the judge agrees");
        }
    }
    let found = counts.len() as f64 / runs as f64;
    // Who was never found out took longest.
    counts.resize(runs as usize, (u64::MAX, u64::MAX));
    let median = |mut counts: Vec<u64>| {
        counts.sort_unstable();
        counts[counts.len() / 2]
    };
    let new = median(counts.iter().map(|(new, _)| *new).collect());
    Harmful { found, new, all: median(counts.iter().map(|(_, all)| *all).collect()) }
}

/// How often a rate that is in order breaks the tripwire of error rates.
fn broken_by_luck(rate: f64, attempts: u64, runs: u64) -> f64 {
    let wire = Tripwires::default().error_rate;
    let broken = |seed: &u64| {
        let mut rng = StdRng::seed_from_u64(*seed);
        let mut counts = Counts::default();
        (0..attempts).any(|_| {
            counts.of += 1;
            counts.with += u64::from(rng.random_bool(rate));
            wire.is_broken_by(counts)
        })
    };
    (0..runs).filter(broken).count() as f64 / runs as f64
}

#[test]
fn harmless_rollouts_go_on() {
    let small = |nature| Nature { users: 3_000, ..nature };
    for nature in [PLAIN, FLAPPING, STUCK] {
        let found = harmless(small(nature), 12, 400);
        // With a probability of at most 0.05 each, four of twelve are one in five hundred.
        assert!(found.rolled_back < 4 && found.held < 2, "{nature:?}: {found:?}");
    }
}

#[test]
fn harm_at_one_percent_is_found() {
    let doubled = Nature { harm: 3.0, users: 8_000, ..PLAIN };
    let found = harmful(doubled, Failure::Interrupted, 1, 9, 4_000);
    assert!(found.found > 0.8 && found.new <= 30, "{found:?}");
}

#[test]
#[ignore = "takes minutes; the figures of docs/statistics.md"]
#[allow(clippy::print_stdout, reason = "the figures are its purpose")]
fn figures_of_harmless_rollouts() {
    let runs = 1_000;
    for (name, nature) in NATURES {
        let Harmless { runs, rolled_back, held, naively } = harmless(nature, runs, 4_000);
        println!("{name}: of {runs}, {rolled_back} rolled back, {held} held, textbook {naively}");
    }
}

#[test]
#[ignore = "takes minutes; the figures of docs/statistics.md"]
#[allow(clippy::print_stdout, reason = "the figures are its purpose")]
fn figures_of_harmful_rollouts() {
    let runs = 1_000;
    for (users, runs) in [(20_000, runs), (100_000, 300)] {
        for (name, nature) in NATURES {
            for trouble in [Failure::Interrupted, Failure::ConnectFailed] {
                let nature = Nature { harm: 2.0, users, ..nature };
                let found = harmful(nature, trouble, 1, runs, 20_000);
                println!("doubled at 1 % of {users} {name} {trouble:?}: {found}");
            }
        }
    }
    for percent in STEPS {
        for harm in [1.5, 2.0, 3.0, 5.0, 10.0] {
            let nature = Nature { harm, ..PLAIN };
            let found = harmful(nature, Failure::Interrupted, percent, 300, 20_000);
            println!("{harm} times as often at {percent} %: {found}");
        }
    }
    for rate in [0.001, 0.002, 0.003, 0.005, 0.0075, 0.02, 0.1] {
        let broken = broken_by_luck(rate, 20_000, 2_000);
        println!("tripwire at an error rate of {:.2} %: {broken:.4}", 100.0 * rate);
    }
}
