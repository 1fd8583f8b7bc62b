//! Rollout alerts: raised without waiting, stored until acknowledged, posted to webhooks.
//!
//! The last [`MAX_ALERTS`] are one record of the store, so every node shows the same list. The node
//! that raised an alert sends it; if that node dies, another node takes over (`dispatcher`). How a
//! webhook is called is up to `webhook`. Knows nothing about rollouts: an alert is text with a kind
//! and figures.

mod alert_log;
mod breaker;
mod dispatcher;
mod webhook;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::warn;
use uuid::Uuid;

use self::{
    alert_log::AlertLog,
    dispatcher::AlertDispatcher,
    webhook::{WebhookQueue, WebhookSender},
};
pub use self::{
    alert_log::{Acknowledgement, StoredAlert},
    webhook::{WebhookConfig, WebhookUrl},
};
use crate::{
    broker::{BrokerError, store::Store},
    lifecycle::{self, Stage},
    metrics::Metrics,
};

/// Section `[alerts]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlertConfig {
    /// The same text about the same component raises no second alert within this time.
    #[serde(with = "humantime_serde")]
    pub repeat_after: Duration,
    /// Timeout of one webhook request.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Upper bound of the first random pause before a webhook is retried. Doubles with each
    /// attempt.
    #[serde(with = "humantime_serde")]
    pub backoff_min: Duration,
    /// Largest bound of that pause.
    #[serde(with = "humantime_serde")]
    pub backoff_max: Duration,
    /// An alert is not retried after this time.
    #[serde(with = "humantime_serde")]
    pub give_up: Duration,
    /// Another node takes over an alert that a dead node has not sent for this long.
    #[serde(with = "humantime_serde")]
    pub take_over: Duration,
    /// The webhooks that alerts are sent to.
    pub webhook: Vec<WebhookConfig>,
}

impl Default for AlertConfig {
    fn default() -> Self {
        Self {
            repeat_after: Duration::from_secs(300),
            timeout: Duration::from_secs(5),
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_secs(300),
            give_up: Duration::from_secs(3600),
            take_over: Duration::from_secs(30),
            webhook: Vec::new(),
        }
    }
}

impl AlertConfig {
    /// Checks the webhooks.
    ///
    /// # Errors
    /// Names the invalid key and the values it accepts.
    pub fn check(&self) -> Result<(), AlertError> {
        webhook::parse_targets(self).map(drop)
    }
}

/// An invalid setting of `[alerts]`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct AlertError {
    /// The configuration key.
    pub key: String,
    /// What is wrong with the value, and what to set instead.
    pub reason: String,
}

/// What an alert is about. The names match the actions of the rollout journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AlertKind {
    /// A rollout was started or restarted.
    Start,
    /// Its settings or its percentage were changed by an operator.
    Set,
    /// The percentage increased.
    Advance,
    /// The rollout waits for approval.
    Approval,
    /// An operator approved the next step.
    Approve,
    /// The rollout holds.
    Hold,
    /// An operator paused it.
    Pause,
    /// An operator resumed it.
    Resume,
    /// The two sides deliver different events.
    Validation,
    /// The rollout was rolled back.
    Rollback,
    /// The rollout was stopped.
    Stop,
    /// The rollout reached 100 %.
    Complete,
    /// All rollouts were stopped.
    EmergencyStop,
    /// Anything else.
    Other,
}

impl AlertKind {
    /// The kind of alert for an action of the rollout journal.
    pub fn of_action(action: &str) -> Self {
        let name =
            serde_json::Value::from(if action == "validated" { "validation" } else { action });
        serde_json::from_value(name).unwrap_or(Self::Other)
    }
}

/// An alert to raise.
#[derive(Clone, Debug, PartialEq)]
pub struct Alert {
    /// The rollout it is about.
    pub component: String,
    /// What it is about.
    pub kind: AlertKind,
    /// Whether an operator should be paged.
    pub urgent: bool,
    /// What happened, and why. Truncated after 2048 bytes.
    pub text: String,
    /// Measurements that belong to it. Dropped if larger than 4096 bytes.
    pub figures: Option<serde_json::Value>,
}

/// The origin of alerts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AlertSource {
    /// Environment, as in `auth.environment`.
    pub environment: String,
    /// Name of the node.
    pub node: String,
}

/// Number of alerts that are stored; the oldest are dropped first.
pub const MAX_ALERTS: usize = 500;

/// Raised alerts that wait for the dispatcher.
const QUEUE_CAPACITY: usize = 256;

/// Size limits of an alert's text and figures.
const MAX_TEXT_BYTES: usize = 2048;
const MAX_FIGURES_BYTES: usize = 4096;

/// Raises, lists and acknowledges alerts.
#[derive(Debug)]
pub struct Alerts {
    source: AlertSource,
    /// Identifies this run of the node, because two nodes can have the same name.
    instance: Uuid,
    log: AlertLog,
    queue: mpsc::Sender<StoredAlert>,
    lost: AtomicU64,
}

impl Alerts {
    /// Starts the dispatcher and one task per webhook.
    ///
    /// # Errors
    /// Names the webhook setting that is invalid.
    pub fn start(
        store: Arc<dyn Store>,
        config: &AlertConfig,
        source: AlertSource,
        metrics: &Metrics,
        stage: &Stage,
    ) -> Result<Arc<Self>, AlertError> {
        let (queue, queued) = mpsc::channel(QUEUE_CAPACITY);
        // Large enough for the results of every stored alert.
        let (results, results_in) = mpsc::channel(MAX_ALERTS);
        let mut webhooks = Vec::new();
        for target in webhook::parse_targets(config)? {
            let (sender, receiver) = mpsc::channel(MAX_ALERTS);
            webhooks.push(WebhookQueue { filter: target.filter(), queue: sender });
            let webhook = WebhookSender::new(target, config, metrics, results.clone())?;
            let stopping = stage.stopping().clone();
            stage.spawn("webhook", async move {
                let _ = stopping.run_until_cancelled(Box::pin(webhook.run(receiver))).await;
            });
        }
        let instance = Uuid::new_v4();
        let log = AlertLog::new(store, config.repeat_after);
        let lost = AtomicU64::new(0);
        let this = Arc::new(Self { source, instance, log, queue, lost });
        let count = metrics.alerts.clone();
        let dispatcher = AlertDispatcher::new(Arc::clone(&this), webhooks, config, count);
        let stopping = stage.stopping().clone();
        stage.spawn("alerts", Box::pin(dispatcher.run(queued, results_in, stopping)));
        Ok(this)
    }

    /// Raises an alert. Never waits: if the queue is full, the alert is only logged and counted as
    /// lost.
    pub fn raise(&self, alert: Alert) {
        let Alert { component, kind, urgent, mut text, figures } = alert;
        if MAX_TEXT_BYTES < text.len() {
            let end = (0..=MAX_TEXT_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.truncate(end);
            text.push('…');
        }
        let fits = |figures: &serde_json::Value| figures.to_string().len() <= MAX_FIGURES_BYTES;
        let stored = StoredAlert {
            id: Uuid::now_v7(),
            kind,
            component,
            at: lifecycle::unix_ms(),
            urgent,
            text,
            figures: figures.filter(fits),
            environment: self.source.environment.clone(),
            node: self.source.node.clone(),
            acknowledged: None,
            sender: self.instance,
            unsent: Vec::new(),
            sent_to: Vec::new(),
            failed: Vec::new(),
        };
        if let Err(err) = self.queue.try_send(stored) {
            self.lost.fetch_add(1, Ordering::Relaxed);
            let (mpsc::error::TrySendError::Full(alert) | mpsc::error::TrySendError::Closed(alert)) =
                err;
            warn!(
                component = alert.component,
                text = alert.text,
                "alert dropped, it is neither stored nor sent: the queue is full"
            );
        }
    }

    /// Number of alerts dropped because the queue was full, since the node started.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// The stored alerts, newest first.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn list(&self) -> Result<Vec<StoredAlert>, BrokerError> {
        self.log.read().await
    }

    /// Acknowledges an alert; a second acknowledgement keeps the first. None if there is no such
    /// alert.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn acknowledge(
        &self,
        id: Uuid,
        by: &str,
    ) -> Result<Option<StoredAlert>, BrokerError> {
        let at = lifecycle::unix_ms();
        self.log
            .change(|alerts| {
                let alert = alerts.iter_mut().find(|alert| alert.id == id)?;
                let acknowledgement = || Acknowledgement { by: by.to_owned(), at };
                alert.acknowledged.get_or_insert_with(acknowledgement);
                Some(alert.clone())
            })
            .await
    }
}
