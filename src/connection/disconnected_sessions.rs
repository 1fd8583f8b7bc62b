//! Sessions whose connection ended and that may reconnect. Pure bookkeeping: it records nothing.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{protocol::MemberId, rollout::assignment::Unit};

/// A session that reconnects later than this counts as left in between.
pub(super) const RECONNECT_WINDOW: Duration = Duration::from_secs(60);

/// Sessions remembered at the same time.
const REMEMBERED: usize = 65_536;

/// Sessions whose connection ended and that may reconnect.
#[derive(Debug, Default)]
pub(super) struct DisconnectedSessions(Mutex<Remembered>);

/// A session whose connection ended.
#[derive(Debug)]
pub(super) struct DisconnectedSession {
    /// The user or client that the rollout's measurements are counted for.
    pub(super) unit: Unit,
    /// The rollout's epoch in which the session was counted as connected.
    pub(super) epoch: u64,
    pub(super) at: Instant,
    /// The gateway closed the connection.
    pub(super) by_gateway: bool,
    /// The session was a member of some channel's presence.
    pub(super) was_member: bool,
}

#[derive(Debug, Default)]
struct Remembered {
    by_session: HashMap<MemberId, DisconnectedSession>,
    order: VecDeque<(Instant, MemberId)>,
}

impl DisconnectedSessions {
    /// Remembers a session. Returns those that are forgotten for it.
    pub(super) fn insert(
        &self,
        session: MemberId,
        disconnected: DisconnectedSession,
    ) -> Vec<DisconnectedSession> {
        let mut remembered = self.0.lock();
        remembered.order.push_back((disconnected.at, session));
        let replaced = remembered.by_session.insert(session, disconnected);
        replaced.into_iter().chain(remembered.evict()).collect()
    }

    /// Takes a session out that reconnected.
    pub(super) fn remove(&self, session: MemberId) -> Option<DisconnectedSession> {
        self.0.lock().by_session.remove(&session)
    }

    /// Takes those out whose time to reconnect is over.
    pub(super) fn remove_expired(&self) -> Vec<DisconnectedSession> {
        let mut remembered = self.0.lock();
        let mut expired = Vec::new();
        while let Some((at, session)) = remembered.order.front().copied() {
            if at.elapsed() < RECONNECT_WINDOW {
                break;
            }
            remembered.order.pop_front();
            expired.extend(remembered.take(session, at));
        }
        expired
    }
}

impl Remembered {
    /// The oldest, when there are more than are kept.
    fn evict(&mut self) -> Option<DisconnectedSession> {
        if self.order.len() <= REMEMBERED {
            return None;
        }
        let (at, session) = self.order.pop_front()?;
        self.take(session, at)
    }

    /// A session may have reconnected and disconnected again since: then it is kept.
    fn take(&mut self, session: MemberId, at: Instant) -> Option<DisconnectedSession> {
        let same = self.by_session.get(&session).is_some_and(|kept| kept.at == at);
        same.then(|| self.by_session.remove(&session)).flatten()
    }
}
