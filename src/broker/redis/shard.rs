//! One master with the connections to it, and the map that tells on which of them a channel lies.

use std::{fmt, sync::Arc, time::Duration};

use dashmap::DashSet;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    backoff::Backoff,
    command_connection::{CommandConnection, Endpoint},
    library::Keys,
    server::Server,
    subscriber::Subscriber,
};
use crate::{broker::Incoming, lifecycle::Stage, protocol::Channel};

/// What the parts of one broker share.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) keys: Keys,
    /// Bells ring on the shard of the channel, not everywhere.
    pub(super) sharded: bool,
    pub(super) timeout: Duration,
    pub(super) backoff: Backoff,
    /// What the node wants to hear. Ears catch up with it.
    pub(super) interest: DashSet<Channel>,
    pub(super) feed: mpsc::Sender<Incoming>,
    pub(super) map: watch::Sender<Arc<Map>>,
    /// The map does not fit what a server said.
    pub(super) stale: Notify,
}

impl Context {
    pub(super) fn map(&self) -> Arc<Map> {
        Arc::clone(&self.map.borrow())
    }

    /// Waits for another map, a moment at most.
    pub(super) async fn remap(&self, deadline: Instant) {
        let mut map = self.map.subscribe();
        self.stale.notify_one();
        let moment = Instant::now() + Duration::from_secs(1);
        let _ = timeout_at(deadline.min(moment), map.changed()).await;
    }
}

/// A master, or what stands for the only one.
pub(super) struct Shard {
    /// For a person; in a Cluster `host:port`.
    pub(super) name: String,
    /// For writing. Leads the two others.
    pub(super) writing: CommandConnection,
    /// For reading, so that a large piece of a log holds up no publication.
    pub(super) reading: CommandConnection,
    /// For listening.
    pub(super) ear: Subscriber,
    stop: CancellationToken,
}

impl Shard {
    /// Starts its connections.
    pub(super) fn open(site: &Arc<Context>, server: Server, stage: &Stage) -> Arc<Self> {
        let name = server.name();
        let stop = stage.stopping().child_token();
        let link = |task, towards| {
            let tracked = (stage, stop.clone());
            CommandConnection::open(task, towards, site.timeout, site.backoff.clone(), tracked)
        };
        let writing = link("redis-write", Endpoint::Server(Box::new(server)));
        let reading = link("redis-read", Endpoint::Beside(writing.clone()));
        let links = (writing.clone(), reading.clone());
        let ear = Subscriber::open(site, name.clone(), links, (stage, stop.clone()));
        Arc::new(Self { name, writing, reading, ear, stop })
    }

    /// Ends its connections.
    pub(super) fn close(&self) {
        self.stop.cancel();
    }

    /// Why it cannot be used, if so. All three connections have to lead to the same server.
    pub(super) fn trouble(&self) -> Option<String> {
        let writing = self.writing.line().map(|line| line.generation);
        let others = [self.reading.line().map(|line| line.generation), self.ear.state()];
        let why = match (writing, others) {
            (Ok(leader), [Ok(reading), Ok(ear)]) if leader == reading && leader == ear => None,
            (Err(why), _) | (_, [Err(why), _] | [_, Err(why)]) => Some(why),
            _ => Some("another server takes its place".into()),
        };
        why.map(|why| format!("{}: {why}", self.place()))
    }

    /// Which and where, for an error.
    pub(super) fn place(&self) -> String {
        format!("redis {}", self.name)
    }
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Shard").field(&self.name).finish()
    }
}

/// Which shard keeps a channel.
#[derive(Debug, Default)]
pub(super) struct Map {
    pub(super) shards: Vec<Arc<Shard>>,
    /// For each slot the index of its shard. Without any, the only shard has them all.
    pub(super) slots: Vec<Option<u16>>,
}

impl Map {
    /// The shard of a channel, if there is one at the moment.
    pub(super) fn owner(&self, channel: &Channel) -> Option<&Arc<Shard>> {
        if self.slots.is_empty() {
            return self.shards.first();
        }
        let index = self.slots[usize::from(slot(channel.as_str()))]?;
        self.shards.get(usize::from(index))
    }
}

/// How many slots a Cluster has.
pub(super) const SLOTS: usize = 16_384;

/// The slot of a hash tag: CRC16 (XMODEM) modulo the number of slots.
pub(super) fn slot(tag: &str) -> u16 {
    let crc = tag.bytes().fold(0u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    });
    crc % SLOTS as u16
}

#[cfg(test)]
mod tests {
    #[test]
    fn slots_are_those_of_the_cluster_specification() {
        assert_eq!(super::slot("123456789"), 0x31C3);
        assert_eq!(super::slot("foo"), 12182);
    }
}
