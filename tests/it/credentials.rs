//! Who may come in: good tokens of every kind, and a table of bad ones, over all three ways of showing
//! them.

mod bad;
mod published;

use std::{net::SocketAddr, time::Duration};

use crossfade::{
    auth::{ApiKeyConfig, AuthConfig, Claims, Grant, KeyAlgorithm, KeyConfig, Scope, Secret, Verb},
    config::Config,
};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use serde_json::{Value, json};

use crate::support::{
    client::{Sse, Ws},
    gateway::{Api, TestGateway},
};

pub(super) const SECRET: &str = "a secret of at least thirty-two bytes, for tests";
const RSA_PRIVATE: &str = include_str!("credentials/rsa_test_key.pem");
const RSA_PUBLIC: &str = include_str!("credentials/rsa_test_key.pub.pem");
const API_KEY: &str = "service-key-0123456789";

/// Settings of a gateway in service that trusts one secret.
fn strict(config: &mut Config) {
    config.auth = AuthConfig {
        environment: "production".to_owned(),
        leeway: Duration::ZERO,
        keys: vec![key(KeyAlgorithm::HS256, SECRET)],
        ..AuthConfig::default()
    };
}

fn key(algorithm: KeyAlgorithm, text: &str) -> KeyConfig {
    let is_secret = algorithm == KeyAlgorithm::HS256;
    KeyConfig {
        kid: None,
        algorithm,
        secret: is_secret.then(|| Secret::new(text)),
        public_key: (!is_secret).then(|| text.to_owned()),
        file: None,
    }
}

fn now() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

/// Ann's claims: she may publish where the pattern says.
fn ann(publish: &str) -> Claims {
    let grant = Grant { pattern: publish.parse().unwrap(), verbs: vec![Verb::Publish] };
    Claims {
        sub: Some("ann".to_owned()),
        exp: now() + 3600,
        channels: vec![grant],
        info: Some(json!({"name": "Ann"})),
        ..Claims::default()
    }
}

/// A token with any claims and any key.
fn sign(claims: &impl serde::Serialize, algorithm: &str, key: &str, kid: Option<&str>) -> String {
    use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
    let algorithm: Algorithm = algorithm.parse().unwrap();
    let key = match algorithm {
        Algorithm::HS256 => EncodingKey::from_secret(key.as_bytes()),
        Algorithm::RS256 => EncodingKey::from_rsa_pem(key.as_bytes()).unwrap(),
        Algorithm::ES256 => EncodingKey::from_ec_pem(key.as_bytes()).unwrap(),
        _ => EncodingKey::from_ed_pem(key.as_bytes()).unwrap(),
    };
    let header = Header { kid: kid.map(str::to_owned), ..Header::new(algorithm) };
    encode(&header, claims, &key).unwrap()
}

async fn publish_with(addr: SocketAddr, bearer: Option<&str>, channel: &str) -> (u16, Value) {
    let mut request = Api::of(addr).http.post(format!("http://{addr}/api/publish"));
    if let Some(bearer) = bearer {
        request = request.bearer_auth(bearer);
    }
    let body = json!({"channel": channel, "data": 1}).to_string();
    let answer = request.body(body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test]
async fn every_kind_of_key_lets_its_tokens_in() {
    let ec = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let ed = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let public = |pair: &KeyPair| pair.public_key_pem();
    let gateway = TestGateway::with(|config| {
        strict(config);
        config.auth.keys.extend([
            key(KeyAlgorithm::RS256, RSA_PUBLIC),
            key(KeyAlgorithm::ES256, &public(&ec)),
            key(KeyAlgorithm::EdDSA, &public(&ed)),
        ]);
    })
    .await;
    let (ec, ed) = (ec.serialize_pem(), ed.serialize_pem());
    for (algorithm, private) in
        [("HS256", SECRET), ("RS256", RSA_PRIVATE), ("ES256", &ec), ("EdDSA", &ed)]
    {
        let token = sign(&ann("room:*"), algorithm, private, None);
        let (status, answer) = publish_with(gateway.addr, Some(&token), "room:1").await;
        assert_eq!(status, 200, "{algorithm}: {answer}");
        let (status, answer) = publish_with(gateway.addr, Some(&token), "other").await;
        assert_eq!((status, &answer["error"]["code"]), (403, &json!("forbidden")), "{algorithm}");
    }
}

#[tokio::test]
async fn who_says_nothing_is_told_to_say_who_they_are() {
    let gateway = TestGateway::with(strict).await;
    let (status, answer) = publish_with(gateway.addr, None, "room:1").await;
    assert_eq!((status, &answer["error"]["code"]), (401, &json!("unauthorised")));
    let refused = Sse::try_open(gateway.addr, "channel=news", None).await.err().unwrap();
    assert!(refused.to_string().starts_with("HTTP/1.1 401"), "{refused}");
    let mut ws = Ws::open(gateway.addr).await;
    ws.send(json!({"type": "subscribe", "id": 1, "channel": "news"})).await;
    assert_eq!(ws.expect("error").await["code"], "unauthorised");
    assert_eq!(ws.closed().await, "4001");
    let (status, _) = Api::of(gateway.addr).get("/api/channels").await;
    assert_eq!(status, 401);
}

#[tokio::test]
async fn a_client_does_what_its_token_allows_on_both_transports() {
    let gateway = TestGateway::with(strict).await;
    let token = sign(&ann("room:*"), "HS256", SECRET, None);
    let mut ws = Ws::open(gateway.addr).await;
    ws.send(json!({"type": "connect", "id": 1, "token": token})).await;
    ws.send(json!({
        "type": "subscribe", "id": 2, "channel": "room:1", "presence": true, "state": {}
    }))
    .await;
    assert_eq!(ws.expect("subscribed").await["id"], 2);
    let news = ws.expect("presence").await;
    assert_eq!(news["joined"][0]["user"], "ann");
    assert_eq!(news["joined"][0]["info"], json!({"name": "Ann"}));
    let mut sse =
        Sse::open(gateway.addr, &format!("channel=room:1&channel=inbox:%23ann&token={token}"))
            .await;
    ws.send(json!({"type": "publish", "id": 3, "channel": "room:1", "data": 7})).await;
    ws.send(json!({"type": "publish", "id": 4, "channel": "elsewhere", "data": 7})).await;
    let mut replies = Vec::new();
    while replies.len() < 3 {
        let frame = ws.next().await;
        replies.push((frame["type"].as_str().unwrap().to_owned(), frame["code"].clone()));
    }
    replies.sort_by_key(|(kind, _)| kind.clone());
    let kinds: Vec<_> = replies.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["error", "event", "published"]);
    assert_eq!(replies[0].1, "forbidden");
    sse.expect_data([7]).await;
    // Whether the channel exists makes no difference to who may not see it.
    for channel in ["inbox:%23bob", "inbox:%23nobody"] {
        let query = format!("channel={channel}&token={token}");
        let refused = Sse::try_open(gateway.addr, &query, None).await.err().unwrap();
        assert!(refused.to_string().starts_with("HTTP/1.1 403"), "{refused}");
    }
}

#[tokio::test]
async fn services_have_keys_with_scopes() {
    let gateway = TestGateway::with(|config| {
        strict(config);
        let named = |name: &str, key: &str, scope| ApiKeyConfig {
            name: name.to_owned(),
            key: Some(Secret::new(key)),
            file: None,
            scopes: vec![scope],
        };
        config.auth.api_keys = vec![
            named("shop", API_KEY, Scope::Publish),
            named("reader", "reading-key-0123456789", Scope::Read),
            named("boss", "admin-key-01234567890", Scope::Admin),
        ];
    })
    .await;
    let addr = gateway.addr;
    assert_eq!(publish_with(addr, Some(API_KEY), "inbox:#42").await.0, 200);
    assert_eq!(publish_with(addr, Some("reading-key-0123456789"), "news").await.0, 403);
    assert_eq!(publish_with(addr, Some("service-key-0123456780"), "news").await.0, 401);
    let get = async |path: &str, key: &str| {
        let url = format!("http://{addr}{path}");
        Api::of(addr).http.clone().get(url).bearer_auth(key).send().await.unwrap().status().as_u16()
    };
    let history = "/api/channels/inbox:%2342/history";
    assert_eq!(get(history, "reading-key-0123456789").await, 200);
    assert_eq!(get(history, API_KEY).await, 403);
    assert_eq!(get("/api/channels", "reading-key-0123456789").await, 200);
    let cut = async |key: &str| {
        let url = format!("http://{addr}/api/sessions/disconnect");
        let request = Api::of(addr).http.clone().post(url).bearer_auth(key);
        request.body(r#"{"user":"42"}"#).send().await.unwrap().status().as_u16()
    };
    assert_eq!(
        (cut("reading-key-0123456789").await, cut("admin-key-01234567890").await),
        (403, 202)
    );
}

#[tokio::test]
async fn a_token_is_renewed_in_place_and_parted_from_when_it_is_not() {
    let gateway = TestGateway::with(strict).await;
    let expiring = |seconds: u64| {
        sign(&Claims { exp: now() + seconds, ..ann("room:*") }, "HS256", SECRET, None)
    };
    let mut ws = Ws::open(gateway.addr).await;
    ws.send(json!({"type": "connect", "token": expiring(3)})).await;
    ws.send(json!({"type": "subscribe", "id": 1, "channel": "news"})).await;
    ws.expect("subscribed").await;
    assert!(ws.expect("expiring").await["in"].as_u64().unwrap() <= 3000);
    ws.send(json!({"type": "connect", "id": 2, "token": expiring(5)})).await;
    let bob = Claims { sub: Some("bob".to_owned()), ..ann("*") };
    ws.send(json!({"type": "connect", "id": 3, "token": sign(&bob, "HS256", SECRET, None)})).await;
    let refused = ws.expect("error").await;
    assert_eq!((&refused["id"], &refused["code"]), (&json!(3), &json!("unauthorised")));
    // The new token's end, not the old one's.
    ws.expect("expiring").await;
    assert_eq!(ws.expect("goodbye").await["reconnect"], true);
    assert_eq!(ws.closed().await, "4002");
}

#[tokio::test]
async fn a_new_token_that_allows_less_takes_away_what_it_does_not_allow() {
    use crossfade::auth::Access;
    let gateway = TestGateway::with(|config| {
        strict(config);
        let default = config.channels.entry("default".to_owned()).or_default();
        default.subscribe = Some(Access::Token);
        default.presence = Some(Access::Token);
    })
    .await;
    let token = |pattern: &str| {
        let verbs = vec![Verb::Subscribe, Verb::Publish, Verb::Presence];
        let grant = Grant { pattern: pattern.parse().unwrap(), verbs };
        sign(&Claims { channels: vec![grant], ..ann("*") }, "HS256", SECRET, None)
    };
    let mut ws = Ws::open(gateway.addr).await;
    ws.send(json!({"type": "connect", "token": token("*")})).await;
    for channel in ["a", "b"] {
        ws.send(json!({"type": "subscribe", "channel": channel, "state": 1})).await;
        ws.expect("subscribed").await;
    }
    ws.send(json!({"type": "connect", "token": token("b")})).await;
    let taken = ws.expect("unsubscribed").await;
    assert_eq!((&taken["channel"], &taken["code"]), (&json!("a"), &json!("forbidden")));
    ws.send(json!({"type": "publish", "id": 1, "channel": "a", "data": 1})).await;
    assert_eq!(ws.expect("error").await["code"], "forbidden");
    ws.send(json!({"type": "publish", "id": 2, "channel": "b", "data": 2})).await;
    let (first, second) = (ws.next().await, ws.next().await);
    assert!([&first, &second].iter().any(|frame| frame["type"] == "event"), "{first} {second}");
}

#[tokio::test]
async fn a_client_may_publish_so_much_on_either_transport() {
    let gateway = TestGateway::with(|config| {
        config.limits.publishes_per_second = 1;
        config.limits.publishes_burst = 2;
    })
    .await;
    let mut ws = Ws::open(gateway.addr).await;
    let publish = json!({"type": "publish", "id": 1, "channel": "news", "data": 1});
    for _ in 0..2 {
        ws.send(publish.clone()).await;
        ws.expect("published").await;
    }
    ws.send(publish.clone()).await;
    assert_eq!(ws.expect("error").await["code"], "limit_exceeded");

    let api = Api::of(gateway.addr);
    let mut sse = Sse::try_open(gateway.addr, "channel=news", None).await.unwrap();
    let session = sse.next().await.json()["session"].as_str().unwrap().to_owned();
    let frames = json!([publish, publish, publish]);
    let (_, replies, _) = api.post(&format!("/events/{session}"), frames).await;
    let kinds: Vec<_> = replies.as_array().unwrap().iter().map(|r| r["type"].clone()).collect();
    assert_eq!(kinds, ["published", "published", "error"]);
    assert_eq!(api.metric("crossfade_refused_total{reason=\"publishes_per_second\"}").await, 2.0);
}

#[tokio::test]
async fn a_user_may_have_so_many_clients() {
    let gateway = TestGateway::with(|config| {
        strict(config);
        config.server.limits.clients_per_user = 1;
    })
    .await;
    let token = sign(&ann("*"), "HS256", SECRET, None);
    let first = Sse::open(gateway.addr, &format!("channel=news&token={token}")).await;
    let mut second = Ws::open(gateway.addr).await;
    second.send(json!({"type": "connect", "token": token})).await;
    assert_eq!(second.closed().await, "1013");
    drop(first);
}

#[test]
fn a_secret_shows_itself_to_nobody() {
    let mut config = Config::default();
    strict(&mut config);
    config.auth.api_keys = vec![ApiKeyConfig {
        name: "shop".to_owned(),
        key: Some(Secret::new(API_KEY)),
        file: None,
        scopes: vec![Scope::Publish],
    }];
    let frame = format!(r#"{{"type":"connect","token":"{API_KEY}"}}"#);
    let frame = crossfade::protocol::ClientFrame::parse(&frame).unwrap();
    for shown in [format!("{config:?} {frame:?}"), toml::to_string(&config).unwrap()] {
        assert!(!shown.contains(SECRET) && !shown.contains(API_KEY), "{shown}");
    }
}
