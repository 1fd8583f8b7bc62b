//! The registry of rollouts: what this node knows of them, read from the store and changed there.
//!
//! The store decides; every node reads it often enough that all nodes agree within a second. A node
//! that cannot reach the store keeps what it knew, refuses changes, and still applies a stop: on this
//! node at once, and in the store as soon as that can be written. Knows no connection.
//!
//! `stops` applies stops before they are saved, `sync` reads the store.

mod stops;
mod sync;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::info;

use super::{
    assignment::{Assignment, Unit},
    flag::{Change, Component, Flag, Settings},
    journal::{self, key},
    schedule::{Effect, Refused},
};
pub use super::{
    journal::{Actor, Entry},
    record::{Flags, RolloutRecord},
};
use crate::{
    broker::{
        BrokerError,
        store::{Note, Record, Store, Write, Written},
    },
    lifecycle::{self, Stage},
};

/// Tries to win against others who write at the same time.
const TRIES: usize = 16;

/// The rollouts, as this node knows them.
#[derive(Debug)]
pub struct RolloutRegistry {
    store: Arc<dyn Store>,
    environment: String,
    known: watch::Sender<Arc<Flags>>,
    /// Stops that could not be saved yet.
    unsaved: Mutex<BTreeMap<Component, Vec<(Change, Actor)>>>,
    /// Held while unsaved stops are being saved.
    saving: tokio::sync::Mutex<()>,
}

/// What came of a change.
#[derive(Clone, Debug, PartialEq)]
pub struct Changed {
    /// The rollout as it is now.
    pub now: Arc<RolloutRecord>,
    /// Whether it was saved. A stop that was not is in force on this node until it can be.
    pub saved: bool,
    /// What has to be done now.
    pub effects: Vec<Effect>,
}

/// Why a rollout was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// There is no rollout of this name.
    #[error("there is no rollout of {0}: create it with PUT /api/migration/feature-flags/{0}")]
    Unknown(Component),
    /// It was changed meanwhile.
    #[error("{component} has version {found}, not {expected}: read it again, then decide")]
    Version {
        /// The rollout.
        component: Component,
        /// The version that the caller read.
        expected: u64,
        /// The current version.
        found: u64,
    },
    /// The rollout's state does not allow it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The store cannot be reached.
    #[error(transparent)]
    Store(#[from] BrokerError),
}

impl RolloutRegistry {
    /// Starts to read the store, every `poll`.
    pub fn start(
        store: Arc<dyn Store>,
        environment: &str,
        poll: Duration,
        stage: &Stage,
    ) -> Arc<Self> {
        let this = Arc::new(Self {
            store,
            environment: environment.to_owned(),
            known: watch::Sender::default(),
            unsaved: Mutex::default(),
            saving: tokio::sync::Mutex::default(),
        });
        let (registry, stopping) = (Arc::clone(&this), stage.stopping().clone());
        stage.spawn("rollouts", async move {
            let reading = async {
                let mut tick = tokio::time::interval(poll);
                tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                loop {
                    tick.tick().await;
                    registry.read_store().await;
                }
            };
            let _ = stopping.run_until_cancelled(reading).await;
        });
        this
    }

    /// The rollouts at this moment.
    pub fn now(&self) -> Arc<Flags> {
        Arc::clone(&self.known.borrow())
    }

    /// Notified whenever something changes.
    pub fn changes(&self) -> watch::Receiver<Arc<Flags>> {
        self.known.subscribe()
    }

    /// The store of the rollouts.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The environment that conditions refer to.
    pub fn environment(&self) -> &str {
        &self.environment
    }

    /// The assignment of a unit; none where there is no such rollout.
    pub fn assignment(
        &self,
        component: &str,
        unit: &Unit,
    ) -> Option<(Arc<RolloutRecord>, Assignment)> {
        let record = Arc::clone(self.now().get(component)?);
        let assignment = record.flag.assignment(unit, &self.environment);
        Some((record, assignment))
    }

    /// Changes a rollout, if it still has the version that the caller read.
    ///
    /// # Errors
    /// When the version is another, the state does not allow the change, or the store cannot be
    /// reached. A stop does not fail because of the store.
    pub async fn change(
        &self,
        component: &Component,
        change: &Change,
        expected: Option<u64>,
        by: &Actor,
    ) -> Result<Changed, ChangeError> {
        self.change_noting(component, change, expected, by, None).await
    }

    /// The same, with measurements for the journal.
    ///
    /// # Errors
    /// As [`change`](Self::change).
    pub async fn change_noting(
        &self,
        component: &Component,
        change: &Change,
        expected: Option<u64>,
        by: &Actor,
        figures: Option<serde_json::Value>,
    ) -> Result<Changed, ChangeError> {
        if change.is_stop() && self.now().by_component.contains_key(component) {
            return self.stop(component, change, expected, by).await;
        }
        // Unsaved stops come first.
        self.save_stops(component).await?;
        let (now, effects) = self.save(component, change, expected, by, figures).await?;
        self.publish(&now);
        Ok(Changed { now, saved: true, effects })
    }

    /// The journal, the newest entry first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn journal(
        &self,
        component: Option<&Component>,
        before: u64,
        limit: usize,
    ) -> Result<Vec<(Note, Option<Entry>)>, BrokerError> {
        journal::read(&*self.store, component, before, limit).await
    }

    async fn save(
        &self,
        component: &Component,
        change: &Change,
        expected: Option<u64>,
        by: &Actor,
        figures: Option<serde_json::Value>,
    ) -> Result<(Arc<RolloutRecord>, Vec<Effect>), ChangeError> {
        let key = key(component);
        let mut found = self.store.get(&key).await?;
        for _ in 0..TRIES {
            let (stored, read) = stored_flag(component, found.as_ref(), change)?;
            let before = self.newest(stored, read);
            let differs = |expected: &u64| *expected != before.version;
            if let Some(expected) = expected.filter(differs) {
                let (component, found) = (component.clone(), before.version);
                return Err(ChangeError::Version { component, expected, found });
            }
            let now = lifecycle::unix_ms();
            let (mut after, effects) = before.after(change, &by.reason, now)?;
            if after == before && matches!(change, Change::Look(_)) {
                return Ok((
                    Arc::new(RolloutRecord { flag: after, stored, unsaved: false }),
                    effects,
                ));
            }
            // An evaluation that changed nothing gets no version of its own.
            let visible = !effects.is_empty() || !matches!(change, Change::Look(_));
            if visible {
                after.mark_changed(now, &by.name);
            }
            let note = visible
                .then(|| journal::entry(change, by, (&before, &after, &effects), figures.clone()));
            let value = serde_json::to_string(&after).map_err(|err| Refused(err.to_string()))?;
            match self.store.put(&key, Write { expected: stored, value, note }).await? {
                Written::Done(stored) => {
                    if visible {
                        info!(
                            %component, version = after.version, action = change.name(),
                            by = by.name, reason = after.course.reason,
                            percentage = %after.effective(), "rollout changed"
                        );
                    }
                    return Ok((
                        Arc::new(RolloutRecord { flag: after, stored, unsaved: false }),
                        effects,
                    ));
                }
                Written::Conflict(now) => found = now,
            }
        }
        let reason = format!("{component} is being changed by many callers at once: try again");
        Err(ChangeError::Store(BrokerError::Unavailable { broker: "rollout".to_owned(), reason }))
    }

    /// The flag that was read, unless this node knows a newer one: a failover of the store that lost its
    /// last writes must not bring back what was stopped.
    fn newest(&self, stored: u64, read: Flag) -> Flag {
        let flags = self.now();
        let read = RolloutRecord { flag: read, stored, unsaved: false };
        match flags.by_component.get(&read.flag.component) {
            Some(known) if known.is_newer_than(&read) && !known.unsaved => known.flag.clone(),
            _ => read.flag,
        }
    }

    fn publish(&self, record: &Arc<RolloutRecord>) {
        self.known.send_modify(|known| {
            let mut flags = Flags::clone(known);
            let shown = flags.by_component.get(&record.flag.component);
            if shown.is_none_or(|shown| record.may_replace(shown)) {
                let component = record.flag.component.clone();
                flags.by_component.insert(component, Arc::clone(record));
                *known = Arc::new(flags);
            }
        });
    }
}

/// The flag in the store, or the one that a change creates.
fn stored_flag(
    component: &Component,
    found: Option<&Record>,
    change: &Change,
) -> Result<(u64, Flag), ChangeError> {
    let Some(record) = found else {
        let settings = match change {
            Change::Set(settings) => Settings::clone(settings),
            Change::Start { .. } => Settings::default(),
            _ => return Err(ChangeError::Unknown(component.clone())),
        };
        return Ok((0, Flag::new(component.clone(), &settings)?));
    };
    let flag = serde_json::from_str(&record.value).map_err(|err| {
        Refused(format!("{component} in the store cannot be read by this version: {err}"))
    })?;
    Ok((record.version, flag))
}

#[cfg(test)]
mod tests;
