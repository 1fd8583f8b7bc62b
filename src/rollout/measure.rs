//! Per-node counters of one rollout: observations of users in, additive totals per arm out.
//!
//! Owns which user counts for which arm, what counts as evidence, and the per-user limits. Pure:
//! the caller passes the time and the user. Knows no connection, lock or store; [`super::meter`]
//! has those.
//!
//! A user always counts for the arm they were assigned to (intention to treat): a client that falls
//! back to the old side still counts for the new arm.
//!
//! Every eligible user has to be recorded, including users in neither arm: failures are compared
//! with the new arm's share among all of them. Only a user's first failure of each kind in a stage
//! is evidence, because otherwise one flapping client would count as many users.
//!
//! A single client can shift the totals only a little: every reported number is capped, and each
//! user has a budget per minute.

mod histogram;
mod observation;
mod report;
mod totals;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::cohort::{self, Bucket, Cohort, HashRule, Percentage};

pub use histogram::{Histogram, Quantile};
use observation::RiskSet;
pub use observation::{Failure, Observation, Resume};
pub use report::{Measurements, RejectedReport, Report, Reports};
pub use totals::{ArmCounts, Groups, Totals};

/// A user's identity in the counters: 16 bytes, small enough to keep per session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UserKey {
    hash: u64,
    bucket: Bucket,
    group: u8,
}

impl UserKey {
    /// The key of user (or durable client) `id` in a rollout.
    pub fn new(rule: HashRule, component: &str, salt: &str, id: &str) -> Self {
        let group = cohort::jackknife(component, salt, id).number() % Groups::COUNT as u16;
        let bucket = cohort::bucket(rule, component, salt, id);
        Self { hash: cohort::key(id), bucket, group: group as u8 }
    }

    /// The assignment bucket of the user.
    pub fn bucket(self) -> Bucket {
        self.bucket
    }
}

/// A period of a rollout during which the percentage stays the same.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// The rollout's epoch. A new epoch starts all counts from zero.
    pub epoch: u64,
    /// Increases with each change of the percentage.
    pub stage: u64,
    /// The share of users in the new arm.
    pub percentage: Percentage,
    /// Latency objective: a delivery that takes longer than this many milliseconds is slow.
    pub slow_above_ms: f64,
}

impl Window {
    /// Whether the new and the control arm have the same planned size: up to 50 %.
    pub fn has_equal_arms(&self) -> bool {
        self.percentage <= Percentage::HALF
    }

    /// Adds the totals of this stage to those of earlier stages. Above 50 % only the evidence is
    /// added, because the arms differ in size.
    fn pool(&self, current: &Totals, earlier: &mut Totals) {
        if self.has_equal_arms() {
            earlier.add(current);
        } else {
            earlier.add_evidence(current);
        }
    }
}

/// What one user can add to the counts per minute.
mod budget {
    /// Connects, requests, failures and everything else without a limit of its own.
    pub(super) const OBSERVATIONS: u8 = 20;
    /// Timed deliveries.
    pub(super) const LATENCIES: u8 = 30;
    /// Events delivered or dropped.
    pub(super) const EVENTS: u16 = 60_000;
    /// Upper bound of the reported memory of one session.
    pub(super) const SESSION_BYTES: u64 = 1 << 30;
}

/// State per user: with the key and the map's overhead about 45 bytes.
#[derive(Clone, Copy, Debug)]
struct User {
    bucket: Bucket,
    minute: u16,
    events: u16,
    observations: u8,
    latencies: u8,
    group: u8,
    sessions: u16,
    /// Of the current stage: one bit per [`Failure`] that was recorded, [`SEEN`] and [`ON_NEW`].
    flags: u16,
}

/// The user had a session in this stage.
const SEEN: u16 = 1 << 14;
/// The user connected to the new side in this stage.
const ON_NEW: u16 = 1 << 15;

/// Counters of one rollout on one node.
#[derive(Debug)]
pub struct Collector {
    node: u64,
    sequence: u64,
    window: Window,
    users: HashMap<u64, User>,
    max_users: usize,
    untracked: u64,
    /// Per failure: connected users who have not had it in this stage, as (new arm, all others).
    at_risk: [(u64, u64); Failure::COUNT],
    /// Per failure: the same among all users who had a session in this stage.
    seen: [(u64, u64); Failure::COUNT],
    current: Totals,
    earlier: Totals,
}

impl Collector {
    /// Starts with empty counts. `node` identifies the run of the node. At most `max_users` users
    /// are tracked, at about 45 bytes each; observations of further users only increment
    /// `untracked`.
    pub fn new(node: u64, window: Window, max_users: usize) -> Self {
        Self {
            node,
            sequence: 0,
            window,
            users: HashMap::new(),
            max_users,
            untracked: 0,
            at_risk: Default::default(),
            seen: Default::default(),
            current: Totals::default(),
            earlier: Totals::default(),
        }
    }

    /// The stage that observations are counted in.
    pub fn window(&self) -> Window {
        self.window
    }

    /// Number of tracked users.
    pub fn users(&self) -> usize {
        self.users.len()
    }

    /// Advances to another stage or epoch; an older one is ignored.
    ///
    /// In a new stage, connected users are assigned again and each failure can become evidence once
    /// more. In a new epoch all counts and users are dropped: the salt may have changed, and with
    /// it every assignment, so the caller has to record the users again.
    pub fn enter_window(&mut self, window: Window) {
        let rank = |window: Window| (window.epoch, window.stage);
        if rank(window) <= rank(self.window) {
            return;
        }
        if window.epoch == self.window.epoch {
            self.window.pool(&self.current, &mut self.earlier);
            self.users.retain(|_, user| user.sessions > 0);
        } else {
            self.earlier = Totals::default();
            self.users.clear();
            self.untracked = 0;
        }
        self.window = window;
        self.current = Totals::default();
        self.at_risk = Default::default();
        self.seen = Default::default();
        let mut users = std::mem::take(&mut self.users);
        for user in users.values_mut() {
            user.flags = 0;
            self.count_assigned(user);
            self.update_at_risk(user, true);
            self.mark_seen(user);
        }
        self.users = users;
    }

    /// Counts one observation, made at `now` (milliseconds since 1970). Returns false if some of it
    /// was not counted: the user limit is reached or the user's budget for this minute is spent.
    pub fn record(&mut self, key: UserKey, observation: Observation<'_>, now: u64) -> bool {
        let known = self.users.get(&key.hash).copied();
        if known.is_none() && self.users.len() >= self.max_users {
            self.untracked += 1;
            return false;
        }
        let mut user = known.unwrap_or_else(|| {
            let user = User::new(key);
            self.count_assigned(&user);
            user
        });
        user.refill(now);
        let counted = self.apply(&mut user, observation);
        self.users.insert(key.hash, user);
        counted
    }

    /// Totals of the current stage, and of the earlier stages of this epoch.
    pub fn totals(&self) -> (&Totals, &Totals) {
        (&self.current, &self.earlier)
    }

    /// The totals of this epoch so far. A report replaces the node's previous one. `memory` is the
    /// share of memory that the node uses, 0 to 1.
    pub fn report(&mut self, now: u64, memory: f64) -> Report {
        self.sequence += 1;
        Report {
            node: self.node,
            sequence: self.sequence,
            at: now,
            window: self.window,
            memory,
            untracked: self.untracked,
            current: self.current.clone(),
            earlier: self.earlier.clone(),
        }
    }

    fn apply(&mut self, user: &mut User, observation: Observation<'_>) -> bool {
        match observation {
            Observation::Assigned => true,
            Observation::SessionStarted => {
                user.sessions = user.sessions.saturating_add(1);
                if user.sessions == 1 {
                    self.update_at_risk(user, true);
                    self.mark_seen(user);
                }
                true
            }
            Observation::SessionEnded => {
                if user.sessions == 1 {
                    self.update_at_risk(user, false);
                }
                user.sessions = user.sessions.saturating_sub(1);
                true
            }
            Observation::Delivered { events, latencies } => {
                self.count_delivered(user, events, latencies)
            }
            Observation::Dropped { events } => {
                let counted = user.take_events(events);
                self.arm(user).dropped += u64::from(counted);
                if counted > 0 {
                    self.record_failure(user, Failure::Dropped);
                }
                counted == events
            }
            _ if user.observations == 0 => false,
            _ => {
                user.observations -= 1;
                self.apply_limited(user, observation);
                true
            }
        }
    }

    /// Counts the observations that are limited by `budget::OBSERVATIONS`.
    fn apply_limited(&mut self, user: &mut User, observation: Observation<'_>) {
        match observation {
            Observation::Connect { ok, to_new, migrated } => {
                self.count_connect(user, ok, to_new, migrated)
            }
            Observation::Interrupted => {
                self.arm(user).interruptions += 1;
                self.record_failure(user, Failure::Interrupted);
            }
            Observation::Resumed(how) => {
                let arm = self.arm(user);
                arm.resumes += 1;
                arm.resets += u64::from(how == Resume::Reset);
                arm.resume_failures += u64::from(how == Resume::Failed);
                match how {
                    Resume::Complete => {}
                    Resume::Reset => self.record_failure(user, Failure::Reset),
                    Resume::Failed => self.record_failure(user, Failure::ResumeFailed),
                }
            }
            Observation::FellBack => {
                self.arm(user).fallbacks += 1;
                self.record_failure(user, Failure::FellBack);
            }
            Observation::Flapped => {
                self.arm(user).flaps += 1;
                self.record_failure(user, Failure::Flapped);
            }
            Observation::Request { ok } => {
                let arm = self.arm(user);
                arm.requests += 1;
                arm.errors += u64::from(!ok);
                if !ok {
                    self.record_failure(user, Failure::RequestFailed);
                }
            }
            Observation::Memory { bytes } if self.cohort(user) != Cohort::Rest => {
                let group = user.group;
                self.arm(user).memory.record(group, 1, bytes.min(budget::SESSION_BYTES));
            }
            _ => {}
        }
    }

    fn count_connect(&mut self, user: &mut User, ok: bool, to_new: bool, migrated: bool) {
        let arm = self.arm(user);
        if migrated {
            arm.migrations += 1;
            arm.migration_failures += u64::from(!ok);
        } else {
            arm.connects += 1;
            arm.connect_failures += u64::from(!ok);
        }
        if ok && to_new && user.flags & ON_NEW == 0 {
            user.flags |= ON_NEW;
            arm.users_on_new += 1;
        }
        if !ok {
            let failure = if migrated { Failure::MigrationFailed } else { Failure::ConnectFailed };
            self.record_failure(user, failure);
        }
    }

    fn count_delivered(&mut self, user: &mut User, events: u32, latencies: &[f64]) -> bool {
        let counted = user.take_events(events);
        let objective = self.window.slow_above_ms;
        let compared = self.cohort(user) != Cohort::Rest;
        let group = user.group;
        let arm = self.arm(user);
        arm.delivered += u64::from(counted);
        let timed = latencies.len().min(usize::from(user.latencies));
        user.latencies -= timed as u8;
        let (mut valid, mut slow) = (0, 0);
        for latency in &latencies[..timed] {
            if arm.latency.record(*latency) {
                valid += 1;
                slow += u64::from(*latency > objective);
            }
        }
        if compared && valid > 0 {
            arm.slow.record(group, valid, slow);
        }
        if slow > 0 {
            self.record_failure(user, Failure::SlowDelivery);
        }
        counted == events && valid == latencies.len() as u64
    }

    /// Counts a failure of a user. The first of its kind in a stage is evidence.
    ///
    /// It is compared with the users it could have happened to: those connected, or for failures to
    /// connect, those seen in this stage. For a connecting user who was not seen before, the only
    /// known share is the percentage with which such users are assigned to the new arm; the share
    /// among the users seen so far would be biased by this user's own arrival.
    fn record_failure(&mut self, user: &mut User, failure: Failure) {
        if user.flags & failure.bit() != 0 {
            return;
        }
        let is_new = self.cohort(user).is_new();
        self.arm(user).users_with[failure as usize] += 1;
        let evidence = &mut self.current.evidence[failure as usize];
        match failure.risk_set() {
            RiskSet::Connected if user.sessions > 0 => {
                evidence.observe(is_new, share(self.at_risk[failure as usize]));
            }
            RiskSet::Connecting if user.flags & SEEN != 0 => {
                evidence.observe(is_new, share(self.seen[failure as usize]));
            }
            RiskSet::Connecting => {
                evidence.observe(is_new, self.window.percentage.share());
            }
            RiskSet::Connected | RiskSet::OneArm => {}
        }
        if user.sessions > 0 {
            decrement(&mut self.at_risk[failure as usize], is_new);
        }
        if user.flags & SEEN != 0 {
            decrement(&mut self.seen[failure as usize], is_new);
        }
        user.flags |= failure.bit();
    }

    /// Adds a user to `seen` at their first session in this stage.
    fn mark_seen(&mut self, user: &mut User) {
        if user.flags & SEEN != 0 {
            return;
        }
        user.flags |= SEEN;
        let is_new = self.cohort(user).is_new();
        for failure in Failure::ALL {
            if user.flags & failure.bit() == 0 {
                increment(&mut self.seen[failure as usize], is_new);
            }
        }
    }

    /// Adds a user to `at_risk` when their first session starts, or removes them when the last one
    /// ends, for each failure they have not had in this stage.
    fn update_at_risk(&mut self, user: &User, connected: bool) {
        let is_new = self.cohort(user).is_new();
        for failure in Failure::ALL {
            if user.flags & failure.bit() == 0 {
                let at_risk = &mut self.at_risk[failure as usize];
                if connected { increment(at_risk, is_new) } else { decrement(at_risk, is_new) }
            }
        }
    }

    fn count_assigned(&mut self, user: &User) {
        let group = user.group;
        let compared = self.cohort(user) != Cohort::Rest;
        let arm = self.arm(user);
        arm.users += 1;
        if compared {
            arm.members.record(group, 1, 0);
        }
    }

    fn cohort(&self, user: &User) -> Cohort {
        cohort::cohort(user.bucket, self.window.percentage)
    }

    fn arm(&mut self, user: &User) -> &mut ArmCounts {
        let cohort = self.cohort(user);
        self.current.arm_mut(cohort)
    }
}

fn increment((new, others): &mut (u64, u64), is_new: bool) {
    *(if is_new { new } else { others }) += 1;
}

fn decrement((new, others): &mut (u64, u64), is_new: bool) {
    let side = if is_new { new } else { others };
    *side = side.saturating_sub(1);
}

fn share((new, others): (u64, u64)) -> f64 {
    new as f64 / (new + others) as f64
}

impl User {
    fn new(key: UserKey) -> Self {
        Self {
            bucket: key.bucket,
            minute: 0,
            events: budget::EVENTS,
            observations: budget::OBSERVATIONS,
            latencies: budget::LATENCIES,
            group: key.group,
            flags: 0,
            sessions: 0,
        }
    }

    /// Gives the allowance of a new minute.
    fn refill(&mut self, now: u64) {
        let minute = (now / 60_000) as u16;
        if minute != self.minute {
            self.minute = minute;
            self.events = budget::EVENTS;
            self.observations = budget::OBSERVATIONS;
            self.latencies = budget::LATENCIES;
        }
    }

    fn take_events(&mut self, events: u32) -> u32 {
        let counted = events.min(u32::from(self.events));
        self.events -= counted as u16;
        counted
    }
}

#[cfg(test)]
mod tests;
