//! What happens to sessions, recorded with the rollout's meter: connects, interruptions, resumes and
//! leaves.
//!
//! The definitions are the same for every transport. A disconnect is an interruption when the same
//! session reconnects within a minute, the client had not said goodbye, and the gateway had not closed
//! the connection; it is recorded on the node that the session was disconnected from, whichever node
//! it reconnects to.

use std::{sync::Arc, time::Instant};

use super::{
    client::Client,
    client_state::ClientState,
    disconnected_sessions::{DisconnectedSession, RECONNECT_WINDOW},
    registry::Connections,
};
use crate::{
    protocol::{CloseCode, MemberId, Position, frame::ResetReason},
    rollout::{
        assignment::Unit,
        measure::{Observation, Resume},
    },
    wire::Transport,
};

/// Events that one resume can count as lost: where the client was is its own word.
const LOST_EVENTS_MAX: u32 = 100;

impl Connections {
    /// An authenticated client has connected.
    pub(super) fn record_connect(&self, client: &Client, moved: bool) {
        let Some(epoch) = self.rollouts.meter.epoch() else { return };
        let mut state = client.state();
        if state.is_synthetic() {
            return;
        }
        state.stats.epoch = epoch;
        let unit = state.unit();
        drop(state);
        let to_new = client.format.transport == Transport::WebSocket;
        self.rollouts.meter.record(&unit, Observation::Assigned);
        self.rollouts
            .meter
            .record(&unit, Observation::Connect { ok: true, to_new, migrated: moved });
        self.rollouts.meter.record(&unit, Observation::SessionStarted);
    }

    /// A client is connected; it may have connected before the rollout's epoch began.
    pub(super) fn record_present(&self, state: &mut ClientState, unit: &Unit, epoch: Option<u64>) {
        if let Some(epoch) = epoch.filter(|epoch| state.stats.epoch < *epoch) {
            state.stats.epoch = epoch;
            self.rollouts.meter.record(unit, Observation::SessionStarted);
        }
    }

    /// A client's connection has ended.
    pub(super) fn record_disconnect(&self, client: &Client, code: CloseCode) {
        let mut state = client.state();
        if state.stats.epoch == 0 {
            return;
        }
        let (unit, session, epoch) = (state.unit(), state.member(), state.stats.epoch);
        let for_good = state.stats.left || state.superseded || code == CloseCode::Moved;
        let was_member = state
            .session
            .subscriptions()
            .any(|subscription| subscription.link.membership.is_some());
        drop(state);
        if for_good {
            return self.rollouts.meter.session_ended(&unit, epoch);
        }
        let by_gateway = is_by_gateway(code);
        let at = Instant::now();
        let disconnected = DisconnectedSession { unit, epoch, at, by_gateway, was_member };
        self.record_left(self.disconnected.insert(session, disconnected));
    }

    /// The nodes learn that a session has a new connection somewhere.
    pub(super) fn record_reconnect(&self, session: MemberId, migrated: bool) {
        let Some(disconnected) = self.disconnected.remove(session) else { return };
        let away = disconnected.at.elapsed();
        if !migrated && !disconnected.by_gateway && away < RECONNECT_WINDOW {
            self.rollouts.meter.record(&disconnected.unit, Observation::Interrupted);
            // The other members had been told that it left.
            if disconnected.was_member && self.cluster.config().presence_grace < away {
                self.rollouts.meter.record(&disconnected.unit, Observation::Flapped);
            }
        }
        self.record_left([disconnected]);
    }

    /// Another connection replaced one that was not known to be broken.
    pub(super) fn record_interruption(&self, client: &Client) {
        let unit = client.state().unit();
        self.rollouts.meter.record(&unit, Observation::Interrupted);
    }

    /// Counts sessions as left that have not reconnected in time.
    pub(super) fn expire_disconnected(&self) {
        self.record_left(self.disconnected.remove_expired());
    }

    /// A subscription resumes from a position, or cannot.
    pub(super) fn record_resume(
        &self,
        state: &mut ClientState,
        (since, head): (Position, Position),
        lost: Option<ResetReason>,
    ) {
        if state.is_synthetic() {
            return;
        }
        let first = !std::mem::replace(&mut state.stats.resume_recorded, true);
        let unit = state.unit();
        match lost {
            None if first => {
                self.rollouts.meter.record(&unit, Observation::Resumed(Resume::Complete))
            }
            None => {}
            Some(reason) => {
                self.rollouts.meter.record(&unit, Observation::Resumed(Resume::Reset));
                if reason == ResetReason::Expired && since.epoch == head.epoch {
                    let missed = head.offset.saturating_sub(since.offset);
                    let events = u32::try_from(missed).unwrap_or(u32::MAX).min(LOST_EVENTS_MAX);
                    self.rollouts.meter.record(&unit, Observation::Dropped { events });
                }
            }
        }
    }

    /// A request was performed. A request that is not valid is no failure of the gateway's.
    pub(super) fn record_request(&self, client: &Arc<Client>, ok: bool) {
        if self.rollouts.meter.epoch().is_some() {
            let unit = client.state().unit();
            self.rollouts.meter.record(&unit, Observation::Request { ok });
        }
    }

    fn record_left(&self, sessions: impl IntoIterator<Item = DisconnectedSession>) {
        for DisconnectedSession { unit, epoch, .. } in sessions {
            self.rollouts.meter.session_ended(&unit, epoch);
        }
    }
}

/// Whether the gateway closed a connection that worked.
fn is_by_gateway(code: CloseCode) -> bool {
    !matches!(code, CloseCode::Normal | CloseCode::Silent | CloseCode::TooSlow)
}
