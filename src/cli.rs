//! The command line: `serve`, `check`, `publish`, `tail`, `rollout`, `token`. Thin; `publish`, `tail` and
//! `rollout` are clients of a running gateway and know of it what any client does.

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
    /// Run the gateway (the default).
    Serve(ServeArgs),
    /// Read the configuration, say whether it can be, and print it as it counts.
    Check(ServeArgs),
    /// Publish an event, or each line of standard input.
    Publish(publish::PublishArgs),
    /// Print the events of channels as they come.
    Tail(tail::TailArgs),
    /// Move users from an old side to a new one, and back.
    Rollout(Box<rollout::RolloutArgs>),
    /// Run a gateway with simulated users and a rollout, to watch it on the dashboard.
    Demo(demo::DemoArgs),
    /// Make a token for development.
    Token(Box<token::TokenArgs>),
}

#[derive(Args, Debug)]
struct ServeArgs {
    /// The settings; ./config.toml if it is there, else the defaults.
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Cli {
    /// Does what the arguments say.
    ///
    /// # Errors
    /// With what went wrong, for a person.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        // Needed once per process wherever TLS is spoken; a second installation changes nothing.
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
    let (anonymous, here) =
        (config.auth.allows_anonymous(), config.server.listen.ip().is_loopback());
    let scheme = if config.server.tls.certificate.is_some() { "https" } else { "http" };
    let stop = lifecycle::shutdown_signal().context("signals cannot be listened for")?;
    let gateway = Gateway::bind(config).await?;
    let address = gateway.local_addr()?;
    info!(?broker, "crossfade listens on {scheme}://{address}");
    if anonymous {
        warn!(
            "no token is asked for: whoever reaches this address may do what [channels] allows to \
             anyone; set auth.environment or auth.anonymous = false before others can reach it"
        );
    }
    if anonymous && !here {
        error!(%address, "and this address can be reached from other machines");
    }
    if broker == BrokerKind::Memory {
        info!("the embedded broker keeps events in this process only");
    }
    let abandoned = gateway.run(stop).await;
    Ok(if abandoned == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[expect(clippy::print_stdout, reason = "what the command is for")]
fn check(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(args.config.as_deref())?;
    Auth::new(&config.auth, config.permissions(), &Stage::default())?;
    config.alerts.check()?;
    println!("{}", toml::to_string(&config)?);
    Ok(ExitCode::SUCCESS)
}

/// Where a command finds the gateway.
#[derive(Args, Clone, Debug)]
struct Target {
    /// The gateway's address.
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:8080",
        env = "CROSSFADE_URL"
    )]
    url: String,
    /// A token or an API key.
    #[arg(long, env = "CROSSFADE_TOKEN", hide_env_values = true)]
    token: Option<Token>,
}

impl Target {
    fn join(&self, path: &str) -> String {
        format!("{}{path}", self.url.trim_end_matches('/'))
    }
}
