//! Unbuffered bodies of proxied requests and responses, and the tunnel of an upgraded connection.

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

/// When a part of a request body was last sent.
pub(super) struct SendProgress(Arc<Mutex<Instant>>);

impl SendProgress {
    pub(super) fn last_sent(&self) -> Instant {
        *self.0.lock()
    }
}

/// A request body that records its progress.
#[derive(Debug)]
pub(super) struct RequestBody {
    body: Body,
    last_sent: Arc<Mutex<Instant>>,
}

impl RequestBody {
    pub(super) fn new(body: Body) -> (Self, SendProgress) {
        let last_sent = Arc::new(Mutex::new(Instant::now()));
        (Self { body, last_sent: Arc::clone(&last_sent) }, SendProgress(last_sent))
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if frame.is_ready() {
            *self.last_sent.lock() = Instant::now();
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

/// A response body of the upstream. Dropping it closes the connection to the upstream.
pub(super) struct ResponseBody {
    body: hyper::body::Incoming,
    /// Ends the body early, between two frames.
    stop: Option<Pin<Box<tokio_util::sync::WaitForCancellationFutureOwned>>>,
    _slot: OwnedSemaphorePermit,
}

impl ResponseBody {
    pub(super) fn new(
        body: hyper::body::Incoming,
        stop: Option<CancellationToken>,
        slot: OwnedSemaphorePermit,
    ) -> Self {
        let stop = stop.map(|stop| Box::pin(stop.cancelled_owned()));
        Self { body, stop, _slot: slot }
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending if self.stop.as_mut().is_some_and(|s| s.as_mut().poll(cx).is_ready()) => {
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

/// A connection upgraded on both sides: a proxied WebSocket.
#[derive(Debug)]
pub struct Tunnel {
    client: OnUpgrade,
    upstream: OnUpgrade,
    slot: Option<OwnedSemaphorePermit>,
}

impl Tunnel {
    pub(super) fn new(client: OnUpgrade, upstream: OnUpgrade) -> Self {
        Self { client, upstream, slot: None }
    }

    /// Keeps the request's slot until the tunnel ends.
    pub(super) fn hold_slot(&mut self, slot: OwnedSemaphorePermit) {
        self.slot = Some(slot);
    }

    /// Copies bytes both ways until one side ends or `stop` is cancelled.
    pub async fn run(self, stop: &CancellationToken) {
        let Self { client, upstream, slot: _slot } = self;
        let copy = async {
            let (Ok(client), Ok(upstream)) = tokio::join!(client, upstream) else { return };
            let (mut from_client, mut to_client) = tokio::io::split(TokioIo::new(client));
            let (mut from_upstream, mut to_upstream) = tokio::io::split(TokioIo::new(upstream));
            // A WebSocket is never half open: the end of one side ends the other.
            tokio::select! {
                _ = tokio::io::copy(&mut from_client, &mut to_upstream) => {
                    drop(to_upstream.shutdown().await);
                }
                _ = tokio::io::copy(&mut from_upstream, &mut to_client) => {
                    drop(to_client.shutdown().await);
                }
            }
        };
        tokio::select! {
            () = copy => {}
            () = stop.cancelled() => {}
        }
    }
}
