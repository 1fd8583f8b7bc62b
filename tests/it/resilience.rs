//! The promise under fire: readers are cut off and resumed at random, brokers and nodes are killed,
//! and every acknowledged event arrives exactly once and in order at each reader.

pub(crate) mod postgres;
mod redis;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::{
    client::{Sse, Ws},
    eventually::eventually,
    gateway::{Api, GatewayProcess},
};

/// Events published in all.
const EVENTS: i64 = 20_000;
/// Events in one publish call.
const BATCH: i64 = 20;
/// Readers of each transport.
const READERS: u64 = 6;
/// The longest this may take before it counts as stuck.
const DEADLINE: Duration = Duration::from_secs(240);

/// What keeps the logs of the nodes under test, and can be killed.
pub(crate) trait Store {
    /// The settings that lead a node to it.
    fn vars(&self) -> Vec<(String, String)>;
    /// Kills it with SIGKILL and starts it again on what it had written.
    async fn kill_and_restart(&mut self);
}

/// How far the publisher got: everything up to here was acknowledged.
type Acknowledged = Arc<AtomicI64>;

/// Publishes numbered events through both nodes in turn, each until it is acknowledged.
async fn publish_all(nodes: [SocketAddr; 2], acknowledged: Acknowledged) {
    let apis = nodes.map(Api::of);
    for first in (1..=EVENTS).step_by(usize::try_from(BATCH).unwrap()) {
        let events: Vec<_> = (first..first + BATCH)
            .map(|n| json!({ "channel": "orders:42", "id": format!("event-{n}"), "data": n }))
            .collect();
        let body = json!({ "events": events }).to_string();
        let turn = AtomicUsize::new(usize::try_from(first / BATCH).unwrap());
        eventually(format!("the events from {first} on are taken"), async || {
            let api = &apis[turn.fetch_add(1, Ordering::Relaxed) % 2];
            let answer = api.try_post("/api/publish/batch", &body).await;
            let (200, answer, _) = answer.ok()? else { return None };
            let results = answer["results"].as_array()?;
            results.iter().all(|result| result["error"].is_null()).then_some(())
        })
        .await;
        acknowledged.store(first + BATCH - 1, Ordering::Release);
    }
}

/// What a reader has: a stream it may lose at any moment.
enum Stream {
    Ws(Box<Ws>),
    Sse(Sse),
}

/// A reader that is cut off at random and comes back to either node with the position it holds.
struct Reader {
    nodes: [SocketAddr; 2],
    over_sse: bool,
    rng: StdRng,
    position: Option<String>,
    received: i64,
}

impl Reader {
    async fn read_all(mut self) {
        while self.received < EVENTS {
            let Some(stream) = self.connect().await else { continue };
            let until_cut = self.rng.random_range(1..2000);
            self.read(stream, until_cut).await;
        }
    }

    async fn connect(&mut self) -> Option<Stream> {
        let node = self.nodes[self.rng.random_range(0..2)];
        let connected = async {
            if self.over_sse {
                let last_id = self.position.as_deref();
                let sse = Sse::try_open(node, "channel=orders:42", last_id).await.ok()?;
                return Some(Stream::Sse(sse));
            }
            let mut ws = Ws::try_open(node).await.ok()?;
            let since = self.position.as_deref();
            let frame = json!({ "type": "subscribe", "channel": "orders:42", "since": since });
            ws.try_send(frame).await.ok()?;
            Some(Stream::Ws(Box::new(ws)))
        };
        let connected = tokio::time::timeout(Duration::from_secs(5), connected).await;
        if let Ok(Some(stream)) = connected {
            return Some(stream);
        }
        // The node is down: not at once again, that would be a busy loop.
        let pause = Duration::from_millis(self.rng.random_range(20..200));
        let _ = tokio::time::timeout(pause, std::future::pending::<()>()).await;
        None
    }

    /// Reads until it is cut off, by itself or by what happens to the node.
    async fn read(&mut self, mut stream: Stream, until_cut: usize) {
        for _ in 0..until_cut {
            let next = async {
                match &mut stream {
                    Stream::Ws(ws) => ws.try_next().await.ok(),
                    Stream::Sse(sse) => frame_of(sse).await,
                }
            };
            // A quiet minute is no cut: the broker may be away.
            let Some(frame) = next.await else { return };
            match frame["type"].as_str() {
                Some("event") => self.take(&frame),
                Some("subscribed" | "welcome") => {
                    let begins_here = frame["position"].as_str().map(str::to_owned);
                    self.position = self.position.take().or(begins_here);
                }
                Some("error") if frame["code"] == "unavailable" => return,
                Some("goodbye") => return,
                _ => panic!("nothing else may come: {frame}"),
            }
            if self.received == EVENTS {
                return;
            }
        }
    }

    fn take(&mut self, frame: &Value) {
        let n = frame["data"].as_i64().unwrap();
        assert_eq!(n, self.received + 1, "a hole or a repeat at {}", frame["position"]);
        self.received = n;
        self.position = Some(frame["position"].as_str().unwrap().to_owned());
    }
}

/// The next block in the shape of a WebSocket's frame.
async fn frame_of(sse: &mut Sse) -> Option<Value> {
    let block = sse.try_next().await.ok()?;
    let mut frame = block.json();
    match block.event.as_deref() {
        Some("open") => frame["position"] = json!(block.id),
        None => frame["type"] = json!("event"),
        Some(_) => {}
    }
    Some(frame)
}

/// Two nodes on one store, readers on both, and a publisher.
struct Scene {
    nodes: [GatewayProcess; 2],
    acknowledged: Acknowledged,
    tasks: JoinSet<()>,
}

impl Scene {
    async fn begin(store: &impl Store, seed: u64) -> Self {
        let vars = store.vars();
        let vars: Vec<_> = vars.iter().map(|(name, value)| (&**name, &**value)).collect();
        let nodes = [GatewayProcess::start(&vars).await, GatewayProcess::start(&vars).await];
        let addrs = [nodes[0].addr, nodes[1].addr];
        for addr in addrs {
            let api = Api::of(addr);
            eventually("a node is ready", async || {
                (api.get("/health/ready").await.0 == 200).then_some(())
            })
            .await;
        }
        // The log's beginning, so that readers who come late begin there too.
        let api = Api::of(addrs[0]);
        let (_, page) = api.get("/api/channels/orders:42/history").await;
        let beginning = page["position"].as_str().unwrap().to_owned();
        let mut tasks = JoinSet::new();
        for n in 0..2 * READERS {
            let reader = Reader {
                nodes: addrs,
                over_sse: n % 2 == 0,
                rng: StdRng::seed_from_u64(seed + n),
                position: Some(beginning.clone()),
                received: 0,
            };
            tasks.spawn(reader.read_all());
        }
        let acknowledged = Acknowledged::default();
        tasks.spawn(publish_all(addrs, Arc::clone(&acknowledged)));
        Self { nodes, acknowledged, tasks }
    }

    /// Waits until so many events were acknowledged.
    async fn until(&self, events: i64) {
        let far = async {
            let mut tick = tokio::time::interval(Duration::from_millis(10));
            while self.acknowledged.load(Ordering::Acquire) < events {
                tick.tick().await;
            }
        };
        let far = tokio::time::timeout(DEADLINE, far).await;
        assert!(far.is_ok(), "the publisher never got to {events}");
    }

    /// Waits until every reader has everything.
    async fn end(mut self) {
        let all = async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.unwrap();
            }
        };
        let all = tokio::time::timeout(DEADLINE, all).await;
        assert!(all.is_ok(), "a reader never got everything");
    }
}

/// The broker is killed three times while events flow.
pub(crate) async fn the_broker_is_killed_three_times(mut store: impl Store) {
    let scene = Scene::begin(&store, 1).await;
    for events in [EVENTS / 4, EVENTS / 2, EVENTS * 3 / 4] {
        scene.until(events).await;
        store.kill_and_restart().await;
    }
    scene.end().await;
}

/// Each node is killed once while events flow.
pub(crate) async fn each_node_is_killed_once(store: impl Store) {
    let mut scene = Scene::begin(&store, 100).await;
    for (node, events) in [(0, EVENTS / 3), (1, EVENTS * 2 / 3)] {
        scene.until(events).await;
        scene.nodes[node].kill().await;
        scene.until(events + EVENTS / 10).await;
        scene.nodes[node].restart().await;
    }
    scene.end().await;
}
