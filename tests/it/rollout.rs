//! Crossfading: thousands of real clients moved from SSE to WebSocket and back while events flow, and
//! whatever may break in the middle of it.

mod api;
mod guarded;
mod kills;
mod moving;
mod scheduled;
mod source;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{
    resilience::Store,
    support::{
        self,
        eventually::{eventually, soon_within},
        gateway::{Api, GatewayProcess},
        migrating_client::{Diary, Journey, MigratingClient},
        pause,
    },
};

const COMPONENT: &str = "websocket-transport";

/// Two nodes on a store, and clients that go where the rollout sends them.
struct Fleet<S> {
    store: S,
    nodes: Vec<GatewayProcess>,
    apis: Vec<Api>,
    /// Where clients go in; the nodes themselves unless something stands before them.
    gates: Vec<SocketAddr>,
    travellers: Vec<Arc<Diary>>,
}

impl<S: Store> Fleet<S> {
    async fn on(store: S, settings: &[(&str, &str)]) -> Self {
        let mut vars = store.vars();
        vars.extend(
            settings.iter().map(|(name, value)| (format!("CROSSFADE_{name}"), (*value).to_owned())),
        );
        let vars: Vec<_> =
            vars.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut nodes = Vec::new();
        for _ in 0..2 {
            nodes.push(GatewayProcess::start(&vars).await);
        }
        let apis: Vec<_> = nodes.iter().map(|node| Api::of(node.addr)).collect();
        for api in &apis {
            eventually("the node is ready", async || {
                (api.get("/health/ready").await.0 == 200).then_some(())
            })
            .await;
        }
        let gates = nodes.iter().map(|node| node.addr).collect();
        Self { store, nodes, apis, gates, travellers: Vec::new() }
    }

    /// So many more clients; waits until all are connected by `transport`.
    async fn depart(&mut self, count: usize, lobby: Option<&str>, only_sse: bool, transport: &str) {
        let from = self.travellers.len();
        let units: Vec<_> = (from..from + count).map(|number| format!("unit-{number}")).collect();
        for some in units.chunks(50) {
            self.send(some, lobby, only_sse);
            pause(Duration::from_millis(30)).await;
        }
        self.all_on(transport, Duration::from_secs(60)).await;
    }

    fn send(&mut self, units: &[String], lobby: Option<&str>, only_sse: bool) {
        let journey = Arc::new(Journey {
            nodes: self.gates.clone(),
            apis: self.apis.clone(),
            channel: "news".to_owned(),
            lobby: lobby.map(str::to_owned),
            only_sse,
        });
        self.travellers.extend(units.iter().map(|unit| MigratingClient::start(unit, &journey)));
    }

    /// Waits until every client is carried by this.
    async fn all_on(&self, transport: &str, within: Duration) {
        let all = async {
            for diary in &self.travellers {
                let mut now = diary.transport.subscribe();
                let _ = now.wait_for(|carrier| *carrier == transport).await;
            }
        };
        soon_within(within, format!("all are on {transport}"), all).await;
    }

    async fn order(&self, verb: &str, body: Value) -> Value {
        let path = format!("/api/migration/{verb}/{COMPONENT}");
        let (status, answer, _) = self.apis[0].post(&path, body).await;
        assert_eq!(status, 200, "{answer}");
        for api in &self.apis {
            knows(api, answer["version"].as_u64().unwrap()).await;
        }
        answer
    }

    /// Says the percentage; the version that has it.
    async fn set_percentage(&self, percentage: u32) -> u64 {
        let url = format!("{}/api/migration/feature-flags/{COMPONENT}", self.apis[0].base);
        let body = json!({ "rolloutPercentage": percentage }).to_string();
        let answer = self.apis[0].http.put(url).body(body).send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        answer["version"].as_u64().unwrap_or_else(|| panic!("{answer}"))
    }

    /// Everybody has everything that was published, each once, in order, and nothing odd happened.
    async fn all_have(&self, events: i64) {
        let expected: Vec<i64> = (1..=events).collect();
        for diary in &self.travellers {
            eventually(format!("{} has {events} events", diary.unit), async || {
                (diary.received.lock().len() >= expected.len()).then_some(())
            })
            .await;
            assert_eq!(*diary.received.lock(), expected, "{}", diary.unit);
            assert_eq!(*diary.mistakes.lock(), Vec::<String>::new());
        }
    }
}

/// Waits until a node knows this version of the rollout, or a later one.
async fn knows(api: &Api, version: u64) {
    eventually(format!("a node knows version {version}"), async || {
        let (_, flag) = api.get(&format!("/api/migration/feature-flags/{COMPONENT}")).await;
        (version <= flag["version"].as_u64()?).then_some(())
    })
    .await;
}

/// Publishes 1, 2, 3 … to `news` until it is told to stop, each until it is acknowledged.
struct Publisher {
    stop: Arc<AtomicBool>,
    published: Arc<AtomicI64>,
    running: JoinHandle<()>,
}

impl Publisher {
    fn start(apis: &[Api], every: Duration) -> Self {
        let (stop, published) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
        let (apis, stopped, count) = (apis.to_vec(), Arc::clone(&stop), Arc::clone(&published));
        let running = support::spawn(async move {
            let mut turn = 0;
            while !stopped.load(Ordering::Relaxed) {
                let next = count.load(Ordering::Relaxed) + 1;
                let event = json!({ "channel": "news", "id": format!("n-{next}"), "data": next });
                loop {
                    turn += 1;
                    let api = &apis[turn % apis.len()];
                    let answer = api.try_post("/api/publish", &event).await;
                    if matches!(answer, Ok((200, ..))) {
                        break;
                    }
                    pause(Duration::from_millis(50)).await;
                }
                count.store(next, Ordering::Release);
                pause(every).await;
            }
        });
        Self { stop, published, running }
    }

    /// How many there were.
    async fn stop(self) -> i64 {
        self.stop.store(true, Ordering::Relaxed);
        self.running.await.unwrap();
        self.published.load(Ordering::Acquire)
    }
}
