//! The journal of rollouts: one entry for each change, written in the same step as the change.

use serde::{Deserialize, Serialize};

use super::{
    flag::{Change, Component, Flag},
    schedule::{Effect, Status},
};
use crate::broker::{
    BrokerError,
    store::{Note, Store},
};

/// The prefix of the flags' keys in the store.
pub(super) const FLAGS: &str = "flags/";

/// Notes read at a time for one component: those of others with the same prefix lie between.
const PAGE: usize = 256;

/// Who changes a rollout, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actor {
    /// The name of the operator or service.
    pub name: String,
    /// The reason, in words.
    pub reason: String,
}

/// An entry of the journal, as it is kept and shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// What was changed.
    pub action: String,
    /// Who changed it.
    pub by: String,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// The percentage before and after.
    pub percentage: [f64; 2],
    /// The status before and after.
    pub status: [serde_json::Value; 2],
    /// The measurements at that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub figures: Option<serde_json::Value>,
}

/// Reads the journal, the newest entry first: of one component, or of all.
///
/// # Errors
/// When the store cannot be read.
pub(super) async fn read(
    store: &dyn Store,
    component: Option<&Component>,
    before: u64,
    limit: usize,
) -> Result<Vec<(Note, Option<Entry>)>, BrokerError> {
    let prefix = component.map_or_else(|| FLAGS.to_owned(), key);
    let (mut before, mut lines) = (before, Vec::new());
    // Another component's name may begin like this one's.
    let page = component.map_or(limit, |_| limit.max(PAGE));
    loop {
        let notes = store.journal(&prefix, before, page).await?;
        let (read, last) = (notes.len(), notes.last().map(|note| note.number));
        let ours = |note: &Note| component.is_none_or(|component| note.key == key(component));
        lines.extend(notes.into_iter().filter(ours).map(|note| {
            let entry = serde_json::from_str(&note.text).ok();
            (note, entry)
        }));
        match last {
            // A short page is the journal's last.
            Some(last) if read == page && lines.len() < limit => before = last,
            _ => break,
        }
    }
    lines.truncate(limit);
    Ok(lines)
}

/// A component's key in the store.
pub(super) fn key(component: &Component) -> String {
    format!("{FLAGS}{component}")
}

/// The entry of a change, as JSON.
pub(super) fn entry(
    change: &Change,
    by: &Actor,
    (before, after, acts): (&Flag, &Flag, &[Effect]),
    figures: Option<serde_json::Value>,
) -> String {
    let status = |flag: &Flag| serde_json::to_value(flag.course.status).unwrap_or_default();
    let told = acts.iter().filter_map(|act| match act {
        Effect::Tell { text, .. } => Some(text.as_str()),
        _ => None,
    });
    let told: Vec<_> = told.collect();
    let entry = Entry {
        action: action(change, before, after).to_owned(),
        by: by.name.clone(),
        // Who looks says nothing; what came of it does.
        reason: if by.reason.is_empty() { told.join("; ") } else { by.reason.clone() },
        percentage: [before.effective().percent(), after.effective().percent()],
        status: [status(before), status(after)],
        figures,
    };
    serde_json::to_string(&entry).unwrap_or_default()
}

/// What a look came to has a name of its own.
fn action(change: &Change, before: &Flag, after: &Flag) -> &'static str {
    let Change::Look(_) = change else { return change.name() };
    match (before.course.percentage, after.course.percentage) {
        (from, to) if from < to => "advance",
        (from, to) if to < from => "rollback",
        _ if after.course.status == Status::Completed => "complete",
        _ => "hold",
    }
}
