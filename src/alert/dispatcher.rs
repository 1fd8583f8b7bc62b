//! Keeps what is raised, hands it to the webhooks, and takes over what a dead node had not sent.
//!
//! One task. An alert is sent by the node that raised it, as long as that node says that it lives;
//! whoever notices that it does not makes the alert its own by compare-and-set. So a webhook can
//! hear of an alert twice, never of none: at least once, and the id says that it is the same. While
//! the store is away alerts wait here, and the webhooks are told all the same.

use std::{collections::HashSet, sync::Arc, time::Duration};

use prometheus_client::metrics::counter::Counter;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::{
    AlertConfig, Alerts, KEPT,
    alert_log::{self, StoredAlert, Told},
    webhook::WebhookQueue,
};
use crate::lifecycle;

/// Where nodes that send say that they live.
const ALIVE: &str = "alerts/alive/";

/// How often they say so and look for what others left, at the least.
const TICK: Duration = Duration::from_secs(5);

/// When the node stops, what was raised last is kept within this time.
const LAST: Duration = Duration::from_secs(2);

/// The task's own.
pub(super) struct AlertDispatcher {
    alerts: Arc<Alerts>,
    hooks: Vec<WebhookQueue>,
    take_over: Duration,
    give_up: Duration,
    count: Counter,
    /// Raised here, not in the store yet.
    unkept: Vec<StoredAlert>,
    /// What webhooks came to, not in the store yet.
    told: Vec<Told>,
    /// Handed to a webhook, nothing heard yet.
    under_way: HashSet<(Uuid, Arc<str>)>,
    cut_off: bool,
}

impl AlertDispatcher {
    pub(super) fn new(
        alerts: Arc<Alerts>,
        hooks: Vec<WebhookQueue>,
        config: &AlertConfig,
        count: Counter,
    ) -> Self {
        Self {
            alerts,
            hooks,
            take_over: config.take_over,
            give_up: config.give_up,
            count,
            unkept: Vec::new(),
            told: Vec::new(),
            under_way: HashSet::new(),
            cut_off: false,
        }
    }

    pub(super) async fn run(
        mut self,
        mut raised: mpsc::Receiver<StoredAlert>,
        mut told: mpsc::Receiver<Told>,
        stopping: CancellationToken,
    ) {
        let mut tick = interval(TICK.min(self.take_over / 3));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(alert) = raised.recv() => self.take(alert),
                Some(one) = told.recv() => self.hear(one),
                _ = tick.tick() => {
                    self.flush().await;
                    self.sweep().await;
                    continue;
                }
                () = stopping.cancelled() => break,
            }
            // Whatever else is there goes into the same writing.
            while let Ok(alert) = raised.try_recv() {
                self.take(alert);
            }
            while let Ok(one) = told.try_recv() {
                self.hear(one);
            }
            self.flush().await;
        }
        while let Ok(alert) = raised.try_recv() {
            self.take(alert);
        }
        while let Ok(one) = told.try_recv() {
            self.hear(one);
        }
        if timeout(LAST, self.flush()).await.is_err() || !self.unkept.is_empty() {
            warn!(alerts = self.unkept.len(), "alerts are lost: the store is away");
        }
    }

    fn take(&mut self, mut alert: StoredAlert) {
        self.count.inc();
        let wants = |hook: &&WebhookQueue| hook.filter.wants(&alert);
        alert.unsent =
            self.hooks.iter().filter(wants).map(|hook| hook.filter.name.to_string()).collect();
        if KEPT <= self.unkept.len() {
            warn!(text = self.unkept[0].text, "an alert is lost: the store is away for too long");
            self.unkept.remove(0);
        }
        self.unkept.push(alert);
    }

    fn hear(&mut self, told: Told) {
        self.under_way.remove(&(told.id, Arc::clone(&told.webhook)));
        match self.unkept.iter_mut().find(|alert| alert.id == told.id) {
            Some(alert) => alert.note(&told),
            None => self.told.push(told),
        }
    }

    /// Writes down what is new, and hands it to the webhooks.
    async fn flush(&mut self) {
        if self.unkept.is_empty() && self.told.is_empty() {
            return;
        }
        let (unkept, told) = (&self.unkept, &self.told);
        let repeat_after = self.alerts.book.repeat_after;
        let written = self.alerts.book.change(|alerts| {
            let kept: Vec<bool> =
                unkept.iter().map(|alert| alert_log::add(alerts, alert, repeat_after)).collect();
            for one in told {
                if let Some(alert) = alerts.iter_mut().find(|alert| alert.id == one.id) {
                    alert.note(one);
                }
            }
            kept
        });
        match written.await {
            Ok(kept) => {
                self.told.clear();
                self.cut_off = false;
                let unkept = std::mem::take(&mut self.unkept);
                for (alert, kept) in unkept.into_iter().zip(kept) {
                    if kept {
                        info!(
                            component = alert.component,
                            urgent = alert.urgent,
                            "alert: {}",
                            alert.text
                        );
                        self.hand_out(&alert);
                    }
                }
            }
            Err(err) => {
                if !std::mem::replace(&mut self.cut_off, true) {
                    warn!(%err, "alerts cannot be kept: they wait here, webhooks are told");
                }
                for alert in self.unkept.clone() {
                    self.hand_out(&alert);
                }
            }
        }
    }

    /// Gives an alert to the webhooks that have yet to hear of it. One whose queue is full gets it
    /// at a later look.
    fn hand_out(&mut self, alert: &StoredAlert) {
        for hook in &self.hooks {
            let name = &hook.filter.name;
            let letter = (alert.id, Arc::clone(name));
            let waits = alert.unsent.iter().any(|unsent| **unsent == **name);
            if waits
                && !self.under_way.contains(&letter)
                && hook.post.try_send(alert.clone()).is_ok()
            {
                self.under_way.insert(letter);
            }
        }
    }

    /// Says that this node lives, and takes over from those that do not say so any more.
    async fn sweep(&mut self) {
        if self.hooks.is_empty() {
            return;
        }
        let (me, store) = (self.alerts.me, self.alerts.book.store());
        let alive = format!("{ALIVE}{me}");
        if store.tell(&alive, "", self.take_over).await.is_err() {
            return;
        }
        let (Ok(alerts), Ok(told)) = (self.alerts.list().await, store.told(ALIVE).await) else {
            return;
        };
        let alive: HashSet<_> = told.iter().filter_map(|(key, _)| key.rsplit('/').next()).collect();
        let lives = |sender: Uuid| sender == me || alive.contains(&*sender.to_string());
        let names: HashSet<_> =
            self.hooks.iter().map(|hook| hook.filter.name.to_string()).collect();
        let before = |age: Duration| {
            lifecycle::unix_ms().saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
        };
        let (left, dead) = (before(self.take_over), before(self.give_up));
        let ours = |alert: &StoredAlert| alert.unsent.iter().any(|name| names.contains(name));
        let orphan = |alert: &StoredAlert| {
            !alert.unsent.is_empty() && alert.at < left && !lives(alert.sender)
        };
        let nobodys = |alert: &StoredAlert| orphan(alert) && (ours(alert) || alert.at < dead);
        if alerts.iter().any(nobodys) {
            let taken = self.alerts.book.change(|alerts| {
                for alert in alerts.iter_mut().filter(|alert| nobodys(alert)) {
                    if alert.at < dead {
                        // No webhook here has its name, or the hour is over.
                        alert.failed.append(&mut alert.unsent);
                    } else {
                        alert.sender = me;
                    }
                }
                alerts.clone()
            });
            let Ok(alerts) = taken.await else { return };
            self.send_own(&alerts);
        } else {
            self.send_own(&alerts);
        }
    }

    fn send_own(&mut self, alerts: &[StoredAlert]) {
        let me = self.alerts.me;
        // The oldest first.
        for alert in alerts.iter().rev().filter(|alert| alert.sender == me) {
            let noted = self.told.iter().any(|told| told.id == alert.id);
            if !alert.unsent.is_empty() && !noted {
                self.hand_out(alert);
            }
        }
    }
}
