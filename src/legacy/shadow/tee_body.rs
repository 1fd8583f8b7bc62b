//! Response bodies of proxied streams: one that keeps a guard until it ends, and one whose chunks are
//! also sent to a shadow comparison.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::{sync::mpsc, time::Instant};

use super::{QUEUE_CHUNKS, Slot, compare};

/// A body that keeps a guard until it is dropped.
#[derive(Debug)]
pub struct GuardedBody<T> {
    body: Body,
    _guard: T,
}

impl<T> GuardedBody<T> {
    /// Wraps a body.
    pub fn new(body: Body, guard: T) -> Self {
        Self { body, _guard: guard }
    }
}

impl<T: Unpin> HttpBody for GuardedBody<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body whose chunks are also sent to a shadow comparison, without waiting for it.
#[derive(Debug)]
pub struct TeeBody<T> {
    body: GuardedBody<T>,
    chunks: mpsc::Sender<(Instant, Bytes)>,
}

impl<T> TeeBody<T> {
    /// Wraps a body and starts its comparison.
    pub fn new(body: Body, slot: Slot, guard: T) -> Self {
        let (chunks, received) = mpsc::channel(QUEUE_CHUNKS);
        let stage = slot.shadow.stage.clone();
        stage.spawn("legacy-shadow", Box::pin(compare(slot, received)));
        Self { body: GuardedBody::new(body, guard), chunks }
    }
}

impl<T: Unpin> HttpBody for TeeBody<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(chunk) = frame.data_ref()
            && let Err(mpsc::error::TrySendError::Full(_)) =
                self.chunks.try_send((Instant::now(), chunk.clone()))
        {
            // The comparison ends here: without this chunk it would report false losses.
            self.chunks = mpsc::channel(1).0;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
