//! The edge: addresses, methods and status codes.
//!
//! Each handler turns a request into a call of the node or a connection, and the answer into JSON.
//! The state they share is handles only. How sockets are accepted is [`accept`]'s business.

pub mod accept;
mod channels;
mod error;
mod events;
mod lend;
mod ops;
mod publish;
mod pulse;
mod websocket;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use axum::{
    Router,
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{connection::Floor, lifecycle::Stage};

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
    /// After SIGTERM: until then whatever is under way may end, then it is cut off.
    #[serde(with = "humantime_serde")]
    pub shutdown_timeout: Duration,
    /// HTTPS, with HTTP/2 where the client can.
    pub tls: TlsConfig,
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
            shutdown_timeout: Duration::from_secs(15),
            tls: TlsConfig::default(),
        }
    }
}

/// What the handlers share.
#[derive(Clone, Debug)]
pub struct Edge {
    /// What connections lean on; the node is reached through it.
    pub floor: Arc<Floor>,
    /// Where clients' tasks belong.
    pub connections: Stage,
    /// The node takes no new clients any more.
    pub draining: CancellationToken,
}

/// Every address of the gateway.
pub fn router(edge: Edge) -> Router {
    Router::new()
        .route("/ws", get(websocket::open))
        .route("/events", get(events::open))
        .route("/events/{session}", post(events::ask))
        .route("/api/publish", post(publish::one))
        .route("/api/publish/batch", post(publish::batch))
        .route("/api/channels", get(channels::list))
        .route("/api/channels/{channel}/history", get(channels::history))
        .route("/health/live", get(ops::live))
        .route("/health/ready", get(ops::ready))
        .route("/metrics", get(ops::metrics))
        .method_not_allowed_fallback(error::method_not_allowed)
        .fallback(error::not_found)
        .with_state(edge)
}
