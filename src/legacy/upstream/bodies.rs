//! What travels between a client and the old server, piece by piece: a request's body, an answer's, and
//! the bytes of an upgraded connection.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::body::{Body, Bytes};
use hyper::{
    body::{Body as HttpBody, Frame, SizeHint},
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{io::AsyncWriteExt as _, sync::OwnedSemaphorePermit, time::Instant};
use tokio_util::sync::CancellationToken;

/// When something of the request went out last.
pub(super) struct Watch(Arc<Mutex<Instant>>);

impl Watch {
    pub(super) fn last(&self) -> Instant {
        *self.0.lock()
    }
}

/// A request's body on its way.
#[derive(Debug)]
pub(super) struct Sending {
    body: Body,
    moved: Arc<Mutex<Instant>>,
}

impl Sending {
    pub(super) fn new(body: Body) -> (Self, Watch) {
        let moved = Arc::new(Mutex::new(Instant::now()));
        (Self { body, moved: Arc::clone(&moved) }, Watch(moved))
    }
}

impl HttpBody for Sending {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if frame.is_ready() {
            *self.moved.lock() = Instant::now();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body on its way. Dropped, it takes the connection to the old server with it.
pub(super) struct Passing {
    body: hyper::body::Incoming,
    ends: Option<Pin<Box<tokio_util::sync::WaitForCancellationFutureOwned>>>,
    _place: OwnedSemaphorePermit,
}

impl Passing {
    pub(super) fn new(
        body: hyper::body::Incoming,
        ends: Option<CancellationToken>,
        place: OwnedSemaphorePermit,
    ) -> Self {
        let ends = ends.map(|ends| Box::pin(ends.cancelled_owned()));
        Self { body, ends, _place: place }
    }
}

impl HttpBody for Passing {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending if self.ends.as_mut().is_some_and(|e| e.as_mut().poll(cx).is_ready()) => {
                Poll::Ready(None)
            }
            polled => polled,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection that was upgraded on both sides: a WebSocket of the old server's.
#[derive(Debug)]
pub struct Tunnel {
    ours: OnUpgrade,
    theirs: OnUpgrade,
    place: Option<OwnedSemaphorePermit>,
}

impl Tunnel {
    pub(super) fn new(ours: OnUpgrade, theirs: OnUpgrade) -> Self {
        Self { ours, theirs, place: None }
    }

    /// Keeps the place of the request as long as it lasts.
    pub(super) fn hold(&mut self, place: OwnedSemaphorePermit) {
        self.place = Some(place);
    }

    /// Carries bytes both ways until one side ends or `stop` is cancelled.
    pub async fn carry(self, stop: &CancellationToken) {
        let Self { ours, theirs, place: _place } = self;
        let carried = async {
            let (Ok(ours), Ok(theirs)) = tokio::join!(ours, theirs) else { return };
            let (mut from_us, mut to_us) = tokio::io::split(TokioIo::new(ours));
            let (mut from_them, mut to_them) = tokio::io::split(TokioIo::new(theirs));
            // No WebSocket is half open: who has gone from one side goes from the other.
            tokio::select! {
                _ = tokio::io::copy(&mut from_us, &mut to_them) => drop(to_them.shutdown().await),
                _ = tokio::io::copy(&mut from_them, &mut to_us) => drop(to_us.shutdown().await),
            }
        };
        tokio::select! {
            () = carried => {}
            () = stop.cancelled() => {}
        }
    }
}
