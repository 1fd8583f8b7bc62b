//! What publishers PUBLISH is in the logs, each message once; and new events are with the old readers.

use crossfade::config::Config;
use futures_util::StreamExt as _;
use redis::Client;
use serde_json::{Value, json};

use super::{route, taking};
use crate::support::{
    eventually::{eventually, soon},
    gateway::{Api, TestGateway},
    legacy_server::publish,
    redis::PrivateRedis,
};

/// A gateway that takes in, and is the one that does.
async fn holder(redis: &PrivateRedis, more: &str) -> (TestGateway, Api) {
    let gateway = TestGateway::with(|config| config.legacy.redis = Some(taking(redis, more))).await;
    let api = Api::of(gateway.addr);
    api.until_metric("crossfade_legacy_holder", 1.0).await;
    (gateway, api)
}

/// The data of a channel's log, once it has so many events.
async fn log_of(api: &Api, channel: &str, number: usize) -> Vec<Value> {
    eventually(format!("{channel} has {number} events"), async || {
        let (_, answer) = api.get(&format!("/api/channels/{channel}/history?limit=1000")).await;
        let events = answer["events"].as_array()?;
        let data = events.iter().map(|event| event["data"].clone()).collect::<Vec<_>>();
        (number <= data.len()).then_some(data)
    })
    .await
}

#[tokio::test]
async fn two_equal_messages_in_a_row_are_two_events() {
    let redis = PrivateRedis::start().await;
    let (gateway, api) = holder(&redis, "").await;
    for payload in ["1", "1", "1", "{\"a\": 1}", "bare"] {
        publish(&redis, "room.42", payload).await;
    }
    publish(&redis, "room.7", "7").await;
    publish(&redis, "elsewhere.42", "not meant").await;
    assert_eq!(log_of(&api, "room:7", 1).await, [json!(7)]);
    let all = log_of(&api, "room:42", 5).await;
    assert_eq!(all, [json!(1), json!(1), json!(1), json!({ "a": 1 }), json!("bare")]);
    api.until_metric("crossfade_legacy_messages_total{outcome=\"taken\"}", 6.0).await;
    api.until_metric("crossfade_legacy_backlog", 0.0).await;
    assert_eq!(gateway.stop().await, 0);
    let lease = redis::cmd("EXISTS").arg("crossfade-legacy:lease").clone();
    assert_eq!(redis.0.run::<usize>(&lease).await.unwrap(), 0, "the next one need not wait");
}

#[tokio::test]
async fn an_id_of_the_publishers_own_is_recognised() {
    let redis = PrivateRedis::start().await;
    let (_gateway, api) = holder(&redis, "id = \"meta.id\"\nname = \"kind\"").await;
    for payload in [
        r#"{"meta":{"id":"m-1"},"kind":"tick"}"#,
        r#"{"meta":{"id":"m-1"},"kind":"tick"}"#,
        r#"{"meta":{"id":"m-2"},"kind":"tock"}"#,
    ] {
        publish(&redis, "room.42", payload).await;
    }
    log_of(&api, "room:42", 2).await;
    api.until_metric("crossfade_legacy_messages_total{outcome=\"duplicate\"}", 1.0).await;
    let (_, answer) = api.get("/api/channels/room:42/history").await;
    let named = |n: usize| (answer["events"][n]["id"].clone(), answer["events"][n]["name"].clone());
    assert_eq!(named(0), (json!("m-1"), json!("tick")));
    assert_eq!(named(1), (json!("m-2"), json!("tock")));
    // One who publishes to the gateway under the same id says the same.
    let again = json!({ "channel": "room:42", "id": "m-2", "data": 1 });
    assert_eq!(api.post("/api/publish", again).await.1["duplicate"], true);
}

#[tokio::test]
async fn what_can_be_no_event_is_counted() {
    let redis = PrivateRedis::start().await;
    let (_gateway, api) = holder(&redis, "").await;
    publish(&redis, "room.with space", "1").await;
    publish(&redis, "room.42", &"x".repeat(300_000)).await;
    publish(&redis, "room.42", "2").await;
    assert_eq!(log_of(&api, "room:42", 1).await, [json!(2)]);
    api.until_metric("crossfade_legacy_messages_total{outcome=\"refused\"}", 2.0).await;
}

#[tokio::test]
async fn a_redis_that_comes_back_is_listened_to_again() {
    let mut redis = PrivateRedis::start().await;
    let (_gateway, api) = holder(&redis, "lease = \"600ms\"").await;
    publish(&redis, "room.42", "1").await;
    log_of(&api, "room:42", 1).await;
    redis.0.kill();
    api.until_metric("crossfade_legacy_interruptions_total", 1.0).await;
    api.until_metric("crossfade_legacy_holder", 0.0).await;
    redis.0.restart().await;
    api.until_metric("crossfade_legacy_holder", 1.0).await;
    publish(&redis, "room.42", "2").await;
    assert_eq!(log_of(&api, "room:42", 2).await, [json!(1), json!(2)]);
}

/// Everything on one Redis: the logs, the old channels, two nodes.
fn everything(config: &mut Config, redis: &PrivateRedis, more: &str) {
    config.broker.kind = crossfade::broker::BrokerKind::Redis;
    config.broker.redis.url = crossfade::broker::redis::RedisUrl::new(&*redis.0.url);
    config.legacy.redis = Some(taking(redis, more));
    config.legacy.route = vec![route("/stream/{room}", &["room:{room}"])];
}

#[tokio::test]
async fn a_new_event_is_with_the_old_readers_and_does_not_come_back() {
    let redis = PrivateRedis::start().await;
    let copying = "copy_out = [\"room\"]";
    let one = TestGateway::with(|config| everything(config, &redis, copying)).await;
    let other = TestGateway::with(|config| everything(config, &redis, copying)).await;
    let apis = [Api::of(one.addr), Api::of(other.addr)];
    eventually("one of them takes in", async || {
        let [one, other] = &apis;
        let holders = one.metric("crossfade_legacy_holder").await
            + other.metric("crossfade_legacy_holder").await;
        (holders == 1.0).then_some(())
    })
    .await;
    let mut reader = Client::open(&*redis.0.url).unwrap().get_async_pubsub().await.unwrap();
    reader.psubscribe("room.*").await.unwrap();
    let mut heard = reader.into_on_message();
    let mut next = async || {
        let message = soon("the old reader hears", heard.next()).await.unwrap();
        (message.get_channel_name().to_owned(), message.get_payload::<String>().unwrap())
    };
    let room = "room.42".to_owned();
    for (n, api) in apis.iter().enumerate() {
        api.publish("room:42", json!({ "new": n })).await;
        assert_eq!(next().await, (room.clone(), format!("{{\"new\":{n}}}")));
        // What does not go to an old channel is not copied.
        api.publish("other:42", n).await;
        publish(&redis, "room.42", &format!("{{\"old\":{n}}}")).await;
        assert_eq!(next().await, (room.clone(), format!("{{\"old\":{n}}}")));
    }
    publish(&redis, "room.42", "\"end\"").await;
    assert_eq!(next().await.1, "\"end\"", "nothing was copied back");
    let log = log_of(&apis[0], "room:42", 5).await;
    let [new, old] = ["new", "old"];
    let expected =
        [json!({ new: 0 }), json!({ old: 0 }), json!({ new: 1 }), json!({ old: 1 }), json!("end")];
    assert_eq!(log, expected);
    for api in &apis {
        api.until_metric("crossfade_legacy_copies_total{outcome=\"sent\"}", 1.0).await;
        api.until_metric("crossfade_legacy_messages_total{outcome=\"copy\"}", 2.0).await;
    }
}
