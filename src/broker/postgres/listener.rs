//! Hears the news: one connection that listens, and the proof that it does. Knows nothing of what
//! is published by whom.

use std::{collections::HashMap, convert::Infallible, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_postgres::{Notification, types::Type};
use tracing::{info, warn};

use super::{
    failure::{Backoff, Failure},
    health::{HealthTracker, Part},
    interest::{Hearing, Interest, Shard},
    logs, notification,
    pool::{Params, Pool},
    session::{Session, Target},
};
use crate::{
    broker::{Entry, Incoming},
    protocol::{Channel, Position},
};

/// How often the node rings its own bell.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);

/// How long the echo may take.
const ECHO_PATIENCE: Duration = Duration::from_secs(3);

/// How often heads are asked for when LISTEN does not work.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

const RING: &str = "select pg_notify($1, $2)";

/// Hears the news.
pub(super) struct Listener {
    pub(super) target: Target,
    pub(super) pool: Pool,
    pub(super) ears: Arc<Interest>,
    pub(super) probe: Arc<Probe>,
    pub(super) feed: mpsc::Sender<Incoming>,
    pub(super) vitals: Arc<HealthTracker>,
    pub(super) backoff: Backoff,
    /// Heads as last told while LISTEN does not work.
    pub(super) polled: HashMap<Channel, Position>,
}

impl Listener {
    /// Hears until nobody takes the news any more.
    pub(super) async fn run(mut self) {
        let taker_gone = self.feed.clone();
        tokio::select! {
            () = self.hear_on() => {}
            () = taker_gone.closed() => {}
        }
    }

    async fn hear_on(&mut self) {
        let mut missed = false;
        loop {
            let ended = match self.connect(missed).await {
                Ok(mut session) => {
                    self.backoff.reset();
                    self.vitals.up(Part::Listener);
                    self.hear(&mut session).await
                }
                Err(trouble) => Err(trouble),
            };
            let Err(trouble) = ended;
            missed = true;
            self.ears.lost();
            self.vitals.down(Part::Listener, &trouble);
            self.backoff.pause().await;
        }
    }

    /// Connects, listens to all it should, and finds out whether anything is heard that way. Only
    /// then, and when the logs can be read, is an interruption over.
    async fn connect(&mut self, missed: bool) -> Result<Session, Failure> {
        let mut session = Session::open(&self.target).await?;
        let node = &self.probe.channel;
        let client = session.client();
        session.drive(client.batch_execute(&format!("listen {node}"))).await?;
        self.probe.ring(&self.pool).await?;
        let echo = async {
            while session.notification().await?.channel() != node {}
            Ok::<_, Failure>(())
        };
        match timeout(ECHO_PATIENCE, echo).await {
            Ok(heard) => {
                heard?;
                self.probe.heard();
                self.relisten(&mut session).await?;
            }
            Err(_) => {
                warn!(
                    listen = self.target.label(),
                    "LISTEN does not work through this connection, as is so with a transaction \
                     pooler: set broker.postgres.listen_url to a direct connection to the same \
                     database; until then heads are polled"
                );
                self.polled.clear();
                self.ears.deaf();
            }
        }
        if missed {
            self.tell(Incoming::Interrupted).await?;
        }
        Ok(session)
    }

    async fn hear(&mut self, session: &mut Session) -> Result<Infallible, Failure> {
        let mut check = interval(PROBE_INTERVAL / 2);
        let mut poll = interval(POLL_INTERVAL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ears = Arc::clone(&self.ears);
        loop {
            let deaf = ears.hearing() == Hearing::Deaf;
            tokio::select! {
                heard = session.notification() => self.on_bell(session, &heard?).await?,
                () = ears.changed(), if !deaf => self.relisten(session).await?,
                _ = check.tick(), if !deaf => self.probe.check()?,
                _ = poll.tick(), if deaf => self.poll().await?,
            }
        }
    }

    async fn on_bell(&mut self, session: &mut Session, bell: &Notification) -> Result<(), Failure> {
        if bell.channel() != self.probe.channel {
            for news in notification::news(bell.payload()) {
                self.tell(news).await?;
            }
            return Ok(());
        }
        self.probe.heard();
        if self.ears.hearing() == Hearing::Deaf {
            info!(listen = self.target.label(), "LISTEN works again");
            self.ears.lost();
            self.relisten(session).await?;
            self.tell(Incoming::Interrupted).await?;
        }
        Ok(())
    }

    async fn relisten(&self, session: &mut Session) -> Result<(), Failure> {
        let plan = self.ears.plan();
        let order = |verb: &str, shards: &[Shard]| -> String {
            shards.iter().map(|shard| format!("{verb} crossfade_{shard};")).collect()
        };
        let orders = order("unlisten", &plan.unlisten) + &order("listen", &plan.listen);
        if !orders.is_empty() {
            let client = session.client();
            session.drive(client.batch_execute(&orders)).await?;
        }
        self.ears.confirm(&plan.listen);
        Ok(())
    }

    async fn poll(&mut self) -> Result<(), Failure> {
        let channels = self.ears.channels();
        let heads = logs::heads(&self.pool, &channels).await?;
        let mut polled = HashMap::with_capacity(heads.len());
        for (channel, position) in heads {
            if self.polled.get(&channel) != Some(&position) {
                self.tell(Incoming::Head { channel: channel.clone(), position }).await?;
            }
            polled.insert(channel, position);
        }
        self.polled = polled;
        Ok(())
    }

    /// Hands up what the node wants to hear. A node that takes nothing for too long is told of an
    /// interruption instead: the server keeps for everybody what one connection has not fetched.
    async fn tell(&self, news: Incoming) -> Result<(), Failure> {
        let (Incoming::Entry(Entry { channel, .. }) | Incoming::Head { channel, .. }) = &news
        else {
            // Nothing may take its place, so it waits for as long as it takes.
            let _ = self.feed.send(news).await;
            return Ok(());
        };
        if !self.ears.wants(channel) {
            return Ok(());
        }
        match timeout(self.target.timeout, self.feed.send(news)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Failure::Other("the node is too slow to take the news".to_owned())),
        }
    }
}

/// The node's own bell: rung through the pool, heard by the listener, or something is wrong.
#[derive(Debug)]
pub(super) struct Probe {
    channel: String,
    rung: parking_lot::Mutex<Option<Instant>>,
}

impl Probe {
    /// A bell that nobody else rings.
    pub(super) fn new() -> Self {
        let channel = format!("crossfade_node_{:016x}", rand::random::<u64>());
        Self { channel, rung: parking_lot::Mutex::new(None) }
    }

    /// Rings every now and then. When that fails nothing is learnt of listening.
    pub(super) async fn keep_ringing(&self, pool: &Pool) {
        let mut tick = interval(PROBE_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let _ = self.ring(pool).await;
        }
    }

    async fn ring(&self, pool: &Pool) -> Result<(), Failure> {
        let began = Instant::now();
        let first = *self.rung.lock().get_or_insert(began);
        let params: &Params<'_> = &[(&self.channel, Type::TEXT), (&"", Type::TEXT)];
        let rung = pool.ask(RING, params).await;
        if rung.is_err() && first == began {
            self.heard();
        }
        rung.map(|_| ())
    }

    fn heard(&self) {
        *self.rung.lock() = None;
    }

    fn check(&self) -> Result<(), Failure> {
        match *self.rung.lock() {
            Some(rung) if ECHO_PATIENCE < rung.elapsed() => {
                Err(Failure::Other("the listening connection has fallen silent".to_owned()))
            }
            _ => Ok(()),
        }
    }
}
