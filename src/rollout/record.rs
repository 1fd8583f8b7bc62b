//! Rollouts as a node knows them at one moment: the flag, its version in the store, and which of two
//! records is newer.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use super::flag::{Component, Flag};

/// All rollouts, as a node knows them at one moment.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    pub(super) by_component: BTreeMap<Component, Arc<RolloutRecord>>,
    /// The store has been read at least once.
    pub read: bool,
    /// Since when the store cannot be read.
    pub cut_off: Option<Instant>,
}

/// A rollout and its version in the store.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutRecord {
    /// The rollout.
    pub flag: Flag,
    /// The version of its record. It also rises with each evaluation, the flag's own does not.
    pub stored: u64,
    /// A stop that is in force on this node only, until the store can be written.
    pub unsaved: bool,
}

impl RolloutRecord {
    /// Whether this record is newer than another. By version and time: versions begin anew when a store
    /// lost everything. Not by the record's version in the store, which rises with each evaluation.
    pub(super) fn is_newer_than(&self, other: &Self) -> bool {
        other.flag.version < self.flag.version && other.flag.changed_at < self.flag.changed_at
    }

    /// Whether it may replace the current record. A stop that is not saved yet is not replaced by a
    /// softer one.
    pub(super) fn may_replace(&self, shown: &Self) -> bool {
        if shown.unsaved {
            return shown.flag.course.stop <= self.flag.course.stop;
        }
        !shown.is_newer_than(self)
    }
}

impl Flags {
    /// A rollout.
    pub fn get(&self, component: &str) -> Option<&Arc<RolloutRecord>> {
        self.by_component.iter().find(|(name, _)| name.as_str() == component).map(|(_, flag)| flag)
    }

    /// All of them, by name.
    pub fn all(&self) -> impl Iterator<Item = &Arc<RolloutRecord>> {
        self.by_component.values()
    }
}
