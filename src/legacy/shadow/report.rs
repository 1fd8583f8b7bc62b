//! Statistics of the shadow comparison by channel: the report of `GET /api/migration/shadow`.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;

use crate::{
    legacy::compare::{ComparedEvent, Outcome},
    lifecycle::unix_ms,
};

/// Limit of channels with statistics of their own; the others share the entry `(others)`.
const CHANNELS_MAX: usize = 1000;
/// Samples kept per channel and outcome.
const SAMPLES_MAX: usize = 5;

/// The shadow comparison on one node.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Name of the node.
    pub(super) node: Arc<str>,
    /// Start of the counts, in milliseconds since 1970.
    pub(super) since: u64,
    /// Streams that are being compared now.
    pub(super) comparing: usize,
    /// Streams compared since the start.
    pub(super) streams: u64,
    /// Streams not compared, because `legacy.shadow.streams` were being compared.
    pub(super) streams_not_compared: u64,
    /// No event was lost, duplicated, late, reordered or different.
    pub(super) clean: bool,
    /// Statistics by channel. Events of a stream with several channels whose channel is unknown are
    /// counted under all its names, joined with spaces.
    pub(super) channels: BTreeMap<String, ChannelStats>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct ShadowStats {
    pub(super) compared: u64,
    pub(super) not_compared: u64,
    pub(super) channels: BTreeMap<String, ChannelStats>,
}

impl ShadowStats {
    pub(super) fn channel(&mut self, channel: &str) -> &mut ChannelStats {
        let own_entry = self.channels.contains_key(channel) || self.channels.len() < CHANNELS_MAX;
        self.channels.entry(if own_entry { channel } else { "(others)" }.to_owned()).or_default()
    }
}

/// Outcomes of one channel.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ChannelStats {
    #[serde(flatten)]
    counts: BTreeMap<&'static str, u64>,
    /// The latest events by outcome, matched ones excepted.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    samples: BTreeMap<&'static str, Vec<Sample>>,
}

#[derive(Clone, Debug, Serialize)]
struct Sample {
    /// When the outcome was found, in milliseconds since 1970.
    at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    data: String,
}

impl Default for ChannelStats {
    fn default() -> Self {
        let counts = Outcome::ALL.map(|outcome| (outcome.as_str(), 0)).into_iter().collect();
        Self { counts, samples: BTreeMap::new() }
    }
}

impl ChannelStats {
    pub(super) fn add(&mut self, outcome: Outcome, ComparedEvent { id, data, .. }: ComparedEvent) {
        *self.counts.entry(outcome.as_str()).or_default() += 1;
        if outcome == Outcome::Matched {
            return;
        }
        let samples = self.samples.entry(outcome.as_str()).or_default();
        if SAMPLES_MAX <= samples.len() {
            samples.remove(0);
        }
        samples.push(Sample { at: unix_ms(), id, data });
    }

    pub(super) fn is_clean(&self) -> bool {
        let faults = [
            Outcome::Lost,
            Outcome::Duplicated,
            Outcome::Late,
            Outcome::Reordered,
            Outcome::Different,
        ];
        faults
            .iter()
            .all(|outcome| self.counts.get(outcome.as_str()).is_none_or(|count| *count == 0))
    }
}
