//! What a node tells the others about what it counted, and all of it together.
//!
//! A report says everything since the epoch began, and replaces the node's earlier one. So one that
//! is late, lost, or told twice changes nothing, and the order is of no consequence.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Sums, Window};

/// One node's counts since an epoch of the rollout began.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The run of the node; a restarted one is another.
    pub node: u64,
    /// One more with each report of this node.
    pub sequence: u64,
    /// When it was made, in milliseconds since 1970.
    pub at: u64,
    /// What it was measured in.
    pub window: Window,
    /// How much of its memory the node uses, 0 to 1.
    pub memory: f64,
    /// Facts about users for whom there was no room any more.
    pub untracked: u64,
    /// Of this stage.
    pub current: Sums,
    /// Of the stages before; arms only of those up to 50 %, where both were of one size.
    pub earlier: Sums,
}

impl Report {
    fn is_sound(&self) -> bool {
        self.current.is_sound() && self.earlier.is_sound() && (0.0..=64.0).contains(&self.memory)
    }
}

/// The newest report of each node.
#[derive(Clone, Debug, Default)]
pub struct Reports {
    newest: BTreeMap<u64, Report>,
}

/// Why a report was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RejectedReport {
    /// A later one of the same node is known.
    #[error("a later report of this node is known")]
    Late,
    /// Its counts contradict each other.
    #[error("its counts contradict each other; look whether another version writes them")]
    Unsound,
    /// There are too many nodes.
    #[error("reports of {} nodes are known, and there is no room for more", Reports::NODES)]
    Full,
}

impl Reports {
    /// Of so many nodes reports are kept.
    pub const NODES: usize = 1_000;

    /// Takes a report, unless one that says more is known.
    pub fn take(&mut self, report: Report) -> Result<(), RejectedReport> {
        if !report.is_sound() {
            return Err(RejectedReport::Unsound);
        }
        let rank = |report: &Report| (report.window.epoch, report.sequence);
        match self.newest.get(&report.node) {
            Some(known) if rank(known) >= rank(&report) => return Err(RejectedReport::Late),
            None if self.newest.len() >= Self::NODES => return Err(RejectedReport::Full),
            _ => {}
        }
        self.newest.insert(report.node, report);
        Ok(())
    }

    /// All that is known of an epoch.
    pub fn measured(&self, epoch: u64) -> Measured {
        let of_epoch = || self.newest.values().filter(|report| report.window.epoch == epoch);
        let newest = of_epoch().map(|report| report.window).max_by_key(|window| window.stage);
        let mut measured = Measured { window: newest, ..Measured::default() };
        for report in of_epoch() {
            measured.nodes += 1;
            measured.freshest = measured.freshest.max(report.at);
            measured.memory = measured.memory.max(report.memory);
            measured.untracked += report.untracked;
            measured.earlier.add(&report.earlier);
            if Some(report.window.stage) == newest.map(|window| window.stage) {
                measured.current.add(&report.current);
            } else {
                report.window.close(&report.current, &mut measured.earlier);
            }
        }
        measured
    }

    /// Forgets what belongs to other epochs.
    pub fn keep(&mut self, epoch: u64) {
        self.newest.retain(|_, report| report.window.epoch == epoch);
    }
}

/// What all nodes counted together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// The newest stage that a node measures in; none while nobody has reported.
    pub window: Option<Window>,
    /// How many nodes reported in this epoch.
    pub nodes: usize,
    /// When the last of them did, in milliseconds since 1970.
    pub freshest: u64,
    /// How much of its memory the fullest node uses, 0 to 1.
    pub memory: f64,
    /// Facts about users for whom nodes had no room.
    pub untracked: u64,
    /// Of this stage.
    pub current: Sums,
    /// Of those before it.
    pub earlier: Sums,
}

impl Measured {
    /// Sums whose arms can be compared with each other: of all stages so far up to 50 %, and of this
    /// one alone above. The evidence is always of all.
    pub fn comparable(&self) -> Sums {
        let mut sums = self.current.clone();
        if self.window.is_some_and(|window| window.is_matched()) {
            sums.add(&self.earlier);
        } else {
            sums.add_evidence(&self.earlier);
        }
        sums
    }
}
