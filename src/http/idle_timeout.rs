//! Timeouts of a socket in the HTTP stack: `server.header_timeout` while a request head is awaited,
//! `server.idle_timeout` between requests.
//!
//! hyper's own header timeout starts only once the protocol is known, so a socket that sends nothing
//! would never time out. [`ActivityClock`] does not parse anything: it is notified of received and sent
//! bytes, and of the begin and end of requests.

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

/// Tracks the activity of one socket and computes when it times out.
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

    /// Records received bytes.
    pub(super) fn received(&self) {
        if self.state.lock().received(Instant::now()) {
            self.changed.notify_one();
        }
    }

    /// Records sent bytes: the rest of a response may be sent after the request has ended.
    pub(super) fn sent(&self) {
        self.state.lock().sent(Instant::now());
    }

    /// Records a complete request head. The request is in flight until the guard is dropped.
    pub(super) fn begin_request(self: &Arc<Self>, version: Version) -> InFlight {
        self.state.lock().begin_request(version);
        InFlight(Arc::clone(self))
    }

    /// Resolves when the socket has timed out.
    pub(super) async fn timed_out(&self) {
        loop {
            let deadline = self.state.lock().deadline();
            match deadline {
                None => self.changed.notified().await,
                Some(deadline) if deadline <= Instant::now() => return,
                // Woken or timed out: read the deadline again. It may have moved without a notification.
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
    /// HTTP/2: bytes between requests are pings and window updates, not the head of the next one.
    multiplexed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// A request head is awaited.
    AwaitingHead,
    /// All requests have ended, and no byte was received since.
    Idle,
    /// This many requests are in flight.
    InFlight(usize),
}

impl State {
    fn new(header_timeout: Duration, idle_timeout: Duration, since: Instant) -> Self {
        Self { header_timeout, idle_timeout, phase: Phase::AwaitingHead, since, multiplexed: false }
    }

    /// Returns whether these bytes begin the head of the next request.
    fn received(&mut self, now: Instant) -> bool {
        let begins_head = self.phase == Phase::Idle && !self.multiplexed;
        if begins_head {
            (self.phase, self.since) = (Phase::AwaitingHead, now);
        }
        begins_head
    }

    fn sent(&mut self, now: Instant) {
        // Not on HTTP/2, where answers to pings would keep an idle connection open forever.
        if self.phase == Phase::Idle && !self.multiplexed {
            self.since = now;
        }
    }

    fn begin_request(&mut self, version: Version) {
        let others = if let Phase::InFlight(others) = self.phase { others } else { 0 };
        self.phase = Phase::InFlight(others + 1);
        self.multiplexed = version == Version::HTTP_2;
    }

    /// Returns whether it was the last request in flight.
    fn end_request(&mut self, now: Instant) -> bool {
        match self.phase {
            Phase::InFlight(requests) if 1 < requests => self.phase = Phase::InFlight(requests - 1),
            Phase::InFlight(_) => (self.phase, self.since) = (Phase::Idle, now),
            Phase::AwaitingHead | Phase::Idle => {}
        }
        self.phase == Phase::Idle
    }

    fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::AwaitingHead => Some(self.since + self.header_timeout),
            Phase::Idle => Some(self.since + self.idle_timeout),
            Phase::InFlight(_) => None,
        }
    }
}

/// A request in flight; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct InFlight(Arc<ActivityClock>);

impl InFlight {
    /// Keeps the request in flight until the HTTP stack has read the whole response body.
    pub(super) fn attach_to(self, response: Response<Body>) -> Response<Body> {
        response.map(|body| Body::new(InFlightBody { body, _in_flight: self }))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.state.lock().end_request(Instant::now()) {
            self.0.changed.notify_one();
        }
    }
}

/// A response body that keeps its request in flight.
struct InFlightBody {
    body: Body,
    _in_flight: InFlight,
}

impl HttpBody for InFlightBody {
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
    fn each_phase_has_its_own_timeout() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut state = State::new(HEAD, IDLE, start);
        state.received(at(5));
        assert_eq!(state.deadline(), Some(start + HEAD), "a slow head gets no more time");
        state.begin_request(Version::HTTP_11);
        state.begin_request(Version::HTTP_11);
        assert!(!state.end_request(at(10)));
        assert_eq!(state.deadline(), None);
        assert!(state.end_request(at(20)));
        assert_eq!(state.deadline(), Some(at(20) + IDLE));
        state.sent(at(30));
        assert_eq!(state.deadline(), Some(at(30) + IDLE));
        assert!(state.received(at(40)));
        assert!(!state.received(at(50)));
        assert_eq!(state.deadline(), Some(at(40) + HEAD));
    }

    #[test]
    fn an_http2_ping_between_requests_is_not_a_head() {
        let start = Instant::now();
        let mut state = State::new(HEAD, IDLE, start);
        state.begin_request(Version::HTTP_2);
        state.end_request(start);
        assert!(!state.received(start + HEAD));
        assert_eq!(state.deadline(), Some(start + IDLE));
    }
}
