//! Ingest from Redis Pub/Sub: every message that publishers PUBLISH is appended to the logs once. New
//! events can be republished to the legacy Redis channels.
//!
//! Pub/Sub messages have no ids and reach every node, so the nodes have to agree on two things.
//! *Which node writes?* The holder of a `lease` in Redis. *Which message is it?* Redis delivers one
//! order to all subscribers of a server, so the nodes PUBLISH **marks** into it, and a message is
//! identified by its channel and its number after the latest mark. All nodes derive the same id, so a
//! message that two nodes write while the lease changes hands is one event after deduplication.
//!
//! `subscriber` receives, `message_sequence` numbers and buffers (pure), `peers` tracks the
//! other nodes (pure), `writer` appends to the logs, `republish` sends in the other direction.

mod lease;
mod message_sequence;
mod peers;
mod republish;
mod subscriber;
mod writer;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use redis::{Client, ConnectionInfo, aio::MultiplexedConnection};
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::{
    message_sequence::{MessageMapper, MessageSequence},
    peers::Peers,
};
use super::{
    GatewaySettings, InvalidSetting, JsonPath, LegacyError,
    pattern::{Glob, Template},
};
use crate::{
    broker::redis::RedisUrl, lifecycle::Stage, metrics::LegacyMetrics, node::Node,
    protocol::channel::RESERVED_NAMESPACE,
};

/// Section `[legacy.redis]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IngestConfig {
    /// URL of the Redis server that publishers PUBLISH to; not a Redis Cluster.
    pub url: RedisUrl,
    /// Patterns of the Redis channels to ingest, in PSUBSCRIBE syntax: `room.*`.
    pub patterns: Vec<Glob>,
    /// The gateway channel of a Redis channel: `{1}` is what the first `*` matched, `{0}` the whole
    /// name.
    #[serde(default = "whole_name")]
    pub channel: Template,
    /// Path of the message id in a JSON payload; unset, ids are derived from the message's number.
    #[serde(default)]
    pub id: Option<JsonPath>,
    /// Path of the event name in a JSON payload.
    #[serde(default)]
    pub name: Option<JsonPath>,
    /// Namespaces whose new events are republished to the legacy Redis channels.
    #[serde(default)]
    pub republish: Vec<String>,
    /// Lease duration: how long after a node died another one takes over. At least 500 ms, at most a
    /// tenth of `dedup.window`.
    #[serde(default = "three_seconds", with = "humantime_serde")]
    pub lease: Duration,
    /// Prefix of the lease key and of the marks channel in Redis.
    #[serde(default = "crossfade_legacy")]
    pub prefix: String,
    /// Limit of received messages not yet known to be in the logs, in bytes; beyond it the oldest are
    /// dropped.
    #[serde(default = "mib_64")]
    pub backlog_bytes: usize,
}

fn whole_name() -> Template {
    "{0}".parse().expect("{0} is a valid template")
}

fn three_seconds() -> Duration {
    Duration::from_secs(3)
}

fn crossfade_legacy() -> String {
    "crossfade-legacy".to_owned()
}

fn mib_64() -> usize {
    64 << 20
}

impl IngestConfig {
    pub(super) fn check(&self, dedup: Duration) -> Result<(), InvalidSetting> {
        let invalid = |key: &str, reason: String, remedy: &str| {
            Err(InvalidSetting::new(format!("legacy.redis.{key}"), reason, remedy))
        };
        if self.patterns.is_empty() {
            return invalid("patterns", "it is empty".to_owned(), "write patterns = [\"room.*\"]");
        }
        for placeholder in self.channel.placeholders() {
            let star = placeholder.parse::<usize>().unwrap_or(usize::MAX);
            if let Some(pattern) = self.patterns.iter().find(|pattern| pattern.stars() < star) {
                let reason = format!("pattern {pattern} has no * for {{{placeholder}}}");
                return invalid("channel", reason, "write {1} for the first *, {0} for the name");
            }
        }
        if self.lease < Duration::from_millis(500) {
            return invalid("lease", "it is too short".to_owned(), "set at least 500ms");
        }
        if dedup < self.lease * 10 {
            let reason = "dedup.window must cover several changes of the lease holder".to_owned();
            return invalid("lease", reason, "set at most a tenth of dedup.window");
        }
        if self.prefix.is_empty() {
            return invalid("prefix", "it is empty".to_owned(), "set a prefix, or leave it out");
        }
        if self.republish.iter().any(|namespace| namespace == RESERVED_NAMESPACE) {
            let reason = format!("namespace {RESERVED_NAMESPACE} is reserved for the gateway");
            return invalid("republish", reason, "leave it out");
        }
        // Republishing needs the inverse mapping, so the channel's name must determine each star.
        let is_reversible = |pattern: &Glob| {
            let placeholders: Vec<_> = self.channel.placeholders().collect();
            let all = (1..=pattern.stars()).all(|star| placeholders.contains(&&*star.to_string()));
            placeholders.contains(&"0") || (all && pattern.is_stars_and_text())
        };
        match self.patterns.iter().find(|pattern| !is_reversible(pattern)) {
            Some(pattern) if !self.republish.is_empty() => {
                let reason =
                    format!("channel {} cannot be mapped back to pattern {pattern}", self.channel);
                let remedy = "use each * of patterns in channel, and no ? or [ ] in patterns";
                invalid("republish", reason, remedy)
            }
            _ => Ok(()),
        }
    }
}

/// How long a node may stay not ready because it is not subscribed to the legacy Redis channels.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Ingest on this node: state shared by the subscriber, lease, writer and republish tasks.
#[derive(Debug)]
pub struct Ingest {
    config: IngestConfig,
    node: Arc<Node>,
    connection_info: ConnectionInfo,
    /// Identifies this process in the lease and in marks; unique per start.
    token: String,
    sequence: Mutex<MessageSequence>,
    /// When this node's lease ends, while it holds the lease.
    lease_deadline: Mutex<Option<Deadline>>,
    started_at: Instant,
    peers: Mutex<Peers>,
    /// Wakes the writer: there may be something to write.
    wake_writer: Notify,
    /// Wakes the lease task: a mark and an attempt to take the lease are due at once.
    wake_lease: Notify,
    /// Cancelled when the writer has written its last message.
    writer_done: CancellationToken,
}

/// A deadline on the monotonic and the wall clock: the monotonic clock may stop while a machine
/// sleeps.
#[derive(Clone, Copy, Debug)]
struct Deadline {
    instant: Instant,
    wall: SystemTime,
}

impl Deadline {
    fn after(time: Duration) -> Self {
        Self { instant: Instant::now() + time, wall: SystemTime::now() + time }
    }

    fn has_passed(&self) -> bool {
        self.instant <= Instant::now() || self.wall <= SystemTime::now()
    }
}

impl Ingest {
    /// Starts the subscriber, lease and writer tasks, and the republish task if configured.
    ///
    /// # Errors
    /// When `legacy.redis.url` is invalid.
    pub fn start(
        config: &IngestConfig,
        node: &Arc<Node>,
        settings: &GatewaySettings,
        stage: &Stage,
    ) -> Result<Arc<Self>, LegacyError> {
        let invalid_url = || LegacyError::RedisUrl { url: config.url.to_string() };
        let connection_info = config.url.info().map_err(|_| invalid_url())?;
        let mapper = MessageMapper::new(config, settings.clone());
        let this = Arc::new(Self {
            config: config.clone(),
            node: Arc::clone(node),
            connection_info,
            token: Uuid::new_v4().simple().to_string(),
            sequence: Mutex::new(MessageSequence::new(mapper)),
            started_at: Instant::now(),
            lease_deadline: Mutex::default(),
            peers: Mutex::default(),
            wake_writer: Notify::new(),
            wake_lease: Notify::new(),
            writer_done: CancellationToken::new(),
        });
        let stop = stage.stopping();
        stage.spawn("legacy-subscriber", subscriber::run(Arc::clone(&this)));
        stage.spawn("legacy-lease", lease::run(Arc::clone(&this)));
        stage.spawn("legacy-writer", writer::run(Arc::clone(&this), stop.clone()));
        if !config.republish.is_empty() {
            republish::start(Arc::clone(&this), stage);
        }
        Ok(this)
    }

    /// Whether this node receives what another node receives, so that the other one may be stopped.
    /// True after 10 s in any case: an unreachable Redis must not block a deployment.
    pub fn is_ready(&self) -> bool {
        self.peers.lock().has_joined() || JOIN_TIMEOUT < self.started_at.elapsed()
    }

    fn metrics(&self) -> &LegacyMetrics {
        &self.node.metrics().legacy
    }

    /// Sets `legacy_backlog`: the number of messages not known to be in the logs.
    fn set_backlog(&self, messages: usize) {
        self.metrics().backlog.set(i64::try_from(messages).unwrap_or(i64::MAX));
    }

    /// The Redis channel that marks are PUBLISHed to.
    fn marks_channel(&self) -> String {
        format!("{}:marks", self.config.prefix)
    }

    fn holds_lease(&self) -> bool {
        self.lease_deadline.lock().is_some_and(|deadline| !deadline.has_passed())
    }

    /// Opens a connection for commands; connecting and each response time out after a third of the
    /// lease.
    async fn connect(&self) -> redis::RedisResult<MultiplexedConnection> {
        let within = self.config.lease / 3;
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(within))
            .set_response_timeout(Some(within));
        let client = Client::open(self.connection_info.clone())?;
        client.get_multiplexed_async_connection_with_config(&config).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEDUP_WINDOW: Duration = Duration::from_secs(120);

    fn check(text: &str) -> Result<(), String> {
        let config: IngestConfig =
            toml::from_str(&format!("url = \"redis://h\"\n{text}")).map_err(|e| e.to_string())?;
        config.check(DEDUP_WINDOW).map_err(|error| format!("{} {}", error.key, error.reason))
    }

    #[test]
    fn invalid_channel_mappings_are_rejected() {
        assert_eq!(check("patterns = [\"room.*\"]\nchannel = \"room:{1}\""), Ok(()));
        assert_eq!(check("patterns = [\"room.*\", \"x\"]"), Ok(()));
        let error = check("patterns = [\"room.*\"]\nchannel = \"room:{2}\"").unwrap_err();
        assert!(error.contains("no * for {2}"), "{error}");
        assert!(check("patterns = []").is_err());
        assert!(check("patterns = [\"a\"]\nlease = \"1m\"").unwrap_err().contains("lease"));
    }

    #[test]
    fn republish_needs_a_reversible_mapping() {
        let republish = "republish = [\"room\"]\n";
        let check_mapping = |text: &str| check(&format!("{republish}{text}"));
        assert_eq!(check_mapping("patterns = [\"room.*\"]\nchannel = \"room:{1}\""), Ok(()));
        assert_eq!(check_mapping("patterns = [\"room:?\"]"), Ok(()));
        assert!(check_mapping("patterns = [\"*.*\"]\nchannel = \"room:{1}\"").is_err());
        assert!(check_mapping("patterns = [\"r?.*\"]\nchannel = \"room:{1}\"").is_err());
        assert!(check("republish = [\"crossfade\"]\npatterns = [\"a\"]").is_err());
    }
}
