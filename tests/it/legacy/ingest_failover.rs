//! Failover of the ingest lease: however the holder ends, each message is in the log once and in order.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis::cmd;
use serde_json::Value;

use crate::support::{
    eventually::eventually,
    gateway::{Api, GatewayProcess},
    postgres::PrivatePostgres,
    redis::PrivateRedis,
    spawn,
};

/// 200 messages a second; every fourth one has the same payload, on a channel of its own.
const PERIOD: Duration = Duration::from_millis(5);

struct Publisher {
    sent: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Publisher {
    async fn start(redis: &PrivateRedis) -> Self {
        let (sent, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let mut connection = redis.0.connection().await.unwrap();
        let (counter, stopped) = (Arc::clone(&sent), Arc::clone(&stop));
        let task = spawn(async move {
            let mut tick = tokio::time::interval(PERIOD);
            while !stopped.load(Ordering::Relaxed) {
                tick.tick().await;
                let n = counter.load(Ordering::Relaxed);
                let (channel, payload) = match n % 4 {
                    3 => ("room.same", "\"always the same\"".to_owned()),
                    _ => ("room.42", n.to_string()),
                };
                let publish = cmd("PUBLISH").arg(channel).arg(payload).clone();
                publish.exec_async(&mut connection).await.unwrap();
                counter.store(n + 1, Ordering::Relaxed);
            }
        });
        Self { sent, stop, task }
    }

    async fn until_sent(&self, number: usize) {
        eventually(format!("{number} messages are sent"), async || {
            (number <= self.sent.load(Ordering::Relaxed)).then_some(())
        })
        .await;
    }

    async fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        self.sent.load(Ordering::Relaxed)
    }
}

/// The data of all events in a channel's log.
async fn read_log(api: &Api, channel: &str) -> Vec<Value> {
    let (mut all, mut since) = (Vec::new(), String::new());
    loop {
        let path = format!("/api/channels/{channel}/history?limit=1000&reverse=false{since}");
        let (status, page) = api.get(&path).await;
        assert_eq!(status, 200, "{page}");
        let events = page["events"].as_array().unwrap();
        all.extend(events.iter().map(|event| event["data"].clone()));
        let Some(last) = events.last() else { return all };
        since = format!("&since={}", last["position"].as_str().unwrap());
        if page["complete"] == true && events.len() < 1000 {
            return all;
        }
    }
}

/// Starts two nodes; the first one holds the lease.
async fn two_nodes(redis: &PrivateRedis, broker: &[(&str, &str)]) -> [GatewayProcess; 2] {
    let settings = [
        ("CROSSFADE_LEGACY__REDIS__URL", &*redis.0.url),
        ("CROSSFADE_LEGACY__REDIS__PATTERNS", "[\"room.*\"]"),
        ("CROSSFADE_LEGACY__REDIS__CHANNEL", "room:{1}"),
        ("CROSSFADE_LEGACY__REDIS__LEASE", "1s"),
    ];
    let settings = [&settings[..], broker].concat();
    let first = GatewayProcess::start(&settings).await;
    Api::of(first.addr).until_metric("crossfade_legacy_holder", 1.0).await;
    let second = GatewayProcess::start(&settings).await;
    eventually("both nodes are subscribed", async || {
        let marks = "crossfade-legacy:marks";
        let subscribers: (String, usize) =
            redis.0.run(cmd("PUBSUB").arg("NUMSUB").arg(marks)).await.unwrap();
        (subscribers.1 == 2).then_some(())
    })
    .await;
    assert_eq!(Api::of(second.addr).metric("crossfade_legacy_holder").await, 0.0);
    [first, second]
}

fn redis_broker(redis: &PrivateRedis) -> Vec<(&str, &str)> {
    vec![("CROSSFADE_BROKER__KIND", "redis"), ("CROSSFADE_BROKER__REDIS__URL", &redis.0.url)]
}

/// Asserts that every message sent is in the logs once and in order.
async fn expect_all(api: &Api, sent: usize) {
    let numbers: Vec<_> = (0..sent).filter(|n| n % 4 != 3).map(Value::from).collect();
    let same = sent - numbers.len();
    eventually("all messages are in the logs", async || {
        let (log, same_log) = (read_log(api, "room:42").await, read_log(api, "room:same").await);
        (numbers.len() <= log.len() && same <= same_log.len()).then_some(())
    })
    .await;
    api.until_metric("crossfade_legacy_backlog", 0.0).await;
    assert_eq!(read_log(api, "room:42").await, numbers);
    assert_eq!(read_log(api, "room:same").await.len(), same);
}

#[tokio::test]
async fn another_node_takes_over_from_a_killed_holder() {
    let redis = PrivateRedis::start().await;
    let [mut holder, other] = two_nodes(&redis, &redis_broker(&redis)).await;
    let publisher = Publisher::start(&redis).await;
    publisher.until_sent(400).await;
    holder.kill().await;
    Api::of(other.addr).until_metric("crossfade_legacy_holder", 1.0).await;
    let sent = publisher.sent.load(Ordering::Relaxed);
    publisher.until_sent(sent + 200).await;
    let sent = publisher.stop().await;
    let api = Api::of(other.addr);
    expect_all(&api, sent).await;
    let duplicates = api.metric("crossfade_legacy_messages_total{outcome=\"duplicate\"}").await;
    eprintln!("{sent} messages sent, {duplicates} written twice");
}

#[tokio::test]
async fn another_node_takes_over_with_the_postgres_broker() {
    let redis = PrivateRedis::start().await;
    let postgres = PrivatePostgres::shared().await;
    let url = postgres.url(&postgres.create_database().await);
    let broker =
        [("CROSSFADE_BROKER__KIND", "postgres"), ("CROSSFADE_BROKER__POSTGRES__URL", &*url)];
    let [mut holder, other] = two_nodes(&redis, &broker).await;
    let publisher = Publisher::start(&redis).await;
    publisher.until_sent(400).await;
    holder.kill().await;
    Api::of(other.addr).until_metric("crossfade_legacy_holder", 1.0).await;
    let sent = publisher.stop().await;
    expect_all(&Api::of(other.addr), sent).await;
}

#[tokio::test]
async fn a_paused_holder_that_resumes_writes_nothing_twice() {
    let redis = PrivateRedis::start().await;
    let nodes = two_nodes(&redis, &redis_broker(&redis)).await;
    let publisher = Publisher::start(&redis).await;
    publisher.until_sent(200).await;
    for (holder, other) in [(&nodes[0], &nodes[1]), (&nodes[1], &nodes[0])] {
        let signal = |name: &str| {
            let pid = holder.pid().to_string();
            assert!(Command::new("kill").args([name, &*pid]).status().unwrap().success());
        };
        signal("-STOP");
        Api::of(other.addr).until_metric("crossfade_legacy_holder", 1.0).await;
        publisher.until_sent(publisher.sent.load(Ordering::Relaxed) + 200).await;
        signal("-CONT");
        publisher.until_sent(publisher.sent.load(Ordering::Relaxed) + 200).await;
        Api::of(holder.addr).until_metric("crossfade_legacy_holder", 0.0).await;
    }
    let sent = publisher.stop().await;
    expect_all(&Api::of(nodes[0].addr), sent).await;
    Api::of(nodes[1].addr).until_metric("crossfade_legacy_backlog", 0.0).await;
}

#[tokio::test]
async fn a_stopping_holder_releases_the_lease() {
    let redis = PrivateRedis::start().await;
    let [mut holder, other] = two_nodes(&redis, &redis_broker(&redis)).await;
    let publisher = Publisher::start(&redis).await;
    publisher.until_sent(200).await;
    holder.terminate();
    assert!(holder.ended().await);
    Api::of(other.addr).until_metric("crossfade_legacy_holder", 1.0).await;
    let sent = publisher.stop().await;
    expect_all(&Api::of(other.addr), sent).await;
}
