//! What the nodes of one gateway tell each other, over a log of their own: a channel like any other.
//!
//! One log gives all nodes the same messages in the same order, whatever the broker. From it each node
//! derives the same [`Roster`](crate::presence::Roster); commands for clients go up to the connections.
//! A node publishes which members it *holds*; the coordinator, the first of the nodes that are alive,
//! removes those that no node holds any more. Knows no socket and no frame of a client.
//!
//! `follow` reads the log and `receive` applies it, `publish` appends what waits in the `outbox`,
//! `notify` sends presence diffs, `housekeeping` expires members and nodes; `membership` and `requests`
//! are what connections call.

mod command;
mod config;
mod follow;
mod housekeeping;
mod membership;
mod message;
mod notify;
mod outbox;
mod publish;
mod receive;
mod requests;
mod shared;

use std::sync::Arc;

use tokio::sync::mpsc;

pub use self::{
    command::{Command, RequestOrigin},
    config::ClusterConfig,
    membership::{MemberDetails, PresenceHandle, SubscriberHandle},
    message::{Claim, Disconnect},
    shared::Cluster,
};
use crate::{lifecycle::Stage, node::Node};

/// Commands that wait for the connections.
const COMMANDS: usize = 1024;

impl Cluster {
    /// Joins the other nodes. What connections have to do comes up the receiver.
    pub fn start(
        node: Arc<Node>,
        config: ClusterConfig,
        stage: &Stage,
    ) -> (Arc<Self>, mpsc::Receiver<Command>) {
        let cluster = Arc::new(Self::new(node, config));
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let following = follow::follow(Arc::clone(&cluster), commands, stage.clone());
        stage.spawn("cluster-follow", following);
        stage.spawn("cluster-publish", publish::publish(Arc::clone(&cluster), stage.clone()));
        stage.spawn("cluster-notify", notify::notify(Arc::clone(&cluster), stage.clone()));
        let housekeeping = housekeeping::keep_house(Arc::clone(&cluster), stage.clone());
        stage.spawn("cluster-housekeeping", housekeeping);
        (cluster, receiver)
    }
}
