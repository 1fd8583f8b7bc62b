//! Meter of the transport rollout on this node: observations in, reports to the store out.
//!
//! Owns the lock around [`super::measure`], the switch to a new stage, and the reporting interval.
//! What is counted, and how, is decided there. Users who are overridden by name or not eligible are
//! not counted, because they are not assigned at random and cannot be compared.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use super::{
    assignment::{Reason, Unit},
    flag::{Flag, TRANSPORT},
    measure::{Collector, Observation, UserKey, Window},
    registry::RolloutRegistry,
};
use crate::{
    broker::Store,
    lifecycle::{self, Stage},
};

/// Counts what happens to users while the transport rollout is active.
#[derive(Debug)]
pub struct Meter {
    registry: Arc<RolloutRegistry>,
    /// Identifies this run of this node in reports.
    run: u64,
    collector: Mutex<Option<Collector>>,
    /// Returns the share of memory that the node uses, 0 to 1.
    memory: fn() -> f64,
}

/// Prefix of the store keys of reports.
pub(super) const REPORT_KEY_PREFIX: &str = "measures/";

/// How often a report is written.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);

/// How long the last report of a stopped node still counts.
const REPORT_TTL: Duration = Duration::from_secs(24 * 3600);

/// Limit of tracked users on one node, at about 45 bytes each.
const MAX_USERS: usize = 200_000;

/// What a client measured since its last report. Missing fields count as zero; a report that cannot
/// be parsed counts nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClientReport {
    /// Failed connection attempts.
    connect_failures: u32,
    /// Times the client used the other transport because the first was unreachable.
    fallbacks: u32,
    /// Migrations that the gateway asked for and that failed.
    failed_migrations: u32,
    /// Events received.
    events: u32,
    /// Publish-to-receipt latencies in milliseconds, of a sample of the events.
    delays: Vec<f64>,
}

/// Most failures of one kind that are counted from one client report.
const MAX_FAILURES_PER_KIND: u32 = 5;

impl Meter {
    /// Starts the reporting task. `memory` returns the share of memory that the node uses, 0 to 1.
    pub fn start(registry: Arc<RolloutRegistry>, memory: fn() -> f64, stage: &Stage) -> Arc<Self> {
        let store = Arc::clone(registry.store());
        let run = rand::random();
        let this = Arc::new(Self { registry, run, collector: Mutex::default(), memory });
        let (meter, stopping) = (Arc::clone(&this), stage.stopping().clone());
        stage.spawn("meter", async move {
            let _ = stopping.run_until_cancelled(meter.publish_reports(&*store)).await;
        });
        this
    }

    /// The epoch that is counted in; none while the rollout is not active.
    pub fn epoch(&self) -> Option<u64> {
        let flags = self.registry.now();
        let flag = &flags.get(TRANSPORT)?.flag;
        is_active(flag).then_some(flag.course.epoch)
    }

    /// Counts one observation of a user. Ignored while the rollout is not active, and for users who
    /// are not assigned by percentage.
    pub fn record(&self, unit: &Unit, observation: Observation<'_>) {
        let flags = self.registry.now();
        let Some(record) = flags.get(TRANSPORT) else { return };
        let flag = &record.flag;
        if !is_active(flag)
            || flag.assignment(unit, self.registry.environment()).reason != Reason::Split
        {
            return;
        }
        let key = user_key(flag, unit);
        let mut collector = self.collector.lock();
        in_window(&mut collector, self.run, window(flag)).record(
            key,
            observation,
            lifecycle::unix_ms(),
        );
    }

    /// Ends a session that was counted in `epoch`. Applied also while the rollout is not active, so
    /// that the user does not count as connected when it continues.
    pub fn session_ended(&self, unit: &Unit, epoch: u64) {
        let flags = self.registry.now();
        let Some(record) = flags.get(TRANSPORT) else { return };
        let flag = &record.flag;
        let key = user_key(flag, unit);
        if let Some(collector) = self.collector.lock().as_mut()
            && flag.course.epoch == epoch
            && collector.window().epoch == epoch
        {
            collector.record(key, Observation::SessionEnded, lifecycle::unix_ms());
        }
    }

    /// Counts what a client measured itself. Reports that cannot be parsed are ignored.
    pub fn record_client_report(&self, unit: &Unit, stats: &str) {
        let report: ClientReport = serde_json::from_str(stats).unwrap_or_default();
        if 0 < report.events {
            let latencies: Vec<f64> = report.delays.iter().copied().take(64).collect();
            self.record(
                unit,
                Observation::Delivered { events: report.events, latencies: &latencies },
            );
        }
        for _ in 0..report.connect_failures.min(MAX_FAILURES_PER_KIND) {
            self.record(unit, Observation::Connect { ok: false, to_new: false, migrated: false });
        }
        for _ in 0..report.failed_migrations.min(MAX_FAILURES_PER_KIND) {
            self.record(unit, Observation::Connect { ok: false, to_new: false, migrated: true });
        }
        for _ in 0..report.fallbacks.min(MAX_FAILURES_PER_KIND) {
            self.record(unit, Observation::FellBack);
        }
    }

    async fn publish_reports(&self, store: &dyn Store) {
        let mut tick = interval(REPORT_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let key = format!("{REPORT_KEY_PREFIX}{TRANSPORT}/{:016x}", self.run);
        loop {
            tick.tick().await;
            let Some(text) = self.encode_report() else { continue };
            if let Err(err) = store.tell(&key, &text, REPORT_TTL).await {
                debug!(%err, "rollout report not written, trying again in 2 s");
            }
        }
    }

    fn encode_report(&self) -> Option<String> {
        let flags = self.registry.now();
        let flag = &flags.get(TRANSPORT)?.flag;
        let mut collector = self.collector.lock();
        if !is_active(flag) && collector.is_none() {
            return None;
        }
        // An empty report is written too: it shows the evaluator that this node counts.
        let collector = in_window(&mut collector, self.run, window(flag));
        let report = collector.report(lifecycle::unix_ms(), (self.memory)());
        serde_json::to_string(&report).ok()
    }
}

fn user_key(flag: &Flag, unit: &Unit) -> UserKey {
    let (component, salt) = (flag.component.as_str(), flag.salt.as_str());
    UserKey::new(flag.algorithm, component, salt, &unit.id)
}

fn is_active(flag: &Flag) -> bool {
    0 < flag.effective().thousandths()
}

fn window(flag: &Flag) -> Window {
    Window {
        epoch: flag.course.epoch,
        stage: flag.course.stage,
        percentage: flag.effective(),
        slow_above_ms: flag.guardrails.slow_above_ms,
    }
}

/// The collector, created if necessary and advanced to `window`.
fn in_window(collector: &mut Option<Collector>, run: u64, window: Window) -> &mut Collector {
    let collector = collector.get_or_insert_with(|| Collector::new(run, window, MAX_USERS));
    collector.enter_window(window);
    collector
}
