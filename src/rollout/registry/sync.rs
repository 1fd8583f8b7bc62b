//! Reading the store: adopting what is newer there, restoring what it lost.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use tracing::warn;

use super::{Actor, Flags, RolloutRecord, RolloutRegistry};
use crate::{
    broker::{
        BrokerError,
        store::{Record, Write, Written},
    },
    rollout::{
        flag::{Change, Component, Flag},
        journal::{self, FLAGS, key},
    },
};

impl RolloutRegistry {
    /// Reads the store, and saves unsaved stops.
    pub(super) async fn read_store(&self) {
        let unsaved: Vec<Component> = self.unsaved.lock().keys().cloned().collect();
        for component in unsaved {
            let _ = self.save_stops(&component).await;
        }
        let before = self.now();
        match self.store.list(FLAGS).await {
            Ok(records) => self.adopt(&before, records).await,
            Err(err) => {
                self.known.send_if_modified(|known| {
                    let first = known.cut_off.is_none();
                    if first {
                        warn!(%err, "the store of the rollouts cannot be read: this node moves no client forward until it can");
                        let cut_off = Some(Instant::now());
                        *known = Arc::new(Flags { cut_off, ..Flags::clone(known) });
                    }
                    first
                });
            }
        }
    }

    async fn adopt(&self, before: &Flags, records: Vec<(String, Record)>) {
        let mut flags = Flags { by_component: BTreeMap::new(), read: true, cut_off: None };
        for (key, stored) in records {
            match serde_json::from_str::<Flag>(&stored.value) {
                Ok(flag) => {
                    let component = flag.component.clone();
                    let record = RolloutRecord { flag, stored: stored.version, unsaved: false };
                    flags.by_component.insert(component, Arc::new(record));
                }
                Err(err) => warn!(key, %err, "a rollout in the store is not valid: ignored"),
            }
        }
        for (component, known) in &before.by_component {
            let read = flags.by_component.get(component);
            if read.is_none_or(|read| known.is_newer_than(read)) && !known.unsaved {
                let _ = self.restore(known, read.map_or(0, |read| read.stored)).await;
            }
        }
        self.known.send_if_modified(|known| {
            for (component, shown) in &known.by_component {
                let read = flags.by_component.get(component);
                // A stop that has no effect any more is not waiting to be saved.
                let unsaved = shown.unsaved && self.unsaved.lock().contains_key(component);
                if unsaved || read.is_none_or(|read| shown.is_newer_than(read)) {
                    flags.by_component.insert(component.clone(), Arc::clone(shown));
                }
            }
            let same = known.read && known.cut_off.is_none();
            let changed = !same || known.by_component != flags.by_component;
            if changed {
                *known = Arc::new(flags);
            }
            changed
        });
    }

    /// Restores a rollout that the store has lost and this node still knows: a stop must not be
    /// forgotten.
    pub(super) async fn restore(
        &self,
        known: &RolloutRecord,
        expected: u64,
    ) -> Result<Written, BrokerError> {
        let component = &known.flag.component;
        warn!(%component, "the store has lost a rollout: it is restored as this node knew it");
        let refused = |err: serde_json::Error| BrokerError::Refused {
            broker: "rollout".to_owned(),
            reason: err.to_string(),
        };
        let value = serde_json::to_string(&known.flag).map_err(refused)?;
        let by = Actor { name: "gateway".to_owned(), reason: "the store had lost it".to_owned() };
        let change = Change::Set(Box::default());
        let note = Some(journal::entry(&change, &by, (&known.flag, &known.flag, &[]), None));
        self.store.put(&key(component), Write { expected, value, note }).await
    }

    /// Reads the store now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn refresh(&self) -> Result<(), BrokerError> {
        self.read_store().await;
        match self.now().cut_off {
            None => Ok(()),
            Some(_) => Err(BrokerError::Unavailable {
                broker: "rollout".to_owned(),
                reason: "the store of the rollouts cannot be read".to_owned(),
            }),
        }
    }
}
