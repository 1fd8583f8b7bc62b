//! What is counted of a rollout on one node: facts about users in, sums out.
//!
//! Pure: whoever calls says what time it is and who is meant. The arm of a user is the one they were
//! assigned, wherever they stand (intention to treat): a client that falls back to the old side
//! still counts for the new arm.
//!
//! All eligible users have to be told of, those in neither arm as well: the new arm's share among
//! them is what its troubles are compared with. Of each trouble only a user's first in a stage is
//! evidence, because a flapping client would otherwise be many.
//!
//! A client's word moves little: each number has a bound, and each user an allowance a minute.

mod fact;
mod histogram;
mod report;
mod sums;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::cohort::{self, Bucket, Cohort, HashRule, Percentage};

use fact::Exposed;
pub use fact::{Fact, Failure, Resume};
pub use histogram::{Histogram, Quantile};
pub use report::{Measured, RejectedReport, Report, Reports};
pub use sums::{Arm, Groups, Sums};

/// Who is meant, in 16 bytes that a session can keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Unit {
    key: u64,
    bucket: Bucket,
    group: u8,
}

impl Unit {
    /// The user (or durable client) `id` in a rollout.
    pub fn new(rule: HashRule, component: &str, salt: &str, id: &str) -> Self {
        let group = cohort::jackknife(component, salt, id).number() % Groups::COUNT as u16;
        let bucket = cohort::bucket(rule, component, salt, id);
        Self { key: cohort::key(id), bucket, group: group as u8 }
    }

    /// Where the user stands.
    pub fn bucket(self) -> Bucket {
        self.bucket
    }
}

/// A time in which the percentage stays the same.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// The rollout's epoch; a new one begins from nothing.
    pub epoch: u64,
    /// Higher with each change of the percentage.
    pub stage: u64,
    /// How many users are in the new arm.
    pub percentage: Percentage,
    /// The objective: a delivery that takes more milliseconds is slow.
    pub slow_above_ms: f64,
}

impl Window {
    /// Whether both arms are of one size.
    pub fn is_matched(&self) -> bool {
        self.percentage <= Percentage::HALF
    }

    /// Adds what was seen in this stage to what was seen before the next.
    fn close(&self, current: &Sums, earlier: &mut Sums) {
        if self.is_matched() {
            earlier.add(current);
        } else {
            earlier.add_evidence(current);
        }
    }
}

/// What one user can add to a minute's counts.
mod allowance {
    /// Attempts, troubles and the like.
    pub(super) const ACTS: u8 = 20;
    /// Timed deliveries.
    pub(super) const LATENCIES: u8 = 30;
    /// Events delivered and dropped.
    pub(super) const EVENTS: u16 = 60_000;
    /// Bytes of one session.
    pub(super) const BYTES: u64 = 1 << 30;
}

/// What is kept of a user: with its key and the map's own share about 45 bytes.
#[derive(Clone, Copy, Debug)]
struct User {
    bucket: Bucket,
    minute: u16,
    events: u16,
    acts: u8,
    latencies: u8,
    group: u8,
    sessions: u16,
    /// Of this stage: a bit for each trouble there was, and the two below.
    marks: u16,
}

/// The user was here in this stage.
const MET: u16 = 1 << 14;
/// The user stood on the new side in this stage.
const ON_NEW: u16 = 1 << 15;

/// The counts of one rollout on one node.
#[derive(Debug)]
pub struct Measure {
    node: u64,
    sequence: u64,
    window: Window,
    users: HashMap<u64, User>,
    max_users: usize,
    untracked: u64,
    /// For each trouble, who is here and has not had it in this stage: new users, and others.
    at_risk: [(u64, u64); Failure::COUNT],
    /// The same of all who were here in this stage.
    met: [(u64, u64); Failure::COUNT],
    current: Sums,
    earlier: Sums,
}

impl Measure {
    /// Begins to count for the run `node` of a node. Users beyond `max_users` are not counted, at
    /// 45 bytes each.
    pub fn new(node: u64, window: Window, max_users: usize) -> Self {
        Self {
            node,
            sequence: 0,
            window,
            users: HashMap::new(),
            max_users,
            untracked: 0,
            at_risk: Default::default(),
            met: Default::default(),
            current: Sums::default(),
            earlier: Sums::default(),
        }
    }

    /// What is measured in now.
    pub fn window(&self) -> Window {
        self.window
    }

    /// How many users are remembered.
    pub fn users(&self) -> usize {
        self.users.len()
    }

    /// Goes on to another stage or epoch; an older one is ignored. Users who are here are assigned
    /// anew and can have each trouble once more; in a new epoch nothing is left of what was counted,
    /// and the users have to be told of again, because another salt puts them elsewhere.
    pub fn enter(&mut self, window: Window) {
        let rank = |window: Window| (window.epoch, window.stage);
        if rank(window) <= rank(self.window) {
            return;
        }
        if window.epoch == self.window.epoch {
            self.window.close(&self.current, &mut self.earlier);
            self.users.retain(|_, user| user.sessions > 0);
        } else {
            self.earlier = Sums::default();
            self.users.clear();
            self.untracked = 0;
        }
        self.window = window;
        self.current = Sums::default();
        self.at_risk = Default::default();
        self.met = Default::default();
        let mut users = std::mem::take(&mut self.users);
        for user in users.values_mut() {
            user.marks = 0;
            self.assign(user);
            self.stand_by(user, true);
            self.meet(user);
        }
        self.users = users;
    }

    /// Counts a fact, told at `now` in milliseconds. False if something was left out: there was no
    /// room for the user, or the user's allowance is spent.
    pub fn record(&mut self, unit: Unit, fact: Fact<'_>, now: u64) -> bool {
        let known = self.users.get(&unit.key).copied();
        if known.is_none() && self.users.len() >= self.max_users {
            self.untracked += 1;
            return false;
        }
        let mut user = known.unwrap_or_else(|| {
            let user = User::new(unit);
            self.assign(&user);
            user
        });
        user.refill(now);
        let all = self.count(&mut user, fact);
        self.users.insert(unit.key, user);
        all
    }

    /// What was counted in this stage, and before it in this epoch.
    pub fn sums(&self) -> (&Sums, &Sums) {
        (&self.current, &self.earlier)
    }

    /// All that was counted in this epoch, to replace the last report. `memory` is how much of its
    /// memory the node uses, 0 to 1.
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

    fn count(&mut self, user: &mut User, fact: Fact<'_>) -> bool {
        match fact {
            Fact::Assigned => true,
            Fact::Arrived => {
                user.sessions = user.sessions.saturating_add(1);
                if user.sessions == 1 {
                    self.stand_by(user, true);
                    self.meet(user);
                }
                true
            }
            Fact::Left => {
                if user.sessions == 1 {
                    self.stand_by(user, false);
                }
                user.sessions = user.sessions.saturating_sub(1);
                true
            }
            Fact::Delivered { events, latencies } => self.delivered(user, events, latencies),
            Fact::Dropped { events } => {
                let counted = user.take_events(events);
                self.arm(user).dropped += u64::from(counted);
                if counted > 0 {
                    self.befall(user, Failure::Dropped);
                }
                counted == events
            }
            _ if user.acts == 0 => false,
            _ => {
                user.acts -= 1;
                self.act(user, fact);
                true
            }
        }
    }

    /// Counts what there is an allowance of acts for.
    fn act(&mut self, user: &mut User, fact: Fact<'_>) {
        match fact {
            Fact::Connect { ok, to_new, moved } => self.connect(user, ok, to_new, moved),
            Fact::Interrupted => {
                self.arm(user).interruptions += 1;
                self.befall(user, Failure::Interrupted);
            }
            Fact::Resumed(how) => {
                let arm = self.arm(user);
                arm.resumes += 1;
                arm.resets += u64::from(how == Resume::Reset);
                arm.resume_failures += u64::from(how == Resume::Failed);
                match how {
                    Resume::Whole => {}
                    Resume::Reset => self.befall(user, Failure::Reset),
                    Resume::Failed => self.befall(user, Failure::ResumeFailed),
                }
            }
            Fact::FellBack => {
                self.arm(user).fallbacks += 1;
                self.befall(user, Failure::FellBack);
            }
            Fact::Flapped => {
                self.arm(user).flaps += 1;
                self.befall(user, Failure::Flapped);
            }
            Fact::Request { ok } => {
                let arm = self.arm(user);
                arm.requests += 1;
                arm.errors += u64::from(!ok);
                if !ok {
                    self.befall(user, Failure::Error);
                }
            }
            Fact::Memory { bytes } if self.cohort(user) != Cohort::Rest => {
                let group = user.group;
                self.arm(user).memory.record(group, 1, bytes.min(allowance::BYTES));
            }
            _ => {}
        }
    }

    fn connect(&mut self, user: &mut User, ok: bool, to_new: bool, moved: bool) {
        let arm = self.arm(user);
        if moved {
            arm.moves += 1;
            arm.move_failures += u64::from(!ok);
        } else {
            arm.connects += 1;
            arm.connect_failures += u64::from(!ok);
        }
        if ok && to_new && user.marks & ON_NEW == 0 {
            user.marks |= ON_NEW;
            arm.users_on_new += 1;
        }
        if !ok {
            self.befall(user, if moved { Failure::MoveFailed } else { Failure::ConnectFailed });
        }
    }

    fn delivered(&mut self, user: &mut User, events: u32, latencies: &[f64]) -> bool {
        let counted = user.take_events(events);
        let objective = self.window.slow_above_ms;
        let compared = self.cohort(user) != Cohort::Rest;
        let group = user.group;
        let arm = self.arm(user);
        arm.delivered += u64::from(counted);
        let timed = latencies.len().min(usize::from(user.latencies));
        user.latencies -= timed as u8;
        let (mut sound, mut slow) = (0, 0);
        for latency in &latencies[..timed] {
            if arm.latency.record(*latency) {
                sound += 1;
                slow += u64::from(*latency > objective);
            }
        }
        if compared && sound > 0 {
            arm.slow.record(group, sound, slow);
        }
        if slow > 0 {
            self.befall(user, Failure::Slow);
        }
        counted == events && sound == latencies.len() as u64
    }

    /// A user's trouble: evidence if it is the first of its kind in this stage.
    ///
    /// It is compared with those it could have befallen: who is here, or for what befalls comers, who
    /// was. Of a comer who was never here before it is only known with which probability such are
    /// assigned to the new arm; a crowd that this user has just joined would say more than is true.
    fn befall(&mut self, user: &mut User, trouble: Failure) {
        if user.marks & trouble.bit() != 0 {
            return;
        }
        let is_new = self.cohort(user).is_new();
        self.arm(user).users_with[trouble as usize] += 1;
        let evidence = &mut self.current.evidence[trouble as usize];
        match trouble.exposed() {
            Exposed::Present if user.sessions > 0 => {
                evidence.observe(is_new, share(self.at_risk[trouble as usize]));
            }
            Exposed::Comers if user.marks & MET != 0 => {
                evidence.observe(is_new, share(self.met[trouble as usize]));
            }
            Exposed::Comers => {
                evidence.observe(is_new, self.window.percentage.share());
            }
            Exposed::Present | Exposed::OneArm => {}
        }
        if user.sessions > 0 {
            count_out(&mut self.at_risk[trouble as usize], is_new);
        }
        if user.marks & MET != 0 {
            count_out(&mut self.met[trouble as usize], is_new);
        }
        user.marks |= trouble.bit();
    }

    /// A user is here for the first time in this stage.
    fn meet(&mut self, user: &mut User) {
        if user.marks & MET != 0 {
            return;
        }
        user.marks |= MET;
        let is_new = self.cohort(user).is_new();
        for trouble in Failure::ALL {
            if user.marks & trouble.bit() == 0 {
                count_in(&mut self.met[trouble as usize], is_new);
            }
        }
    }

    /// A user comes, or goes: counted among those at risk for all troubles not had yet.
    fn stand_by(&mut self, user: &User, comes: bool) {
        let is_new = self.cohort(user).is_new();
        for trouble in Failure::ALL {
            if user.marks & trouble.bit() == 0 {
                let at_risk = &mut self.at_risk[trouble as usize];
                if comes { count_in(at_risk, is_new) } else { count_out(at_risk, is_new) }
            }
        }
    }

    fn assign(&mut self, user: &User) {
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

    fn arm(&mut self, user: &User) -> &mut Arm {
        let cohort = self.cohort(user);
        self.current.arm_mut(cohort)
    }
}

fn count_in((new, others): &mut (u64, u64), is_new: bool) {
    *(if is_new { new } else { others }) += 1;
}

fn count_out((new, others): &mut (u64, u64), is_new: bool) {
    let side = if is_new { new } else { others };
    *side = side.saturating_sub(1);
}

fn share((new, others): (u64, u64)) -> f64 {
    new as f64 / (new + others) as f64
}

impl User {
    fn new(unit: Unit) -> Self {
        Self {
            bucket: unit.bucket,
            minute: 0,
            events: allowance::EVENTS,
            acts: allowance::ACTS,
            latencies: allowance::LATENCIES,
            group: unit.group,
            marks: 0,
            sessions: 0,
        }
    }

    /// Gives the allowance of a new minute.
    fn refill(&mut self, now: u64) {
        let minute = (now / 60_000) as u16;
        if minute != self.minute {
            self.minute = minute;
            self.events = allowance::EVENTS;
            self.acts = allowance::ACTS;
            self.latencies = allowance::LATENCIES;
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
