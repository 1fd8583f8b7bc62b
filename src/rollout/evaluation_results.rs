//! What looking at rollouts has found, now and over the last half hour: read from the store by every
//! node, so that each can show it, whichever looks.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use super::{
    evaluator::{FINDINGS, Finding, LOOK},
    flag::Component,
    node_counts::{Figures, NodeCountsTable},
    registry::RolloutRegistry,
};
use crate::lifecycle::Stage;

/// The findings of all rollouts.
#[derive(Debug, Default)]
pub struct EvaluationResults(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    newest: HashMap<Component, Finding>,
    series: BTreeMap<Component, VecDeque<Point>>,
}

/// A moment of a rollout.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// When, in milliseconds since 1970.
    at: u64,
    /// Percent: the target, the users who are assigned, the connections that are live.
    figures: [f64; 3],
    /// By name: estimate, interval and evidence.
    verdicts: BTreeMap<String, Value>,
}

/// Moments are this far apart, in milliseconds.
const APART: u64 = 5_000;

/// Moments that are kept: half an hour.
const POINTS: usize = 360;

impl EvaluationResults {
    /// Begins to read.
    pub fn start(
        registry: Arc<RolloutRegistry>,
        node_counts: Arc<NodeCountsTable>,
        stage: &Stage,
    ) -> Arc<Self> {
        let this = Arc::new(Self::default());
        let (evaluation_results, stopping) = (Arc::clone(&this), stage.stopping().clone());
        stage.spawn("evaluation_results", async move {
            let _ = stopping
                .run_until_cancelled(evaluation_results.read(&registry, &node_counts))
                .await;
        });
        this
    }

    /// The newest of each rollout.
    pub fn newest(&self) -> HashMap<Component, Finding> {
        self.0.lock().newest.clone()
    }

    /// How they have changed.
    pub fn series(&self) -> BTreeMap<Component, VecDeque<Point>> {
        self.0.lock().series.clone()
    }

    async fn read(&self, registry: &RolloutRegistry, node_counts: &NodeCountsTable) {
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let Ok(told) = registry.store().told(FINDINGS).await else { continue };
            let read = told.iter().filter_map(|(_, text)| serde_json::from_str(text).ok());
            let newest: HashMap<_, _> =
                read.map(|finding: Finding| (finding.component.clone(), finding)).collect();
            for finding in newest.values() {
                self.remember(finding, registry, node_counts);
            }
            self.0.lock().newest = newest;
        }
    }

    fn remember(
        &self,
        finding: &Finding,
        registry: &RolloutRegistry,
        node_counts: &NodeCountsTable,
    ) {
        let mut state = self.0.lock();
        let series = state.series.entry(finding.component.clone()).or_default();
        if series.back().is_some_and(|last| finding.at < last.at + APART) {
            return;
        }
        let flags = registry.now();
        let flag = flags.get(finding.component.as_str());
        let target = flag.map_or(0.0, |standing| standing.flag.effective().percent());
        let figures = Figures::new(target, node_counts.all());
        let verdicts = finding.verdicts.iter().map(|verdict| {
            let interval = verdict.interval;
            let shown = json!({
                "estimate": verdict.estimate,
                "low": interval.map(|interval| interval.lower),
                "high": interval.map(|interval| interval.upper),
                "log_e": verdict.log_e,
            });
            (name_of(verdict), shown)
        });
        series.push_back(Point {
            at: finding.at,
            figures: [
                target,
                figures.assigned_users_percentage,
                figures.live_connections_percentage,
            ],
            verdicts: verdicts.collect(),
        });
        if POINTS < series.len() {
            series.pop_front();
        }
    }
}

fn name_of(verdict: &super::guardrail::Verdict) -> String {
    let name = serde_json::to_value(verdict.name).unwrap_or_default();
    name.as_str().unwrap_or_default().to_owned()
}
