//! One connection for subscriptions: which channels are subscribed to, which requests wait for the
//! server's confirmation, and whether the server is alive.

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
    context::Context,
    dial::Wire,
    library,
    resp::{self, Reply},
    subscription::{NotSubscribed, SubscriptionRequest},
};
use crate::{broker::Incoming, protocol::Channel};

/// Unconfirmed subscriptions while catching up.
const UNCONFIRMED_MAX: usize = 512;
/// Free bytes of the read buffer, at least.
const READ_BYTES: usize = 64 * 1024;
/// After this many ticks without a byte, a PING among them, the server is dead.
const QUIET_TICKS: u32 = 3;

/// The ticks by which [`SubscriberConnection::on_tick`] has to be called.
pub(super) fn ticks() -> Interval {
    let mut tick = interval(Duration::from_secs(1));
    // After a wait for the node there is one tick, not many: the silence was not the server's.
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

/// A connection to a server.
pub(super) struct SubscriberConnection {
    context: Arc<Context>,
    wire: Box<dyn Wire>,
    inbox: BytesMut,
    outbox: BytesMut,
    /// Requests without an answer: the server answers in order.
    unconfirmed: VecDeque<Unconfirmed>,
    /// Channels by the name of their Pub/Sub channel.
    subscribed: HashMap<Bytes, Channel>,
    /// Still to be subscribed to.
    todo: Vec<Channel>,
    catching_up: Option<CatchingUp>,
    sync: SyncState,
    received: bool,
    quiet_ticks: u32,
}

enum Unconfirmed {
    Subscribe { name: Bytes, channel: Channel, cause: Cause },
    Unsubscribe { name: Bytes },
    Ping,
}

enum Cause {
    Requested(oneshot::Sender<Result<(), NotSubscribed>>),
    CatchingUp,
}

#[derive(Default)]
struct CatchingUp {
    left: usize,
    found: usize,
}

/// Whether the subscribed channels are the wanted ones.
#[derive(PartialEq, Eq)]
enum SyncState {
    InSync,
    /// To be checked with the next tick.
    Doubtful,
    OutOfSync,
}

impl SubscriberConnection {
    pub(super) fn new(context: Arc<Context>, wire: Box<dyn Wire>) -> Self {
        Self {
            context,
            wire,
            inbox: BytesMut::new(),
            outbox: BytesMut::new(),
            unconfirmed: VecDeque::new(),
            subscribed: HashMap::new(),
            todo: Vec::new(),
            catching_up: None,
            sync: SyncState::InSync,
            received: false,
            quiet_ticks: 0,
        }
    }

    /// Subscribes to what is wanted and unsubscribes from what is not.
    pub(super) fn catch_up(&mut self, wanted: &HashSet<Channel>) {
        self.sync = SyncState::InSync;
        let subscribed: HashSet<Channel> = self.subscribed.values().cloned().collect();
        self.todo = wanted.difference(&subscribed).cloned().collect();
        self.catching_up = Some(CatchingUp { left: self.todo.len(), found: 0 });
        for channel in subscribed.difference(wanted) {
            self.unsubscribe(channel);
        }
    }

    /// Once after each [`catch_up`](Self::catch_up): how many channels it subscribed to.
    pub(super) fn caught_up(&mut self) -> Option<usize> {
        self.catching_up.take_if(|round| round.left == 0).map(|round| round.found)
    }

    /// The subscribed channels may not be the wanted ones any more.
    pub(super) fn mark_out_of_sync(&mut self) {
        self.sync = SyncState::OutOfSync;
    }

    /// Whether it is time to [`catch_up`](Self::catch_up).
    pub(super) fn is_out_of_sync(&self) -> bool {
        self.sync == SyncState::OutOfSync && self.catching_up.is_none()
    }

    pub(super) fn on_request(&mut self, request: SubscriptionRequest) {
        match request {
            SubscriptionRequest::Unsubscribe(channel) => self.unsubscribe(&channel),
            SubscriptionRequest::Subscribe(channel, reply)
                if self.subscribed.contains_key(&*self.pubsub_name(&channel)) =>
            {
                let _ = reply.send(Ok(()));
            }
            SubscriptionRequest::Subscribe(channel, reply) => {
                self.subscribe(channel, Cause::Requested(reply));
            }
        }
    }

    /// Fails when the server has been silent for too long.
    pub(super) fn on_tick(&mut self) -> Result<(), String> {
        if self.sync == SyncState::Doubtful {
            self.sync = SyncState::OutOfSync;
        }
        self.quiet_ticks =
            if std::mem::take(&mut self.received) { 0 } else { self.quiet_ticks + 1 };
        if QUIET_TICKS < self.quiet_ticks {
            return Err(format!("the server has been silent for {} s", self.quiet_ticks));
        }
        if self.quiet_ticks == 1 {
            resp::put(&mut self.outbox, &[b"PING"]);
            self.unconfirmed.push_back(Unconfirmed::Ping);
        }
        Ok(())
    }

    /// Sends queued commands.
    pub(super) async fn flush(&mut self) -> Result<(), String> {
        while self.unconfirmed.len() < UNCONFIRMED_MAX
            && let Some(channel) = self.todo.pop()
        {
            self.subscribe(channel, Cause::CatchingUp);
        }
        let sending = async {
            self.wire.write_all_buf(&mut self.outbox).await?;
            self.wire.flush().await
        };
        let sent = timeout(self.context.timeout, sending).await;
        sent.map_err(|_| "it accepts no commands".to_owned())?.map_err(|error| error.to_string())
    }

    /// Waits for bytes. Cancel-safe.
    pub(super) async fn read(&mut self) -> Result<(), String> {
        self.inbox.reserve(READ_BYTES);
        match self.wire.read_buf(&mut self.inbox).await {
            Ok(0) => Err("the connection was closed".to_owned()),
            Ok(_) => {
                self.received = true;
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Processes what has been read: notifications go up the feed. Waits for the node.
    pub(super) async fn process(&mut self) -> Result<(), String> {
        while let Some(reply) =
            resp::take(&mut self.inbox).map_err(|_| "the server does not speak RESP")?
        {
            let texts = match reply {
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
                (Some(b"message" | b"smessage"), Some(name), Some(payload)) => {
                    self.on_notification(name, payload).await?;
                }
                (Some(b"subscribe" | b"ssubscribe"), Some(name), _) => self.on_subscribed(name),
                (Some(b"unsubscribe" | b"sunsubscribe"), Some(name), _) => {
                    self.on_unsubscribed(name)
                }
                _ => self.on_pong(),
            }
        }
        Ok(())
    }

    async fn on_notification(&mut self, name: &Bytes, payload: &Bytes) -> Result<(), String> {
        let Some(channel) = self.subscribed.get(name).cloned() else { return Ok(()) };
        let Some(entry) = library::notification(channel, payload) else {
            debug!(
                channel = %String::from_utf8_lossy(name),
                "a Pub/Sub message is no notification of the function library: ignored"
            );
            return Ok(());
        };
        let sent = self.context.feed.send(Incoming::Entry(entry)).await;
        sent.map_err(|_| "the node has stopped".to_owned())
    }

    fn on_subscribed(&mut self, name: &Bytes) {
        if !matches!(self.unconfirmed.front(), Some(Unconfirmed::Subscribe { name: first, .. }) if first == name)
        {
            return;
        }
        if let Some(Unconfirmed::Subscribe { name, channel, cause }) = self.unconfirmed.pop_front()
        {
            self.subscribed.insert(name, channel);
            self.complete(cause, Ok(()));
        }
    }

    fn on_unsubscribed(&mut self, name: &Bytes) {
        self.subscribed.remove(name);
        if matches!(self.unconfirmed.front(), Some(Unconfirmed::Unsubscribe { name: first }) if first == name)
        {
            self.unconfirmed.pop_front();
        } else {
            // The channel's slot has moved to another shard.
            self.sync = SyncState::Doubtful;
            self.context.stale.notify_one();
        }
    }

    fn on_pong(&mut self) {
        if matches!(self.unconfirmed.front(), Some(Unconfirmed::Ping)) {
            self.unconfirmed.pop_front();
        }
    }

    fn on_error(&mut self, message: &Bytes) -> Result<(), String> {
        let text = String::from_utf8_lossy(message);
        let Some(Unconfirmed::Subscribe { cause, .. }) = self.unconfirmed.pop_front() else {
            return Err(text.into_owned());
        };
        let moved = ["MOVED", "ASK", "CLUSTERDOWN"].iter().any(|code| text.starts_with(code));
        if moved {
            self.context.stale.notify_one();
        }
        let reason =
            if moved { NotSubscribed::Moved } else { NotSubscribed::Because((*text).into()) };
        self.complete(cause, Err(reason));
        Ok(())
    }

    fn complete(&mut self, cause: Cause, outcome: Result<(), NotSubscribed>) {
        let round = match cause {
            Cause::Requested(reply) => return drop(reply.send(outcome)),
            Cause::CatchingUp => self.catching_up.get_or_insert_default(),
        };
        round.left = round.left.saturating_sub(1);
        match outcome {
            Ok(()) => round.found += 1,
            Err(_) => self.sync = SyncState::Doubtful,
        }
    }

    fn subscribe(&mut self, channel: Channel, cause: Cause) {
        let name = self.pubsub_name(&channel);
        let verb: &[u8] = if self.context.sharded { b"SSUBSCRIBE" } else { b"SUBSCRIBE" };
        resp::put(&mut self.outbox, &[verb, &name]);
        self.unconfirmed.push_back(Unconfirmed::Subscribe { name, channel, cause });
    }

    fn unsubscribe(&mut self, channel: &Channel) {
        let name = self.pubsub_name(channel);
        let verb: &[u8] = if self.context.sharded { b"SUNSUBSCRIBE" } else { b"UNSUBSCRIBE" };
        resp::put(&mut self.outbox, &[verb, &name]);
        self.subscribed.remove(&name);
        self.unconfirmed.push_back(Unconfirmed::Unsubscribe { name });
    }

    fn pubsub_name(&self, channel: &Channel) -> Bytes {
        self.context.keys.head(channel).into()
    }
}
