//! Crossfading: who belongs on the new side, and whether it does well there.
//!
//! Everything here that judges is pure: time comes in as a number, and what was seen as counts.

pub mod assignment;
pub mod cohort;
pub mod evaluation_results;
pub mod evaluator;
pub mod flag;
pub mod guardrail;
pub mod journal;
mod lease;
pub mod measure;
pub mod meter;
pub mod node_counts;
mod percentage;
pub mod record;
pub mod registry;
pub mod schedule;
#[cfg(test)]
mod simulation;
pub mod source;
pub mod statistics;

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use self::{
    evaluation_results::EvaluationResults,
    evaluator::{Evaluator, News},
    meter::Meter,
    node_counts::NodeCountsTable,
    registry::RolloutRegistry,
    source::{Source, SourceConfig, SourceError},
};
use crate::{broker::Store, lifecycle::Stage};

/// What a node knows of the rollouts, and does for them.
#[derive(Clone, Debug)]
pub struct Rollouts {
    /// The rollouts as this node knows them.
    pub registry: Arc<RolloutRegistry>,
    /// What this node counts.
    pub meter: Arc<Meter>,
    /// How many are where.
    pub node_counts: Arc<NodeCountsTable>,
    /// What was found by looking.
    pub evaluation_results: Arc<EvaluationResults>,
}

/// Which node this is.
#[derive(Clone, Debug)]
pub struct Place {
    /// What the node is called.
    pub node: String,
    /// Which run of it this is.
    pub run: String,
    /// The environment that conditions name.
    pub environment: String,
    /// How much of its memory the node uses, 0 to 1.
    pub memory: fn() -> f64,
}

impl Rollouts {
    /// Begins to read, count and look. What comes of looking comes up the channel.
    ///
    /// # Errors
    /// When the source cannot be asked as configured.
    pub fn start(
        store: &Arc<dyn Store>,
        place: &Place,
        config: &RolloutConfig,
        stage: &Stage,
    ) -> Result<(Self, mpsc::Receiver<News>), SourceError> {
        let registry =
            RolloutRegistry::start(Arc::clone(store), &place.environment, config.poll, stage);
        let meter = Meter::start(Arc::clone(&registry), place.memory, stage);
        let node_counts = NodeCountsTable::start(Arc::clone(store), stage);
        let evaluation_results =
            EvaluationResults::start(Arc::clone(&registry), Arc::clone(&node_counts), stage);
        let news = Evaluator::start(Arc::clone(&registry), place, stage);
        if let Some(source) = &config.source {
            Source::start(source, Arc::clone(&registry), &place.run, stage)?;
        }
        Ok((Self { registry, meter, node_counts, evaluation_results }, news))
    }
}

/// Section `[rollout]`, besides what concerns moving.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RolloutConfig {
    /// The store is looked at this often; all nodes agree within twice this time.
    #[serde(with = "humantime_serde")]
    pub poll: Duration,
    /// How fast clients are moved.
    pub drain: DrainConfig,
    /// Another flag system that says a percentage.
    pub source: Option<SourceConfig>,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self { poll: Duration::from_millis(400), drain: DrainConfig::default(), source: None }
    }
}

/// Section `[rollout.drain]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrainConfig {
    /// Sessions per second that are asked to move, over all nodes.
    pub rate: u32,
    /// The same when a rollout is turned back.
    pub emergency_rate: u32,
    /// A client that is asked moves at a moment of its own within this time.
    #[serde(with = "humantime_serde")]
    pub within: Duration,
    /// A client that was asked and is still there is asked again after this time.
    #[serde(with = "humantime_serde")]
    pub ask_again: Duration,
}

impl Default for DrainConfig {
    fn default() -> Self {
        Self {
            rate: 200,
            emergency_rate: 2000,
            within: Duration::from_secs(1),
            ask_again: Duration::from_secs(60),
        }
    }
}
