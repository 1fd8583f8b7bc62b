//! Command line: `serve`, `check`, `publish`, `tail`, `rollout`, `demo`, `token`.
//!
//! `serve` and `demo` run a gateway. `publish`, `tail` and `rollout` are clients of a running gateway
//! and use only its public API.

mod demo;
mod publish;
mod rollout;
mod tail;
mod token;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use tracing::{error, info, warn};

use crate::{
    auth::Auth,
    broker::BrokerKind,
    config::Config,
    gateway::Gateway,
    lifecycle::{self, Stage},
    protocol::Token,
    telemetry,
};

/// A real-time event gateway: publish to channels, deliver over WebSocket and SSE.
#[derive(Debug, Parser)]
#[command(name = "crossfade", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway (the default command).
    Serve(ServeArgs),
    /// Validate the configuration and print the settings in effect.
    Check(ServeArgs),
    /// Publish an event, or one per line of standard input.
    Publish(publish::PublishArgs),
    /// Subscribe to channels and print their events.
    Tail(tail::TailArgs),
    /// Control rollouts: move users from an old side to a new one by percentage, and back.
    Rollout(Box<rollout::RolloutArgs>),
    /// Run a gateway with simulated users and a rollout, to watch on the dashboard.
    Demo(demo::DemoArgs),
    /// Sign a token for development.
    Token(Box<token::TokenArgs>),
}

#[derive(Args, Debug)]
struct ServeArgs {
    /// Configuration file [default: ./config.toml if it exists].
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Cli {
    /// Runs the command. Returns the exit code of the process.
    ///
    /// # Errors
    /// When the command fails, with a message for the user.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        // Required once per process before any TLS. It fails if installed already, which is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        match self.command.unwrap_or(Command::Serve(self.serve)) {
            Command::Serve(args) => serve(args).await,
            Command::Check(args) => check(&args),
            Command::Publish(args) => publish::run(args).await,
            Command::Tail(args) => tail::run(args).await,
            Command::Rollout(args) => rollout::run(*args).await,
            Command::Demo(args) => demo::run(args).await,
            Command::Token(args) => token::run(*args),
        }
    }
}

async fn serve(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(args.config.as_deref())?;
    telemetry::init(&config.telemetry)?;
    let broker = config.broker.kind;
    let allows_anonymous = config.auth.allows_anonymous();
    let is_loopback = config.server.listen.ip().is_loopback();
    let scheme = if config.server.tls.certificate.is_some() { "https" } else { "http" };
    let stop = lifecycle::shutdown_signal().context("signals cannot be listened for")?;
    let gateway = Gateway::bind(config).await?;
    let address = gateway.local_addr()?;
    info!(?broker, "listening on {scheme}://{address}");
    if allows_anonymous {
        warn!(
            "clients without a token are accepted and may do what [channels] allows to \"anyone\": set \
             auth.environment, or auth.anonymous = false, before others can reach this address"
        );
    }
    if allows_anonymous && !is_loopback {
        error!(%address, "clients without a token are accepted from other machines");
    }
    if broker == BrokerKind::Memory {
        info!(
            "broker.kind = \"memory\": events are lost on restart and not shared with other nodes"
        );
    }
    let unfinished = gateway.run(stop).await;
    Ok(if unfinished == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[expect(clippy::print_stdout, reason = "output of the command")]
fn check(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(args.config.as_deref())?;
    Auth::new(&config.auth, config.permissions(), &Stage::default())?;
    config.alerts.check()?;
    println!("{}", toml::to_string(&config)?);
    Ok(ExitCode::SUCCESS)
}

/// The gateway that a client command connects to.
#[derive(Args, Clone, Debug)]
struct Target {
    /// URL of the gateway.
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:8080",
        env = "CROSSFADE_URL"
    )]
    url: String,
    /// Token or API key.
    #[arg(long, env = "CROSSFADE_TOKEN", hide_env_values = true)]
    token: Option<Token>,
}

impl Target {
    fn join(&self, path: &str) -> String {
        format!("{}{path}", self.url.trim_end_matches('/'))
    }
}
