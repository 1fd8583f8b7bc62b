//! Detaching sockets from the HTTP stack (hyper), so that a long-lived client does not keep the
//! stack's buffers: 20 KB for an SSE stream.
//!
//! A WebSocket leaves hyper by an upgrade; an SSE response has no such exit. So hyper gets every socket
//! as a [`DetachableSocket`]: after [`DetachableSocket::detach`] hyper reads the end of the stream and
//! finishes, while the caller owns the real socket.

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

use super::{admission::SocketPermit, idle_timeout::ActivityClock};
use crate::{
    connection::socket::{Pipe, Socket},
    lifecycle::Stage,
};

/// A handle to a socket that hyper and the handlers of its requests share.
#[derive(Clone, Debug)]
pub(super) struct DetachableSocket(Arc<SharedSocket>);

#[derive(Debug)]
struct SharedSocket {
    /// None once the socket is detached.
    stream: Mutex<Option<ServerStream>>,
    /// Counts against `server.limits.sockets` until the socket carries a client.
    permit: Mutex<Option<SocketPermit>>,
    /// Wakes hyper where it waits for bytes, so that it notices that the socket was detached.
    reader: Mutex<Option<Waker>>,
    activity: Arc<ActivityClock>,
}

/// An accepted socket, with or without TLS.
#[derive(Debug)]
pub(super) enum ServerStream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl DetachableSocket {
    pub(super) fn new(
        stream: ServerStream,
        permit: SocketPermit,
        activity: Arc<ActivityClock>,
    ) -> Self {
        let (stream, permit) = (Mutex::new(Some(stream)), Mutex::new(Some(permit)));
        Self(Arc::new(SharedSocket { stream, permit, reader: Mutex::new(None), activity }))
    }

    /// Stops counting against `server.limits.sockets`, as the client on the socket has a
    /// [`ClientPermit`](super::admission::ClientPermit).
    pub(super) fn release_socket_permit(&self) {
        drop(self.0.permit.lock().take());
    }

    /// Detaches the socket from hyper; none if it was detached before. A TLS stream is pumped by a
    /// task in `stage`.
    pub(super) fn detach(&self, stage: &Stage) -> Option<Socket> {
        let stream = self.0.stream.lock().take()?;
        self.release_socket_permit();
        if let Some(reader) = self.0.reader.lock().take() {
            reader.wake();
        }
        match stream {
            // Registered anew with the reactor: the old registration keeps hyper's task alive.
            ServerStream::Plain(stream) => {
                TcpStream::from_std(stream.into_std().ok()?).ok().map(Socket::Tcp)
            }
            ServerStream::Tls(stream) => {
                let pipe = Arc::new(Pipe::default());
                let tls_end = Arc::clone(&pipe);
                stage.spawn_client(async move { tls_end.carry(stream).await });
                Some(Socket::Pipe(pipe))
            }
        }
    }

    /// Polls the stream; once it is detached, returns `detached`.
    fn poll_stream<T>(
        &self,
        poll: impl FnOnce(&mut ServerStream) -> Poll<io::Result<T>>,
        detached: T,
    ) -> Poll<io::Result<T>> {
        match &mut *self.0.stream.lock() {
            Some(stream) => poll(stream),
            None => Poll::Ready(Ok(detached)),
        }
    }
}

impl AsyncRead for DetachableSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = self.poll_stream(
            |stream| match stream {
                ServerStream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
                ServerStream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            },
            (),
        );
        if polled.is_ready() {
            self.0.activity.received();
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
        let polled = self.poll_stream(
            |stream| match stream {
                ServerStream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
                ServerStream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            },
            buf.len(),
        );
        if polled.is_ready() {
            self.0.activity.sent();
        }
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_stream(
            |stream| match stream {
                ServerStream::Plain(stream) => Pin::new(stream).poll_flush(cx),
                ServerStream::Tls(stream) => Pin::new(stream).poll_flush(cx),
            },
            (),
        )
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = self.poll_stream(
            |stream| match stream {
                ServerStream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
                ServerStream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
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
    async fn a_pending_read_is_woken_and_ends_when_the_socket_is_detached() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let admission = AdmissionControl::new(
            AdmissionConfig { sockets: 1, ..AdmissionConfig::default() },
            Family::default(),
        );
        let activity = Arc::new(ActivityClock::new(Duration::from_secs(1), Duration::from_secs(1)));
        let permit = admission.admit_socket().unwrap();
        let mut socket = DetachableSocket::new(ServerStream::Plain(stream), permit, activity);
        let woken = Arc::new(Woken::default());
        let waker = Arc::clone(&woken).into();
        let mut byte = [0];
        let mut read = |socket: &mut DetachableSocket| {
            let mut buf = ReadBuf::new(&mut byte);
            Pin::new(socket).poll_read(&mut Context::from_waker(&waker), &mut buf).map(drop)
        };
        assert!(read(&mut socket).is_pending());
        let detached = socket.detach(&Stage::default());
        assert!(detached.is_some() && woken.0.load(Ordering::Relaxed));
        assert!(read(&mut socket).is_ready());
        assert!(admission.admit_socket().is_some(), "a client's socket does not count");
    }
}
