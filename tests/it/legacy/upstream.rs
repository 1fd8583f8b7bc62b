//! Reverse proxy: requests, streams and WebSockets are forwarded unchanged and unbuffered.

use std::{net::SocketAddr, time::Duration};

use crossfade::legacy::Backend;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::with_route;
use crate::support::{
    eventually::{eventually, soon},
    gateway::{Api, GatewayProcess, TestGateway},
    legacy_server::{LegacyServer, publish},
    raw::Raw,
    redis::PrivateRedis,
};

/// A gateway with this upstream and no routes.
async fn proxy_to(server: &LegacyServer) -> TestGateway {
    TestGateway::with(|config| config.legacy.upstream = Some(server.url.parse().unwrap())).await
}

/// Waits until the legacy server has this number of open streams, tunnels and pending requests.
async fn until_open(api: &Api, number: &str) {
    eventually(format!("the legacy server has {number} open"), async || {
        (api.text("/open").await == number).then_some(())
    })
    .await;
}

#[tokio::test]
async fn requests_and_responses_are_forwarded_unchanged() {
    let redis = PrivateRedis::start().await;
    let server = LegacyServer::start(&redis).await;
    let gateway = proxy_to(&server).await;
    let begin = "PUT /echo/a%20b?x=1&y=%2F HTTP/1.1\r\ncontent-length: 2\r\n";
    let headers = [
        ("cookie", "session=7"),
        ("authorization", "Bearer legacy-token"),
        ("connection", "keep-alive, x-mine"),
        ("x-mine", "1"),
        ("x-forwarded-for", "198.51.100.1"),
        ("origin", "https://elsewhere.example"),
    ];
    let mut answer = Raw::send(gateway.addr, begin, &headers).await;
    answer.socket.write_all(b"{}").await.unwrap();
    let body = answer.until("rawHeaders").await;
    let body = &body[body.find('{').unwrap()..=body.rfind('}').unwrap()];
    let echo: Value = serde_json::from_str(body).unwrap();
    assert_eq!(echo["method"], "PUT");
    assert_eq!(echo["url"], "/echo/a%20b?x=1&y=%2F");
    let received = &echo["headers"];
    assert_eq!(received["cookie"], "session=7");
    assert_eq!(received["authorization"], "Bearer legacy-token");
    assert_eq!(received["content-length"], "2");
    assert_eq!(received["host"], gateway.addr.to_string());
    assert_eq!(received["x-forwarded-for"], "127.0.0.1");
    assert_eq!(received["x-forwarded-proto"], "http");
    assert_eq!(received["x-forwarded-host"], gateway.addr.to_string());
    assert_eq!(received["x-mine"], Value::Null);
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.head.matches("set-cookie: ").count(), 2, "{}", answer.head);
    assert_eq!(answer.header("x-hop"), None);
    // Errors of the upstream are forwarded; the gateway's own paths are not.
    let not_found = Raw::send(gateway.addr, "GET /nowhere HTTP/1.1\r\n", &[]).await;
    assert_eq!(not_found.status(), 404);
    let api = Api::of(gateway.addr);
    assert_eq!(api.text("/nowhere").await, "not found on the legacy server\n");
    assert_eq!(api.get("/health/ready").await.0, 200);
    let forwarded = api.metric("crossfade_legacy_upstream_total{answer=\"404\"}").await;
    assert_eq!(forwarded, 2.0);
}

#[tokio::test]
async fn events_are_forwarded_unbuffered_and_a_disconnect_reaches_the_upstream() {
    let redis = PrivateRedis::start().await;
    let server = LegacyServer::start(&redis).await;
    let gateway = proxy_to(&server).await;
    let api = Api::of(gateway.addr);
    let accept = [("accept", "text/event-stream")];
    let mut stream = Raw::send(gateway.addr, "GET /stream/42 HTTP/1.1\r\n", &accept).await;
    assert_eq!(stream.header("content-type"), Some("text/event-stream"));
    stream.until("event: hello\ndata: {}\n\n").await;
    for n in 0..3 {
        eventually("the legacy server is subscribed", async || {
            (publish(&redis, "room.42", &format!("{{\"n\":{n}}}")).await == 1).then_some(())
        })
        .await;
        stream.until(&format!("data: {{\"n\":{n}}}\n\n")).await;
    }
    until_open(&api, "1").await;
    assert_eq!(api.metric("crossfade_legacy_streams").await, 1.0);
    drop(stream);
    until_open(&api, "0").await;
    api.until_metric("crossfade_legacy_streams", 0.0).await;
    // A client that disconnects before the response does so at the upstream too.
    let waiting = tokio::net::TcpStream::connect(gateway.addr).await.unwrap();
    let mut waiting = waiting;
    waiting.write_all(b"GET /never HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    until_open(&api, "1").await;
    drop(waiting);
    until_open(&api, "0").await;
}

#[tokio::test]
async fn bodies_are_unbuffered_in_both_directions() {
    let redis = PrivateRedis::start().await;
    let server = LegacyServer::start(&redis).await;
    let gateway = proxy_to(&server).await;
    let begin = "POST /mirror HTTP/1.1\r\ntransfer-encoding: chunked\r\n";
    let mut answer = Raw::send(gateway.addr, begin, &[]).await;
    for piece in ["one", "two", "three"] {
        let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
        answer.socket.write_all(chunk.as_bytes()).await.unwrap();
        answer.until(piece).await;
    }
    answer.socket.write_all(b"0\r\n\r\n").await.unwrap();
    answer.until("\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn a_websocket_is_tunnelled() {
    let redis = PrivateRedis::start().await;
    let server = LegacyServer::start(&redis).await;
    let gateway = proxy_to(&server).await;
    let api = Api::of(gateway.addr);
    let headers = [("connection", "Upgrade"), ("upgrade", "websocket")];
    let mut socket = Raw::send(gateway.addr, "GET /socket HTTP/1.1\r\n", &headers).await;
    assert_eq!(socket.status(), 101);
    socket.socket.write_all(b"\x81\x02hi").await.unwrap();
    socket.until("hi").await;
    until_open(&api, "1").await;
    drop(socket);
    until_open(&api, "0").await;
}

#[tokio::test]
async fn upstream_failures_are_reported() {
    let redis = PrivateRedis::start().await;
    let mut server = LegacyServer::start(&redis).await;
    let gateway = TestGateway::with(|config| {
        config.legacy.upstream = Some(server.url.parse().unwrap());
        config.legacy.timeout = Duration::from_millis(300);
        config.legacy.requests = 2;
    })
    .await;
    let api = Api::of(gateway.addr);
    let (status, answer) = api.get("/never").await;
    assert_eq!((status, &answer["error"]["code"]), (504, &"gateway_timeout".into()), "{answer}");
    // A truncated response does not look complete.
    let broken = api.http.get(format!("{}/broken", api.base)).send().await.unwrap();
    assert_eq!(broken.status(), 200);
    assert!(broken.text().await.is_err());
    // Requests beyond `legacy.requests` are refused.
    let stream = "GET /stream/1 HTTP/1.1\r\n";
    let held =
        [Raw::send(gateway.addr, stream, &[]).await, Raw::send(gateway.addr, stream, &[]).await];
    let (status, answer) = api.get("/echo").await;
    assert_eq!((status, &answer["error"]["code"]), (503, &"node_full".into()), "{answer}");
    drop(held);
    eventually("a request is accepted again", async || {
        (api.get("/echo").await.0 == 200).then_some(())
    })
    .await;
    server.kill().await;
    let (status, answer) = api.get("/echo").await;
    assert_eq!((status, &answer["error"]["code"]), (502, &"bad_gateway".into()), "{answer}");
    // An EventSource would never reconnect after a 502, so it gets a stream that makes it retry.
    let accept = [("accept", "text/event-stream")];
    let mut source = Raw::send(gateway.addr, stream, &accept).await;
    assert_eq!(source.status(), 200);
    assert!(source.until("\n\n").await.starts_with("retry: "));
}

#[tokio::test]
async fn an_upstream_loop_is_detected() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gateway = TestGateway::with(|config| {
        config.server.listen = free;
        config.legacy.upstream = Some(format!("http://{free}").parse().unwrap());
    })
    .await;
    let (status, answer) = Api::of(gateway.addr).get("/anything").await;
    assert_eq!(status, 502);
    assert!(answer["error"]["message"].as_str().unwrap().contains("leads back"), "{answer}");
}

#[tokio::test]
async fn a_stopping_node_ends_proxied_streams_cleanly() {
    let redis = PrivateRedis::start().await;
    let server = LegacyServer::start(&redis).await;
    let with_route =
        TestGateway::with(|config| with_route(config, &server, Backend::Upstream)).await;
    for gateway in [proxy_to(&server).await, with_route] {
        let mut stream = Raw::send(gateway.addr, "GET /stream/42 HTTP/1.1\r\n", &[]).await;
        stream.until("event: hello").await;
        assert_eq!(gateway.stop().await, 0);
        // The final chunk makes it a complete response.
        stream.until("\r\n0\r\n\r\n").await;
        let end = soon("the socket ends", stream.socket.read(&mut [0])).await;
        assert_eq!(end.unwrap(), 0);
    }
}

#[tokio::test]
async fn an_https_upstream_is_verified() {
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let files = tempfile::TempDir::new().unwrap();
    let file = |name: &str, pem: String| {
        let path = files.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let chain = file("chain.pem", certificate.cert.pem());
    let key = file("key.pem", certificate.signing_key.serialize_pem());
    let server = LegacyServer::with_tls(&chain, &key).await;
    let url = [("CROSSFADE_LEGACY__UPSTREAM", &*server.url), ("SSL_CERT_FILE", &chain)];
    let trusted = GatewayProcess::start(&url).await;
    let (status, echo) = Api::of(trusted.addr).get("/echo").await;
    assert_eq!(status, 200, "{echo}");
    // Without the certificate as a trusted root, the request fails.
    let untrusted = GatewayProcess::start(&url[..1]).await;
    let (status, answer) = Api::of(untrusted.addr).get("/echo").await;
    assert_eq!(status, 502);
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("certificate"), "{message}");
}

#[tokio::test]
async fn a_stream_is_forwarded_over_http2() {
    let redis = PrivateRedis::start().await;
    let server = LegacyServer::start(&redis).await;
    let gateway = TestGateway::with(|config| with_route(config, &server, Backend::Upstream)).await;
    let api = Api::of(gateway.addr);
    let http = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let url = |addr: SocketAddr| format!("http://{addr}/stream/42");
    let mut stream = http.get(url(gateway.addr)).send().await.unwrap();
    assert_eq!(stream.version(), reqwest::Version::HTTP_2);
    let cookie = stream.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(cookie.starts_with("crossfade_client="), "{cookie}");
    let piece = soon("the first chunk arrives", stream.chunk()).await.unwrap().unwrap();
    assert!(piece.starts_with(b"retry: 200\nevent: hello"), "{piece:?}");
    until_open(&api, "1").await;
    drop(stream);
    until_open(&api, "0").await;
}
