//! `crossfade tail`: subscribes over WebSocket, prints events, and resumes from the last position after a
//! reconnect.

use std::{collections::BTreeMap, fmt::Display, io::Write as _, process::ExitCode, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{
        self, Message, client::IntoClientRequest as _, http::HeaderValue, protocol::CloseFrame,
    },
};

use super::Target;
use crate::protocol::{CloseCode, Token};

#[derive(Args, Debug)]
pub(super) struct TailArgs {
    /// Channels to subscribe to.
    #[arg(required = true, value_name = "CHANNEL")]
    channels: Vec<String>,
    /// Start after this position instead of now; for one channel only.
    #[arg(long, value_name = "POSITION")]
    since: Option<String>,
    /// Print each event as JSON instead of channel, name and data.
    #[arg(long)]
    json: bool,
    /// Exit after this many events.
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    #[command(flatten)]
    target: Target,
}

/// First and longest pause between attempts to connect; the pause doubles.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// The fields of a frame that the command uses.
#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(rename = "type")]
    kind: String,
    channel: Option<String>,
    name: Option<String>,
    position: Option<String>,
    reason: Option<String>,
    code: Option<serde_json::Value>,
    message: Option<String>,
    session: Option<String>,
    after: Option<u64>,
    reconnect: Option<bool>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

pub(super) async fn run(args: TailArgs) -> anyhow::Result<ExitCode> {
    if args.since.is_some() && args.channels.len() != 1 {
        bail!("--since needs exactly one channel, as each channel has its own positions");
    }
    let mut tail = Tail {
        positions: args.channels.iter().map(|c| (c.clone(), args.since.clone())).collect(),
        session: None,
        token: args.target.token.clone(),
        remaining: args.count.unwrap_or(usize::MAX),
        json: args.json,
        backoff: BACKOFF.0,
    };
    let url = args.target.join("/ws").replacen("http", "ws", 1);
    let stop = crate::lifecycle::shutdown_signal()?;
    tokio::select! {
        ended = tail.run(&url) => ended,
        () = stop => Ok(ExitCode::SUCCESS),
    }
}

struct Tail {
    /// The last position of each channel.
    positions: BTreeMap<String, Option<String>>,
    session: Option<String>,
    token: Option<Token>,
    /// Events to print before the command exits.
    remaining: usize,
    json: bool,
    backoff: Duration,
}

type Ws = WebSocketStream<MaybeTlsStream<TcpStream>>;

impl Tail {
    /// Connects again and again until all events are printed or reconnecting would not help.
    async fn run(&mut self, url: &str) -> anyhow::Result<ExitCode> {
        while self.remaining != 0 {
            match self.run_connection(url).await {
                Ok(()) if self.remaining == 0 => break,
                Ok(()) => {}
                Err(err) if err.is::<Permanent>() => return Err(err),
                Err(err) => eprintln!("{err:#}; reconnecting"),
            }
            #[expect(clippy::disallowed_methods, reason = "backoff between attempts")]
            tokio::time::sleep(self.backoff.mul_f64(rand::random_range(0.5..1.0))).await;
            self.backoff = (self.backoff * 2).min(BACKOFF.1);
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Subscribes and prints events until the connection ends.
    async fn run_connection(&mut self, url: &str) -> anyhow::Result<()> {
        let mut request =
            url.into_client_request().map_err(|err| Permanent(format!("{url}: {err}")))?;
        let protocol = HeaderValue::from_static("crossfade.v1");
        request.headers_mut().insert("sec-websocket-protocol", protocol);
        let (mut ws, _) = connect_async(request).await.map_err(|err| connect_error(url, err))?;
        let token = self.token.as_ref().map(Token::reveal);
        let connect = json!({ "type": "connect", "session": self.session, "token": token });
        ws.send(Message::text(connect.to_string())).await?;
        for (channel, since) in &self.positions {
            let subscribe = json!({ "type": "subscribe", "channel": channel, "since": since });
            ws.send(Message::text(subscribe.to_string())).await?;
        }
        while self.remaining != 0 {
            let Some(message) = ws.next().await else { bail!("the connection ended") };
            match message.context("the connection failed")? {
                Message::Text(text) => self.on_frame(&mut ws, &text).await?,
                Message::Close(frame) => return Err(close_error(frame)),
                Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
        Ok(())
    }

    async fn on_frame(&mut self, ws: &mut Ws, text: &str) -> anyhow::Result<()> {
        let frame: Frame<'_> =
            serde_json::from_str(text).context("the gateway sent an invalid frame")?;
        match frame.kind.as_str() {
            "welcome" => {
                self.session = frame.session;
                self.backoff = BACKOFF.0;
            }
            "ping" => ws.send(Message::text(r#"{"type":"pong"}"#)).await?,
            "subscribed" => {
                // A known position stays: the missed events follow this frame.
                let position = self.positions.entry(frame.channel.unwrap_or_default()).or_default();
                *position = position.take().or(frame.position);
            }
            "event" => {
                self.print(&frame, text)?;
                self.remaining -= 1;
                self.positions.insert(frame.channel.unwrap_or_default(), frame.position);
            }
            "reset" => {
                let (channel, reason) = (frame.channel.unwrap_or_default(), frame.reason);
                let reason = reason.unwrap_or_default();
                eprintln!(
                    "{channel}: events were missed and are not in the log any more ({reason})"
                );
                self.positions.insert(channel, frame.position);
            }
            // Its `reconnect` is more specific than the close code that follows.
            "goodbye" => {
                let (code, reason) = (frame.code.unwrap_or_default(), frame.reason);
                let reason = reason.unwrap_or_default();
                if frame.reconnect == Some(false) {
                    return Err(closed_permanently(&code, &reason).into());
                }
                self.backoff = Duration::from_millis(frame.after.unwrap_or(0)).max(BACKOFF.0);
                bail!("the gateway closed the connection: {code} {reason}");
            }
            "error" => {
                let (code, message) = (frame.code.unwrap_or_default(), frame.message);
                let message = message.unwrap_or_default();
                if code == "unavailable" {
                    bail!("{message}");
                }
                return Err(Permanent(message).into());
            }
            _ => {}
        }
        Ok(())
    }

    fn print(&self, frame: &Frame<'_>, text: &str) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{text}")?;
        } else {
            let channel = frame.channel.as_deref().unwrap_or_default();
            let name = frame.name.as_deref().unwrap_or("-");
            writeln!(out, "{channel}\t{name}\t{}", frame.data.map_or("null", RawValue::get))?;
        }
        Ok(out.flush()?)
    }
}

/// The error of a failed handshake; permanent for client errors (4xx) that a retry does not change.
fn connect_error(url: &str, err: tungstenite::Error) -> anyhow::Error {
    if let tungstenite::Error::Http(response) = &err {
        let status = response.status();
        let is_retryable = matches!(status.as_u16(), 408 | 425 | 429) || !status.is_client_error();
        if !is_retryable {
            let body = response.body().as_deref().unwrap_or_default();
            let text = String::from_utf8_lossy(body);
            return Permanent(format!("{url} answered {status}: {}", text.trim())).into();
        }
    }
    anyhow::Error::new(err).context(format!("cannot connect to {url}"))
}

/// The error of a closed connection; permanent where the protocol's close code says so. A code that is
/// not in the protocol comes from a proxy in between.
fn close_error(frame: Option<CloseFrame>) -> anyhow::Error {
    let Some(CloseFrame { code, reason }) = frame else {
        return anyhow!("the gateway closed without a reason");
    };
    let known = CloseCode::ALL.into_iter().find(|known| known.number() == u16::from(code));
    match known {
        Some(known) if !known.reconnect() => closed_permanently(&code, &reason).into(),
        Some(_) | None => anyhow!("the gateway closed: {code} {reason}"),
    }
}

fn closed_permanently(code: &impl Display, reason: &str) -> Permanent {
    Permanent(format!("the gateway closed: {code} {reason}; reconnecting would not help"))
}

/// An error after which reconnecting would not help.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Permanent(String);
