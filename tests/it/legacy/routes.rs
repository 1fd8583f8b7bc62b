//! Addresses of the legacy server, serve_routes from the logs.

use crossfade::{
    config::Config,
    legacy::{Backend, LegacyConfig},
};
use serde_json::json;

use super::{ingest_config, route, with_route};
use crate::support::{
    client::Ws,
    eventually::eventually,
    gateway::{Api, TestGateway},
    legacy_server::{LegacyServer, publish},
    raw::Raw,
    redis::PrivateRedis,
};

const STREAM: &str = "GET /stream/42 HTTP/1.1\r\n";

fn serve_routes(config: &mut Config) {
    config.legacy = LegacyConfig {
        side: Backend::Gateway,
        route: vec![
            route("/stream/{room}", &["room:{room}"]),
            route("/both", &["room:{query:a}", "room:{query:b}"]),
            route("/mine", &["inbox:{user}"]),
        ],
        ..LegacyConfig::default()
    };
}

#[tokio::test]
async fn a_route_streams_its_channel_with_the_raw_payload() {
    let gateway = TestGateway::with(serve_routes).await;
    let api = Api::of(gateway.addr);
    let mut stream = Raw::send(gateway.addr, STREAM, &[]).await;
    assert_eq!(stream.header("content-type"), Some("text/event-stream"));
    stream.until("event: open\n").await;
    let position = api.publish("room:42", json!({ "text": "hi" })).await;
    stream.until(&format!("id: {position}\ndata: {{\"text\":\"hi\"}}\n\n")).await;
    let cookie = stream.header("set-cookie").unwrap();
    assert!(cookie.starts_with("crossfade_client=") && cookie.contains("; HttpOnly; SameSite=Lax"));
    // A browser that has the cookie is not given another.
    let with_cookie = [("cookie", cookie.split(';').next().unwrap())];
    assert_eq!(Raw::send(gateway.addr, STREAM, &with_cookie).await.header("set-cookie"), None);
    assert_eq!(api.metric("crossfade_legacy_requests_total{side=\"gateway\"}").await, 2.0);
    // It resumes from `Last-Event-ID`.
    api.publish("room:42", 2).await;
    let last = [("last-event-id", &*position)];
    let mut resumed = Raw::send(gateway.addr, STREAM, &last).await;
    let body = resumed.until("data: 2\n\n").await;
    assert!(!body.contains("hi") && !body.contains("reset"), "{body}");
}

#[tokio::test]
async fn a_route_can_have_several_channels() {
    let gateway = TestGateway::with(serve_routes).await;
    let api = Api::of(gateway.addr);
    let mut both = Raw::send(gateway.addr, "GET /both?a=1&b=2 HTTP/1.1\r\n", &[]).await;
    both.until("event: open\n").await;
    api.publish("room:1", "one").await;
    api.publish("room:2", "two").await;
    both.until("data: \"one\"\n\n").await;
    both.until("data: \"two\"\n\n").await;
    let (status, answer) = api.get("/both?a=1").await;
    assert_eq!(status, 400);
    assert!(
        answer["error"]["message"].as_str().unwrap().contains("query parameter missing: ?b="),
        "{answer}"
    );
    let (status, answer) = api.get("/stream/a%20b").await;
    assert_eq!((status, &answer["error"]["code"]), (400, &"channel_invalid".into()));
    assert_eq!(api.get("/stream/1/more").await.0, 404);
}

#[tokio::test]
async fn a_stream_resumes_from_an_id_of_the_upstream() {
    let gateway = TestGateway::with(serve_routes).await;
    let api = Api::of(gateway.addr);
    for n in 0..5 {
        let event = json!({ "channel": "room:42", "id": format!("m-{n}"), "data": n });
        api.post("/api/publish", event).await;
    }
    let resumed = async |last: &str| {
        let mut stream = Raw::send(gateway.addr, STREAM, &[("last-event-id", last)]).await;
        api.publish("room:42", "end").await;
        stream.until("data: \"end\"\n\n").await
    };
    let body = resumed("m-2").await;
    assert!(!body.contains("data: 2\n") && body.contains("data: 3\n"), "{body}");
    assert!(body.contains("data: 4\n"), "{body}");
    // An unknown id is not an error: an EventSource would never reconnect.
    for unknown in ["m-unknown", "1700000000000-0", "has space"] {
        let body = resumed(unknown).await;
        assert!(!body.contains("data: 4\n"), "{unknown}: {body}");
    }
}

#[tokio::test]
async fn permissions_and_origins_apply_to_routes() {
    let gateway = TestGateway::with(|config| {
        serve_routes(config);
        config.auth.environment = "production".to_owned();
        config.auth.anonymous = Some(true);
    })
    .await;
    let api = Api::of(gateway.addr);
    let (status, answer) = api.get("/stream/42").await;
    assert_eq!((status, &answer["error"]["code"]), (403, &"forbidden".into()), "{answer}");
    let (status, answer) = api.get("/mine").await;
    assert_eq!((status, &answer["error"]["code"]), (401, &"unauthorised".into()), "{answer}");
    let origin = [("origin", "https://elsewhere.example")];
    let stream = Raw::send(gateway.addr, STREAM, &origin).await;
    assert_eq!(stream.status(), 403);
}

#[tokio::test]
async fn the_upstream_gets_the_last_event_id_that_it_knows() {
    let redis = PrivateRedis::start().await;
    let server = LegacyServer::start(&redis).await;
    let gateway = TestGateway::with(|config| {
        with_route(config, &server, Backend::Upstream);
        config.legacy.route = vec![route("/echo/{room}", &["room:{room}"])];
    })
    .await;
    let api = Api::of(gateway.addr);
    let event = json!({ "channel": "room:42", "id": "m-7", "data": 7 });
    let position = api.post("/api/publish", event).await.1["position"].as_str().unwrap().to_owned();
    for (last, forwarded) in [(&*position, "m-7"), ("m-5", "m-5"), ("1700-1", "1700-1")] {
        let headers = [("last-event-id", last)];
        let mut echo = Raw::send(gateway.addr, "GET /echo/42 HTTP/1.1\r\n", &headers).await;
        echo.until(&format!("\"last-event-id\":\"{forwarded}\"")).await;
    }
}

#[tokio::test]
async fn other_methods_stay_with_the_upstream() {
    let redis = PrivateRedis::start().await;
    let server = LegacyServer::start(&redis).await;
    let gateway = TestGateway::with(|config| with_route(config, &server, Backend::Gateway)).await;
    let mut stream = Raw::send(gateway.addr, STREAM, &[]).await;
    stream.until("event: open\n").await;
    let begin = "POST /stream/42 HTTP/1.1\r\ncontent-length: 0\r\n";
    let mut posted = Raw::send(gateway.addr, begin, &[]).await;
    posted.until("event: hello\n").await;
}

#[tokio::test]
async fn text_that_is_not_json_is_raw_text_on_a_route_and_a_string_in_the_envelope() {
    let redis = PrivateRedis::start().await;
    let gateway = TestGateway::with(|config| {
        serve_routes(config);
        config.legacy.redis = Some(ingest_config(&redis, ""));
    })
    .await;
    let api = Api::of(gateway.addr);
    let mut stream = Raw::send(gateway.addr, STREAM, &[]).await;
    stream.until("event: open\n").await;
    let mut ws = Ws::open(gateway.addr).await;
    ws.subscribe("room:42", None).await;
    api.until_metric("crossfade_legacy_holder", 1.0).await;
    eventually("the node receives the message", async || {
        (publish(&redis, "room.42", "hello\nyou").await == 1).then_some(())
    })
    .await;
    stream.until("data: hello\ndata: you\n\n").await;
    let event = ws.expect("event").await;
    assert_eq!(event["data"], "hello\nyou");
}
