//! From a listening address to requests: sockets, TLS, HTTP/1.1 and HTTP/2.
//!
//! Knows nothing of what the requests are for.

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
    admission::SocketPlace,
    detach::{DetachableSocket, Wire},
    idle_timeout::ActivityClock,
};
use crate::lifecycle::Stage;

/// Sockets that wait to be accepted when everybody comes back at once.
const BACKLOG: u32 = 4096;

/// By how much the kernel waits longer for an acknowledgement than we do: whoever stalls is to be
/// told so by us, not reset.
const STALL_MARGIN: Duration = Duration::from_secs(15);

/// An HTTP/2 connection is asked this often whether it is still there.
const HTTP2_PING: Duration = Duration::from_secs(30);

/// Bytes of a client's that the kernel takes before the rest stays with us, where it costs nothing.
const NOT_SENT_LOWAT: u32 = 128 << 10;

/// How long accepting rests when the machine has no more sockets to give.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// Takes an address.
///
/// # Errors
/// When it cannot be had.
pub fn listen(config: &ServerConfig) -> io::Result<TcpListener> {
    let socket = if config.listen.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(config.listen)?;
    socket.listen(BACKLOG)
}

/// What speaks TLS, if it is configured.
///
/// # Errors
/// Says which file is missing or not what it should be.
pub fn tls(config: &TlsConfig) -> Result<Option<TlsAcceptor>, TlsError> {
    let (certificate, key) = match (&config.certificate, &config.key) {
        (None, None) => return Ok(None),
        (Some(certificate), Some(key)) => (certificate, key),
        (Some(_), None) => return Err(TlsError::Half { missing: "key" }),
        (None, Some(_)) => return Err(TlsError::Half { missing: "certificate" }),
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

/// The certificate that is shown, if TLS is spoken.
///
/// # Errors
/// Says which file is missing or not what it should be.
pub fn certificate(config: &TlsConfig) -> Result<Option<CertificateDer<'static>>, TlsError> {
    let Some(path) = &config.certificate else { return Ok(None) };
    let first = CertificateDer::pem_reader_iter(open(path)?).next().transpose();
    first.map_err(|err| TlsError::unreadable(path, err))
}

fn open(path: &Path) -> Result<BufReader<File>, TlsError> {
    File::open(path).map(BufReader::new).map_err(|err| TlsError::unreadable(path, err))
}

/// Why TLS cannot be spoken.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Only one of the two files is named.
    #[error("server.tls needs both certificate and key: {missing} is missing")]
    Half {
        /// The other one.
        missing: &'static str,
    },
    /// A file is not there or not what it should be.
    #[error("server.tls: {path}: {reason}")]
    Unreadable {
        /// Which.
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

/// How long a socket may do nothing.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    header: Duration,
    idle: Duration,
    user: Duration,
}

impl Timeouts {
    /// As configured; `stall_timeout` is after how long a client that takes nothing is given up.
    pub fn new(config: &ServerConfig, stall_timeout: Duration) -> Self {
        Self {
            header: config.header_timeout,
            idle: config.idle_timeout,
            user: stall_timeout + STALL_MARGIN,
        }
    }
}

/// Whose socket a request came by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) IpAddr);

/// Accepts sockets until the stage stops; the requests under way are answered.
pub async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    admission: Arc<AdmissionControl>,
    patience: Timeouts,
    stage: Stage,
) {
    let front = Arc::new(Listener { tls, router, patience, stage: stage.clone() });
    let mut failures = AcceptFailures::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stage.stopping().cancelled() => return,
        };
        match accepted {
            Ok((stream, from)) => {
                // Without a place it is closed at once: a descriptor is worth more than an answer.
                let Some(place) = admission.socket() else { continue };
                let front = Arc::clone(&front);
                let peer = Peer(from.ip());
                // Boxed, so that what stays behind of a socket that was taken is small.
                stage.spawn_client(Box::pin(async move { front.serve(stream, peer, place).await }));
            }
            Err(err) => {
                if let Some(failures) = failures.report(Instant::now()) {
                    warn!(
                        %err, failures,
                        "sockets cannot be accepted: raise the limit of open files (ulimit -n) or \
                         lower server.limits; this is logged every {} s while it lasts",
                        ACCEPT_REPORT_INTERVAL.as_secs()
                    );
                }
                let _ = tokio::time::timeout(EXHAUSTED, stage.stopping().cancelled()).await;
            }
        }
    }
}

/// How often failures to accept are logged while they last.
const ACCEPT_REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// Counts failures to accept sockets: they come ten times a second when files run out.
#[derive(Debug, Default)]
struct AcceptFailures {
    reported: Option<Instant>,
    unreported: u64,
}

impl AcceptFailures {
    /// Counts a failure. Returns how many there were since the last report, when one is due.
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

struct Listener {
    tls: Option<TlsAcceptor>,
    router: Router,
    patience: Timeouts,
    stage: Stage,
}

impl Listener {
    async fn serve(&self, stream: TcpStream, peer: Peer, place: SocketPlace) {
        if let Err(err) = prepare(&stream, self.patience) {
            debug!(%err, "a socket was gone before it was served");
            return;
        }
        // One time for the handshake and the first head together.
        let pulse = Arc::new(ActivityClock::new(self.patience.header, self.patience.idle));
        let wire = match &self.tls {
            None => Wire::Plain(stream),
            Some(tls) => {
                let shaken = tokio::select! {
                    shaken = tls.accept(stream) => shaken,
                    () = pulse.overdue() => return debug!("the TLS handshake took too long"),
                };
                match shaken {
                    Ok(stream) => Wire::Tls(Box::new(stream)),
                    Err(err) => return debug!(%err, "the TLS handshake failed"),
                }
            }
        };
        self.serve_http(DetachableSocket::new(wire, place, Arc::clone(&pulse)), peer, &pulse).await;
    }

    async fn serve_http(&self, lend: DetachableSocket, peer: Peer, pulse: &Arc<ActivityClock>) {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        // The pulse does what its timer would, and from the first byte on.
        builder.http1().timer(TokioTimer::new()).header_read_timeout(None);
        builder.http2().timer(TokioTimer::new()).keep_alive_interval(HTTP2_PING);
        let io = TokioIo::new(lend.clone());
        let requests = Arc::clone(pulse);
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            let under_way = requests.begin(request.version());
            request.extensions_mut().insert(lend.clone());
            request.extensions_mut().insert(peer);
            let answer = self.router.clone().oneshot(request.map(Body::new));
            async move { answer.await.map(|response| under_way.until_answered(response)) }
        });
        let mut serving = std::pin::pin!(builder.serve_connection_with_upgrades(io, service));
        let ended = tokio::select! {
            ended = serving.as_mut() => Some(ended),
            () = self.stage.stopping().cancelled() => None,
            () = pulse.overdue() => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                serving.as_mut().graceful_shutdown();
                tokio::select! {
                    biased;
                    ended = serving => ended,
                    () = pulse.overdue() => return debug!("a socket kept us waiting for too long"),
                }
            }
        };
        if let Err(err) = ended {
            debug!(%err, "an HTTP connection broke");
        }
    }
}

fn prepare(stream: &TcpStream, patience: Timeouts) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(patience.user))?;
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
            assert_eq!(failures.report(start + EXHAUSTED * tenth), None);
        }
        assert_eq!(failures.report(start + EXHAUSTED * 600), Some(600));
    }

    #[tokio::test]
    async fn the_kernel_gives_a_stalled_client_up_later_than_we_do() {
        let stall_timeout = Duration::from_secs(60);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        prepare(&stream, Timeouts::new(&ServerConfig::default(), stall_timeout)).unwrap();
        let kernel = SockRef::from(&stream).tcp_user_timeout().unwrap();
        assert!(kernel.is_some_and(|kernel| stall_timeout < kernel), "{kernel:?}");
    }
}
