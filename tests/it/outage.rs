//! The broker is away at the start, goes away later, or loses a message on the way: publishers are
//! told, readers stay, and nothing is missing in the end.

use std::time::Duration;

use crossfade::{
    broker::{BrokerKind, redis::RedisUrl},
    config::Config,
    gateway::Gateway,
};
use redis::cmd;
use serde_json::json;

use crate::support::{
    client::{Sse, Ws},
    eventually::eventually,
    gateway::{Api, TestGateway},
    redis::PrivateRedis,
};

fn on(redis: &PrivateRedis) -> impl FnOnce(&mut Config) {
    let url = RedisUrl::new(&redis.0.url);
    |config| {
        config.broker.kind = BrokerKind::Redis;
        config.broker.redis.url = url;
    }
}

async fn ready_on(redis: &PrivateRedis) -> (TestGateway, Api) {
    let gateway = TestGateway::with(on(redis)).await;
    let api = Api::of(gateway.addr);
    until_ready(&api).await;
    (gateway, api)
}

async fn until_ready(api: &Api) {
    eventually("the node is ready", async || {
        (api.get("/health/ready").await.0 == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_not_there_at_the_start_is_named_and_waited_for() {
    let mut redis = PrivateRedis::durable().await;
    redis.0.kill();
    let gateway = TestGateway::with(on(&redis)).await;
    let api = Api::of(gateway.addr);
    assert_eq!(api.get("/health/live").await.0, 200);
    let (status, ready) = api.get("/health/ready").await;
    let reason = ready["reason"].as_str().unwrap();
    assert_eq!(status, 503);
    assert!(reason.contains("redis"), "{reason}");

    let event = r#"{"channel":"news","id":"m1","data":1}"#;
    let (status, answer, retry) = api.post("/api/publish", event).await;
    assert_eq!((status, retry), (503, Some(1)));
    assert_eq!(answer["error"]["code"], "unavailable");
    // An EventSource that were refused would never come back.
    let mut sse = Sse::try_open(gateway.addr, "channel=news", None).await.unwrap();
    let mut ws = Ws::open(gateway.addr).await;
    ws.send(json!({ "type": "subscribe", "id": 1, "channel": "news" })).await;
    assert_eq!(ws.expect("error").await["code"], "unavailable");

    redis.0.restart().await;
    assert_eq!(sse.next().await.event.as_deref(), Some("open"));
    until_ready(&api).await;
    assert_eq!(api.post("/api/publish", event).await.0, 200);
    sse.expect_data([1]).await;
    assert_eq!(gateway.stop().await, 0);
}

#[tokio::test]
async fn a_broker_that_is_required_at_the_start_ends_the_start_with_its_reason() {
    let mut redis = PrivateRedis::start().await;
    redis.0.kill();
    let mut config = Config::default();
    config.server.listen.set_port(0);
    on(&redis)(&mut config);
    config.broker.start_timeout = Some(Duration::from_millis(300));
    let said = Gateway::bind(config).await.map(drop).unwrap_err().to_string();
    assert!(said.contains("broker.start_timeout = 300ms") && said.contains("socket"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_outlive_the_brokers_absence_and_miss_nothing() {
    let mut redis = PrivateRedis::durable().await;
    let (gateway, api) = ready_on(&redis).await;
    let mut ws = Ws::open(gateway.addr).await;
    ws.subscribe("news", None).await;
    let mut sse = Sse::open(gateway.addr, "channel=news").await;
    api.publish("news", 1).await;
    ws.expect_data([1]).await;

    redis.0.kill();
    eventually("a publish is refused", async || {
        let refused = api.post("/api/publish", r#"{"channel":"news","id":"m2","data":2}"#).await;
        (refused.0 == 503 && refused.2 == Some(1)).then_some(())
    })
    .await;
    redis.0.restart().await;
    // What another program appends before the node is back is there too.
    let key = "crossfade:{news}";
    let call = cmd("FCALL").arg("crossfade_publish").arg(1).arg(key).arg("2").clone();
    redis.0.run::<()>(&call).await.unwrap();
    until_ready(&api).await;
    api.publish("news", 3).await;
    ws.expect_data([2, 3]).await;
    sse.expect_data([1, 2, 3]).await;
    assert_eq!(api.metric("crossfade_resets_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_last_message_that_was_lost_on_the_way_is_found_without_another() {
    let redis = PrivateRedis::start().await;
    let (gateway, api) = ready_on(&redis).await;
    let mut ws = Ws::open(gateway.addr).await;
    ws.subscribe("news", None).await;
    api.publish("news", 1).await;
    ws.expect_data([1]).await;

    // The log grows, and no bell rings: what a full output buffer does.
    let log = "crossfade:{news}:log";
    let entry = cmd("XADD").arg(log).arg("2-0").arg(&["t", "1", "i", "m2", "d", "2"]).clone();
    redis.0.run::<()>(&entry).await.unwrap();
    let head = cmd("HSET").arg("crossfade:{news}").arg("o").arg("2").clone();
    redis.0.run::<()>(&head).await.unwrap();
    ws.expect_data([2]).await;
    assert_eq!(api.metric("crossfade_log_repairs_total").await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_lost_is_told_to_its_readers() {
    let redis = PrivateRedis::start().await;
    let (gateway, api) = ready_on(&redis).await;
    let mut ws = Ws::open(gateway.addr).await;
    ws.subscribe("news", None).await;
    let mut sse = Sse::open(gateway.addr, "channel=news").await;
    api.publish("news", 1).await;
    ws.expect_data([1]).await;
    sse.expect_data([1]).await;
    redis.0.run::<()>(cmd("FLUSHALL").arg("SYNC")).await.unwrap();
    let reset = ws.expect("reset").await;
    assert_eq!(reset["reason"], "epoch");
    assert_eq!(sse.next().await.event.as_deref(), Some("crossfade.reset"));
    api.publish("news", 2).await;
    ws.expect_data([2]).await;
    sse.expect_data([2]).await;
}
