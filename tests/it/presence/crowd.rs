//! What a crowd costs: ten thousand members come within ten seconds. A measurement, not a test of time.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};

use super::{Onlooker, listed_count, ready};
use crate::{
    resilience::Store as _,
    support::{client::Ws, gateway::GatewayProcess, redis::PrivateRedis},
};

const MEMBERS: usize = 10_000;
const SECONDS: u32 = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: cargo test --release --test it crowd -- --ignored --nocapture"]
async fn ten_thousand_members_come_within_ten_seconds() {
    for listed in [true, false] {
        measure(listed).await;
    }
}

async fn node(redis: &PrivateRedis, list: &str) -> GatewayProcess {
    let mut vars = redis.vars();
    vars.push(("CROSSFADE_CLUSTER__PRESENCE_LIST".to_owned(), list.to_owned()));
    let vars: Vec<_> = vars.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let node = GatewayProcess::start(&vars).await;
    ready(&node).await;
    node
}

async fn measure(is_listed: bool) {
    let redis = PrivateRedis::start().await;
    let list = if is_listed { "20000" } else { "1000" };
    let nodes = [node(&redis, list).await, node(&redis, list).await];
    let addrs = [nodes[0].addr, nodes[1].addr];
    let mut onlookers = Vec::new();
    for n in 0..10 {
        onlookers.push(Onlooker::of(addrs[n % 2], "hall").await);
    }
    let before = nodes.each_ref().map(GatewayProcess::resident_bytes);

    let begin = Instant::now();
    let hearing: Vec<_> =
        onlookers.into_iter().map(|onlooker| crate::support::spawn(hear_all(onlooker))).collect();
    let members = join_all(addrs).await;
    let joined = Instant::now();
    let heard = futures_util::future::join_all(hearing)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect::<Vec<_>>();
    let frames: usize = heard.iter().map(|(onlooker, ..)| onlooker.frames).sum();
    let bytes: usize = heard.iter().map(|(_, bytes, _)| bytes).sum();
    let last = heard.iter().map(|(.., at)| *at).max().unwrap();
    let after = nodes.each_ref().map(GatewayProcess::resident_bytes);
    for addr in addrs {
        assert_eq!(listed_count(addr, "hall").await, MEMBERS);
    }
    let per_member = |n: usize| (after[n] - before[n]) / MEMBERS as u64;
    eprintln!(
        "listed: {is_listed}; {MEMBERS} joined within {:.1} s; consistent {:.0} ms after the last was \
         answered; {frames} presence frames to {} onlookers, {} KiB; memory of the nodes: {} and {} bytes a \
         member (of which each node has half the sockets)",
        joined.duration_since(begin).as_secs_f64(),
        last.saturating_duration_since(joined).as_secs_f64() * 1000.0,
        heard.len(),
        bytes >> 10,
        per_member(0),
        per_member(1),
    );
    drop(members);
}

/// Hears news until everybody is there: their bytes, and when that was.
async fn hear_all(mut onlooker: Onlooker) -> (Onlooker, usize, Instant) {
    let mut bytes = 0;
    while onlooker.count < MEMBERS {
        bytes += onlooker.hear_within(Duration::from_secs(60)).await;
    }
    (onlooker, bytes, Instant::now())
}

/// All members, at an even pace, on both nodes in turn.
async fn join_all(addrs: [SocketAddr; 2]) -> Vec<Ws> {
    let mut ticks = interval(Duration::from_secs(1) * SECONDS / u32::try_from(MEMBERS).unwrap());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let paced = stream::unfold(ticks, |mut ticks| async move {
        ticks.tick().await;
        Some(((), ticks))
    });
    let join = |(n, ())| async move {
        let mut ws = Ws::open(addrs[n % 2]).await;
        ws.send(json!({"type": "subscribe", "channel": "hall", "state": {"n": n}})).await;
        ws.expect("subscribed").await;
        ws
    };
    paced.take(MEMBERS).enumerate().map(join).buffer_unordered(200).collect().await
}
