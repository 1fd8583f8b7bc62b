//! Section `[broker.postgres]`, and how to connect with what it says. Secrets end here: a
//! connection string shows itself only as who, where and which database.

use std::{fmt, num::NonZeroUsize, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tokio_postgres::config::Host;

/// Section `[broker.postgres]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PostgresConfig {
    /// Which database: a libpq URL or `key=value` text. sslmode: disable, prefer, require (checks
    /// the server's certificate, as verify-full does).
    pub url: ConnectionUrl,
    /// A direct connection for LISTEN, when `url` goes through a pooler such as PgBouncer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen_url: Option<ConnectionUrl>,
    /// Connections for reads; two for publishes, one to listen and one to sequence come on top.
    pub pool_size: NonZeroUsize,
    /// How long any call may take, connecting included.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Whether `crossfade.publish` wakes the sequencer at once. Saves up to `poll_max` of delay and
    /// costs every publishing transaction the database-wide lock of NOTIFY at its commit.
    pub notify_on_sql_publish: bool,
    /// How soon the outbox is looked into again while there is something in it.
    #[serde(with = "humantime_serde")]
    pub poll_min: Duration,
    /// How long the outbox may go unlooked while there is nothing in it.
    #[serde(with = "humantime_serde")]
    pub poll_max: Duration,
    /// How often events and ids beyond their retention are deleted.
    #[serde(with = "humantime_serde")]
    pub prune_interval: Duration,
    /// The longest first wait before connecting again.
    #[serde(with = "humantime_serde")]
    pub reconnect_min: Duration,
    /// The longest wait before connecting again, however often it failed.
    #[serde(with = "humantime_serde")]
    pub reconnect_max: Duration,
}

impl Default for PostgresConfig {
    fn default() -> Self {
        Self {
            url: ConnectionUrl("postgres://localhost/crossfade".to_owned()),
            listen_url: None,
            pool_size: NonZeroUsize::new(8).expect("not zero"),
            timeout: Duration::from_secs(5),
            notify_on_sql_publish: false,
            poll_min: Duration::from_millis(5),
            poll_max: Duration::from_millis(100),
            prune_interval: Duration::from_secs(5),
            reconnect_min: Duration::from_millis(100),
            reconnect_max: Duration::from_secs(5),
        }
    }
}

/// A libpq URL or `key=value` text, which may hold a password: it is never shown as it is.
#[derive(Clone, PartialEq, Eq)]
pub struct ConnectionUrl(String);

impl ConnectionUrl {
    /// Reads it.
    ///
    /// # Errors
    /// In words that hold nothing of its text but parameter names.
    pub(super) fn parse(&self) -> Result<tokio_postgres::Config, String> {
        // What require means here is what libpq calls verify-full.
        let text = self.0.replace("sslmode=verify-full", "sslmode=require");
        let config: tokio_postgres::Config =
            text.parse().map_err(|error| self.complaint(&error))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err("the connection string names no host".to_owned());
        }
        Ok(config)
    }

    fn complaint(&self, error: &tokio_postgres::Error) -> String {
        let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
        // The parser quotes what it does not know, and that may be a piece of a password.
        let named = LIBPQ_WORDS.iter().find(|word| cause.contains(&format!("`{word}`")));
        match named {
            Some(word) => format!("the connection string's {word} is not understood"),
            None => "the connection string is neither a postgres:// URL nor key=value pairs; \
                     special characters of a password in a URL are percent-encoded"
                .to_owned(),
        }
    }
}

const LIBPQ_WORDS: [&str; 18] = [
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "gssencmode",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_idle",
    "krbsrvname",
    "passfile",
    "port",
    "service",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "target_session_attrs",
    "tcp_user_timeout",
];

/// Who, where and which database.
pub(super) fn label(config: &tokio_postgres::Config) -> String {
    let hosts = config.get_hosts().iter().map(|host| match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(path) => path.display().to_string(),
    });
    let addresses = config.get_hostaddrs().iter().map(ToString::to_string);
    let mut places: Vec<_> = hosts.collect();
    if places.is_empty() {
        places.extend(addresses);
    }
    for (place, port) in places.iter_mut().zip(config.get_ports()) {
        *place = format!("{place}:{port}");
    }
    let user = config.get_user().map(|user| format!("{user}@")).unwrap_or_default();
    let database = config.get_dbname().or(config.get_user()).unwrap_or_default();
    format!("{user}{}/{database}", places.join(","))
}

impl fmt::Display for ConnectionUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parse() {
            Ok(config) => write!(f, "postgres://{}", label(&config)),
            Err(_) => f.write_str("(not a connection string)"),
        }
    }
}

impl fmt::Debug for ConnectionUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ConnectionUrl {
    type Err = std::convert::Infallible;

    /// Takes any text: whether it is understood is found out, and said, when connecting.
    fn from_str(raw: &str) -> Result<Self, Self::Err> {
        Ok(Self(raw.to_owned()))
    }
}

impl Serialize for ConnectionUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ConnectionUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> ConnectionUrl {
        text.parse().unwrap()
    }

    #[test]
    fn a_password_is_shown_nowhere() {
        for text in [
            "postgres://me:s3cret@db:6000/app",
            "postgres://me@db:6000/app?password=s3cret",
            "host=db port=6000 user=me dbname=app password=s3cret",
            "host=db password=s3cret s3cret=1",
            "postgres://me:s3cret@db:6000/app?s3cret=1",
            "s3cret",
        ] {
            let url = url(text);
            let shown = format!("{url} {url:?} {:?}", url.parse());
            assert!(!shown.contains("s3cret"), "{shown}");
        }
        let shown = url("host=db port=6000 user=me dbname=app password=s3cret").to_string();
        assert_eq!(shown, "postgres://me@db:6000/app");
    }

    #[test]
    fn an_unknown_parameter_is_named() {
        let refused = url("postgres://db/app?sslrootcert=/x.pem").parse().unwrap_err();
        assert!(refused.contains("sslrootcert"), "{refused}");
        assert!(url("postgres://db/app?sslmode=verify-full").parse().is_ok());
    }
}
