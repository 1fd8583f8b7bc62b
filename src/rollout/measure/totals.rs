//! Additive totals of a rollout: counts per arm, and the evidence between the arms.

use serde::{Deserialize, Serialize};

use super::{Failure, Histogram};
use crate::rollout::{cohort::Cohort, statistics::count::Evidence};

/// Counts of the users assigned to one arm.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArmCounts {
    /// Users assigned to the arm. A user seen by several nodes is counted by each.
    pub users: u64,
    /// Users who connected to the new side at least once.
    pub users_on_new: u64,
    /// Users with at least one failure of each kind, in the order of [`Failure::ALL`].
    pub users_with: [u64; Failure::COUNT],
    /// Connection attempts that the client made by itself.
    pub connects: u64,
    /// Failed ones among `connects`.
    pub connect_failures: u64,
    /// Connection attempts that the gateway asked for, to migrate a client.
    pub migrations: u64,
    /// Failed ones among `migrations`.
    pub migration_failures: u64,
    /// Sessions resumed from a position.
    pub resumes: u64,
    /// Resumes that failed.
    pub resume_failures: u64,
    /// Resumes that continued at the head of a log, because the position was gone.
    pub resets: u64,
    /// Completed client requests.
    pub requests: u64,
    /// Failed ones among `requests`.
    pub errors: u64,
    /// Sessions that reconnected within a minute, without a goodbye and without the gateway having
    /// closed them.
    pub interruptions: u64,
    /// Sessions that used the old side because the new one was unreachable.
    pub fallbacks: u64,
    /// Members whom presence reported as left although they had not.
    pub flaps: u64,
    /// Events delivered.
    pub delivered: u64,
    /// Events that should have been delivered and were not.
    pub dropped: u64,
    /// Publish-to-receipt latencies of a sample of deliveries.
    pub latency: Histogram,
    /// Per group: sampled deliveries, and those slower than the objective.
    pub slow: Groups,
    /// Per group: samples of sessions, and the sum of their bytes.
    pub memory: Groups,
    /// Per group: users; the second number is unused.
    pub members: Groups,
}

impl ArmCounts {
    /// Number of users with at least one such failure.
    pub fn users_with(&self, failure: Failure) -> u64 {
        self.users_with[failure as usize]
    }

    /// Failed attempts and all attempts: connects, migrations, resumes and requests.
    pub fn failures(&self) -> (u64, u64) {
        let all = self.connects + self.migrations + self.resumes + self.requests;
        let failed =
            self.connect_failures + self.migration_failures + self.resume_failures + self.errors;
        (failed, all)
    }

    /// Dropped events, and all events that were due.
    pub fn drops(&self) -> (u64, u64) {
        (self.dropped, self.dropped + self.delivered)
    }

    /// Adds the counts of another node or stage.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in self.counts().into_iter().zip(other.clone().counts()) {
            *sum = sum.saturating_add(*more);
        }
        for (sum, more) in self.users_with.iter_mut().zip(other.users_with) {
            *sum = sum.saturating_add(more);
        }
        self.latency.add(&other.latency);
        self.slow.add(&other.slow);
        self.memory.add(&other.memory);
        self.members.add(&other.members);
    }

    fn counts(&mut self) -> [&mut u64; 16] {
        [
            &mut self.users,
            &mut self.users_on_new,
            &mut self.connects,
            &mut self.connect_failures,
            &mut self.migrations,
            &mut self.migration_failures,
            &mut self.resumes,
            &mut self.resume_failures,
            &mut self.resets,
            &mut self.requests,
            &mut self.errors,
            &mut self.interruptions,
            &mut self.fallbacks,
            &mut self.flaps,
            &mut self.delivered,
            &mut self.dropped,
        ]
    }

    /// Whether no part exceeds its whole and no list is too long. Checked for what was read from a
    /// store.
    pub(super) fn is_consistent(&self) -> bool {
        self.connect_failures <= self.connects
            && self.migration_failures <= self.migrations
            && self.resume_failures + self.resets <= self.resumes
            && self.errors <= self.requests
            && self.users_on_new <= self.users
            && self.users_with.iter().all(|with| *with <= self.users)
            && self.latency.is_consistent()
            && [&self.slow, &self.memory, &self.members].iter().all(|groups| groups.is_consistent())
    }
}

/// Counts of all arms, and the evidence between the new arm and all others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Users in the new arm.
    pub new: ArmCounts,
    /// Users in the control arm.
    pub control: ArmCounts,
    /// Users on the old side who are not in the control arm.
    pub rest: ArmCounts,
    /// The users' first failures of each kind, in the order of [`Failure::ALL`].
    pub evidence: [Evidence; Failure::COUNT],
}

impl Totals {
    /// The counts of a cohort.
    pub fn arm(&self, cohort: Cohort) -> &ArmCounts {
        match cohort {
            Cohort::New => &self.new,
            Cohort::Control => &self.control,
            Cohort::Rest => &self.rest,
        }
    }

    pub(super) fn arm_mut(&mut self, cohort: Cohort) -> &mut ArmCounts {
        match cohort {
            Cohort::New => &mut self.new,
            Cohort::Control => &mut self.control,
            Cohort::Rest => &mut self.rest,
        }
    }

    /// The evidence of one failure kind: new arm against all others.
    pub fn evidence(&self, failure: Failure) -> &Evidence {
        &self.evidence[failure as usize]
    }

    /// Adds the counts and the evidence of another node or stage.
    pub fn add(&mut self, other: &Self) {
        self.new.add(&other.new);
        self.control.add(&other.control);
        self.rest.add(&other.rest);
        self.add_evidence(other);
    }

    /// Adds only the evidence, where arms cannot be pooled because their sizes differed.
    pub(super) fn add_evidence(&mut self, other: &Self) {
        for (sum, more) in self.evidence.iter_mut().zip(&other.evidence) {
            sum.add(more);
        }
    }

    pub(super) fn is_consistent(&self) -> bool {
        [&self.new, &self.control, &self.rest].iter().all(|arm| arm.is_consistent())
            && self.evidence.iter().all(Evidence::is_consistent)
    }
}

/// Pairs of sums for each of a hundred jackknife groups of users, independent of the arm. The
/// deliveries of one user are correlated, so the variance of a mean is taken between groups, not
/// between deliveries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Groups(Vec<(u64, u64)>);

impl Groups {
    /// Number of groups.
    pub const COUNT: usize = 100;

    pub(super) fn record(&mut self, group: u8, count: u64, amount: u64) {
        let group = usize::from(group) % Self::COUNT;
        if self.0.len() <= group {
            self.0.resize(group + 1, (0, 0));
        }
        let (counts, sums) = &mut self.0[group];
        *counts = counts.saturating_add(count);
        *sums = sums.saturating_add(amount);
    }

    fn add(&mut self, other: &Self) {
        for (group, (count, amount)) in other.0.iter().enumerate() {
            self.record(group as u8, *count, *amount);
        }
    }

    /// The pairs of all groups, (count, amount).
    pub fn pairs(&self) -> impl Iterator<Item = (f64, f64)> + Clone {
        let all = self.0.iter().chain(std::iter::repeat(&(0, 0))).take(Self::COUNT);
        all.map(|(count, amount)| (*count as f64, *amount as f64))
    }

    fn is_consistent(&self) -> bool {
        self.0.len() <= Self::COUNT
    }
}
