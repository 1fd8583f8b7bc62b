//! One connection for commands, made anew whenever it breaks, for as long as the gateway runs.
//!
//! redis-rs' own manager gives up after six tries and then says nothing; this one never does, and
//! knows why it is down.

use std::{sync::Arc, time::Duration};

use redis::{ConnectionInfo, Role, aio::MultiplexedConnection};
use tokio::{
    sync::{Notify, watch},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    backoff::Backoff,
    library,
    server::{Server, connect, place},
};
use crate::lifecycle::Stage;

/// How often a connection is asked whether it still leads to a master.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// A connection that comes back.
#[derive(Clone, Debug)]
pub(super) struct CommandConnection {
    state: watch::Receiver<State>,
    doubt: Arc<Notify>,
}

/// What there is of it now. The connection and its server, or the reason.
pub(super) type State = Result<Line, Arc<str>>;

/// A connection that was up a moment ago.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// To send commands over.
    pub(super) connection: MultiplexedConnection,
    /// Where it leads.
    pub(super) info: Arc<ConnectionInfo>,
    /// Differs for each connection, and is the leader's where it follows one.
    pub(super) generation: u64,
}

/// How to reach the server.
#[derive(Clone, Debug)]
pub(super) enum Endpoint {
    /// On its own.
    Server(Box<Server>),
    /// Wherever this other link leads, and anew whenever that is made anew.
    Beside(CommandConnection),
}

impl Endpoint {
    fn name(&self) -> String {
        match self {
            Self::Server(server) => server.name(),
            Self::Beside(_) => "the same".to_owned(),
        }
    }
}

impl CommandConnection {
    /// Starts to connect.
    pub(super) fn open(
        name: &'static str,
        towards: Endpoint,
        within: Duration,
        backoff: Backoff,
        (stage, stop): (&Stage, CancellationToken),
    ) -> Self {
        let (sender, state) = watch::channel(Err("not connected yet".into()));
        let doubt = Arc::new(Notify::new());
        let keeper =
            Keeper { name, towards, within, stop, state: sender, doubt: Arc::clone(&doubt) };
        stage.spawn(name, keeper.keep(backoff));
        Self { state, doubt }
    }

    /// The connection, or why there is none.
    pub(super) fn line(&self) -> State {
        self.state.borrow().clone()
    }

    /// Tells that the connection failed somebody: it is probed at once.
    pub(super) fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// Waits for a connection.
    pub(super) async fn up(&self) -> Option<Line> {
        let mut state = self.state.clone();
        let up = state.wait_for(State::is_ok).await.ok()?;
        up.as_ref().ok().cloned()
    }

    /// Waits for the connection of `generation`.
    pub(super) async fn settled(&self, generation: u64) {
        let mut state = self.state.clone();
        let same = |state: &State| state.as_ref().is_ok_and(|line| line.generation == generation);
        let _ = state.wait_for(same).await;
    }

    /// Waits until there is another connection than that of `generation`.
    pub(super) async fn replaced(&self, generation: u64) {
        let mut state = self.state.clone();
        let newer = |state: &State| state.as_ref().is_ok_and(|line| line.generation != generation);
        if state.wait_for(newer).await.is_err() {
            std::future::pending().await
        }
    }
}

/// The task behind a [`CommandConnection`].
struct Keeper {
    name: &'static str,
    towards: Endpoint,
    within: Duration,
    stop: CancellationToken,
    state: watch::Sender<State>,
    doubt: Arc<Notify>,
}

impl Keeper {
    async fn keep(self, backoff: Backoff) {
        self.keep_up(backoff).await;
        // Lets go of the connection too.
        let _ = self.state.send_replace(Err("the gateway parts from it".into()));
    }

    async fn keep_up(&self, mut backoff: Backoff) {
        let mut warned = false;
        loop {
            let opened = tokio::select! {
                () = self.stop.cancelled() => return,
                opened = self.connect() => opened,
            };
            let why = match opened {
                Ok(line) => {
                    backoff.reset();
                    info!(link = self.name, server = place(&line.info), "connected to Redis");
                    warned = false;
                    let _ = self.state.send_replace(Ok(line.clone()));
                    tokio::select! {
                        () = self.stop.cancelled() => return,
                        why = self.watch(line) => why,
                    }
                }
                Err(why) => why,
            };
            if !warned && !self.follows_one_that_is_down() {
                warn!(link = self.name, server = self.towards.name(), %why, "no connection to Redis, trying on");
                warned = true;
            }
            let _ = self.state.send_replace(Err(why.into()));
            if backoff.pause(&self.stop).await.is_break() {
                return;
            }
        }
    }

    async fn connect(&self) -> Result<Line, String> {
        let (info, generation) = match &self.towards {
            Endpoint::Server(server) => (Arc::new(server.find(self.within).await?), rand::random()),
            Endpoint::Beside(leader) => {
                let line = leader.up().await.ok_or("the gateway is stopping")?;
                (line.info, line.generation)
            }
        };
        let connecting = async {
            let mut connection = connect(&info, self.within).await.map_err(|e| e.to_string())?;
            probe(&mut connection).await?;
            library::ensure(&mut connection).await.map_err(|e| e.to_string())?;
            Ok(connection)
        };
        let connected = timeout(self.within, connecting).await.map_err(|_| no_answer(self.within));
        match connected.and_then(|connected| connected) {
            Ok(connection) => Ok(Line { connection, info, generation }),
            Err(why) => Err(self.at(&info, &why)),
        }
    }

    /// Then that one has said already what there is to say.
    fn follows_one_that_is_down(&self) -> bool {
        matches!(&self.towards, Endpoint::Beside(leader) if leader.line().is_err())
    }

    /// Says which server it was where the shard's name does not.
    fn at(&self, info: &ConnectionInfo, why: &str) -> String {
        match &self.towards {
            Endpoint::Server(server) if matches!(**server, Server::Master { .. }) => {
                format!("{}: {why}", place(info))
            }
            _ => why.to_owned(),
        }
    }

    /// Returns why the connection is not to be used any longer.
    async fn watch(&self, mut line: Line) -> String {
        let mut tick = interval(PROBE_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let replaced = async {
            match &self.towards {
                Endpoint::Server(_) => std::future::pending().await,
                Endpoint::Beside(leader) => leader.replaced(line.generation).await,
            }
        };
        tokio::pin!(replaced);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.doubt.notified() => {}
                () = &mut replaced => return "another server takes its place".to_owned(),
            }
            let probed = timeout(self.within, probe(&mut line.connection)).await;
            if let Err(why) = probed.unwrap_or_else(|_| Err(no_answer(self.within))) {
                return self.at(&line.info, &why);
            }
        }
    }
}

fn no_answer(within: Duration) -> String {
    format!("no answer within {}", humantime::format_duration(within))
}

async fn probe(connection: &mut MultiplexedConnection) -> Result<(), String> {
    match redis::cmd("ROLE").query_async(connection).await {
        Ok(Role::Primary { .. }) => Ok(()),
        Ok(_) => Err("is a replica, a master is needed".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
