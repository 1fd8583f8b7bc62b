//! What happened from moment to moment, for charts.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::measure::Process;

/// One moment; rates and latencies are of the time since the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Seconds of the target's own turns.
    pub at: f64,
    /// Deliveries a second.
    pub deliveries: f64,
    /// Events published a second.
    pub published: f64,
    /// The middle latency.
    pub p50_ms: f64,
    /// That which one in a hundred is above.
    pub p99_ms: f64,
    /// CPUs that the server kept busy.
    pub cpus: f64,
    /// Its resident memory.
    pub resident_mb: f64,
    /// Who is subscribed.
    pub subscribed: u64,
}

impl Sample {
    /// Neighbours as one: the mean of what flowed, the worst of what was suffered.
    fn merged(parts: &[Self]) -> Self {
        let mean = |of: fn(&Self) -> f64| parts.iter().map(of).sum::<f64>() / parts.len() as f64;
        let most = |of: fn(&Self) -> f64| parts.iter().map(of).fold(0.0, f64::max);
        let last = parts.last().copied().unwrap_or_default();
        Self {
            deliveries: mean(|one| one.deliveries),
            published: mean(|one| one.published),
            p50_ms: mean(|one| one.p50_ms),
            p99_ms: most(|one| one.p99_ms),
            cpus: mean(|one| one.cpus),
            resident_mb: most(|one| one.resident_mb),
            ..last
        }
    }
}

/// Takes samples.
#[derive(Debug)]
pub struct Sampler {
    every: u64,
    /// The own time of turns before this one.
    before: u64,
    last: u64,
    last_cpu: f64,
    deliveries: u64,
    published: u64,
    latency: Histogram<u64>,
    samples: Vec<Sample>,
}

/// A chart of more would show no more: they are merged two by two then.
const MOST: usize = 600;

/// Nanoseconds between two samples, until they are merged.
const SHORTEST: u64 = 50_000_000;

/// Nanoseconds from a microsecond to ten minutes, to two digits.
pub fn histogram() -> Histogram<u64> {
    // The bounds are constants that are in order.
    Histogram::new_with_bounds(1_000, 600_000_000_000, 2).unwrap_or_else(|_| unreachable!())
}

impl Default for Sampler {
    fn default() -> Self {
        Self::new()
    }
}

impl Sampler {
    /// One with nothing seen.
    pub fn new() -> Self {
        Self {
            every: SHORTEST,
            before: 0,
            last: 0,
            last_cpu: 0.0,
            deliveries: 0,
            published: 0,
            latency: histogram(),
            samples: Vec::new(),
        }
    }

    /// A turn begins.
    ///
    /// # Errors
    /// When the server has ended.
    pub fn begin(&mut self, process: Process, now: u64) -> anyhow::Result<()> {
        self.last = now;
        self.last_cpu = process.cpu()?.as_secs_f64();
        Ok(())
    }

    /// An event was delivered.
    pub fn delivered(&mut self, age: u64) {
        self.deliveries += 1;
        self.latency.saturating_record(age);
    }

    /// Events were published.
    pub fn published(&mut self, count: u64) {
        self.published += count;
    }

    /// Takes a sample if it is time to.
    ///
    /// # Errors
    /// When the server has ended.
    pub fn look(&mut self, process: Process, now: u64, subscribed: u64) -> anyhow::Result<()> {
        if now < self.last + self.every { Ok(()) } else { self.take(process, now, subscribed) }
    }

    /// Takes a sample, however short the time was.
    ///
    /// # Errors
    /// When the server has ended.
    pub fn take(&mut self, process: Process, now: u64, subscribed: u64) -> anyhow::Result<()> {
        let elapsed = now.saturating_sub(self.last).max(1);
        let seconds = elapsed as f64 / 1e9;
        let cpu = process.cpu()?.as_secs_f64();
        self.before += elapsed;
        let ms = |quantile| self.latency.value_at_quantile(quantile) as f64 / 1e6;
        self.samples.push(Sample {
            at: self.before as f64 / 1e9,
            deliveries: self.deliveries as f64 / seconds,
            published: self.published as f64 / seconds,
            p50_ms: ms(0.5),
            p99_ms: ms(0.99),
            cpus: (cpu - self.last_cpu) / seconds,
            resident_mb: process.resident_kb()? as f64 / 1024.0,
            subscribed,
        });
        (self.last, self.last_cpu, self.deliveries, self.published) = (now, cpu, 0, 0);
        self.latency.reset();
        if self.samples.len() == MOST {
            self.samples = self.samples.chunks(2).map(Sample::merged).collect();
            self.every *= 2;
        }
        Ok(())
    }

    /// What was seen.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_time_keeps_its_end_its_means_and_its_worst() {
        let this = Process(std::process::id());
        let mut sampler = Sampler::new();
        sampler.begin(this, 0).unwrap();
        for step in 1..=2 * MOST as u64 {
            sampler.delivered(if step == 7 { 9_000_000 } else { 1_000_000 });
            sampler.look(this, step * SHORTEST, 3).unwrap();
        }
        let samples = sampler.samples();
        let last = samples.last().unwrap();
        assert!(samples.len() < MOST && (last.at - 60.0).abs() < 0.2, "{last:?}");
        assert!((last.deliveries - 20.0).abs() < 0.1 && last.subscribed == 3, "{last:?}");
        assert!(8.0 < samples[1].p99_ms.max(samples[0].p99_ms));
    }
}
