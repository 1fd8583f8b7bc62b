//! A few small measurements with bounds, for a build server: what was fast stays fast.
//!
//! The bounds are ratios to `limit` in the same run, because no two machines are equally fast.

use clap::Args;

use super::{
    flow::{Flow, Preset},
    storm::Storm,
};
use crate::{
    engine::Pace,
    report::{Report, Table},
    targets::{Hosting, TargetSpec},
};

/// The arguments.
#[derive(Args, Debug)]
pub struct Check {
    /// Times the limit's CPU for a delivery over WebSocket, one event at a time.
    #[arg(long, default_value_t = 1.6)]
    max_ws: f64,
    /// The same over SSE.
    #[arg(long, default_value_t = 1.6)]
    max_sse: f64,
    /// The same over WebSocket with 16 events due at once, against one write for all of them.
    #[arg(long, default_value_t = 3.0)]
    max_burst: f64,
    /// The same with many channels.
    #[arg(long, default_value_t = 4.0)]
    max_rooms: f64,
    /// Multiply all bounds, for builds that are not optimised.
    #[arg(long, default_value_t = 1.0)]
    lenience: f64,
    #[command(flatten)]
    hosting: Hosting,
}

const SMALL: Preset =
    Preset { subscribers: 400, publishes: 150, seconds: 5.0, rounds: 3, ..Preset::FANOUT };

impl Check {
    /// Measures and compares.
    ///
    /// # Errors
    /// When a server does not do its part.
    pub fn run(&self) -> anyhow::Result<Report> {
        let burst = Preset { name: "burst of 16", burst: 16, publishes: 40, ..SMALL };
        let rooms = Preset {
            name: "rooms",
            subscribers: 1_000,
            channels: 200,
            publishers: 4,
            batch: 200,
            pace: Pace::Rate(2_000.0),
            publishes: 2_000,
            ..Preset::ROOMS
        };
        // Its rounds differ most.
        let rooms = Preset { rounds: 5, seconds: 1.0, ..rooms };
        let mut table = Table::new(["what", "ratio", "allowed", "spread", "wrong"]);
        let mut failures = Vec::new();
        for (what, preset, most) in [
            ("crossfade-ws", SMALL, self.max_ws),
            ("crossfade-sse", SMALL, self.max_sse),
            ("crossfade-ws", burst, self.max_burst),
            ("crossfade-ws", rooms, self.max_rooms),
        ] {
            self.one(what, &preset, most * self.lenience, &mut table, &mut failures)?;
        }
        let spec: TargetSpec = "crossfade:ws=50,sse=50".parse()?;
        let storm = Storm::small(Flow::bare(vec![spec], self.hosting.clone())).run()?;
        failures.extend(storm.failures);
        Ok(Report {
            scenario: "check".to_owned(),
            title: "check: ratios to limit in the same run, and nothing lost in a storm".to_owned(),
            table,
            notes: vec!["Ratio: CPU for a delivery, limit = 1; the median of the rounds.".into()],
            runs: Vec::new(),
            failures,
        })
    }

    fn one(
        &self,
        what: &str,
        preset: &Preset,
        most: f64,
        table: &mut Table,
        failures: &mut Vec<String>,
    ) -> anyhow::Result<()> {
        let compare = vec![what.parse()?, "limit".parse()?];
        let flow = Flow { max_ratio: Some(most), ..Flow::bare(compare, self.hosting.clone()) };
        let plan = flow.plan(preset)?;
        let figures = flow.measure(preset, &plan, &mut |_, lane, bar| {
            lane.turn(&plan, &mut crate::engine::lane::Calm, bar)
        })?;
        let findings = flow.findings(preset, &plan, figures);
        let ratio = findings.cost_ratio(0);
        let wrong = findings.wrong(0);
        table.row([
            format!("{what}, {}", preset.name),
            format!("{:.2}", ratio.median),
            format!("{most:.2}"),
            format!("{:.2}–{:.2}", ratio.lowest, ratio.highest),
            wrong.unwrap_or_else(|| "nothing".to_owned()),
        ]);
        failures.extend(findings.into_report().failures);
        Ok(())
    }
}
