//! Comparing what both sides of a rollout deliver, on real sockets; and a proxy that spoils one side.

use std::{net::SocketAddr, time::Duration};

use crossfade::{
    auth::{ApiKeyConfig, Scope, Secret},
    config::Config,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::support::{
    self,
    client::{Sse, Ws},
    eventually::eventually,
    gateway::{Api, TestGateway},
    pause,
};

const PATH: &str = "/api/migration/validation/websocket-transport";

/// Publishes to a channel until it is dropped.
struct Traffic(tokio::task::JoinHandle<()>);

impl Traffic {
    fn on(api: &Api, channel: &'static str) -> Self {
        let api = api.clone();
        Self(support::spawn(async move {
            for number in 0.. {
                api.publish(channel, number).await;
                pause(Duration::from_millis(20)).await;
            }
        }))
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_both_sides_deliver_is_the_same() {
    let gateway = TestGateway::start().await;
    let api = Api::of(gateway.addr);
    let mut reader = Ws::open(gateway.addr).await;
    reader.subscribe("news", None).await;
    let _other = Sse::open(gateway.addr, "channel=room:@%3D/1").await;
    let traffic = Traffic::on(&api, "news");
    assert_eq!(api.get(PATH).await.0, 404);

    let body = json!({ "phase": 1, "sampleSize": 40, "seconds": 2 });
    let (status, outcome, _) = api.post(PATH, body).await;
    assert_eq!((status, &outcome["passed"]), (200, &json!(true)), "{outcome}");
    assert_eq!((&outcome["sessions"], &outcome["phase"]), (&json!(40), &json!(1)));
    let events = outcome["events"].as_u64().unwrap();
    // Twenty sessions with a probe every 50 ms, ten with what goes on in the news.
    assert!(20 * 20 < events, "{outcome}");
    for side in ["old", "new"] {
        assert_eq!(outcome["sides"][side]["received"], events, "{outcome}");
    }
    let said = outcome["summary"].as_str().unwrap();
    assert!(said.starts_with("both sides delivered the same"), "{said}");
    support::tell(said.to_owned());
    assert_eq!(api.get(PATH).await, (200, outcome));
    drop(traffic);
    assert_eq!(gateway.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_run_at_a_time_of_what_can_be_compared() {
    let gateway = TestGateway::start().await;
    let api = Api::of(gateway.addr);
    let (first, second) = tokio::join!(
        api.post(PATH, json!({ "sampleSize": 2, "seconds": 2 })),
        api.post(PATH, json!({ "sampleSize": 2, "seconds": 2 })),
    );
    let mut both = [first.0, second.0];
    both.sort_unstable();
    assert_eq!(both, [200, 409], "{first:?} {second:?}");
    // Nobody else reads anything here: all of them get probes.
    assert_eq!(api.post(PATH, json!({ "sampleSize": 1, "seconds": 1 })).await.0, 200);

    let other = "/api/migration/validation/postgres-broker";
    let (status, answer, _) = api.post(other, "").await;
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("rollout_refused")));
    assert!(answer["error"]["message"].as_str().unwrap().contains("nothing to compare"));
    for (body, words) in [
        (json!({ "sampleSize": 1001 }), "1 to 1000"),
        (json!({ "sampleSize": 0 }), "1 to 1000"),
        (json!({ "seconds": 61 }), "1 to 60"),
        (json!({ "sample": 1 }), "unknown field"),
    ] {
        let (status, answer, _) = api.post(PATH, body).await;
        assert_eq!(status, 400, "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(words), "{answer}");
    }
    assert_eq!(gateway.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_comes_in_where_others_need_a_token_and_counts_in_no_figures() {
    let gateway = TestGateway::with(|config| {
        config.auth.environment = "production".to_owned();
        config.server.limits.clients_per_ip = 3;
        config.server.limits.arrivals_per_second = 1;
        config.auth.api_keys = vec![ApiKeyConfig {
            name: "ops".to_owned(),
            key: Some(Secret::new("a-key-that-does-0123456789")),
            file: None,
            scopes: vec![Scope::Admin],
        }];
    })
    .await;
    let api = Api::of(gateway.addr);
    let as_ops =
        |request: reqwest::RequestBuilder| request.bearer_auth("a-key-that-does-0123456789").send();
    assert_eq!(api.post(PATH, "").await.0, 401);
    let url = format!("{}{PATH}", api.base);
    let body = json!({ "sampleSize": 100, "seconds": 3 }).to_string();
    let run = as_ops(api.http.post(&url).body(body));
    let figures = async {
        eventually("the sessions are there", async || {
            (100.0 <= api.metric(r#"crossfade_connections{transport="websocket"}"#).await)
                .then_some(())
        })
        .await;
        pause(Duration::from_millis(1500)).await;
        let url = format!("{}/api/migration/feature-flags", api.base);
        as_ops(api.http.get(url)).await.unwrap().json::<Value>().await.unwrap()
    };
    let (outcome, figures) = tokio::join!(run, figures);
    let outcome: Value = outcome.unwrap().json().await.unwrap();
    assert_eq!(outcome["passed"], true, "{outcome}");
    assert_eq!(figures["figures"]["websocket"], 0, "{figures}");
    assert_eq!(figures["figures"]["sse"], 0, "{figures}");
    assert_eq!(gateway.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_goes_through_tls() {
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let files = tempfile::tempdir().unwrap();
    let (chain, key) = (files.path().join("chain.pem"), files.path().join("key.pem"));
    std::fs::write(&chain, certificate.cert.pem()).unwrap();
    std::fs::write(&key, certificate.signing_key.serialize_pem()).unwrap();
    let gateway = TestGateway::with(|config| {
        config.server.tls.certificate = Some(chain);
        config.server.tls.key = Some(key);
    })
    .await;
    let mut api = Api::of(gateway.addr);
    let root = reqwest::Certificate::from_pem(certificate.cert.pem().as_bytes()).unwrap();
    let http = reqwest::Client::builder().tls_certs_only([root]);
    api.http = http.resolve("localhost", gateway.addr).build().unwrap();
    api.base = format!("https://localhost:{}", gateway.addr.port()).into();
    let (status, outcome, _) = api.post(PATH, json!({ "sampleSize": 20, "seconds": 1 })).await;
    assert_eq!((status, &outcome["passed"]), (200, &json!(true)), "{outcome}");
    assert_eq!(gateway.stop().await, 0);
}

/// What a proxy does to each seventh event on a WebSocket.
#[derive(Clone, Copy)]
enum Spoils {
    Drops,
    Doubles,
    Delays,
}

/// A gateway that validates through a proxy.
async fn behind(spoils: Option<Spoils>) -> Value {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let through = listener.local_addr().unwrap();
    let gateway = TestGateway::with(|config: &mut Config| {
        config.validation.through = Some(through);
    })
    .await;
    support::spawn(proxy(listener, gateway.addr, spoils));
    let api = Api::of(gateway.addr);
    let (status, outcome, _) = api.post(PATH, json!({ "sampleSize": 20, "seconds": 2 })).await;
    assert_eq!(status, 200, "{outcome}");
    support::tell(outcome["summary"].as_str().unwrap().to_owned());
    assert_eq!(gateway.stop().await, 0);
    outcome
}

async fn proxy(listener: TcpListener, to: SocketAddr, spoils: Option<Spoils>) {
    loop {
        let (client, _) = listener.accept().await.unwrap();
        support::spawn(async move {
            let server = TcpStream::connect(to).await.unwrap();
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            let mut head = [0; 7];
            from_client.read_exact(&mut head).await?;
            to_server.write_all(&head).await?;
            let back = async {
                match spoils.filter(|_| head == *b"GET /ws") {
                    None => tokio::io::copy(&mut from_server, &mut to_client).await.map(drop),
                    Some(spoils) => spoil(&mut from_server, &mut to_client, spoils).await,
                }
            };
            let there = tokio::io::copy(&mut from_client, &mut to_server);
            tokio::try_join!(async { there.await.map(drop) }, back).map(drop)
        });
    }
}

/// Passes frames on, but for each seventh event.
async fn spoil(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    spoils: Spoils,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(from.read_u8().await?);
    }
    to.write_all(&head).await?;
    let mut events = 0;
    loop {
        let mut frame = vec![0; 2];
        from.read_exact(&mut frame).await?;
        let more = match frame[1] {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        frame.resize(2 + more, 0);
        from.read_exact(&mut frame[2..]).await?;
        let long = frame[2..].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        let length = if more == 0 { usize::from(frame[1]) } else { long };
        let body = frame.len();
        frame.resize(body + length, 0);
        from.read_exact(&mut frame[body..]).await?;
        let is_event = frame[body..].starts_with(br#"{"type":"event""#);
        events += u32::from(is_event);
        if is_event && events.is_multiple_of(7) {
            match spoils {
                Spoils::Drops => continue,
                Spoils::Doubles => to.write_all(&frame).await?,
                Spoils::Delays => pause(Duration::from_millis(800)).await,
            }
        }
        to.write_all(&frame).await?;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_spoils_one_side_is_found() {
    let outcome = behind(None).await;
    assert_eq!(outcome["passed"], true, "{outcome}");

    let outcome = behind(Some(Spoils::Drops)).await;
    let new = &outcome["sides"]["new"];
    assert_eq!(
        (&outcome["passed"], &outcome["sides"]["old"]["missing"]),
        (&json!(false), &json!(0))
    );
    let missing = new["missing"].as_u64().unwrap();
    let events = outcome["events"].as_u64().unwrap();
    assert_eq!(missing + new["received"].as_u64().unwrap(), events, "{outcome}");
    // Each session lost each seventh.
    assert!(events / 7 - 20 <= missing && missing <= events / 7, "{outcome}");
    let said = outcome["summary"].as_str().unwrap();
    assert!(said.contains("events missing on WebSocket"), "{said}");
    let examples = outcome["examples"].as_array().unwrap();
    assert_eq!(examples.len(), 10);
    assert_eq!(
        (&examples[0]["side"], &examples[0]["discrepancy"]),
        (&json!("new"), &json!("missing"))
    );

    let outcome = behind(Some(Spoils::Doubles)).await;
    let new = &outcome["sides"]["new"];
    assert_eq!((&outcome["passed"], &new["missing"]), (&json!(false), &json!(0)), "{outcome}");
    assert_ne!(new["duplicated"], 0, "{outcome}");

    let outcome = behind(Some(Spoils::Delays)).await;
    let new = &outcome["sides"]["new"];
    assert_eq!((&outcome["passed"], &new["missing"]), (&json!(false), &json!(0)), "{outcome}");
    assert_ne!(new["late"], 0, "{outcome}");
}
