//! The same promises where the channels are spread over masters, and when one of those is lost.

use std::sync::Arc;

use async_trait::async_trait;
use crossfade::broker::{
    Broker, Feed, Publication, Range, Retentions,
    redis::{RedisConfig, RedisMode, RedisUrl},
};

use super::{
    super::{Fixture, Node, channel, contract, draft},
    connect,
};
use crate::support::{eventually::eventually, redis::PrivateCluster};

#[async_trait]
impl Fixture for PrivateCluster {
    async fn start() -> Self {
        Self::start().await
    }

    async fn node(&self, retentions: Arc<Retentions>) -> (Arc<dyn Broker>, Feed) {
        let nodes = self.urls().into_iter().map(RedisUrl::new).collect();
        let config = RedisConfig { mode: RedisMode::Cluster, nodes, ..RedisConfig::default() };
        connect(config, retentions)
    }
}

contract!(PrivateCluster:
    offsets_are_dense_and_positions_told,
    what_was_published_is_read_back_whole,
    a_repeated_id_is_answered_like_the_first,
    a_batch_keeps_its_order_over_many_channels,
    publishers_at_the_same_time_leave_no_hole,
    a_listener_hears_what_comes_after_it_subscribed,
    an_unsubscribed_channel_falls_silent,
    two_nodes_share_logs_ids_and_news,
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_master_rings_its_own_bells_before_and_after_one_is_replaced() {
    let mut cluster = PrivateCluster::with_replicas().await;
    let mut node = Node::on(&cluster).await;
    // Their slots are 5061, 6918 and 12182: one for each master.
    let channels = [channel("bar"), channel("test"), channel("foo")];
    for channel in &channels {
        node.broker.subscribe(channel).await.unwrap();
        node.publish(channel, draft(1)).await;
    }
    for channel in &channels {
        assert_eq!(node.hear(channel, 0, 1).await[0].position.offset, 1);
    }
    cluster.masters[0].kill();
    eventually("every channel takes events again", async || {
        let batch = channels.iter().map(|c| Publication { channel: c.clone(), draft: draft(2) });
        let receipts = node.broker.publish(batch.collect()).await;
        receipts.iter().all(Result::is_ok).then_some(())
    })
    .await;
    for channel in &channels {
        let known = node.broker.subscribe(channel).await.unwrap();
        let position = node.publish(channel, draft("\"after\"")).await.position;
        assert_eq!((position.epoch, position.offset), (known.epoch, known.offset + 1));
        let heard = node.hear(channel, known.offset, 1).await;
        assert_eq!(heard[0].event.data.as_str(), "\"after\"");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_takes_its_channels_and_listeners_along() {
    let cluster = PrivateCluster::start().await;
    let mut node = Node::on(&cluster).await;
    let bar = channel("bar");
    let start = node.broker.subscribe(&bar).await.unwrap();
    node.publish(&bar, draft(1)).await;
    // An empty log's slot is simply handed over, the way a reshard ends.
    let slot = 5061;
    let keys = ["crossfade:{bar}", "crossfade:{bar}:log"];
    let (from, to) = (&cluster.masters[0], &cluster.masters[1]);
    let id = |server| async move {
        let server: &crate::support::redis::Server = server;
        server.run::<String>(redis::cmd("CLUSTER").arg("MYID")).await.unwrap()
    };
    let (from_id, to_id) = (id(from).await, id(to).await);
    let set = |what: &str, id: &str| {
        redis::cmd("CLUSTER").arg("SETSLOT").arg(slot).arg(what).arg(id).clone()
    };
    to.run::<()>(&set("IMPORTING", &from_id)).await.unwrap();
    from.run::<()>(&set("MIGRATING", &to_id)).await.unwrap();
    let found: Vec<String> =
        from.run(redis::cmd("CLUSTER").arg("GETKEYSINSLOT").arg(slot).arg(100)).await.unwrap();
    assert!(keys.iter().all(|key| found.iter().any(|found| found == key)), "{found:?}");
    let mut migrate = redis::cmd("MIGRATE");
    migrate.arg("127.0.0.1").arg(to.port).arg("").arg(0).arg(5000).arg("KEYS").arg(&found);
    from.run::<()>(&migrate).await.unwrap();
    to.run::<()>(&set("NODE", &to_id)).await.unwrap();
    from.run::<()>(&set("NODE", &to_id)).await.unwrap();
    node.interrupted().await;
    eventually("the channel takes events at its new place", async || {
        let batch = vec![Publication { channel: bar.clone(), draft: draft(2) }];
        node.broker.publish(batch).await.remove(0).ok()
    })
    .await;
    let heard = node.hear(&bar, 1, 1).await;
    assert_eq!(heard[0].position.epoch, start.epoch);
    assert_eq!(node.offsets(&bar, Range::After(0), 10).await, [1, 2]);
}
