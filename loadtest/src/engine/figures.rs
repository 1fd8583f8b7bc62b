//! What a target's turns came to.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::sampler::{Sample, histogram};
use crate::verify::Tally;

/// One target's.
#[derive(Debug)]
pub struct Figures {
    /// Whose.
    pub target: String,
    /// Before the first turn.
    pub warm_up: Tally,
    /// Turn by turn.
    pub turns: Vec<Turn>,
    /// From when an event was due until a subscriber read it, in nanoseconds.
    pub latency: Histogram<u64>,
    /// From when an event was due until its publisher was answered.
    pub answers: Histogram<u64>,
    /// Moment by moment.
    pub samples: Vec<Sample>,
}

/// One turn's.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// How long it took.
    pub wall: Duration,
    /// What the server spent.
    pub cpu: Duration,
    /// Events published.
    pub published: u64,
    /// What was delivered, and what went wrong.
    pub tally: Tally,
    /// The middle latency.
    pub p50_ms: f64,
    /// That which one in a hundred is above.
    pub p99_ms: f64,
}

impl Turn {
    fn cpu_us_each(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.tally.deliveries.max(1) as f64
    }

    fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.wall.as_secs_f64()
    }
}

/// The middle of several figures, and the outermost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The lowest.
    pub lowest: f64,
    /// The highest.
    pub highest: f64,
}

impl Spread {
    /// Of some figures.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            1 => at(middle),
            _ => f64::midpoint(at(middle.wrapping_sub(1)), at(middle)),
        };
        Self { median, lowest: at(0), highest: at(values.len().wrapping_sub(1)) }
    }

    /// Turn by turn, because the machine's speed changes between them.
    pub fn of_ratios(ours: &[f64], theirs: &[f64]) -> Self {
        Self::of(ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect())
    }
}

impl Figures {
    /// None yet.
    pub fn new(target: &str) -> Self {
        Self {
            target: target.to_owned(),
            warm_up: Tally::default(),
            turns: Vec::new(),
            latency: histogram(),
            answers: histogram(),
            samples: Vec::new(),
        }
    }

    /// A figure turn by turn.
    pub fn by_turn(&self, figure: impl Fn(&Turn) -> f64) -> Vec<f64> {
        self.turns.iter().map(figure).collect()
    }

    /// CPU for a delivery, in µs, turn by turn.
    pub fn costs(&self) -> Vec<f64> {
        self.by_turn(Turn::cpu_us_each)
    }

    /// All that was delivered in the turns, and all that went wrong.
    pub fn tally(&self) -> Tally {
        let mut all = Tally { deliveries: 0, bytes: 0, ..self.warm_up };
        self.turns.iter().for_each(|turn| all += turn.tally);
        all
    }

    /// Deliveries a second.
    pub fn per_second(&self) -> Spread {
        Spread::of(self.by_turn(|turn| turn.per_second(turn.tally.deliveries)))
    }

    /// Events published a second.
    pub fn published_per_second(&self) -> Spread {
        Spread::of(self.by_turn(|turn| turn.per_second(turn.published)))
    }

    /// A latency in milliseconds.
    pub fn latency_ms(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1e6
    }

    /// How long publishers waited, in milliseconds.
    pub fn answer_ms(&self, quantile: f64) -> f64 {
        self.answers.value_at_quantile(quantile) as f64 / 1e6
    }

    /// Bytes read for a delivery.
    pub fn bytes_each(&self) -> f64 {
        let tally = self.tally();
        tally.bytes as f64 / tally.deliveries.max(1) as f64
    }

    /// The most memory that was seen.
    pub fn peak_mb(&self) -> f64 {
        self.samples.iter().map(|sample| sample.resident_mb).fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_its_median_in_the_middle() {
        let spread = |values: &[f64]| Spread::of(values.to_vec());
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Spread { median: 2.0, lowest: 1.0, highest: 3.0 });
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(Spread::of_ratios(&[2.0, 9.0, 3.0], &[1.0, 3.0, 2.0]).median, 2.0);
    }
}
