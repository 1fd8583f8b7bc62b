//! `crossfade demo`: a gateway with simulated users and a rollout from 1 %, and a fault that can be
//! switched on, to watch it being found and turned back on the dashboard.
//!
//! The users are real clients over real sockets; only what they are, and their bad network, is made up.

mod simulated_user;

use std::{
    net::SocketAddr,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    sync::oneshot,
};

use self::simulated_user::User;
use crate::{
    config::{Config, EnvVars},
    gateway::Gateway,
    lifecycle::{self, Stage},
    rollout::flag::TRANSPORT,
    telemetry,
};

#[derive(Args, Debug)]
pub(super) struct DemoArgs {
    /// How many users there are.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(50..=10_000))]
    users: u32,
    /// Where the gateway listens; without it CROSSFADE_SERVER__LISTEN, or 127.0.0.1:8080.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Switch the fault on after so many seconds, instead of by the Enter key.
    #[arg(long, value_name = "SECONDS")]
    fault_after: Option<u64>,
    /// End after so many seconds.
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
}

/// What all users share.
#[derive(Debug)]
pub(super) struct Crowd {
    addr: SocketAddr,
    http: reqwest::Client,
    /// Three of a hundred WebSockets break each second.
    fault: AtomicBool,
    received: AtomicUsize,
}

/// The steps of the demo's rollout: percent, and seconds to bake.
const STEPS: [(u32, u64); 5] = [(1, 15), (5, 15), (25, 20), (50, 20), (100, 20)];

pub(super) async fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let mut config = Config::parse("", &EnvVars::from_process())?;
    config.server.listen = args.listen.unwrap_or(config.server.listen);
    config.rollout.drain.rate = 50;
    config.telemetry.log = "warn".to_owned();
    telemetry::init(&config.telemetry)?;
    let gateway = Gateway::bind(config).await?;
    let addr = gateway.local_addr()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let stage = Stage::default();
    let (done, ended) = oneshot::channel();
    stage.spawn("gateway", async move {
        let abandoned = gateway.run(async move { drop(stopped.await) }).await;
        let _ = done.send(abandoned);
    });
    let crowd = Arc::new(Crowd {
        addr,
        http: reqwest::Client::new(),
        fault: AtomicBool::new(false),
        received: AtomicUsize::new(0),
    });
    say(&format!("the dashboard: http://{addr}/dashboard"));
    begin(&crowd).await.context("the rollout could not be begun")?;
    for number in 0..args.users {
        let (crowd, leaving) = (Arc::clone(&crowd), stage.stopping().clone());
        stage.spawn_client(async move {
            let user = Box::pin(User::new(number, crowd).live());
            let _ = leaving.run_until_cancelled(user).await;
        });
    }
    publish(&crowd, &stage);
    say(&format!("{} users come, on SSE; the rollout begins with 1 % of them", args.users));
    match args.fault_after {
        Some(_) => say("the fault will be switched on by itself"),
        None => say("Enter switches a fault on and off: WebSockets that break; Ctrl-C ends it"),
    }
    watch(&crowd, &args).await?;
    drop(stop);
    stage.stopping().cancel();
    let abandoned = ended.await.unwrap_or(0);
    Ok(if abandoned == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Sets the rollout up and starts it.
async fn begin(crowd: &Crowd) -> anyhow::Result<()> {
    let step = |(percentage, bake): (u32, u64)| {
        json!({
            "percentage": percentage,
            "bake_seconds": bake,
            "min_users": 1,
            "validation": true,
        })
    };
    let steps: Vec<Value> = STEPS.into_iter().map(step).collect();
    let settings = json!({
        "schedule": { "steps": steps, "cool_down_seconds": 0 },
        "reason": "crossfade demo",
    });
    let flag = format!("http://{}/api/migration/feature-flags/{TRANSPORT}", crowd.addr);
    crowd.http.put(flag).json(&settings).send().await?.error_for_status()?;
    let start = format!("http://{}/api/migration/start/{TRANSPORT}", crowd.addr);
    crowd.http.post(start).json(&json!({})).send().await?.error_for_status()?;
    Ok(())
}

/// Events flow: five a second, for everybody.
fn publish(crowd: &Arc<Crowd>, stage: &Stage) {
    let (crowd, stopping) = (Arc::clone(crowd), stage.stopping().clone());
    stage.spawn("publisher", async move {
        let publishing = async {
            let mut tick = tokio::time::interval(Duration::from_millis(200));
            for number in 0_u64.. {
                tick.tick().await;
                let event =
                    json!({ "channel": simulated_user::CHANNEL, "name": "tick", "data": number });
                let url = format!("http://{}/api/publish", crowd.addr);
                let _ = crowd.http.post(url).json(&event).send().await;
            }
        };
        let _ = stopping.run_until_cancelled(publishing).await;
    });
}

/// Says how it goes until it is over.
async fn watch(crowd: &Crowd, args: &DemoArgs) -> anyhow::Result<()> {
    let begin = Instant::now();
    let mut keys = BufReader::new(tokio::io::stdin()).lines();
    let mut listening = args.fault_after.is_none();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut interrupted = std::pin::pin!(lifecycle::shutdown_signal()?);
    let mut last = String::new();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            key = keys.next_line(), if listening => match key {
                Ok(Some(_)) => switch(crowd, !crowd.fault.load(Ordering::Relaxed)),
                // Nobody is at the keys.
                Ok(None) | Err(_) => listening = false,
            },
            () = &mut interrupted => return Ok(()),
        }
        let passed = begin.elapsed().as_secs();
        if args.fault_after.is_some_and(|after| after <= passed)
            && !crowd.fault.load(Ordering::Relaxed)
        {
            switch(crowd, true);
        }
        if args.seconds.is_some_and(|most| most <= passed) {
            return Ok(());
        }
        let line = standing(crowd).await.unwrap_or_else(|err| format!("{err:#}"));
        if line != last {
            say(&line);
            last = line;
        }
    }
}

fn switch(crowd: &Crowd, on: bool) {
    crowd.fault.store(on, Ordering::Relaxed);
    say(if on { "fault on: 3 % of the WebSockets break each second" } else { "fault off" });
}

async fn standing(crowd: &Crowd) -> anyhow::Result<String> {
    let url = format!("http://{}/api/migration/feature-flags", crowd.addr);
    let answer: Value = crowd.http.get(url).send().await?.json().await?;
    let flag = &answer["flags"][0];
    let live = answer["figures"]["liveConnectionsPercentage"].as_f64().unwrap_or(0.0);
    let text = |key: &str| flag[key].as_str().unwrap_or_default().replace('_', " ");
    let reason = match text("reason") {
        reason if text("status") == "rolled back" => format!(": {reason}"),
        _ => String::new(),
    };
    Ok(format!(
        "{} at {} %, {live:.0} % of the connections{reason}",
        text("status"),
        flag["effectivePercentage"]
    ))
}

#[expect(clippy::print_stdout, reason = "what the command is for")]
fn say(line: &str) {
    println!("{line}");
}
