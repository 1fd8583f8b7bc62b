//! What a target's rounds came to.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Serialize, Serializer, ser::SerializeStruct as _};

use crate::verify::Tally;

/// One target's.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) target: String,
    /// Before the first round.
    pub(super) warm_up: Tally,
    pub(super) rounds: Vec<Round>,
    /// Nanoseconds.
    pub(super) latency: Histogram<u64>,
}

/// One round's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Round {
    pub(super) wall: Duration,
    pub(super) cpu: Duration,
    pub(super) tally: Tally,
}

impl Round {
    fn cpu_us_each(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.tally.deliveries.max(1) as f64
    }

    fn per_second(&self) -> f64 {
        self.tally.deliveries as f64 / self.wall.as_secs_f64()
    }
}

/// The middle of several figures, and the outermost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) lowest: f64,
    pub(super) highest: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            1 => at(middle),
            _ => f64::midpoint(at(middle.wrapping_sub(1)), at(middle)),
        };
        Self { median, lowest: at(0), highest: at(values.len().wrapping_sub(1)) }
    }

    /// Round by round, because the machine's speed changes between them.
    pub(super) fn of_ratios(costs: &[f64], limit: &[f64]) -> Self {
        Self::of(costs.iter().zip(limit).map(|(cost, limit)| cost / limit).collect())
    }
}

impl Figures {
    pub(super) fn new(target: &str) -> anyhow::Result<Self> {
        // Two digits, from a microsecond to a minute.
        let latency = Histogram::new_with_bounds(1_000, 60_000_000_000, 2)?;
        Ok(Self {
            target: target.to_owned(),
            warm_up: Tally::default(),
            rounds: Vec::new(),
            latency,
        })
    }

    /// CPU for a delivery, in µs, round by round.
    pub(super) fn costs(&self) -> Vec<f64> {
        self.rounds.iter().map(Round::cpu_us_each).collect()
    }

    pub(super) fn tally(&self) -> Tally {
        let mut all = Tally { deliveries: 0, bytes: 0, ..self.warm_up };
        self.rounds.iter().for_each(|round| all += round.tally);
        all
    }

    fn per_second(&self) -> Spread {
        Spread::of(self.rounds.iter().map(Round::per_second).collect())
    }

    fn latency_ms(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1e6
    }

    fn bytes_each(&self) -> f64 {
        let tally = self.tally();
        tally.bytes as f64 / tally.deliveries.max(1) as f64
    }

    pub(super) fn row(&self, ratio: Option<Spread>) -> [String; 13] {
        let tally = self.tally();
        let ratio_of =
            |part: fn(Spread) -> f64| ratio.map_or("–".to_owned(), |r| format!("{:.2}", part(r)));
        [
            self.target.clone(),
            format!("{:.0}", self.per_second().median),
            format!("{:.3}", Spread::of(self.costs()).median),
            ratio_of(|ratio| ratio.median),
            ratio_of(|ratio| ratio.lowest),
            ratio_of(|ratio| ratio.highest),
            format!("{:.0}", self.bytes_each()),
            format!("{:.2}", self.latency_ms(0.5)),
            format!("{:.2}", self.latency_ms(0.99)),
            format!("{:.2}", self.latency_ms(1.0)),
            tally.lost.to_string(),
            tally.doubled.to_string(),
            tally.reordered.to_string(),
        ]
    }

    /// What a check finds wrong.
    pub(super) fn complaints(&self, ratio: Option<Spread>, max_ratio: Option<f64>) -> Vec<String> {
        let mut complaints: Vec<String> = self.tally().complaint().into_iter().collect();
        if let (Some(ratio), Some(max)) = (ratio, max_ratio)
            && max < ratio.median
        {
            complaints.push(format!("{:.2} times the limit's CPU, {max} allowed", ratio.median));
        }
        complaints.into_iter().map(|what| format!("{}: {what}", self.target)).collect()
    }
}

impl Serialize for Figures {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Figures", 9)?;
        fields.serialize_field("target", &self.target)?;
        fields.serialize_field("deliveries_per_second", &self.per_second())?;
        fields.serialize_field("cpu_us_each", &Spread::of(self.costs()))?;
        fields.serialize_field("cpu_us_each_by_round", &self.costs())?;
        fields.serialize_field("bytes_each", &self.bytes_each())?;
        fields.serialize_field("p50_ms", &self.latency_ms(0.5))?;
        fields.serialize_field("p99_ms", &self.latency_ms(0.99))?;
        fields.serialize_field("max_ms", &self.latency_ms(1.0))?;
        fields.serialize_field("tally", &self.tally())?;
        fields.end()
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
