//! Migration: asks connected clients to change to the transport that the rollout assigns them, at the
//! rate that the whole cluster may have.
//!
//! A client is asked, never pushed: it opens the other transport beside this one and leaves when that
//! one delivers. The rollout decides the assignment; the migrator finds out which clients are on the
//! wrong transport, which of them can be asked, and when each is.

mod rate_limit;

use std::{
    collections::{HashSet, VecDeque},
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

use self::rate_limit::RateLimit;
use super::{client::Client, close_reason::CloseReason, registry::Connections};
use crate::{
    lifecycle::{self, Stage},
    metrics::TransportLabel,
    protocol::{CloseCode, ServerFrame},
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
    wire::Transport,
};

/// Asks clients to migrate.
#[derive(Debug)]
pub struct Migrator {
    connections: Arc<Connections>,
    config: DrainConfig,
    hasher: RandomState,
    /// The clients to be asked, in order.
    queue: VecDeque<Move>,
    rate: RateLimit,
    /// How many clients have been asked.
    asked: u64,
    surveys: u64,
    /// Whether there is a legacy system to return to.
    has_legacy: bool,
    /// While a hard stop is in force: the number of the first connection after this node learned of it.
    /// By number, not by time: clocks of nodes differ, and a millisecond is long.
    first_after_hard_stop: Option<u64>,
}

/// A client on the wrong transport.
#[derive(Debug)]
struct Move {
    client: Weak<Client>,
    to: Destination,
    bucket: u32,
}

/// Where a client belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Destination {
    Transport(Transport),
    /// The legacy system: the stream is closed, and its browser reconnects there.
    Legacy,
}

/// How often connected clients are surveyed, beside each change of a rollout.
const SURVEY_INTERVAL: Duration = Duration::from_secs(1);

/// Every this many surveys, clients' memory is measured.
const SURVEYS_PER_MEMORY_SAMPLE: u64 = 30;

/// How often queued clients are asked.
const TICK: Duration = Duration::from_millis(50);

/// Clients surveyed before the task yields.
const SURVEY_CHUNK: usize = 256;

/// A node that cannot read the rollouts for this long sends no client to the new transport.
const STALE_ROLLOUTS: Duration = Duration::from_secs(5);

impl Migrator {
    /// A migrator that has asked no client yet.
    pub fn new(connections: Arc<Connections>, config: DrainConfig, has_legacy: bool) -> Self {
        Self {
            connections,
            config,
            hasher: RandomState::new(),
            queue: VecDeque::new(),
            rate: RateLimit::default(),
            asked: 0,
            surveys: 0,
            has_legacy,
            first_after_hard_stop: None,
        }
    }

    /// Surveys and asks until the stage stops.
    pub fn start(self, stage: &Stage) {
        let stopping = stage.stopping().clone();
        stage.spawn("migrator", async move {
            let _ = stopping.run_until_cancelled(self.run()).await;
        });
    }

    async fn run(mut self) {
        let mut changes = self.connections.rollouts.registry.changes();
        let (mut survey, mut tick) = (interval(SURVEY_INTERVAL), interval(TICK));
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

    /// Counts clients by transport, and queues those on the wrong one.
    async fn survey(&mut self) {
        let flags = self.connections.rollouts.registry.now();
        let record = flags.get(TRANSPORT).cloned();
        let is_hard = record.as_ref().is_some_and(|r| r.flag.course.stop == Some(Stop::Hard));
        let first = || self.connections.cluster.next_number();
        self.first_after_hard_stop =
            is_hard.then(|| self.first_after_hard_stop.unwrap_or_else(first));
        let takeover = flags.get(TAKEOVER).filter(|_| self.has_legacy).cloned();
        let forward = flags.cut_off.is_none_or(|since| since.elapsed() < STALE_ROLLOUTS);
        let epoch = self.connections.rollouts.meter.epoch();
        let mut survey = Survey { forward, epoch, takeover, ..Survey::default() };
        self.surveys += 1;
        survey.measures_memory = self.surveys.is_multiple_of(SURVEYS_PER_MEMORY_SAMPLE);
        for chunk in self.connections.clients_where(|_| true).chunks(SURVEY_CHUNK) {
            for client in chunk {
                self.examine(client, record.as_deref(), &mut survey);
            }
            tokio::task::yield_now().await;
        }
        self.connections.expire_disconnected();
        let Survey { mut counts, mut moves, users, .. } = survey;
        // Clients that migrated last return first.
        moves.sort_unstable_by_key(|a| match a.to {
            Destination::Transport(Transport::WebSocket) => i64::from(a.bucket),
            _ => -i64::from(a.bucket),
        });
        counts.id = self.connections.cluster.node_id().to_string();
        counts.node = self.connections.node.name().to_string();
        counts.at = lifecycle::unix_ms();
        counts.version = record.as_ref().map_or(0, |record| record.flag.version);
        counts.users = users.len() as u64;
        counts.pending = moves.len() as u64;
        counts.asked = self.asked;
        counts.moved = self.connections.migrated.load(Ordering::Relaxed);
        if self.queue.is_empty() {
            self.rate.restart();
        }
        self.queue = moves.into();
        self.connections.rollouts.node_counts.say(counts);
    }

    fn examine(&self, client: &Arc<Client>, record: Option<&RolloutRecord>, survey: &mut Survey) {
        let mut state = client.state();
        if state.is_closed() || state.superseded || state.close_reason().is_some() {
            return;
        }
        if state.is_synthetic() {
            return;
        }
        let on_new = client.format.transport == Transport::WebSocket;
        let counts = &mut survey.counts;
        counts.websocket += u64::from(on_new);
        counts.sse += u64::from(!on_new);
        counts.plain += u64::from(!on_new && !state.migration.supports_migrate());
        let unit = state.unit();
        let first = survey.users.insert(self.hasher.hash_one(&unit.id));
        let environment = self.connections.rollouts.registry.environment();
        if state.migration.legacy_address() {
            return survey.return_to_legacy(client, &unit, environment);
        }
        let Some(RolloutRecord { flag, .. }) = record else { return };
        self.connections.record_present(&mut state, &unit, survey.epoch);
        if first && survey.measures_memory {
            let bytes = client.memory(&state);
            self.connections.rollouts.meter.record(&unit, Observation::Memory { bytes });
        }
        let assignment = flag.assignment(&unit, environment);
        counts.users_new += u64::from(first && assignment.new);
        counts.users_control += u64::from(first && assignment.cohort == Cohort::Control);
        counts.behind += u64::from(assignment.new && !on_new);
        counts.ahead += u64::from(!assignment.new && on_new);
        if assignment.new == on_new {
            return;
        }
        match flag.course.stop {
            // A client that connected after the stop, and asked for no route, is served.
            Some(Stop::Hard)
                if on_new && self.first_after_hard_stop.is_some_and(|n| client.number < n) =>
            {
                state.superseded = true;
                drop(state);
                let reason = Some("rollback".into());
                return client
                    .close(CloseReason { reason, ..CloseReason::from(CloseCode::Draining) });
            }
            Some(Stop::Freeze | Stop::StopAndKeep) => return,
            Some(Stop::DrainBack | Stop::Hard) | None => {}
        }
        let may = state.migration.may_be_asked(flag.version, self.config.ask_again);
        if may && (on_new || survey.forward) {
            let to = if on_new { Transport::Sse } else { Transport::WebSocket };
            let bucket = assignment.bucket.number();
            let client = Arc::downgrade(client);
            survey.moves.push(Move { client, to: Destination::Transport(to), bucket });
        }
    }

    /// Asks as many clients as the rate allows by now.
    fn ask(&mut self) {
        let flags = self.connections.rollouts.registry.now();
        let is_stopped = |record: &Arc<RolloutRecord>| record.flag.course.stop.is_some();
        let stopped = flags.get(TRANSPORT).is_some_and(is_stopped)
            || flags.get(TAKEOVER).is_some_and(is_stopped);
        let version = flags.get(TRANSPORT).map_or(0, |record| record.flag.version);
        let rate = if stopped { self.config.emergency_rate } else { self.config.rate };
        let node_counts = &self.connections.rollouts.node_counts;
        let share = share(&node_counts.mine(), &node_counts.others());
        let reason = if stopped { "rollback" } else { "rollout" };
        for _ in 0..self.rate.take(f64::from(rate) * share) {
            let Some(Move { client, to, .. }) = self.queue.pop_front() else { break };
            let Some(client) = client.upgrade() else { continue };
            let mut state = client.state();
            if state.is_closed() || state.superseded || state.close_reason().is_some() {
                continue;
            }
            let Destination::Transport(to) = to else {
                state.superseded = true;
                drop(state);
                client.close(CloseCode::Draining.into());
                continue;
            };
            state.migration.asked(version);
            let within = u64::try_from(self.config.within.as_millis()).unwrap_or(u64::MAX);
            let transport = to.as_str();
            client.send(
                &mut state,
                &ServerFrame::Migrate { transport, within, reason: reason.into() },
            );
            drop(state);
            client.wake.notify_one();
            self.asked += 1;
            let label = TransportLabel { transport };
            self.connections.node.metrics().clients_asked_to_migrate.get_or_create(&label).inc();
        }
    }
}

/// What a survey has found so far.
#[derive(Default)]
struct Survey {
    counts: NodeCounts,
    moves: Vec<Move>,
    /// Hashes of the users seen.
    users: HashSet<u64>,
    /// Whether clients may be sent to the new transport.
    forward: bool,
    /// The rollout's epoch.
    epoch: Option<u64>,
    /// Whether clients' memory is measured.
    measures_memory: bool,
    /// The rollout by which legacy addresses are taken over.
    takeover: Option<Arc<RolloutRecord>>,
}

impl Survey {
    /// Queues a stream at a legacy address that belongs on the legacy system: when it ends, its browser
    /// reconnects by itself and is routed there.
    fn return_to_legacy(&mut self, client: &Arc<Client>, unit: &Unit, environment: &str) {
        let Some(RolloutRecord { flag, .. }) = self.takeover.as_deref() else { return };
        let assignment = flag.assignment(unit, environment);
        let keeps = matches!(flag.course.stop, Some(Stop::Freeze | Stop::StopAndKeep));
        if !assignment.new && !keeps {
            let bucket = assignment.bucket.number();
            let client = Arc::downgrade(client);
            self.moves.push(Move { client, to: Destination::Legacy, bucket });
        }
    }
}
