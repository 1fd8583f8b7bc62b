//! This node's counts of a rollout: facts come in from the connections, reports go out to the store.
//!
//! What is counted and how is [`super::measure`]'s business. Here is the lock around it, when the
//! stage changes, and how often the others are told. Users who are named by hand or not eligible are
//! not counted: nobody may be compared with them.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use super::{
    assignment::{Reason, Unit},
    flag::{Flag, TRANSPORT},
    measure::{self, Fact, Measure, Window},
    registry::RolloutRegistry,
};
use crate::{
    broker::Store,
    lifecycle::{self, Stage},
};

/// Counts what happens to users while the transports' rollout is under way.
#[derive(Debug)]
pub struct Meter {
    registry: Arc<RolloutRegistry>,
    /// Which run of which node this is.
    run: u64,
    measure: Mutex<Option<Measure>>,
    /// How much of its memory the node uses, 0 to 1.
    memory: fn() -> f64,
}

/// Keys of reports in the store.
pub(super) const REPORTS: &str = "measures/";

/// How often the others are told.
const EVERY: Duration = Duration::from_secs(2);

/// How long a report of a node that is gone still counts.
const KEEP: Duration = Duration::from_secs(24 * 3600);

/// Users counted on one node, at 45 bytes each.
const USERS: usize = 200_000;

/// What a client measured since its last report. What is odd about it counts as nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClientReport {
    /// Attempts to connect that failed.
    connect_failures: u32,
    /// Times the other transport was taken because the first could not be had.
    fallbacks: u32,
    /// Moves that were asked for and failed.
    failed_migrations: u32,
    /// Events received.
    events: u32,
    /// From publish to receipt, in milliseconds: a sample of them.
    delays: Vec<f64>,
}

/// Of one kind of trouble a report tells so often at most: more says nothing more.
const TROUBLES: u32 = 5;

impl Meter {
    /// Begins to count. `memory` says how much of its memory the node uses, 0 to 1.
    pub fn start(registry: Arc<RolloutRegistry>, memory: fn() -> f64, stage: &Stage) -> Arc<Self> {
        let store = Arc::clone(registry.store());
        let run = rand::random();
        let this = Arc::new(Self { registry, run, measure: Mutex::default(), memory });
        let (meter, stopping) = (Arc::clone(&this), stage.stopping().clone());
        stage.spawn("meter", async move {
            let _ = stopping.run_until_cancelled(meter.tell(&*store)).await;
        });
        this
    }

    /// Which epoch is counted in; none while nothing is under way.
    pub fn epoch(&self) -> Option<u64> {
        let now = self.registry.now();
        let flag = &now.get(TRANSPORT)?.flag;
        is_under_way(flag).then_some(flag.course.epoch)
    }

    /// Something happened to a user.
    pub fn record(&self, unit: &Unit, fact: Fact<'_>) {
        let flags = self.registry.now();
        let Some(standing) = flags.get(TRANSPORT) else { return };
        let flag = &standing.flag;
        if !is_under_way(flag)
            || flag.assignment(unit, self.registry.environment()).reason != Reason::Split
        {
            return;
        }
        let who = who(flag, unit);
        let mut measure = self.measure.lock();
        entered(&mut measure, self.run, window(flag)).record(who, fact, lifecycle::unix_ms());
    }

    /// A session that was counted as here in this epoch is gone. Also where nothing is under way: it
    /// must not count as here when that goes on.
    pub fn left(&self, unit: &Unit, epoch: u64) {
        let flags = self.registry.now();
        let Some(standing) = flags.get(TRANSPORT) else { return };
        let flag = &standing.flag;
        let who = who(flag, unit);
        if let Some(measure) = self.measure.lock().as_mut()
            && flag.course.epoch == epoch
            && measure.window().epoch == epoch
        {
            measure.record(who, Fact::Left, lifecycle::unix_ms());
        }
    }

    /// A client tells what it measured.
    pub fn report(&self, unit: &Unit, stats: &str) {
        let told: ClientReport = serde_json::from_str(stats).unwrap_or_default();
        if 0 < told.events {
            let latencies: Vec<f64> = told.delays.iter().copied().take(64).collect();
            self.record(unit, Fact::Delivered { events: told.events, latencies: &latencies });
        }
        for _ in 0..told.connect_failures.min(TROUBLES) {
            self.record(unit, Fact::Connect { ok: false, to_new: false, moved: false });
        }
        for _ in 0..told.failed_migrations.min(TROUBLES) {
            self.record(unit, Fact::Connect { ok: false, to_new: false, moved: true });
        }
        for _ in 0..told.fallbacks.min(TROUBLES) {
            self.record(unit, Fact::FellBack);
        }
    }

    async fn tell(&self, store: &dyn Store) {
        let mut tick = interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let key = format!("{REPORTS}{TRANSPORT}/{:016x}", self.run);
        loop {
            tick.tick().await;
            let Some(text) = self.written() else { continue };
            if let Err(err) = store.tell(&key, &text, KEEP).await {
                debug!(%err, "what was counted could not be told");
            }
        }
    }

    fn written(&self) -> Option<String> {
        let flags = self.registry.now();
        let flag = &flags.get(TRANSPORT)?.flag;
        let mut measure = self.measure.lock();
        if !is_under_way(flag) && measure.is_none() {
            return None;
        }
        // Nobody may have come yet: that there is nothing to tell is news too.
        let measure = entered(&mut measure, self.run, window(flag));
        let report = measure.report(lifecycle::unix_ms(), (self.memory)());
        serde_json::to_string(&report).ok()
    }
}

fn who(flag: &Flag, unit: &Unit) -> measure::Unit {
    let (component, salt) = (flag.component.as_str(), flag.salt.as_str());
    measure::Unit::new(flag.algorithm, component, salt, &unit.id)
}

fn is_under_way(flag: &Flag) -> bool {
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

/// The counts, in this stage.
fn entered(measure: &mut Option<Measure>, run: u64, window: Window) -> &mut Measure {
    let measure = measure.get_or_insert_with(|| Measure::new(run, window, USERS));
    measure.enter(window);
    measure
}
