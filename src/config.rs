//! Configuration: defaults, overridden by a TOML file, overridden by environment variables
//! (`CROSSFADE_SERVER__LISTEN`).
//!
//! Owns loading, merging and the checks across sections, once at the start. Each module defines its own
//! section beside its code and sees only that. config.toml documents every key; tests compare it with
//! the defaults.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::Path,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::{
    alert::AlertConfig,
    auth::{Access, AuthConfig, Permissions, Rules},
    broker::{
        BrokerKind, Retention, Retentions, memory::MemoryConfig, postgres::PostgresConfig,
        redis::RedisConfig,
    },
    cluster::ClusterConfig,
    connection::ConnectionConfig,
    http::ServerConfig,
    legacy::{InvalidSetting, LegacyConfig},
    node::{DedupConfig, NodeConfig},
    protocol::channel::{DEFAULT_NAMESPACE, RESERVED_NAMESPACE},
    rollout::RolloutConfig,
    session::LimitsConfig,
    telemetry::TelemetryConfig,
    validation::ValidationConfig,
};

/// All settings. config.toml documents each key with its default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Listening, timeouts, origins, proxies, TLS and admission limits.
    pub server: ServerConfig,
    /// Authentication of clients and callers.
    pub auth: AuthConfig,
    /// The broker that stores the logs.
    pub broker: BrokerSection,
    /// Retention and permissions by namespace: the part of a channel's name before the first `:`.
    pub channels: BTreeMap<String, ChannelConfig>,
    /// Deduplication of message ids.
    pub dedup: DedupConfig,
    /// This node's name and its ring of recent events.
    pub node: NodeConfig,
    /// Presence and cluster messages.
    pub cluster: ClusterConfig,
    /// Rollouts: polling the store, the rate at which clients migrate.
    pub rollout: RolloutConfig,
    /// Alerts about rollouts, and the webhooks they are sent to.
    pub alerts: AlertConfig,
    /// Validation runs, which compare both sides of a rollout.
    pub validation: ValidationConfig,
    /// Timeouts and heartbeats of client connections.
    pub connection: ConnectionConfig,
    /// Sizes and rates that a client or a publisher may use.
    pub limits: LimitsConfig,
    /// Migration from an existing system.
    pub legacy: LegacyConfig,
    /// Log filter and format.
    pub telemetry: TelemetryConfig,
}

/// Section `[broker]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BrokerSection {
    /// `memory`, `redis` or `postgres`.
    pub kind: BrokerKind,
    /// Exit when the broker cannot be reached within this time after the start; unset, the gateway
    /// starts without it and keeps trying.
    #[serde(with = "humantime_serde")]
    pub start_timeout: Option<Duration>,
    /// For `kind = "memory"`.
    pub memory: MemoryConfig,
    /// For `kind = "redis"`.
    pub redis: RedisConfig,
    /// For `kind = "postgres"`.
    pub postgres: PostgresConfig,
}

/// Section `[channels.NAMESPACE]`. A key left out is inherited from `[channels.default]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChannelConfig {
    /// Retention: events per channel, at least 1.
    pub history_events: Option<u64>,
    /// Retention: age of an event, at least 1s.
    #[serde(with = "humantime_serde")]
    pub history_age: Option<Duration>,
    /// Who may subscribe.
    pub subscribe: Option<Access>,
    /// Who may publish.
    pub publish: Option<Access>,
    /// Who may see the members and be listed among them.
    pub presence: Option<Access>,
    /// Who may read the history.
    pub history: Option<Access>,
}

/// Default of `history_events`.
const HISTORY_EVENTS: u64 = 10_000;

/// Default of `history_age`.
const HISTORY_AGE: Duration = Duration::from_secs(24 * 3600);

impl Default for Config {
    fn default() -> Self {
        let default = ChannelConfig {
            history_events: Some(HISTORY_EVENTS),
            history_age: Some(HISTORY_AGE),
            ..ChannelConfig::default()
        };
        Self {
            server: ServerConfig::default(),
            auth: AuthConfig::default(),
            broker: BrokerSection::default(),
            channels: BTreeMap::from([(DEFAULT_NAMESPACE.to_owned(), default)]),
            dedup: DedupConfig::default(),
            node: NodeConfig::default(),
            cluster: ClusterConfig::default(),
            rollout: RolloutConfig::default(),
            alerts: AlertConfig::default(),
            validation: ValidationConfig::default(),
            connection: ConnectionConfig::default(),
            limits: LimitsConfig::default(),
            legacy: LegacyConfig::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

impl Config {
    /// Loads the file at `path`, else `./config.toml` if it exists, and the environment variables.
    ///
    /// # Errors
    /// Names the invalid key, the reason and the remedy.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let default = Path::new("config.toml");
        let path = path.or_else(|| default.exists().then_some(default));
        let text = match path {
            None => String::new(),
            Some(path) => std::fs::read_to_string(path).map_err(|err| ConfigError {
                key: path.display().to_string(),
                reason: err.to_string(),
                remedy: "pass a readable file with --config".to_owned(),
            })?,
        };
        Self::parse(&text, &EnvVars::from_process())
    }

    /// Parses the text of a file, overrides it by variables and checks the result.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(text: &str, vars: &EnvVars) -> Result<Self, ConfigError> {
        let mut table: Table = text.parse().map_err(|err: toml::de::Error| ConfigError {
            key: "config.toml".to_owned(),
            // The line is not quoted, as it may contain a secret.
            reason: match err.span() {
                Some(span) => {
                    let line = text[..span.start.min(text.len())].lines().count().max(1);
                    format!("line {line}: {}", err.message())
                }
                None => err.message().to_owned(),
            },
            remedy: "correct the TOML syntax there".to_owned(),
        })?;
        for (name, value) in &vars.0 {
            override_key(&mut table, name, value)?;
        }
        let config: Self = serde_path_to_error::deserialize(Value::Table(table))
            .map_err(|err| ConfigError::from_deserialize(&err))?;
        config.check()?;
        Ok(config)
    }

    /// The retention of each namespace, with that of the cluster's own log.
    pub fn retentions(&self) -> Retentions {
        let default = self.channels.get(DEFAULT_NAMESPACE).cloned().unwrap_or_default();
        let retention = |channel: &ChannelConfig| Retention {
            events: channel.history_events.or(default.history_events).unwrap_or(HISTORY_EVENTS),
            age: channel.history_age.or(default.history_age).unwrap_or(HISTORY_AGE),
            dedup: self.dedup.window,
        };
        let mut by_namespace: HashMap<_, _> =
            self.channels.iter().map(|(name, c)| (name.clone(), retention(c))).collect();
        by_namespace.insert(RESERVED_NAMESPACE.to_owned(), self.cluster.retention());
        Retentions::new(retention(&default), by_namespace)
    }

    /// The access rules of each namespace.
    pub fn permissions(&self) -> Permissions {
        let standard = Rules::standard(self.auth.is_development());
        let overridden = |rules: Rules, channel: &ChannelConfig| Rules {
            subscribe: channel.subscribe.unwrap_or(rules.subscribe),
            publish: channel.publish.unwrap_or(rules.publish),
            presence: channel.presence.unwrap_or(rules.presence),
            history: channel.history.unwrap_or(rules.history),
        };
        let default = self.channels.get(DEFAULT_NAMESPACE).cloned().unwrap_or_default();
        let default = overridden(standard, &default);
        let named = self.channels.iter();
        Permissions::new(
            default,
            named.map(|(name, c)| (name.clone(), overridden(default, c))).collect(),
        )
    }

    fn check(&self) -> Result<(), ConfigError> {
        let second = Duration::from_secs(1);
        let connection = &self.connection;
        let limits = &self.limits;
        at_least("connection.heartbeat", connection.heartbeat, second)?;
        at_least("connection.connect_timeout", connection.connect_timeout, second)?;
        at_least("connection.stall_timeout", connection.stall_timeout, second)?;
        at_least("server.header_timeout", self.server.header_timeout, second)?;
        at_least("server.idle_timeout", self.server.idle_timeout, second)?;
        at_least("server.body_timeout", self.server.body_timeout, second)?;
        at_least("node.head_check", self.node.head_check, Duration::from_millis(100))?;
        at_least("dedup.window", self.dedup.window, second)?;
        at_least("rollout.poll", self.rollout.poll, Duration::from_millis(50))?;
        at_least("alerts.timeout", self.alerts.timeout, Duration::from_millis(100))?;
        at_least("alerts.backoff_min", self.alerts.backoff_min, Duration::from_millis(1))?;
        at_least("alerts.take_over", self.alerts.take_over, second)?;
        at_least("cluster.node_timeout", self.cluster.node_timeout, second)?;
        at_least("cluster.presence_batch", self.cluster.presence_batch, Duration::from_millis(1))?;
        for (key, value) in [
            ("limits.subscriptions", limits.subscriptions),
            ("limits.event_bytes", limits.event_bytes),
            ("limits.batch_events", limits.batch_events),
            ("limits.history_events", limits.history_events),
            ("limits.frames_per_second", limits.frames_per_second as usize),
            ("limits.frames_burst", limits.frames_burst as usize),
        ] {
            above(key, value, "0", 0)?;
        }
        above("limits.frame_bytes", limits.frame_bytes, "limits.event_bytes", limits.event_bytes)?;
        above("limits.body_bytes", limits.body_bytes, "limits.event_bytes", limits.event_bytes)?;
        for (namespace, channel) in &self.channels {
            let key = format!("channels.{namespace}.history_events");
            above(&key, channel.history_events.unwrap_or(1), "0", 0)?;
            let key = format!("channels.{namespace}.history_age");
            at_least(&key, channel.history_age.unwrap_or(second), second)?;
        }
        Ok(self.legacy.check(self.dedup.window)?)
    }
}

/// The environment variables that are settings: `CROSSFADE_SECTION__KEY`, held without the prefix.
/// Variables without `__` are not settings: Kubernetes sets `CROSSFADE_PORT` for a service called
/// crossfade, and the command line reads `CROSSFADE_URL`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnvVars(BTreeMap<String, String>);

impl EnvVars {
    /// No variables.
    pub fn none() -> Self {
        Self::default()
    }

    /// The settings among `vars`, pairs of name and value.
    pub fn new<'a>(vars: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let setting = |(name, value): (&str, &str)| {
            let name = name.strip_prefix("CROSSFADE_").filter(|name| name.contains("__"))?;
            Some((name.to_owned(), value.to_owned()))
        };
        Self(vars.into_iter().filter_map(setting).collect())
    }

    /// The settings among the variables of this process.
    pub fn from_process() -> Self {
        let vars: Vec<_> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self::new(vars.iter().map(|(name, value)| (name.as_str(), value.as_str())))
    }
}

/// An invalid setting: its key, the reason and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    key: String,
    reason: String,
    remedy: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.key, self.reason, self.remedy)
    }
}

impl From<InvalidSetting> for ConfigError {
    fn from(InvalidSetting { key, reason, remedy }: InvalidSetting) -> Self {
        Self { key, reason, remedy }
    }
}

impl ConfigError {
    fn from_deserialize(err: &serde_path_to_error::Error<toml::de::Error>) -> Self {
        let key = err.path().to_string();
        let mut reason = err.inner().message().to_owned();
        // The value is not quoted where it may be a secret.
        if key.starts_with("auth") || key.starts_with("alerts") || key.contains("url") {
            reason = redact_quoted(&reason);
        }
        let remedy = if reason.starts_with("unknown field") {
            "remove it, or correct its name: config.toml in the repository lists every key"
        } else {
            "config.toml in the repository lists every key with its default"
        };
        Self { key, reason, remedy: remedy.to_owned() }
    }
}

/// Replaces the text in double quotes, in which serde quotes the value.
fn redact_quoted(reason: &str) -> String {
    match (reason.find('"'), reason.rfind('"')) {
        (Some(first), Some(last)) if first < last => {
            format!("{}(value hidden){}", &reason[..first], &reason[last + 1..])
        }
        _ => reason.to_owned(),
    }
}

fn at_least(key: &str, value: Duration, min: Duration) -> Result<(), ConfigError> {
    if min <= value {
        return Ok(());
    }
    Err(ConfigError {
        key: key.to_owned(),
        reason: format!("{} is too short", humantime::format_duration(value)),
        remedy: format!("set at least {}", humantime::format_duration(min)),
    })
}

fn above<T: PartialOrd + fmt::Display>(
    key: &str,
    value: T,
    bound_name: &str,
    bound: T,
) -> Result<(), ConfigError> {
    if bound < value {
        return Ok(());
    }
    Err(ConfigError {
        key: key.to_owned(),
        reason: format!("{value} is too small"),
        remedy: format!("set more than {bound_name}"),
    })
}

/// Sets the key that a variable names: `SERVER__LISTEN` is `listen` in `[server]`.
fn override_key(table: &mut Table, name: &str, raw: &str) -> Result<(), ConfigError> {
    let invalid = |reason: &str| ConfigError {
        key: format!("CROSSFADE_{name}"),
        reason: reason.to_owned(),
        remedy:
            "write CROSSFADE_, the section, two underscores and the key: CROSSFADE_SERVER__LISTEN"
                .to_owned(),
    };
    let path: Vec<String> = name.split("__").map(str::to_lowercase).collect();
    let [sections @ .., key] = path.as_slice() else { return Err(invalid("it names no key")) };
    if path.iter().any(String::is_empty) {
        return Err(invalid("a section or the key is missing"));
    }
    let mut current = table;
    for section in sections {
        let inner = current.entry(section).or_insert_with(|| Value::Table(Table::new()));
        current = inner
            .as_table_mut()
            .ok_or_else(|| invalid("a part before the last is a key, not a section"))?;
    }
    current.insert(key.clone(), parse_value(&path, raw));
    Ok(())
}

/// The value of a variable: a string where the default is one, otherwise parsed as TOML.
fn parse_value(path: &[String], raw: &str) -> Value {
    let defaults = Table::try_from(Config::default()).unwrap_or_default();
    let default =
        path.iter().try_fold(&Value::Table(defaults), |value, key| value.get(key)).cloned();
    let string = Value::String(raw.to_owned());
    match (default, format!("value = {raw}").parse::<Table>()) {
        (Some(Value::String(_)), _) | (_, Err(_)) => string,
        (_, Ok(mut parsed)) => parsed.remove("value").unwrap_or(string),
    }
}

#[cfg(test)]
mod tests;
