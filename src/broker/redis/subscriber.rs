//! The subscriber of one shard: a connection for subscriptions alone, re-established whenever it
//! breaks.
//!
//! It catches up with the channels that the node subscribes to, reports when notifications may have
//! been missed, and takes a silent server for dead.

use std::{collections::HashSet, future::Future, sync::Arc};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    command_connection::CommandConnection,
    context::Context,
    dial::dial,
    subscriber_connection::{self, SubscriberConnection},
    subscription::{NotSubscribed, SubscriptionRequest},
};
use crate::{broker::Incoming, lifecycle::Stage, protocol::Channel};

/// Orders that wait for the ear. The caller waits when they are too many.
const REQUESTS: usize = 1024;

/// Subscribes to the channels of one shard.
#[derive(Clone, Debug)]
pub(super) struct Subscriber {
    requests: mpsc::Sender<SubscriptionRequest>,
    state: watch::Receiver<State>,
}

/// The generation of the write connection beside which all wanted channels are subscribed to, or why
/// they are not.
type State = Result<u64, Arc<str>>;

impl Subscriber {
    /// Starts to subscribe.
    pub(super) fn open(
        context: &Arc<Context>,
        shard: String,
        (writing, reading): (CommandConnection, CommandConnection),
        (stage, stop): (&Stage, CancellationToken),
    ) -> Self {
        let (requests, inbox) = mpsc::channel(REQUESTS);
        let (sender, state) = watch::channel(Err("not subscribed yet".into()));
        let context = Arc::clone(context);
        let listener = Listener { context, shard, writing, reading, inbox, state: sender, stop };
        stage.spawn("redis-subscribe", listener.run());
        Self { requests, state }
    }

    /// Subscribes to a channel. Returns when the server has confirmed it.
    pub(super) async fn subscribe(&self, channel: &Channel) -> Result<(), NotSubscribed> {
        let (reply, answer) = oneshot::channel();
        let lost = |_| NotSubscribed::Because("the connection for subscriptions was lost".into());
        let request = SubscriptionRequest::Subscribe(channel.clone(), reply);
        self.requests.send(request).await.map_err(|_| lost(()))?;
        answer.await.unwrap_or_else(|_| Err(lost(())))
    }

    /// Unsubscribes from a channel.
    pub(super) async fn unsubscribe(&self, channel: &Channel) {
        let _ = self.requests.send(SubscriptionRequest::Unsubscribe(channel.clone())).await;
    }

    /// Its state.
    pub(super) fn state(&self) -> State {
        self.state.borrow().clone()
    }
}

/// The task behind a [`Subscriber`].
struct Listener {
    context: Arc<Context>,
    shard: String,
    writing: CommandConnection,
    reading: CommandConnection,
    inbox: mpsc::Receiver<SubscriptionRequest>,
    state: watch::Sender<State>,
    stop: CancellationToken,
}

impl Listener {
    async fn run(mut self) {
        let mut backoff = self.context.backoff.clone();
        let mut warned = false;
        let stop = self.stop.clone();
        loop {
            let (writing, context) = (self.writing.clone(), Arc::clone(&self.context));
            let dialling = async {
                let line = writing.up().await?;
                Some((dial(&line.info, context.timeout).await, line.generation))
            };
            let dialled = tokio::select! {
                () = stop.cancelled() => return,
                dialled = self.refusing(dialling) => dialled,
            };
            let why = match dialled {
                None => return,
                Some((Err(error), _)) => error.to_string(),
                Some((Ok(wire), generation)) => {
                    let connection = SubscriberConnection::new(Arc::clone(&self.context), wire);
                    let why = tokio::select! {
                        () = stop.cancelled() => return,
                        why = self.serve(connection, generation) => why,
                    };
                    if self.state.borrow().is_ok() {
                        backoff.reset();
                        warned = false;
                    }
                    if self.writing.line().is_ok_and(|line| line.generation != generation) {
                        let _ = self.state.send_replace(Err("not subscribed yet".into()));
                        continue;
                    }
                    why
                }
            };
            if !warned {
                warn!(shard = self.shard, %why, "the subscription connection to Redis is lost; retrying");
                warned = true;
            }
            let _ = self.state.send_replace(Err(format!("not subscribed: {why}").into()));
            let pause = async { backoff.pause(&stop).await };
            if self.refusing(pause).await.is_break() {
                return;
            }
        }
    }

    /// Refuses requests while there is no connection. Unsubscribing needs no more: the next connection
    /// catches up with the interest, not with the requests.
    async fn refusing<T>(&mut self, meanwhile: impl Future<Output = T>) -> T {
        tokio::pin!(meanwhile);
        loop {
            tokio::select! {
                done = &mut meanwhile => return done,
                Some(request) = self.inbox.recv() => {
                    if let SubscriptionRequest::Subscribe(_, reply) = request {
                        let why = self.state.borrow().clone().err();
                        let why = why.unwrap_or_else(|| "the connection was lost".into());
                        let _ = reply.send(Err(NotSubscribed::Because(why)));
                    }
                }
            }
        }
    }

    /// Serves requests until the connection breaks or its server is no longer the master.
    async fn serve(&mut self, mut connection: SubscriberConnection, generation: u64) -> String {
        let mut slots = self.context.slots.subscribe();
        let mut tick = subscriber_connection::ticks();
        connection.catch_up(&self.wanted());
        loop {
            if let Err(why) = connection.flush().await {
                return why;
            }
            let step = tokio::select! {
                step = connection.read() => step,
                _ = tick.tick() => connection.on_tick(),
                Some(request) = self.inbox.recv() => {
                    connection.on_request(request);
                    while let Ok(request) = self.inbox.try_recv() {
                        connection.on_request(request);
                    }
                    Ok(())
                }
                Ok(()) = slots.changed() => {
                    connection.mark_out_of_sync();
                    Ok(())
                }
                () = self.writing.replaced(generation) => Err("the server changed".to_owned()),
            };
            // Outside of the select: received notifications are passed up whole.
            let processed = match step {
                Ok(()) => connection.process().await,
                Err(why) => Err(why),
            };
            if let Err(why) = processed {
                return why;
            }
            if connection.is_out_of_sync() {
                connection.catch_up(&self.wanted());
            }
            if let Some(found) = connection.caught_up() {
                self.report(found, generation).await;
            }
        }
    }

    /// All wanted channels of this shard are subscribed to (again): what came in between was missed.
    async fn report(&self, found: usize, generation: u64) {
        if self.state.send_replace(Ok(generation)).is_err() {
            info!(shard = self.shard, channels = found, "subscribed to Redis");
        }
        if found == 0 {
            return;
        }
        // The node reads at once: not before the same server can be read.
        let readable = async {
            tokio::select! {
                () = self.reading.settled(generation) => {}
                () = self.writing.replaced(generation) => {}
            }
        };
        let _ = timeout(self.context.timeout, readable).await;
        let _ = self.context.feed.send(Incoming::Interrupted).await;
    }

    fn wanted(&self) -> HashSet<Channel> {
        let slots = self.context.slots();
        let mine = |channel: &Channel| slots.owner(channel) == Some(self.shard.as_str());
        let interest = self.context.interest.iter();
        interest.filter(|channel| mine(channel)).map(|channel| channel.clone()).collect()
    }
}
