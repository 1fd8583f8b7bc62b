//! Migration from an existing (legacy) real-time system: reverse proxy, route mapping, Redis
//! ingest and shadow comparison.
//!
//! [`upstream`] proxies requests to the legacy server, [`route`] maps its stream addresses to
//! channels, [`redis`] ingests what publishers PUBLISH, [`shadow`] compares the upstream's streams
//! with the logs. [`Routing`] decides which [`Backend`] serves a user. Authentication and
//! permissions are not known here; the HTTP layer resolves both.

pub mod compare;
pub mod pattern;
mod payload;
pub mod proxied_streams;
pub mod redis;
pub mod rollout_routing;
pub mod route;
pub mod shadow;
pub mod sse;
pub mod upstream;

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

pub use self::{
    payload::JsonPath,
    proxied_streams::{ProxiedStreamGuard, ProxiedStreams},
    redis::{Ingest, IngestConfig},
    route::{MatchedRoute, Route, RouteConfig},
    shadow::{Shadow, ShadowConfig},
    upstream::{Upstream, UpstreamError, UpstreamUrl},
};
use crate::{lifecycle::Stage, node::Node};

/// Section `[legacy]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LegacyConfig {
    /// URL of the legacy server. It receives every request that the gateway does not serve itself.
    pub upstream: Option<UpstreamUrl>,
    /// `Host` header of requests to the upstream; unset, the host that the client asked for.
    pub host: Option<String>,
    /// Backend for the addresses in `route` while no rollout decides.
    pub side: Backend,
    /// Timeout for connecting to the upstream, TLS handshake included.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Timeout for the upstream's response head, from the last byte of the request.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Limit of concurrent upstream requests, open streams included; at least 1.
    pub requests: usize,
    /// Addresses of the upstream's streams and the channels they stand for.
    pub route: Vec<RouteConfig>,
    /// Ingest from Redis Pub/Sub; unset, nothing is ingested.
    pub redis: Option<IngestConfig>,
    /// Comparison of the upstream's streams with the logs.
    pub shadow: ShadowConfig,
}

impl Default for LegacyConfig {
    fn default() -> Self {
        Self {
            upstream: None,
            host: None,
            side: Backend::Upstream,
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(60),
            requests: 10_000,
            route: Vec::new(),
            redis: None,
            shadow: ShadowConfig::default(),
        }
    }
}

/// A setting that was rejected: its key, the reason and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidSetting {
    /// Full key, for example `legacy.redis.lease`.
    pub key: String,
    /// Why the value is invalid.
    pub reason: String,
    /// What to write instead.
    pub remedy: String,
}

impl InvalidSetting {
    fn new(key: impl Into<String>, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { key: key.into(), reason: reason.into(), remedy: remedy.into() }
    }
}

impl LegacyConfig {
    /// Validates the section. `dedup` is `dedup.window`.
    ///
    /// # Errors
    /// Returns the first invalid setting.
    pub fn check(&self, dedup: Duration) -> Result<(), InvalidSetting> {
        let invalid = |key: &str, reason: &str, remedy: &str| {
            Err(InvalidSetting::new(format!("legacy.{key}"), reason, remedy))
        };
        if self.requests == 0 {
            return invalid("requests", "0 refuses every request", "set at least 1");
        }
        for (key, time) in [("connect_timeout", self.connect_timeout), ("timeout", self.timeout)] {
            if time.is_zero() {
                return invalid(key, "0 times out every request", "set at least 1s");
            }
        }
        if self.side != Backend::Upstream && self.route.is_empty() {
            return invalid(
                "side",
                "it needs at least one [[legacy.route]]",
                "add a route, or leave side out",
            );
        }
        if self.side == Backend::Shadow && self.upstream.is_none() {
            return invalid("side", "\"shadow\" needs legacy.upstream", "set legacy.upstream");
        }
        if let Some(host) = &self.host
            && axum::http::uri::Authority::try_from(host.as_str()).is_err()
        {
            let remedy = "write \"old.example.com\", with a port if it needs one";
            return invalid("host", "it is not a valid host", remedy);
        }
        self.route.iter().try_for_each(RouteConfig::check)?;
        self.shadow.check()?;
        self.redis.as_ref().map_or(Ok(()), |redis| redis.check(dedup))
    }
}

/// Which backend serves a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The legacy server.
    #[default]
    Upstream,
    /// The legacy server, with its stream compared with the logs.
    Shadow,
    /// The gateway.
    Gateway,
}

impl Backend {
    /// The value in `legacy.side` and in the metric label `side`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Upstream => "upstream",
            Self::Shadow => "shadow",
            Self::Gateway => "gateway",
        }
    }
}

/// Decides which backend serves a user. Called once per request to a [`Route`], so it must not
/// block.
pub trait Routing: fmt::Debug + Send + Sync {
    /// The backend of a rollout unit: a user id, or a browser's durable id where no user is known.
    fn backend(&self, unit: &str, groups: &[String]) -> Backend;
}

/// The same backend for every user: `legacy.side` without rollouts.
impl Routing for Backend {
    fn backend(&self, _: &str, _: &[String]) -> Backend {
        *self
    }
}

/// This node's connections to the legacy system.
#[derive(Debug)]
pub struct Legacy {
    upstream: Option<Upstream>,
    routes: Vec<Route>,
    routing: Arc<dyn Routing>,
    ingest: Option<Arc<Ingest>>,
    shadow: Arc<Shadow>,
    proxied_streams: Arc<ProxiedStreams>,
}

impl Legacy {
    /// Starts ingest and shadow comparison as configured.
    ///
    /// # Errors
    /// When the system's trusted certificates cannot be read, or `legacy.redis.url` is invalid.
    pub fn start(
        config: &LegacyConfig,
        routing: Arc<dyn Routing>,
        (node, settings): (&Arc<Node>, GatewaySettings),
        stage: &Stage,
    ) -> Result<Self, LegacyError> {
        let upstream = config.upstream.as_ref().map(|url| Upstream::new(url, config, node));
        let id = config.redis.as_ref().and_then(|redis| redis.id.clone());
        let redis = config.redis.as_ref();
        let ingest = redis.map(|redis| Ingest::start(redis, node, &settings, stage)).transpose()?;
        let shadow = Shadow::new(&config.shadow, id, node, &settings, stage);
        let routes = config.route.iter().cloned().map(Route::new).collect();
        Ok(Self {
            upstream: upstream.transpose()?,
            routes,
            routing,
            ingest,
            shadow: Arc::new(shadow),
            proxied_streams: Arc::default(),
        })
    }

    /// The legacy server, if `legacy.upstream` is set.
    pub fn upstream(&self) -> Option<&Upstream> {
        self.upstream.as_ref()
    }

    /// The first configured route that matches a path.
    pub fn match_route(&self, path: &str) -> Option<MatchedRoute<'_>> {
        self.routes.iter().find_map(|route| route.match_path(path))
    }

    /// The backend that serves a unit; always the gateway where no upstream is configured.
    pub fn backend(&self, unit: &str, groups: &[String]) -> Backend {
        if self.upstream.is_none() { Backend::Gateway } else { self.routing.backend(unit, groups) }
    }

    /// Whether ingest on this node can take over from another node: readiness in `/health/ready`.
    /// True where `[legacy.redis]` is not configured.
    pub fn ingest_ready(&self) -> bool {
        self.ingest.as_ref().is_none_or(|ingest| ingest.is_ready())
    }

    /// The open streams that this node proxies to the upstream.
    pub fn proxied_streams(&self) -> &Arc<ProxiedStreams> {
        &self.proxied_streams
    }

    /// Ends up to `limit` proxied streams whose users now belong to the gateway, and returns how many
    /// it ended. Their browsers reconnect and are served by the gateway.
    pub fn end_migrated_streams(&self, limit: usize) -> usize {
        self.proxied_streams
            .end_where(limit, |unit, groups| self.backend(unit, groups) == Backend::Gateway)
    }

    /// The shadow comparison.
    pub fn shadow(&self) -> &Arc<Shadow> {
        &self.shadow
    }
}

/// Settings of other sections that ingest and shadow comparison depend on.
#[derive(Clone, Debug)]
pub struct GatewaySettings {
    /// `limits.event_bytes`: maximum size of an event's data in bytes.
    pub event_bytes: usize,
    /// `broker.redis.prefix` where the broker is Redis: Redis channels under it are not ingested.
    pub broker_prefix: Option<String>,
}

/// Why the legacy system cannot be connected.
#[derive(Debug, thiserror::Error)]
pub enum LegacyError {
    /// The system has no trusted root certificate to verify an `https` upstream with.
    #[error(
        "legacy.upstream: the system has no usable root certificates ({reason}): install \
             ca-certificates"
    )]
    NoRootCertificates {
        /// Why none could be loaded.
        reason: String,
    },
    /// `legacy.redis.url` is not a Redis URL.
    #[error(
        "legacy.redis.url: {url} is not a Redis URL: write redis://host:port, rediss://host:port \
             or redis+unix:///path"
    )]
    RedisUrl {
        /// The URL, without its password.
        url: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected_key(change: impl FnOnce(&mut LegacyConfig)) -> String {
        let mut config = LegacyConfig::default();
        change(&mut config);
        config.check(Duration::from_secs(120)).unwrap_err().key
    }

    #[test]
    fn invalid_settings_are_rejected() {
        assert_eq!(LegacyConfig::default().check(Duration::from_secs(120)), Ok(()));
        assert_eq!(rejected_key(|config| config.requests = 0), "legacy.requests");
        assert_eq!(rejected_key(|config| config.timeout = Duration::ZERO), "legacy.timeout");
        assert_eq!(rejected_key(|config| config.side = Backend::Gateway), "legacy.side");
        assert_eq!(rejected_key(|config| config.host = Some("a b".to_owned())), "legacy.host");
    }

    #[test]
    fn a_fixed_backend_serves_every_user() {
        let routing: Arc<dyn Routing> = Arc::new(Backend::Shadow);
        assert_eq!(routing.backend("anna", &[]), Backend::Shadow);
    }
}
