//! For long: whether memory stays where it is.

use anyhow::bail;
use clap::Args;

use super::{
    churn::Comings,
    flow::{Flow, Preset},
};
use crate::{
    engine::{
        Pace,
        figures::Figures,
        lane::{Calm, Turmoil},
        sampler::Sample,
    },
    report::Report,
    swarm::Watch,
};

/// The arguments.
#[derive(Args, Debug)]
pub struct Soak {
    /// Subscribers that leave and return, each second; 0 for none.
    #[arg(long, default_value_t = 10.0)]
    churn: f64,
    /// Fail when memory grows by more than this many MB an hour, once it has settled.
    #[arg(long, value_name = "MB")]
    max_slope: Option<f64>,
    #[command(flatten)]
    flow: Flow,
}

const PRESET: Preset = Preset {
    name: "soak",
    pace: Pace::Rate(50.0),
    publishes: u64::MAX,
    seconds: 600.0,
    rounds: 1,
    compare: &["crossfade:ws=50,sse=50"],
    watch: Watch::Epoll,
    ..Preset::FANOUT
};

/// The part of the time after which memory is taken to have settled: rings are full then.
const SETTLED: f64 = 0.3;

impl Soak {
    /// Measures.
    ///
    /// # Errors
    /// When a server does not do its part.
    pub fn run(&self) -> anyhow::Result<Report> {
        if !(0.0..=1e5).contains(&self.churn) {
            bail!("--churn is between 0 and 100000");
        }
        let plan = self.flow.plan(&PRESET)?;
        let figures = self.flow.measure(&PRESET, &plan, &mut |_, lane, bar| {
            let mut comings = (self.churn != 0.0).then(|| Comings::new(self.churn));
            if comings.is_some() {
                lane.target().expect_visitors()?;
                lane.swarm.remember_positions();
            }
            let turmoil: &mut dyn Turmoil = match &mut comings {
                Some(comings) => comings,
                None => &mut Calm,
            };
            lane.turn(&plan, turmoil, bar)
        })?;
        let slopes: Vec<f64> = figures.iter().map(settled_slope).collect();
        let mut findings = self.flow.findings(&PRESET, &plan, figures);
        findings.column("MB an hour", slopes.iter().map(|slope| format!("{slope:+.1}")).collect());
        findings.note("MB an hour: the slope of resident memory after the first 30 % of the time.");
        for slope in slopes {
            if self.max_slope.is_some_and(|most| most < slope) {
                findings.fail(format!("memory grows by {slope:.1} MB an hour"));
            }
        }
        Ok(findings.into_report())
    }
}

fn settled_slope(figures: &Figures) -> f64 {
    let from = (figures.samples.len() as f64 * SETTLED) as usize;
    slope(&figures.samples[from..]) * 3_600.0
}

/// MB a second, by least squares.
fn slope(samples: &[Sample]) -> f64 {
    let count = samples.len().max(1) as f64;
    let mean = |of: fn(&Sample) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let (at, mb) = (mean(|sample| sample.at), mean(|sample| sample.resident_mb));
    let (mut with, mut spread) = (0.0, 0.0);
    for sample in samples {
        with += (sample.at - at) * (sample.resident_mb - mb);
        spread += (sample.at - at).powi(2);
    }
    if spread == 0.0 { 0.0 } else { with / spread }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slope_is_found_under_noise() {
        let sample = |n: u32| Sample {
            at: f64::from(n),
            resident_mb: 100.0 + 0.5 * f64::from(n) + f64::from(n % 2),
            ..Sample::default()
        };
        let samples: Vec<Sample> = (0..1_000).map(sample).collect();
        assert!((slope(&samples) - 0.5).abs() < 0.001);
        assert_eq!(slope(&samples[..1]), 0.0);
    }
}
