//! A rollout that turns back by itself, on two nodes with 2,000 clients: a fault that only the new
//! transport has is found, one that both have is not blamed on it, and arms of the wrong sizes hold it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{COMPONENT, Fleet, Publisher};
use crate::{
    resilience::Store,
    support::{
        self,
        eventually::{eventually, soon_within},
        proxy::Proxy,
        redis::PrivateRedis,
    },
};

const CLIENTS: usize = 2_000;

const SETTINGS: [(&str, &str); 3] = [
    ("ROLLOUT__DRAIN__RATE", "400"),
    ("ROLLOUT__DRAIN__EMERGENCY_RATE", "1000"),
    ("ROLLOUT__DRAIN__WITHIN", "300ms"),
];

impl<S: Store> Fleet<S> {
    async fn flag(&self) -> Value {
        self.apis[1].get(&format!("/api/migration/feature-flags/{COMPONENT}")).await.1
    }

    async fn verdict(&self, name: &str) -> Value {
        let (_, shown) = self.apis[1].get("/api/migration/dashboard").await;
        let verdicts = shown["verdicts"][COMPONENT].as_array().cloned().unwrap_or_default();
        verdicts.into_iter().find(|verdict| verdict["name"] == name).unwrap_or_default()
    }

    /// Waits until a quarter of the clients are on the new side and have been counted.
    async fn a_quarter_is_there(&self) {
        eventually("a quarter is there and counted", async || {
            let (_, shown) = self.apis[0].get("/api/migration/dashboard").await;
            let live = shown["figures"]["liveConnectionsPercentage"].as_f64()?;
            let counted = shown["measured"][COMPONENT]["new"]["users"].as_u64()?;
            (20.0 < live && shown["figures"]["pending"] == 0 && 400 < counted).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_of_the_new_transport_is_found_and_one_of_both_is_not_blamed_on_it() {
    let mut fleet = Fleet::on(PrivateRedis::durable().await, &SETTINGS).await;
    let mut proxies = Vec::new();
    for node in &fleet.nodes {
        proxies.push(Proxy::before(node.addr).await);
    }
    fleet.gates = proxies.iter().map(|proxy| proxy.addr).collect();
    fleet.order("start", json!({ "percentage": 0 })).await;
    fleet.depart(CLIENTS, None, false, "sse").await;
    let publisher = Publisher::start(&fleet.apis, Duration::from_millis(500));
    fleet.set_percentage(25).await;
    fleet.a_quarter_is_there().await;

    // Both transports are cut alike.
    for proxy in &proxies {
        proxy.cut_websockets(10);
        proxy.cut_streams(10);
    }
    eventually("two hundred connections were cut", async || {
        (200 <= proxies.iter().map(Proxy::cuts).sum::<u64>()).then_some(())
    })
    .await;
    for proxy in &proxies {
        proxy.cut_websockets(0);
        proxy.cut_streams(0);
    }
    eventually("they were seen", async || {
        let interruptions = fleet.verdict("interruptions").await;
        (100 < interruptions["control"]["affected"].as_u64()?).then_some(())
    })
    .await;
    let both = fleet.verdict("interruptions").await;
    assert_ne!(both["outcome"], "violated", "{both}");
    assert_eq!(fleet.flag().await["status"], "running");

    // The new one alone.
    let begin = Instant::now();
    proxies.iter().for_each(|proxy| proxy.cut_websockets(30));
    let rolled_back = async {
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        while fleet.flag().await["status"] != "rolled_back" {
            tick.tick().await;
        }
    };
    soon_within(Duration::from_secs(60), "it is rolled back", rolled_back).await;
    let found = begin.elapsed();
    fleet.all_on("sse", Duration::from_secs(60)).await;
    proxies.iter().for_each(|proxy| proxy.cut_websockets(0));
    let (_, history) = fleet.apis[0].get("/api/migration/history?limit=1").await;
    let entry = &history["entries"][0];
    assert_eq!((&entry["action"], &entry["percentage"]), (&json!("rollback"), &json!([25.0, 0.0])));
    assert!(entry["by"].as_str().unwrap().starts_with("gateway "), "{entry}");
    let reason = entry["reason"].as_str().unwrap();
    assert!(reason.contains("interruptions"), "{reason}");
    let verdicts = entry["figures"]["verdicts"].as_array().unwrap();
    let broken = verdicts.iter().find(|verdict| verdict["name"] == "interruptions").unwrap();
    assert_eq!((&broken["outcome"], &broken["demand"]), (&json!("violated"), &json!("roll_back")));
    support::tell(format!("found and decided after {found:.1?}: {reason}"));
    let published = publisher.stop().await;
    fleet.all_have(published).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arms_of_the_wrong_sizes_hold_it() {
    let mut fleet = Fleet::on(PrivateRedis::durable().await, &SETTINGS).await;
    fleet.order("start", json!({ "percentage": 50 })).await;
    // Half of the new arm never comes: as if something before the gateway turned it away.
    let mut wanted = Vec::new();
    for number in 0..600 {
        let unit = format!("unit-{number}");
        let (_, route) = fleet.apis[0].get(&format!("/api/route?client={unit}")).await;
        if route["cohort"] == "control" || number % 2 == 0 {
            wanted.push(unit);
        }
    }
    fleet.send(&wanted, None, true);
    eventually("the sizes are found wrong", async || {
        let ratio = fleet.verdict("sample_ratio").await;
        (ratio["outcome"] == "violated" && ratio["demand"] == "hold").then_some(())
    })
    .await;
    // An evaluation is published before the flag that it changes is saved.
    let flag = eventually("the flag is held", async || {
        let flag = fleet.flag().await;
        let held = flag["course"]["holds"].as_array().is_some_and(|holds| !holds.is_empty());
        held.then_some(flag)
    })
    .await;
    let holds = flag["course"]["holds"].to_string();
    assert_eq!(flag["status"], "running");
    assert!(holds.contains("sizes of the arms") || holds.contains("arm"), "{holds}");
}
