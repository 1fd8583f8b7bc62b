//! Validation: whether both sides of a rollout deliver the same, tried on the gateway itself.
//!
//! Synthetic sessions subscribe through both sides, by real sockets to the address that clients come
//! to, and what they get is compared event by event (`compare`, pure). Half of them read channels
//! that others read here at the moment, the other half a channel of their own, to which probes are
//! published: so there is something to compare on a quiet day. They come in by passes that count
//! once (`auth::Pass`), and count in no figures of a rollout.

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
    /// An address that leads to this very node, such as that of a proxy in front of it; unset, the
    /// node's own.
    pub through: Option<SocketAddr>,
}

/// Sessions of a run, on each side.
pub const SESSIONS_MAX: usize = 1000;

/// How long a run may listen.
pub const SECONDS_MAX: u64 = 60;

/// Where the newest outcomes are kept.
const KEY: &str = "validation/";

/// Tries to win against others who write at the same time.
const TRIES: usize = 8;

/// What both sides got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sides {
    /// The one that is left.
    pub old: Counts,
    /// The one that is moved to.
    pub new: Counts,
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Of which rollout.
    pub component: Component,
    /// Which phase of a plan it was asked for, if that was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<u64>,
    /// When it was over, in milliseconds since 1970.
    pub at: u64,
    /// On which node.
    pub node: String,
    /// How long it listened.
    pub seconds: u64,
    /// Sessions on each side.
    pub sessions: usize,
    /// Events that each side should have got, summed over its sessions.
    pub events: u64,
    /// Side by side.
    pub sides: Sides,
    /// Of both sides, as the next four.
    pub missing: u64,
    /// Times an event came again.
    pub duplicated: u64,
    /// Events that came after a later one.
    pub reordered: u64,
    /// Events that say something else on the other side.
    pub different: u64,
    /// Events that came long after the other side had them.
    pub late: u64,
    /// Whether both sides deliver the same.
    pub passed: bool,
    /// The same in words.
    pub sentence: String,
    /// Some of the events that are not as they should be.
    pub examples: Vec<Example>,
}

impl Outcome {
    /// What differs, if something does.
    pub fn differs(&self) -> Option<String> {
        (!self.passed).then(|| self.sentence.clone())
    }
}

/// Why there is no outcome.
#[derive(Debug, thiserror::Error)]
pub enum ValidationError {
    /// It is no transport.
    #[error(
        "there is nothing to compare for {0}: only {TRANSPORT} has two sides that a client can \
         subscribe through; the legacy takeover compares in its shadow mode"
    )]
    NothingToCompare(Component),
    /// One at a time.
    #[error("a validation of {0} is running on this node: wait for its outcome")]
    Running(Component),
    /// Nothing can be said about either side.
    #[error("the validation could not be done: {0}")]
    Failed(String),
    /// The broker is away.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// Compares the sides of a rollout.
#[derive(Debug)]
pub struct Validator {
    auth: Arc<Auth>,
    node: Arc<Node>,
    door: SelfConnector,
    running: Mutex<HashSet<Component>>,
    stopping: CancellationToken,
}

/// Ends with the run, however that ends.
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
    /// One that comes in by this door.
    pub fn new(
        auth: Arc<Auth>,
        node: Arc<Node>,
        door: SelfConnector,
        stopping: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self { auth, node, door, running: Mutex::default(), stopping })
    }

    /// Compares both sides with so many sessions on each, for so long, and keeps the outcome.
    ///
    /// # Errors
    /// Says why nothing can be said.
    pub async fn validate(
        &self,
        component: &Component,
        sample: usize,
        duration: Duration,
    ) -> Result<Outcome, ValidationError> {
        self.validate_phase(component, None, sample, duration).await
    }

    /// The same for a phase of somebody's plan, which the outcome names.
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
        info!(%component, passed = outcome.passed, "validation: {}", outcome.sentence);
        if let Err(err) = self.keep(&outcome).await {
            warn!(%component, %err, "the outcome of a validation could not be kept");
        }
        Ok(outcome)
    }

    /// The newest outcome, on whichever node it was.
    ///
    /// # Errors
    /// When the store is away.
    pub async fn newest(&self, component: &Component) -> Result<Option<Outcome>, BrokerError> {
        let record = self.store().get(&format!("{KEY}{component}")).await?;
        Ok(record.and_then(|record| serde_json::from_str(&record.value).ok()))
    }

    async fn keep(&self, outcome: &Outcome) -> Result<(), BrokerError> {
        let (store, key) = (self.store(), format!("{KEY}{}", outcome.component));
        let mut found = store.get(&key).await?;
        for _ in 0..TRIES {
            let newest = found.as_ref().and_then(|found| serde_json::from_str(&found.value).ok());
            if newest.is_some_and(|newest: Outcome| outcome.at < newest.at) {
                return Ok(());
            }
            let expected = found.as_ref().map_or(0, |record| record.version);
            let value = serde_json::to_string(outcome).unwrap_or_default();
            match store.put(&key, Write { expected, value, note: None }).await? {
                Written::Done(_) => return Ok(()),
                Written::Conflict(now) => found = now,
            }
        }
        Ok(())
    }

    fn store(&self) -> Arc<dyn Store> {
        self.node.store()
    }
}
