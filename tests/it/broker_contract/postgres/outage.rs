//! The server goes away, and comes back.

use crossfade::{
    broker::{BrokerError, Health, Incoming, postgres::ConnectionUrl},
    protocol::MessageId,
};

use super::*;
use crate::support::eventually::soon;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_outlives_a_crash() {
    let fixture = Postgres::alone(true).await;
    let mut node = Node::on(&fixture).await;
    let news = channel("news");
    node.broker.subscribe(&news).await.unwrap();
    let acknowledged = publish_until_refused(&fixture, &node).await;
    eventually("it is seen", async || (node.broker.health() != Health::Up).then_some(())).await;
    let refused = node.broker.publish(vec![Publication { channel: news.clone(), draft: draft(0) }]);
    let refused = soon("a publish is refused", refused).await.remove(0);
    assert!(matches!(refused, Err(BrokerError::Unavailable { .. })), "{refused:?}");

    fixture.server.restart().await;
    while soon("the interruption is told", node.feed.recv()).await.unwrap() != Incoming::Interrupted
    {
    }
    let slice = node.broker.read(&news, Range::After(0), 100_000).await.unwrap();
    let kept: Vec<_> = slice.events.iter().map(|(_, event)| event.id.clone()).collect();
    assert!(slice.events.iter().map(|(offset, _)| *offset).eq(1..=slice.head));
    for id in &acknowledged {
        assert_eq!(kept.iter().filter(|kept| *kept == id).count(), 1, "{id} of {}", kept.len());
    }
    eventually("it is up again", async || (node.broker.health() == Health::Up).then_some(())).await;
    assert_eq!(node.publish(&news, draft(1)).await.position.offset, slice.head + 1);
    assert_eq!(node.hear(&news, slice.head, 1).await.len(), 1);
}

/// Kills the server in the midst of it. Returns the ids of what was stored for certain.
async fn publish_until_refused(fixture: &Postgres, node: &Node) -> Vec<MessageId> {
    let news = channel("news");
    let publishers = (0..8).map(|_| async {
        let mut acknowledged = Vec::new();
        loop {
            let draft = draft("\"x\"");
            let id = draft.id.clone();
            let batch = vec![Publication { channel: news.clone(), draft }];
            match node.broker.publish(batch).await.remove(0) {
                Ok(_) => acknowledged.push(id),
                Err(_) => return acknowledged,
            }
            if acknowledged.len() == 50 {
                fixture.server.kill();
            }
        }
    });
    let publishers = futures_util::future::join_all(publishers);
    let acknowledged = soon("the server is gone", publishers).await.concat();
    assert!(50 <= acknowledged.len());
    acknowledged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_there_is_told_without_the_password() {
    let fixture = Postgres::start().await;
    let url: ConnectionUrl = "host=/nowhere user=me password=s3cret dbname=app".parse().unwrap();
    let config = PostgresConfig { url, ..fixture.config() };
    let retentions = Arc::new(Retentions::new(RETENTION, Default::default()));
    let (broker, _feed) = fixture.node_with(&config, retentions);
    let batch = vec![Publication { channel: channel("news"), draft: draft(1) }];
    let publish = soon("a publish is refused", broker.publish(batch)).await.remove(0).unwrap_err();
    let read = broker.read(&channel("news"), Range::After(0), 1).await.unwrap_err();
    let subscribe = broker.subscribe(&channel("news")).await.unwrap_err();
    for error in [publish, read, subscribe] {
        let text = format!("{error} {error:?} {broker:?} {config:?}");
        assert!(matches!(error, BrokerError::Unavailable { .. }), "{text}");
        assert!(text.contains("/nowhere") && !text.contains("s3cret"), "{text}");
    }
    let Health::Down { reason } = broker.health() else { panic!("up") };
    assert!(reason.contains("me@/nowhere/app"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_started_first_finds_the_server_later() {
    let fixture = Postgres::alone(false).await;
    fixture.server.kill();
    let retentions = Arc::new(Retentions::new(RETENTION, Default::default()));
    let (broker, feed) = fixture.node(retentions).await;
    let mut node = Node { broker, feed };
    eventually("it says why it is down", async || match node.broker.health() {
        Health::Down { reason } => reason.contains("error connecting").then_some(()),
        Health::Up => None,
    })
    .await;
    fixture.server.restart().await;
    eventually("it is up", async || (node.broker.health() == Health::Up).then_some(())).await;
    let news = channel("news");
    node.broker.subscribe(&news).await.unwrap();
    node.publish(&news, draft(1)).await;
    assert_eq!(node.hear(&news, 0, 1).await.len(), 1);
}
