//! HTTPS: WebSocket and SSE through TLS, HTTP/2 where the client can; and HTTP/2 without TLS.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use crossfade::config::Config;
use futures_util::{SinkExt as _, StreamExt as _};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_tungstenite::{
    Connector, MaybeTlsStream, WebSocketStream, client_async_tls_with_config, tungstenite::Message,
};

use crate::support::{
    eventually::{eventually, soon},
    gateway::{Api, TestGateway},
};

/// A gateway with a certificate of its own, and what trusts it.
struct Secure {
    gateway: TestGateway,
    certificate: rcgen::CertifiedKey<rcgen::KeyPair>,
    _files: TempDir,
}

impl Secure {
    async fn start() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let files = TempDir::new().unwrap();
        let (chain, key) = (files.path().join("chain.pem"), files.path().join("key.pem"));
        std::fs::write(&chain, certificate.cert.pem()).unwrap();
        std::fs::write(&key, certificate.signing_key.serialize_pem()).unwrap();
        let gateway = TestGateway::with(|config| {
            config.server.tls.certificate = Some(chain);
            config.server.tls.key = Some(key);
            change(config);
        })
        .await;
        Self { gateway, certificate, _files: files }
    }

    fn http(&self) -> reqwest::ClientBuilder {
        let root = reqwest::Certificate::from_pem(self.certificate.cert.pem().as_bytes()).unwrap();
        reqwest::Client::builder()
            .tls_certs_only([root])
            .resolve("localhost", SocketAddr::from(([127, 0, 0, 1], self.gateway.addr.port())))
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.gateway.addr.port())
    }

    async fn websocket(&self) -> WebSocketStream<MaybeTlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.cert.der().clone()).unwrap();
        let tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let stream = TcpStream::connect(self.gateway.addr).await.unwrap();
        let url = format!("wss://localhost:{}/ws", self.gateway.addr.port());
        let connector = Some(Connector::Rustls(Arc::new(tls)));
        client_async_tls_with_config(url, stream, None, connector).await.unwrap().0
    }
}

#[tokio::test]
async fn a_websocket_and_streams_of_both_http_versions_go_through_tls() {
    let secure = Secure::start().await;
    let mut ws = secure.websocket().await;
    let subscribe = r#"{"type":"subscribe","id":1,"channel":"news"}"#;
    ws.send(Message::text(subscribe)).await.unwrap();
    until(&mut ws, "subscribed").await;

    let second = secure.http().build().unwrap();
    let first = secure.http().http1_only().build().unwrap();
    let mut on_second = second.get(secure.url("/events?channel=news")).send().await.unwrap();
    let mut on_first = first.get(secure.url("/events?channel=news")).send().await.unwrap();
    assert_eq!(on_second.version(), reqwest::Version::HTTP_2);
    assert_eq!(on_first.version(), reqwest::Version::HTTP_11);
    contains(&mut on_second, "event: open").await;
    contains(&mut on_first, "event: open").await;

    let big = format!("{{\"channel\":\"news\",\"data\":\"{}\"}}", "x".repeat(200_000));
    for body in [r#"{"channel":"news","data":"hello"}"#, &big] {
        let answer = second.post(secure.url("/api/publish")).body(body.to_owned()).send().await;
        assert_eq!(answer.unwrap().status(), 200);
    }
    assert_eq!(until(&mut ws, "event").await["data"], "hello");
    assert_eq!(until(&mut ws, "event").await["data"].as_str().unwrap().len(), 200_000);
    contains(&mut on_second, "\"hello\"").await;
    contains(&mut on_second, "xxx\"").await;
    contains(&mut on_first, "\"hello\"").await;
    contains(&mut on_first, "xxx\"").await;
    drop((ws, on_first, on_second));
    assert_eq!(secure.gateway.stop().await, 0);
}

#[tokio::test]
async fn many_streams_share_one_http2_connection_without_tls() {
    let gateway = TestGateway::start().await;
    let api = Api::of(gateway.addr);
    let http = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let mut streams = Vec::new();
    for n in 0..20 {
        let url = format!("http://{}/events?channel=room:{n}&channel=all", gateway.addr);
        let mut stream = http.get(url).send().await.unwrap();
        assert_eq!(stream.version(), reqwest::Version::HTTP_2);
        contains(&mut stream, "event: open").await;
        streams.push(stream);
    }
    api.publish("all", "everybody").await;
    for (n, stream) in streams.iter_mut().enumerate() {
        contains(stream, "\"everybody\"").await;
        api.publish(&format!("room:{n}"), format!("only {n}")).await;
        contains(stream, &format!("\"only {n}\"")).await;
    }
    // A stream that the client gives up is given up here too.
    api.until_metric("crossfade_connections{transport=\"sse\"}", 20.0).await;
    drop(streams);
    api.until_metric("crossfade_connections{transport=\"sse\"}", 0.0).await;
    assert_eq!(gateway.stop().await, 0);
}

#[tokio::test]
async fn a_handshake_that_does_not_come_to_an_end_is_given_up() {
    let secure =
        Secure::with(|config| config.server.header_timeout = Duration::from_millis(300)).await;
    // Nothing, and the beginning of a ClientHello.
    for begun in [&b""[..], &[0x16, 3, 1, 2, 0, 1, 0]] {
        let mut socket = TcpStream::connect(secure.gateway.addr).await.unwrap();
        socket.write_all(begun).await.unwrap();
        let mut rest = Vec::new();
        drop(soon("the gateway hangs up", socket.read_to_end(&mut rest)).await);
    }
}

#[tokio::test]
async fn a_stream_on_http2_counts_as_a_client_and_is_told_to_come_back() {
    let gateway = TestGateway::with(|config| {
        config.server.limits.clients = 1;
        config.server.limits.sockets = 1;
        config.server.header_timeout = Duration::from_millis(300);
        config.server.idle_timeout = Duration::from_millis(300);
    })
    .await;
    let http = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let url = format!("http://{}/events?channel=a", gateway.addr);
    let get = || http.get(&url).header("origin", "http://localhost:3000").send();
    let mut first = get().await.unwrap();
    assert_eq!(first.headers()["access-control-allow-origin"], "http://localhost:3000");
    contains(&mut first, "event: open").await;
    let mut second = get().await.unwrap();
    assert_eq!(second.status(), 200);
    contains(&mut second, "event: crossfade.goodbye").await;
    // The socket is a client's now: there is room for another, and no rest ends it.
    let api = Api::of(gateway.addr);
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    for _ in 0..10 {
        tick.tick().await;
        assert_eq!(api.get("/health/live").await.0, 200);
    }
    api.publish("a", "still here").await;
    contains(&mut first, "still here").await;
    drop(first);
    eventually("its place is free", async || {
        // A stream that stays has no length.
        get().await.unwrap().content_length().is_none().then_some(())
    })
    .await;
}

#[test]
fn half_a_pair_of_files_is_refused_with_what_is_missing() {
    let half =
        crossfade::http::TlsConfig { certificate: Some("/nowhere/chain.pem".into()), key: None };
    let said = crossfade::http::accept::tls_acceptor(&half).map(drop).unwrap_err().to_string();
    assert_eq!(said, "server.tls.key is missing: set both certificate and key, or neither");
    let gone = crossfade::http::TlsConfig { key: Some("/nowhere/key.pem".into()), ..half };
    let said = crossfade::http::accept::tls_acceptor(&gone).map(drop).unwrap_err().to_string();
    assert!(said.starts_with("server.tls: /nowhere/chain.pem: No such file"), "{said}");
}

async fn until(ws: &mut WebSocketStream<MaybeTlsStream<TcpStream>>, kind: &str) -> Value {
    loop {
        let message = soon("a frame comes", ws.next()).await.unwrap().unwrap();
        let frame: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
        if frame["type"] == kind {
            return frame;
        }
    }
}

async fn contains(stream: &mut reqwest::Response, text: &str) {
    let mut seen = String::new();
    while !seen.contains(text) {
        let piece = soon(format!("the stream has {text:?}"), stream.chunk()).await.unwrap();
        seen.push_str(std::str::from_utf8(&piece.expect("the stream ended")).unwrap());
    }
}
