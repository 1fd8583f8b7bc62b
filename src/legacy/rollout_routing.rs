//! Routing by the takeover rollout, and moving proxied streams to the gateway at the cluster's drain
//! rate.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use super::{Backend, Legacy, Routing};
use crate::{
    lifecycle::Stage,
    rollout::{Rollouts, assignment::Unit, flag::TAKEOVER},
};

/// Routes by the rollout `legacy-takeover`; where there is none, by `fallback`.
#[derive(Debug)]
pub struct RolloutRouting {
    /// The rollouts of the cluster.
    pub rollouts: Rollouts,
    /// `legacy.side`: the backend of all users while there is no takeover rollout, and of those that
    /// it does not assign to the gateway.
    pub fallback: Backend,
}

impl Routing for RolloutRouting {
    fn backend(&self, unit: &str, groups: &[String]) -> Backend {
        let unit = Unit { id: unit.to_owned(), groups: groups.to_vec() };
        if !self.rollouts.registry.now().read {
            // The rollouts have not been read yet: the upstream is the safe choice.
            return if self.fallback == Backend::Shadow {
                Backend::Shadow
            } else {
                Backend::Upstream
            };
        }
        match self.rollouts.registry.assignment(TAKEOVER, &unit) {
            Some((_, assignment)) if assignment.new => Backend::Gateway,
            // `side = "gateway"` must not override the percentage of a rollout.
            Some(_) if self.fallback == Backend::Gateway => Backend::Upstream,
            Some(_) | None => self.fallback,
        }
    }
}

/// How often a batch of streams is ended.
const TICK: Duration = Duration::from_millis(100);

/// Starts to end the proxied streams of users that moved to the gateway, `rate` streams a second over
/// all nodes.
pub fn migrate_streams(legacy: Arc<Legacy>, rollouts: Rollouts, rate: u32, stage: &Stage) {
    if legacy.upstream().is_none() {
        return;
    }
    let stopping = stage.stopping().clone();
    stage.spawn("legacy-migrate", async move {
        let migrate = async {
            let mut tick = interval(TICK);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut credit = 0.0;
            loop {
                tick.tick().await;
                let nodes = rollouts.node_counts.all().len().max(1);
                let share = f64::from(rate) / nodes as f64;
                credit = (credit + share * TICK.as_secs_f64()).min(share.max(1.0));
                let ended = legacy.end_migrated_streams(credit as usize);
                credit -= ended as f64;
            }
        };
        let _ = stopping.run_until_cancelled(migrate).await;
    });
}
