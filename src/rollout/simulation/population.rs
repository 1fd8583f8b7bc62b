//! A simulated population of users on two nodes, whose sessions fail at given rates.

use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::rollout::{
    cohort::{self, Cohort, HashRule, Percentage},
    guardrail::{Demand, Guardrails, Mode, RecentCounts, judge, strongest_demand},
    measure::{Collector, Failure, Measurements, Observation, Reports, UserKey, Window},
    statistics::count::Evidence,
};

const NOW: u64 = 1_800_000_000_000;

/// Failure behaviour of a population.
#[derive(Clone, Copy, Debug)]
pub(super) struct Profile {
    pub(super) users: usize,
    /// Failure rate of users in the new arm as a multiple of the others' rate, at least 1.
    pub(super) harm: f64,
    /// Users differ: failure rates are gamma distributed with shape one half, and one user in fifty
    /// has twenty times the rate and reconnects to either node.
    pub(super) flapping: bool,
    /// Three users in a hundred have four times the failure rate in either arm, such as those whose
    /// network blocks the new side.
    pub(super) stuck: bool,
    /// Tolerated excess of the new arm's rate.
    pub(super) margin: f64,
}

/// A user with its failure rate and the node it is connected to.
struct User {
    key: UserKey,
    rate: f64,
    changes_node: bool,
    node: usize,
}

pub(super) struct Population {
    profile: Profile,
    rng: StdRng,
    users: Vec<User>,
    /// Running sum of the rates, to draw users in proportion to their rate.
    cumulative_rates: Vec<f64>,
    nodes: [Collector; 2],
    guardrails: Guardrails,
    percentage: Percentage,
    now: u64,
    /// State of the naive test of interruptions: first failures in the new arm, expected ones,
    /// variance.
    naive: [f64; 3],
}

impl Population {
    pub(super) fn new(profile: Profile, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let salt = format!("run {seed}");
        let mut users = Vec::with_capacity(profile.users);
        let mut cumulative_rates = Vec::with_capacity(profile.users);
        let mut cumulative_rate = 0.0;
        for id in 0..profile.users {
            let key =
                UserKey::new(HashRule::CrossfadeV1, "websocket-transport", &salt, &id.to_string());
            let changes_node = profile.flapping && id % 50 == 0;
            let mut rate = if profile.flapping { gamma_half(&mut rng) } else { 1.0 };
            rate *= if changes_node { 20.0 } else { 1.0 };
            rate *= if profile.stuck && id % 33 == 0 { 4.0 } else { 1.0 };
            cumulative_rate += rate;
            cumulative_rates.push(cumulative_rate);
            users.push(User { key, rate, changes_node, node: rng.random_range(0..2) });
        }
        let window = window(0, Percentage::ZERO);
        let nodes = [0, 1].map(|node| Collector::new(node, window, 2 * profile.users));
        let mut population = Self {
            profile,
            rng,
            users,
            cumulative_rates,
            nodes,
            guardrails: Guardrails { margin: profile.margin, ..comparisons_only() },
            percentage: Percentage::ZERO,
            now: NOW,
            naive: [0.0; 3],
        };
        for user in 0..population.users.len() {
            population.record(user, Observation::Assigned);
            population.record(user, Observation::SessionStarted);
        }
        population
    }

    /// Starts a stage with a percentage.
    pub(super) fn set_percentage(&mut self, stage: u64, percentage: Percentage) {
        self.percentage = percentage;
        self.nodes.iter_mut().for_each(|node| node.enter_window(window(stage, percentage)));
    }

    /// A random user fails, and the comparison is evaluated. Returns whether it is violated.
    pub(super) fn fail_random_user(&mut self, failure: Failure) -> bool {
        self.now += 250;
        let user = self.draw();
        if self.users[user].changes_node && self.rng.random_bool(0.5) {
            self.record(user, Observation::SessionEnded);
            self.users[user].node = 1 - self.users[user].node;
            self.record(user, Observation::Assigned);
            self.record(user, Observation::SessionStarted);
        }
        let before = self.evidence(failure);
        self.record(
            user,
            match failure {
                Failure::ConnectFailed => {
                    Observation::Connect { ok: false, to_new: true, migrated: false }
                }
                Failure::Dropped => Observation::Dropped { events: 3 },
                Failure::RequestFailed => Observation::Request { ok: false },
                _ => Observation::Interrupted,
            },
        );
        let after = self.evidence(failure);
        if after.events() == before.events() {
            return false;
        }
        if failure == Failure::Interrupted {
            self.update_naive_test(after.new_events() > before.new_events());
        }
        let log_e_needed = -self.guardrails.level(&self.guardrails.comparisons.interruptions).ln();
        let refuted = after.log_e(self.guardrails.margin) >= log_e_needed;
        refuted && after.new_events() >= self.guardrails.min_affected_users
    }

    /// A random user receives events, some of them late.
    pub(super) fn deliver_to_random_user(&mut self) {
        self.now += 250;
        let user = self.rng.random_range(0..self.users.len());
        let slow = (0.03 * self.users[user].rate).min(0.9);
        let latencies = [0; 5].map(|_| if self.rng.random_bool(slow) { 900.0 } else { 40.0 });
        self.record(user, Observation::Delivered { events: 5, latencies: &latencies });
    }

    /// Evaluates all guardrails as the evaluator does: the strongest demand and its reasons.
    pub(super) fn evaluate(&mut self) -> (Demand, Vec<String>) {
        let measurements = self.measurements();
        let verdicts = judge(&self.guardrails, &measurements, &RecentCounts::default(), self.now);
        let (demand, asking) = strongest_demand(&verdicts);
        (demand, asking.into_iter().map(|verdict| verdict.summary.clone()).collect())
    }

    pub(super) fn measurements(&mut self) -> Measurements {
        let mut reports = Reports::default();
        for node in &mut self.nodes {
            reports.insert(node.report(self.now, 0.5)).unwrap();
        }
        reports.merge(1)
    }

    pub(super) fn evidence(&self, failure: Failure) -> Evidence {
        let totals = self.nodes.iter().flat_map(|node| <[_; 2]>::from(node.totals()));
        totals.map(|totals| totals.evidence(failure).clone()).sum()
    }

    /// Whether a textbook one-sided z-test at 5 % would roll back now.
    pub(super) fn naive_test_rolls_back(&self) -> bool {
        let [new, expected, variance] = self.naive;
        variance > 5.0 && (new - expected) / variance.sqrt() > 1.645
    }

    fn update_naive_test(&mut self, is_new: bool) {
        let share = self.percentage.share();
        let [new, expected, variance] = &mut self.naive;
        *new += f64::from(u8::from(is_new));
        *expected += share;
        *variance += share * (1.0 - share);
    }

    fn record(&mut self, user: usize, observation: Observation<'_>) {
        let User { key, node, .. } = self.users[user];
        self.nodes[node].record(key, observation, self.now);
    }

    /// Draws a user in proportion to its failure rate in its arm.
    fn draw(&mut self) -> usize {
        loop {
            let at = self.rng.random_range(0.0..*self.cumulative_rates.last().unwrap());
            let user =
                self.cumulative_rates.partition_point(|cumulative_rate| *cumulative_rate <= at);
            let is_new =
                cohort::cohort(self.users[user].key.bucket(), self.percentage) == Cohort::New;
            if is_new || self.rng.random_bool(1.0 / self.profile.harm) {
                return user;
            }
        }
    }
}

/// Tripwires are only recorded: this population reports no successful attempts. They have a
/// simulation of their own.
fn comparisons_only() -> Guardrails {
    let mut guardrails = Guardrails::default();
    let tripwires = &mut guardrails.tripwires;
    for tripwire in [&mut tripwires.error_rate, &mut tripwires.slow, &mut tripwires.drops] {
        tripwire.mode = Mode::DryRun;
    }
    guardrails
}

fn window(stage: u64, percentage: Percentage) -> Window {
    Window { epoch: 1, stage, percentage, slow_above_ms: 500.0 }
}

/// A gamma-distributed number with shape one half and mean one: the square of a normal one
/// (Box-Muller).
fn gamma_half(rng: &mut StdRng) -> f64 {
    let (one, other): (f64, f64) = (rng.random_range(f64::MIN_POSITIVE..1.0), rng.random());
    -2.0 * one.ln() * (std::f64::consts::TAU * other).cos().powi(2)
}
