//! A rollout that runs by its schedule while the node that looks, or the store, is killed in the middle
//! of a step: each step is taken once, and a stop is not forgotten.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{COMPONENT, Fleet, Publisher};
use crate::{
    resilience::{Store, postgres::Postgres},
    support::{
        self,
        eventually::{eventually, soon_within},
        redis::PrivateRedis,
    },
};

const CLIENTS: usize = 100;

const SETTINGS: [(&str, &str); 3] = [
    ("ROLLOUT__DRAIN__RATE", "200"),
    ("ROLLOUT__DRAIN__WITHIN", "200ms"),
    ("ROLLOUT__DRAIN__ASK_AGAIN", "5s"),
];

async fn begin(fleet: &mut Fleet<impl Store>) {
    let step = |percentage: u32| json!({ "percentage": percentage, "bake_seconds": 3 });
    let steps = [step(10), step(50), step(100)];
    let guardrails = json!({ "comparisons": { "sample_ratio": { "mode": "dry_run" } } });
    let body = json!({ "schedule": { "steps": steps }, "guardrails": guardrails });
    let url = format!("{}/api/migration/feature-flags/{COMPONENT}", fleet.apis[0].base);
    let answer = fleet.apis[0].http.put(url).body(body.to_string()).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    fleet.depart(CLIENTS, None, false, "sse").await;
    fleet.order("start", json!({})).await;
}

impl<S: Store> Fleet<S> {
    async fn status_is(&self, status: &str, within: Duration) {
        let looking = async {
            let mut tick = tokio::time::interval(Duration::from_millis(200));
            loop {
                tick.tick().await;
                for api in &self.apis {
                    let url = format!("{}/api/migration/feature-flags/{COMPONENT}", api.base);
                    let Ok(answer) = api.http.get(url).send().await else { continue };
                    let Ok(flag) = answer.json::<Value>().await else { continue };
                    if flag["status"] == status {
                        return;
                    }
                }
            }
        };
        soon_within(within, format!("it is {status}"), looking).await;
    }

    /// The percentages it went through, as the journal has them.
    async fn steps_taken(&self) -> Vec<[f64; 2]> {
        let (_, history) = self.apis[0].get("/api/migration/history").await;
        let entries = history["entries"].as_array().unwrap();
        let mut steps: Vec<[f64; 2]> = entries
            .iter()
            .map(|entry| serde_json::from_value(entry["percentage"].clone()).unwrap())
            .filter(|[from, to]: &[f64; 2]| from != to)
            .collect();
        steps.reverse();
        steps
    }

    async fn who_looks(&self) -> String {
        eventually("somebody looks", async || {
            let (_, shown) = self.apis[0].get("/api/migration/dashboard").await;
            Some(shown["evaluator"]["node"].as_str()?.to_owned())
        })
        .await
    }
}

async fn the_node_that_looks_is_killed(store: impl Store) {
    let mut fleet = Fleet::on(store, &SETTINGS).await;
    begin(&mut fleet).await;
    let publisher = Publisher::start(&fleet.apis, Duration::from_millis(200));
    let looker = fleet.who_looks().await;
    let (_, ready) = fleet.apis[0].get("/health/ready").await;
    let which = usize::from(ready["node"] != looker.as_str());
    fleet.nodes[which].kill().await;
    let begin = Instant::now();
    let other = fleet.apis[1 - which].clone();
    eventually("the other node looks", async || {
        let (_, shown) = other.get("/api/migration/dashboard").await;
        let node = shown["evaluator"]["node"].as_str()?;
        (node != looker).then_some(())
    })
    .await;
    let took = begin.elapsed();
    support::tell(format!("the other node looked after {took:.1?}"));
    assert!(took < Duration::from_secs(10), "{took:?}");
    fleet.nodes[which].restart().await;
    fleet.status_is("completed", Duration::from_secs(90)).await;
    assert_eq!(fleet.steps_taken().await, [[0.0, 10.0], [10.0, 50.0], [50.0, 100.0]]);
    fleet.all_on("websocket", Duration::from_secs(60)).await;
    let published = publisher.stop().await;
    fleet.all_have(published).await;
}

async fn the_store_is_killed(store: impl Store) {
    let mut fleet = Fleet::on(store, &SETTINGS).await;
    begin(&mut fleet).await;
    fleet.who_looks().await;
    fleet.store.kill_and_restart().await;
    fleet.status_is("completed", Duration::from_secs(90)).await;
    assert_eq!(fleet.steps_taken().await, [[0.0, 10.0], [10.0, 50.0], [50.0, 100.0]]);
    let stop = json!({ "reason": "after the end" });
    fleet.order("rollback", stop).await;
    fleet.store.kill_and_restart().await;
    fleet.status_is("rolled_back", Duration::from_secs(60)).await;
    fleet.all_on("sse", Duration::from_secs(60)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_that_looks_is_killed_on_redis() {
    the_node_that_looks_is_killed(PrivateRedis::durable().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_killed_in_the_middle_of_a_step() {
    the_store_is_killed(PrivateRedis::durable().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_is_killed_in_the_middle_of_a_step() {
    the_store_is_killed(Postgres::start(true).await).await;
}
