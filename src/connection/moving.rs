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
    Floor,
    client::{Client, Desk},
    orders::Parting,
};
use crate::{
    lifecycle,
    metrics::TransportLabel,
    protocol::{CloseCode, ServerFrame, frame::About},
    rollout::{
        DrainConfig,
        board::Standing,
        cohort::Cohort,
        flag::TRANSPORT,
        schedule::Stop,
        tally::{Tallies, Tally, share},
        verdict::Unit,
    },
};

/// What is known of a client for moving it.
#[derive(Debug, Default)]
pub(super) struct Mobility(Option<Box<Known>>);

#[derive(Debug)]
struct Known {
    unit: Option<Box<str>>,
    /// It understands `migrate`.
    understands: bool,
    /// When it was asked last, and by which version of the rollout.
    asked: Option<(u64, Instant)>,
}

impl Mobility {
    /// By what a client says of itself.
    pub(super) fn new(about: About) -> Self {
        let About { client, unit } = about;
        if client.is_none() && unit.is_none() {
            return Self(None);
        }
        Self(Some(Box::new(Known { unit, understands: client.is_some(), asked: None })))
    }

    fn may_be_asked(&self, version: u64, again: Duration) -> bool {
        self.0.as_ref().is_some_and(|known| {
            let rests = known.asked.is_some_and(|(by, at)| by == version && at.elapsed() < again);
            known.understands && !rests
        })
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

impl Desk {
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
pub struct Mover {
    floor: Arc<Floor>,
    config: DrainConfig,
    tallies: Arc<Tallies>,
    hasher: RandomState,
    /// Who is to be asked, in this order.
    queue: VecDeque<Move>,
    pace: Pace,
    asked: u64,
}

#[derive(Debug)]
struct Move {
    client: Weak<Client>,
    to: &'static str,
    bucket: u32,
}

/// How often a look is taken at who is where, beside each change of the rollout.
const SURVEY: Duration = Duration::from_secs(1);

/// How often some are asked.
const TICK: Duration = Duration::from_millis(50);

/// Clients looked at before others get their turn.
const PIECE: usize = 256;

/// A node that is cut off from the rollouts for this long sends nobody to the new side any more.
const CUT_OFF: Duration = Duration::from_secs(5);

impl Mover {
    /// One that has asked nobody yet.
    pub fn new(floor: Arc<Floor>, config: DrainConfig, tallies: Arc<Tallies>) -> Self {
        Self {
            floor,
            config,
            tallies,
            hasher: RandomState::new(),
            queue: VecDeque::new(),
            pace: Pace::default(),
            asked: 0,
        }
    }

    /// Looks and asks, until it is dropped.
    pub async fn run(mut self) {
        let mut changes = self.floor.board.changes();
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
        let flags = self.floor.board.now();
        let standing = flags.get(TRANSPORT).cloned();
        let forward = flags.cut_off.is_none_or(|since| since.elapsed() < CUT_OFF);
        let sessions = self.floor.sessions.iter();
        let clients: Vec<Arc<Client>> = sessions.flat_map(|clients| clients.to_vec()).collect();
        let mut found = Found { forward, ..Found::default() };
        for piece in clients.chunks(PIECE) {
            for client in piece {
                self.look_at(client, standing.as_deref(), &mut found);
            }
            tokio::task::yield_now().await;
        }
        let Found { mut tally, mut moves, users, .. } = found;
        // Who came over last goes back first.
        let back = |a: &Move| a.to == "sse";
        moves
            .sort_unstable_by_key(|a| if back(a) { -i64::from(a.bucket) } else { a.bucket.into() });
        tally.id = self.floor.cluster.me().to_string();
        tally.node = self.floor.node.name().to_string();
        tally.at = lifecycle::unix_ms();
        tally.version = standing.as_ref().map_or(0, |standing| standing.flag.version);
        tally.users = users.len() as u64;
        tally.pending = moves.len() as u64;
        tally.asked = self.asked;
        tally.moved = self.floor.moved.load(Ordering::Relaxed);
        if self.queue.is_empty() {
            self.pace.begin();
        }
        self.queue = moves.into();
        self.tallies.say(tally);
    }

    fn look_at(&self, client: &Arc<Client>, standing: Option<&Standing>, found: &mut Found) {
        let mut desk = client.desk();
        if desk.is_closed() || desk.superseded || desk.parting().is_some() {
            return;
        }
        if desk.identity.as_ref().is_some_and(|identity| identity.own) {
            return;
        }
        let is_new = !client.format.is_sse();
        let understands = desk.mobility.understands();
        let tally = &mut found.tally;
        tally.websocket += u64::from(is_new);
        tally.sse += u64::from(!is_new);
        tally.plain += u64::from(!is_new && !understands);
        let unit = desk.unit();
        let first = found.users.insert(self.hasher.hash_one(&unit.id));
        let Some(Standing { flag, .. }) = standing else { return };
        let verdict = flag.verdict(&unit, self.floor.board.environment());
        tally.users_new += u64::from(first && verdict.new);
        tally.users_control += u64::from(first && verdict.cohort == Cohort::Control);
        tally.behind += u64::from(verdict.new && !is_new);
        tally.ahead += u64::from(!verdict.new && is_new);
        if verdict.new == is_new {
            return;
        }
        match flag.course.stop {
            Some(Stop::Hard) if is_new => {
                desk.superseded = true;
                drop(desk);
                let reason = Some(flag.course.reason.as_str().into());
                let parting = Parting { reason, ..Parting::from(CloseCode::Draining) };
                return client.part(parting);
            }
            Some(Stop::Freeze | Stop::StopAndKeep) => return,
            Some(Stop::DrainBack | Stop::Hard) | None => {}
        }
        let may = desk.mobility.may_be_asked(flag.version, self.config.ask_again);
        if may && (is_new || found.forward) {
            let to = if is_new { "sse" } else { "websocket" };
            let bucket = verdict.bucket.number();
            found.moves.push(Move { client: Arc::downgrade(client), to, bucket });
        }
    }

    /// Asks as many as the pace allows by now.
    fn ask(&mut self) {
        let flags = self.floor.board.now();
        let Some(standing) = flags.get(TRANSPORT) else { return self.queue.clear() };
        let turned_back = standing.flag.course.stop.is_some();
        let rate = if turned_back { self.config.emergency_rate } else { self.config.rate };
        let share = share(&self.tallies.mine(), &self.tallies.others());
        let reason = if turned_back { "rollback" } else { "rollout" };
        for _ in 0..self.pace.take(f64::from(rate) * share) {
            let Some(Move { client, to, .. }) = self.queue.pop_front() else { break };
            let Some(client) = client.upgrade() else { continue };
            let mut desk = client.desk();
            if desk.is_closed() || desk.superseded || desk.parting().is_some() {
                continue;
            }
            desk.mobility.asked(standing.flag.version);
            let within = u64::try_from(self.config.within.as_millis()).unwrap_or(u64::MAX);
            let frame = ServerFrame::Migrate { transport: to, within, reason: reason.into() };
            client.send(&mut desk, &frame);
            drop(desk);
            client.wake.notify_one();
            self.asked += 1;
            let label = TransportLabel { transport: to };
            self.floor.node.metrics().asked_to_move.get_or_create(&label).inc();
        }
    }
}

/// What a survey has found so far.
#[derive(Default)]
struct Found {
    tally: Tally,
    moves: Vec<Move>,
    users: HashSet<u64>,
    /// Whether anybody may be sent to the new side.
    forward: bool,
}

/// So many a second, evenly.
#[derive(Debug)]
struct Pace {
    since: Instant,
    credit: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { since: Instant::now(), credit: 0.0 }
    }
}

impl Pace {
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
