//! What comes up the feed, and what when nothing does.

use crossfade::broker::{Incoming, postgres::ConnectionUrl};

use super::*;
use crate::support::eventually::soon;

async fn interrupted(node: &mut Node) {
    while soon("the interruption is told", node.feed.recv()).await.unwrap() != Incoming::Interrupted
    {
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn big_and_small_events_come_up_in_order() {
    let fixture = Postgres::start().await;
    let mut node = Node::on(&fixture).await;
    let news = channel("news");
    node.broker.subscribe(&news).await.unwrap();
    let big = format!("\"{}\"", "x".repeat(100_000));
    let middling = format!("\"{}\"", "é\\\"".repeat(1_000));
    let texts = ["1", &big, "2", &middling, &middling, "3"];
    let batch = texts.map(|text| Publication { channel: news.clone(), draft: draft(text) });
    for receipt in node.broker.publish(batch.to_vec()).await {
        receipt.unwrap();
    }
    fixture.sql("select crossfade.publish('news', to_jsonb(repeat('y', 100000)))").await;
    let heard = node.hear(&news, 0, 7).await;
    let heard: Vec<_> = heard.iter().map(|entry| entry.event.data.as_str()).collect();
    assert_eq!(heard[..6], texts);
    assert_eq!(heard[6].len(), 100_002);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_channels_in_one_batch_are_all_heard() {
    let fixture = Postgres::start().await;
    let mut node = Node::on(&fixture).await;
    let channels: Vec<_> = (0..300).map(|n| channel(&format!("{}:{n}", "x".repeat(150)))).collect();
    for channel in &channels {
        node.broker.subscribe(channel).await.unwrap();
    }
    let content = format!("\"{}\"", "x".repeat(3000));
    let one = |channel: &_| Publication { channel: Clone::clone(channel), draft: draft(&content) };
    let sent = node.broker.publish(channels.iter().map(one).collect()).await;
    assert!(sent.iter().all(Result::is_ok));
    let mut heard = std::collections::HashSet::new();
    while heard.len() < channels.len() {
        match soon("news come", node.feed.recv()).await.unwrap() {
            Incoming::Entry(entry) => heard.insert(entry.channel),
            Incoming::Head { channel, position } => position.offset == 1 && heard.insert(channel),
            Incoming::Interrupted => false,
        };
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_listening_connection_is_told_and_replaced() {
    let fixture = Postgres::start().await;
    let mut node = Node::on(&fixture).await;
    let news = channel("news");
    node.broker.subscribe(&news).await.unwrap();
    let cut = fixture
        .sql(
            "select pg_terminate_backend(pid) from pg_stat_activity \
             where datname = current_database() and query ~ '^listen crossfade_[0-9]+'",
        )
        .await;
    assert_eq!(cut.len(), 1);
    interrupted(&mut node).await;
    node.publish(&news, draft(1)).await;
    node.publish(&news, draft(2)).await;
    assert_eq!(node.hear(&news, 0, 2).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listening_connection_that_hangs_is_noticed_and_replaced() {
    let fixture = Postgres::alone(false).await;
    let mut node = Node::on(&fixture).await;
    let news = channel("news");
    node.broker.subscribe(&news).await.unwrap();
    let listening = "select pid from pg_stat_activity where query ~ '^listen crossfade_[0-9]+'";
    let pid = fixture.sql(listening).await.remove(0).remove(0);
    let stopped = std::process::Command::new("kill").args(["-STOP", &pid]).status().unwrap();
    assert!(stopped.success());
    node.publish(&news, draft(1)).await;
    interrupted(&mut node).await;
    node.publish(&news, draft(2)).await;
    assert_eq!(node.hear(&news, 0, 2).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_listen_does_not_work_heads_are_polled() {
    let fixture = Postgres::start().await;
    // Another database hears nothing of this one's notifications, as a pooler's client does.
    let elsewhere: ConnectionUrl =
        fixture.server.url(&fixture.server.create_database().await).parse().unwrap();
    let config = PostgresConfig { listen_url: Some(elsewhere), ..fixture.config() };
    let retentions = Arc::new(Retentions::new(RETENTION, Default::default()));
    let (broker, feed) = fixture.node_with(&config, retentions);
    let mut node = Node { broker, feed };
    let news = channel("news");
    eventually("it can be subscribed to", async || node.broker.subscribe(&news).await.ok()).await;
    for n in 1..=3 {
        node.publish(&news, draft(n)).await;
        assert_eq!(node.hear(&news, n - 1, 1).await[0].position.offset, n);
    }
}
