//! The whole way there and back, on two nodes: nothing lost or doubled, nobody seen to leave, at the
//! pace that was set.

use std::{
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering},
    time::{Duration, Instant},
};

use serde_json::json;

use super::{Fleet, Publisher};
use crate::{
    resilience::{Store, postgres::Postgres},
    support::{self, client::Ws, eventually::eventually, redis::PrivateRedis},
};

/// Clients in all.
const CLIENTS: usize = 2_000;
/// Sessions per second that are asked to move.
const RATE: f64 = 200.0;
const EMERGENCY_RATE: f64 = 500.0;
/// How long a client that was asked may take its time.
const WITHIN: Duration = Duration::from_millis(500);

const SETTINGS: [(&str, &str); 5] = [
    ("ROLLOUT__DRAIN__RATE", "200"),
    ("ROLLOUT__DRAIN__EMERGENCY_RATE", "500"),
    ("ROLLOUT__DRAIN__WITHIN", "500ms"),
    ("CLUSTER__PRESENCE_LIST", "10000"),
    ("LIMITS__PRESENCE_BYTES", "4096"),
];

async fn there_and_back(store: impl Store) {
    let mut fleet = Fleet::on(store, &SETTINGS).await;
    fleet.order("start", json!({ "percentage": 0 })).await;
    fleet.depart(CLIENTS, Some("lobby"), false, "sse").await;
    let news_of_presence = watch_the_lobby(&fleet).await;
    let publisher = Publisher::start(&fleet.apis, Duration::from_millis(250));

    fleet.set_percentage(50).await;
    eventually("half of them are there, and no more are asked", async || {
        let (_, answer) = fleet.apis[1].get("/api/migration/feature-flags").await;
        let figures = &answer["figures"];
        let live = figures["liveConnectionsPercentage"].as_f64()?;
        let assigned = figures["assignedUsersPercentage"].as_f64()?;
        let settled = figures["pending"] == 0 && figures["nodes"].as_array()?.len() == 2;
        (settled && (live - assigned).abs() < 0.5 && 45.0 < live && live < 55.0).then_some(())
    })
    .await;
    fleet.set_percentage(100).await;
    fleet.all_on("websocket", Duration::from_secs(60)).await;
    let pace = pace_of(&fleet, "websocket");
    assert!((pace / RATE - 1.0).abs() < 0.1, "asked {pace:.0}/s, set were {RATE}/s");

    let begin = Instant::now();
    fleet.order("rollback", json!({ "reason": "to see it" })).await;
    fleet.all_on("sse", Duration::from_secs(60)).await;
    let took = begin.elapsed();
    let stated = Duration::from_secs_f64(CLIENTS as f64 / EMERGENCY_RATE) + WITHIN;
    support::tell(format!(
        "forward {pace:.0}/s of {RATE}/s; back in {took:.1?}, stated {stated:.1?} and 2 s for the \
         nodes to hear of it"
    ));
    assert!(took < stated + Duration::from_secs(2), "back took {took:?}, stated is {stated:?}");

    let published = publisher.stop().await;
    fleet.all_have(published).await;
    let breaks: u64 = fleet.travellers.iter().map(|t| t.breaks.load(Ordering::Relaxed)).sum();
    assert_eq!(breaks, 0, "nobody was ever without a connection");
    assert_eq!(news_of_presence.load(Ordering::Relaxed), 0, "nobody was seen to come or go");
}

/// Counts the changes that somebody is told who sees all members.
async fn watch_the_lobby(fleet: &Fleet<impl Store>) -> Arc<AtomicUsize> {
    eventually("all are in the lobby", async || {
        let (_, answer) = fleet.apis[0].get("/api/channels/lobby/presence?limit=0").await;
        (answer["count"] == CLIENTS).then_some(())
    })
    .await;
    let mut ws = Ws::open(fleet.nodes[1].addr).await;
    ws.send(json!({"type": "subscribe", "id": 1, "channel": "lobby", "presence": true})).await;
    let subscribed = ws.expect("subscribed").await;
    assert_eq!(subscribed["count"], CLIENTS);
    let news = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&news);
    support::spawn(async move {
        while let Ok(frame) = ws.try_next().await {
            if frame["type"] == "presence" {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    news
}

/// How many a second were asked to go over to `transport`.
fn pace_of(fleet: &Fleet<impl Store>, transport: &str) -> f64 {
    let asked = fleet.travellers.iter().flat_map(|diary| diary.asked.lock().clone());
    let mut times: Vec<_> = asked.filter(|(_, to)| to == transport).map(|(at, _)| at).collect();
    times.sort_unstable();
    let of = |share: f64| ((times.len() - 1) as f64 * share) as usize;
    // The second half of the clients, without its first and last moments.
    let (first, last) = (of(0.55), of(0.95));
    (last - first) as f64 / (times[last] - times[first]).as_secs_f64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_clients_go_there_and_back_on_redis() {
    there_and_back(PrivateRedis::durable().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_clients_go_there_and_back_on_postgres() {
    there_and_back(Postgres::start(false).await).await;
}
