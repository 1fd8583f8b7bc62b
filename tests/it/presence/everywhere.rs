//! The stories, on each broker: the embedded one as one node, the others as two.

use std::collections::BTreeMap;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IteratorRandom as _};
use serde_json::json;

use super::{
    Api, GatewayProcess, Member, Memory, Onlooker, Sse, Store, Ws, list_is, node, ready, soon,
};
use crate::{resilience::postgres::Postgres, support::redis::PrivateRedis};

/// Two nodes, or one that plays both.
struct Pair(GatewayProcess, Option<GatewayProcess>);

impl Pair {
    async fn on(store: &impl Store) -> Self {
        let first = node(store).await;
        let second = if store.vars().is_empty() { None } else { Some(node(store).await) };
        Self(first, second)
    }

    fn addrs(&self) -> [std::net::SocketAddr; 2] {
        [self.0.addr, self.1.as_ref().unwrap_or(&self.0).addr]
    }
}

async fn members_come_change_and_go(store: impl Store) {
    let nodes = Pair::on(&store).await;
    let [here, there] = nodes.addrs();
    let mut ben = Onlooker::of(there, "room").await;
    let mut ana = Member::join(here, "room", json!({"typing": false})).await;
    ben.until("Ana is seen", |all| all.contains_key(&ana.name)).await;
    let mut eve = Onlooker::of(here, "room").await;
    assert_eq!(eve.there, BTreeMap::from([(ana.name.clone(), json!({"typing": false}))]));

    ana.ws
        .send(json!({"type": "presence", "id": 2, "channel": "room", "state": {"typing": true}}))
        .await;
    assert_eq!(ana.ws.expect("shown").await["session"], ana.name.as_str());
    let typing = BTreeMap::from([(ana.name.clone(), json!({"typing": true}))]);
    ben.until("she types", |all| *all == typing).await;
    eve.until("she types", |all| *all == typing).await;
    list_is(here, "room", &typing).await;
    list_is(there, "room", &typing).await;

    ana.ws.send(json!({"type": "presence", "id": 3, "channel": "room", "state": null})).await;
    ana.ws.expect("shown").await;
    ben.until("she has left", BTreeMap::is_empty).await;
    eve.until("she has left", BTreeMap::is_empty).await;
    list_is(there, "room", &BTreeMap::new()).await;
    assert_eq!((ben.joined[&ana.name], ben.left[&ana.name]), (1, 1));
}

async fn who_comes_back_in_time_was_never_away(store: impl Store) {
    let nodes = Pair::on(&store).await;
    let [here, there] = nodes.addrs();
    let mut ben = Onlooker::of(there, "room").await;
    let mut ana = Member::join(here, "room", json!(7)).await;
    ben.until("Ana is seen", |all| all.contains_key(&ana.name)).await;
    for turn in 0..4 {
        let Member { ws, session, .. } = ana;
        drop(ws);
        ana = Member::come_back(if turn % 2 == 0 { there } else { here }, "room", &session).await;
    }
    // Over the other transport too.
    let query = format!("channel=room&session={}&presence=1", ana.session);
    drop(ana.ws);
    let mut sse = Sse::open(there, &query).await;
    let seen = sse.next().await;
    assert_eq!(seen.event.as_deref(), Some("crossfade.presence"));
    assert_eq!(seen.json()["members"][0]["session"], ana.name.as_str());
    // The grace of the first break is over by the time the grace of this one is.
    let marker = Member::join(here, "room", json!("marker")).await;
    ben.until("the marker is seen", |all| all.contains_key(&marker.name)).await;
    drop(marker.ws);
    ben.until("the marker has left", |all| !all.contains_key(&marker.name)).await;
    assert_eq!(ben.frames, 3, "Ana, and the marker twice");
    assert_eq!(ben.there, BTreeMap::from([(ana.name.clone(), json!(7))]));
}

async fn a_killed_nodes_sessions_leave_once(store: impl Store) {
    let mut nodes = Pair::on(&store).await;
    let [here, there] = nodes.addrs();
    let mut ben = Onlooker::of(there, "room").await;
    let mut members = Vec::new();
    for n in 0..5 {
        members.push(Member::join(here, "room", json!(n)).await);
    }
    ben.until("all are seen", |all| all.len() == 5).await;
    // One goes over in time.
    nodes.0.kill().await;
    let ana = Member::come_back(there, "room", &members[0].session).await;
    ben.until("the others have left", |all| all.len() == 1).await;
    assert!(ben.there.contains_key(&ana.name));
    // The node returns, and what it held is not doubled by that.
    nodes.0.restart().await;
    ready(&nodes.0).await;
    let eve = Member::join(nodes.0.addr, "room", json!("eve")).await;
    ben.until("Eve is seen", |all| all.contains_key(&eve.name)).await;
    list_is(nodes.0.addr, "room", &ben.there).await;
    for member in &members[1..] {
        assert_eq!((ben.joined[&member.name], ben.left[&member.name]), (1, 1));
    }
    assert_eq!((ben.joined[&ana.name], ben.left.get(&ana.name)), (1, None));
}

async fn whatever_happens_adds_up(store: impl Store) {
    let nodes = Pair::on(&store).await;
    let mut ben = Onlooker::of(nodes.addrs()[1], "room").await;
    let seed = rand::random();
    let mut crowd = Crowd { nodes, present: BTreeMap::new(), rng: StdRng::seed_from_u64(seed) };
    for step in 0..120 {
        Box::pin(crowd.act(step)).await;
        if [40, 80].contains(&step) && crowd.nodes.1.is_some() {
            Box::pin(crowd.kill_the_first_node()).await;
        }
    }
    let Crowd { nodes, present, .. } = crowd;
    let expected: Vec<_> = present.keys().cloned().collect();
    let told = format!("seed {seed}: {expected:?} are told");
    ben.until(&told, |all| all.keys().eq(expected.iter())).await;
    for addr in nodes.addrs() {
        list_is(addr, "room", &ben.there).await;
    }
    for (name, joined) in &ben.joined {
        let left = ben.left.get(name).copied().unwrap_or_default();
        assert_eq!(*joined, left + usize::from(present.contains_key(name)), "seed {seed}: {name}");
        // Nobody was away for longer than the grace.
        assert_eq!(*joined, 1, "seed {seed}: {name}");
    }
}

/// Sessions that come, change, move and go as chance has it.
struct Crowd {
    nodes: Pair,
    present: BTreeMap<String, Member>,
    rng: StdRng,
}

impl Crowd {
    async fn act(&mut self, step: u32) {
        let addr = self.nodes.addrs()[self.rng.random_range(0..2)];
        let some = self.present.keys().choose(&mut self.rng).cloned();
        let some = some.and_then(|name| self.present.remove(&name));
        let member = match (self.rng.random_range(0..9), some) {
            (0..4, some) => {
                self.keep(some);
                Some(Member::join(addr, "room", json!(step)).await)
            }
            (_, None) => None,
            (4 | 5, Some(Member { ws, session, .. })) => {
                drop(ws);
                Some(Member::come_back(addr, "room", &session).await)
            }
            (6, Some(before)) => {
                // Both at once for a moment.
                Some(Member::come_back(addr, "room", &before.session).await)
            }
            (7, Some(mut member)) => {
                let state = json!({"type": "presence", "channel": "room", "state": [step]});
                member.ws.send(state).await;
                member.ws.expect("shown").await;
                Some(member)
            }
            (_, Some(Member { mut ws, .. })) => {
                if step.is_multiple_of(2) {
                    ws.send(json!({"type": "unsubscribe", "id": 9, "channel": "room"})).await;
                    ws.expect("unsubscribed").await;
                }
                None
            }
        };
        self.keep(member);
    }

    fn keep(&mut self, member: Option<Member>) {
        self.present.extend(member.map(|member| (member.name.clone(), member)));
    }

    /// Those who were there find out and come back, those elsewhere notice nothing.
    async fn kill_the_first_node(&mut self) {
        self.nodes.0.kill().await;
        self.nodes.0.restart().await;
        ready(&self.nodes.0).await;
        for (_, mut member) in std::mem::take(&mut self.present) {
            if !answers(&mut member.ws).await {
                let addr = self.nodes.addrs()[1];
                member = Member::come_back(addr, "room", &member.session).await;
            }
            self.keep(Some(member));
        }
    }
}

/// Whether a client's connection is still there.
async fn answers(ws: &mut Ws) -> bool {
    let ask = json!({"type": "history", "id": 5, "channel": "room", "limit": 1});
    if ws.try_send(ask).await.is_err() {
        return false;
    }
    loop {
        match soon("an answer or an end", ws.try_next()).await {
            Ok(frame) if frame["type"] == "history" => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

async fn a_session_is_in_one_place_and_reached_from_any(store: impl Store) {
    let nodes = Pair::on(&store).await;
    let [here, there] = nodes.addrs();
    let mut ana = Member::join(here, "room", json!(1)).await;
    let mut again = Member::come_back(there, "room", &ana.session).await;
    assert_eq!(ana.ws.closed().await, "4007");

    let mut stream = Sse::try_open(here, "channel=news", None).await.unwrap();
    let session = stream.next().await.json()["session"].as_str().unwrap().to_owned();
    let api = Api::of(there);
    let frames = json!([
        {"type": "subscribe", "id": 1, "channel": "room"},
        {"type": "presence", "id": 2, "channel": "room", "state": "hi"},
    ]);
    let (status, replies, _) = api.post(&format!("/events/{session}"), frames).await;
    assert_eq!(
        (status, &replies[0]["type"], &replies[1]["type"]),
        (200, &json!("subscribed"), &json!("shown"))
    );
    let nobody = "/events/00000000-0000-4000-8000-000000000000";
    assert_eq!(api.post(nobody, r#"{"type":"pong"}"#).await.0, 404);

    let cut = json!({"session": session, "reason": "enough", "reconnect": false});
    assert_eq!(api.post("/api/sessions/disconnect", cut).await.0, 202);
    let goodbye = stream.until_end().await.pop().unwrap();
    assert_eq!(goodbye.event.as_deref(), Some("crossfade.goodbye"));
    assert_eq!(goodbye.json()["code"], 4006);
    assert_eq!(goodbye.json()["reason"], "enough");
    let cut = json!({"session": again.name, "reconnect": true});
    assert_eq!(Api::of(here).post("/api/sessions/disconnect", cut).await.0, 202);
    assert_eq!(again.ws.expect("goodbye").await["reconnect"], true);
    assert_eq!(again.ws.closed().await, "4006");
}

macro_rules! on_each_broker {
    ($($story:ident),* $(,)?) => {
        mod redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $story() {
                super::$story(super::PrivateRedis::start().await).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $story() {
                super::$story(super::Postgres::start(false).await).await;
            })*
        }
    };
}

on_each_broker! {
    members_come_change_and_go,
    who_comes_back_in_time_was_never_away,
    a_killed_nodes_sessions_leave_once,
    whatever_happens_adds_up,
    a_session_is_in_one_place_and_reached_from_any,
}

mod memory {
    use super::Memory;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn members_come_change_and_go() {
        Box::pin(super::members_come_change_and_go(Memory)).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_comes_back_in_time_was_never_away() {
        Box::pin(super::who_comes_back_in_time_was_never_away(Memory)).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whatever_happens_adds_up() {
        Box::pin(super::whatever_happens_adds_up(Memory)).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_session_is_in_one_place_and_reached_from_any() {
        Box::pin(super::a_session_is_in_one_place_and_reached_from_any(Memory)).await;
    }
}
