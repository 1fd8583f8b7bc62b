//! `crossfade token`: signs a token for development, with the first HS256 secret of `auth.keys` or with a
//! key from a file.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Args;

use super::ServeArgs;
use crate::{
    auth::{Claims, Grant, Pattern, Signer, Verb},
    config::Config,
    lifecycle,
};

#[derive(Args, Debug)]
pub(super) struct TokenArgs {
    /// User id (claim `sub`).
    #[arg(long)]
    user: Option<String>,
    /// Channels it may subscribe to, such as 'orders:*'. Repeatable, as are the options below.
    #[arg(long, value_name = "PATTERN")]
    subscribe: Vec<Pattern>,
    /// Channels it may publish to.
    #[arg(long, value_name = "PATTERN")]
    publish: Vec<Pattern>,
    /// Channels whose presence it may use: see the members and be listed.
    #[arg(long, value_name = "PATTERN")]
    presence: Vec<Pattern>,
    /// Channels whose history it may read.
    #[arg(long, value_name = "PATTERN")]
    history: Vec<Pattern>,
    /// Group of the user, for the conditions of rollouts. Repeatable.
    #[arg(long, value_name = "NAME")]
    group: Vec<String>,
    /// Public information about the user that presence shows to others: JSON.
    #[arg(long, value_name = "JSON")]
    info: Option<serde_json::Value>,
    /// Lifetime of the token.
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// File with a private key (PEM) or a secret to sign with, instead of `auth.keys`.
    #[arg(long, value_name = "FILE", requires = "algorithm")]
    key_file: Option<PathBuf>,
    /// Algorithm of the key in the file: HS256, RS256, ES256 or EdDSA.
    #[arg(long)]
    algorithm: Option<String>,
    /// Key id in the token's header (`kid`).
    #[arg(long)]
    kid: Option<String>,
    #[command(flatten)]
    config: ServeArgs,
}

#[expect(clippy::print_stdout, reason = "output of the command")]
pub(super) fn run(args: TokenArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(args.config.config.as_deref())?;
    let signer = match (&args.key_file, &args.algorithm) {
        (Some(file), Some(algorithm)) => Signer::from_file(file, algorithm, args.kid.clone())?,
        _ => Signer::from_config(&config.auth)?,
    };
    let now = lifecycle::unix_ms() / 1000;
    let claims = Claims {
        sub: args.user.clone(),
        exp: now + args.ttl.as_secs(),
        iss: config.auth.issuer.clone(),
        aud: config.auth.audience.clone().map(Into::into),
        channels: grants(&args),
        info: args.info.clone(),
        groups: args.group,
        ..Claims::default()
    };
    println!("{}", signer.sign(&claims)?);
    Ok(ExitCode::SUCCESS)
}

fn grants(args: &TokenArgs) -> Vec<Grant> {
    let grants = |patterns: &[Pattern], verb: Verb| {
        let grant = |pattern: &Pattern| Grant { pattern: pattern.clone(), verbs: vec![verb] };
        patterns.iter().map(grant).collect::<Vec<_>>()
    };
    [
        grants(&args.subscribe, Verb::Subscribe),
        grants(&args.publish, Verb::Publish),
        grants(&args.presence, Verb::Presence),
        grants(&args.history, Verb::History),
    ]
    .concat()
}
