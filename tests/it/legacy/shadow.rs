//! Shadow mode: users stay on the upstream, and its streams are compared with the logs.

use std::time::Duration;

use crossfade::{config::Config, legacy::Backend};
use serde_json::{Value, json};

use super::{ingest_config, with_route};
use crate::support::{
    eventually::eventually,
    gateway::{Api, TestGateway},
    legacy_server::{LegacyServer, publish},
    raw::Raw,
    redis::PrivateRedis,
};

const STREAM: &str = "GET /stream/42 HTTP/1.1\r\n";

struct ShadowSetup {
    redis: PrivateRedis,
    gateway: TestGateway,
    api: Api,
    _server: LegacyServer,
}

impl ShadowSetup {
    async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let redis = PrivateRedis::start().await;
        let server = LegacyServer::start(&redis).await;
        let gateway = TestGateway::with(|config| {
            with_route(config, &server, Backend::Shadow);
            config.legacy.redis = Some(ingest_config(&redis, "id = \"meta.id\""));
            config.legacy.shadow.within = Duration::from_millis(300);
            config.legacy.shadow.ignore = vec!["hello".to_owned()];
            change(config);
        })
        .await;
        let api = Api::of(gateway.addr);
        api.until_metric("crossfade_legacy_holder", 1.0).await;
        Self { redis, gateway, api, _server: server }
    }

    /// Opens a stream and waits until it is compared.
    async fn stream(&self) -> Raw {
        let before = self.report().await["streams"].as_u64().unwrap();
        let mut stream = Raw::send(self.gateway.addr, STREAM, &[]).await;
        stream.until("event: hello\ndata: {}\n\n").await;
        eventually("the stream is compared and the legacy server is subscribed", async || {
            let streams = self.report().await["streams"].as_u64().unwrap();
            let subscribers: (String, usize) =
                self.redis.0.run(redis::cmd("PUBSUB").arg("NUMSUB").arg("room.42")).await.unwrap();
            (before < streams && subscribers.1 == 1).then_some(())
        })
        .await;
        stream
    }

    async fn report(&self) -> Value {
        let (status, report) = self.api.get("/api/migration/shadow").await;
        assert_eq!(status, 200, "{report}");
        report
    }

    /// The report, once `room:42` has this number of events with an outcome.
    async fn until(&self, outcome: &str, number: u64) -> Value {
        eventually(format!("{number} events are {outcome}"), async || {
            let report = self.report().await;
            let count = report["channels"]["room:42"][outcome].as_u64().unwrap_or(0);
            assert!(count <= number, "{report}");
            (count == number).then_some(report)
        })
        .await
    }
}

#[tokio::test]
async fn equal_streams_and_logs_are_clean() {
    let setup = ShadowSetup::start(|_| {}).await;
    let mut stream = setup.stream().await;
    let mut second = setup.stream().await;
    for n in 0..50 {
        publish(
            &setup.redis,
            "room.42",
            &json!({ "n": n, "meta": { "id": format!("m-{n}") } }).to_string(),
        )
        .await;
        publish(&setup.redis, "room.42", "\"no id, always the same\"").await;
    }
    stream.until("{\"id\":\"m-49\"}").await;
    second.until("{\"id\":\"m-49\"}").await;
    let report = setup.until("matched", 200).await;
    assert_eq!(report["clean"], true);
    assert_eq!(report["comparing"], 2);
    let outcomes = report["channels"]["room:42"].as_object().unwrap();
    let other =
        outcomes.iter().filter(|(outcome, count)| *outcome != "matched" && **count != json!(0));
    assert_eq!(other.count(), 0, "{report}");
    // The comparison ends with the stream, without further outcomes.
    drop((stream, second));
    eventually("no stream is compared", async || {
        (setup.report().await["comparing"] == 0).then_some(())
    })
    .await;
    assert_eq!(setup.until("matched", 200).await["clean"], true);
    let metric = "crossfade_legacy_compared_total{outcome=\"matched\"}";
    assert_eq!(setup.api.metric(metric).await, 200.0);
}

#[tokio::test]
async fn differences_are_reported_with_samples() {
    let setup = ShadowSetup::start(|_| {}).await;
    let mut stream = setup.stream().await;
    // lost: the upstream sends an event that was not PUBLISHed.
    setup.api.post("/emit/42", "{\"from\":\"upstream\"}").await;
    stream.until("upstream").await;
    // extra: an event is published to the gateway only.
    setup.api.publish("room:42", "only here").await;
    // duplicated: an event is published to both.
    publish(&setup.redis, "room.42", "\"twice\"").await;
    stream.until("twice").await;
    setup.api.publish("room:42", "twice").await;
    // different: the same id with other content.
    setup.api.post("/emit/42", "{\"meta\":{\"id\":\"d\"},\"v\":1}").await;
    stream.until("\"v\":1").await;
    setup.api.publish("room:42", json!({ "meta": { "id": "d" }, "v": 2 })).await;
    // reordered.
    setup.api.post("/emit/42", "{\"meta\":{\"id\":\"a\"}}").await;
    setup.api.post("/emit/42", "{\"meta\":{\"id\":\"b\"}}").await;
    for id in ["b", "a"] {
        setup.api.publish("room:42", json!({ "meta": { "id": id } })).await;
    }
    setup.until("extra", 1).await;
    setup.until("duplicated", 1).await;
    let report = setup.until("lost", 1).await;
    assert_eq!(report["clean"], false);
    let channel = &report["channels"]["room:42"];
    assert_eq!(channel["different"], 1, "{report}");
    assert_eq!(channel["reordered"], 1, "{report}");
    let sample =
        |outcome: &str| channel["samples"][outcome][0]["data"].as_str().unwrap().to_owned();
    assert!(sample("lost").contains("upstream"));
    assert!(sample("extra").contains("only here") && sample("duplicated").contains("twice"));
}

#[tokio::test]
async fn streams_beyond_the_limit_are_forwarded_without_comparison() {
    let setup = ShadowSetup::start(|config| config.legacy.shadow.streams = 1).await;
    let _first = setup.stream().await;
    let mut second = Raw::send(setup.gateway.addr, STREAM, &[]).await;
    second.until("event: hello").await;
    let report = setup.report().await;
    assert_eq!((&report["comparing"], &report["streams_not_compared"]), (&json!(1), &json!(1)));
    publish(&setup.redis, "room.42", "7").await;
    second.until("data: 7\n\n").await;
}

#[tokio::test]
async fn the_report_needs_the_admin_scope() {
    let redis = PrivateRedis::start().await;
    let server = LegacyServer::start(&redis).await;
    let gateway = TestGateway::with(|config| {
        with_route(config, &server, Backend::Shadow);
        config.auth.environment = "production".to_owned();
        config.auth.anonymous = Some(true);
    })
    .await;
    let (status, answer) = Api::of(gateway.addr).get("/api/migration/shadow").await;
    assert_eq!((status, &answer["error"]["code"]), (403, &"forbidden".into()), "{answer}");
}
