//! Bodies on their way to a client: one that holds something, and one that is listened to.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::{sync::mpsc, time::Instant};

use super::{PIECES, Slot, compare};

/// A body, and something that is held as long as it lasts.
#[derive(Debug)]
pub struct Held<T> {
    body: Body,
    _held: T,
}

impl<T> Held<T> {
    /// Holds it.
    pub fn new(body: Body, held: T) -> Self {
        Self { body, _held: held }
    }
}

impl<T: Unpin> HttpBody for Held<T> {
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

/// A stream that passes, and is listened to.
#[derive(Debug)]
pub struct TeeBody<T> {
    body: Held<T>,
    pieces: mpsc::Sender<(Instant, Bytes)>,
}

impl<T> TeeBody<T> {
    /// Listens from here on.
    pub fn new(body: Body, slot: Slot, held: T) -> Self {
        let (pieces, inbox) = mpsc::channel(PIECES);
        let stage = slot.shadow.stage.clone();
        stage.spawn("legacy-shadow", Box::pin(compare(slot, inbox)));
        Self { body: Held::new(body, held), pieces }
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
            && let Some(piece) = frame.data_ref()
            && let Err(mpsc::error::TrySendError::Full(_)) =
                self.pieces.try_send((Instant::now(), piece.clone()))
        {
            // Nothing is compared any more that has a hole of our own making.
            self.pieces = mpsc::channel(1).0;
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
