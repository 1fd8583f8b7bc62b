//! Alert dispatcher: stores alerts, queues them for webhooks, takes over from dead nodes.
//!
//! A single task. The node that raised an alert sends it as long as it writes its heartbeat; when
//! the heartbeat expires, another node makes itself the sender by compare-and-set. Delivery is at
//! least once: a webhook can get an alert twice, with the same id. While the store is unavailable,
//! alerts wait here and are sent to webhooks all the same.

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
    AlertConfig, Alerts, MAX_ALERTS,
    alert_log::{self, DeliveryResult, StoredAlert},
    webhook::WebhookQueue,
};
use crate::lifecycle;

/// Prefix of the store keys that hold the heartbeats of sending nodes.
const HEARTBEAT_KEYS: &str = "alerts/alive/";

/// Longest interval between heartbeats, and between searches for orphaned alerts.
const TICK: Duration = Duration::from_secs(5);

/// Time to store the last alerts when the node stops.
const FINAL_FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// State of the dispatcher task.
pub(super) struct AlertDispatcher {
    alerts: Arc<Alerts>,
    webhooks: Vec<WebhookQueue>,
    take_over: Duration,
    give_up: Duration,
    count: Counter,
    /// Raised on this node and not stored yet.
    unsaved: Vec<StoredAlert>,
    /// Webhook results that are not stored yet.
    unsaved_results: Vec<DeliveryResult>,
    /// Queued for a webhook, without a result yet.
    in_flight: HashSet<(Uuid, Arc<str>)>,
    store_unavailable: bool,
}

impl AlertDispatcher {
    pub(super) fn new(
        alerts: Arc<Alerts>,
        webhooks: Vec<WebhookQueue>,
        config: &AlertConfig,
        count: Counter,
    ) -> Self {
        Self {
            alerts,
            webhooks,
            take_over: config.take_over,
            give_up: config.give_up,
            count,
            unsaved: Vec::new(),
            unsaved_results: Vec::new(),
            in_flight: HashSet::new(),
            store_unavailable: false,
        }
    }

    pub(super) async fn run(
        mut self,
        mut raised: mpsc::Receiver<StoredAlert>,
        mut results: mpsc::Receiver<DeliveryResult>,
        stopping: CancellationToken,
    ) {
        let mut tick = interval(TICK.min(self.take_over / 3));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(alert) = raised.recv() => self.enqueue(alert),
                Some(result) = results.recv() => self.record_result(result),
                _ = tick.tick() => {
                    self.flush().await;
                    self.take_over_orphans().await;
                    continue;
                }
                () = stopping.cancelled() => break,
            }
            // Everything that is queued goes into the same write.
            while let Ok(alert) = raised.try_recv() {
                self.enqueue(alert);
            }
            while let Ok(result) = results.try_recv() {
                self.record_result(result);
            }
            self.flush().await;
        }
        while let Ok(alert) = raised.try_recv() {
            self.enqueue(alert);
        }
        while let Ok(result) = results.try_recv() {
            self.record_result(result);
        }
        if timeout(FINAL_FLUSH_TIMEOUT, self.flush()).await.is_err() || !self.unsaved.is_empty() {
            warn!(alerts = self.unsaved.len(), "alerts lost at shutdown: the store is unavailable");
        }
    }

    fn enqueue(&mut self, mut alert: StoredAlert) {
        self.count.inc();
        let matches = |webhook: &&WebhookQueue| webhook.filter.matches(&alert);
        alert.unsent = self
            .webhooks
            .iter()
            .filter(matches)
            .map(|webhook| webhook.filter.name.to_string())
            .collect();
        if MAX_ALERTS <= self.unsaved.len() {
            warn!(
                text = self.unsaved[0].text,
                "alert lost: the store is unavailable and {MAX_ALERTS} newer alerts wait for it"
            );
            self.unsaved.remove(0);
        }
        self.unsaved.push(alert);
    }

    fn record_result(&mut self, result: DeliveryResult) {
        self.in_flight.remove(&(result.id, Arc::clone(&result.webhook)));
        match self.unsaved.iter_mut().find(|alert| alert.id == result.id) {
            Some(alert) => alert.record_result(&result),
            None => self.unsaved_results.push(result),
        }
    }

    /// Stores new alerts and results, and queues the new alerts for webhooks.
    async fn flush(&mut self) {
        if self.unsaved.is_empty() && self.unsaved_results.is_empty() {
            return;
        }
        let (unsaved, results) = (&self.unsaved, &self.unsaved_results);
        let repeat_after = self.alerts.log.repeat_after;
        let written = self.alerts.log.change(|alerts| {
            let inserted: Vec<bool> = unsaved
                .iter()
                .map(|alert| alert_log::insert(alerts, alert, repeat_after))
                .collect();
            for result in results {
                if let Some(alert) = alerts.iter_mut().find(|alert| alert.id == result.id) {
                    alert.record_result(result);
                }
            }
            inserted
        });
        match written.await {
            Ok(inserted) => {
                self.unsaved_results.clear();
                self.store_unavailable = false;
                let unsaved = std::mem::take(&mut self.unsaved);
                for (alert, inserted) in unsaved.into_iter().zip(inserted) {
                    if inserted {
                        info!(
                            component = alert.component,
                            urgent = alert.urgent,
                            "alert: {}",
                            alert.text
                        );
                        self.dispatch(&alert);
                    }
                }
            }
            Err(err) => {
                if !std::mem::replace(&mut self.store_unavailable, true) {
                    warn!(%err, "alerts not stored, trying again; webhooks are called meanwhile");
                }
                for alert in self.unsaved.clone() {
                    self.dispatch(&alert);
                }
            }
        }
    }

    /// Queues an alert for the webhooks it is unsent to. A webhook whose queue is full gets it at a
    /// later tick.
    fn dispatch(&mut self, alert: &StoredAlert) {
        for webhook in &self.webhooks {
            let name = &webhook.filter.name;
            let delivery = (alert.id, Arc::clone(name));
            let is_unsent = alert.unsent.iter().any(|unsent| **unsent == **name);
            if is_unsent
                && !self.in_flight.contains(&delivery)
                && webhook.queue.try_send(alert.clone()).is_ok()
            {
                self.in_flight.insert(delivery);
            }
        }
    }

    /// Writes this node's heartbeat, and takes over alerts of nodes whose heartbeat expired.
    async fn take_over_orphans(&mut self) {
        if self.webhooks.is_empty() {
            return;
        }
        let (instance, store) = (self.alerts.instance, self.alerts.log.store());
        let heartbeat = format!("{HEARTBEAT_KEYS}{instance}");
        if store.tell(&heartbeat, "", self.take_over).await.is_err() {
            return;
        }
        let (Ok(alerts), Ok(heartbeats)) =
            (self.alerts.list().await, store.told(HEARTBEAT_KEYS).await)
        else {
            return;
        };
        let alive: HashSet<_> =
            heartbeats.iter().filter_map(|(key, _)| key.rsplit('/').next()).collect();
        let is_alive = |sender: Uuid| sender == instance || alive.contains(&*sender.to_string());
        let names: HashSet<_> =
            self.webhooks.iter().map(|webhook| webhook.filter.name.to_string()).collect();
        let before = |age: Duration| {
            lifecycle::unix_ms().saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
        };
        let (take_over_before, expired_before) = (before(self.take_over), before(self.give_up));
        let has_local_webhook =
            |alert: &StoredAlert| alert.unsent.iter().any(|name| names.contains(name));
        let abandoned = |alert: &StoredAlert| {
            !alert.unsent.is_empty() && alert.at < take_over_before && !is_alive(alert.sender)
        };
        let is_orphaned = |alert: &StoredAlert| {
            abandoned(alert) && (has_local_webhook(alert) || alert.at < expired_before)
        };
        if alerts.iter().any(is_orphaned) {
            let taken_over = self.alerts.log.change(|alerts| {
                for alert in alerts.iter_mut().filter(|alert| is_orphaned(alert)) {
                    if alert.at < expired_before {
                        // `alerts.give_up` is over, whether or not a webhook of that name exists
                        // here.
                        alert.failed.append(&mut alert.unsent);
                    } else {
                        alert.sender = instance;
                    }
                }
                alerts.clone()
            });
            let Ok(alerts) = taken_over.await else { return };
            self.dispatch_own(&alerts);
        } else {
            self.dispatch_own(&alerts);
        }
    }

    fn dispatch_own(&mut self, alerts: &[StoredAlert]) {
        let instance = self.alerts.instance;
        // Oldest first.
        for alert in alerts.iter().rev().filter(|alert| alert.sender == instance) {
            let has_result = self.unsaved_results.iter().any(|result| result.id == alert.id);
            if !alert.unsent.is_empty() && !has_result {
                self.dispatch(alert);
            }
        }
    }
}
