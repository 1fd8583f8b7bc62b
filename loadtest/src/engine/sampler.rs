//! What happened from moment to moment, for charts.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::{clock, measure::Process};

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

/// A chart of more would show no more.
const MOST: f64 = 400.0;

/// Nanoseconds; with fewer a sample would show the scheduler.
const SHORTEST: u64 = 100_000_000;

/// Nanoseconds from a microsecond to ten minutes, to two digits.
pub fn histogram() -> Histogram<u64> {
    // The bounds are constants that are in order.
    Histogram::new_with_bounds(1_000, 600_000_000_000, 2).unwrap_or_else(|_| unreachable!())
}

impl Sampler {
    /// For turns that take so many seconds in all.
    pub fn new(seconds: f64) -> Self {
        Self {
            every: clock::seconds(seconds / MOST).max(SHORTEST),
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
        Ok(())
    }

    /// What was seen.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }
}
