//! The master is replaced by a replica.

use std::sync::Arc;

use async_trait::async_trait;
use crossfade::broker::{
    Broker, Feed, Publication, Retentions,
    redis::{RedisConfig, RedisMode, RedisUrl},
};

use super::{
    super::{Fixture, Node, channel, draft},
    comes_up, connect,
};
use crate::support::{eventually::eventually, redis::PrivateSentinel};

#[async_trait]
impl Fixture for PrivateSentinel {
    async fn start() -> Self {
        Self::start().await
    }

    async fn node(&self, retentions: Arc<Retentions>) -> (Arc<dyn Broker>, Feed) {
        let nodes = vec![RedisUrl::new(&self.sentinel.url)];
        connect(RedisConfig { mode: RedisMode::Sentinel, nodes, ..Default::default() }, retentions)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failover_the_promoted_replica_is_published_to_and_heard() {
    let mut servers = PrivateSentinel::start().await;
    let mut node = Node::on(&servers).await;
    let news = channel("news");
    let start = node.broker.subscribe(&news).await.unwrap();
    node.publish(&news, draft(1)).await;
    assert_eq!(node.hear(&news, 0, 1).await.len(), 1);
    // It is copied after it was acknowledged.
    eventually("the replica has the event", async || {
        let head = redis::cmd("HGET").arg("crossfade:{news}").arg("o").clone();
        servers.replica.run::<u64>(&head).await.ok()
    })
    .await;
    servers.master.kill();
    published_again(&node).await;
    node.interrupted().await;
    comes_up(&node).await;
    let known = node.broker.subscribe(&news).await.unwrap();
    assert_eq!(known.epoch, start.epoch);
    node.publish(&news, draft("\"after\"")).await;
    let heard = node.hear(&news, known.offset, 1).await;
    assert_eq!(heard[0].event.data.as_str(), "\"after\"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_is_demoted_while_it_lives_is_left() {
    let servers = PrivateSentinel::start().await;
    let mut node = Node::on(&servers).await;
    let news = channel("news");
    node.broker.subscribe(&news).await.unwrap();
    let failover = redis::cmd("SENTINEL").arg("FAILOVER").arg("mymaster").clone();
    eventually("the sentinel fails over", async || {
        servers.sentinel.run::<()>(&failover).await.ok()
    })
    .await;
    eventually("the old master is a replica", async || {
        let role: redis::Role = servers.master.run(&redis::cmd("ROLE")).await.ok()?;
        matches!(role, redis::Role::Replica { .. }).then_some(())
    })
    .await;
    published_again(&node).await;
    comes_up(&node).await;
    let length = redis::cmd("XLEN").arg("crossfade:{news}:log").clone();
    assert!(1 <= servers.replica.run::<u64>(&length).await.unwrap());
    let known = node.broker.subscribe(&news).await.unwrap();
    node.publish(&news, draft("\"after\"")).await;
    let heard = node.hear(&news, known.offset, 1).await;
    assert_eq!(heard[0].event.data.as_str(), "\"after\"");
}

async fn published_again(node: &Node) {
    eventually("events are taken again", async || {
        let batch = vec![Publication { channel: channel("news"), draft: draft(2) }];
        node.broker.publish(batch).await.remove(0).ok()
    })
    .await;
}
