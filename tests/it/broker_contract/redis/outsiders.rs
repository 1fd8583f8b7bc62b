//! Backend services publish by calling the function themselves, and may do it badly.

use std::time::Duration;

use crossfade::broker::{Range, Retention};

use super::super::{Node, RETENTION, channel, draft};
use crate::support::{eventually::eventually, redis::PrivateRedis};

fn fcall(arguments: &[&str]) -> redis::Cmd {
    redis::cmd("FCALL").arg("crossfade_publish").arg(1).arg(arguments).clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_from_a_plain_client_is_heard_and_read_like_any_other() {
    let redis = PrivateRedis::start().await;
    let mut node = Node::on(&redis).await;
    let orders = channel("orders:42");
    let start = node.broker.subscribe(&orders).await.unwrap();
    let calls: [&[&str]; 4] = [
        &["crossfade:{orders:42}", "{\"total\":9}", "created", "id-1"],
        &["crossfade:{orders:42}", "no json", "", ""],
        &["crossfade:{orders:42}", "7"],
        &["crossfade:{orders:42}", "{\"total\":9}", "created", "id-1"],
    ];
    let mut answers: Vec<(String, u64, bool)> = Vec::new();
    for call in calls {
        answers.push(redis.0.run(&fcall(call)).await.unwrap());
    }
    let epoch = start.epoch.to_string();
    let expected = [(1, false), (2, false), (3, false), (1, true)];
    let expected = expected.map(|(offset, duplicate)| (epoch.clone(), offset, duplicate));
    assert_eq!(answers, expected);
    let heard = node.hear(&orders, 0, 3).await;
    let data: Vec<_> = heard.iter().map(|entry| entry.event.data.as_str()).collect();
    assert_eq!(data, ["{\"total\":9}", "\"no json\"", "7"]);
    assert_eq!(heard[0].event.name.as_ref().unwrap().as_str(), "created");
    let read = node.broker.read(&orders, Range::After(0), 10).await.unwrap().events;
    let heard: Vec<_> = heard.into_iter().map(|e| (e.position.offset, e.event)).collect();
    assert_eq!(read, heard);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_makes_no_event_is_refused_with_a_reason_and_leaves_no_hole() {
    let redis = PrivateRedis::start().await;
    let node = Node::on(&redis).await;
    let long = "x".repeat(129);
    let calls: [(&[&str], &str); 6] = [
        (&["crossfade:{a}"], "data is missing"),
        (&["crossfade:{a}", "1", "open"], "reserved"),
        (&["crossfade:{a}", "1", "crossfade.reset"], "reserved"),
        (&["crossfade:{a}", "1", "a\nb"], "event name"),
        (&["crossfade:{a}", "1", "", "a b"], "message id"),
        (&["crossfade:{a}", "1", "", &long], "message id"),
    ];
    for (call, why) in calls {
        let error = redis.0.run::<redis::Value>(&fcall(call)).await.unwrap_err().to_string();
        assert!(error.contains(why), "{call:?}: {error}");
    }
    assert_eq!(node.publish(&channel("a"), draft(1)).await.position.offset, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_elses_noise_on_a_bell_does_no_harm() {
    let redis = PrivateRedis::start().await;
    let mut node = Node::on(&redis).await;
    let news = channel("news");
    node.broker.subscribe(&news).await.unwrap();
    for noise in ["", "x", "k3f9-1 1 a 99 b", "k3f9-x 1 a 0 b"] {
        let ring = redis::cmd("PUBLISH").arg("crossfade:{news}").arg(noise).clone();
        redis.0.run::<()>(&ring).await.unwrap();
    }
    node.publish(&news, draft(1)).await;
    assert_eq!(node.hear(&news, 0, 1).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_client_keeps_to_the_retention_a_gateway_told() {
    let redis = PrivateRedis::start().await;
    let retention = Retention { events: 50, ..RETENTION };
    let node = Node::keeping(&redis, retention).await;
    let news = channel("news");
    node.broker.subscribe(&news).await.unwrap();
    for _ in 0..1000 {
        redis.0.run::<redis::Value>(&fcall(&["crossfade:{news}", "1"])).await.unwrap();
    }
    let kept = node.offsets(&news, Range::After(0), 2000).await;
    assert!((50..500).contains(&kept.len()), "{}", kept.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_events_go_with_the_appends_that_follow_and_idle_logs_go_whole() {
    let redis = PrivateRedis::start().await;
    let age = Duration::from_millis(300);
    let node = Node::keeping(&redis, Retention { age, ..RETENTION }).await;
    let news = channel("news");
    let last = eventually("the first events are too old", async || {
        let mut last = 0;
        for _ in 0..100 {
            last = node.publish(&news, draft(1)).await.position.offset;
        }
        let kept = node.offsets(&news, Range::After(0), 10_000).await;
        let first = kept.first().copied().unwrap_or(last + 1);
        assert_eq!(kept, (first..=last).collect::<Vec<_>>());
        (1 < first).then_some(last)
    })
    .await;
    eventually("the log is gone", async || {
        let slice = node.broker.read(&news, Range::After(0), 1).await.unwrap();
        (slice.events.is_empty() && slice.head == last).then_some(())
    })
    .await;
    assert_eq!(node.publish(&news, draft(1)).await.position.offset, last + 1);
}
