//! Validation: whether both sides of a rollout deliver the same events, on the running gateway.
//!
//! Synthetic sessions subscribe through both sides, over real sockets to the address that clients
//! use, and the events they receive are compared one by one (`compare`, pure). Half of the sessions
//! read channels that clients of this node read at the moment; the other half read a channel of
//! their own, to which probes are published, so that there are events to compare without traffic.
//! They authenticate with single-use internal tickets, and count in no measurement of a rollout.

pub mod compare;
mod listener;
mod run;
mod self_connector;

use std::{collections::HashSet, net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::compare::{Counts, Example};
pub use self::self_connector::SelfConnector;
use crate::{
    auth::Auth,
    broker::{
        BrokerError,
        store::{Store, Write, Written},
    },
    node::Node,
    rollout::flag::{Component, TRANSPORT},
};

/// Section `[validation]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ValidationConfig {
    /// An address that leads to this very node, such as that of a proxy in front of it. Unset: the
    /// address that the node listens on.
    pub through: Option<SocketAddr>,
}

/// Most sessions per side.
pub const SESSIONS_MAX: usize = 1000;

/// Longest duration of a run.
pub const SECONDS_MAX: u64 = 60;

/// Prefix of the store keys of the latest outcomes.
const KEY: &str = "validation/";

/// Most attempts of a compare-and-set against concurrent writers.
const MAX_ATTEMPTS: usize = 8;

/// What each side received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sides {
    /// The side that clients are migrated from.
    pub old: Counts,
    /// The side that clients are migrated to.
    pub new: Counts,
}

/// The outcome of a validation run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The rollout that was validated.
    pub component: Component,
    /// The phase of a plan that asked for the validation, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<u64>,
    /// When it ended, in milliseconds since 1970.
    pub at: u64,
    /// Name of the node it ran on.
    pub node: String,
    /// Duration in seconds.
    pub seconds: u64,
    /// Sessions per side.
    pub sessions: usize,
    /// Events that each side should have received, summed over its sessions.
    pub events: u64,
    /// Counts per side.
    pub sides: Sides,
    /// Events that a side did not receive; this and the next four are summed over both sides.
    pub missing: u64,
    /// Repeated deliveries of an event.
    pub duplicated: u64,
    /// Events delivered after a later one.
    pub reordered: u64,
    /// Events whose content differs between the sides.
    pub different: u64,
    /// Events delivered more than half a second later than on the other side.
    pub late: u64,
    /// Whether both sides delivered the same events.
    pub passed: bool,
    /// The outcome in one sentence.
    pub summary: String,
    /// Up to ten discrepancies.
    pub examples: Vec<Example>,
}

impl Outcome {
    /// The summary, if the validation failed.
    pub fn difference(&self) -> Option<String> {
        (!self.passed).then(|| self.summary.clone())
    }
}

/// Why a validation has no outcome.
#[derive(Debug, thiserror::Error)]
pub enum ValidationError {
    /// The component has no two transports to compare.
    #[error(
        "there is nothing to compare for {0}: only {TRANSPORT} has two sides that a client can \
         subscribe through; the legacy takeover compares in its shadow mode"
    )]
    NothingToCompare(Component),
    /// A validation of the component is running on this node.
    #[error("a validation of {0} is running on this node: wait for its outcome")]
    Running(Component),
    /// The run failed, so nothing is known about either side.
    #[error("validation failed to run: {0}")]
    Failed(String),
    /// The broker is unavailable.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// Runs validations, at most one per component at a time.
#[derive(Debug)]
pub struct Validator {
    auth: Arc<Auth>,
    node: Arc<Node>,
    connector: SelfConnector,
    running: Mutex<HashSet<Component>>,
    stopping: CancellationToken,
}

/// Marks a component as being validated, until dropped.
struct Running<'a> {
    validator: &'a Validator,
    component: &'a Component,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.validator.running.lock().remove(self.component);
    }
}

impl Validator {
    /// A validator whose sessions connect through `connector`.
    pub fn new(
        auth: Arc<Auth>,
        node: Arc<Node>,
        connector: SelfConnector,
        stopping: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self { auth, node, connector, running: Mutex::default(), stopping })
    }

    /// Compares both sides with `sample` sessions each for `duration`, and stores the outcome. Both
    /// are clamped to their limits.
    ///
    /// # Errors
    /// When there are no two sides to compare, a validation is already running, or no outcome was
    /// reached.
    pub async fn validate(
        &self,
        component: &Component,
        sample: usize,
        duration: Duration,
    ) -> Result<Outcome, ValidationError> {
        self.validate_phase(component, None, sample, duration).await
    }

    /// Like [`validate`](Self::validate), for a phase of a plan that the outcome names.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub async fn validate_phase(
        &self,
        component: &Component,
        phase: Option<u64>,
        sample: usize,
        duration: Duration,
    ) -> Result<Outcome, ValidationError> {
        if component.as_str() != TRANSPORT {
            return Err(ValidationError::NothingToCompare(component.clone()));
        }
        if !self.running.lock().insert(component.clone()) {
            return Err(ValidationError::Running(component.clone()));
        }
        let _running = Running { validator: self, component };
        let seconds = duration.as_secs().clamp(1, SECONDS_MAX);
        let sample = sample.clamp(1, SESSIONS_MAX);
        let run = Box::pin(run::run(self, component, sample, Duration::from_secs(seconds)));
        let ended = self.stopping.run_until_cancelled(run).await;
        let stopping = || ValidationError::Failed("this node is stopping".to_owned());
        let outcome = Outcome { phase, ..ended.ok_or_else(stopping)?? };
        info!(%component, passed = outcome.passed, "validation: {}", outcome.summary);
        if let Err(err) = self.save(&outcome).await {
            warn!(%component, %err, "validation outcome not stored");
        }
        Ok(outcome)
    }

    /// The latest outcome of a component, from any node.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn latest(&self, component: &Component) -> Result<Option<Outcome>, BrokerError> {
        let record = self.store().get(&format!("{KEY}{component}")).await?;
        Ok(record.and_then(|record| serde_json::from_str(&record.value).ok()))
    }

    async fn save(&self, outcome: &Outcome) -> Result<(), BrokerError> {
        let (store, key) = (self.store(), format!("{KEY}{}", outcome.component));
        let mut record = store.get(&key).await?;
        for _ in 0..MAX_ATTEMPTS {
            let latest =
                record.as_ref().and_then(|record| serde_json::from_str(&record.value).ok());
            if latest.is_some_and(|latest: Outcome| outcome.at < latest.at) {
                return Ok(());
            }
            let expected = record.as_ref().map_or(0, |record| record.version);
            let value = serde_json::to_string(outcome).unwrap_or_default();
            match store.put(&key, Write { expected, value, note: None }).await? {
                Written::Done(_) => return Ok(()),
                Written::Conflict(now) => record = now,
            }
        }
        Ok(())
    }

    fn store(&self) -> Arc<dyn Store> {
        self.node.store()
    }
}
