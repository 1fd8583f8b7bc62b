//! Taking what publishers PUBLISH into the logs, each message once, and copying new events out.
//!
//! PUBLISH has no ids and is heard by every node, so two questions are answered here. *Who writes?*
//! The one that holds a [`lease`] in Redis. *Which message is it?* All subscribers of one server hear
//! one order, so [`marks`](tally) that the nodes put into it number the messages in between, alike on
//! every node; a message that two nodes write while one takes over from the other has one id.
//!
//! [`tally`] is the pure part, [`ear`] listens, [`writer`] writes, [`copy`] sends the other way.

mod copy;
mod lease;
mod message_sequence;
mod peers;
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
    message_sequence::{Ingest, MessageSequence},
    peers::Peers,
};
use super::{
    Bounds, Impossible, JsonPath, LegacyError,
    pattern::{Glob, Template},
};
use crate::{
    broker::redis::RedisUrl, lifecycle::Stage, metrics::LegacyMetrics, node::Node,
    protocol::channel::RESERVED_NAMESPACE,
};

/// Section `[legacy.redis]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TakeInConfig {
    /// The server that publishers PUBLISH to.
    pub url: RedisUrl,
    /// Which of its channels are taken in, as PSUBSCRIBE reads it: `room.*`.
    pub patterns: Vec<Glob>,
    /// The gateway's channel for each: `{1}` is what the first star stands for, `{0}` the whole name.
    #[serde(default = "whole")]
    pub channel: Template,
    /// Where in a payload its id stands.
    #[serde(default)]
    pub id: Option<JsonPath>,
    /// Where in a payload the event's name stands.
    #[serde(default)]
    pub name: Option<JsonPath>,
    /// New events of these namespaces are PUBLISHed to the old channels too.
    #[serde(default)]
    pub copy_out: Vec<String>,
    /// After how long another node takes over from one that is gone.
    #[serde(default = "three_seconds", with = "humantime_serde")]
    pub lease: Duration,
    /// What the lease, and the channel of the marks, are called in Redis.
    #[serde(default = "crossfade_legacy")]
    pub prefix: String,
    /// Bytes of messages that may wait to be in the logs.
    #[serde(default = "mib_64")]
    pub backlog_bytes: usize,
}

fn whole() -> Template {
    "{0}".parse().expect("a hole is a template")
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

impl TakeInConfig {
    pub(super) fn check(&self, dedup: Duration) -> Result<(), Impossible> {
        let wrong = |key: &str, reason: String, remedy: &str| {
            Err(Impossible::new(format!("legacy.redis.{key}"), reason, remedy))
        };
        if self.patterns.is_empty() {
            return wrong("patterns", "it is empty".to_owned(), "write patterns = [\"room.*\"]");
        }
        for hole in self.channel.holes() {
            let star = hole.parse::<usize>().unwrap_or(usize::MAX);
            if let Some(poor) = self.patterns.iter().find(|pattern| pattern.stars() < star) {
                let reason = format!("{poor} has no star for {{{hole}}}");
                return wrong("channel", reason, "write {1} for the first star, {0} for the name");
            }
        }
        if self.lease < Duration::from_millis(500) {
            return wrong("lease", "it is too short".to_owned(), "set at least 500ms");
        }
        if dedup < self.lease * 10 {
            let reason = "an id has to be recognised for longer than a hand-over takes".to_owned();
            return wrong("lease", reason, "set at most a tenth of dedup.window");
        }
        if self.prefix.is_empty() {
            return wrong("prefix", "it is empty".to_owned(), "leave it out, or name it");
        }
        if self.copy_out.iter().any(|namespace| namespace == RESERVED_NAMESPACE) {
            return wrong(
                "copy_out",
                "that namespace is the gateway's own".to_owned(),
                "leave it out",
            );
        }
        // The way back has to be one: each star from the channel's name.
        let back = |pattern: &Glob| {
            let holes: Vec<_> = self.channel.holes().collect();
            let all = (1..=pattern.stars()).all(|star| holes.contains(&&*star.to_string()));
            holes.contains(&"0") || (all && pattern.is_plain())
        };
        match self.patterns.iter().find(|pattern| !back(pattern)) {
            Some(pattern) if !self.copy_out.is_empty() => {
                let reason = format!("nothing leads from {} back to {pattern}", self.channel);
                wrong("copy_out", reason, "use each star in channel, and no ? or [ ] in patterns")
            }
            _ => Ok(()),
        }
    }
}

/// How long a node may be not ready because it does not hear the old channels.
const JOINING: Duration = Duration::from_secs(10);

/// Taking in, as this node does it.
#[derive(Debug)]
pub struct TakeIn {
    config: TakeInConfig,
    node: Arc<Node>,
    place: ConnectionInfo,
    /// This process among those that take in; never the same again.
    token: String,
    tally: Mutex<MessageSequence>,
    /// Until when this node may write.
    held: Mutex<Option<Deadline>>,
    /// When it was started.
    began: Instant,
    company: Mutex<Peers>,
    /// There may be something to write.
    due: Notify,
    /// A mark, and a try for the lease, are wanted at once.
    hurry: Notify,
    /// The last that this node will write is written.
    finished: CancellationToken,
}

/// An end by two clocks: one of them stands still while a machine sleeps.
#[derive(Clone, Copy, Debug)]
struct Deadline {
    instant: Instant,
    wall: SystemTime,
}

impl Deadline {
    fn after(time: Duration) -> Self {
        Self { instant: Instant::now() + time, wall: SystemTime::now() + time }
    }

    fn is_over(&self) -> bool {
        self.instant <= Instant::now() || self.wall <= SystemTime::now()
    }
}

impl TakeIn {
    /// Starts to listen, to hold the lease if nobody does, and to write.
    ///
    /// # Errors
    /// When the address is none.
    pub fn start(
        config: &TakeInConfig,
        node: &Arc<Node>,
        bounds: &Bounds,
        stage: &Stage,
    ) -> Result<Arc<Self>, LegacyError> {
        let url = || LegacyError::RedisUrl { url: config.url.to_string() };
        let place = config.url.info().map_err(|_| url())?;
        let taking = Ingest::new(config, bounds.clone());
        let this = Arc::new(Self {
            config: config.clone(),
            node: Arc::clone(node),
            place,
            token: Uuid::new_v4().simple().to_string(),
            tally: Mutex::new(MessageSequence::new(taking)),
            began: Instant::now(),
            held: Mutex::default(),
            company: Mutex::default(),
            due: Notify::new(),
            hurry: Notify::new(),
            finished: CancellationToken::new(),
        });
        let stop = stage.stopping();
        stage.spawn("legacy-listen", subscriber::listen(Arc::clone(&this)));
        stage.spawn("legacy-lease", lease::keep(Arc::clone(&this)));
        stage.spawn("legacy-write", writer::write(Arc::clone(&this), stop.clone()));
        if !config.copy_out.is_empty() {
            copy::start(Arc::clone(&this), stage);
        }
        Ok(this)
    }

    /// Whether another node may be stopped, as far as this one is concerned: it hears what that one
    /// hears. A Redis that is away keeps nobody waiting for long.
    pub fn has_joined(&self) -> bool {
        self.company.lock().has_joined() || JOINING < self.began.elapsed()
    }

    fn metrics(&self) -> &LegacyMetrics {
        &self.node.metrics().legacy
    }

    /// So many messages are not known to be in the logs.
    fn waiting(&self, messages: usize) {
        self.metrics().backlog.set(i64::try_from(messages).unwrap_or(i64::MAX));
    }

    /// The channel that marks are PUBLISHed to.
    fn marks(&self) -> String {
        format!("{}:marks", self.config.prefix)
    }

    /// Whether this node is the one that writes, at this moment.
    fn may_write(&self) -> bool {
        self.held.lock().is_some_and(|until| !until.is_over())
    }

    /// A connection for commands.
    async fn connect(&self) -> redis::RedisResult<MultiplexedConnection> {
        let within = self.config.lease / 3;
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(within))
            .set_response_timeout(Some(within));
        let client = Client::open(self.place.clone())?;
        client.get_multiplexed_async_connection_with_config(&config).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEDUP: Duration = Duration::from_secs(120);

    fn parsed(text: &str) -> Result<(), String> {
        let config: TakeInConfig =
            toml::from_str(&format!("url = \"redis://h\"\n{text}")).map_err(|e| e.to_string())?;
        config.check(DEDUP).map_err(|wrong| format!("{} {}", wrong.key, wrong.reason))
    }

    #[test]
    fn a_mapping_has_to_be_one() {
        assert_eq!(parsed("patterns = [\"room.*\"]\nchannel = \"room:{1}\""), Ok(()));
        assert_eq!(parsed("patterns = [\"room.*\", \"x\"]"), Ok(()));
        let error = parsed("patterns = [\"room.*\"]\nchannel = \"room:{2}\"").unwrap_err();
        assert!(error.contains("no star for {2}"), "{error}");
        assert!(parsed("patterns = []").is_err());
        assert!(parsed("patterns = [\"a\"]\nlease = \"1m\"").unwrap_err().contains("lease"));
    }

    #[test]
    fn copying_out_needs_a_way_back() {
        let copy = "copy_out = [\"room\"]\n";
        let of = |text: &str| parsed(&format!("{copy}{text}"));
        assert_eq!(of("patterns = [\"room.*\"]\nchannel = \"room:{1}\""), Ok(()));
        assert_eq!(of("patterns = [\"room:?\"]"), Ok(()));
        assert!(of("patterns = [\"*.*\"]\nchannel = \"room:{1}\"").is_err());
        assert!(of("patterns = [\"r?.*\"]\nchannel = \"room:{1}\"").is_err());
        assert!(parsed("copy_out = [\"crossfade\"]\npatterns = [\"a\"]").is_err());
    }
}
