//! How long a socket may keep the HTTP stack waiting: until its first request, within a head, and
//! between two requests.
//!
//! The stack itself watches heads only once it knows the protocol. Nothing here knows what the bytes
//! mean: it is told when some came, when a request begins and when its answer is out.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use hyper::{
    Response, Version,
    body::{Body as HttpBody, Frame, SizeHint},
};
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

/// What is going on on one socket.
#[derive(Debug)]
pub(super) struct ActivityClock {
    state: Mutex<State>,
    changed: Notify,
}

impl ActivityClock {
    pub(super) fn new(header_timeout: Duration, idle_timeout: Duration) -> Self {
        let state = State::new(header_timeout, idle_timeout, Instant::now());
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    /// Bytes came.
    pub(super) fn heard(&self) {
        if self.state.lock().heard(Instant::now()) {
            self.changed.notify_one();
        }
    }

    /// Bytes were taken: the rest of an answer that the stack had finished.
    pub(super) fn wrote(&self) {
        self.state.lock().wrote(Instant::now());
    }

    /// A request's head is there. It is under way as long as the guard is held.
    pub(super) fn begin(self: &Arc<Self>, version: Version) -> UnderWay {
        self.state.lock().begin(version);
        UnderWay(Arc::clone(self))
    }

    /// Resolves when the socket kept us waiting for too long.
    pub(super) async fn overdue(&self) {
        loop {
            let deadline = self.state.lock().deadline();
            match deadline {
                None => self.changed.notified().await,
                Some(deadline) if deadline <= Instant::now() => return,
                // Either way the deadline is looked at anew: a later one needs no news.
                Some(deadline) => drop(timeout_at(deadline, self.changed.notified()).await),
            }
        }
    }
}

#[derive(Debug)]
struct State {
    header_timeout: Duration,
    idle_timeout: Duration,
    phase: Phase,
    since: Instant,
    /// On HTTP/2 bytes come between requests that begin none: pings, windows.
    multiplexed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// A request's head is due.
    Head,
    /// The last answer is out, and nothing came since.
    Idle,
    /// So many requests are under way.
    Busy(usize),
}

impl State {
    fn new(header_timeout: Duration, idle_timeout: Duration, since: Instant) -> Self {
        Self { header_timeout, idle_timeout, phase: Phase::Head, since, multiplexed: false }
    }

    /// Whether a rest ended by it.
    fn heard(&mut self, now: Instant) -> bool {
        let begins = self.phase == Phase::Idle && !self.multiplexed;
        if begins {
            (self.phase, self.since) = (Phase::Head, now);
        }
        begins
    }

    fn wrote(&mut self, now: Instant) {
        // On HTTP/2 pings are answered however long nothing is asked for.
        if self.phase == Phase::Idle && !self.multiplexed {
            self.since = now;
        }
    }

    fn begin(&mut self, version: Version) {
        let others = if let Phase::Busy(others) = self.phase { others } else { 0 };
        self.phase = Phase::Busy(others + 1);
        self.multiplexed = version == Version::HTTP_2;
    }

    /// Whether it was the last one.
    fn end(&mut self, now: Instant) -> bool {
        match self.phase {
            Phase::Busy(requests) if 1 < requests => self.phase = Phase::Busy(requests - 1),
            Phase::Busy(_) => (self.phase, self.since) = (Phase::Idle, now),
            Phase::Head | Phase::Idle => {}
        }
        self.phase == Phase::Idle
    }

    fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Head => Some(self.since + self.header_timeout),
            Phase::Idle => Some(self.since + self.idle_timeout),
            Phase::Busy(_) => None,
        }
    }
}

/// A request that was begun and whose answer is not out yet.
#[derive(Debug)]
pub(super) struct UnderWay(Arc<ActivityClock>);

impl UnderWay {
    /// Stays under way until the stack has the whole answer.
    pub(super) fn until_answered(self, response: Response<Body>) -> Response<Body> {
        response.map(|body| Body::new(Answer { body, _under_way: self }))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.0.state.lock().end(Instant::now()) {
            self.0.changed.notify_one();
        }
    }
}

struct Answer {
    body: Body,
    _under_way: UnderWay,
}

impl HttpBody for Answer {
    type Data = <Body as HttpBody>::Data;
    type Error = <Body as HttpBody>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Duration = Duration::from_secs(30);
    const IDLE: Duration = Duration::from_secs(75);

    #[test]
    fn each_phase_has_its_own_time() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut state = State::new(HEAD, IDLE, start);
        state.heard(at(5));
        assert_eq!(state.deadline(), Some(start + HEAD), "a trickle buys no time");
        state.begin(Version::HTTP_11);
        state.begin(Version::HTTP_11);
        assert!(!state.end(at(10)));
        assert_eq!(state.deadline(), None);
        assert!(state.end(at(20)));
        assert_eq!(state.deadline(), Some(at(20) + IDLE));
        state.wrote(at(30));
        assert_eq!(state.deadline(), Some(at(30) + IDLE));
        assert!(state.heard(at(40)));
        assert!(!state.heard(at(50)));
        assert_eq!(state.deadline(), Some(at(40) + HEAD));
    }

    #[test]
    fn a_ping_between_two_requests_is_no_head() {
        let start = Instant::now();
        let mut state = State::new(HEAD, IDLE, start);
        state.begin(Version::HTTP_2);
        state.end(start);
        assert!(!state.heard(start + HEAD));
        assert_eq!(state.deadline(), Some(start + IDLE));
    }
}
