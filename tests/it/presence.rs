//! Who is there, on all nodes and all brokers: what onlookers are told adds up to who is there, a
//! reconnect is no news, and nobody leaves twice.

mod crowd;
mod everywhere;

use std::{collections::BTreeMap, net::SocketAddr};

use serde_json::{Value, json};

use crate::{
    resilience::Store,
    support::{
        client::{Sse, Ws},
        eventually::{eventually, soon},
        gateway::{Api, GatewayProcess},
    },
};

/// How long a session may stay away in these tests.
const GRACE: &str = "4s";

/// The embedded broker: one node.
struct Memory;

impl Store for Memory {
    fn vars(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    async fn kill_and_restart(&mut self) {}
}

async fn node(store: &impl Store) -> GatewayProcess {
    let mut vars = store.vars();
    let set = |name: &str, value: &str| (format!("CROSSFADE_{name}"), value.to_owned());
    vars.push(set("CLUSTER__PRESENCE_GRACE", GRACE));
    vars.push(set("CLUSTER__NODE_TIMEOUT", "3s"));
    let vars: Vec<_> = vars.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let gateway = GatewayProcess::start(&vars).await;
    ready(&gateway).await;
    gateway
}

async fn ready(gateway: &GatewayProcess) {
    let api = Api::of(gateway.addr);
    eventually("the node is ready", async || {
        (api.get("/health/ready").await.0 == 200).then_some(())
    })
    .await;
}

/// Somebody who looks on and adds up what is told.
struct Onlooker {
    ws: Ws,
    there: BTreeMap<String, Value>,
    joined: BTreeMap<String, usize>,
    left: BTreeMap<String, usize>,
    frames: usize,
    count: usize,
}

impl Onlooker {
    async fn of(addr: SocketAddr, channel: &str) -> Self {
        let mut ws = Ws::open(addr).await;
        ws.send(json!({"type": "subscribe", "id": 1, "channel": channel, "presence": true})).await;
        let subscribed = ws.expect("subscribed").await;
        let mut this = Self {
            ws,
            there: BTreeMap::new(),
            joined: BTreeMap::new(),
            left: BTreeMap::new(),
            frames: 0,
            count: 0,
        };
        this.add_up(&subscribed);
        this
    }

    /// Takes the next news in.
    async fn hear(&mut self) {
        let news = self.ws.try_next().await.unwrap();
        assert_eq!(news["type"], "presence", "{news}");
        self.frames += 1;
        self.add_up(&news);
    }

    fn add_up(&mut self, news: &Value) {
        let list = |key: &str| news[key].as_array().cloned().unwrap_or_default();
        let name = |member: &Value| member["session"].as_str().unwrap().to_owned();
        if news["members"].is_array() {
            self.there =
                list("members").into_iter().map(|m| (name(&m), m["state"].clone())).collect();
        }
        for member in list("joined") {
            let before = self.there.insert(name(&member), member["state"].clone());
            assert_eq!(before, None, "{member} was there already");
            *self.joined.entry(name(&member)).or_default() += 1;
        }
        for member in list("updated") {
            let before = self.there.insert(name(&member), member["state"].clone());
            assert!(before.is_some(), "{member} was not there");
        }
        for member in list("left") {
            assert!(self.there.remove(&name(&member)).is_some(), "{member} was not there");
            *self.left.entry(name(&member)).or_default() += 1;
        }
        self.count = usize::try_from(news["count"].as_u64().unwrap()).unwrap();
        let counted_only =
            ["members", "joined", "updated", "left"].iter().all(|key| news[key].is_null());
        assert!(counted_only || self.count == self.there.len());
    }

    /// Takes the next news in, which may be long in coming. Its length.
    async fn hear_within(&mut self, time: std::time::Duration) -> usize {
        let news = tokio::time::timeout(time, self.ws.try_next()).await.unwrap().unwrap();
        self.frames += 1;
        self.add_up(&news);
        news.to_string().len()
    }

    async fn until(&mut self, what: &str, there: impl Fn(&BTreeMap<String, Value>) -> bool) {
        while !there(&self.there) {
            let known = format!("{what}; there are {:?}", self.there);
            soon(known, self.hear()).await;
        }
    }
}

/// A session that shows itself.
struct Member {
    ws: Ws,
    session: String,
    name: String,
}

impl Member {
    async fn join(addr: SocketAddr, channel: &str, state: Value) -> Self {
        let member = Self::come(addr, channel, Some(state), None).await;
        eventually("the node shows the member", async || {
            listed(addr, channel).await.contains_key(&member.name).then_some(())
        })
        .await;
        member
    }

    /// Comes back with the session it had, and says nothing of its state.
    async fn come_back(addr: SocketAddr, channel: &str, session: &str) -> Self {
        Self::come(addr, channel, None, Some(session)).await
    }

    async fn come(
        addr: SocketAddr,
        channel: &str,
        state: Option<Value>,
        session: Option<&str>,
    ) -> Self {
        let (mut ws, welcome) = Ws::with_session(addr, session).await;
        ws.send(json!({"type": "subscribe", "id": 1, "channel": channel, "state": state})).await;
        ws.expect("subscribed").await;
        Self { ws, session: welcome.session, name: welcome.member }
    }
}

/// Who is in a channel, as a node lists it.
async fn listed(addr: SocketAddr, channel: &str) -> BTreeMap<String, Value> {
    let (status, list) = Api::of(addr).get(&format!("/api/channels/{channel}/presence")).await;
    assert_eq!(status, 200, "{list}");
    let members = list["members"].as_array().unwrap().iter();
    let members: BTreeMap<_, _> = members
        .map(|member| (member["session"].as_str().unwrap().to_owned(), member["state"].clone()))
        .collect();
    assert_eq!(list["count"], members.len());
    members
}

async fn listed_count(addr: SocketAddr, channel: &str) -> usize {
    let (_, list) = Api::of(addr).get(&format!("/api/channels/{channel}/presence?limit=0")).await;
    usize::try_from(list["count"].as_u64().unwrap()).unwrap()
}

async fn list_is(addr: SocketAddr, channel: &str, expected: &BTreeMap<String, Value>) {
    eventually("the list is as told", async || {
        (listed(addr, channel).await == *expected).then_some(())
    })
    .await;
}
