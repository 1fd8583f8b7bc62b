//! Stops: applied on this node at once, saved as soon as the store can be written.

use std::sync::Arc;

use tracing::{info, warn};

use super::{Actor, ChangeError, Changed, RolloutRecord, RolloutRegistry};
use crate::{
    broker::{BrokerError, store::Written},
    lifecycle,
    rollout::flag::{Change, Component},
};

impl RolloutRegistry {
    /// Applies a stop on this node, then saves it. The caller need not wait for the store: an unsaved
    /// stop is saved with the next read of it.
    pub(super) async fn stop(
        &self,
        component: &Component,
        change: &Change,
        expected: Option<u64>,
        by: &Actor,
    ) -> Result<Changed, ChangeError> {
        let flags = self.now();
        let Some(known) = flags.by_component.get(component) else {
            return Err(ChangeError::Unknown(component.clone()));
        };
        let found = known.flag.version;
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            let component = component.clone();
            return Err(ChangeError::Version { component, expected, found });
        }
        let now = lifecycle::unix_ms();
        let (mut flag, effects) = known.flag.after(change, &by.reason, now)?;
        // As it will be saved: clients that connected before the stop are told apart by its time.
        flag.mark_changed(now, &by.name);
        let now = Arc::new(RolloutRecord { flag, stored: known.stored, unsaved: true });
        self.unsaved
            .lock()
            .entry(component.clone())
            .or_default()
            .push((change.clone(), by.clone()));
        self.publish(&now);
        match self.save_stops(component).await {
            Ok(()) => {
                let flags = self.now();
                let now = flags.by_component.get(component).cloned().unwrap_or(now);
                Ok(Changed { now, saved: true, effects })
            }
            Err(ChangeError::Store(err)) => {
                warn!(%component, %err, reason = by.reason, "stopped on this node; the store cannot be written, it is retried");
                Ok(Changed { now, saved: false, effects })
            }
            Err(err) => Err(err),
        }
    }

    /// Saves the stops of a rollout that are in force on this node only.
    pub(super) async fn save_stops(&self, component: &Component) -> Result<(), ChangeError> {
        if !self.unsaved.lock().contains_key(component) {
            return Ok(());
        }
        let _turn = self.saving.lock().await;
        loop {
            let first = self
                .unsaved
                .lock()
                .get(component)
                .and_then(|unsaved_stops| unsaved_stops.first().cloned());
            let Some((change, by)) = first else { return Ok(()) };
            let saved = self.save(component, &change, None, &by, None).await;
            let saved = match saved {
                // The store has lost the rollout: it is restored as stopped.
                Err(ChangeError::Unknown(_)) => self.restore_stopped(component).await,
                saved => saved.map(|(now, _)| now),
            };
            match saved {
                Ok(now) => {
                    self.stop_saved(component);
                    self.publish(&now);
                }
                Err(ChangeError::Store(err)) => return Err(err.into()),
                Err(err) => {
                    // Another stop leaves nothing to do.
                    info!(%component, %err, "a stop has no effect any more");
                    self.stop_saved(component);
                }
            }
        }
    }

    /// The first unsaved stop of a rollout was saved.
    fn stop_saved(&self, component: &Component) {
        let mut unsaved = self.unsaved.lock();
        if let Some(unsaved_stops) = unsaved.get_mut(component) {
            unsaved_stops.remove(0);
            if unsaved_stops.is_empty() {
                unsaved.remove(component);
            }
        }
    }

    async fn restore_stopped(
        &self,
        component: &Component,
    ) -> Result<Arc<RolloutRecord>, ChangeError> {
        let flags = self.now();
        let Some(known) = flags.by_component.get(component) else {
            return Err(ChangeError::Unknown(component.clone()));
        };
        match self.restore(known, 0).await? {
            Written::Done(stored) => {
                Ok(Arc::new(RolloutRecord { flag: known.flag.clone(), stored, unsaved: false }))
            }
            Written::Conflict(_) => Err(BrokerError::Unavailable {
                broker: "rollout".to_owned(),
                reason: "another node wrote first: it is retried".to_owned(),
            }
            .into()),
        }
    }
}
