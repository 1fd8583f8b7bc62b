//! The edge: addresses, methods and status codes.
//!
//! Each handler turns a request into a call of the node or a connection, and the answer into JSON.
//! The state they share is handles only. How sockets are accepted is [`accept`]'s business.

pub mod accept;
mod admission;
mod alerts;
mod bearer;
mod channels;
mod dashboard;
mod detach;
mod error;
mod event_stream;
mod idle_timeout;
mod legacy;
mod migration;
mod ofrep;
mod ops;
mod origin;
mod page;
mod posted_requests;
mod presence;
mod proxy;
mod publish;
mod route;
mod validation;
mod websocket;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Deref,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    extract::{Request, State},
    middleware,
    routing::{any, get, post},
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use self::{
    accept::Peer,
    admission::{Admission, Refusal},
};
pub use self::{
    admission::{AdmissionConfig, AdmissionControl},
    origin::OriginRule,
    proxy::TrustedProxy,
};
use crate::{
    alert::Alerts, connection::Connections, legacy::Legacy, lifecycle::Stage,
    validation::Validator, wire::STREAMS,
};

/// Section `[server]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// A TLS handshake, and a request's head, are there within this time.
    #[serde(with = "humantime_serde")]
    pub header_timeout: Duration,
    /// A connection that idles between two requests for longer is closed.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// A request's body is there within this time.
    #[serde(with = "humantime_serde")]
    pub body_timeout: Duration,
    /// Pages of these origins may speak to the gateway, besides those of its own address.
    pub allowed_origins: Vec<OriginRule>,
    /// Proxies that are believed when they say for whom they ask.
    pub trusted_proxies: Vec<TrustedProxy>,
    /// After SIGTERM: for this long the node says that it is not ready, and still serves everybody.
    #[serde(with = "humantime_serde")]
    pub drain_delay: Duration,
    /// After that: until then whatever is under way may end, then it is cut off.
    #[serde(with = "humantime_serde")]
    pub shutdown_timeout: Duration,
    /// HTTPS, with HTTP/2 where the client can.
    pub tls: TlsConfig,
    /// How many may come in.
    pub limits: AdmissionConfig,
}

/// Section `[server.tls]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// The certificate chain, PEM. Without it the gateway speaks plain HTTP.
    pub certificate: Option<PathBuf>,
    /// The certificate's key, PEM.
    pub key: Option<PathBuf>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            header_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(30),
            allowed_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            drain_delay: Duration::ZERO,
            shutdown_timeout: Duration::from_secs(15),
            tls: TlsConfig::default(),
            limits: AdmissionConfig::default(),
        }
    }
}

/// What the handlers share. Each call takes a copy, so it is one count and not eight.
#[derive(Clone, Debug)]
pub struct AppState(Arc<Shared>);

impl Deref for AppState {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// The parts of an [`AppState`].
#[derive(Debug)]
pub struct Shared {
    /// What connections lean on; the node is reached through it.
    pub connections: Arc<Connections>,
    /// Section `[server]`.
    pub server: Arc<ServerConfig>,
    /// Who may come in.
    pub admission: Arc<AdmissionControl>,
    /// Where clients' tasks belong.
    pub client_tasks: Stage,
    /// What people are told.
    pub alerts: Arc<Alerts>,
    /// What compares both sides of a rollout.
    pub validation: Arc<Validator>,
    /// The node takes no new clients any more.
    pub draining: CancellationToken,
    /// The system that the gateway takes over from.
    pub legacy: Arc<Legacy>,
}

impl From<Shared> for AppState {
    fn from(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }
}

impl AppState {
    /// Lets the client in that a request comes from. The gateway's own sessions all have one address
    /// and come at once.
    fn admit(&self, request: &Request, own: bool) -> Result<Admission, Refusal> {
        if own {
            return self.admission.admit_own();
        }
        let peer = request.extensions().get::<Peer>();
        let peer = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0);
        let ip = proxy::client_ip(peer, request.headers(), &self.server.trusted_proxies);
        self.admission.admit(ip, None)
    }
}

/// The addresses at which clients of each wire connect.
fn wires() -> Router<AppState> {
    let mut router = Router::new();
    for path in websocket::paths() {
        let open =
            move |state, detachable, request| websocket::open(state, detachable, path, request);
        router = router.route(path, get(open));
    }
    for wire in STREAMS {
        let open =
            move |state, detachable, request| event_stream::open(state, detachable, wire, request);
        router = router.route(wire.path(), get(open));
    }
    router
}

/// Every address of the gateway.
pub fn router(app: AppState) -> Router {
    // Pages have no business with what orchestrators and Prometheus ask.
    let for_pages = Router::new()
        .route("/", any(page::demo))
        .route("/dashboard", get(page::dashboard))
        .merge(wires())
        .route("/events/{session}", post(posted_requests::ask))
        .route("/api/publish", post(publish::one))
        .route("/api/publish/batch", post(publish::batch))
        .route("/api/channels", get(channels::list))
        .route("/api/channels/{channel}/history", get(channels::history))
        .route("/api/channels/{channel}/presence", get(presence::list))
        .route("/api/sessions/disconnect", post(presence::disconnect))
        .route("/api/route", get(route::route))
        .route("/api/migration/feature-flags", get(migration::flags))
        .route("/api/migration/feature-flags/{component}", get(migration::flag).put(migration::put))
        .route("/api/migration/emergency-stop", post(migration::emergency_stop))
        .route("/api/migration/dashboard", get(dashboard::now))
        .route("/api/migration/dashboard/stream", get(dashboard::live))
        .route("/api/migration/history", get(migration::history))
        .route(
            "/api/migration/validation/{component}",
            get(validation::newest).post(validation::start),
        )
        .route("/api/migration/alerts", get(alerts::list))
        .route("/api/migration/alerts/{id}/acknowledge", post(alerts::acknowledge))
        .route("/api/migration/{verb}/{component}", post(migration::order))
        .route("/ofrep/v1/evaluate/flags", post(ofrep::all))
        .route("/ofrep/v1/evaluate/flags/{key}", post(ofrep::one))
        .route("/api/migration/shadow", get(legacy::shadow_report))
        .method_not_allowed_fallback(error::method_not_allowed)
        // limits.body_bytes is the limit.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(app.clone(), origin::guard));
    let for_operators = Router::new()
        .route("/health/live", get(ops::live))
        .route("/health/ready", get(ops::ready))
        .route("/metrics", get(ops::metrics))
        .method_not_allowed_fallback(error::method_not_allowed);
    let pages = for_pages.clone().with_state(app.clone());
    let unknown = move |State(app): State<AppState>, request: Request| {
        legacy::fallback(app, pages.clone(), request)
    };
    for_pages.merge(for_operators).fallback(unknown).with_state(app)
}
