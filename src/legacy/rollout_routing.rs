//! Who is on which side by a rollout, and letting those off the old server's streams who are on the
//! gateway's side by now, at the cluster's pace.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use super::{Backend, Legacy, Routing};
use crate::{
    lifecycle::Stage,
    rollout::{Rollouts, assignment::Unit, flag::TAKEOVER},
};

/// The rollout says; where there is none, the setting.
#[derive(Debug)]
pub struct RolloutRouting {
    /// The rollouts.
    pub rollouts: Rollouts,
    /// The side of those who are not on the gateway's, and of all while nothing is rolled out.
    pub otherwise: Backend,
}

impl Routing for RolloutRouting {
    fn side(&self, unit: &str, groups: &[String]) -> Backend {
        let unit = Unit { id: unit.to_owned(), groups: groups.to_vec() };
        if !self.rollouts.registry.now().read {
            // Nothing is known yet: the old side does no harm.
            return if self.otherwise == Backend::Shadow {
                Backend::Shadow
            } else {
                Backend::Upstream
            };
        }
        match self.rollouts.registry.assignment(TAKEOVER, &unit) {
            Some((_, assignment)) if assignment.new => Backend::Gateway,
            // Whoever is rolled out by percentage is not all on the gateway's side by a setting.
            Some(_) if self.otherwise == Backend::Gateway => Backend::Upstream,
            Some(_) | None => self.otherwise,
        }
    }
}

/// How often some are let off.
const TICK: Duration = Duration::from_millis(100);

/// Begins to let those off who have changed sides, `rate` of them a second over all nodes.
pub fn keep_moving(legacy: Arc<Legacy>, rollouts: Rollouts, rate: u32, stage: &Stage) {
    if legacy.upstream().is_none() {
        return;
    }
    let stopping = stage.stopping().clone();
    stage.spawn("take over", async move {
        let moving = async {
            let mut tick = interval(TICK);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut credit = 0.0;
            loop {
                tick.tick().await;
                let nodes = rollouts.node_counts.all().len().max(1);
                let share = f64::from(rate) / nodes as f64;
                credit = (credit + share * TICK.as_secs_f64()).min(share.max(1.0));
                let moved = legacy.move_over(credit as usize);
                credit -= moved as f64;
            }
        };
        let _ = stopping.run_until_cancelled(moving).await;
    });
}
