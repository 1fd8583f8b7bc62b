//! What comparing has found, counted by channel, and as `GET /api/migration/shadow` shows it.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;

use crate::{
    legacy::compare::{Kind, Seen},
    lifecycle::unix_ms,
};

/// Channels with figures of their own. The others are counted together.
const CHANNELS: usize = 1000;
/// Findings of one kind and channel that are shown.
const SAMPLES: usize = 5;

/// What comparing has found on one node.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Which.
    pub(super) node: Arc<str>,
    /// Since when, in milliseconds since 1970.
    pub(super) since: u64,
    /// Streams that are being compared.
    pub(super) comparing: usize,
    /// Streams that were, or are.
    pub(super) streams: u64,
    /// Streams that came while as many as may be were being compared.
    pub(super) streams_not_compared: u64,
    /// Nothing was lost, doubled, late, reordered or different.
    pub(super) clean: bool,
    /// By channel. A stream of several that says not which goes by all their names.
    pub(super) channels: BTreeMap<String, ChannelFigures>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Figures {
    pub(super) compared: u64,
    pub(super) not_compared: u64,
    pub(super) channels: BTreeMap<String, ChannelFigures>,
}

impl Figures {
    pub(super) fn of(&mut self, channel: &str) -> &mut ChannelFigures {
        let known = self.channels.contains_key(channel) || self.channels.len() < CHANNELS;
        self.channels.entry(if known { channel } else { "(others)" }.to_owned()).or_default()
    }
}

/// What was found in one channel.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ChannelFigures {
    #[serde(flatten)]
    counts: BTreeMap<&'static str, u64>,
    /// Some of what was found beside what matched.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    samples: BTreeMap<&'static str, Vec<Sample>>,
}

#[derive(Clone, Debug, Serialize)]
struct Sample {
    /// When it was found, in milliseconds since 1970.
    at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    data: String,
}

impl Default for ChannelFigures {
    fn default() -> Self {
        let counts = Kind::ALL.map(|kind| (kind.as_str(), 0)).into_iter().collect();
        Self { counts, samples: BTreeMap::new() }
    }
}

impl ChannelFigures {
    pub(super) fn add(&mut self, kind: Kind, Seen { id, data, .. }: Seen) {
        *self.counts.entry(kind.as_str()).or_default() += 1;
        if kind == Kind::Matched {
            return;
        }
        let samples = self.samples.entry(kind.as_str()).or_default();
        if SAMPLES <= samples.len() {
            samples.remove(0);
        }
        samples.push(Sample { at: unix_ms(), id, data });
    }

    pub(super) fn is_clean(&self) -> bool {
        let bad = [Kind::Lost, Kind::Doubled, Kind::Late, Kind::Reordered, Kind::Different];
        bad.iter().all(|kind| self.counts.get(kind.as_str()).is_none_or(|count| *count == 0))
    }
}
