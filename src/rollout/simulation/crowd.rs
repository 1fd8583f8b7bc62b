//! A crowd of users on two nodes, some of whom have more trouble than others.

use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::rollout::{
    cohort::{self, Cohort, HashRule, Percentage},
    guardrail::{Demand, Guardrails, Mode, Recent, demand, judge},
    measure::{Fact, Failure, Measure, Measured, Reports, Unit, Window},
    statistics::count::Evidence,
};

const NOW: u64 = 1_800_000_000_000;

/// How a crowd behaves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nature {
    pub(super) users: usize,
    /// How often troubles befall users of the new arm, as a multiple of the others: 1 or more.
    pub(super) harm: f64,
    /// Users differ: their rates are gamma distributed with shape one half, and one in fifty has
    /// twenty times more and comes back on any node.
    pub(super) flapping: bool,
    /// Three in a hundred cannot use the new side, and have four times as much trouble on either.
    pub(super) stuck: bool,
    /// How much more is tolerated.
    pub(super) margin: f64,
}

/// A user, the trouble it has, and where it is.
struct User {
    unit: Unit,
    rate: f64,
    hops: bool,
    node: usize,
}

pub(super) struct Crowd {
    nature: Nature,
    rng: StdRng,
    users: Vec<User>,
    /// Rates added up, to draw a user by its rate.
    heaps: Vec<f64>,
    nodes: [Measure; 2],
    guardrails: Guardrails,
    percentage: Percentage,
    now: u64,
    /// Of the naive test of interruptions: new users' first ones, expected ones and their variance.
    naive: [f64; 3],
}

impl Crowd {
    pub(super) fn new(nature: Nature, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let salt = format!("run {seed}");
        let mut users = Vec::with_capacity(nature.users);
        let mut heaps = Vec::with_capacity(nature.users);
        let mut heap = 0.0;
        for id in 0..nature.users {
            let unit =
                Unit::new(HashRule::CrossfadeV1, "websocket-transport", &salt, &id.to_string());
            let hops = nature.flapping && id % 50 == 0;
            let mut rate = if nature.flapping { gamma_half(&mut rng) } else { 1.0 };
            rate *= if hops { 20.0 } else { 1.0 };
            rate *= if nature.stuck && id % 33 == 0 { 4.0 } else { 1.0 };
            heap += rate;
            heaps.push(heap);
            users.push(User { unit, rate, hops, node: rng.random_range(0..2) });
        }
        let window = window(0, Percentage::ZERO);
        let nodes = [0, 1].map(|node| Measure::new(node, window, 2 * nature.users));
        let mut crowd = Self {
            nature,
            rng,
            users,
            heaps,
            nodes,
            guardrails: Guardrails { margin: nature.margin, ..comparisons_only() },
            percentage: Percentage::ZERO,
            now: NOW,
            naive: [0.0; 3],
        };
        for user in 0..crowd.users.len() {
            crowd.tell(user, Fact::Assigned);
            crowd.tell(user, Fact::Arrived);
        }
        crowd
    }

    /// Goes to a percentage.
    pub(super) fn enter(&mut self, stage: u64, percentage: Percentage) {
        self.percentage = percentage;
        self.nodes.iter_mut().for_each(|node| node.enter(window(stage, percentage)));
    }

    /// One trouble befalls somebody, and the rollout is looked at. True if it has to go back.
    pub(super) fn suffer(&mut self, trouble: Failure) -> bool {
        self.now += 250;
        let user = self.draw();
        if self.users[user].hops && self.rng.random_bool(0.5) {
            self.tell(user, Fact::Left);
            self.users[user].node = 1 - self.users[user].node;
            self.tell(user, Fact::Assigned);
            self.tell(user, Fact::Arrived);
        }
        let before = self.evidence(trouble);
        self.tell(
            user,
            match trouble {
                Failure::ConnectFailed => Fact::Connect { ok: false, to_new: true, moved: false },
                Failure::Dropped => Fact::Dropped { events: 3 },
                Failure::Error => Fact::Request { ok: false },
                _ => Fact::Interrupted,
            },
        );
        let after = self.evidence(trouble);
        if after.events() == before.events() {
            return false;
        }
        if trouble == Failure::Interrupted {
            self.count_naively(after.new_events() > before.new_events());
        }
        let needed = -self.guardrails.level(&self.guardrails.comparisons.interruptions).ln();
        let refuted = after.log_e(self.guardrails.margin) >= needed;
        refuted && after.new_events() >= self.guardrails.min_affected_users
    }

    /// Somebody receives events, now and then late.
    pub(super) fn receive(&mut self) {
        self.now += 250;
        let user = self.rng.random_range(0..self.users.len());
        let slow = (0.03 * self.users[user].rate).min(0.9);
        let times = [0; 5].map(|_| if self.rng.random_bool(slow) { 900.0 } else { 40.0 });
        self.tell(user, Fact::Delivered { events: 5, latencies: &times });
    }

    /// What all limits ask for together, as the evaluating node finds out.
    pub(super) fn judged(&mut self) -> (Demand, Vec<String>) {
        let measured = self.measured();
        let verdicts = judge(&self.guardrails, &measured, &Recent::default(), self.now);
        let (most, by) = demand(&verdicts);
        (most, by.into_iter().map(|verdict| verdict.sentence.clone()).collect())
    }

    pub(super) fn measured(&mut self) -> Measured {
        let mut reports = Reports::default();
        for node in &mut self.nodes {
            reports.take(node.report(self.now, 0.5)).unwrap();
        }
        reports.measured(1)
    }

    pub(super) fn evidence(&self, trouble: Failure) -> Evidence {
        let sums = self.nodes.iter().flat_map(|node| <[_; 2]>::from(node.sums()));
        sums.map(|sums| sums.evidence(trouble).clone()).sum()
    }

    /// Whether a textbook's one-sided test at 5 % would go back now.
    pub(super) fn naive_goes_back(&self) -> bool {
        let [new, expected, variance] = self.naive;
        variance > 5.0 && (new - expected) / variance.sqrt() > 1.645
    }

    fn count_naively(&mut self, is_new: bool) {
        let share = self.percentage.share();
        let [new, expected, variance] = &mut self.naive;
        *new += f64::from(u8::from(is_new));
        *expected += share;
        *variance += share * (1.0 - share);
    }

    fn tell(&mut self, user: usize, fact: Fact<'_>) {
        let User { unit, node, .. } = self.users[user];
        self.nodes[node].record(unit, fact, self.now);
    }

    /// A user by its rate, and by what its arm does to it.
    fn draw(&mut self) -> usize {
        loop {
            let at = self.rng.random_range(0.0..*self.heaps.last().unwrap());
            let user = self.heaps.partition_point(|heap| *heap <= at);
            let is_new =
                cohort::cohort(self.users[user].unit.bucket(), self.percentage) == Cohort::New;
            if is_new || self.rng.random_bool(1.0 / self.nature.harm) {
                return user;
            }
        }
    }
}

/// Tripwires have a simulation of their own: this crowd tells of no success.
fn comparisons_only() -> Guardrails {
    let mut guardrails = Guardrails::default();
    let wires = &mut guardrails.tripwires;
    for wire in [&mut wires.error_rate, &mut wires.slow, &mut wires.drops] {
        wire.mode = Mode::DryRun;
    }
    guardrails
}

fn window(stage: u64, percentage: Percentage) -> Window {
    Window { epoch: 1, stage, percentage, slow_above_ms: 500.0 }
}

/// The square of a normal number, whose mean is one.
fn gamma_half(rng: &mut StdRng) -> f64 {
    let (one, other): (f64, f64) = (rng.random_range(f64::MIN_POSITIVE..1.0), rng.random());
    -2.0 * one.ln() * (std::f64::consts::TAU * other).cos().powi(2)
}
