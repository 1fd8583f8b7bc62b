//! Shadow mode: users stay with the old server, and what it sends them is compared with the logs
//! before anybody moves.
//!
//! A number of streams is read as they pass, without being held up: what cannot be kept up with is
//! left out, and said so. The comparison itself is [`compare`](super::compare)'s.

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

use self::report::{ChannelFigures, Figures};
pub use self::{
    report::Report,
    tee_body::{Held, TeeBody},
};
use super::{
    Bounds, Impossible, JsonPath,
    compare::{Comparer, Finding, Kind, PATIENCE, Seen},
    sse,
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
    /// How many of the old server's streams this node compares at a time.
    pub streams: usize,
    /// By how much the log may be later than the old server.
    #[serde(with = "humantime_serde")]
    pub within: Duration,
    /// Events of the old server's own that no publisher sent, by their name: a greeting, a ping.
    pub ignore: Vec<String>,
}

impl Default for ShadowConfig {
    fn default() -> Self {
        Self { streams: 16, within: Duration::from_secs(2), ignore: Vec::new() }
    }
}

impl ShadowConfig {
    pub(super) fn check(&self) -> Result<(), Impossible> {
        let key = |name| format!("legacy.shadow.{name}");
        if self.within < Duration::from_millis(10) {
            return Err(Impossible::new(key("within"), "it is too short", "set at least 10ms"));
        }
        if STREAMS_MAX < self.streams {
            let remedy = format!("set at most {STREAMS_MAX}: a sample is enough");
            return Err(Impossible::new(key("streams"), "that is too many", remedy));
        }
        Ok(())
    }
}

/// Each stream compared reads its channels' logs.
const STREAMS_MAX: usize = 1000;
/// Pieces of a stream that wait to be read.
const PIECES: usize = 1024;
/// Events of a channel's past that an old server may send to whoever comes.
const PAST: usize = 256;
/// Characters of an event that are shown.
const SHOWN: usize = 200;

/// Compares streams of the old server's with the logs.
#[derive(Debug)]
pub struct Shadow {
    config: ShadowConfig,
    id: Option<JsonPath>,
    most: usize,
    node: Arc<Node>,
    stage: Stage,
    slots: Arc<Semaphore>,
    figures: Mutex<Figures>,
    since: u64,
}

/// A place among the streams that are compared, for one of these channels.
#[derive(Debug)]
pub struct Slot {
    shadow: Arc<Shadow>,
    channels: Vec<Channel>,
    _place: OwnedSemaphorePermit,
}

impl Shadow {
    /// Nothing compared yet. `id` is where in the events their id stands.
    pub fn new(
        config: &ShadowConfig,
        id: Option<JsonPath>,
        node: &Arc<Node>,
        bounds: &Bounds,
        stage: &Stage,
    ) -> Self {
        let slots = Arc::new(Semaphore::new(config.streams));
        let figures = Mutex::default();
        // An old server may wrap an event into something.
        let most = bounds.event_bytes * 2;
        let (config, node, stage) = (config.clone(), Arc::clone(node), stage.clone());
        Self { config, id, most, node, stage, slots, figures, since: unix_ms() }
    }

    /// A place for a stream of these channels, while there is one.
    pub fn slot(self: &Arc<Self>, channels: Vec<Channel>) -> Option<Slot> {
        let place = Arc::clone(&self.slots).try_acquire_owned().ok();
        if place.is_none() {
            self.figures.lock().not_compared += 1;
        }
        place.map(|_place| Slot { shadow: Arc::clone(self), channels, _place })
    }

    /// What has been found so far.
    pub fn report(&self) -> Report {
        let figures = self.figures.lock().clone();
        let comparing = self.config.streams - self.slots.available_permits();
        Report {
            node: Arc::clone(self.node.name()),
            since: self.since,
            comparing,
            streams: figures.compared,
            streams_not_compared: figures.not_compared,
            clean: figures.channels.values().all(ChannelFigures::is_clean),
            channels: figures.channels,
        }
    }

    fn seen(&self, data: &str) -> Seen {
        let parsed = serde_json::from_str::<Value>(data).ok();
        let id = self.id.as_ref().zip(parsed.as_ref()).and_then(|(path, value)| path.find(value));
        let mut hasher = DefaultHasher::new();
        match &parsed {
            // A text that a publisher sent bare is a JSON text in the log.
            Some(Value::String(text)) => text.hash(&mut hasher),
            // Written anew, so that spaces and the order of keys make no difference.
            Some(value) => value.to_string().hash(&mut hasher),
            None => data.hash(&mut hasher),
        }
        Seen { id, print: hasher.finish(), data: data.chars().take(SHOWN).collect() }
    }

    fn count(&self, name: &str, findings: Vec<(Option<&str>, Finding)>) {
        if findings.is_empty() {
            return;
        }
        let mut figures = self.figures.lock();
        for (channel, Finding { kind, seen, .. }) in findings {
            self.node.metrics().legacy.compared(kind.as_str());
            figures.of(channel.unwrap_or(name)).add(kind, seen);
        }
    }
}

/// A channel's log going on: which of the channels, and what is next.
type Logs = Pin<Box<dyn Stream<Item = (usize, Step)> + Send>>;

/// Follows one stream to its end, and until all that it sent is judged.
async fn compare(slot: Slot, mut pieces: mpsc::Receiver<(Instant, Bytes)>) {
    let shadow = Arc::clone(&slot.shadow);
    let (logs, past) = match follow(&shadow.node, &slot.channels).await {
        Ok(followed) => followed,
        Err(error) => return debug!(%error, "a stream is not compared: its logs cannot be read"),
    };
    shadow.figures.lock().compared += 1;
    let mut overheard = Comparison::new(&slot);
    for (channel, offset, event) in past {
        overheard.logged(channel, offset, &event, true);
    }
    let mut tick = interval(shadow.config.within.clamp(TICK_MIN, TICK_MAX));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut logs = logs;
    let mut ended = None;
    loop {
        tokio::select! {
            () = shadow.stage.stopping().cancelled() => break,
            piece = pieces.recv(), if ended.is_none() => match piece {
                Some((at, piece)) => overheard.sent(at, &piece),
                None => {
                    overheard.comparer.end();
                    ended = Some(Instant::now());
                }
            },
            Some((channel, step)) = logs.next() => match step {
                Step::Event(position, event) => {
                    overheard.logged(channel, position.offset, &event, ended.is_some());
                }
                // What cannot be read cannot be compared either.
                Step::Lost(_) => break,
            },
            _ = tick.tick() => {
                overheard.judge();
                let patience = shadow.config.within * u32::try_from(PATIENCE).unwrap_or(u32::MAX);
                if ended.is_some_and(|at| overheard.comparer.is_settled() || patience * 2 < at.elapsed()) {
                    break;
                }
            }
        }
    }
    overheard.tell();
}

const TICK_MIN: Duration = Duration::from_millis(10);
const TICK_MAX: Duration = Duration::from_millis(250);

/// Some of a channel's past: its number, offsets and events.
type Past = Vec<(usize, u64, Event)>;

async fn follow(node: &Arc<Node>, channels: &[Channel]) -> Result<(Logs, Past), BrokerError> {
    let (mut logs, mut past) = (Vec::new(), Vec::new());
    for (number, channel) in channels.iter().enumerate() {
        let follower = Follower::at_head(node, channel).await?;
        let until = Range::Until(follower.cursor().offset);
        let slice = node.read(channel, until, PAST).await?;
        // Oldest first, as they will be looked for.
        past.extend(slice.events.into_iter().rev().map(|(offset, event)| (number, offset, event)));
        logs.push(stream::unfold(follower, move |mut follower| async move {
            Some(((number, follower.next().await), follower))
        }));
    }
    Ok((Box::pin(stream::select_all(logs.into_iter().map(Box::pin))), past))
}

/// One stream, as far as it has been compared.
struct Comparison<'a> {
    slot: &'a Slot,
    name: String,
    reading: sse::Reading,
    too_large: u64,
    comparer: Comparer,
    found: Vec<Finding>,
    begin: Instant,
}

impl<'a> Comparison<'a> {
    fn new(slot: &'a Slot) -> Self {
        let names: Vec<_> = slot.channels.iter().map(Channel::as_str).collect();
        let within = slot.shadow.config.within.as_millis();
        Self {
            slot,
            name: names.join(" "),
            reading: sse::Reading::new(slot.shadow.most),
            too_large: 0,
            comparer: Comparer::new(u64::try_from(within).unwrap_or(u64::MAX)),
            found: Vec::new(),
            begin: Instant::now(),
        }
    }

    fn clock(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.begin).as_millis()).unwrap_or(u64::MAX)
    }

    /// A piece of the old server's stream passed.
    fn sent(&mut self, at: Instant, piece: &[u8]) {
        let now = self.clock(at);
        let shadow = &self.slot.shadow;
        let ignored = |name: &Option<String>| {
            name.as_ref().is_some_and(|name| shadow.config.ignore.contains(name))
        };
        let (comparer, found) = (&mut self.comparer, &mut self.found);
        self.reading.push(piece, |block| {
            if !ignored(&block.name) {
                comparer.sent(shadow.seen(&block.data), now, found);
            }
        });
        let too_large = std::mem::replace(&mut self.too_large, self.reading.too_large());
        for _ in too_large..self.too_large {
            let seen = Seen { id: None, print: 0, data: "(too large)".to_owned() };
            self.found.push(Finding { kind: Kind::Skipped, channel: None, seen });
        }
        self.tell();
    }

    fn logged(&mut self, channel: usize, offset: u64, event: &Event, free: bool) {
        let seen = self.slot.shadow.seen(event.data.as_str());
        let now = self.clock(Instant::now());
        self.comparer.logged((channel, offset), seen, (now, free), &mut self.found);
        self.tell();
    }

    fn judge(&mut self) {
        self.comparer.judge(self.clock(Instant::now()), &mut self.found);
        self.tell();
    }

    fn tell(&mut self) {
        let channels = &self.slot.channels;
        let of = |finding: &Finding| finding.channel.map(|number| channels[number].as_str());
        let found = self.found.drain(..).map(|finding| (of(&finding), finding)).collect();
        self.slot.shadow.count(&self.name, found);
    }
}
