//! Alerts: told to webhooks that fail, hang, redirect or ask for patience; taken over from a node that
//! dies; seen by people.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
    routing::post,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use crossfade::{
    alert::{Alert, AlertConfig, AlertKind, AlertSource, Alerts, WebhookConfig, WebhookUrl},
    auth::{ApiKeyConfig, Scope, Secret},
    broker::{
        Broker as _, BrokerKind, Retention, Retentions,
        redis::{RedisBroker, RedisConfig, RedisUrl},
    },
    lifecycle::{Lifecycle, unix_ms},
    metrics::Metrics,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{
    self,
    eventually::eventually,
    gateway::{Api, TestGateway},
    redis::PrivateRedis,
};

const SECRET: &str = "a-secret-of-more-than-24-bytes";

/// What a receiver does when it is told something.
const HANGS: u16 = 0;

/// A webhook's other end, which checks what is signed.
#[derive(Clone)]
struct Receiver {
    addr: SocketAddr,
    answers: Arc<AtomicU16>,
    /// It answers so once, then well.
    once: bool,
    /// What it took, and when anything came.
    heard: Arc<Mutex<Vec<Value>>>,
    calls: Arc<Mutex<Vec<u64>>>,
}

impl Receiver {
    async fn answering(status: u16) -> Self {
        Self::start(status, false).await
    }

    async fn answering_once(status: u16) -> Self {
        Self::start(status, true).await
    }

    async fn start(status: u16, once: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let this = Self {
            addr: listener.local_addr().unwrap(),
            answers: Arc::new(AtomicU16::new(status)),
            once,
            heard: Arc::default(),
            calls: Arc::default(),
        };
        let router = Router::new()
            .route("/hook", post(Self::hear))
            .route("/elsewhere", post(Self::hear))
            .with_state(this.clone());
        support::spawn(async move { axum::serve(listener, router).await });
        this
    }

    async fn hear(State(this): State<Self>, headers: HeaderMap, body: Bytes) -> Response {
        this.calls.lock().push(unix_ms());
        let header = |name: &str| headers[name].to_str().unwrap().to_owned();
        let (id, at) = (header("webhook-id"), header("webhook-timestamp"));
        let text = std::str::from_utf8(&body).unwrap();
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
        let signed = ring::hmac::sign(&key, format!("{id}.{at}.{text}").as_bytes());
        let signature = format!("v1,{}", BASE64_STANDARD.encode(signed));
        assert_eq!(header("webhook-signature"), signature);
        assert!(at.parse::<u64>().unwrap().abs_diff(unix_ms() / 1000) < 5);
        let told: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(told["id"], id);
        let better = this.once && 1 < this.calls.lock().len();
        match if better { 200 } else { this.answers.load(Ordering::Relaxed) } {
            HANGS => std::future::pending().await,
            status => {
                let status = StatusCode::from_u16(status).unwrap();
                if status.is_success() {
                    this.heard.lock().push(told);
                }
                let elsewhere = format!("http://{}/elsewhere", this.addr);
                (status, [("retry-after", "1".to_owned()), ("location", elsewhere)]).into_response()
            }
        }
    }

    fn says(&self, status: u16) {
        self.answers.store(status, Ordering::Relaxed);
    }

    fn texts(&self) -> Vec<String> {
        let heard = self.heard.lock();
        heard.iter().map(|told| told["text"].as_str().unwrap().to_owned()).collect()
    }

    async fn hears(&self, texts: &[&str]) {
        eventually(format!("{texts:?} are heard"), async || (self.texts() == texts).then_some(()))
            .await;
    }

    async fn is_called(&self, times: usize) {
        eventually(format!("it is called {times} times"), async || {
            (times <= self.calls.lock().len()).then_some(())
        })
        .await;
    }

    fn config(&self, name: &str) -> WebhookConfig {
        WebhookConfig {
            name: name.to_owned(),
            url: WebhookUrl::new(format!("http://{}/hook", self.addr)),
            secret: Some(Secret::new(SECRET)),
            file: None,
            events: Vec::new(),
            urgent_only: false,
        }
    }
}

fn quick(webhook: Vec<WebhookConfig>) -> AlertConfig {
    AlertConfig {
        timeout: Duration::from_millis(300),
        backoff_min: Duration::from_millis(20),
        backoff_max: Duration::from_millis(100),
        take_over: Duration::from_secs(2),
        webhook,
        ..AlertConfig::default()
    }
}

/// A node as far as alerts go.
struct Node {
    alerts: Arc<Alerts>,
    metrics: Metrics,
    lifecycle: Lifecycle,
}

impl Node {
    fn on(redis: &PrivateRedis, name: &str, config: &AlertConfig) -> Self {
        let lifecycle = Lifecycle::default();
        let section = RedisConfig { url: RedisUrl::new(&*redis.0.url), ..RedisConfig::default() };
        let day = Duration::from_secs(86_400);
        let retention = Retention { events: 10, age: day, dedup: day };
        let retentions = Arc::new(Retentions::new(retention, [].into()));
        let stage = &lifecycle.background;
        let (broker, _feed) = RedisBroker::connect(&section, retentions, stage).unwrap();
        let metrics = Metrics::new();
        let place = AlertSource { environment: "test".to_owned(), node: name.to_owned() };
        let alerts =
            Alerts::start(broker.store(), config, place, &metrics, &lifecycle.cluster).unwrap();
        Self { alerts, metrics, lifecycle }
    }

    fn raise(&self, text: &str) {
        self.alerts.raise(Alert {
            component: "websocket-transport".to_owned(),
            kind: AlertKind::Rollback,
            urgent: true,
            text: text.to_owned(),
            figures: Some(json!({ "errors": 7 })),
        });
    }

    async fn dies(self) {
        self.lifecycle.drain(Duration::from_secs(5)).await;
    }

    fn counts(&self, line: &str) -> bool {
        self.metrics.render().lines().any(|found| found == line)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_is_told_what_happened_and_others_do_not_keep_it_waiting() {
    let redis = PrivateRedis::start().await;
    let good = Receiver::answering(204).await;
    let fails = Receiver::answering_once(500).await;
    let hangs = Receiver::answering_once(HANGS).await;
    let redirects = Receiver::answering(307).await;
    let patient = Receiver::answering_once(429).await;
    let refuses = Receiver::answering(404).await;
    let node = Node::on(
        &redis,
        "a",
        &quick(vec![
            good.config("good"),
            fails.config("fails"),
            hangs.config("hangs"),
            redirects.config("redirects"),
            patient.config("patient"),
            refuses.config("refuses"),
            WebhookConfig { events: vec![AlertKind::Hold], ..good.config("other") },
        ]),
    );
    node.raise("errors doubled");
    good.hears(&["errors doubled"]).await;
    let told = good.heard.lock()[0].clone();
    assert_eq!((&told["type"], &told["urgent"]), (&json!("rollback"), &json!(true)));
    assert_eq!((&told["figures"]["errors"], &told["node"]), (&json!(7), &json!("a")));
    assert_eq!(
        (&told["environment"], &told["component"]),
        (&json!("test"), &json!("websocket-transport"))
    );

    fails.hears(&["errors doubled"]).await;
    hangs.hears(&["errors doubled"]).await;
    patient.hears(&["errors doubled"]).await;
    let calls = patient.calls.lock().clone();
    assert!(1_000 <= calls[1] - calls[0], "it asked for a second: {calls:?}");
    let kept = eventually("all is noted", async || {
        let kept = node.alerts.list().await.ok()?;
        (kept.len() == 1 && kept[0].unsent.is_empty()).then(|| kept[0].clone())
    })
    .await;
    let mut sent_to = kept.sent_to.clone();
    sent_to.sort();
    assert_eq!(sent_to, ["fails", "good", "hangs", "patient"]);
    let mut failed = kept.failed.clone();
    failed.sort();
    assert_eq!(failed, ["redirects", "refuses"]);
    assert_eq!((redirects.calls.lock().len(), refuses.calls.lock().len()), (1, 1));
    assert!(node.counts(r#"crossfade_webhooks_sent_total{webhook="good"} 1"#));
    assert!(node.counts(r#"crossfade_webhooks_failed_total{webhook="redirects"} 1"#));
    node.dies().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_words_are_told_once() {
    let redis = PrivateRedis::start().await;
    let receiver = Receiver::answering(200).await;
    let config = quick(vec![receiver.config("pager")]);
    let (one, other) = (Node::on(&redis, "a", &config), Node::on(&redis, "b", &config));
    one.raise("it holds");
    receiver.hears(&["it holds"]).await;
    one.raise("it holds");
    other.raise("it holds");
    other.raise("it goes on");
    one.raise("it is done");
    eventually("both nodes' alerts are kept", async || {
        (one.alerts.list().await.ok()?.len() == 3).then_some(())
    })
    .await;
    eventually("all are told", async || (receiver.heard.lock().len() == 3).then_some(())).await;
    let mut texts = receiver.texts();
    texts.sort();
    assert_eq!(texts, ["it goes on", "it holds", "it is done"]);
    one.dies().await;
    other.dies().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_that_only_fails_rests() {
    let redis = PrivateRedis::start().await;
    let receiver = Receiver::answering(503).await;
    let config =
        AlertConfig { give_up: Duration::from_secs(20), ..quick(vec![receiver.config("pager")]) };
    let node = Node::on(&redis, "a", &config);
    node.raise("errors doubled");
    eventually("its breaker is open", async || {
        node.counts("crossfade_webhook_breakers_open 1").then_some(())
    })
    .await;
    let calls = receiver.calls.lock().len();
    assert_eq!(calls, 5);
    for number in 0..20 {
        node.raise(&format!("number {number}"));
    }
    eventually("they are kept", async || {
        (node.alerts.list().await.ok()?.len() == 21).then_some(())
    })
    .await;
    assert_eq!(receiver.calls.lock().len(), calls, "nobody knocks meanwhile");
    node.dies().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_are_told_while_the_store_is_away_and_it_is_kept_later() {
    let mut redis = PrivateRedis::durable().await;
    let receiver = Receiver::answering(200).await;
    let node = Node::on(&redis, "a", &quick(vec![receiver.config("pager")]));
    node.raise("before");
    receiver.hears(&["before"]).await;
    redis.0.kill();
    node.raise("meanwhile");
    receiver.hears(&["before", "meanwhile"]).await;
    redis.0.restart().await;
    let kept = eventually("it is kept", async || {
        let kept = node.alerts.list().await.ok()?;
        (kept.len() == 2 && kept.iter().all(|alert| alert.unsent.is_empty())).then_some(kept)
    })
    .await;
    assert_eq!((&*kept[0].text, &*kept[0].sent_to), ("meanwhile", &["pager".to_owned()][..]));
    assert_eq!(receiver.calls.lock().len(), 2);
    node.dies().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_node_had_not_sent_another_sends_and_a_person_sees_it() {
    let redis = PrivateRedis::start().await;
    let receiver = Receiver::answering(500).await;
    let config = quick(vec![receiver.config("pager")]);
    let dying = Node::on(&redis, "a", &config);
    dying.raise("errors doubled");
    receiver.is_called(1).await;
    let gateway = TestGateway::with(|settings| {
        settings.broker.kind = BrokerKind::Redis;
        settings.broker.redis.url = RedisUrl::new(&*redis.0.url);
        settings.alerts = config.clone();
        settings.auth.environment = "production".to_owned();
        let key = |name: &str, key: &str, scope| ApiKeyConfig {
            name: name.to_owned(),
            key: Some(Secret::new(key)),
            file: None,
            scopes: vec![scope],
        };
        settings.auth.api_keys = vec![
            key("reader", "a-key-that-reads-0123456789", Scope::Read),
            key("ops", "a-key-that-does-0123456789", Scope::Admin),
            key("boss", "a-key-that-does-more-0123456789", Scope::Admin),
        ];
    })
    .await;
    dying.dies().await;
    receiver.says(200);
    receiver.hears(&["errors doubled"]).await;

    let api = Api::of(gateway.addr);
    let base = format!("{}/api/migration/alerts", api.base);
    let list = async |key: &str, query: &str| {
        let answer = api.http.get(format!("{base}{query}")).bearer_auth(key).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let reader = "a-key-that-reads-0123456789";
    assert_eq!(api.get("/api/migration/alerts").await.0, 401);
    let alert = eventually("it is noted", async || {
        let (status, alerts) = list(reader, "").await;
        assert_eq!(status, 200);
        (alerts["alerts"][0]["sentTo"] == json!(["pager"])).then(|| alerts["alerts"][0].clone())
    })
    .await;
    assert_eq!((&alert["node"], &alert["type"]), (&json!("a"), &json!("rollback")));
    let id = alert["id"].as_str().unwrap();
    assert_eq!(receiver.heard.lock()[0]["id"], id, "the same alert by another node");
    assert!(!alert.to_string().contains(SECRET));

    let see = async |id: &str, key: &str| {
        let url = format!("{base}/{id}/acknowledge");
        let answer = api.http.post(url).bearer_auth(key).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    assert_eq!(see(id, reader).await.0, 403);
    assert_eq!(see("nonsense", "a-key-that-does-0123456789").await.0, 404);
    assert_eq!(see(&uuid::Uuid::nil().to_string(), "a-key-that-does-0123456789").await.0, 404);
    let (status, seen) = see(id, "a-key-that-does-0123456789").await;
    assert_eq!((status, &seen["acknowledged"]["by"]), (200, &json!("key ops")));
    let (_, again) = see(id, "a-key-that-does-more-0123456789").await;
    assert_eq!(again["acknowledged"], seen["acknowledged"], "who was first stays so");
    assert_eq!(list(reader, "?acknowledged=false").await.1["alerts"], json!([]));
    assert_eq!(list(reader, "?component=other").await.1["alerts"], json!([]));
    assert_eq!(gateway.stop().await, 0);
}
