//! `crossfade token`: makes a token for development, signed with the first secret of the settings or
//! with a key in a file.

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
    /// Whose token it is (sub).
    #[arg(long)]
    user: Option<String>,
    /// Channels it may subscribe to, such as 'orders:*'. Several times for several.
    #[arg(long, value_name = "PATTERN")]
    subscribe: Vec<Pattern>,
    /// Channels it may publish to.
    #[arg(long, value_name = "PATTERN")]
    publish: Vec<Pattern>,
    /// Channels whose presence it may see and show itself in.
    #[arg(long, value_name = "PATTERN")]
    presence: Vec<Pattern>,
    /// Channels whose history it may read.
    #[arg(long, value_name = "PATTERN")]
    history: Vec<Pattern>,
    /// A group of the user. Several times for several.
    #[arg(long, value_name = "NAME")]
    group: Vec<String>,
    /// What others are shown: JSON.
    #[arg(long, value_name = "JSON")]
    info: Option<serde_json::Value>,
    /// How long it counts.
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// A private key (PEM) or a secret to sign with, instead of the settings' first secret.
    #[arg(long, value_name = "FILE", requires = "algorithm")]
    key_file: Option<PathBuf>,
    /// Of the key in the file: HS256, RS256, ES256 or EdDSA.
    #[arg(long)]
    algorithm: Option<String>,
    /// The name of the key, as it stands in the token's head.
    #[arg(long)]
    kid: Option<String>,
    #[command(flatten)]
    settings: ServeArgs,
}

#[expect(clippy::print_stdout, reason = "what the command is for")]
pub(super) fn run(args: TokenArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(args.settings.config.as_deref())?;
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
    let of = |patterns: &[Pattern], verb: Verb| {
        let grant = |pattern: &Pattern| Grant { pattern: pattern.clone(), verbs: vec![verb] };
        patterns.iter().map(grant).collect::<Vec<_>>()
    };
    [
        of(&args.subscribe, Verb::Subscribe),
        of(&args.publish, Verb::Publish),
        of(&args.presence, Verb::Presence),
        of(&args.history, Verb::History),
    ]
    .concat()
}
