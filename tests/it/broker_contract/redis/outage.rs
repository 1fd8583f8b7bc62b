//! Redis goes away, comes back, freezes, forgets.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use crossfade::broker::{BrokerError, Health, Incoming, Publication, Range, Retentions};

use super::{
    super::{Fixture as _, Node, RETENTION, channel, draft},
    comes_up,
};
use crate::support::{
    eventually::{eventually, soon},
    redis::PrivateRedis,
};

async fn refused(node: &Node) -> bool {
    let batch = vec![Publication { channel: channel("news"), draft: draft(0) }];
    matches!(node.broker.publish(batch).await[..], [Err(BrokerError::Unavailable { .. })])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_crash_and_the_broker_comes_back_by_itself() {
    let mut redis = PrivateRedis::durable().await;
    let mut node = Node::on(&redis).await;
    let news = channel("news");
    let start = node.broker.subscribe(&news).await.unwrap();
    for n in 1..=500 {
        node.publish(&news, draft(n)).await;
    }
    redis.0.kill();
    let killed = Instant::now();
    // Longer than redis-rs' own manager goes on trying.
    while killed.elapsed() < Duration::from_secs(11) {
        let asked = Instant::now();
        assert!(refused(&node).await);
        assert!(asked.elapsed() < Duration::from_secs(6));
        let _ = tokio::time::timeout(Duration::from_millis(100), node.feed.recv()).await;
    }
    let Health::Down { reason } = node.broker.health() else { panic!("it is away") };
    assert!(reason.contains("socket"), "{reason}");
    redis.0.restart().await;
    node.interrupted().await;
    comes_up(&node).await;
    let kept = node.offsets(&news, Range::After(0), 1000).await;
    assert_eq!(kept, (1..=500).collect::<Vec<_>>());
    let position = node.publish(&news, draft("\"after\"")).await.position;
    assert_eq!((position.epoch, position.offset), (start.epoch, 501));
    assert_eq!(node.hear(&news, 500, 1).await[0].event.data.as_str(), "\"after\"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_starts_before_redis_waits_for_it() {
    let mut redis = PrivateRedis::durable().await;
    redis.0.kill();
    let retentions = Retentions::new(RETENTION, HashMap::new());
    let (broker, feed) = redis.node(Arc::new(retentions)).await;
    let node = Node { broker, feed };
    assert!(refused(&node).await);
    assert!(node.broker.subscribe(&channel("news")).await.is_err());
    redis.0.restart().await;
    comes_up(&node).await;
    assert_eq!(node.publish(&channel("news"), draft(1)).await.position.offset, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_is_noticed_and_told() {
    let redis = PrivateRedis::start().await;
    let mut node = Node::on(&redis).await;
    node.broker.subscribe(&channel("news")).await.unwrap();
    redis.0.freeze(true);
    assert!(refused(&node).await);
    eventually("the broker is down", async || {
        matches!(node.broker.health(), Health::Down { .. }).then_some(())
    })
    .await;
    redis.0.freeze(false);
    node.interrupted().await;
    comes_up(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listening_connection_that_is_cut_is_made_anew_and_told() {
    let redis = PrivateRedis::start().await;
    let mut node = Node::on(&redis).await;
    let channels: Vec<_> = (0..2000).map(|n| channel(&format!("room:{n}"))).collect();
    for room in &channels {
        node.broker.subscribe(room).await.unwrap();
    }
    for round in 1..=3 {
        let kill = redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("PUBSUB").clone();
        assert_eq!(redis.0.run::<u32>(&kill).await.unwrap(), 1);
        node.interrupted().await;
        node.publish(&channels[7], draft(round)).await;
        let news = soon("the event is heard", node.feed.recv()).await.unwrap();
        let Incoming::Entry(entry) = news else { panic!("{news:?}") };
        assert_eq!((entry.channel, entry.position.offset), (channels[7].clone(), round));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_emptied_begins_a_new_epoch_and_says_so() {
    let redis = PrivateRedis::start().await;
    let node = Node::on(&redis).await;
    let news = channel("news");
    let known = node.publish(&news, draft(1)).await.position;
    redis.0.run::<()>(&redis::cmd("FLUSHALL")).await.unwrap();
    let head = node.broker.verify(&[(news.clone(), known)]).await.unwrap()[0];
    assert_ne!(head.epoch, known.epoch);
    let position = node.publish(&news, draft(2)).await.position;
    assert_eq!((position.epoch, position.offset), (head.epoch, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_tail_gets_a_new_epoch_and_what_was_left_is_not_mixed_with_it() {
    let redis = PrivateRedis::start().await;
    let node = Node::on(&redis).await;
    let news = channel("news");
    let third = draft(3);
    let mut known = node.publish(&news, draft(1)).await.position;
    for draft in [draft(2), third.clone()] {
        known = node.publish(&news, draft).await.position;
    }
    // As after a failover to a replica that had not got the third event yet.
    let set = redis::cmd("HSET").arg("crossfade:{news}").arg("o").arg(2).clone();
    redis.0.run::<()>(&set).await.unwrap();
    let head = node.broker.verify(&[(news.clone(), known)]).await.unwrap()[0];
    assert_ne!(head.epoch, known.epoch);
    assert_eq!(head.offset, 0);
    assert!(node.offsets(&news, Range::After(0), 10).await.is_empty());
    // The third event went with its log: its id does not keep it out of the new one.
    let again = node.publish(&news, third).await;
    assert_eq!((again.position.offset, again.duplicate), (1, false));
    let verified = node.broker.verify(&[(news, head)]).await.unwrap()[0];
    assert_eq!(verified, again.position);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_stream_leaves_the_offsets_going_on_and_a_lost_head_does_not() {
    let redis = PrivateRedis::start().await;
    let node = Node::on(&redis).await;
    let news = channel("news");
    for n in 1..=3 {
        node.publish(&news, draft(n)).await;
    }
    let lose = |key: &str| redis::cmd("DEL").arg(key).clone();
    redis.0.run::<()>(&lose("crossfade:{news}:log")).await.unwrap();
    let slice = node.broker.read(&news, Range::After(0), 10).await.unwrap();
    assert_eq!((slice.head, slice.events.len()), (3, 0));
    let fourth = node.publish(&news, draft(4)).await.position;
    assert_eq!(fourth.offset, 4);
    assert_eq!(node.offsets(&news, Range::After(0), 10).await, [4]);
    redis.0.run::<()>(&lose("crossfade:{news}")).await.unwrap();
    let slice = node.broker.read(&news, Range::After(0), 10).await.unwrap();
    assert_ne!(slice.epoch, fourth.epoch);
    assert_eq!((slice.head, slice.events.len()), (0, 0));
    assert_eq!(node.publish(&news, draft(5)).await.position.offset, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_behind_its_own_log_starts_a_new_epoch() {
    let redis = PrivateRedis::start().await;
    let node = Node::on(&redis).await;
    let news = channel("news");
    let mut last = node.publish(&news, draft(1)).await.position;
    for n in 2..=5 {
        last = node.publish(&news, draft(n)).await.position;
    }
    let set = redis::cmd("HSET").arg("crossfade:{news}").arg("o").arg(2).clone();
    redis.0.run::<()>(&set).await.unwrap();
    let position = node.publish(&news, draft(6)).await.position;
    assert_ne!(position.epoch, last.epoch);
    assert_eq!(position.offset, 1);
    assert_eq!(node.offsets(&news, Range::After(0), 10).await, [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_library_that_was_deleted_is_loaded_again() {
    let redis = PrivateRedis::start().await;
    let node = Node::on(&redis).await;
    let news = channel("news");
    node.publish(&news, draft(1)).await;
    redis.0.run::<()>(redis::cmd("FUNCTION").arg("FLUSH")).await.unwrap();
    assert_eq!(node.publish(&news, draft(2)).await.position.offset, 2);
    redis.0.run::<()>(redis::cmd("FUNCTION").arg("FLUSH")).await.unwrap();
    assert_eq!(node.broker.subscribe(&news).await.unwrap().offset, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_refuses_for_now_and_leaves_no_hole() {
    let redis = PrivateRedis::start().await;
    let node = Node::on(&redis).await;
    let news = channel("news");
    node.publish(&news, draft(1)).await;
    let limit = |bytes: &str| redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(bytes).clone();
    redis.0.run::<()>(&limit("1")).await.unwrap();
    assert!(refused(&node).await);
    redis.0.run::<()>(&limit("0")).await.unwrap();
    assert_eq!(node.publish(&news, draft(2)).await.position.offset, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_is_used_on_every_connection_and_shown_nowhere() {
    let redis = PrivateRedis::with_password("secret").await;
    let mut node = Node::on(&redis).await;
    let news = channel("news");
    node.broker.subscribe(&news).await.unwrap();
    node.publish(&news, draft(1)).await;
    assert_eq!(node.hear(&news, 0, 1).await.len(), 1);
    let mut connection = redis.0.connection().await.unwrap();
    let change = redis::cmd("CONFIG").arg("SET").arg("requirepass").arg("another").clone();
    change.exec_async(&mut connection).await.unwrap();
    let cut = redis::cmd("CLIENT").arg("KILL").arg("SKIPME").arg("yes").clone();
    cut.exec_async(&mut connection).await.unwrap();
    let reason = eventually("the broker is down", async || match node.broker.health() {
        Health::Down { reason } if reason.contains("WRONGPASS") => Some(reason),
        _ => None,
    })
    .await;
    assert!(!reason.contains("secret"), "{reason}");
}
