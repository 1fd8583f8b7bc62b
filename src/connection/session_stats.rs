//! What happens to sessions, told to the rollout's meter: they come, break off, come back and leave.
//!
//! The definitions are the same for every transport. A break is an interruption when the same session
//! comes back within a minute, without having said goodbye and not by our doing; on whichever node it
//! comes back, it is counted on the one it broke off from.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    Connections,
    client::{Client, ClientState},
};
use crate::{
    protocol::{CloseCode, MemberId, Position, frame::ResetReason},
    rollout::{
        assignment::Unit,
        measure::{Observation, Resume},
    },
};

/// Sessions whose connection ended, and that may come back.
#[derive(Debug, Default)]
pub(super) struct DisconnectedSessions(Mutex<DisconnectedState>);

#[derive(Debug, Default)]
struct DisconnectedState {
    by_session: HashMap<MemberId, DisconnectedSession>,
    order: VecDeque<(Instant, MemberId)>,
}

#[derive(Debug)]
struct DisconnectedSession {
    unit: Unit,
    /// Of the rollout, when it was counted as here.
    epoch: u64,
    at: Instant,
    /// We ended the connection.
    ours: bool,
    /// It was shown somewhere.
    shown: bool,
}

/// A session that comes back later than this has left in between.
const COMES_BACK: Duration = Duration::from_secs(60);

/// Events that one return can count as lost.
const MISSED: u32 = 100;

/// Sessions that are waited for.
const DEPARTED: usize = 65_536;

/// What is counted of one connection.
#[derive(Debug, Default)]
pub(super) struct SessionStats {
    /// In which epoch of the rollout it was counted as here; 0 if it was not.
    epoch: u64,
    /// That it came back was told.
    resumed: bool,
    /// The client said goodbye.
    pub(super) left: bool,
}

impl ClientState {
    /// Whether it is one of the sessions that the gateway compares both sides with.
    fn is_nobody(&self) -> bool {
        self.identity.as_ref().is_some_and(|identity| identity.own)
    }
}

impl Connections {
    /// A client has come, and it is known who it is.
    pub(super) fn arrived(&self, client: &Client, moved: bool) {
        let Some(epoch) = self.rollouts.meter.epoch() else { return };
        let mut client_state = client.state();
        if client_state.is_nobody() {
            return;
        }
        client_state.account.epoch = epoch;
        let unit = client_state.unit();
        drop(client_state);
        let to_new = !client.format.is_sse();
        self.rollouts.meter.record(&unit, Observation::Assigned);
        self.rollouts
            .meter
            .record(&unit, Observation::Connect { ok: true, to_new, migrated: moved });
        self.rollouts.meter.record(&unit, Observation::SessionStarted);
    }

    /// A client is here; it may have come before the rollout began.
    pub(super) fn is_here(&self, client_state: &mut ClientState, unit: &Unit, epoch: Option<u64>) {
        if let Some(epoch) = epoch.filter(|epoch| client_state.account.epoch < *epoch) {
            client_state.account.epoch = epoch;
            self.rollouts.meter.record(unit, Observation::SessionStarted);
        }
    }

    /// A client's connection has ended.
    pub(super) fn departed(&self, client: &Client, code: CloseCode) {
        let mut client_state = client.state();
        let account = &client_state.account;
        if account.epoch == 0 {
            return;
        }
        let (unit, session, epoch) = (client_state.unit(), client_state.member(), account.epoch);
        let for_good = account.left || client_state.superseded || code == CloseCode::Moved;
        let shown = client_state.session.subscriptions().any(|one| one.link.entered.is_some());
        drop(client_state);
        if for_good {
            return self.rollouts.meter.session_ended(&unit, epoch);
        }
        let departure =
            DisconnectedSession { unit, epoch, at: Instant::now(), ours: is_ours(code), shown };
        let forgotten = {
            let mut departed = self.departures.0.lock();
            departed.order.push_back((departure.at, session));
            let replaced = departed.by_session.insert(session, departure);
            replaced.into_iter().chain(departed.too_many()).collect::<Vec<_>>()
        };
        self.forget(forgotten);
    }

    /// The nodes hear that a session has a new connection somewhere.
    pub(super) fn came_back(&self, session: MemberId, by_plan: bool) {
        let departure = self.departures.0.lock().by_session.remove(&session);
        let Some(departure) = departure else { return };
        let away = departure.at.elapsed();
        if !by_plan && !departure.ours && away < COMES_BACK {
            self.rollouts.meter.record(&departure.unit, Observation::Interrupted);
            // The others were told that it had left.
            if departure.shown && self.cluster.config().presence_grace < away {
                self.rollouts.meter.record(&departure.unit, Observation::Flapped);
            }
        }
        self.forget([departure]);
    }

    /// A connection that was not known to be broken was replaced by another one.
    pub(super) fn was_interrupted(&self, client: &Client) {
        let unit = client.state().unit();
        self.rollouts.meter.record(&unit, Observation::Interrupted);
    }

    /// Nobody waits longer for those who have not come back.
    pub(super) fn give_up_departed(&self) {
        let gone = self.departures.0.lock().gone();
        self.forget(gone);
    }

    /// A subscription goes on from a position, or cannot.
    pub(super) fn resumed(
        &self,
        client_state: &mut ClientState,
        (since, head): (Position, Position),
        lost: Option<ResetReason>,
    ) {
        if client_state.is_nobody() {
            return;
        }
        let first = !std::mem::replace(&mut client_state.account.resumed, true);
        let unit = client_state.unit();
        match lost {
            None if first => {
                self.rollouts.meter.record(&unit, Observation::Resumed(Resume::Complete))
            }
            None => {}
            Some(reason) => {
                self.rollouts.meter.record(&unit, Observation::Resumed(Resume::Reset));
                if reason == ResetReason::Expired && since.epoch == head.epoch {
                    let missed = head.offset.saturating_sub(since.offset);
                    // A client says itself where it was: its word weighs little.
                    let events = u32::try_from(missed).unwrap_or(u32::MAX).min(MISSED);
                    self.rollouts.meter.record(&unit, Observation::Dropped { events });
                }
            }
        }
    }

    /// A request ended; that a client asked for something wrong is no failure.
    pub(super) fn requested(&self, client: &Arc<Client>, ok: bool) {
        if self.rollouts.meter.epoch().is_some() {
            let unit = client.state().unit();
            self.rollouts.meter.record(&unit, Observation::Request { ok });
        }
    }

    fn forget(&self, departures: impl IntoIterator<Item = DisconnectedSession>) {
        for DisconnectedSession { unit, epoch, .. } in departures {
            self.rollouts.meter.session_ended(&unit, epoch);
        }
    }
}

impl DisconnectedState {
    /// Those who have been away for too long.
    fn gone(&mut self) -> Vec<DisconnectedSession> {
        let mut gone = Vec::new();
        while let Some((at, session)) = self.order.front().copied() {
            if at.elapsed() < COMES_BACK {
                break;
            }
            self.order.pop_front();
            gone.extend(self.take(session, at));
        }
        gone
    }

    /// The oldest, when there are more than are kept.
    fn too_many(&mut self) -> Option<DisconnectedSession> {
        if self.order.len() <= DEPARTED {
            return None;
        }
        let (at, session) = self.order.pop_front()?;
        self.take(session, at)
    }

    /// A session may have come back and gone again since.
    fn take(&mut self, session: MemberId, at: Instant) -> Option<DisconnectedSession> {
        let is_it = self.by_session.get(&session).is_some_and(|departure| departure.at == at);
        is_it.then(|| self.by_session.remove(&session)).flatten()
    }
}

/// Whether we ended the connection though it worked.
fn is_ours(code: CloseCode) -> bool {
    !matches!(code, CloseCode::Normal | CloseCode::Silent | CloseCode::TooSlow)
}
