//! The configuration: gathered from the sections' owners, read once, checked once.
//!
//! Later sources win: defaults, then the file, then the environment (`CROSSFADE_SERVER__LISTEN`).
//! Each part defines its own section beside its code; nothing below this module sees the rest.

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

/// All settings. config.toml states each with its default and a sentence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the gateway listens.
    pub server: ServerConfig,
    /// Who somebody is.
    pub auth: AuthConfig,
    /// What keeps the logs.
    pub broker: BrokerSection,
    /// Settings by namespace: the part of a channel's name before the first `:`.
    pub channels: BTreeMap<String, ChannelConfig>,
    /// How repeated message ids are recognised.
    pub dedup: DedupConfig,
    /// This process among others.
    pub node: NodeConfig,
    /// Who is where, and what the nodes tell each other.
    pub cluster: ClusterConfig,
    /// How clients are moved from one transport to another.
    pub rollout: RolloutConfig,
    /// What people are told of rollouts, and who is.
    pub alerts: AlertConfig,
    /// How both sides of a rollout are compared.
    pub validation: ValidationConfig,
    /// How clients' connections are kept.
    pub connection: ConnectionConfig,
    /// How much a client or a publisher may ask for.
    pub limits: LimitsConfig,
    /// The system that the gateway takes over from.
    pub legacy: LegacyConfig,
    /// Logs.
    pub telemetry: TelemetryConfig,
}

/// Section `[broker]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BrokerSection {
    /// `memory`, `redis` or `postgres`.
    pub kind: BrokerKind,
    /// Exit when the broker cannot be reached within this time after the start; unset, the gateway
    /// starts anyway and keeps trying.
    #[serde(with = "humantime_serde")]
    pub start_timeout: Option<Duration>,
    /// For `kind = "memory"`.
    pub memory: MemoryConfig,
    /// For `kind = "redis"`.
    pub redis: RedisConfig,
    /// For `kind = "postgres"`.
    pub postgres: PostgresConfig,
}

/// Section `[channels.NAMESPACE]`. What a namespace leaves out is as in `[channels.default]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChannelConfig {
    /// Events kept per channel.
    pub history_events: Option<u64>,
    /// How long they are kept.
    #[serde(with = "humantime_serde")]
    pub history_age: Option<Duration>,
    /// Who may subscribe.
    pub subscribe: Option<Access>,
    /// Who may publish.
    pub publish: Option<Access>,
    /// Who may see who is there, and be seen.
    pub presence: Option<Access>,
    /// Who may read the log.
    pub history: Option<Access>,
}

/// Events kept per channel where nothing else is said.
const HISTORY_EVENTS: u64 = 10_000;

/// How long events are kept where nothing else is said.
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
    /// Reads the file at `path`, if one is named or `config.toml` is there, and the environment.
    ///
    /// # Errors
    /// Says which key is wrong, why, and what would be right.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let standard = Path::new("config.toml");
        let path = path.or_else(|| standard.exists().then_some(standard));
        let text = match path {
            None => String::new(),
            Some(path) => std::fs::read_to_string(path).map_err(|err| ConfigError {
                key: path.display().to_string(),
                reason: err.to_string(),
                remedy: "name a file that can be read with --config".to_owned(),
            })?,
        };
        Self::parse(&text, &Vars::of_process())
    }

    /// Puts a file's text and variables together.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(text: &str, vars: &Vars) -> Result<Self, ConfigError> {
        let mut table: Table = text.parse().map_err(|err: toml::de::Error| ConfigError {
            key: "config.toml".to_owned(),
            // The line itself may hold a secret.
            reason: match err.span() {
                Some(span) => {
                    let line = text[..span.start.min(text.len())].lines().count().max(1);
                    format!("line {line}: {}", err.message())
                }
                None => err.message().to_owned(),
            },
            remedy: "mend the file at that line".to_owned(),
        })?;
        for (name, value) in &vars.0 {
            set(&mut table, name, value)?;
        }
        let config: Self = serde_path_to_error::deserialize(Value::Table(table))
            .map_err(|err| ConfigError::of_value(&err))?;
        config.check()?;
        Ok(config)
    }

    /// The retention of each namespace.
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

    /// Who may do what in each namespace.
    pub fn permissions(&self) -> Permissions {
        let standard = Rules::defaults(self.auth.is_development());
        let over = |rules: Rules, channel: &ChannelConfig| Rules {
            subscribe: channel.subscribe.unwrap_or(rules.subscribe),
            publish: channel.publish.unwrap_or(rules.publish),
            presence: channel.presence.unwrap_or(rules.presence),
            history: channel.history.unwrap_or(rules.history),
        };
        let default = self.channels.get(DEFAULT_NAMESPACE).cloned().unwrap_or_default();
        let default = over(standard, &default);
        let named = self.channels.iter();
        Permissions::new(default, named.map(|(name, c)| (name.clone(), over(default, c))).collect())
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

/// The environment, as far as it is ours: the part of each name behind `CROSSFADE_`, where it names
/// a section and a key. Others have variables that begin alike: an orchestrator's `CROSSFADE_PORT`
/// for a service of that name, our own `CROSSFADE_URL`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vars(BTreeMap<String, String>);

impl Vars {
    /// No variables.
    pub fn none() -> Self {
        Self::default()
    }

    /// These.
    pub fn new<'a>(vars: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let ours = |(name, value): (&str, &str)| {
            let name = name.strip_prefix("CROSSFADE_").filter(|name| name.contains("__"))?;
            Some((name.to_owned(), value.to_owned()))
        };
        Self(vars.into_iter().filter_map(ours).collect())
    }

    /// The variables of this process.
    pub fn of_process() -> Self {
        let vars: Vec<_> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self::new(vars.iter().map(|(name, value)| (name.as_str(), value.as_str())))
    }
}

/// A setting that cannot be.
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
    fn of_value(err: &serde_path_to_error::Error<toml::de::Error>) -> Self {
        let key = err.path().to_string();
        let mut reason = err.inner().message().to_owned();
        // What stands there may be a secret.
        if key.starts_with("auth") || key.starts_with("alerts") || key.contains("url") {
            reason = without_quoted(&reason);
        }
        let remedy = if reason.starts_with("unknown field") {
            "take the key out or write it as config.toml in the repository does"
        } else {
            "config.toml in the repository states every key with its default"
        };
        Self { key, reason, remedy: remedy.to_owned() }
    }
}

/// A sentence without the text in double quotes that serde puts into it.
fn without_quoted(reason: &str) -> String {
    match (reason.find('"'), reason.rfind('"')) {
        (Some(first), Some(last)) if first < last => {
            format!("{}(what stands there){}", &reason[..first], &reason[last + 1..])
        }
        _ => reason.to_owned(),
    }
}

fn at_least(key: &str, value: Duration, least: Duration) -> Result<(), ConfigError> {
    if least <= value {
        return Ok(());
    }
    Err(ConfigError {
        key: key.to_owned(),
        reason: format!("{} is too short", humantime::format_duration(value)),
        remedy: format!("set at least {}", humantime::format_duration(least)),
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

/// Puts a variable's value where its name says: `SERVER__LISTEN` is `listen` in `[server]`.
fn set(table: &mut Table, name: &str, raw: &str) -> Result<(), ConfigError> {
    let refused = |reason: &str| ConfigError {
        key: format!("CROSSFADE_{name}"),
        reason: reason.to_owned(),
        remedy: "write section and key with two underscores: CROSSFADE_SERVER__LISTEN".to_owned(),
    };
    let path: Vec<String> = name.split("__").map(str::to_lowercase).collect();
    let [sections @ .., key] = path.as_slice() else { return Err(refused("it names no key")) };
    if path.iter().any(String::is_empty) {
        return Err(refused("a section or the key is missing"));
    }
    let mut at = table;
    for section in sections {
        let inner = at.entry(section).or_insert_with(|| Value::Table(Table::new()));
        at = inner.as_table_mut().ok_or_else(|| refused("it goes through a key"))?;
    }
    at.insert(key.clone(), typed(&path, raw));
    Ok(())
}

/// A text where the default is one, otherwise what TOML would make of it.
fn typed(path: &[String], raw: &str) -> Value {
    let defaults = Table::try_from(Config::default()).unwrap_or_default();
    let default = path.iter().try_fold(&Value::Table(defaults), |at, key| at.get(key)).cloned();
    let text = Value::String(raw.to_owned());
    match (default, format!("value = {raw}").parse::<Table>()) {
        (Some(Value::String(_)), _) | (_, Err(_)) => text,
        (_, Ok(mut parsed)) => parsed.remove("value").unwrap_or(text),
    }
}

#[cfg(test)]
mod tests;
