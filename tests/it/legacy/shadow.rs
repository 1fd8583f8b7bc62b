//! Users stay with the old server, and what it sends them is compared with the logs.

use std::time::Duration;

use crossfade::{config::Config, legacy::Backend};
use serde_json::{Value, json};

use super::{placed, taking};
use crate::support::{
    eventually::eventually,
    gateway::{Api, TestGateway},
    legacy_server::{OldServer, publish},
    raw::Raw,
    redis::PrivateRedis,
};

const STREAM: &str = "GET /stream/42 HTTP/1.1\r\n";

struct Shadowed {
    redis: PrivateRedis,
    gateway: TestGateway,
    api: Api,
    _old: OldServer,
}

impl Shadowed {
    async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let redis = PrivateRedis::start().await;
        let old = OldServer::start(&redis).await;
        let gateway = TestGateway::with(|config| {
            placed(config, &old, Backend::Shadow);
            config.legacy.redis = Some(taking(&redis, "id = \"meta.id\""));
            config.legacy.shadow.within = Duration::from_millis(300);
            config.legacy.shadow.ignore = vec!["hello".to_owned()];
            change(config);
        })
        .await;
        let api = Api::of(gateway.addr);
        api.until_metric("crossfade_legacy_holder", 1.0).await;
        Self { redis, gateway, api, _old: old }
    }

    /// A stream that is compared from now on.
    async fn stream(&self) -> Raw {
        let before = self.report().await["streams"].as_u64().unwrap();
        let mut stream = Raw::send(self.gateway.addr, STREAM, &[]).await;
        stream.until("event: hello\ndata: {}\n\n").await;
        eventually("it is compared, and the old server listens", async || {
            let streams = self.report().await["streams"].as_u64().unwrap();
            let heard: (String, usize) =
                self.redis.0.run(redis::cmd("PUBSUB").arg("NUMSUB").arg("room.42")).await.unwrap();
            (before < streams && heard.1 == 1).then_some(())
        })
        .await;
        stream
    }

    async fn report(&self) -> Value {
        let (status, report) = self.api.get("/api/migration/shadow").await;
        assert_eq!(status, 200, "{report}");
        report
    }

    /// The report, once so many events of the room were found to be of this kind.
    async fn until(&self, kind: &str, number: u64) -> Value {
        eventually(format!("{number} are {kind}"), async || {
            let report = self.report().await;
            let found = report["channels"]["room:42"][kind].as_u64().unwrap_or(0);
            assert!(found <= number, "{report}");
            (found == number).then_some(report)
        })
        .await
    }
}

#[tokio::test]
async fn two_sides_that_agree_are_clean() {
    let shadowed = Shadowed::start(|_| {}).await;
    let mut stream = shadowed.stream().await;
    let mut another = shadowed.stream().await;
    for n in 0..50 {
        publish(
            &shadowed.redis,
            "room.42",
            &json!({ "n": n, "meta": { "id": format!("m-{n}") } }).to_string(),
        )
        .await;
        publish(&shadowed.redis, "room.42", "\"without an id, and always the same\"").await;
    }
    stream.until("{\"id\":\"m-49\"}").await;
    another.until("{\"id\":\"m-49\"}").await;
    let report = shadowed.until("matched", 200).await;
    assert_eq!(report["clean"], true);
    assert_eq!(report["comparing"], 2);
    let found = report["channels"]["room:42"].as_object().unwrap();
    let other = found.iter().filter(|(kind, count)| *kind != "matched" && **count != json!(0));
    assert_eq!(other.count(), 0, "{report}");
    // Who leaves leaves nothing behind.
    drop((stream, another));
    eventually("none is compared", async || {
        (shadowed.report().await["comparing"] == 0).then_some(())
    })
    .await;
    assert_eq!(shadowed.until("matched", 200).await["clean"], true);
    let metric = "crossfade_legacy_compared_total{outcome=\"matched\"}";
    assert_eq!(shadowed.api.metric(metric).await, 200.0);
}

#[tokio::test]
async fn what_differs_is_told_with_examples() {
    let shadowed = Shadowed::start(|_| {}).await;
    let mut stream = shadowed.stream().await;
    // The old server sends something that went by no PUBLISH.
    shadowed.api.post("/say/42", "{\"from\":\"the old server\"}").await;
    stream.until("the old server").await;
    // Somebody publishes to the gateway alone.
    shadowed.api.publish("room:42", "only here").await;
    // An event is published on both ways.
    publish(&shadowed.redis, "room.42", "\"twice\"").await;
    stream.until("twice").await;
    shadowed.api.publish("room:42", "twice").await;
    // The same id, another content.
    shadowed.api.post("/say/42", "{\"meta\":{\"id\":\"d\"},\"v\":1}").await;
    stream.until("\"v\":1").await;
    shadowed.api.publish("room:42", json!({ "meta": { "id": "d" }, "v": 2 })).await;
    // Another order.
    shadowed.api.post("/say/42", "{\"meta\":{\"id\":\"a\"}}").await;
    shadowed.api.post("/say/42", "{\"meta\":{\"id\":\"b\"}}").await;
    for id in ["b", "a"] {
        shadowed.api.publish("room:42", json!({ "meta": { "id": id } })).await;
    }
    shadowed.until("extra", 1).await;
    shadowed.until("doubled", 1).await;
    let report = shadowed.until("lost", 1).await;
    assert_eq!(report["clean"], false);
    let room = &report["channels"]["room:42"];
    assert_eq!(room["different"], 1, "{report}");
    assert_eq!(room["reordered"], 1, "{report}");
    let sample = |kind: &str| room["samples"][kind][0]["data"].as_str().unwrap().to_owned();
    assert!(sample("lost").contains("the old server"));
    assert!(sample("extra").contains("only here") && sample("doubled").contains("twice"));
}

#[tokio::test]
async fn no_more_streams_are_compared_than_is_said_and_all_pass() {
    let shadowed = Shadowed::start(|config| config.legacy.shadow.streams = 1).await;
    let _first = shadowed.stream().await;
    let mut second = Raw::send(shadowed.gateway.addr, STREAM, &[]).await;
    second.until("event: hello").await;
    let report = shadowed.report().await;
    assert_eq!((&report["comparing"], &report["streams_not_compared"]), (&json!(1), &json!(1)));
    publish(&shadowed.redis, "room.42", "7").await;
    second.until("data: 7\n\n").await;
}

#[tokio::test]
async fn the_report_is_for_those_who_run_the_gateway() {
    let redis = PrivateRedis::start().await;
    let old = OldServer::start(&redis).await;
    let gateway = TestGateway::with(|config| {
        placed(config, &old, Backend::Shadow);
        config.auth.environment = "production".to_owned();
        config.auth.anonymous = Some(true);
    })
    .await;
    let (status, answer) = Api::of(gateway.addr).get("/api/migration/shadow").await;
    assert_eq!((status, &answer["error"]["code"]), (403, &"forbidden".into()), "{answer}");
}
