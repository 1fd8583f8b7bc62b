//! `crossfade demo`: runs a gateway with simulated users and a rollout from SSE to WebSocket, and a fault
//! that can be switched on, to watch the automatic rollback on the dashboard.
//!
//! The users are real clients on real sockets; only their network faults are simulated.

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

use self::simulated_user::SimulatedUser;
use crate::{
    config::{Config, EnvVars},
    gateway::Gateway,
    lifecycle::{self, Stage},
    rollout::flag::TRANSPORT,
    telemetry,
};

#[derive(Args, Debug)]
pub(super) struct DemoArgs {
    /// Number of simulated users.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(50..=10_000))]
    users: u32,
    /// Listen address of the gateway [default: CROSSFADE_SERVER__LISTEN, or 127.0.0.1:8080].
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Switch the fault on after this many seconds, instead of with the Enter key.
    #[arg(long, value_name = "SECONDS")]
    fault_after: Option<u64>,
    /// Exit after this many seconds.
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
}

/// Shared by all simulated users.
#[derive(Debug)]
pub(super) struct DemoState {
    addr: SocketAddr,
    http: reqwest::Client,
    /// While set, 3 % of the WebSocket connections fail each second.
    fault: AtomicBool,
    received: AtomicUsize,
}

/// Steps of the demo's rollout: percentage and bake time in seconds.
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
    let (done, gateway_ended) = oneshot::channel();
    stage.spawn("gateway", async move {
        let unfinished = gateway.run(async move { drop(stopped.await) }).await;
        let _ = done.send(unfinished);
    });
    let state = Arc::new(DemoState {
        addr,
        http: reqwest::Client::new(),
        fault: AtomicBool::new(false),
        received: AtomicUsize::new(0),
    });
    print(&format!("dashboard: http://{addr}/dashboard"));
    start_rollout(&state).await.context("cannot start the rollout")?;
    for number in 0..args.users {
        let (state, stopping) = (Arc::clone(&state), stage.stopping().clone());
        stage.spawn_client(async move {
            let user = Box::pin(SimulatedUser::new(number, state).run());
            let _ = stopping.run_until_cancelled(user).await;
        });
    }
    publish(&state, &stage);
    print(&format!("{} users connect over SSE; the rollout starts with 1 %", args.users));
    match args.fault_after {
        Some(seconds) => print(&format!("the fault is switched on after {seconds} s")),
        None => print("Enter switches a fault on or off (failing WebSockets), Ctrl-C exits"),
    }
    watch(&state, &args).await?;
    drop(stop);
    stage.stopping().cancel();
    let unfinished = gateway_ended.await.unwrap_or(0);
    Ok(if unfinished == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Creates the rollout and starts it.
async fn start_rollout(state: &DemoState) -> anyhow::Result<()> {
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
    let flag = format!("http://{}/api/migration/feature-flags/{TRANSPORT}", state.addr);
    state.http.put(flag).json(&settings).send().await?.error_for_status()?;
    let start = format!("http://{}/api/migration/start/{TRANSPORT}", state.addr);
    state.http.post(start).json(&json!({})).send().await?.error_for_status()?;
    Ok(())
}

/// Publishes five events per second to the channel of all users.
fn publish(state: &Arc<DemoState>, stage: &Stage) {
    let (state, stopping) = (Arc::clone(state), stage.stopping().clone());
    stage.spawn("publisher", async move {
        let publishing = async {
            let mut tick = tokio::time::interval(Duration::from_millis(200));
            for number in 0_u64.. {
                tick.tick().await;
                let event =
                    json!({ "channel": simulated_user::CHANNEL, "name": "tick", "data": number });
                let url = format!("http://{}/api/publish", state.addr);
                let _ = state.http.post(url).json(&event).send().await;
            }
        };
        let _ = stopping.run_until_cancelled(publishing).await;
    });
}

/// Prints the state of the rollout when it changes, and switches the fault, until the demo ends.
async fn watch(state: &DemoState, args: &DemoArgs) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut keys = BufReader::new(tokio::io::stdin()).lines();
    let mut reads_keys = args.fault_after.is_none();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut shutdown_signal = std::pin::pin!(lifecycle::shutdown_signal()?);
    let mut last = String::new();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            key = keys.next_line(), if reads_keys => match key {
                Ok(Some(_)) => set_fault(state, !state.fault.load(Ordering::Relaxed)),
                // Standard input is closed.
                Ok(None) | Err(_) => reads_keys = false,
            },
            () = &mut shutdown_signal => return Ok(()),
        }
        let elapsed = start.elapsed().as_secs();
        if args.fault_after.is_some_and(|after| after <= elapsed)
            && !state.fault.load(Ordering::Relaxed)
        {
            set_fault(state, true);
        }
        if args.seconds.is_some_and(|limit| limit <= elapsed) {
            return Ok(());
        }
        let line = rollout_state(state).await.unwrap_or_else(|err| format!("{err:#}"));
        if line != last {
            print(&line);
            last = line;
        }
    }
}

fn set_fault(state: &DemoState, on: bool) {
    state.fault.store(on, Ordering::Relaxed);
    print(if on { "fault on: 3 % of the WebSockets fail each second" } else { "fault off" });
}

async fn rollout_state(state: &DemoState) -> anyhow::Result<String> {
    let url = format!("http://{}/api/migration/feature-flags", state.addr);
    let answer: Value = state.http.get(url).send().await?.json().await?;
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

#[expect(clippy::print_stdout, reason = "output of the command")]
fn print(line: &str) {
    println!("{line}");
}
