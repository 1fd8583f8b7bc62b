//! Redis ingest: each PUBLISHed message is in the log once; new events are republished to the legacy
//! Redis channels.

use crossfade::config::Config;
use futures_util::StreamExt as _;
use redis::Client;
use serde_json::{Value, json};

use super::{ingest_config, route};
use crate::support::{
    eventually::{eventually, soon},
    gateway::{Api, TestGateway},
    legacy_server::publish,
    redis::PrivateRedis,
};

/// Starts a gateway that ingests and holds the lease.
async fn lease_holder(redis: &PrivateRedis, more: &str) -> (TestGateway, Api) {
    let gateway =
        TestGateway::with(|config| config.legacy.redis = Some(ingest_config(redis, more))).await;
    let api = Api::of(gateway.addr);
    api.until_metric("crossfade_legacy_holder", 1.0).await;
    (gateway, api)
}

/// The data of a channel's events, once there are `number` of them.
async fn read_log(api: &Api, channel: &str, number: usize) -> Vec<Value> {
    eventually(format!("{channel} has {number} events"), async || {
        let (_, answer) = api.get(&format!("/api/channels/{channel}/history?limit=1000")).await;
        let events = answer["events"].as_array()?;
        let data = events.iter().map(|event| event["data"].clone()).collect::<Vec<_>>();
        (number <= data.len()).then_some(data)
    })
    .await
}

#[tokio::test]
async fn equal_consecutive_messages_are_separate_events() {
    let redis = PrivateRedis::start().await;
    let (gateway, api) = lease_holder(&redis, "").await;
    for payload in ["1", "1", "1", "{\"a\": 1}", "bare"] {
        publish(&redis, "room.42", payload).await;
    }
    publish(&redis, "room.7", "7").await;
    publish(&redis, "elsewhere.42", "not ingested").await;
    assert_eq!(read_log(&api, "room:7", 1).await, [json!(7)]);
    let log = read_log(&api, "room:42", 5).await;
    assert_eq!(log, [json!(1), json!(1), json!(1), json!({ "a": 1 }), json!("bare")]);
    api.until_metric("crossfade_legacy_messages_total{outcome=\"ingested\"}", 6.0).await;
    api.until_metric("crossfade_legacy_backlog", 0.0).await;
    assert_eq!(gateway.stop().await, 0);
    let lease = redis::cmd("EXISTS").arg("crossfade-legacy:lease").clone();
    assert_eq!(redis.0.run::<usize>(&lease).await.unwrap(), 0, "a stopped node keeps the lease");
}

#[tokio::test]
async fn messages_with_equal_ids_are_deduplicated() {
    let redis = PrivateRedis::start().await;
    let (_gateway, api) = lease_holder(&redis, "id = \"meta.id\"\nname = \"kind\"").await;
    for payload in [
        r#"{"meta":{"id":"m-1"},"kind":"tick"}"#,
        r#"{"meta":{"id":"m-1"},"kind":"tick"}"#,
        r#"{"meta":{"id":"m-2"},"kind":"tock"}"#,
    ] {
        publish(&redis, "room.42", payload).await;
    }
    read_log(&api, "room:42", 2).await;
    api.until_metric("crossfade_legacy_messages_total{outcome=\"duplicate\"}", 1.0).await;
    let (_, answer) = api.get("/api/channels/room:42/history").await;
    let id_and_name =
        |n: usize| (answer["events"][n]["id"].clone(), answer["events"][n]["name"].clone());
    assert_eq!(id_and_name(0), (json!("m-1"), json!("tick")));
    assert_eq!(id_and_name(1), (json!("m-2"), json!("tock")));
    // Deduplication covers ids published over HTTP too.
    let duplicate = json!({ "channel": "room:42", "id": "m-2", "data": 1 });
    assert_eq!(api.post("/api/publish", duplicate).await.1["duplicate"], true);
}

#[tokio::test]
async fn invalid_messages_are_counted_as_refused() {
    let redis = PrivateRedis::start().await;
    let (_gateway, api) = lease_holder(&redis, "").await;
    publish(&redis, "room.with space", "1").await;
    publish(&redis, "room.42", &"x".repeat(300_000)).await;
    publish(&redis, "room.42", "2").await;
    assert_eq!(read_log(&api, "room:42", 1).await, [json!(2)]);
    api.until_metric("crossfade_legacy_messages_total{outcome=\"refused\"}", 2.0).await;
}

#[tokio::test]
async fn ingest_resumes_after_a_redis_restart() {
    let mut redis = PrivateRedis::start().await;
    let (_gateway, api) = lease_holder(&redis, "lease = \"600ms\"").await;
    publish(&redis, "room.42", "1").await;
    read_log(&api, "room:42", 1).await;
    redis.0.kill();
    api.until_metric("crossfade_legacy_interruptions_total", 1.0).await;
    api.until_metric("crossfade_legacy_holder", 0.0).await;
    redis.0.restart().await;
    api.until_metric("crossfade_legacy_holder", 1.0).await;
    publish(&redis, "room.42", "2").await;
    assert_eq!(read_log(&api, "room:42", 2).await, [json!(1), json!(2)]);
}

/// Uses one Redis as the broker and for the legacy channels.
fn one_redis_for_all(config: &mut Config, redis: &PrivateRedis, more: &str) {
    config.broker.kind = crossfade::broker::BrokerKind::Redis;
    config.broker.redis.url = crossfade::broker::redis::RedisUrl::new(&*redis.0.url);
    config.legacy.redis = Some(ingest_config(redis, more));
    config.legacy.route = vec![route("/stream/{room}", &["room:{room}"])];
}

#[tokio::test]
async fn a_republished_event_reaches_legacy_subscribers_and_is_not_ingested() {
    let redis = PrivateRedis::start().await;
    let republish = "republish = [\"room\"]";
    let one = TestGateway::with(|config| one_redis_for_all(config, &redis, republish)).await;
    let other = TestGateway::with(|config| one_redis_for_all(config, &redis, republish)).await;
    let apis = [Api::of(one.addr), Api::of(other.addr)];
    eventually("one node holds the lease", async || {
        let [one, other] = &apis;
        let holders = one.metric("crossfade_legacy_holder").await
            + other.metric("crossfade_legacy_holder").await;
        (holders == 1.0).then_some(())
    })
    .await;
    let mut subscriber = Client::open(&*redis.0.url).unwrap().get_async_pubsub().await.unwrap();
    subscriber.psubscribe("room.*").await.unwrap();
    let mut messages = subscriber.into_on_message();
    let mut next = async || {
        let message =
            soon("the legacy subscriber receives a message", messages.next()).await.unwrap();
        (message.get_channel_name().to_owned(), message.get_payload::<String>().unwrap())
    };
    let channel = "room.42".to_owned();
    for (n, api) in apis.iter().enumerate() {
        api.publish("room:42", json!({ "new": n })).await;
        assert_eq!(next().await, (channel.clone(), format!("{{\"new\":{n}}}")));
        // Other namespaces are not republished.
        api.publish("other:42", n).await;
        publish(&redis, "room.42", &format!("{{\"old\":{n}}}")).await;
        assert_eq!(next().await, (channel.clone(), format!("{{\"old\":{n}}}")));
    }
    publish(&redis, "room.42", "\"end\"").await;
    assert_eq!(next().await.1, "\"end\"", "a message was sent back");
    let log = read_log(&apis[0], "room:42", 5).await;
    let [new, old] = ["new", "old"];
    let expected =
        [json!({ new: 0 }), json!({ old: 0 }), json!({ new: 1 }), json!({ old: 1 }), json!("end")];
    assert_eq!(log, expected);
    for api in &apis {
        api.until_metric("crossfade_legacy_republished_total{outcome=\"sent\"}", 1.0).await;
        api.until_metric("crossfade_legacy_messages_total{outcome=\"republished\"}", 2.0).await;
    }
}
