//! One Redis master with the connections to it.

use std::{fmt, sync::Arc};

use tokio_util::sync::CancellationToken;

use super::{
    command_connection::{CommandConnection, Endpoint},
    context::Context,
    server::Server,
    subscriber::Subscriber,
};
use crate::lifecycle::Stage;

/// One Redis master with this broker's connections to it.
pub(super) struct Shard {
    /// Its name in errors; in a Cluster `host:port`.
    pub(super) name: String,
    /// For writes. The other two follow the server that it is connected to.
    pub(super) writing: CommandConnection,
    /// For reads, so that a large slice of a log delays no publish.
    pub(super) reading: CommandConnection,
    /// For subscriptions.
    pub(super) subscriber: Subscriber,
    stop: CancellationToken,
}

impl Shard {
    /// Starts its connections.
    pub(super) fn open(context: &Arc<Context>, server: Server, stage: &Stage) -> Arc<Self> {
        let name = server.name();
        let stop = stage.stopping().child_token();
        let connect = |task, endpoint| {
            let tracked = (stage, stop.clone());
            CommandConnection::open(
                task,
                endpoint,
                context.timeout,
                context.backoff.clone(),
                tracked,
            )
        };
        let writing = connect("redis-write", Endpoint::Server(Box::new(server)));
        let reading = connect("redis-read", Endpoint::Beside(writing.clone()));
        let connections = (writing.clone(), reading.clone());
        let subscriber =
            Subscriber::open(context, name.clone(), connections, (stage, stop.clone()));
        Arc::new(Self { name, writing, reading, subscriber, stop })
    }

    /// Ends its connections.
    pub(super) fn close(&self) {
        self.stop.cancel();
    }

    /// Why it cannot be used, if it cannot. All three connections have to lead to the same server.
    pub(super) fn failure(&self) -> Option<String> {
        let writing = self.writing.line().map(|line| line.generation);
        let others = [self.reading.line().map(|line| line.generation), self.subscriber.state()];
        let why = match (writing, others) {
            (Ok(leader), [Ok(reading), Ok(ear)]) if leader == reading && leader == ear => None,
            (Err(why), _) | (_, [Err(why), _] | [_, Err(why)]) => Some(why),
            _ => Some("another server takes its place".into()),
        };
        why.map(|why| format!("{}: {why}", self.place()))
    }

    /// What errors call it.
    pub(super) fn place(&self) -> String {
        format!("redis {}", self.name)
    }
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Shard").field(&self.name).finish()
    }
}
