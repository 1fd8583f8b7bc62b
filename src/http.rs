//! HTTP server: sockets and TLS, admission limits, authentication, routes and status codes.
//!
//! A handler parses a request, checks permissions, calls the module that does the work, and turns the
//! result into a response; it keeps no state of its own. [`accept`] owns sockets until a client is
//! connected; then the socket is detached from the HTTP stack and belongs to `connection`.

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
    admission::{ClientPermit, Refusal},
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
    /// Listen address and port; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Timeout for a TLS handshake and for the head of a request, at least 1s.
    #[serde(with = "humantime_serde")]
    pub header_timeout: Duration,
    /// A keep-alive connection is closed after this long without a request, at least 1s.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// Timeout for a request's body, at least 1s.
    #[serde(with = "humantime_serde")]
    pub body_timeout: Duration,
    /// Origins of web pages that may use the gateway, besides the gateway's own address.
    pub allowed_origins: Vec<OriginRule>,
    /// Reverse proxies whose `X-Forwarded-For` or `Forwarded` header is trusted.
    pub trusted_proxies: Vec<TrustedProxy>,
    /// On SIGTERM, the node reports not ready for this long before it stops accepting clients.
    #[serde(with = "humantime_serde")]
    pub drain_delay: Duration,
    /// Time to close connections and finish work after `drain_delay`.
    #[serde(with = "humantime_serde")]
    pub shutdown_timeout: Duration,
    /// TLS; HTTP/2 is negotiated by ALPN.
    pub tls: TlsConfig,
    /// Admission limits.
    pub limits: AdmissionConfig,
}

/// Section `[server.tls]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// File with the certificate chain, PEM. Unset, the gateway serves plain HTTP.
    pub certificate: Option<PathBuf>,
    /// File with the certificate's private key, PEM.
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

/// State shared by all handlers. Cloned per request, so all parts are behind one `Arc`.
#[derive(Clone, Debug)]
pub struct AppState(Arc<AppParts>);

impl Deref for AppState {
    type Target = AppParts;

    fn deref(&self) -> &AppParts {
        &self.0
    }
}

/// The parts of an [`AppState`].
#[derive(Debug)]
pub struct AppParts {
    /// The connected clients; gives access to node, cluster, rollouts and authentication.
    pub connections: Arc<Connections>,
    /// Section `[server]`.
    pub server: Arc<ServerConfig>,
    /// Admission limits and their counters.
    pub admission: Arc<AdmissionControl>,
    /// The shutdown stage of client tasks.
    pub client_tasks: Stage,
    /// Alerts about rollouts.
    pub alerts: Arc<Alerts>,
    /// Validation runs of rollouts.
    pub validation: Arc<Validator>,
    /// Cancelled when the node begins to shut down; it then reports not ready.
    pub draining: CancellationToken,
    /// Migration from an existing system.
    pub legacy: Arc<Legacy>,
}

impl From<AppParts> for AppState {
    fn from(parts: AppParts) -> Self {
        Self(Arc::new(parts))
    }
}

impl AppState {
    /// Admits the client that sent `request`. Validation sessions of the gateway itself (`internal`)
    /// are exempt from limits per address, as they all come from one at the same time.
    fn admit(&self, request: &Request, internal: bool) -> Result<ClientPermit, Refusal> {
        if internal {
            return self.admission.admit_internal();
        }
        let peer = request.extensions().get::<Peer>();
        let peer = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0);
        let ip = proxy::client_ip(peer, request.headers(), &self.server.trusted_proxies);
        self.admission.admit(ip, None)
    }
}

/// The routes at which clients of each wire connect.
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

/// All routes of the gateway. Paths without a route go to the legacy upstream, if there is one.
pub fn router(app: AppState) -> Router {
    // Web pages get CORS headers for these routes, but not for health checks and metrics.
    let api_routes = Router::new()
        .route("/", any(page::demo))
        .route("/dashboard", get(page::dashboard))
        .merge(wires())
        .route("/events/{session}", post(posted_requests::perform))
        .route("/api/publish", post(publish::publish_one))
        .route("/api/publish/batch", post(publish::publish_batch))
        .route("/api/channels", get(channels::list))
        .route("/api/channels/{channel}/history", get(channels::history))
        .route("/api/channels/{channel}/presence", get(presence::list))
        .route("/api/sessions/disconnect", post(presence::disconnect))
        .route("/api/route", get(route::assign))
        .route("/api/migration/feature-flags", get(migration::list))
        .route("/api/migration/feature-flags/{component}", get(migration::get).put(migration::put))
        .route("/api/migration/emergency-stop", post(migration::emergency_stop))
        .route("/api/migration/dashboard", get(dashboard::snapshot))
        .route("/api/migration/dashboard/stream", get(dashboard::stream))
        .route("/api/migration/history", get(migration::history))
        .route(
            "/api/migration/validation/{component}",
            get(validation::latest).post(validation::run),
        )
        .route("/api/migration/alerts", get(alerts::list))
        .route("/api/migration/alerts/{id}/acknowledge", post(alerts::acknowledge))
        .route("/api/migration/{action}/{component}", post(migration::perform_action))
        .route("/ofrep/v1/evaluate/flags", post(ofrep::evaluate_all))
        .route("/ofrep/v1/evaluate/flags/{key}", post(ofrep::evaluate_one))
        .route("/api/migration/shadow", get(legacy::shadow_report))
        .method_not_allowed_fallback(error::method_not_allowed)
        // read_body applies limits.body_bytes instead.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(app.clone(), origin::check_origin));
    let ops_routes = Router::new()
        .route("/health/live", get(ops::live))
        .route("/health/ready", get(ops::ready))
        .route("/metrics", get(ops::metrics))
        .method_not_allowed_fallback(error::method_not_allowed);
    let routes = api_routes.clone().with_state(app.clone());
    let fallback = move |State(app): State<AppState>, request: Request| {
        legacy::fallback(app, routes.clone(), request)
    };
    api_routes.merge(ops_routes).fallback(fallback).with_state(app)
}
