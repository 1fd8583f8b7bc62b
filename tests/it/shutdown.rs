//! SIGTERM: nobody new, a goodbye to everybody, a deadline, and nothing acknowledged is lost.

use std::collections::HashSet;

use serde_json::json;

use crate::support::{
    client::{Sse, Ws},
    eventually::eventually,
    gateway::{Api, GatewayProcess, TestGateway},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_is_told_to_come_back_at_a_moment_of_their_own() {
    let mut gateway = GatewayProcess::start(&[]).await;
    let mut sockets = Vec::new();
    let mut streams = Vec::new();
    for _ in 0..20 {
        let mut ws = Ws::open(gateway.addr).await;
        ws.subscribe("news", None).await;
        sockets.push(ws);
        streams.push(Sse::open(gateway.addr, "channel=news").await);
    }
    gateway.terminate();
    let mut moments = HashSet::new();
    for mut ws in sockets {
        let goodbye = ws.expect("goodbye").await;
        assert_eq!((&goodbye["code"], &goodbye["reconnect"]), (&json!(4003), &json!(true)));
        let after = goodbye["after"].as_u64().unwrap();
        assert!(after <= 5000);
        moments.insert(after);
        assert_eq!(ws.closed().await, "4003");
    }
    for mut sse in streams {
        let blocks = sse.until_end().await;
        let goodbye = blocks.last().unwrap();
        assert_eq!(goodbye.event.as_deref(), Some("crossfade.goodbye"));
        // What an EventSource goes by, and no position: it comes back to where it was.
        assert_eq!(goodbye.retry, goodbye.json()["after"].as_u64());
        assert_eq!(goodbye.id, None);
        moments.insert(goodbye.retry.unwrap());
    }
    assert!(30 < moments.len(), "a herd: {moments:?}");
    assert!(gateway.ended().await, "not everything ended in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_it_stops_the_node_is_not_ready_and_what_was_acknowledged_was_delivered() {
    let mut gateway = TestGateway::start().await;
    let api = Api::of(gateway.addr);
    let mut ws = Ws::open(gateway.addr).await;
    ws.subscribe("news", None).await;
    assert_eq!(api.get("/health/ready").await.0, 200);
    for n in 0..100 {
        api.publish("news", n).await;
    }
    // What has come up from the broker is delivered; the rest waits for the client at another node.
    api.until_metric("crossfade_events_ingested_total", 100.0).await;
    gateway.begin_stop();
    for n in 0..100 {
        assert_eq!(ws.expect("event").await["data"], n);
    }
    ws.expect("goodbye").await;
    eventually("the address is given up", async || Ws::try_open(gateway.addr).await.err()).await;
    assert_eq!(gateway.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_signal_that_ends_the_process_says_goodbye_first() {
    for signal in ["TERM", "INT", "HUP"] {
        let mut gateway = GatewayProcess::start(&[]).await;
        let mut ws = Ws::open(gateway.addr).await;
        ws.subscribe("news", None).await;
        gateway.signal(signal);
        assert_eq!(ws.expect("goodbye").await["code"], 4003, "after SIG{signal}");
        assert!(gateway.ended().await, "after SIG{signal}");
    }
}
