//! `crossfade publish`: one event, or a line of standard input each.
//!
//! Every event gets its id here, so a batch whose answer was lost is sent again and stored once.

use std::{collections::HashMap, io::IsTerminal as _, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::Target;
use crate::protocol::{Data, MessageId};

#[derive(Args, Debug)]
pub(super) struct PublishArgs {
    /// Where to.
    channel: String,
    /// JSON, or text that becomes a JSON string; `-` publishes each line of standard input.
    data: String,
    /// What kind of event it is.
    #[arg(long)]
    name: Option<String>,
    /// The event's id: the same id is the same event.
    #[arg(long)]
    id: Option<String>,
    #[command(flatten)]
    target: Target,
}

/// Lines sent in one request.
const BATCH: usize = 500;

/// Bytes of lines sent in one request.
const BATCH_BYTES: usize = 1 << 20;

/// Tries per batch before giving up; the pause between them doubles up to the longest.
const TRIES: u32 = 30;
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

pub(super) async fn run(args: PublishArgs) -> anyhow::Result<ExitCode> {
    let sender = Sender::new(&args);
    if args.data == "-" {
        return sender.publish_lines().await;
    }
    let id = args.id.clone().unwrap_or_else(|| MessageId::generate().to_string());
    let outcomes = sender.send(vec![sender.event(id, &args.data)]).await?;
    for outcome in outcomes {
        match (outcome.error, outcome.position) {
            (Some(error), _) => bail!("{}: {}", error.code, error.message),
            (None, position) => print(&position.unwrap_or_default()),
        }
    }
    Ok(ExitCode::SUCCESS)
}

struct Sender<'a> {
    http: reqwest::Client,
    args: &'a PublishArgs,
}

/// An event on its way, its data to the letter as it was given.
#[derive(Serialize)]
struct Event<'a> {
    channel: &'a str,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    data: Data,
}

/// What the gateway answers for one event.
#[derive(Deserialize)]
struct Outcome {
    position: Option<String>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    code: String,
    message: String,
}

impl<'a> Sender<'a> {
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
        let tells = std::io::stderr().is_terminal();
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
            if tells {
                eprint!("\r{stored} published");
            }
        }
        let end = if tells { "\r" } else { "" };
        eprintln!("{end}{stored} published, {refused} refused");
        Ok(if refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// What is there, without waiting for more once there is something.
    async fn next_batch(
        &self,
        lines: &mut tokio::io::Lines<BufReader<tokio::io::Stdin>>,
    ) -> anyhow::Result<Vec<Event<'a>>> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < BATCH && bytes < BATCH_BYTES {
            let next = if batch.is_empty() {
                lines.next_line().await
            } else {
                // A pipe that has nothing at hand now must not hold back what came before.
                let soon = Duration::from_millis(5);
                match tokio::time::timeout(soon, lines.next_line()).await {
                    Ok(next) => next,
                    Err(_) => break,
                }
            };
            let Some(line) = next.context("standard input cannot be read")? else { break };
            bytes += line.len();
            batch.push(self.event(MessageId::generate().to_string(), &line));
        }
        Ok(batch)
    }

    /// Sends until there is an answer.
    async fn send(&self, events: Vec<Event<'a>>) -> anyhow::Result<Vec<Outcome>> {
        let url = self.args.target.join("/api/publish/batch");
        let body = HashMap::from([("events", events)]);
        let mut pause = PAUSES.0;
        let mut told = false;
        for _ in 0..TRIES {
            let mut request = self.http.post(&url).json(&body);
            if let Some(token) = &self.args.target.token {
                request = request.bearer_auth(token.reveal());
            }
            let failure = match request.send().await {
                Ok(answer) if answer.status().is_success() => {
                    #[derive(Deserialize)]
                    struct Results {
                        results: Vec<Outcome>,
                    }
                    let results: Results = answer.json().await.context("the answer is no JSON")?;
                    if !results.results.iter().any(is_passing) {
                        return Ok(results.results);
                    }
                    "the broker took only a part".to_owned()
                }
                Ok(answer) if answer.status().is_client_error() => {
                    bail!("{url} answered {}: {}", answer.status(), answer.text().await?);
                }
                Ok(answer) => format!("{url} answered {}", answer.status()),
                Err(err) => format!("{url} gave no answer: {err}"),
            };
            if !std::mem::replace(&mut told, true) {
                eprintln!("{failure}; trying on with the same ids");
            }
            #[expect(clippy::disallowed_methods, reason = "a pause between tries")]
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
        bail!("{url} took nothing in {TRIES} tries: is the gateway running there?")
    }
}

fn is_passing(outcome: &Outcome) -> bool {
    outcome.error.as_ref().is_some_and(|error| error.code == "unavailable")
}

#[expect(clippy::print_stdout, reason = "what the command is for")]
fn print(position: &str) {
    println!("{position}");
}
