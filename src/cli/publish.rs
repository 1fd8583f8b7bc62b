//! `crossfade publish`: publishes one event, or one per line of standard input.
//!
//! Every event gets its message id here, so a batch whose response was lost can be sent again and is
//! stored once.

use std::{collections::HashMap, io::IsTerminal as _, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::Target;
use crate::protocol::{Data, MessageId};

#[derive(Args, Debug)]
pub(super) struct PublishArgs {
    /// Channel to publish to.
    channel: String,
    /// JSON, or text that is published as a JSON string; `-` publishes each line of standard input.
    data: String,
    /// Name of the event.
    #[arg(long)]
    name: Option<String>,
    /// Message id: an event with the id of an earlier one is a duplicate [default: random].
    #[arg(long)]
    id: Option<String>,
    #[command(flatten)]
    target: Target,
}

/// Most lines per request.
const BATCH_EVENTS: usize = 500;

/// Bytes of lines after which a request is full.
const BATCH_BYTES: usize = 1 << 20;

/// Attempts per batch, and the first and longest pause between them; the pause doubles.
const ATTEMPTS: u32 = 30;
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

pub(super) async fn run(args: PublishArgs) -> anyhow::Result<ExitCode> {
    let publisher = Publisher::new(&args);
    if args.data == "-" {
        return publisher.publish_lines().await;
    }
    let id = args.id.clone().unwrap_or_else(|| MessageId::generate().to_string());
    let outcomes = publisher.send(vec![publisher.event(id, &args.data)]).await?;
    for outcome in outcomes {
        match (outcome.error, outcome.position) {
            (Some(error), _) => bail!("{}: {}", error.code, error.message),
            (None, position) => print(&position.unwrap_or_default()),
        }
    }
    Ok(ExitCode::SUCCESS)
}

struct Publisher<'a> {
    http: reqwest::Client,
    args: &'a PublishArgs,
}

/// An event of a request; its data is sent byte for byte as given.
#[derive(Serialize)]
struct Event<'a> {
    channel: &'a str,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    data: Data,
}

/// The result of one event in the response.
#[derive(Deserialize)]
struct Outcome {
    position: Option<String>,
    error: Option<ApiError>,
}

#[derive(Deserialize)]
struct ApiError {
    code: String,
    message: String,
}

impl<'a> Publisher<'a> {
    fn new(args: &'a PublishArgs) -> Self {
        Self { http: reqwest::Client::new(), args }
    }

    fn event(&self, id: String, line: &str) -> Event<'a> {
        let Self { args: PublishArgs { channel, name, .. }, .. } = self;
        Event { channel, id, name: name.as_deref(), data: Data::lenient(line) }
    }

    async fn publish_lines(&self) -> anyhow::Result<ExitCode> {
        let mut lines = BufReader::with_capacity(1 << 16, tokio::io::stdin()).lines();
        let (mut stored, mut refused) = (0_usize, 0_usize);
        let show_progress = std::io::stderr().is_terminal();
        loop {
            let batch = self.next_batch(&mut lines).await?;
            if batch.is_empty() {
                break;
            }
            for outcome in self.send(batch).await? {
                match outcome.error {
                    None => stored += 1,
                    Some(error) => {
                        refused += 1;
                        eprintln!("refused: {}: {}", error.code, error.message);
                    }
                }
            }
            if show_progress {
                eprint!("\r{stored} published");
            }
        }
        let line_start = if show_progress { "\r" } else { "" };
        eprintln!("{line_start}{stored} published, {refused} refused");
        Ok(if refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Waits for a line, then takes the lines that follow at once, up to a full batch.
    async fn next_batch(
        &self,
        lines: &mut tokio::io::Lines<BufReader<tokio::io::Stdin>>,
    ) -> anyhow::Result<Vec<Event<'a>>> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < BATCH_EVENTS && bytes < BATCH_BYTES {
            let next = if batch.is_empty() {
                lines.next_line().await
            } else {
                // The lines read so far must not wait for a slow producer.
                let more = Duration::from_millis(5);
                match tokio::time::timeout(more, lines.next_line()).await {
                    Ok(next) => next,
                    Err(_) => break,
                }
            };
            let Some(line) = next.context("cannot read standard input")? else { break };
            bytes += line.len();
            batch.push(self.event(MessageId::generate().to_string(), &line));
        }
        Ok(batch)
    }

    /// Sends a batch, and again until the gateway has stored or refused each event.
    async fn send(&self, events: Vec<Event<'a>>) -> anyhow::Result<Vec<Outcome>> {
        let url = self.args.target.join("/api/publish/batch");
        let body = HashMap::from([("events", events)]);
        let mut pause = BACKOFF.0;
        let mut reported = false;
        for _ in 0..ATTEMPTS {
            let mut request = self.http.post(&url).json(&body);
            if let Some(token) = &self.args.target.token {
                request = request.bearer_auth(token.reveal());
            }
            let failure = match request.send().await {
                Ok(response) if response.status().is_success() => {
                    #[derive(Deserialize)]
                    struct Results {
                        results: Vec<Outcome>,
                    }
                    let results: Results =
                        response.json().await.context("the response is not JSON")?;
                    if !results.results.iter().any(is_retryable) {
                        return Ok(results.results);
                    }
                    "the broker stored only a part of the batch".to_owned()
                }
                Ok(response) if response.status().is_client_error() => {
                    bail!("{url} answered {}: {}", response.status(), response.text().await?);
                }
                Ok(response) => format!("{url} answered {}", response.status()),
                Err(err) => format!("{url} did not answer: {err}"),
            };
            if !std::mem::replace(&mut reported, true) {
                eprintln!("{failure}; retrying with the same message ids");
            }
            #[expect(clippy::disallowed_methods, reason = "backoff between attempts")]
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
        bail!("{url} stored nothing in {ATTEMPTS} attempts: is the gateway running? (--url)")
    }
}

fn is_retryable(outcome: &Outcome) -> bool {
    outcome.error.as_ref().is_some_and(|error| error.code == "unavailable")
}

#[expect(clippy::print_stdout, reason = "output of the command")]
fn print(position: &str) {
    println!("{position}");
}
