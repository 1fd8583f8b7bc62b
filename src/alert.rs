//! Alerts: what people are told of rollouts, kept until one says that it was seen, and sent to
//! webhooks.
//!
//! Whoever raises an alert never waits. The last [`KEPT`] are one record of the store, so every node
//! shows the same; the node that raised one sends it, and when that node dies another does
//! (`keeper`). How a webhook is spoken to is `webhook`'s business. Knows no rollout: it is told what
//! happened, in words.

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
    webhook::{Post, WebhookQueue},
};
pub use self::{
    alert_log::{Acknowledged, StoredAlert},
    webhook::{Address, WebhookConfig},
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
    /// The same text about the same component is not raised again within this time.
    #[serde(with = "humantime_serde")]
    pub repeat_after: Duration,
    /// A webhook's answer is there within this time.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// The first pause before a webhook is tried again is a random part of this. It doubles.
    #[serde(with = "humantime_serde")]
    pub backoff_min: Duration,
    /// The pause does not grow beyond this.
    #[serde(with = "humantime_serde")]
    pub backoff_max: Duration,
    /// After this long a webhook is not tried again with the same alert.
    #[serde(with = "humantime_serde")]
    pub give_up: Duration,
    /// What was not sent for this long by a node that is gone is sent by another.
    #[serde(with = "humantime_serde")]
    pub take_over: Duration,
    /// Who is told.
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
    /// Whether the webhooks can be used as they are configured.
    ///
    /// # Errors
    /// Says which setting is wrong and what would be right.
    pub fn check(&self) -> Result<(), AlertError> {
        webhook::read(self).map(drop)
    }
}

/// Why there can be no alerts as configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct AlertError {
    /// Which setting.
    pub key: String,
    /// What is wrong with it, and what would be right.
    pub reason: String,
}

/// What kind of thing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AlertKind {
    /// A rollout began, or began anew.
    Start,
    /// Its settings or its percentage were changed by hand.
    Set,
    /// More users are on the new side.
    Advance,
    /// It waits for a person's word.
    Approval,
    /// Somebody approved.
    Approve,
    /// Something keeps it from going on.
    Hold,
    /// Somebody paused it.
    Pause,
    /// Somebody let it go on.
    Resume,
    /// Both sides do not deliver the same.
    Validation,
    /// It was taken back.
    Rollback,
    /// Nobody new is moved any more.
    Stop,
    /// Everybody is on the new side.
    Complete,
    /// Everything was stopped.
    EmergencyStop,
    /// Anything else.
    Other,
}

impl AlertKind {
    /// What an action of the journal is.
    pub fn of_action(action: &str) -> Self {
        let name =
            serde_json::Value::from(if action == "validated" { "validation" } else { action });
        serde_json::from_value(name).unwrap_or(Self::Other)
    }
}

/// What people are to be told.
#[derive(Clone, Debug, PartialEq)]
pub struct Alert {
    /// About which rollout.
    pub component: String,
    /// What kind of thing happened.
    pub happening: AlertKind,
    /// Whether somebody should be woken.
    pub urgent: bool,
    /// What happened, and why.
    pub text: String,
    /// What was measured.
    pub figures: Option<serde_json::Value>,
}

/// Where alerts are raised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// What kind of place.
    pub environment: String,
    /// Which node.
    pub node: String,
}

/// How many alerts are kept; the oldest are forgotten first.
pub const KEPT: usize = 500;

/// Alerts that wait to be kept.
const WAITING: usize = 256;

/// Bytes of a text, and of figures.
const TEXT_BYTES: usize = 2048;
const FIGURES_BYTES: usize = 4096;

/// Raises, keeps and shows alerts.
#[derive(Debug)]
pub struct Alerts {
    place: Place,
    /// This life of this node: two nodes may have one name.
    me: Uuid,
    book: AlertLog,
    raised: mpsc::Sender<StoredAlert>,
    lost: AtomicU64,
}

impl Alerts {
    /// Begins to keep what is raised, and to tell the webhooks.
    ///
    /// # Errors
    /// Says which webhook cannot be used.
    pub fn start(
        store: Arc<dyn Store>,
        config: &AlertConfig,
        place: Place,
        metrics: &Metrics,
        stage: &Stage,
    ) -> Result<Arc<Self>, AlertError> {
        let (raised, waiting) = mpsc::channel(WAITING);
        // Each webhook has at most all that is kept to tell of.
        let (told, hears) = mpsc::channel(KEPT);
        let mut hooks = Vec::new();
        for target in webhook::read(config)? {
            let (post, posted) = mpsc::channel(KEPT);
            hooks.push(WebhookQueue { filter: target.filter(), post });
            let postman = Post::new(target, config, metrics, told.clone())?;
            let stopping = stage.stopping().clone();
            stage.spawn("webhook", async move {
                let _ = stopping.run_until_cancelled(Box::pin(postman.run(posted))).await;
            });
        }
        let me = Uuid::new_v4();
        let book = AlertLog::new(store, config.repeat_after);
        let lost = AtomicU64::new(0);
        let this = Arc::new(Self { place, me, book, raised, lost });
        let count = metrics.alerts.clone();
        let keeper = AlertDispatcher::new(Arc::clone(&this), hooks, config, count);
        let stopping = stage.stopping().clone();
        stage.spawn("alerts", Box::pin(keeper.run(waiting, hears, stopping)));
        Ok(this)
    }

    /// Tells people. Never waits: what does not fit is counted and said in the log.
    pub fn raise(&self, alert: Alert) {
        let Alert { component, happening, urgent, mut text, figures } = alert;
        if TEXT_BYTES < text.len() {
            let end = (0..=TEXT_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.truncate(end);
            text.push('…');
        }
        let small = |figures: &serde_json::Value| figures.to_string().len() <= FIGURES_BYTES;
        let kept = StoredAlert {
            id: Uuid::now_v7(),
            happening,
            component,
            at: lifecycle::unix_ms(),
            urgent,
            text,
            figures: figures.filter(small),
            environment: self.place.environment.clone(),
            node: self.place.node.clone(),
            acknowledged: None,
            sender: self.me,
            unsent: Vec::new(),
            sent_to: Vec::new(),
            failed: Vec::new(),
        };
        if let Err(err) = self.raised.try_send(kept) {
            self.lost.fetch_add(1, Ordering::Relaxed);
            let (mpsc::error::TrySendError::Full(alert) | mpsc::error::TrySendError::Closed(alert)) =
                err;
            warn!(
                component = alert.component,
                text = alert.text,
                "an alert is told here only: too many wait to be kept"
            );
        }
    }

    /// How many could not be kept for want of room, since the node started.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Those that are kept, the newest first.
    ///
    /// # Errors
    /// When the store is away.
    pub async fn list(&self) -> Result<Vec<StoredAlert>, BrokerError> {
        self.book.read().await
    }

    /// Somebody has seen one. Who was first stays so. None where there is no such alert.
    ///
    /// # Errors
    /// When the store is away.
    pub async fn acknowledge(
        &self,
        id: Uuid,
        by: &str,
    ) -> Result<Option<StoredAlert>, BrokerError> {
        let at = lifecycle::unix_ms();
        self.book
            .change(|alerts| {
                let alert = alerts.iter_mut().find(|alert| alert.id == id)?;
                let first = || Acknowledged { by: by.to_owned(), at };
                alert.acknowledged.get_or_insert_with(first);
                Some(alert.clone())
            })
            .await
    }
}
