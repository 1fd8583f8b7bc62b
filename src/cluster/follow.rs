//! The task that follows the nodes' log, and how a node joins the others.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, time::interval};
use tracing::{debug, info};

use super::{
    command::Command,
    message::{ClusterMessage, Payload},
    shared::{Cluster, JoiningNode, LOG},
};
use crate::{
    broker::Range,
    lifecycle::{self, Stage},
    node::follower::{Follower, Step},
    presence::{NodeId, PresenceUpdate, Snapshot},
    protocol::{Channel, Position},
};

/// Pause before the broker is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// Events read at a time to find out which nodes are alive.
const PAGE: usize = 500;

/// Follows the log and applies it.
pub(super) async fn follow(cluster: Arc<Cluster>, commands: mpsc::Sender<Command>, stage: Stage) {
    let following = async {
        let mut follower = join(&cluster).await;
        loop {
            match follower.next().await {
                Step::Event(at, event) => {
                    for command in cluster.receive(at, &event) {
                        // The receiver ends with the connections, before this.
                        let _ = commands.send(command).await;
                    }
                }
                Step::Lost(_) => {
                    info!(
                        "a part of the nodes' own log was lost: all nodes send their members again"
                    );
                    cluster.log_lost();
                    let _ = commands.send(Command::RepeatClaims).await;
                }
            }
        }
    };
    tokio::select! {
        () = following => {}
        () = stage.stopping().cancelled() => {}
    }
}

/// The channel of the nodes' own log.
pub(super) fn own_log() -> Channel {
    Channel::stored(LOG).expect("the name is valid")
}

/// Begins at the log's head, and asks the nodes that are alive for a snapshot.
async fn join(cluster: &Cluster) -> Follower {
    let log = own_log();
    let mut retry = interval(RETRY);
    loop {
        retry.tick().await;
        let Ok(follower) = Follower::at_head(&cluster.node, &log).await else { continue };
        let Some(alive) = alive(cluster, &log, follower.cursor()).await else { continue };
        let mut state = cluster.state.lock();
        let now = Instant::now();
        state.following_since = Some(now);
        for (node, _) in alive.iter().filter(|(node, _)| *node != cluster.me) {
            state.last_heard.insert(*node, now);
        }
        let others = state.last_heard.keys().filter(|node| **node != cluster.me).count();
        debug!(others, me = %cluster.me, "following the nodes' log");
        if others == 0 {
            cluster.finish_join(&mut state, Snapshot::default());
            // By the broker's clock there is no other node, but clocks may be wrong.
            cluster.send(&mut state, &Payload::Presence(PresenceUpdate::Resync));
        } else {
            state.joining = Some(JoiningNode::default());
            cluster.send(&mut state, &Payload::Presence(PresenceUpdate::NodeStarted));
        }
        return follower;
    }
}

/// The nodes that sent something within `cluster.node_timeout` and did not stop, each with the
/// position of that.
async fn alive(
    cluster: &Cluster,
    log: &Channel,
    head: Position,
) -> Option<Vec<(NodeId, Position)>> {
    let timeout = u64::try_from(cluster.config.node_timeout.as_millis()).unwrap_or(u64::MAX);
    let oldest = lifecycle::unix_ms().saturating_sub(timeout);
    let mut nodes: Vec<(NodeId, Position, bool)> = Vec::new();
    let mut until = head.offset;
    while until != 0 {
        let slice = cluster.node.read(log, Range::Until(until), PAGE).await.ok()?;
        let Some((last, _)) = slice.events.last() else { break };
        until = last - 1;
        for (offset, event) in &slice.events {
            if event.time < oldest {
                until = 0;
                break;
            }
            let Ok(message) = serde_json::from_str::<ClusterMessage>(event.data.as_str()) else {
                continue;
            };
            if nodes.iter().all(|(node, ..)| *node != message.from) {
                let stopped =
                    message.payloads.contains(&Payload::Presence(PresenceUpdate::NodeStopped));
                nodes.push((message.from, Position::new(slice.epoch, *offset), stopped));
            }
        }
    }
    let alive = nodes.into_iter().filter(|(.., stopped)| !stopped);
    Some(alive.map(|(node, at, _)| (node, at)).collect())
}

impl Cluster {
    /// A part of the log is gone: all nodes send their members again.
    fn log_lost(&self) {
        let mut state = self.state.lock();
        let now = Instant::now();
        state.last_heard.values_mut().for_each(|heard| *heard = now);
        if let Some(joining) = &mut state.joining {
            joining.received.clear();
        }
        self.send_local_members(&mut state);
        self.send(&mut state, &Payload::Presence(PresenceUpdate::Resync));
    }
}
