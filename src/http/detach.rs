//! A socket lent to the HTTP stack, which can be taken back.
//!
//! The HTTP stack reads heads and routes them; a client that stays must not keep the stack's
//! buffers with it, 20 KB a piece. An SSE response cannot leave the stack by any upgrade, so the
//! stack gets the socket only on loan: after [`DetachableSocket::take`] it sees the end of the stream and goes.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

use super::{admission::SocketPlace, idle_timeout::ActivityClock};
use crate::{
    connection::socket::{Pipe, Socket},
    lifecycle::Stage,
};

/// A socket on loan.
#[derive(Clone, Debug)]
pub(super) struct DetachableSocket(Arc<SharedSocket>);

#[derive(Debug)]
struct SharedSocket {
    wire: Mutex<Option<Wire>>,
    place: Mutex<Option<SocketPlace>>,
    /// Wakes the HTTP stack where it waits for bytes: nothing else would once the socket is taken.
    reader: Mutex<Option<Waker>>,
    pulse: Arc<ActivityClock>,
}

/// What it is that is lent.
#[derive(Debug)]
pub(super) enum Wire {
    /// Bytes go out as they are written.
    Plain(TcpStream),
    /// Bytes are encrypted on the way.
    Tls(Box<TlsStream<TcpStream>>),
}

impl DetachableSocket {
    pub(super) fn new(wire: Wire, place: SocketPlace, pulse: Arc<ActivityClock>) -> Self {
        let (wire, place) = (Mutex::new(Some(wire)), Mutex::new(Some(place)));
        Self(Arc::new(SharedSocket { wire, place, reader: Mutex::new(None), pulse }))
    }

    /// The socket carries a client from now on, which is counted elsewhere.
    pub(super) fn carries_a_client(&self) {
        drop(self.0.place.lock().take());
    }

    /// Takes the socket back, if nobody did before. What has to be carried is carried in `stage`.
    pub(super) fn take(&self, stage: &Stage) -> Option<Socket> {
        let wire = self.0.wire.lock().take()?;
        self.carries_a_client();
        if let Some(reader) = self.0.reader.lock().take() {
            reader.wake();
        }
        match wire {
            // Registered anew: the old registration would keep the HTTP stack's task alive.
            Wire::Plain(stream) => {
                TcpStream::from_std(stream.into_std().ok()?).ok().map(Socket::Tcp)
            }
            Wire::Tls(stream) => {
                let pipe = Arc::new(Pipe::default());
                let carrier = Arc::clone(&pipe);
                stage.spawn_client(async move { carrier.carry(stream).await });
                Some(Socket::Pipe(pipe))
            }
        }
    }

    fn with<T>(
        &self,
        poll: impl FnOnce(&mut Wire) -> Poll<io::Result<T>>,
        after_taking: T,
    ) -> Poll<io::Result<T>> {
        match &mut *self.0.wire.lock() {
            Some(wire) => poll(wire),
            None => Poll::Ready(Ok(after_taking)),
        }
    }
}

impl AsyncRead for DetachableSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = self.with(
            |wire| match wire {
                Wire::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
                Wire::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            },
            (),
        );
        if polled.is_ready() {
            self.0.pulse.heard();
        } else {
            *self.0.reader.lock() = Some(cx.waker().clone());
        }
        polled
    }
}

impl AsyncWrite for DetachableSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = self.with(
            |wire| match wire {
                Wire::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
                Wire::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            },
            buf.len(),
        );
        if polled.is_ready() {
            self.0.pulse.wrote();
        }
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(
            |wire| match wire {
                Wire::Plain(stream) => Pin::new(stream).poll_flush(cx),
                Wire::Tls(stream) => Pin::new(stream).poll_flush(cx),
            },
            (),
        )
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = self.with(
            |wire| match wire {
                Wire::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
                Wire::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            },
            (),
        );
        Poll::Ready(ready!(polled))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        task::Wake,
        time::Duration,
    };

    use prometheus_client::metrics::family::Family;
    use tokio::net::TcpListener;

    use super::*;
    use crate::http::{AdmissionConfig, AdmissionControl};

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn who_waits_for_bytes_is_woken_to_see_the_end_when_the_socket_is_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let admission = AdmissionControl::new(
            AdmissionConfig { sockets: 1, ..AdmissionConfig::default() },
            Family::default(),
        );
        let pulse = Arc::new(ActivityClock::new(Duration::from_secs(1), Duration::from_secs(1)));
        let mut lend =
            DetachableSocket::new(Wire::Plain(stream), admission.socket().unwrap(), pulse);
        let woken = Arc::new(Woken::default());
        let waker = Arc::clone(&woken).into();
        let mut byte = [0];
        let mut read = |lend: &mut DetachableSocket| {
            let mut into = ReadBuf::new(&mut byte);
            Pin::new(lend).poll_read(&mut Context::from_waker(&waker), &mut into).map(drop)
        };
        assert!(read(&mut lend).is_pending());
        let taken = lend.take(&Stage::default());
        assert!(taken.is_some() && woken.0.load(Ordering::Relaxed));
        assert!(read(&mut lend).is_ready());
        assert!(admission.socket().is_some(), "a client's socket has no place among the others");
    }
}
