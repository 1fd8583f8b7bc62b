//! Listener: accepts sockets, performs TLS handshakes and serves HTTP/1.1 and HTTP/2.
//!
//! Owns a socket until its last response, or until a client's handler detaches it. Does not know the
//! routes; the router gets every request with its [`Peer`] and [`DetachableSocket`] as extensions.

use std::{
    fs::File,
    io::{self, BufReader},
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, body::Body};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::{
    ServerConfig as RustlsConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;
use tracing::{debug, warn};

use super::{
    AdmissionControl, ServerConfig, TlsConfig,
    admission::SocketPermit,
    detach::{DetachableSocket, ServerStream},
    idle_timeout::ActivityClock,
};
use crate::lifecycle::Stage;

/// Length of the accept queue: how many sockets wait when all clients reconnect at once.
const BACKLOG: u32 = 4096;

/// How much longer than `connection.stall_timeout` the kernel waits for an acknowledgement: a stalled
/// client is closed with a close code before the kernel resets it.
const STALL_MARGIN: Duration = Duration::from_secs(15);

/// Interval of HTTP/2 keep-alive pings.
const HTTP2_PING: Duration = Duration::from_secs(30);

/// Unsent bytes that the kernel buffers per socket. More stay unread in the channel log, where they
/// need no memory of their own.
const NOT_SENT_LOWAT: u32 = 128 << 10;

/// Pause after a failure to accept, for example when the process has no file descriptors left.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Binds `server.listen`.
///
/// # Errors
/// When the address is in use or not one of this machine.
pub fn bind(config: &ServerConfig) -> io::Result<TcpListener> {
    let socket = if config.listen.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(config.listen)?;
    socket.listen(BACKLOG)
}

/// Loads the certificate and key of `[server.tls]`; none without them.
///
/// # Errors
/// When only one file is set, or a file is missing or not valid PEM.
pub fn tls_acceptor(config: &TlsConfig) -> Result<Option<TlsAcceptor>, TlsError> {
    let (certificate, key) = match (&config.certificate, &config.key) {
        (None, None) => return Ok(None),
        (Some(certificate), Some(key)) => (certificate, key),
        (Some(_), None) => return Err(TlsError::Incomplete { missing: "key" }),
        (None, Some(_)) => return Err(TlsError::Incomplete { missing: "certificate" }),
    };
    let chain = CertificateDer::pem_reader_iter(open(certificate)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|err| TlsError::unreadable(certificate, err))?;
    let private =
        PrivateKeyDer::from_pem_reader(open(key)?).map_err(|err| TlsError::unreadable(key, err))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = RustlsConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private))
        .map_err(|err| TlsError::unreadable(certificate, err))?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(tls))))
}

/// The server certificate, the first of the chain; none without TLS.
///
/// # Errors
/// When the file is missing or not valid PEM.
pub fn server_certificate(config: &TlsConfig) -> Result<Option<CertificateDer<'static>>, TlsError> {
    let Some(path) = &config.certificate else { return Ok(None) };
    let first = CertificateDer::pem_reader_iter(open(path)?).next().transpose();
    first.map_err(|err| TlsError::unreadable(path, err))
}

fn open(path: &Path) -> Result<BufReader<File>, TlsError> {
    File::open(path).map(BufReader::new).map_err(|err| TlsError::unreadable(path, err))
}

/// Why `[server.tls]` is invalid.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Only one of the two files is set.
    #[error("server.tls.{missing} is missing: set both certificate and key, or neither")]
    Incomplete {
        /// The key that is not set.
        missing: &'static str,
    },
    /// A file cannot be read or parsed.
    #[error("server.tls: {path}: {reason}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
}

impl TlsError {
    fn unreadable(path: &Path, reason: impl ToString) -> Self {
        Self::Unreadable { path: path.display().to_string(), reason: reason.to_string() }
    }
}

/// Timeouts of accepted sockets.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    header: Duration,
    idle: Duration,
    /// `TCP_USER_TIMEOUT`: how long sent bytes may stay unacknowledged.
    tcp_user: Duration,
}

impl Timeouts {
    /// The timeouts of `[server]`; `stall_timeout` is `connection.stall_timeout`.
    pub fn new(config: &ServerConfig, stall_timeout: Duration) -> Self {
        Self {
            header: config.header_timeout,
            idle: config.idle_timeout,
            tcp_user: stall_timeout + STALL_MARGIN,
        }
    }
}

/// Request extension: the address at the other end of the socket, which may be a proxy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) IpAddr);

/// Accepts sockets until the stage stops. Requests in flight are still answered.
pub async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    admission: Arc<AdmissionControl>,
    timeouts: Timeouts,
    stage: Stage,
) {
    let server = Arc::new(SocketServer { tls, router, timeouts, stage: stage.clone() });
    let mut failures = AcceptFailures::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stage.stopping().cancelled() => return,
        };
        match accepted {
            Ok((stream, from)) => {
                // Beyond server.limits.sockets it is closed without a response, to free the descriptor.
                let Some(permit) = admission.admit_socket() else { continue };
                let server = Arc::clone(&server);
                let peer = Peer(from.ip());
                // Boxed, so that the task of a detached socket keeps little memory.
                stage.spawn_client(Box::pin(
                    async move { server.serve(stream, peer, permit).await },
                ));
            }
            Err(err) => {
                if let Some(failures) = failures.report(Instant::now()) {
                    warn!(
                        %err, failures,
                        "sockets cannot be accepted: raise the limit of open files (ulimit -n) or \
                         lower server.limits; logged every {} s while it lasts",
                        ACCEPT_REPORT_INTERVAL.as_secs()
                    );
                }
                let _ =
                    tokio::time::timeout(ACCEPT_RETRY_DELAY, stage.stopping().cancelled()).await;
            }
        }
    }
}

/// Interval of the log line about failures to accept.
const ACCEPT_REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// Rate limit of that log line: without file descriptors, accepting fails ten times per second.
#[derive(Debug, Default)]
struct AcceptFailures {
    reported: Option<Instant>,
    unreported: u64,
}

impl AcceptFailures {
    /// Counts a failure. Returns the number since the last log line when the next one is due.
    fn report(&mut self, now: Instant) -> Option<u64> {
        self.unreported += 1;
        let recently =
            self.reported.is_some_and(|reported| now - reported < ACCEPT_REPORT_INTERVAL);
        if recently {
            return None;
        }
        self.reported = Some(now);
        Some(std::mem::take(&mut self.unreported))
    }
}

/// Serves accepted sockets.
struct SocketServer {
    tls: Option<TlsAcceptor>,
    router: Router,
    timeouts: Timeouts,
    stage: Stage,
}

impl SocketServer {
    async fn serve(&self, stream: TcpStream, peer: Peer, permit: SocketPermit) {
        if let Err(err) = set_socket_options(&stream, self.timeouts) {
            debug!(%err, "socket closed before it was served");
            return;
        }
        // server.header_timeout covers the TLS handshake and the first request head together.
        let activity = Arc::new(ActivityClock::new(self.timeouts.header, self.timeouts.idle));
        let stream = match &self.tls {
            None => ServerStream::Plain(stream),
            Some(tls) => {
                let handshake = tokio::select! {
                    handshake = tls.accept(stream) => handshake,
                    () = activity.timed_out() => {
                        return debug!("TLS handshake exceeded server.header_timeout");
                    }
                };
                match handshake {
                    Ok(stream) => ServerStream::Tls(Box::new(stream)),
                    Err(err) => return debug!(%err, "TLS handshake failed"),
                }
            }
        };
        let socket = DetachableSocket::new(stream, permit, Arc::clone(&activity));
        self.serve_http(socket, peer, &activity).await;
    }

    async fn serve_http(
        &self,
        socket: DetachableSocket,
        peer: Peer,
        activity: &Arc<ActivityClock>,
    ) {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        // ActivityClock replaces hyper's timeout, which starts only once the protocol is known.
        builder.http1().timer(TokioTimer::new()).header_read_timeout(None);
        builder.http2().timer(TokioTimer::new()).keep_alive_interval(HTTP2_PING);
        let io = TokioIo::new(socket.clone());
        let requests = Arc::clone(activity);
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            let in_flight = requests.begin_request(request.version());
            request.extensions_mut().insert(socket.clone());
            request.extensions_mut().insert(peer);
            let responding = self.router.clone().oneshot(request.map(Body::new));
            async move { responding.await.map(|response| in_flight.attach_to(response)) }
        });
        let mut serving = std::pin::pin!(builder.serve_connection_with_upgrades(io, service));
        let ended = tokio::select! {
            ended = serving.as_mut() => Some(ended),
            () = self.stage.stopping().cancelled() => None,
            () = activity.timed_out() => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                serving.as_mut().graceful_shutdown();
                tokio::select! {
                    biased;
                    ended = serving => ended,
                    () = activity.timed_out() => return debug!("socket closed: it timed out"),
                }
            }
        };
        if let Err(err) = ended {
            debug!(%err, "HTTP connection failed");
        }
    }
}

fn set_socket_options(stream: &TcpStream, timeouts: Timeouts) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(timeouts.tcp_user))?;
    socket.set_tcp_notsent_lowat(NOT_SENT_LOWAT)?;
    socket.set_keepalive(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_to_accept_are_logged_once_a_minute_with_their_number() {
        let (mut failures, start) = (AcceptFailures::default(), Instant::now());
        assert_eq!(failures.report(start), Some(1));
        for tenth in 1..600 {
            assert_eq!(failures.report(start + ACCEPT_RETRY_DELAY * tenth), None);
        }
        assert_eq!(failures.report(start + ACCEPT_RETRY_DELAY * 600), Some(600));
    }

    #[tokio::test]
    async fn tcp_user_timeout_is_longer_than_stall_timeout() {
        let stall_timeout = Duration::from_secs(60);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        set_socket_options(&stream, Timeouts::new(&ServerConfig::default(), stall_timeout))
            .unwrap();
        let kernel = SockRef::from(&stream).tcp_user_timeout().unwrap();
        assert!(kernel.is_some_and(|kernel| stall_timeout < kernel), "{kernel:?}");
    }
}
