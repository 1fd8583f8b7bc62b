//! Reports of rollout counters between nodes, and their sum over all nodes.
//!
//! A report holds everything since the epoch began and replaces the previous report of the same
//! node. So a late, lost or repeated report changes nothing, and the order of reports does not
//! matter. How reports are stored and read is not known here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Totals, Window};

/// The counts of one node since the rollout's epoch began.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Identifies the run of the node; a restarted node gets another one.
    pub node: u64,
    /// Increases by one with each report of this node.
    pub sequence: u64,
    /// When the report was made, in milliseconds since 1970.
    pub at: u64,
    /// The stage that `current` was counted in.
    pub window: Window,
    /// Share of memory that the node uses, 0 to 1.
    pub memory: f64,
    /// Observations of users beyond the user limit.
    pub untracked: u64,
    /// Totals of this stage.
    pub current: Totals,
    /// Totals of earlier stages. Arms only of stages up to 50 %, where both arms had the same size.
    pub earlier: Totals,
}

impl Report {
    fn is_consistent(&self) -> bool {
        self.current.is_consistent()
            && self.earlier.is_consistent()
            && (0.0..=64.0).contains(&self.memory)
    }
}

/// The latest report of each node.
#[derive(Clone, Debug, Default)]
pub struct Reports {
    latest: BTreeMap<u64, Report>,
}

/// Why a report was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RejectedReport {
    /// A later report of the same node is known.
    #[error("a later report of this node is known")]
    Stale,
    /// Its counts contradict each other.
    #[error("the counts contradict each other: check whether a node runs another version")]
    Inconsistent,
    /// The limit of nodes is reached.
    #[error("reports of {} nodes are known, which is the limit", Reports::MAX_NODES)]
    TooManyNodes,
}

impl Reports {
    /// Most nodes whose reports are kept.
    pub const MAX_NODES: usize = 1_000;

    /// Adds a report, unless one at least as new is known.
    ///
    /// # Errors
    /// When the report is stale or inconsistent, or there are too many nodes.
    pub fn insert(&mut self, report: Report) -> Result<(), RejectedReport> {
        if !report.is_consistent() {
            return Err(RejectedReport::Inconsistent);
        }
        let rank = |report: &Report| (report.window.epoch, report.sequence);
        match self.latest.get(&report.node) {
            Some(known) if rank(known) >= rank(&report) => return Err(RejectedReport::Stale),
            None if self.latest.len() >= Self::MAX_NODES => {
                return Err(RejectedReport::TooManyNodes);
            }
            _ => {}
        }
        self.latest.insert(report.node, report);
        Ok(())
    }

    /// The sum over all nodes for one epoch.
    pub fn merge(&self, epoch: u64) -> Measurements {
        let of_epoch = || self.latest.values().filter(|report| report.window.epoch == epoch);
        let newest = of_epoch().map(|report| report.window).max_by_key(|window| window.stage);
        let mut measurements = Measurements { window: newest, ..Measurements::default() };
        for report in of_epoch() {
            measurements.nodes += 1;
            measurements.last_report_at = measurements.last_report_at.max(report.at);
            measurements.memory = measurements.memory.max(report.memory);
            measurements.untracked += report.untracked;
            measurements.earlier.add(&report.earlier);
            if Some(report.window.stage) == newest.map(|window| window.stage) {
                measurements.current.add(&report.current);
            } else {
                report.window.pool(&report.current, &mut measurements.earlier);
            }
        }
        measurements
    }

    /// Drops the reports of other epochs.
    pub fn retain_epoch(&mut self, epoch: u64) {
        self.latest.retain(|_, report| report.window.epoch == epoch);
    }
}

/// What all nodes counted together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measurements {
    /// The newest stage that a node reported; none without any report.
    pub window: Option<Window>,
    /// Number of nodes that reported in this epoch.
    pub nodes: usize,
    /// Time of the most recent report, in milliseconds since 1970.
    pub last_report_at: u64,
    /// Highest share of memory used on any node, 0 to 1.
    pub memory: f64,
    /// Observations of users beyond the nodes' user limits.
    pub untracked: u64,
    /// Totals of this stage.
    pub current: Totals,
    /// Totals of earlier stages.
    pub earlier: Totals,
}

impl Measurements {
    /// Totals whose arms can be compared: of all stages up to 50 %, and above that of the current
    /// stage alone. The evidence always covers all stages.
    pub fn comparable(&self) -> Totals {
        let mut totals = self.current.clone();
        if self.window.is_some_and(|window| window.has_equal_arms()) {
            totals.add(&self.earlier);
        } else {
            totals.add_evidence(&self.earlier);
        }
        totals
    }
}
