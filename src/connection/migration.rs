//! Moving connected clients to the transport they belong on, at the pace the whole cluster may have.
//!
//! A client is asked, never pushed: it opens the other transport beside this one and leaves when that
//! serves it. Who belongs where is the rollout's business; here is who is where, who can be asked,
//! and when each is.

use std::{
    collections::{HashSet, VecDeque},
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Weak, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::time::{MissedTickBehavior, interval};

use super::{
    Connections,
    client::{Client, ClientState},
    cluster_commands::CloseReason,
};
use crate::{
    lifecycle::{self, Stage},
    metrics::TransportLabel,
    protocol::{CloseCode, ServerFrame, frame::About},
    rollout::{
        DrainConfig,
        assignment::Unit,
        cohort::Cohort,
        flag::{TAKEOVER, TRANSPORT},
        measure::Observation,
        node_counts::{NodeCounts, share},
        registry::RolloutRecord,
        schedule::Stop,
    },
};

/// What is known of a client for moving it.
#[derive(Debug, Default)]
pub(super) struct MigrationState(Option<Box<Known>>);

#[derive(Debug)]
struct Known {
    unit: Option<Box<str>>,
    /// It understands `migrate`.
    understands: bool,
    /// It came to an old system's address, and goes back there when that one is rolled back.
    old_address: bool,
    /// When it was asked last, and by which version of the rollout.
    asked: Option<(u64, Instant)>,
}

impl MigrationState {
    /// By what a client says of itself.
    pub(super) fn new(about: About) -> Self {
        let About { client, unit, old_address } = about;
        if client.is_none() && unit.is_none() {
            return Self(None);
        }
        let understands = client.is_some();
        Self(Some(Box::new(Known { unit, understands, old_address, asked: None })))
    }

    fn may_be_asked(&self, version: u64, again: Duration) -> bool {
        self.0.as_ref().is_some_and(|known| {
            let rests = known.asked.is_some_and(|(by, at)| by == version && at.elapsed() < again);
            known.understands && !rests
        })
    }

    fn old_address(&self) -> bool {
        self.0.as_ref().is_some_and(|known| known.old_address)
    }

    fn understands(&self) -> bool {
        self.0.as_ref().is_some_and(|known| known.understands)
    }

    fn asked(&mut self, version: u64) {
        if let Some(known) = &mut self.0 {
            known.asked = Some((version, Instant::now()));
        }
    }
}

impl ClientState {
    /// Whom a rollout is decided for: the user, the client's own durable id, or the session.
    pub(super) fn unit(&self) -> Unit {
        let identity = self.identity.as_deref();
        let user = identity.and_then(|identity| identity.user.as_ref()).map(ToString::to_string);
        let own = self.mobility.0.as_ref().and_then(|known| known.unit.as_deref());
        let id = user.or_else(|| own.map(str::to_owned));
        let id = id.unwrap_or_else(|| self.member().to_string());
        let groups = identity.map(|identity| identity.groups.clone()).unwrap_or_default();
        Unit { id, groups }
    }
}

/// Asks clients to move.
#[derive(Debug)]
pub struct Migrator {
    connections: Arc<Connections>,
    config: DrainConfig,
    hasher: RandomState,
    /// Who is to be asked, in this order.
    queue: VecDeque<Move>,
    pace: RateLimit,
    asked: u64,
    surveys: u64,
    /// There is an old system to go back to.
    has_old: bool,
}

#[derive(Debug)]
struct Move {
    client: Weak<Client>,
    to: &'static str,
    bucket: u32,
}

/// How often a look is taken at who is where, beside each change of the rollout.
const SURVEY: Duration = Duration::from_secs(1);

/// Every so many looks it is seen how much memory clients take.
const WEIGHED: u64 = 30;

/// How often some are asked.
const TICK: Duration = Duration::from_millis(50);

/// Clients looked at before others get their turn.
const PIECE: usize = 256;

/// A node that is cut off from the rollouts for this long sends nobody to the new side any more.
const CUT_OFF: Duration = Duration::from_secs(5);

impl Migrator {
    /// One that has asked nobody yet.
    pub fn new(connections: Arc<Connections>, config: DrainConfig, has_old: bool) -> Self {
        Self {
            connections,
            config,
            hasher: RandomState::new(),
            queue: VecDeque::new(),
            pace: RateLimit::default(),
            asked: 0,
            surveys: 0,
            has_old,
        }
    }

    /// Looks and asks, until the stage stops.
    pub fn start(self, stage: &Stage) {
        let stopping = stage.stopping().clone();
        stage.spawn("mover", async move {
            let _ = stopping.run_until_cancelled(self.run()).await;
        });
    }

    async fn run(mut self) {
        let mut changes = self.connections.rollouts.registry.changes();
        let (mut survey, mut tick) = (interval(SURVEY), interval(TICK));
        survey.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.survey().await;
                }
                _ = survey.tick() => self.survey().await,
                _ = tick.tick(), if !self.queue.is_empty() => self.ask(),
            }
        }
    }

    /// Counts who is where, and finds out who is to be asked.
    async fn survey(&mut self) {
        let flags = self.connections.rollouts.registry.now();
        let standing = flags.get(TRANSPORT).cloned();
        let takeover = flags.get(TAKEOVER).filter(|_| self.has_old).cloned();
        let forward = flags.cut_off.is_none_or(|since| since.elapsed() < CUT_OFF);
        let sessions = self.connections.sessions.iter();
        let clients: Vec<Arc<Client>> = sessions.flat_map(|clients| clients.to_vec()).collect();
        let epoch = self.connections.rollouts.meter.epoch();
        let mut found = Found { forward, epoch, takeover, ..Found::default() };
        self.surveys += 1;
        found.weighs = self.surveys.is_multiple_of(WEIGHED);
        for piece in clients.chunks(PIECE) {
            for client in piece {
                self.look_at(client, standing.as_deref(), &mut found);
            }
            tokio::task::yield_now().await;
        }
        self.connections.give_up_departed();
        let Found { mut tally, mut moves, users, .. } = found;
        // Who came over last goes back first.
        let back = |a: &Move| a.to != "websocket";
        moves
            .sort_unstable_by_key(|a| if back(a) { -i64::from(a.bucket) } else { a.bucket.into() });
        tally.id = self.connections.cluster.me().to_string();
        tally.node = self.connections.node.name().to_string();
        tally.at = lifecycle::unix_ms();
        tally.version = standing.as_ref().map_or(0, |standing| standing.flag.version);
        tally.users = users.len() as u64;
        tally.pending = moves.len() as u64;
        tally.asked = self.asked;
        tally.moved = self.connections.moved.load(Ordering::Relaxed);
        if self.queue.is_empty() {
            self.pace.begin();
        }
        self.queue = moves.into();
        self.connections.rollouts.node_counts.say(tally);
    }

    fn look_at(&self, client: &Arc<Client>, standing: Option<&RolloutRecord>, found: &mut Found) {
        let mut client_state = client.state();
        if client_state.is_closed() || client_state.superseded || client_state.parting().is_some() {
            return;
        }
        if client_state.identity.as_ref().is_some_and(|identity| identity.own) {
            return;
        }
        let is_new = !client.format.is_sse();
        let understands = client_state.mobility.understands();
        let tally = &mut found.tally;
        tally.websocket += u64::from(is_new);
        tally.sse += u64::from(!is_new);
        tally.plain += u64::from(!is_new && !understands);
        let unit = client_state.unit();
        let first = found.users.insert(self.hasher.hash_one(&unit.id));
        if client_state.mobility.old_address() {
            return found.back_to_the_old(
                client,
                &unit,
                self.connections.rollouts.registry.environment(),
            );
        }
        let Some(RolloutRecord { flag, .. }) = standing else { return };
        self.connections.is_here(&mut client_state, &unit, found.epoch);
        if first && found.weighs {
            let bytes = client.accounted(&client_state);
            self.connections.rollouts.meter.record(&unit, Observation::Memory { bytes });
        }
        let assignment = flag.assignment(&unit, self.connections.rollouts.registry.environment());
        tally.users_new += u64::from(first && assignment.new);
        tally.users_control += u64::from(first && assignment.cohort == Cohort::Control);
        tally.behind += u64::from(assignment.new && !is_new);
        tally.ahead += u64::from(!assignment.new && is_new);
        if assignment.new == is_new {
            return;
        }
        match flag.course.stop {
            // Whoever comes after the stop, and asked for no route, is served.
            Some(Stop::Hard) if is_new && client.arrived < flag.changed_at => {
                client_state.superseded = true;
                drop(client_state);
                let reason = Some("rollback".into());
                let parting = CloseReason { reason, ..CloseReason::from(CloseCode::Draining) };
                return client.part(parting);
            }
            Some(Stop::Freeze | Stop::StopAndKeep) => return,
            Some(Stop::DrainBack | Stop::Hard) | None => {}
        }
        let may = client_state.mobility.may_be_asked(flag.version, self.config.ask_again);
        if may && (is_new || found.forward) {
            let to = if is_new { "sse" } else { "websocket" };
            let bucket = assignment.bucket.number();
            found.moves.push(Move { client: Arc::downgrade(client), to, bucket });
        }
    }

    /// Asks as many as the pace allows by now.
    fn ask(&mut self) {
        let flags = self.connections.rollouts.registry.now();
        let stopped = |standing: &Arc<RolloutRecord>| standing.flag.course.stop.is_some();
        let turned_back =
            flags.get(TRANSPORT).is_some_and(stopped) || flags.get(TAKEOVER).is_some_and(stopped);
        let version = flags.get(TRANSPORT).map_or(0, |standing| standing.flag.version);
        let rate = if turned_back { self.config.emergency_rate } else { self.config.rate };
        let share = share(
            &self.connections.rollouts.node_counts.mine(),
            &self.connections.rollouts.node_counts.others(),
        );
        let reason = if turned_back { "rollback" } else { "rollout" };
        for _ in 0..self.pace.take(f64::from(rate) * share) {
            let Some(Move { client, to, .. }) = self.queue.pop_front() else { break };
            let Some(client) = client.upgrade() else { continue };
            let mut client_state = client.state();
            if client_state.is_closed()
                || client_state.superseded
                || client_state.parting().is_some()
            {
                continue;
            }
            if to == OLD {
                client_state.superseded = true;
                drop(client_state);
                client.part(CloseCode::Draining.into());
                continue;
            }
            client_state.mobility.asked(version);
            let within = u64::try_from(self.config.within.as_millis()).unwrap_or(u64::MAX);
            let frame = ServerFrame::Migrate { transport: to, within, reason: reason.into() };
            client.send(&mut client_state, &frame);
            drop(client_state);
            client.wake.notify_one();
            self.asked += 1;
            let label = TransportLabel { transport: to };
            self.connections.node.metrics().asked_to_move.get_or_create(&label).inc();
        }
    }
}

/// What a survey has found so far.
#[derive(Default)]
struct Found {
    tally: NodeCounts,
    moves: Vec<Move>,
    users: HashSet<u64>,
    /// Whether anybody may be sent to the new side.
    forward: bool,
    /// What is counted in.
    epoch: Option<u64>,
    /// Whether it is looked at how much memory clients take.
    weighs: bool,
    /// The rollout that old addresses are taken over by.
    takeover: Option<Arc<RolloutRecord>>,
}

impl Found {
    /// A stream at an old address: its browser comes back by itself when it ends, and goes to the side
    /// it belongs on then.
    fn back_to_the_old(&mut self, client: &Arc<Client>, unit: &Unit, environment: &str) {
        let Some(RolloutRecord { flag, .. }) = self.takeover.as_deref() else { return };
        let assignment = flag.assignment(unit, environment);
        let keeps = matches!(flag.course.stop, Some(Stop::Freeze | Stop::StopAndKeep));
        if !assignment.new && !keeps {
            let bucket = assignment.bucket.number();
            self.moves.push(Move { client: Arc::downgrade(client), to: OLD, bucket });
        }
    }
}

/// Where streams at old addresses go back to.
const OLD: &str = "legacy";

/// So many a second, evenly.
#[derive(Debug)]
struct RateLimit {
    since: Instant,
    credit: f64,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self { since: Instant::now(), credit: 0.0 }
    }
}

impl RateLimit {
    fn begin(&mut self) {
        *self = Self::default();
    }

    /// How many may go now. What a late moment left over is made up for, but never more than a
    /// second's.
    fn take(&mut self, rate: f64) -> usize {
        let passed = self.since.elapsed().as_secs_f64();
        self.since = Instant::now();
        self.credit = (self.credit + rate * passed).min(rate.max(1.0));
        let whole = self.credit.floor();
        self.credit -= whole;
        whole as usize
    }
}
