//! Redis keeps the promises, alone and as a Cluster; what else may happen to it is beside this.

mod cluster;
mod outage;
mod outsiders;
mod sentinel;

use std::sync::Arc;

use async_trait::async_trait;
use crossfade::{
    broker::{
        Broker, Feed, Health, Incoming, Retentions,
        redis::{RedisBroker, RedisConfig, RedisUrl},
    },
    lifecycle::Stage,
};

use super::{Fixture, Node, contract};
use crate::support::{
    eventually::{eventually, soon},
    redis::{PrivateRedis, TIMEOUT},
};

fn connect(config: RedisConfig, retentions: Arc<Retentions>) -> (Arc<dyn Broker>, Feed) {
    let config = RedisConfig { timeout: TIMEOUT, ..config };
    let (broker, feed) = RedisBroker::connect(&config, retentions, &Stage::default()).unwrap();
    (Arc::new(broker), feed)
}

#[async_trait]
impl Fixture for PrivateRedis {
    async fn start() -> Self {
        Self::start().await
    }

    async fn node(&self, retentions: Arc<Retentions>) -> (Arc<dyn Broker>, Feed) {
        let url = RedisUrl::new(&self.0.url);
        connect(RedisConfig { url, ..RedisConfig::default() }, retentions)
    }
}

contract!(PrivateRedis);
contract!(PrivateRedis: two_nodes_share_logs_ids_and_news);

async fn comes_up(node: &Node) {
    eventually("the broker is up", async || (node.broker.health() == Health::Up).then_some(()))
        .await;
}

impl Node {
    /// Lets news pass until it is told that some may have been missed.
    async fn interrupted(&mut self) {
        while soon("the feed tells", self.feed.recv()).await.unwrap() != Incoming::Interrupted {}
    }
}
