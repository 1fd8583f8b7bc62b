//! A reader that does not read costs a cursor: neither memory nor anybody's time.

use std::num::NonZeroUsize;

use serde_json::json;

use crate::support::{
    client::{Sse, Ws},
    gateway::{Api, GatewayProcess, TestGateway},
};

/// Readers that never read.
const STOPPED: usize = 200;
/// Bytes of one event, and how many: 100 MB in all.
const EVENT: usize = 100_000;
const EVENTS: usize = 1000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_readers_that_never_read_cost_neither_memory_nor_time() {
    let gateway = GatewayProcess::start(&[
        ("CROSSFADE_BROKER__MEMORY__MAX_BYTES", "16000000"),
        ("CROSSFADE_CONNECTION__STALL_TIMEOUT", "10m"),
        ("CROSSFADE_CONNECTION__HEARTBEAT", "10m"),
    ])
    .await;
    let api = Api::of(gateway.addr);
    let mut stopped = Vec::new();
    for n in 0..STOPPED {
        if n % 2 == 0 {
            let mut ws = Ws::open(gateway.addr).await;
            ws.subscribe("news", None).await;
            stopped.push((Some(ws), None));
        } else {
            let sse = Sse::open(gateway.addr, "channel=news").await;
            stopped.push((None, Some(sse)));
        }
    }
    let mut ana = Ws::open(gateway.addr).await;
    ana.subscribe("news", None).await;
    let mut ben = Sse::open(gateway.addr, "channel=news").await;
    let before = gateway.resident_bytes();

    let data = "x".repeat(EVENT);
    for n in 0..EVENTS {
        api.publish("news", json!([n, data])).await;
        // In lock step: whoever reads has each event before the next one is published.
        assert_eq!(ana.expect("event").await["data"][0], n);
        assert_eq!(ben.next().await.json()["data"][0], n);
    }

    // The ring (1 MiB, and its frames), the embedded log (16 MB), and what the allocator keeps.
    let grown = gateway.resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{} MiB more than before", grown >> 20);
    assert_eq!(api.metric("crossfade_connections{transport=\"websocket\"}").await, 101.0);
    drop(stopped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stalls_and_goes_on_gets_everything_from_the_log() {
    let gateway = GatewayProcess::start(&[
        ("CROSSFADE_NODE__RING_EVENTS", "8"),
        ("CROSSFADE_LIMITS__FRAME_BYTES", "1000000"),
    ])
    .await;
    let api = Api::of(gateway.addr);
    let mut ana = Ws::open(gateway.addr).await;
    ana.subscribe("news", None).await;
    let mut ben = Sse::open(gateway.addr, "channel=other&channel=news").await;
    let data = "x".repeat(EVENT);
    for n in 0..300 {
        api.publish("news", json!([n, data])).await;
    }
    for n in 0..300 {
        assert_eq!(ana.expect("event").await["data"][0], n);
        assert_eq!(ben.next().await.json()["data"][0], n);
    }
    assert!(0.0 < api.metric("crossfade_catch_ups_total").await);
    assert_eq!(api.metric("crossfade_resets_total").await, 0.0);
}

#[tokio::test]
async fn a_stalled_reader_behind_a_pipe_is_left_in_peace_until_it_reads() {
    let gateway = TestGateway::with(|config| {
        config.node.ring_events = NonZeroUsize::new(8).unwrap();
    })
    .await;
    let api = Api::of(gateway.addr);
    let http = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let url = format!("http://{}/events?channel=news", gateway.addr);
    let stuck = http.get(url).send().await.unwrap();
    let data = "x".repeat(EVENT);
    for n in 0..300 {
        api.publish("news", json!([n, data])).await;
    }
    let before = api.metric("crossfade_catch_ups_total").await;
    for n in 0..300 {
        api.publish("elsewhere", n).await;
    }
    let after = api.metric("crossfade_catch_ups_total").await;
    // One may have been under way when the first look was taken.
    assert!(after <= before + 1.0, "{} readings for a full socket", after - before);
    drop(stuck);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_without_end_and_reads_no_answer_is_not_answered_without_end() {
    let gateway = GatewayProcess::start(&[
        ("CROSSFADE_LIMITS__FRAMES_PER_SECOND", "1000000"),
        ("CROSSFADE_LIMITS__FRAMES_BURST", "1000000"),
        ("CROSSFADE_LIMITS__FRAME_BYTES", "8000000"),
    ])
    .await;
    let api = Api::of(gateway.addr);
    let data = "x".repeat(EVENT);
    for n in 0..50 {
        api.publish("news", json!([n, data])).await;
    }
    let history = json!({"type": "history", "channel": "news", "limit": 50});
    let mut greedy = Ws::open(gateway.addr).await;
    let mut ana = Ws::open(gateway.addr).await;
    let before = gateway.resident_bytes();
    for _ in 0..500 {
        greedy.send(history.clone()).await;
    }
    // Ana's answers come behind what the gateway was ready to do for the other.
    for _ in 0..20 {
        ana.send(history.clone()).await;
        let page = ana.expect("history").await;
        let events = page["events"].as_array().unwrap().len();
        assert!((1..50).contains(&events) && page["complete"] == false, "{events} events");
    }
    let grown = gateway.resident_bytes().saturating_sub(before);
    assert!(grown < 48 << 20, "{} MiB more than before", grown >> 20);
}

#[tokio::test]
async fn a_socket_that_takes_nothing_for_too_long_is_given_up() {
    let gateway = GatewayProcess::start(&[("CROSSFADE_CONNECTION__STALL_TIMEOUT", "1s")]).await;
    let api = Api::of(gateway.addr);
    let stuck = Sse::open(gateway.addr, "channel=news").await;
    let data = "x".repeat(EVENT);
    for n in 0..100 {
        api.publish("news", json!([n, data])).await;
    }
    api.until_metric("crossfade_connections_closed_total{code=\"4004\"}", 1.0).await;
    drop(stuck);
}
