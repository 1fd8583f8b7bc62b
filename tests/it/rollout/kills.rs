//! What may break in the middle of a move: a node, Redis, PostgreSQL. Nothing is lost, nobody is left
//! without a connection, and no stop is forgotten.

use std::time::Duration;

use serde_json::json;

use super::{COMPONENT, Fleet, Publisher, knows};
use crate::{
    resilience::{Store, postgres::Postgres},
    support::{eventually::eventually, redis::PrivateRedis},
};

const CLIENTS: usize = 200;

/// Slow enough that there is a middle.
const SETTINGS: [(&str, &str); 5] = [
    ("ROLLOUT__DRAIN__RATE", "40"),
    ("ROLLOUT__DRAIN__EMERGENCY_RATE", "100"),
    ("ROLLOUT__DRAIN__WITHIN", "200ms"),
    ("BROKER__REDIS__TIMEOUT", "1s"),
    // The node it was to go to may have been the one that was killed.
    ("ROLLOUT__DRAIN__ASK_AGAIN", "5s"),
];

impl<S: Store> Fleet<S> {
    async fn until_some_have_moved(&self) {
        eventually("a quarter of the clients have moved", async || {
            let moved =
                self.travellers.iter().filter(|diary| *diary.transport.borrow() == "websocket");
            (CLIENTS / 4 <= moved.count()).then_some(())
        })
        .await;
    }
}

async fn a_node_is_killed(store: impl Store) {
    let mut fleet = Fleet::on(store, &SETTINGS).await;
    fleet.order("start", json!({ "percentage": 0 })).await;
    fleet.depart(CLIENTS, None, false, "sse").await;
    let publisher = Publisher::start(&fleet.apis, Duration::from_millis(50));
    fleet.set_percentage(100).await;
    fleet.until_some_have_moved().await;
    fleet.nodes[1].kill().await;
    fleet.nodes[1].restart().await;
    fleet.all_on("websocket", Duration::from_secs(60)).await;
    // And on the way back the other one, right after it has taken the order.
    fleet.order("rollback", json!({ "reason": "to see it" })).await;
    fleet.nodes[0].kill().await;
    fleet.nodes[0].restart().await;
    fleet.all_on("sse", Duration::from_secs(60)).await;
    let (_, flag) = fleet.apis[0].get(&format!("/api/migration/feature-flags/{COMPONENT}")).await;
    assert_eq!((&flag["status"], &flag["reason"]), (&json!("rolled_back"), &json!("to see it")));
    let published = publisher.stop().await;
    fleet.all_have(published).await;
}

async fn the_store_is_killed(store: impl Store) {
    let mut fleet = Fleet::on(store, &SETTINGS).await;
    fleet.order("start", json!({ "percentage": 0 })).await;
    fleet.depart(CLIENTS, None, false, "sse").await;
    let publisher = Publisher::start(&fleet.apis, Duration::from_millis(50));
    fleet.set_percentage(100).await;
    fleet.until_some_have_moved().await;
    fleet.store.kill_and_restart().await;
    fleet.all_on("websocket", Duration::from_secs(60)).await;
    let published = publisher.stop().await;
    fleet.all_have(published).await;
}

/// A stop while the store is away: it holds at once where it was ordered, and everywhere later.
async fn a_stop_is_ordered_while_the_store_is_away(store: impl Store + Away) {
    let mut fleet = Fleet::on(store, &SETTINGS).await;
    fleet.order("start", json!({ "percentage": 0 })).await;
    fleet.depart(CLIENTS, None, false, "sse").await;
    let version = fleet.set_percentage(100).await;
    fleet.all_on("websocket", Duration::from_secs(60)).await;
    fleet.store.go_away().await;
    let raise = format!("/api/migration/start/{COMPONENT}");
    let (status, answer, _) = fleet.apis[0].post(&raise, "{}").await;
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("unavailable")), "{answer}");
    let stop = format!("/api/migration/rollback/{COMPONENT}");
    let (status, answer, _) = fleet.apis[0].post(&stop, r#"{"reason":"it burns"}"#).await;
    assert_eq!((status, &answer["saved"]), (202, &json!(false)), "{answer}");
    let (_, route) = fleet.apis[0].get("/api/route?client=unit-1").await;
    assert_eq!(route["transport"], "sse", "{route}");
    fleet.store.come_back().await;
    for api in &fleet.apis {
        knows(api, version + 1).await;
        let (_, flag) = api.get(&format!("/api/migration/feature-flags/{COMPONENT}")).await;
        assert_eq!((&flag["status"], &flag["reason"]), (&json!("rolled_back"), &json!("it burns")));
    }
    fleet.all_on("sse", Duration::from_secs(60)).await;
    let (_, history) = fleet.apis[1].get("/api/migration/history?limit=1").await;
    assert_eq!(history["entries"][0]["action"], "rollback");
}

/// A store that can be away for a while.
trait Away {
    async fn go_away(&mut self);
    async fn come_back(&mut self);
}

impl Away for PrivateRedis {
    async fn go_away(&mut self) {
        self.0.kill();
    }

    async fn come_back(&mut self) {
        self.0.restart().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_killed_on_redis() {
    a_node_is_killed(PrivateRedis::durable().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_killed_on_postgres() {
    a_node_is_killed(Postgres::start(false).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_killed() {
    the_store_is_killed(PrivateRedis::durable().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_is_killed() {
    the_store_is_killed(Postgres::start(true).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_away_when_it_burns() {
    a_stop_is_ordered_while_the_store_is_away(PrivateRedis::durable().await).await;
}
