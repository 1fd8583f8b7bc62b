//! Another flag system says the percentage, by OFREP.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Json, Router, http::StatusCode, response::IntoResponse as _, routing::post};
use crossfade::rollout::source::SourceConfig;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::COMPONENT;
use crate::support::{
    self,
    eventually::eventually,
    gateway::{Api, TestGateway},
};

/// What the other system answers, and when it was asked.
#[derive(Default)]
struct Flags {
    value: Mutex<Value>,
    busy: AtomicUsize,
    asked: Mutex<Vec<Instant>>,
}

async fn flag_system(flags: &Arc<Flags>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let flags = Arc::clone(flags);
    let answer = move |Json(asked): Json<Value>| async move {
        assert_eq!(asked["context"]["targetingKey"], "crossfade");
        flags.asked.lock().push(Instant::now());
        if flags.busy.load(Ordering::Relaxed) != 0 {
            flags.busy.fetch_sub(1, Ordering::Relaxed);
            return (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "1")]).into_response();
        }
        Json(json!({ "key": "ws", "value": *flags.value.lock(), "reason": "STATIC" }))
            .into_response()
    };
    let router = Router::new().route("/ofrep/v1/evaluate/flags/ws", post(answer));
    support::spawn(async move { axum::serve(listener, router).await });
    url
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_obeyed_but_not_against_a_rollback() {
    let flags = Arc::new(Flags::default());
    *flags.value.lock() = json!({ "percentage": 25, "epoch": 1 });
    let url = flag_system(&flags).await;
    let gateway = TestGateway::with(|config| {
        config.rollout.source = Some(SourceConfig {
            url,
            flag: "ws".to_owned(),
            component: COMPONENT.parse().unwrap(),
            token_file: None,
            every: Duration::from_millis(100),
            timeout: Duration::from_secs(2),
        });
    })
    .await;
    let api = Api::of(gateway.addr);
    let is = async |percentage: u32, status: &str| {
        eventually(format!("it is {status} at {percentage} %"), async || {
            let (_, flag) = api.get(&format!("/api/migration/feature-flags/{COMPONENT}")).await;
            (flag["effectivePercentage"] == percentage && flag["status"] == status).then_some(())
        })
        .await;
    };
    is(25, "running").await;
    *flags.value.lock() = json!({ "percentage": 40, "epoch": 1, "paused": true });
    is(40, "paused").await;
    let reason = json!({ "reason": "it burns" });
    let (status, ..) = api.post(&format!("/api/migration/rollback/{COMPONENT}"), reason).await;
    assert_eq!(status, 200);
    let asked = flags.asked.lock().len();
    eventually("it was asked again", async || (asked + 3 < flags.asked.lock().len()).then_some(()))
        .await;
    is(0, "rolled_back").await;
    *flags.value.lock() = json!({ "percentage": 5, "epoch": 2 });
    is(5, "running").await;

    // Who is busy is left alone for as long as it says.
    flags.busy.store(1, Ordering::Relaxed);
    eventually("it said that it is busy", async || {
        (flags.busy.load(Ordering::Relaxed) == 0).then_some(())
    })
    .await;
    let refused = flags.asked.lock().len();
    eventually("it is asked again", async || (refused < flags.asked.lock().len()).then_some(()))
        .await;
    let pause = {
        let asked = flags.asked.lock();
        asked[refused] - asked[refused - 1]
    };
    assert!(Duration::from_millis(950) < pause, "asked again after {pause:?}");
    assert_eq!(gateway.stop().await, 0);
}
