//! What operators and backends ask for, and how it is refused.

use std::time::{Duration, Instant};

use crossfade::auth::{ApiKeyConfig, Scope, Secret};
use serde_json::{Value, json};

use super::{COMPONENT, Fleet};
use crate::support::{
    client::Ws,
    eventually::eventually,
    gateway::{Api, GatewayProcess, TestGateway},
    redis::PrivateRedis,
};

async fn put(api: &Api, component: &str, body: Value) -> (u16, Value) {
    let url = format!("{}/api/migration/feature-flags/{component}", api.base);
    let answer = api.http.put(url).body(body.to_string()).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_slower_is_told_so_and_changes_nothing() {
    let gateway = TestGateway::start().await;
    let api = Api::of(gateway.addr);
    let (status, flag) = put(&api, COMPONENT, json!({ "rolloutPercentage": 5 })).await;
    assert_eq!((status, &flag["version"], &flag["status"]), (200, &json!(1), &json!("running")));
    let change = json!({ "rolloutPercentage": 25, "version": 1, "reason": "good so far" });
    assert_eq!(put(&api, COMPONENT, change.clone()).await.0, 200);
    let (status, answer) = put(&api, COMPONENT, change).await;
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("version_conflict")));
    let said = answer["error"]["message"].as_str().unwrap();
    assert!(said.contains("has version 2, not 1"), "{said}");

    for (body, words) in [
        (json!({ "rolloutPercentage": 101 }), "from 0 to 100"),
        (json!({ "rolloutPercentage": "5" }), "rolloutPercentage"),
        (json!({ "percentage": 5 }), "unknown field"),
        (json!({ "algorithm": "md5" }), "algorithm"),
        (json!({ "conditions": { "usergroups": [] } }), "unknown field"),
    ] {
        let (status, answer) = put(&api, COMPONENT, body).await;
        assert_eq!((status, &answer["error"]["code"]), (400, &json!("malformed")), "{answer}");
        let said = answer["error"]["message"].as_str().unwrap();
        assert!(said.contains(words), "{said}");
    }
    let (status, answer) = put(&api, COMPONENT, json!({ "salt": "other" })).await;
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("rollout_refused")));
    assert_eq!(put(&api, "Not a name", json!({})).await.0, 400);
    let (status, answer, _) = api.post("/api/migration/rollback/websocket-transport", "").await;
    assert_eq!(status, 400, "{answer}");
    let (status, ..) = api.post("/api/migration/pause/other", "").await;
    assert_eq!(status, 404);
    let (status, ..) = api.post("/api/migration/dance/websocket-transport", "").await;
    assert_eq!(status, 404);

    let (_, history) = api.get("/api/migration/history").await;
    let entries = history["entries"].as_array().unwrap();
    assert_eq!(entries.len(), 2, "{history}");
    assert_eq!(entries[0]["percentage"], json!([5.0, 25.0]));
    assert_eq!(entries[0]["reason"], "good so far");
    assert_eq!(gateway.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_operators_change_rollouts() {
    let gateway = TestGateway::with(|config| {
        config.auth.environment = "production".to_owned();
        let key = |name: &str, key: &str, scope| ApiKeyConfig {
            name: name.to_owned(),
            key: Some(Secret::new(key)),
            file: None,
            scopes: vec![scope],
        };
        config.auth.api_keys = vec![
            key("reader", "a-key-that-reads-0123456789", Scope::Read),
            key("ops", "a-key-that-does-0123456789", Scope::Admin),
        ];
    })
    .await;
    let api = Api::of(gateway.addr);
    let path = format!("{}/api/migration/start/{COMPONENT}", api.base);
    let with = |key: &str| api.http.post(&path).bearer_auth(key).body(r#"{"percentage":1}"#).send();
    assert_eq!(api.http.post(&path).send().await.unwrap().status(), 401);
    assert_eq!(with("a-key-that-reads-0123456789").await.unwrap().status(), 403);
    assert_eq!(with("a-key-that-does-0123456789").await.unwrap().status(), 200);
    let reads = |path: &str, key: &str| {
        let url = format!("{}{path}", api.base);
        api.http.get(url).bearer_auth(key).send()
    };
    let flags = reads("/api/migration/history", "a-key-that-reads-0123456789").await.unwrap();
    let history: Value = flags.json().await.unwrap();
    assert_eq!(history["entries"][0]["by"], "key ops");
    assert_eq!(api.get("/api/migration/feature-flags").await.0, 401);
    assert_eq!(gateway.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_broker_remembers_rollouts_over_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let mut gateway = GatewayProcess::start(&[("CROSSFADE_BROKER__MEMORY__DATA_DIR", path)]).await;
    let api = Api::of(gateway.addr);
    for share in 1..=20 {
        assert_eq!(put(&api, COMPONENT, json!({ "rolloutPercentage": share })).await.0, 200);
    }
    gateway.kill().await;
    gateway.restart().await;
    eventually("the rollout is there again", async || {
        let (_, flag) = api.get(&format!("/api/migration/feature-flags/{COMPONENT}")).await;
        (flag["version"] == 20 && flag["effectivePercentage"] == 20).then_some(())
    })
    .await;
    let (_, history) = api.get("/api/migration/history").await;
    assert_eq!(history["entries"].as_array().unwrap().len(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_agree_soon() {
    let fleet = Fleet::on(PrivateRedis::durable().await, &[]).await;
    let mut slowest = Duration::ZERO;
    for share in 1..=5 {
        let begin = Instant::now();
        assert_eq!(
            put(&fleet.apis[0], COMPONENT, json!({ "rolloutPercentage": share })).await.0,
            200
        );
        super::knows(&fleet.apis[1], share).await;
        slowest = slowest.max(begin.elapsed());
    }
    crate::support::tell(format!("the other node knew after {slowest:?} at the latest"));
    // One second on a quiet machine; what is held here is that nobody waits for a restart.
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
}

/// An SDK's client on WebSocket, and what it is asked while a rollout is stopped in some way.
async fn asked_when(mode: &str) -> String {
    let gateway = TestGateway::with(|config| {
        config.rollout.drain.within = Duration::ZERO;
        config.connection.drain_spread = Duration::from_millis(200);
    })
    .await;
    let api = Api::of(gateway.addr);
    assert_eq!(put(&api, COMPONENT, json!({ "rolloutPercentage": 100 })).await.0, 200);
    let mut ws = Ws::open(gateway.addr).await;
    ws.send(json!({ "type": "connect", "id": 1, "client": "test/1", "unit": "u1" })).await;
    ws.subscribe("news", None).await;
    let stop = json!({ "mode": mode, "reason": "to see it" });
    let (status, ..) = api.post(&format!("/api/migration/stop/{COMPONENT}"), stop).await;
    assert_eq!(status, 200);
    let (_, flags) = api.get("/api/migration/feature-flags").await;
    assert_eq!(flags["flags"][0]["stop"], mode);
    // Whoever is to be asked has been by the time the figures of that version are there.
    let version = flags["flags"][0]["version"].as_u64().unwrap();
    eventually("the clients have been counted by that version", async || {
        let (_, flags) = api.get("/api/migration/feature-flags").await;
        let node = &flags["figures"]["nodes"][0];
        (node["version"].as_u64()? == version && node["pending"] == 0).then_some(())
    })
    .await;
    api.publish("news", 1).await;
    let frame = ws.next().await;
    let here = api.get("/api/route?client=u1&transport=websocket").await.1["transport"].clone();
    let new = api.get("/api/route?client=u2").await.1["transport"].clone();
    format!("{} {here} {new}", frame["type"]).replace('"', "")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stops_go_from_soft_to_hard() {
    assert_eq!(asked_when("freeze").await, "event websocket sse");
    assert_eq!(asked_when("stop-and-keep").await, "event sse sse");
    assert_eq!(asked_when("drain-back").await, "migrate sse sse");
    assert_eq!(asked_when("hard").await, "goodbye sse sse");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hard_stop_closes_connections_while_the_store_is_away() {
    let mut fleet = Fleet::on(PrivateRedis::durable().await, &[]).await;
    fleet.order("start", json!({ "percentage": 100 })).await;
    let mut ws = Ws::open(fleet.nodes[0].addr).await;
    ws.send(json!({ "type": "connect", "id": 1, "client": "test/1", "unit": "u1" })).await;
    fleet.store.0.kill();
    let stop = json!({ "mode": "hard", "reason": "to see it" });
    let (status, answer, _) =
        fleet.apis[0].post(&format!("/api/migration/stop/{COMPONENT}"), stop).await;
    assert_eq!((status, &answer["saved"]), (202, &json!(false)), "{answer}");
    let frame = ws.next().await;
    assert_eq!((&frame["type"], &frame["reason"]), (&json!("goodbye"), &json!("rollback")));
    fleet.store.0.restart().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_use_the_new_transport_is_served_and_counted_in_its_arm() {
    let mut fleet = Fleet::on(PrivateRedis::durable().await, &[]).await;
    fleet.order("start", json!({ "percentage": 100 })).await;
    fleet.depart(10, None, true, "sse").await;
    let mut plain = Ws::open(fleet.nodes[0].addr).await;
    plain.subscribe("news", None).await;
    eventually("they are counted where they belong", async || {
        let (_, answer) = fleet.apis[0].get("/api/migration/feature-flags").await;
        let figures = &answer["figures"];
        let counted = figures["behind"] == 10 && figures["assignedUsersPercentage"] == 100.0;
        (counted && figures["websocket"] == 1 && figures["pending"] == 0).then_some(())
    })
    .await;
    fleet.apis[0].publish("news", 1).await;
    fleet.all_have(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backends_ask_by_ofrep() {
    let gateway = TestGateway::start().await;
    let api = Api::of(gateway.addr);
    let groups = json!({ "rolloutPercentage": 100, "conditions": { "userGroups": ["beta"] } });
    assert_eq!(put(&api, COMPONENT, groups).await.0, 200);
    let path = format!("/ofrep/v1/evaluate/flags/{COMPONENT}");
    let ask = |context: Value| api.post(&path, json!({ "context": context }));
    let (status, yes, _) = ask(json!({ "targetingKey": "u1", "groups": "staff,beta" })).await;
    assert_eq!((status, &yes["value"], &yes["reason"]), (200, &json!(true), &json!("SPLIT")));
    assert_eq!((&yes["variant"], &yes["metadata"]["cohort"]), (&json!("websocket"), &json!("new")));
    let (_, no, _) = ask(json!({ "targetingKey": "u1", "groups": ["staff"] })).await;
    assert_eq!((&no["value"], &no["reason"]), (&json!(false), &json!("TARGETING_MATCH")));
    let (status, answer, _) = ask(json!({})).await;
    assert_eq!((status, &answer["errorCode"]), (400, &json!("TARGETING_KEY_MISSING")));
    let (status, answer, _) = api.post(&path, "{").await;
    assert_eq!((status, &answer["errorCode"]), (400, &json!("PARSE_ERROR")));
    let other = json!({ "context": { "targetingKey": "u1" } });
    let (status, answer, _) = api.post("/ofrep/v1/evaluate/flags/other", &other).await;
    assert_eq!((status, &answer["errorCode"]), (404, &json!("FLAG_NOT_FOUND")));

    let url = format!("{}/ofrep/v1/evaluate/flags", api.base);
    let all = api.http.post(&url).body(other.to_string()).send().await.unwrap();
    let tag = all.headers()["etag"].clone();
    let flags: Value = all.json().await.unwrap();
    assert_eq!(flags["flags"][0]["key"], COMPONENT);
    let again = api.http.post(&url).header("if-none-match", &tag).body(other.to_string());
    assert_eq!(again.send().await.unwrap().status(), 304);
    assert_eq!(gateway.stop().await, 0);
}
