//! The record in which alerts are kept: one bounded list, changed by compare-and-set.
//!
//! A store has no delete, so a key for each alert would stay for ever.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{AlertKind, KEPT};
use crate::broker::{
    BrokerError,
    store::{Record, Store, Write, Written},
};

/// Where the list stands in the store.
const KEY: &str = "alerts";

/// Tries to win against others who write at the same time.
const TRIES: usize = 16;

/// An alert as it is kept and shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredAlert {
    /// Sorts by time.
    pub id: Uuid,
    /// What kind of thing happened.
    #[serde(rename = "type")]
    pub happening: AlertKind,
    /// About which rollout.
    pub component: String,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// Whether somebody should be woken.
    pub urgent: bool,
    /// What happened, and why.
    pub text: String,
    /// What was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub figures: Option<serde_json::Value>,
    /// In what kind of place.
    pub environment: String,
    /// By which node.
    pub node: String,
    /// Who has seen it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged: Option<Acknowledged>,
    /// The life of a node that sends it.
    pub sender: Uuid,
    /// Webhooks that have yet to hear of it.
    #[serde(default)]
    pub unsent: Vec<String>,
    /// Webhooks that have.
    #[serde(default)]
    pub sent_to: Vec<String>,
    /// Webhooks that would not, or could not in time.
    #[serde(default)]
    pub failed: Vec<String>,
}

/// Who has seen an alert, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledged {
    /// Who.
    pub by: String,
    /// In milliseconds since 1970.
    pub at: u64,
}

/// What came of telling a webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) id: Uuid,
    pub(super) webhook: Arc<str>,
    pub(super) heard: bool,
}

impl StoredAlert {
    /// Notes what came of telling a webhook.
    pub(super) fn note(&mut self, told: &Told) {
        if !self.unsent.iter().any(|name| **name == *told.webhook) {
            return;
        }
        self.unsent.retain(|name| **name != *told.webhook);
        let list = if told.heard { &mut self.sent_to } else { &mut self.failed };
        list.push(told.webhook.to_string());
    }

    fn repeats(&self, other: &Self, within: u64) -> bool {
        self.component == other.component
            && self.text == other.text
            && self.at.abs_diff(other.at) < within
    }
}

/// Puts an alert among others; whether it was, and not said already.
pub(super) fn add(
    alerts: &mut Vec<StoredAlert>,
    alert: &StoredAlert,
    repeat_after: Duration,
) -> bool {
    let within = u64::try_from(repeat_after.as_millis()).unwrap_or(u64::MAX);
    // It was kept without our knowing; since then it may have been told.
    if let Some(known) = alerts.iter_mut().find(|other| other.id == alert.id) {
        let acknowledged = known.acknowledged.take();
        *known = StoredAlert { acknowledged, ..alert.clone() };
        return true;
    }
    if alerts.iter().any(|other| other.repeats(alert, within)) {
        return false;
    }
    alerts.push(alert.clone());
    // By id is by time.
    alerts.sort_by_key(|alert| std::cmp::Reverse(alert.id));
    alerts.truncate(KEPT);
    true
}

/// The record.
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

    /// All of it, the newest first.
    pub(super) async fn read(&self) -> Result<Vec<StoredAlert>, BrokerError> {
        Ok(parse(self.store.get(KEY).await?.as_ref()))
    }

    /// Changes it, against whoever else does. Where nothing changes nothing is written.
    pub(super) async fn change<T>(
        &self,
        mut change: impl FnMut(&mut Vec<StoredAlert>) -> T,
    ) -> Result<T, BrokerError> {
        let mut found = self.store.get(KEY).await?;
        for _ in 0..TRIES {
            let before = parse(found.as_ref());
            let mut after = before.clone();
            let outcome = change(&mut after);
            if after == before {
                return Ok(outcome);
            }
            let expected = found.as_ref().map_or(0, |record| record.version);
            let value = serde_json::to_string(&after).unwrap_or_default();
            match self.store.put(KEY, Write { expected, value, note: None }).await? {
                Written::Done(_) => return Ok(outcome),
                Written::Conflict(now) => found = now,
            }
        }
        let reason = "they are being changed by too many at once: try again".to_owned();
        Err(BrokerError::Unavailable { broker: "alerts".to_owned(), reason })
    }
}

/// What another version wrote and this one cannot read is not a reason to be silent.
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
            happening: AlertKind::Hold,
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
    fn the_same_words_are_not_said_again_for_a_while() {
        let mut alerts = Vec::new();
        assert!(add(&mut alerts, &alert("it waits", 1_000), MINUTE));
        assert!(!add(&mut alerts, &alert("it waits", 60_999), MINUTE));
        assert!(add(&mut alerts, &alert("it waits for users", 2_000), MINUTE));
        let other = StoredAlert { component: "other".to_owned(), ..alert("it waits", 2_000) };
        assert!(add(&mut alerts, &other, MINUTE));
        assert!(add(&mut alerts, &alert("it waits", 61_000), MINUTE));
        assert_eq!(alerts.len(), 4);
    }

    #[test]
    fn an_alert_that_was_kept_without_our_knowing_is_not_a_repetition_of_itself() {
        let mut alerts = Vec::new();
        let one = alert("it waits", 1_000);
        assert!(add(&mut alerts, &one, MINUTE));
        assert!(add(&mut alerts, &one, MINUTE));
        assert_eq!(alerts.len(), 1);
    }

    #[test]
    fn the_newest_are_kept() {
        let mut alerts = Vec::new();
        for n in 0..KEPT as u64 + 20 {
            add(&mut alerts, &alert(&format!("number {n}"), n), MINUTE);
        }
        assert_eq!(alerts.len(), KEPT);
        assert_eq!(alerts[0].text, format!("number {}", KEPT + 19));
    }

    #[test]
    fn what_came_of_telling_is_noted_once() {
        let mut one = alert("it waits", 1_000);
        let told = |webhook: &str, heard| Told { id: one.id, webhook: webhook.into(), heard };
        let (pager, chat, again) = (told("pager", true), told("chat", false), told("pager", false));
        for told in [&pager, &chat, &again] {
            one.note(told);
        }
        assert_eq!(one.unsent, Vec::<String>::new());
        assert_eq!((one.sent_to, one.failed), (vec!["pager".to_owned()], vec!["chat".to_owned()]));
    }
}
