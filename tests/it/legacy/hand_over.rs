//! Two nodes take in what is PUBLISHed, one at a time: however the one ends, each message is once in
//! the log, and in order.

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

/// 200 a second: each message, and every fourth time one that is always the same.
const PERIOD: Duration = Duration::from_millis(5);

struct Publisher {
    sent: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    running: tokio::task::JoinHandle<()>,
}

impl Publisher {
    async fn start(redis: &PrivateRedis) -> Self {
        let (sent, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let mut connection = redis.0.connection().await.unwrap();
        let (counted, stopped) = (Arc::clone(&sent), Arc::clone(&stop));
        let running = spawn(async move {
            let mut tick = tokio::time::interval(PERIOD);
            while !stopped.load(Ordering::Relaxed) {
                tick.tick().await;
                let n = counted.load(Ordering::Relaxed);
                let (channel, payload) = match n % 4 {
                    3 => ("room.same", "\"always the same\"".to_owned()),
                    _ => ("room.42", n.to_string()),
                };
                let publish = cmd("PUBLISH").arg(channel).arg(payload).clone();
                publish.exec_async(&mut connection).await.unwrap();
                counted.store(n + 1, Ordering::Relaxed);
            }
        });
        Self { sent, stop, running }
    }

    async fn until(&self, number: usize) {
        eventually(format!("{number} are sent"), async || {
            (number <= self.sent.load(Ordering::Relaxed)).then_some(())
        })
        .await;
    }

    async fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.running.await.unwrap();
        self.sent.load(Ordering::Relaxed)
    }
}

/// The data of a whole log.
async fn whole_log(api: &Api, channel: &str) -> Vec<Value> {
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

/// Two nodes, the holder first.
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
    eventually("both listen", async || {
        let marks = "crossfade-legacy:marks";
        let heard: (String, usize) =
            redis.0.run(cmd("PUBSUB").arg("NUMSUB").arg(marks)).await.unwrap();
        (heard.1 == 2).then_some(())
    })
    .await;
    assert_eq!(Api::of(second.addr).metric("crossfade_legacy_holder").await, 0.0);
    [first, second]
}

fn on_redis(redis: &PrivateRedis) -> Vec<(&str, &str)> {
    vec![("CROSSFADE_BROKER__KIND", "redis"), ("CROSSFADE_BROKER__REDIS__URL", &redis.0.url)]
}

/// Everything that was sent is in the logs, once, in order.
async fn expect_all(api: &Api, sent: usize) {
    let numbers: Vec<_> = (0..sent).filter(|n| n % 4 != 3).map(Value::from).collect();
    let same = sent - numbers.len();
    eventually("all is in the logs", async || {
        let (log, always) = (whole_log(api, "room:42").await, whole_log(api, "room:same").await);
        (numbers.len() <= log.len() && same <= always.len()).then_some(())
    })
    .await;
    api.until_metric("crossfade_legacy_backlog", 0.0).await;
    assert_eq!(whole_log(api, "room:42").await, numbers);
    assert_eq!(whole_log(api, "room:same").await.len(), same);
}

#[tokio::test]
async fn the_holder_is_killed() {
    let redis = PrivateRedis::start().await;
    let [mut holder, other] = two_nodes(&redis, &on_redis(&redis)).await;
    let publisher = Publisher::start(&redis).await;
    publisher.until(400).await;
    holder.kill().await;
    Api::of(other.addr).until_metric("crossfade_legacy_holder", 1.0).await;
    let sent = publisher.sent.load(Ordering::Relaxed);
    publisher.until(sent + 200).await;
    let sent = publisher.stop().await;
    let api = Api::of(other.addr);
    expect_all(&api, sent).await;
    let again = api.metric("crossfade_legacy_messages_total{outcome=\"duplicate\"}").await;
    eprintln!("{sent} sent; the one who took over wrote {again} a second time");
}

#[tokio::test]
async fn the_holder_is_killed_with_the_logs_in_postgres() {
    let redis = PrivateRedis::start().await;
    let postgres = PrivatePostgres::shared().await;
    let url = postgres.url(&postgres.create_database().await);
    let broker =
        [("CROSSFADE_BROKER__KIND", "postgres"), ("CROSSFADE_BROKER__POSTGRES__URL", &*url)];
    let [mut holder, other] = two_nodes(&redis, &broker).await;
    let publisher = Publisher::start(&redis).await;
    publisher.until(400).await;
    holder.kill().await;
    Api::of(other.addr).until_metric("crossfade_legacy_holder", 1.0).await;
    let sent = publisher.stop().await;
    expect_all(&Api::of(other.addr), sent).await;
}

#[tokio::test]
async fn the_holder_stands_still_and_goes_on_as_if_nothing_were() {
    let redis = PrivateRedis::start().await;
    let nodes = two_nodes(&redis, &on_redis(&redis)).await;
    let publisher = Publisher::start(&redis).await;
    publisher.until(200).await;
    for (holder, other) in [(&nodes[0], &nodes[1]), (&nodes[1], &nodes[0])] {
        let signal = |name: &str| {
            let pid = holder.pid().to_string();
            assert!(Command::new("kill").args([name, &*pid]).status().unwrap().success());
        };
        signal("-STOP");
        Api::of(other.addr).until_metric("crossfade_legacy_holder", 1.0).await;
        publisher.until(publisher.sent.load(Ordering::Relaxed) + 200).await;
        signal("-CONT");
        publisher.until(publisher.sent.load(Ordering::Relaxed) + 200).await;
        Api::of(holder.addr).until_metric("crossfade_legacy_holder", 0.0).await;
    }
    let sent = publisher.stop().await;
    expect_all(&Api::of(nodes[0].addr), sent).await;
    Api::of(nodes[1].addr).until_metric("crossfade_legacy_backlog", 0.0).await;
}

#[tokio::test]
async fn a_node_that_is_told_to_stop_hands_over_at_once() {
    let redis = PrivateRedis::start().await;
    let [mut holder, other] = two_nodes(&redis, &on_redis(&redis)).await;
    let publisher = Publisher::start(&redis).await;
    publisher.until(200).await;
    holder.terminate();
    assert!(holder.ended().await);
    Api::of(other.addr).until_metric("crossfade_legacy_holder", 1.0).await;
    let sent = publisher.stop().await;
    expect_all(&Api::of(other.addr), sent).await;
}
