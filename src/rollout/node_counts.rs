//! How many are where, node by node: each says its own figures in the store, and hears the others'.
//!
//! Figures expire by themselves, so a node that is gone stops counting. A user with connections to
//! two nodes is counted on each.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tracing::debug;

use crate::{broker::Store, lifecycle::Stage};

/// One node's figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeCounts {
    /// Which node.
    pub id: String,
    /// What it is called.
    pub node: String,
    /// When they were taken, in milliseconds since 1970, by the node's clock.
    pub at: u64,
    /// The rollout's version that they were taken by.
    pub version: u64,
    /// Clients on WebSocket.
    pub websocket: u64,
    /// Clients on SSE.
    pub sse: u64,
    /// Of those on SSE: clients that cannot be asked to move, such as a plain `EventSource`.
    pub plain: u64,
    /// Different users with a client here.
    pub users: u64,
    /// Of those, how many belong on the new side.
    pub users_new: u64,
    /// Of those, how many are compared with them.
    pub users_control: u64,
    /// Clients whose user belongs on the new side, and that are on the old one.
    pub behind: u64,
    /// Clients whose user belongs on the old side, and that are on the new one.
    pub ahead: u64,
    /// Clients that wait to be asked to move.
    pub pending: u64,
    /// Clients that were asked to move since the node started.
    pub asked: u64,
    /// Clients that came over by plan since the node started.
    pub moved: u64,
}

/// Says this node's figures, and knows those of all.
#[derive(Debug)]
pub struct NodeCountsTable {
    mine: watch::Sender<NodeCounts>,
    all: watch::Sender<Vec<NodeCounts>>,
}

const KEY: &str = "nodes/";

/// How often figures are said and heard.
const EVERY: Duration = Duration::from_millis(500);

/// How long they count.
const KEEP: Duration = Duration::from_secs(5);

impl NodeCountsTable {
    /// Begins to say and to hear.
    pub fn start(store: Arc<dyn Store>, stage: &Stage) -> Arc<Self> {
        let this = Arc::new(Self { mine: watch::Sender::default(), all: watch::Sender::default() });
        let (node_counts, stopping) = (Arc::clone(&this), stage.stopping().clone());
        stage.spawn("node_counts", async move {
            let _ = stopping.run_until_cancelled(node_counts.exchange(&*store)).await;
        });
        this
    }

    /// These are this node's figures now.
    pub fn say(&self, tally: NodeCounts) {
        self.mine.send_replace(tally);
    }

    /// This node's figures.
    pub fn mine(&self) -> NodeCounts {
        self.mine.borrow().clone()
    }

    /// The figures of all nodes, as last heard.
    pub fn all(&self) -> Vec<NodeCounts> {
        let mine = self.mine();
        let mut all: Vec<_> = self.others().into_iter().collect();
        if !mine.id.is_empty() {
            all.push(mine);
        }
        all.sort_unstable_by(|a, b| a.node.cmp(&b.node));
        all
    }

    /// The figures of the other nodes, as last heard.
    pub fn others(&self) -> Vec<NodeCounts> {
        let me = self.mine.borrow().id.clone();
        self.all.borrow().iter().filter(|tally| tally.id != me).cloned().collect()
    }

    async fn exchange(&self, store: &dyn Store) {
        let mut tick = interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let mine = self.mine();
            if mine.id.is_empty() {
                continue;
            }
            let value = serde_json::to_string(&mine).unwrap_or_default();
            if let Err(err) = store.tell(&format!("{KEY}{}", mine.id), &value, KEEP).await {
                debug!(%err, "figures could not be said");
                continue;
            }
            match store.told(KEY).await {
                Ok(told) => {
                    let read = told.iter().filter_map(|(_, text)| serde_json::from_str(text).ok());
                    self.all.send_replace(read.collect());
                }
                Err(err) => debug!(%err, "figures could not be heard"),
            }
        }
    }
}

/// What became of a percentage: what it says, whom it means, and who is there already.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// The share of users that belongs on the new side, as it is set, in percent.
    pub target_percentage: f64,
    /// The share of the users who are here now, in percent.
    pub assigned_users_percentage: f64,
    /// The share of connections that are on the new side now, in percent.
    pub live_connections_percentage: f64,
    /// Users who are here now.
    pub users: u64,
    /// Clients on WebSocket.
    pub websocket: u64,
    /// Clients on SSE.
    pub sse: u64,
    /// Of those: clients that cannot be asked to move.
    pub plain: u64,
    /// Clients on the old side whose user belongs on the new one.
    pub behind: u64,
    /// Clients on the new side whose user belongs on the old one.
    pub ahead: u64,
    /// Clients that wait to be asked to move.
    pub pending: u64,
    /// Node by node.
    pub nodes: Vec<NodeCounts>,
}

impl Figures {
    /// The sums of all nodes.
    pub fn new(target_percentage: f64, nodes: Vec<NodeCounts>) -> Self {
        let sum = |of: fn(&NodeCounts) -> u64| nodes.iter().map(of).sum::<u64>();
        let percent = |part: u64, of: u64| match of {
            0 => 0.0,
            of => (part as f64 / of as f64 * 100_000.0).round() / 1000.0,
        };
        let (websocket, sse) = (sum(|node| node.websocket), sum(|node| node.sse));
        let users = sum(|node| node.users);
        Self {
            target_percentage,
            assigned_users_percentage: percent(sum(|node| node.users_new), users),
            live_connections_percentage: percent(websocket, websocket + sse),
            users,
            websocket,
            sse,
            plain: sum(|node| node.plain),
            behind: sum(|node| node.behind),
            ahead: sum(|node| node.ahead),
            pending: sum(|node| node.pending),
            nodes,
        }
    }
}

/// The part of the cluster's pace that is this node's: by the clients of all nodes where some still
/// wait. How many wait changes faster than nodes can tell each other, how many clients they have does
/// not. A node that has not counted by this version yet may have some who wait.
pub fn share(mine: &NodeCounts, others: &[NodeCounts]) -> f64 {
    if mine.pending == 0 {
        return 0.0;
    }
    let clients = |node: &NodeCounts| (node.websocket + node.sse).max(1);
    let waits = |other: &&NodeCounts| other.version < mine.version || 0 < other.pending;
    let elsewhere: u64 = others.iter().filter(waits).map(clients).sum();
    clients(mine) as f64 / (clients(mine) + elsewhere) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_shared_by_the_clients_of_those_where_some_wait() {
        let node =
            |sse, pending, version| NodeCounts { sse, pending, version, ..NodeCounts::default() };
        assert_eq!(share(&node(30, 9, 2), &[node(10, 1, 2)]), 0.75);
        assert_eq!(share(&node(30, 9, 2), &[node(10, 0, 2)]), 1.0);
        assert_eq!(share(&node(30, 9, 2), &[node(30, 0, 1)]), 0.5);
        assert_eq!(share(&node(30, 0, 2), &[node(10, 10, 2)]), 0.0);
        assert_eq!(share(&node(5, 5, 2), &[]), 1.0);
    }
}
