//! One listening connection, from the first subscription to its end: who asked for what, what is
//! heard, and whether the other side still lives.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::oneshot,
    time::{Interval, MissedTickBehavior, interval, timeout},
};
use tracing::debug;

use super::{
    dial::Wire,
    library,
    resp::{self, Reply},
    shard::Context,
    subscriber::{NotSubscribed, Order},
};
use crate::{broker::Incoming, protocol::Channel};

/// Subscriptions under way while catching up.
const ASKED_AT_ONCE: usize = 512;
/// Read at once, at least.
const READ_BYTES: usize = 64 * 1024;
/// After so many ticks without a byte, a PING among them, the other side is dead.
const QUIET_TICKS: u32 = 3;

/// What [`SubscriberConnection::on_tick`] is to be called by.
pub(super) fn ticks() -> Interval {
    let mut tick = interval(Duration::from_secs(1));
    // After a wait for the node there is one tick, not many: the silence was ours.
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

/// A conversation with a server.
pub(super) struct SubscriberConnection {
    site: Arc<Context>,
    wire: Box<dyn Wire>,
    inbox: BytesMut,
    outbox: BytesMut,
    /// The server answers in order.
    asked: VecDeque<Asked>,
    /// By the name of the bell.
    heard: HashMap<Bytes, Channel>,
    /// Still to be asked for.
    todo: Vec<Channel>,
    catching_up: Option<CatchingUp>,
    track: SyncState,
    byte_came: bool,
    quiet: u32,
}

enum Asked {
    Hear { bell: Bytes, channel: Channel, why: Why },
    Leave { bell: Bytes },
    Ping,
}

enum Why {
    Ordered(oneshot::Sender<Result<(), NotSubscribed>>),
    CatchingUp,
}

#[derive(Default)]
struct CatchingUp {
    left: usize,
    found: usize,
}

/// Whether what is heard is what is wanted.
#[derive(PartialEq, Eq)]
enum SyncState {
    Kept,
    /// To be looked at with the next tick.
    Doubtful,
    Lost,
}

impl SubscriberConnection {
    pub(super) fn new(site: Arc<Context>, wire: Box<dyn Wire>) -> Self {
        Self {
            site,
            wire,
            inbox: BytesMut::new(),
            outbox: BytesMut::new(),
            asked: VecDeque::new(),
            heard: HashMap::new(),
            todo: Vec::new(),
            catching_up: None,
            track: SyncState::Kept,
            byte_came: false,
            quiet: 0,
        }
    }

    /// Hears what is wanted and not heard, leaves what is heard and not wanted.
    pub(super) fn catch_up(&mut self, wanted: &HashSet<Channel>) {
        self.track = SyncState::Kept;
        let heard: HashSet<Channel> = self.heard.values().cloned().collect();
        self.todo = wanted.difference(&heard).cloned().collect();
        self.catching_up = Some(CatchingUp { left: self.todo.len(), found: 0 });
        for channel in heard.difference(wanted) {
            self.leave(channel);
        }
    }

    /// Once after each [`catch_up`](Self::catch_up): how many channels it made heard.
    pub(super) fn caught_up(&mut self) -> Option<usize> {
        self.catching_up.take_if(|round| round.left == 0).map(|round| round.found)
    }

    /// What is heard may be less than what is wanted.
    pub(super) fn lose_track(&mut self) {
        self.track = SyncState::Lost;
    }

    /// It is time to [`catch_up`](Self::catch_up).
    pub(super) fn lost_track(&self) -> bool {
        self.track == SyncState::Lost && self.catching_up.is_none()
    }

    pub(super) fn on_order(&mut self, order: Order) {
        match order {
            Order::Leave(channel) => self.leave(&channel),
            Order::Hear(channel, reply) if self.heard.contains_key(&*self.bell(&channel)) => {
                let _ = reply.send(Ok(()));
            }
            Order::Hear(channel, reply) => self.ask(channel, Why::Ordered(reply)),
        }
    }

    /// Errs when the other side has been silent for too long.
    pub(super) fn on_tick(&mut self) -> Result<(), String> {
        if self.track == SyncState::Doubtful {
            self.track = SyncState::Lost;
        }
        self.quiet = if std::mem::take(&mut self.byte_came) { 0 } else { self.quiet + 1 };
        if QUIET_TICKS < self.quiet {
            return Err(format!("no sign of life for {} s", self.quiet));
        }
        if self.quiet == 1 {
            resp::put(&mut self.outbox, &[b"PING"]);
            self.asked.push_back(Asked::Ping);
        }
        Ok(())
    }

    /// Sends what has been written.
    pub(super) async fn flush(&mut self) -> Result<(), String> {
        while self.asked.len() < ASKED_AT_ONCE
            && let Some(channel) = self.todo.pop()
        {
            self.ask(channel, Why::CatchingUp);
        }
        let sending = async {
            self.wire.write_all_buf(&mut self.outbox).await?;
            self.wire.flush().await
        };
        let sent = timeout(self.site.timeout, sending).await;
        sent.map_err(|_| "it takes no commands".to_owned())?.map_err(|error| error.to_string())
    }

    /// Waits for bytes. Cancel-safe.
    pub(super) async fn read(&mut self) -> Result<(), String> {
        self.inbox.reserve(READ_BYTES);
        match self.wire.read_buf(&mut self.inbox).await {
            Ok(0) => Err("the connection was closed".to_owned()),
            Ok(_) => {
                self.byte_came = true;
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Understands what has been read, and passes news up. Waits for the node.
    pub(super) async fn digest(&mut self) -> Result<(), String> {
        while let Some(said) = resp::take(&mut self.inbox).map_err(|_| "this is no Redis")? {
            let texts = match said {
                Reply::Status => {
                    self.on_pong();
                    continue;
                }
                Reply::Error(why) => {
                    self.on_error(&why)?;
                    continue;
                }
                Reply::Array(texts) => texts,
            };
            match (texts.first().map(|kind| &**kind), texts.get(1), texts.get(2)) {
                (Some(b"message" | b"smessage"), Some(bell), Some(payload)) => {
                    self.on_bell(bell, payload).await?;
                }
                (Some(b"subscribe" | b"ssubscribe"), Some(bell), _) => self.on_heard(bell),
                (Some(b"unsubscribe" | b"sunsubscribe"), Some(bell), _) => self.on_left(bell),
                _ => self.on_pong(),
            }
        }
        Ok(())
    }

    async fn on_bell(&mut self, bell: &Bytes, payload: &Bytes) -> Result<(), String> {
        let Some(channel) = self.heard.get(bell).cloned() else { return Ok(()) };
        let Some(entry) = library::news(channel, payload) else {
            debug!(bell = %String::from_utf8_lossy(bell), "somebody else rang the bell");
            return Ok(());
        };
        let sent = self.site.feed.send(Incoming::Entry(entry)).await;
        sent.map_err(|_| "nobody wants the news any more".to_owned())
    }

    fn on_heard(&mut self, bell: &Bytes) {
        if !matches!(self.asked.front(), Some(Asked::Hear { bell: asked, .. }) if asked == bell) {
            return;
        }
        if let Some(Asked::Hear { bell, channel, why }) = self.asked.pop_front() {
            self.heard.insert(bell, channel);
            self.settle(why, Ok(()));
        }
    }

    fn on_left(&mut self, bell: &Bytes) {
        self.heard.remove(bell);
        if matches!(self.asked.front(), Some(Asked::Leave { bell: asked }) if asked == bell) {
            self.asked.pop_front();
        } else {
            // The server gave the channel's slot away.
            self.track = SyncState::Doubtful;
            self.site.stale.notify_one();
        }
    }

    fn on_pong(&mut self) {
        if matches!(self.asked.front(), Some(Asked::Ping)) {
            self.asked.pop_front();
        }
    }

    fn on_error(&mut self, why: &Bytes) -> Result<(), String> {
        let text = String::from_utf8_lossy(why);
        let Some(Asked::Hear { why: asked, .. }) = self.asked.pop_front() else {
            return Err(text.into_owned());
        };
        let astray = ["MOVED", "ASK", "CLUSTERDOWN"].iter().any(|code| text.starts_with(code));
        if astray {
            self.site.stale.notify_one();
        }
        let reason =
            if astray { NotSubscribed::Moved } else { NotSubscribed::Because((*text).into()) };
        self.settle(asked, Err(reason));
        Ok(())
    }

    fn settle(&mut self, why: Why, outcome: Result<(), NotSubscribed>) {
        let round = match why {
            Why::Ordered(reply) => return drop(reply.send(outcome)),
            Why::CatchingUp => self.catching_up.get_or_insert_default(),
        };
        round.left = round.left.saturating_sub(1);
        match outcome {
            Ok(()) => round.found += 1,
            Err(_) => self.track = SyncState::Doubtful,
        }
    }

    fn ask(&mut self, channel: Channel, why: Why) {
        let bell = self.bell(&channel);
        let verb: &[u8] = if self.site.sharded { b"SSUBSCRIBE" } else { b"SUBSCRIBE" };
        resp::put(&mut self.outbox, &[verb, &bell]);
        self.asked.push_back(Asked::Hear { bell, channel, why });
    }

    fn leave(&mut self, channel: &Channel) {
        let bell = self.bell(channel);
        let verb: &[u8] = if self.site.sharded { b"SUNSUBSCRIBE" } else { b"UNSUBSCRIBE" };
        resp::put(&mut self.outbox, &[verb, &bell]);
        self.heard.remove(&bell);
        self.asked.push_back(Asked::Leave { bell });
    }

    fn bell(&self, channel: &Channel) -> Bytes {
        self.site.keys.head(channel).into()
    }
}
