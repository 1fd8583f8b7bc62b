//! What was counted: per arm, and the evidence between arms. Everything adds.

use serde::{Deserialize, Serialize};

use super::{Failure, Histogram};
use crate::rollout::{cohort::Cohort, statistics::count::Evidence};

/// What was seen of the users of one arm.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// Users who were assigned to it. One who changes nodes is counted by each.
    pub users: u64,
    /// Users who stood on the new side at least once.
    pub users_on_new: u64,
    /// Users whom a trouble befell at least once, in the order of [`Failure::ALL`].
    pub users_with: [u64; Failure::COUNT],
    /// Attempts to connect that came by themselves.
    pub connects: u64,
    /// Those of them that failed.
    pub connect_failures: u64,
    /// Attempts to connect that we asked for, to move a user.
    pub moves: u64,
    /// Those of them that failed.
    pub move_failures: u64,
    /// Sessions that came back with a position.
    pub resumes: u64,
    /// Those that could not go on at all.
    pub resume_failures: u64,
    /// Those that were moved to the head of a log because theirs was gone.
    pub resets: u64,
    /// What clients asked for and told the outcome of.
    pub requests: u64,
    /// Those that failed.
    pub errors: u64,
    /// Sessions that came back within a minute, without goodbye and not by our doing.
    pub interruptions: u64,
    /// Sessions that went to the old side because the new one could not be had.
    pub fallbacks: u64,
    /// Members who left and joined again for no reason of theirs.
    pub flaps: u64,
    /// Events that reached a client.
    pub delivered: u64,
    /// Events that should have and did not.
    pub dropped: u64,
    /// From publish to the client, sampled.
    pub latency: Histogram,
    /// Per group of users: sampled deliveries, and those above the objective.
    pub slow: Groups,
    /// Per group: looks at a session, and its bytes together.
    pub memory: Groups,
    /// Per group: users, and nothing.
    pub members: Groups,
}

impl Arm {
    /// How many users a trouble befell.
    pub fn users_with(&self, trouble: Failure) -> u64 {
        self.users_with[trouble as usize]
    }

    /// Things that can fail, and those that did: connects, moves, resumes and requests.
    pub fn failures(&self) -> (u64, u64) {
        let all = self.connects + self.moves + self.resumes + self.requests;
        let failed =
            self.connect_failures + self.move_failures + self.resume_failures + self.errors;
        (failed, all)
    }

    /// Events that were lost, and all that should have come.
    pub fn drops(&self) -> (u64, u64) {
        (self.dropped, self.dropped + self.delivered)
    }

    /// Adds what was seen elsewhere.
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
            &mut self.moves,
            &mut self.move_failures,
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

    /// Whether no part counts more than its whole, and no list is longer than it can be.
    pub(super) fn is_sound(&self) -> bool {
        self.connect_failures <= self.connects
            && self.move_failures <= self.moves
            && self.resume_failures + self.resets <= self.resumes
            && self.errors <= self.requests
            && self.users_on_new <= self.users
            && self.users_with.iter().all(|with| *with <= self.users)
            && self.latency.is_sound()
            && [&self.slow, &self.memory, &self.members].iter().all(|groups| groups.is_sound())
    }
}

/// What was seen of all arms, and the evidence between the new one and the others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sums {
    /// Of the new arm.
    pub new: Arm,
    /// Of the control arm.
    pub control: Arm,
    /// Of users who are on the old side and not in the control arm.
    pub rest: Arm,
    /// First troubles of users, in the order of [`Failure::ALL`].
    pub evidence: [Evidence; Failure::COUNT],
}

impl Sums {
    /// The arm of a cohort.
    pub fn arm(&self, cohort: Cohort) -> &Arm {
        match cohort {
            Cohort::New => &self.new,
            Cohort::Control => &self.control,
            Cohort::Rest => &self.rest,
        }
    }

    pub(super) fn arm_mut(&mut self, cohort: Cohort) -> &mut Arm {
        match cohort {
            Cohort::New => &mut self.new,
            Cohort::Control => &mut self.control,
            Cohort::Rest => &mut self.rest,
        }
    }

    /// The evidence of one trouble: new users against all others.
    pub fn evidence(&self, trouble: Failure) -> &Evidence {
        &self.evidence[trouble as usize]
    }

    /// Adds what was seen elsewhere, arms and evidence.
    pub fn add(&mut self, other: &Self) {
        self.new.add(&other.new);
        self.control.add(&other.control);
        self.rest.add(&other.rest);
        self.add_evidence(other);
    }

    /// Adds the evidence alone, where arms cannot be pooled because their sizes differed.
    pub(super) fn add_evidence(&mut self, other: &Self) {
        for (sum, more) in self.evidence.iter_mut().zip(&other.evidence) {
            sum.add(more);
        }
    }

    pub(super) fn is_sound(&self) -> bool {
        [&self.new, &self.control, &self.rest].iter().all(|arm| arm.is_sound())
            && self.evidence.iter().all(Evidence::is_sound)
    }
}

/// Pairs of sums for each of a hundred groups that users fall into, whatever their arm. A user's
/// deliveries are alike, so how sure a mean is shows between groups, not between deliveries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Groups(Vec<(u64, u64)>);

impl Groups {
    /// How many groups there are.
    pub const COUNT: usize = 100;

    pub(super) fn record(&mut self, group: u8, number: u64, amount: u64) {
        let group = usize::from(group) % Self::COUNT;
        if self.0.len() <= group {
            self.0.resize(group + 1, (0, 0));
        }
        let (numbers, amounts) = &mut self.0[group];
        *numbers = numbers.saturating_add(number);
        *amounts = amounts.saturating_add(amount);
    }

    fn add(&mut self, other: &Self) {
        for (group, (number, amount)) in other.0.iter().enumerate() {
            self.record(group as u8, *number, *amount);
        }
    }

    /// The pairs of all groups.
    pub fn pairs(&self) -> impl Iterator<Item = (f64, f64)> + Clone {
        let all = self.0.iter().chain(std::iter::repeat(&(0, 0))).take(Self::COUNT);
        all.map(|(number, amount)| (*number as f64, *amount as f64))
    }

    fn is_sound(&self) -> bool {
        self.0.len() <= Self::COUNT
    }
}
