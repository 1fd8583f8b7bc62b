//! Shadow mode: users stay on the upstream, and a sample of its streams is compared with the logs.
//!
//! The chunks of a proxied stream are copied to a comparison task that never delays the stream: a
//! stream whose comparison falls behind is dropped from it. Which events match is decided in
//! [`compare`](super::compare).

mod report;
mod tee_body;

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, MissedTickBehavior, interval},
};
use tracing::debug;

use self::report::{ChannelStats, ShadowStats};
pub use self::{
    report::Report,
    tee_body::{GuardedBody, TeeBody},
};
use super::{
    GatewaySettings, InvalidSetting, JsonPath,
    compare::{ComparedEvent, Comparer, Finding, GRACE_FACTOR, Outcome},
    sse::SseParser,
};
use crate::{
    broker::{BrokerError, Range},
    lifecycle::{Stage, unix_ms},
    node::{
        Node,
        follower::{Follower, Step},
    },
    protocol::{Channel, Event},
};

/// Section `[legacy.shadow]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShadowConfig {
    /// Limit of streams that this node compares at a time; 0 to 1000.
    pub streams: usize,
    /// How much later than the upstream the log may have an event; at least 10 ms.
    #[serde(with = "humantime_serde")]
    pub within: Duration,
    /// Names of events that the upstream sends on its own account and that are not compared: a
    /// greeting, a ping.
    pub ignore: Vec<String>,
}

impl Default for ShadowConfig {
    fn default() -> Self {
        Self { streams: 16, within: Duration::from_secs(2), ignore: Vec::new() }
    }
}

impl ShadowConfig {
    pub(super) fn check(&self) -> Result<(), InvalidSetting> {
        let key = |name| format!("legacy.shadow.{name}");
        if self.within < Duration::from_millis(10) {
            return Err(InvalidSetting::new(key("within"), "it is too short", "set at least 10ms"));
        }
        if STREAMS_MAX < self.streams {
            let remedy = format!("set at most {STREAMS_MAX}: a sample is enough");
            return Err(InvalidSetting::new(key("streams"), "it is too large", remedy));
        }
        Ok(())
    }
}

/// Upper bound of `legacy.shadow.streams`: each compared stream reads its channels' logs.
const STREAMS_MAX: usize = 1000;
/// Chunks of a stream that may wait for the comparison.
const QUEUE_CHUNKS: usize = 1024;
/// Past events per channel that the upstream may replay to a new client.
const REPLAY_EVENTS: usize = 256;
/// Characters of a payload that are shown in samples.
const SAMPLE_CHARS: usize = 200;

/// Compares proxied streams with the logs.
#[derive(Debug)]
pub struct Shadow {
    config: ShadowConfig,
    id: Option<JsonPath>,
    max_event_bytes: usize,
    node: Arc<Node>,
    stage: Stage,
    slots: Arc<Semaphore>,
    stats: Mutex<ShadowStats>,
    since: u64,
}

/// One of the `legacy.shadow.streams` slots, for a stream of these channels; released on drop.
#[derive(Debug)]
pub struct Slot {
    shadow: Arc<Shadow>,
    channels: Vec<Channel>,
    _permit: OwnedSemaphorePermit,
}

impl Shadow {
    /// Compares nothing until a [`slot`](Self::slot) is taken. `id` is the path of the message id in
    /// payloads.
    pub fn new(
        config: &ShadowConfig,
        id: Option<JsonPath>,
        node: &Arc<Node>,
        settings: &GatewaySettings,
        stage: &Stage,
    ) -> Self {
        let slots = Arc::new(Semaphore::new(config.streams));
        let stats = Mutex::default();
        // Twice the limit, because the upstream may wrap a payload in an envelope.
        let max_event_bytes = settings.event_bytes * 2;
        let (config, node, stage) = (config.clone(), Arc::clone(node), stage.clone());
        Self { config, id, max_event_bytes, node, stage, slots, stats, since: unix_ms() }
    }

    /// A slot for a stream of these channels; none while all are taken, which is counted.
    pub fn slot(self: &Arc<Self>, channels: Vec<Channel>) -> Option<Slot> {
        let permit = Arc::clone(&self.slots).try_acquire_owned().ok();
        if permit.is_none() {
            self.stats.lock().not_compared += 1;
        }
        permit.map(|_permit| Slot { shadow: Arc::clone(self), channels, _permit })
    }

    /// The statistics so far.
    pub fn report(&self) -> Report {
        let stats = self.stats.lock().clone();
        let comparing = self.config.streams - self.slots.available_permits();
        Report {
            node: Arc::clone(self.node.name()),
            since: self.since,
            comparing,
            streams: stats.compared,
            streams_not_compared: stats.not_compared,
            clean: stats.channels.values().all(ChannelStats::is_clean),
            channels: stats.channels,
        }
    }

    fn compared_event(&self, data: &str) -> ComparedEvent {
        let parsed = serde_json::from_str::<Value>(data).ok();
        let id = self.id.as_ref().zip(parsed.as_ref()).and_then(|(path, value)| path.find(value));
        let mut hasher = DefaultHasher::new();
        match &parsed {
            // A payload that is not JSON is a JSON string in the log: hash the text in both cases.
            Some(Value::String(text)) => text.hash(&mut hasher),
            // Serialized again, so that whitespace and key order make no difference.
            Some(value) => value.to_string().hash(&mut hasher),
            None => data.hash(&mut hasher),
        }
        let content_hash = hasher.finish();
        ComparedEvent { id, content_hash, data: data.chars().take(SAMPLE_CHARS).collect() }
    }

    fn count(&self, stream_name: &str, findings: Vec<(Option<&str>, Finding)>) {
        if findings.is_empty() {
            return;
        }
        let mut stats = self.stats.lock();
        for (channel, Finding { outcome, event, .. }) in findings {
            self.node.metrics().legacy.compared(outcome.as_str());
            stats.channel(channel.unwrap_or(stream_name)).add(outcome, event);
        }
    }
}

/// The next step of any of the channels' logs, with the channel's index.
type LogSteps = Pin<Box<dyn Stream<Item = (usize, Step)> + Send>>;

/// Compares one stream until it has ended and each of its events has an outcome.
async fn compare(slot: Slot, mut chunks: mpsc::Receiver<(Instant, Bytes)>) {
    let shadow = Arc::clone(&slot.shadow);
    let (mut logs, past) = match follow(&shadow.node, &slot.channels).await {
        Ok(followed) => followed,
        Err(error) => return debug!(%error, "shadow: stream not compared, its logs are unreadable"),
    };
    shadow.stats.lock().compared += 1;
    let mut comparison = Comparison::new(&slot);
    for (channel, offset, event) in past {
        comparison.logged(channel, offset, &event, true);
    }
    let mut tick = interval(shadow.config.within.clamp(TICK_MIN, TICK_MAX));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ended = None;
    loop {
        tokio::select! {
            () = shadow.stage.stopping().cancelled() => break,
            chunk = chunks.recv(), if ended.is_none() => match chunk {
                Some((at, chunk)) => comparison.sent(at, &chunk),
                None => {
                    comparison.comparer.end();
                    ended = Some(Instant::now());
                }
            },
            Some((channel, step)) = logs.next() => match step {
                Step::Event(position, event) => {
                    comparison.logged(channel, position.offset, &event, ended.is_some());
                }
                // Part of the log cannot be read: comparing on would report false losses.
                Step::Lost(_) => break,
            },
            _ = tick.tick() => {
                comparison.expire();
                let factor = u32::try_from(GRACE_FACTOR).unwrap_or(u32::MAX);
                let grace = shadow.config.within * factor;
                let settled = |at: Instant| {
                    comparison.comparer.is_settled() || grace * 2 < at.elapsed()
                };
                if ended.is_some_and(settled) {
                    break;
                }
            }
        }
    }
    comparison.flush();
}

const TICK_MIN: Duration = Duration::from_millis(10);
const TICK_MAX: Duration = Duration::from_millis(250);

/// Past events of the channels: channel index, offset, event.
type PastEvents = Vec<(usize, u64, Event)>;

/// Follows the channels' logs from their heads, and reads the events before that the upstream may
/// replay.
async fn follow(
    node: &Arc<Node>,
    channels: &[Channel],
) -> Result<(LogSteps, PastEvents), BrokerError> {
    let (mut logs, mut past) = (Vec::new(), Vec::new());
    for (index, channel) in channels.iter().enumerate() {
        let follower = Follower::at_head(node, channel).await?;
        let until_head = Range::Until(follower.cursor().offset);
        let slice = node.read(channel, until_head, REPLAY_EVENTS).await?;
        // Oldest first, because the comparison matches the oldest first.
        past.extend(slice.events.into_iter().rev().map(|(offset, event)| (index, offset, event)));
        logs.push(stream::unfold(follower, move |mut follower| async move {
            Some(((index, follower.next().await), follower))
        }));
    }
    Ok((Box::pin(stream::select_all(logs.into_iter().map(Box::pin))), past))
}

/// The comparison of one stream, from bytes to findings.
struct Comparison<'a> {
    slot: &'a Slot,
    /// The channels' names, joined with spaces.
    stream_name: String,
    parser: SseParser,
    too_large: u64,
    comparer: Comparer,
    findings: Vec<Finding>,
    started_at: Instant,
}

impl<'a> Comparison<'a> {
    fn new(slot: &'a Slot) -> Self {
        let names: Vec<_> = slot.channels.iter().map(Channel::as_str).collect();
        let within = slot.shadow.config.within.as_millis();
        Self {
            slot,
            stream_name: names.join(" "),
            parser: SseParser::new(slot.shadow.max_event_bytes),
            too_large: 0,
            comparer: Comparer::new(u64::try_from(within).unwrap_or(u64::MAX)),
            findings: Vec::new(),
            started_at: Instant::now(),
        }
    }

    /// Milliseconds since the comparison began.
    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.started_at).as_millis()).unwrap_or(u64::MAX)
    }

    /// Adds a chunk of the upstream's stream.
    fn sent(&mut self, at: Instant, chunk: &[u8]) {
        let now = self.millis(at);
        let shadow = &self.slot.shadow;
        let is_ignored = |name: &Option<String>| {
            name.as_ref().is_some_and(|name| shadow.config.ignore.contains(name))
        };
        let (comparer, findings) = (&mut self.comparer, &mut self.findings);
        self.parser.push(chunk, |event| {
            if !is_ignored(&event.name) {
                comparer.sent(shadow.compared_event(&event.data), now, findings);
            }
        });
        let before = std::mem::replace(&mut self.too_large, self.parser.too_large());
        for _ in before..self.too_large {
            let data = "(too large)".to_owned();
            let event = ComparedEvent { id: None, content_hash: 0, data };
            self.findings.push(Finding { outcome: Outcome::Skipped, channel: None, event });
        }
        self.flush();
    }

    fn logged(&mut self, channel: usize, offset: u64, event: &Event, optional: bool) {
        let event = self.slot.shadow.compared_event(event.data.as_str());
        let now = self.millis(Instant::now());
        self.comparer.logged((channel, offset), event, (now, optional), &mut self.findings);
        self.flush();
    }

    fn expire(&mut self) {
        self.comparer.expire(self.millis(Instant::now()), &mut self.findings);
        self.flush();
    }

    /// Moves the findings to the statistics and metrics.
    fn flush(&mut self) {
        let channels = &self.slot.channels;
        let channel_of = |finding: &Finding| finding.channel.map(|index| channels[index].as_str());
        let findings =
            self.findings.drain(..).map(|finding| (channel_of(&finding), finding)).collect();
        self.slot.shadow.count(&self.stream_name, findings);
    }
}
