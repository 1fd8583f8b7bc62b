//! The stored list of alerts: one bounded record, changed by compare-and-set.
//!
//! A store cannot delete keys, so one key per alert would grow without bound.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{AlertKind, MAX_ALERTS};
use crate::broker::{
    BrokerError,
    store::{Record, Store, Write, Written},
};

/// Store key of the list.
const KEY: &str = "alerts";

/// Most attempts of a compare-and-set against concurrent writers.
const MAX_ATTEMPTS: usize = 16;

/// An alert as it is stored and returned by the API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredAlert {
    /// UUIDv7, so ids sort by time.
    pub id: Uuid,
    /// What it is about.
    #[serde(rename = "type")]
    pub kind: AlertKind,
    /// The rollout it is about.
    pub component: String,
    /// Time it was raised, in milliseconds since 1970.
    pub at: u64,
    /// Whether an operator should be paged.
    pub urgent: bool,
    /// What happened, and why.
    pub text: String,
    /// Measurements that belong to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub figures: Option<serde_json::Value>,
    /// Environment of the node that raised it.
    pub environment: String,
    /// Name of the node that raised it.
    pub node: String,
    /// Acknowledgement by an operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged: Option<Acknowledgement>,
    /// Instance of the node that sends it to webhooks.
    pub sender: Uuid,
    /// Webhooks that it was not sent to yet.
    #[serde(default)]
    pub unsent: Vec<String>,
    /// Webhooks that accepted it.
    #[serde(default)]
    pub sent_to: Vec<String>,
    /// Webhooks that rejected it, or did not accept it within `alerts.give_up`.
    #[serde(default)]
    pub failed: Vec<String>,
}

/// Who acknowledged an alert, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledgement {
    /// Name of the operator or API key.
    pub by: String,
    /// In milliseconds since 1970.
    pub at: u64,
}

/// Final result of sending an alert to a webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DeliveryResult {
    pub(super) id: Uuid,
    pub(super) webhook: Arc<str>,
    pub(super) delivered: bool,
}

impl StoredAlert {
    /// Moves the webhook of a result from `unsent` to `sent_to` or `failed`; ignored if it is not
    /// unsent.
    pub(super) fn record_result(&mut self, result: &DeliveryResult) {
        if !self.unsent.iter().any(|name| **name == *result.webhook) {
            return;
        }
        self.unsent.retain(|name| **name != *result.webhook);
        let list = if result.delivered { &mut self.sent_to } else { &mut self.failed };
        list.push(result.webhook.to_string());
    }

    fn is_repeat_of(&self, other: &Self, within: u64) -> bool {
        self.component == other.component
            && self.text == other.text
            && self.at.abs_diff(other.at) < within
    }
}

/// Inserts an alert into the list. Returns false if it repeats another one within `repeat_after`.
pub(super) fn insert(
    alerts: &mut Vec<StoredAlert>,
    alert: &StoredAlert,
    repeat_after: Duration,
) -> bool {
    let within = u64::try_from(repeat_after.as_millis()).unwrap_or(u64::MAX);
    // An earlier write succeeded without our knowing; the webhook results may be newer than the
    // record.
    if let Some(known) = alerts.iter_mut().find(|other| other.id == alert.id) {
        let acknowledged = known.acknowledged.take();
        *known = StoredAlert { acknowledged, ..alert.clone() };
        return true;
    }
    if alerts.iter().any(|other| other.is_repeat_of(alert, within)) {
        return false;
    }
    alerts.push(alert.clone());
    // Ids sort by time.
    alerts.sort_by_key(|alert| std::cmp::Reverse(alert.id));
    alerts.truncate(MAX_ALERTS);
    true
}

/// Access to the stored list.
#[derive(Debug)]
pub(super) struct AlertLog {
    store: Arc<dyn Store>,
    pub(super) repeat_after: Duration,
}

impl AlertLog {
    pub(super) fn new(store: Arc<dyn Store>, repeat_after: Duration) -> Self {
        Self { store, repeat_after }
    }

    pub(super) fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// The alerts, newest first.
    pub(super) async fn read(&self) -> Result<Vec<StoredAlert>, BrokerError> {
        Ok(parse(self.store.get(KEY).await?.as_ref()))
    }

    /// Applies a change by compare-and-set. Writes nothing if the change leaves the list as it is.
    pub(super) async fn change<T>(
        &self,
        mut change: impl FnMut(&mut Vec<StoredAlert>) -> T,
    ) -> Result<T, BrokerError> {
        let mut record = self.store.get(KEY).await?;
        for _ in 0..MAX_ATTEMPTS {
            let before = parse(record.as_ref());
            let mut after = before.clone();
            let outcome = change(&mut after);
            if after == before {
                return Ok(outcome);
            }
            let expected = record.as_ref().map_or(0, |record| record.version);
            let value = serde_json::to_string(&after).unwrap_or_default();
            match self.store.put(KEY, Write { expected, value, note: None }).await? {
                Written::Done(_) => return Ok(outcome),
                Written::Conflict(now) => record = now,
            }
        }
        let reason = "the list is being changed by too many nodes at once: try again".to_owned();
        Err(BrokerError::Unavailable { broker: "alerts".to_owned(), reason })
    }
}

/// Skips alerts that this version cannot parse, such as those of a newer one.
fn parse(record: Option<&Record>) -> Vec<StoredAlert> {
    let list = record
        .and_then(|record| serde_json::from_str::<Vec<serde_json::Value>>(&record.value).ok());
    let readable = list.into_iter().flatten().filter_map(|one| serde_json::from_value(one).ok());
    readable.collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::alert) fn alert(text: &str, at: u64) -> StoredAlert {
        StoredAlert {
            id: Uuid::now_v7(),
            kind: AlertKind::Hold,
            component: "websocket-transport".to_owned(),
            at,
            urgent: false,
            text: text.to_owned(),
            figures: None,
            environment: "test".to_owned(),
            node: "a".to_owned(),
            acknowledged: None,
            sender: Uuid::nil(),
            unsent: vec!["pager".to_owned(), "chat".to_owned()],
            sent_to: Vec::new(),
            failed: Vec::new(),
        }
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn repeated_text_is_not_inserted_within_repeat_after() {
        let mut alerts = Vec::new();
        assert!(insert(&mut alerts, &alert("it waits", 1_000), MINUTE));
        assert!(!insert(&mut alerts, &alert("it waits", 60_999), MINUTE));
        assert!(insert(&mut alerts, &alert("it waits for users", 2_000), MINUTE));
        let other = StoredAlert { component: "other".to_owned(), ..alert("it waits", 2_000) };
        assert!(insert(&mut alerts, &other, MINUTE));
        assert!(insert(&mut alerts, &alert("it waits", 61_000), MINUTE));
        assert_eq!(alerts.len(), 4);
    }

    #[test]
    fn inserting_the_same_id_again_replaces_the_alert() {
        let mut alerts = Vec::new();
        let one = alert("it waits", 1_000);
        assert!(insert(&mut alerts, &one, MINUTE));
        assert!(insert(&mut alerts, &one, MINUTE));
        assert_eq!(alerts.len(), 1);
    }

    #[test]
    fn only_the_newest_alerts_are_kept() {
        let mut alerts = Vec::new();
        for n in 0..MAX_ALERTS as u64 + 20 {
            insert(&mut alerts, &alert(&format!("number {n}"), n), MINUTE);
        }
        assert_eq!(alerts.len(), MAX_ALERTS);
        assert_eq!(alerts[0].text, format!("number {}", MAX_ALERTS + 19));
    }

    #[test]
    fn a_delivery_result_is_recorded_once() {
        let mut one = alert("it waits", 1_000);
        let result = |webhook: &str, delivered| DeliveryResult {
            id: one.id,
            webhook: webhook.into(),
            delivered,
        };
        let (pager, chat, again) =
            (result("pager", true), result("chat", false), result("pager", false));
        for result in [&pager, &chat, &again] {
            one.record_result(result);
        }
        assert_eq!(one.unsent, Vec::<String>::new());
        assert_eq!((one.sent_to, one.failed), (vec!["pager".to_owned()], vec!["chat".to_owned()]));
    }
}
