//! Section `[broker.redis]`, and how its URLs are kept out of logs.

use std::{fmt, time::Duration};

use redis::{ConnectionInfo, IntoConnectionInfo as _};
use serde::{Deserialize, Serialize, Serializer};

/// Section `[broker.redis]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RedisConfig {
    /// The server: `redis://host:6379`, `rediss://` for TLS, `redis+unix:///path` for a socket.
    /// With Sentinel only its user, password, database and TLS count, for the master.
    pub url: RedisUrl,
    /// How the servers stand together.
    pub mode: RedisMode,
    /// With Sentinel the sentinels, with a Cluster some of its nodes; all of them carry their own
    /// user and password. Without any, a Cluster is asked at `url`.
    pub nodes: Vec<RedisUrl>,
    /// What the sentinels call the master.
    pub master: String,
    /// What every key begins with: `crossfade:{orders:42}`.
    pub prefix: String,
    /// How long a call may take, and how long a connection may need to come up.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// The first pause before connecting again is a random part of this. It doubles with each try.
    #[serde(with = "humantime_serde")]
    pub backoff_min: Duration,
    /// The pause does not grow beyond this.
    #[serde(with = "humantime_serde")]
    pub backoff_max: Duration,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            url: RedisUrl("redis://127.0.0.1:6379".to_owned()),
            mode: RedisMode::Standalone,
            nodes: Vec::new(),
            master: "mymaster".to_owned(),
            prefix: "crossfade".to_owned(),
            timeout: Duration::from_secs(5),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(2),
        }
    }
}

impl RedisConfig {
    /// What cannot work whatever the servers do.
    pub(super) fn check(&self) -> Result<(), RedisConfigError> {
        self.url.info()?;
        for node in &self.nodes {
            node.info()?;
        }
        if self.mode == RedisMode::Sentinel && self.nodes.is_empty() {
            return Err(RedisConfigError::NoSentinels);
        }
        if self.prefix.is_empty() || self.prefix.contains(|c: char| "{}".contains(c)) {
            return Err(RedisConfigError::Prefix { prefix: self.prefix.clone() });
        }
        if self.timeout.is_zero() {
            return Err(RedisConfigError::Timeout);
        }
        Ok(())
    }
}

/// How the servers stand together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RedisMode {
    /// One server.
    #[default]
    Standalone,
    /// A master with replicas; sentinels say which it is.
    Sentinel,
    /// Several masters, the channels spread over them.
    Cluster,
}

/// A server's address. Its user and password are not shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct RedisUrl(String);

impl Serialize for RedisUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl RedisUrl {
    /// The address this text is. It is looked at when the broker connects.
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    pub(crate) fn info(&self) -> Result<ConnectionInfo, RedisConfigError> {
        self.0
            .as_str()
            .into_connection_info()
            .map_err(|_| RedisConfigError::Url { url: self.to_string() })
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, rest) = self.0.split_once("://").unwrap_or(("?", ""));
        let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
        let place = place.split(['?', '#']).next().unwrap_or_default();
        write!(f, "{scheme}://{place}")
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why the section cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedisConfigError {
    /// Not an address.
    #[error(
        "broker.redis: {url} is no address of a Redis server: write redis://host:port, \
         rediss://host:port or redis+unix:///path"
    )]
    Url {
        /// The address, without its password.
        url: String,
    },
    /// Nobody to ask for the master.
    #[error("broker.redis.nodes is empty: with mode \"sentinel\" it lists the sentinels")]
    NoSentinels,
    /// The prefix would break the keys' hash tag.
    #[error("broker.redis.prefix {prefix:?}: it needs at least one character, and no braces")]
    Prefix {
        /// That prefix.
        prefix: String,
    },
    /// Nothing answers in no time.
    #[error("broker.redis.timeout is zero")]
    Timeout,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        for url in [
            "redis://user:secret@host:6379/2",
            "rediss://:se@cret@host:6379",
            "redis+unix:///run/redis.sock?user=u&pass=secret",
            "nonsense-secret",
            "redis://:secret@ho st",
        ] {
            let config = RedisConfig { url: RedisUrl::new(url), ..RedisConfig::default() };
            let error = config.check().err().map(|error| error.to_string()).unwrap_or_default();
            let shown = format!("{config:?} {error} {}", toml::to_string(&config).unwrap());
            assert!(!shown.contains("cret"), "{shown}");
        }
        assert_eq!(RedisUrl::new("redis://u:p@host:1/2").to_string(), "redis://host:1/2");
    }

    #[test]
    fn a_section_that_cannot_work_is_refused_with_a_remedy() {
        let of = |config: RedisConfig| config.check().unwrap_err().to_string();
        let url = RedisUrl::new("http://host");
        let text = of(RedisConfig { url, ..RedisConfig::default() });
        assert!(text.contains("redis+unix:///path"), "{text}");
        let text = of(RedisConfig { prefix: "{a}".to_owned(), ..RedisConfig::default() });
        assert!(text.contains("no braces"), "{text}");
        let text = of(RedisConfig { mode: RedisMode::Sentinel, ..RedisConfig::default() });
        assert!(text.contains("lists the sentinels"), "{text}");
        assert_eq!(RedisConfig::default().check(), Ok(()));
    }
}
