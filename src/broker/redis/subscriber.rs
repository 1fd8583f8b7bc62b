//! Listening to one master: a connection for subscriptions alone, made anew whenever it breaks.
//!
//! It catches up with what the node wants to hear, tells when news may have been missed, and takes
//! a server that says nothing for dead.

use std::{collections::HashSet, future::Future, sync::Arc};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    command_connection::CommandConnection,
    dial::dial,
    shard::Context,
    subscriber_connection::{self, SubscriberConnection},
};
use crate::{broker::Incoming, lifecycle::Stage, protocol::Channel};

/// Orders that wait for the ear. The caller waits when they are too many.
const ORDERS: usize = 1024;

/// Hears the channels of one shard.
#[derive(Clone, Debug)]
pub(super) struct Subscriber {
    orders: mpsc::Sender<Order>,
    state: watch::Receiver<State>,
}

/// Beside which connection for writing everything wanted is heard, or why it is not.
type State = Result<u64, Arc<str>>;

/// What an ear is told.
#[derive(Debug)]
pub(super) enum Order {
    /// Hear a channel, and say when it is heard.
    Hear(Channel, oneshot::Sender<Result<(), NotSubscribed>>),
    /// Hear it no more.
    Leave(Channel),
}

/// Why a channel is not heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NotSubscribed {
    /// It lies elsewhere: ask there.
    Moved,
    /// For this reason.
    Because(Arc<str>),
}

impl Subscriber {
    /// Starts to listen.
    pub(super) fn open(
        site: &Arc<Context>,
        shard: String,
        (writing, reading): (CommandConnection, CommandConnection),
        (stage, stop): (&Stage, CancellationToken),
    ) -> Self {
        let (orders, inbox) = mpsc::channel(ORDERS);
        let (said, state) = watch::channel(Err("not listening yet".into()));
        let site = Arc::clone(site);
        let listener = Listener { site, shard, writing, reading, inbox, state: said, stop };
        stage.spawn("redis-listen", listener.listen());
        Self { orders, state }
    }

    /// Waits until the server confirmed that the channel is heard.
    pub(super) async fn hear(&self, channel: &Channel) -> Result<(), NotSubscribed> {
        let (reply, answer) = oneshot::channel();
        let lost = |_| NotSubscribed::Because("the connection for listening was lost".into());
        let order = Order::Hear(channel.clone(), reply);
        self.orders.send(order).await.map_err(|_| lost(()))?;
        answer.await.unwrap_or_else(|_| Err(lost(())))
    }

    /// Tells the server that the channel is heard no more.
    pub(super) async fn leave(&self, channel: &Channel) {
        let _ = self.orders.send(Order::Leave(channel.clone())).await;
    }

    /// How it is.
    pub(super) fn state(&self) -> State {
        self.state.borrow().clone()
    }
}

/// The task behind an [`Subscriber`].
struct Listener {
    site: Arc<Context>,
    shard: String,
    writing: CommandConnection,
    reading: CommandConnection,
    inbox: mpsc::Receiver<Order>,
    state: watch::Sender<State>,
    stop: CancellationToken,
}

impl Listener {
    async fn listen(mut self) {
        let mut backoff = self.site.backoff.clone();
        let mut warned = false;
        let stop = self.stop.clone();
        loop {
            let (writing, site) = (self.writing.clone(), Arc::clone(&self.site));
            let dialling = async {
                let line = writing.up().await?;
                Some((dial(&line.info, site.timeout).await, line.generation))
            };
            let dialled = tokio::select! {
                () = stop.cancelled() => return,
                dialled = self.refusing(dialling) => dialled,
            };
            let why = match dialled {
                None => return,
                Some((Err(error), _)) => error.to_string(),
                Some((Ok(wire), generation)) => {
                    let talk = SubscriberConnection::new(Arc::clone(&self.site), wire);
                    let why = tokio::select! {
                        () = stop.cancelled() => return,
                        why = self.converse(talk, generation) => why,
                    };
                    if self.state.borrow().is_ok() {
                        backoff.reset();
                        warned = false;
                    }
                    if self.writing.line().is_ok_and(|line| line.generation != generation) {
                        let _ = self.state.send_replace(Err("not listening yet".into()));
                        continue;
                    }
                    why
                }
            };
            if !warned {
                warn!(shard = self.shard, %why, "not listening to Redis, trying on");
                warned = true;
            }
            let _ = self.state.send_replace(Err(format!("not listening: {why}").into()));
            let pause = async { backoff.pause(&stop).await };
            if self.refusing(pause).await.is_break() {
                return;
            }
        }
    }

    /// Answers orders while there is nobody to pass them to. Those who left need no more: the ear
    /// catches up with the interest, not with the orders.
    async fn refusing<T>(&mut self, meanwhile: impl Future<Output = T>) -> T {
        tokio::pin!(meanwhile);
        loop {
            tokio::select! {
                done = &mut meanwhile => return done,
                Some(order) = self.inbox.recv() => {
                    if let Order::Hear(_, reply) = order {
                        let why = self.state.borrow().clone().err();
                        let why = why.unwrap_or_else(|| "the connection was lost".into());
                        let _ = reply.send(Err(NotSubscribed::Because(why)));
                    }
                }
            }
        }
    }

    /// Listens until the connection breaks, or the server it leads to is not the master any more.
    async fn converse(&mut self, mut talk: SubscriberConnection, generation: u64) -> String {
        let mut map = self.site.map.subscribe();
        let mut tick = subscriber_connection::ticks();
        talk.catch_up(&self.wanted());
        loop {
            if let Err(why) = talk.flush().await {
                return why;
            }
            let step = tokio::select! {
                step = talk.read() => step,
                _ = tick.tick() => talk.on_tick(),
                Some(order) = self.inbox.recv() => {
                    talk.on_order(order);
                    while let Ok(order) = self.inbox.try_recv() {
                        talk.on_order(order);
                    }
                    Ok(())
                }
                Ok(()) = map.changed() => {
                    talk.lose_track();
                    Ok(())
                }
                () = self.writing.replaced(generation) => Err("the server changed".to_owned()),
            };
            // Outside of the select: what has been read is passed up whole.
            let digested = match step {
                Ok(()) => talk.digest().await,
                Err(why) => Err(why),
            };
            if let Err(why) = digested {
                return why;
            }
            if talk.lost_track() {
                talk.catch_up(&self.wanted());
            }
            if let Some(found) = talk.caught_up() {
                self.tell(found, generation).await;
            }
        }
    }

    /// Everything wanted of this shard is heard (again).
    async fn tell(&self, found: usize, generation: u64) {
        if self.state.send_replace(Ok(generation)).is_err() {
            info!(shard = self.shard, channels = found, "listening to Redis");
        }
        if found == 0 {
            return;
        }
        // Whoever is told reads at once: not before the same server can be read.
        let readable = async {
            tokio::select! {
                () = self.reading.settled(generation) => {}
                () = self.writing.replaced(generation) => {}
            }
        };
        let _ = timeout(self.site.timeout, readable).await;
        let _ = self.site.feed.send(Incoming::Interrupted).await;
    }

    fn wanted(&self) -> HashSet<Channel> {
        let map = self.site.map();
        let mine = |channel: &Channel| map.owner(channel).is_some_and(|s| s.name == self.shard);
        let interest = self.site.interest.iter();
        interest.filter(|channel| mine(channel)).map(|channel| channel.clone()).collect()
    }
}
