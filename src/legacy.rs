//! Taking over from the system that is there: what still goes to it, what is taken from it, and how
//! the two compare.
//!
//! [`upstream`] passes requests on, [`route`] says which old addresses the gateway can serve itself,
//! [`redis`] takes in what publishers PUBLISH, [`shadow`] compares both sides. Who is on which side
//! is asked of [`Routing`]; who somebody is, and what they may do, is not known here.

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
    proxied_streams::{ProxiedStreams, Seat},
    redis::{TakeIn, TakeInConfig},
    route::{Place, Route, RouteConfig},
    shadow::{Shadow, ShadowConfig},
    upstream::{Upstream, UpstreamError, UpstreamUrl},
};
use crate::{lifecycle::Stage, node::Node};

/// Section `[legacy]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LegacyConfig {
    /// The server that the pages' streams come from so far. It gets what the gateway does not know.
    pub upstream: Option<UpstreamUrl>,
    /// What it is called when it is asked; unset, whatever the client asked for.
    pub host: Option<String>,
    /// Which side serves the addresses of `route`, where no rollout says.
    pub side: Backend,
    /// A connection to it is there within this time.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// The head of its answer is there within this time, once it has the request.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Requests that may be with it at once, streams among them.
    pub requests: usize,
    /// Addresses of its streams.
    pub route: Vec<RouteConfig>,
    /// What publishers PUBLISH goes into the logs.
    pub redis: Option<TakeInConfig>,
    /// Comparing both sides.
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

/// A setting that cannot work: its key, what is wrong, what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Impossible {
    /// Which.
    pub key: String,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub remedy: String,
}

impl Impossible {
    fn new(key: impl Into<String>, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { key: key.into(), reason: reason.into(), remedy: remedy.into() }
    }
}

impl LegacyConfig {
    /// Whether it can work. `dedup` is for how long an id is recognised.
    ///
    /// # Errors
    /// Names the first setting that cannot be.
    pub fn check(&self, dedup: Duration) -> Result<(), Impossible> {
        let wrong = |key: &str, reason: &str, remedy: &str| {
            Err(Impossible::new(format!("legacy.{key}"), reason, remedy))
        };
        if self.requests == 0 {
            return wrong("requests", "0 lets nobody through", "set at least 1");
        }
        for (key, time) in [("connect_timeout", self.connect_timeout), ("timeout", self.timeout)] {
            if time.is_zero() {
                return wrong(key, "nothing happens in no time", "set at least 1s");
            }
        }
        if self.side != Backend::Upstream && self.route.is_empty() {
            return wrong(
                "side",
                "there is no [[legacy.route]] for it",
                "add one, or leave it out",
            );
        }
        if self.side == Backend::Shadow && self.upstream.is_none() {
            return wrong("side", "there is no legacy.upstream to compare with", "name it");
        }
        if let Some(host) = &self.host
            && axum::http::uri::Authority::try_from(host.as_str()).is_err()
        {
            return wrong("host", "it is no host", "write \"old.example.com\" or with a port");
        }
        self.route.iter().try_for_each(RouteConfig::check)?;
        self.shadow.check()?;
        self.redis.as_ref().map_or(Ok(()), |redis| redis.check(dedup))
    }
}

/// Who serves somebody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The old server.
    #[default]
    Upstream,
    /// The old server; what it says is compared with what the gateway would.
    Shadow,
    /// The gateway.
    Gateway,
}

impl Backend {
    /// As it stands in settings and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Upstream => "upstream",
            Self::Shadow => "shadow",
            Self::Gateway => "gateway",
        }
    }
}

/// Decides who is on which side. Asked once per request to a [`Route`], so it must not wait.
pub trait Routing: fmt::Debug + Send + Sync {
    /// The side of a user, or of a client that is known by nothing but its durable id.
    fn side(&self, unit: &str, groups: &[String]) -> Backend;
}

/// One side for everybody: `legacy.side`.
impl Routing for Backend {
    fn side(&self, _: &str, _: &[String]) -> Backend {
        *self
    }
}

/// The old system, as this node knows it.
#[derive(Debug)]
pub struct Legacy {
    upstream: Option<Upstream>,
    routes: Vec<Route>,
    sides: Arc<dyn Routing>,
    redis: Option<Arc<TakeIn>>,
    shadow: Arc<Shadow>,
    passengers: Arc<ProxiedStreams>,
}

impl Legacy {
    /// Starts to take in and to compare what is configured.
    ///
    /// # Errors
    /// When the system's trusted certificates cannot be read, or an address is none.
    pub fn start(
        config: &LegacyConfig,
        sides: Arc<dyn Routing>,
        (node, limits): (&Arc<Node>, Bounds),
        stage: &Stage,
    ) -> Result<Self, LegacyError> {
        let upstream = config.upstream.as_ref().map(|url| Upstream::new(url, config, node));
        let id = config.redis.as_ref().and_then(|redis| redis.id.clone());
        let taking = config.redis.as_ref();
        let redis = taking.map(|redis| TakeIn::start(redis, node, &limits, stage)).transpose()?;
        let shadow = Shadow::new(&config.shadow, id, node, &limits, stage);
        let routes = config.route.iter().cloned().map(Route::new).collect();
        Ok(Self {
            upstream: upstream.transpose()?,
            routes,
            sides,
            redis,
            shadow: Arc::new(shadow),
            passengers: Arc::default(),
        })
    }

    /// The old server, if there is one.
    pub fn upstream(&self) -> Option<&Upstream> {
        self.upstream.as_ref()
    }

    /// The old address that a path is, and what its holes stand for.
    pub fn place(&self, path: &str) -> Option<Place<'_>> {
        self.routes.iter().find_map(|route| route.place(path))
    }

    /// Who serves somebody; without an old server there is only the gateway.
    pub fn side(&self, unit: &str, groups: &[String]) -> Backend {
        if self.upstream.is_none() { Backend::Gateway } else { self.sides.side(unit, groups) }
    }

    /// Whether this node hears what publishers PUBLISH, so that another one may be stopped.
    pub fn has_joined(&self) -> bool {
        self.redis.as_ref().is_none_or(|redis| redis.has_joined())
    }

    /// Those who have a stream of the old server's.
    pub fn passengers(&self) -> &Arc<ProxiedStreams> {
        &self.passengers
    }

    /// Ends streams of the old server's whose users are on the gateway's side by now, at most so many:
    /// their browsers come back, to the gateway. How many it were.
    pub fn move_over(&self, most: usize) -> usize {
        self.passengers.let_off(most, |unit, groups| self.side(unit, groups) == Backend::Gateway)
    }

    /// The comparison of both sides.
    pub fn shadow(&self) -> &Arc<Shadow> {
        &self.shadow
    }
}

/// What bounds apply to what comes from the old system.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Bytes of one event's data.
    pub event_bytes: usize,
    /// What the names of the broker's own Redis channels begin with, if it has any.
    pub bells: Option<String>,
}

/// Why the old system cannot be taken over from.
#[derive(Debug, thiserror::Error)]
pub enum LegacyError {
    /// There is nothing to check an upstream's certificate with.
    #[error(
        "legacy.upstream: no certificate of this system's can be trusted: {reason}; install \
             ca-certificates"
    )]
    Trust {
        /// Why.
        reason: String,
    },
    /// No address of a Redis server.
    #[error(
        "legacy.redis.url: {url} is no address of a Redis server: write redis://host:port, \
             rediss://host:port or redis+unix:///path"
    )]
    RedisUrl {
        /// The address, without its password.
        url: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut LegacyConfig)) -> String {
        let mut config = LegacyConfig::default();
        change(&mut config);
        config.check(Duration::from_secs(120)).unwrap_err().key
    }

    #[test]
    fn a_section_that_cannot_work_is_refused() {
        assert_eq!(LegacyConfig::default().check(Duration::from_secs(120)), Ok(()));
        assert_eq!(refused(|config| config.requests = 0), "legacy.requests");
        assert_eq!(refused(|config| config.timeout = Duration::ZERO), "legacy.timeout");
        assert_eq!(refused(|config| config.side = Backend::Gateway), "legacy.side");
        assert_eq!(refused(|config| config.host = Some("a b".to_owned())), "legacy.host");
    }

    #[test]
    fn one_side_is_the_side_of_everybody() {
        let sides: Arc<dyn Routing> = Arc::new(Backend::Shadow);
        assert_eq!(sides.side("anna", &[]), Backend::Shadow);
    }
}
