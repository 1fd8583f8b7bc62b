//! Looking at rollouts: one node at a time judges what all have counted, and lets them go up, hold or
//! turn back.
//!
//! What follows from the counts is pure ([`super::guardrail`], [`super::schedule`]). Here is who
//! looks, when, and that everybody can see what was found. Two who look at once do no harm: each step
//! is compared and set, and a look at a stage that is over is no news.

use std::{collections::HashMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use tracing::{debug, info, warn};

use super::{
    Place,
    flag::{Change, Component, Flag},
    guardrail::{self, Demand, RecentCounts, Verdict},
    lease::Lease,
    measure::{ArmCounts, Measurements, Reports},
    meter::REPORT_KEY_PREFIX,
    registry::{Actor, RolloutRecord, RolloutRegistry},
    schedule::{Effect, Look, Status, Validation},
};
use crate::{
    broker::{BrokerError, Store},
    lifecycle::{self, Stage},
};

/// Looks at rollouts while it is this node's turn.
#[derive(Debug)]
pub struct Evaluator {
    registry: Arc<RolloutRegistry>,
    store: Arc<dyn Store>,
    node: String,
    recent: HashMap<Component, RecentCounts>,
    /// In which stage a validation was asked for by this node.
    asked: HashMap<Component, u64>,
    news: mpsc::Sender<News>,
}

/// What came of a look, for whoever tells people.
#[derive(Clone, Debug)]
pub enum News {
    /// People are to be told.
    Tell {
        /// Of which rollout.
        component: Component,
        /// What happened to it: `advance`, `hold`, `rollback`, `complete`.
        action: &'static str,
        /// Whether somebody should be woken.
        urgent: bool,
        /// In words.
        text: String,
        /// The verdicts.
        figures: Value,
    },
    /// Both sides are to be compared.
    Validate {
        /// Of which rollout.
        component: Component,
        /// In which stage.
        stage: u64,
    },
}

/// What was found by the newest look, as all nodes can see it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Which rollout.
    pub component: Component,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// Which node looked.
    pub node: String,
    /// What was judged.
    pub verdicts: Vec<Verdict>,
    /// What it was judged by, as it is shown.
    pub measured: Value,
}

/// Keys of findings in the store.
pub(super) const FINDINGS: &str = "verdicts/";

/// How often rollouts are looked at.
pub const LOOK: Duration = Duration::from_secs(2);

/// After this time without a word from who looks, another node does. With the time of a look it is
/// under 10 s.
const LEASE: Duration = Duration::from_secs(4);

/// How long findings are shown when nobody looks any more.
const KEEP: Duration = Duration::from_secs(15);

/// News that wait to be told.
const NEWS: usize = 256;

impl Evaluator {
    /// Begins to look, or to wait for its turn. What comes of it comes up the channel.
    pub fn start(
        registry: Arc<RolloutRegistry>,
        place: &Place,
        stage: &Stage,
    ) -> mpsc::Receiver<News> {
        let (news, told) = mpsc::channel(NEWS);
        let store = Arc::clone(registry.store());
        let evaluator = Self {
            registry,
            store,
            node: place.node.clone(),
            recent: HashMap::new(),
            asked: HashMap::new(),
            news,
        };
        let lease = Lease::new("lease/evaluator", &place.run, LEASE);
        let stopping = stage.stopping().clone();
        stage.spawn("evaluator", async move {
            // Boxed: what is measured is large.
            let _ = Box::pin(stopping.run_until_cancelled(evaluator.run(lease))).await;
        });
        told
    }

    async fn run(mut self, mut lease: Lease) {
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut had = false;
        loop {
            tick.tick().await;
            match lease.hold(&*self.store).await {
                Ok(held) if held != had => {
                    had = held;
                    info!(node = self.node, held, "looking at rollouts is this node's turn");
                }
                Ok(_) => {}
                Err(err) => debug!(%err, "the lease to look at rollouts could not be asked for"),
            }
            if lease.is_held()
                && let Err(err) = self.look_at_all().await
            {
                warn!(%err, "rollouts could not be looked at");
            }
        }
    }

    async fn look_at_all(&mut self) -> Result<(), BrokerError> {
        let flags = self.registry.now();
        for standing in flags.all() {
            // Also what is frozen or completed: who is on the new side can still come to harm.
            let course = &standing.flag.course;
            let goes = matches!(course.status, Status::Running | Status::Paused);
            if goes || 0 < course.percentage.thousandths() {
                self.look_at(standing).await?;
            }
        }
        Ok(())
    }

    async fn look_at(&mut self, standing: &RolloutRecord) -> Result<(), BrokerError> {
        let flag = &standing.flag;
        let component = &flag.component;
        let now = lifecycle::unix_ms();
        let measured = self.measured(component, flag.course.epoch).await?;
        let recent = self.recent.entry(component.clone()).or_default();
        recent.sample(&measured, flag.guardrails.tripwires.window_seconds, now);
        let verdicts = guardrail::judge(&flag.guardrails, &measured, recent, now);
        // Nodes need a moment to tell of a stage that has just begun.
        let patience = 1000 * flag.guardrails.fresh_within_seconds;
        let young = measured.nodes == 0 && now < flag.changed_at + patience;
        let (demand, asking) = match young {
            true => (Demand::Nothing, Vec::new()),
            false => guardrail::strongest_demand(&verdicts),
        };
        let look = Look {
            of: measured.window.map_or((0, 0), |window| (window.epoch, window.stage)),
            users: measured.current.new.users,
            events: seen_of(&measured.current.new),
            demand,
            reasons: asking.iter().map(|verdict| verdict.summary.clone()).collect(),
            asking: asking.iter().map(|verdict| verdict.name.to_string()).collect(),
            waits_for: self.waits_for(standing),
        };
        let figures = json!({ "verdicts": verdicts, "measured": shown(&measured) });
        let rolls_back = demand == Demand::RollBack;
        let by = Actor { name: format!("gateway {}", self.node), reason: String::new() };
        let change = Change::Look(Box::new(look));
        let changed =
            self.registry.change_noting(component, &change, None, &by, Some(figures.clone())).await;
        let finding = Finding {
            component: component.clone(),
            at: now,
            node: self.node.clone(),
            verdicts,
            measured: shown(&measured),
        };
        let text = serde_json::to_string(&finding).unwrap_or_default();
        let key = format!("{FINDINGS}{component}");
        let shown = self.store.tell(&key, &text, KEEP).await;
        match changed {
            Ok(changed) => {
                self.tell(standing, &changed.now, changed.effects, &figures);
                self.ask_again(&changed.now.flag);
            }
            Err(err) if rolls_back => warn!(%component, %err, "a rollback could not be kept"),
            Err(err) => debug!(%component, %err, "a look came to nothing"),
        }
        shown
    }

    /// Who was asked to compare both sides may be gone.
    fn ask_again(&mut self, flag: &Flag) {
        let (component, stage) = (flag.component.clone(), flag.course.stage);
        let asked = self.asked.get(&component) == Some(&stage);
        if flag.course.validation != Validation::Asked || asked {
            return;
        }
        self.asked.insert(component.clone(), stage);
        if self.news.try_send(News::Validate { component, stage }).is_err() {
            self.asked.clear();
        }
    }

    async fn measured(
        &self,
        component: &Component,
        epoch: u64,
    ) -> Result<Measurements, BrokerError> {
        let mut reports = Reports::default();
        for (key, text) in self.store.told(&format!("{REPORT_KEY_PREFIX}{component}/")).await? {
            match serde_json::from_str(&text) {
                Ok(report) => {
                    if let Err(err) = reports.insert(report) {
                        debug!(key, %err, "a report was not taken");
                    }
                }
                Err(err) => debug!(key, %err, "a report cannot be read"),
            }
        }
        Ok(reports.merge(epoch))
    }

    fn waits_for(&self, standing: &RolloutRecord) -> Vec<String> {
        let flags = self.registry.now();
        let status = |other: &str| flags.get(other).map(|other| other.flag.course.status);
        standing.flag.schedule.waits_for(status)
    }

    fn tell(
        &self,
        before: &RolloutRecord,
        now: &RolloutRecord,
        acts: Vec<Effect>,
        figures: &Value,
    ) {
        let component = &now.flag.component;
        let (from, to) = (before.flag.course.percentage, now.flag.course.percentage);
        let action = match now.flag.course.status {
            Status::Completed => "complete",
            _ if from < to => "advance",
            _ if to < from => "rollback",
            _ => "hold",
        };
        for act in acts {
            let news = match act {
                Effect::Tell { urgent, text } => {
                    let (component, figures) = (component.clone(), figures.clone());
                    News::Tell { component, action, urgent, text, figures }
                }
                // The state says that it is asked for.
                Effect::Validate | Effect::Begin { .. } | Effect::Move { .. } => continue,
            };
            if self.news.try_send(news).is_err() {
                warn!(%component, "news of a rollout were dropped: nobody takes them");
            }
        }
    }
}

/// What happened to an arm that could have gone wrong.
fn seen_of(arm: &ArmCounts) -> u64 {
    let (_, tried) = arm.failures();
    tried + arm.delivered
}

fn shown(measured: &Measurements) -> Value {
    let sums = measured.comparable();
    json!({
        "at": measured.last_report_at,
        "nodes": measured.nodes,
        "memory": measured.memory,
        "untracked": measured.untracked,
        "new": shown_arm(&sums.new),
        "control": shown_arm(&sums.control),
    })
}

fn shown_arm(arm: &ArmCounts) -> Value {
    let latency = &arm.latency;
    let at = |quantile| latency.quantile(quantile, 0.05).map(|found| found.value);
    json!({
        "users": arm.users,
        "usersOnNew": arm.users_on_new,
        "connects": arm.connects,
        "connectFailures": arm.connect_failures,
        "migrations": arm.migrations,
        "migrationFailures": arm.migration_failures,
        "interruptions": arm.interruptions,
        "resumes": arm.resumes,
        "resets": arm.resets,
        "requests": arm.requests,
        "errors": arm.errors,
        "fallbacks": arm.fallbacks,
        "flaps": arm.flaps,
        "delivered": arm.delivered,
        "dropped": arm.dropped,
        "latency": {
            "count": latency.count(),
            "p50": at(0.5),
            "p95": at(0.95),
            "p99": at(0.99),
            "buckets": latency.bins().filter(|(_, count)| 0 < *count).collect::<Vec<_>>(),
        },
    })
}
