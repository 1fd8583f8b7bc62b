//! `crossfade tail`: prints events as they come, and goes on where it was after a break.

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
    /// Which channels.
    #[arg(required = true, value_name = "CHANNEL")]
    channels: Vec<String>,
    /// Begin behind this position instead of now; for one channel.
    #[arg(long, value_name = "POSITION")]
    since: Option<String>,
    /// Print the whole event as JSON instead of channel, name and data.
    #[arg(long)]
    json: bool,
    /// Leave after so many events.
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    #[command(flatten)]
    target: Target,
}

/// First and longest pause between two tries.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// What the gateway sends, as far as it matters here.
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
        bail!("--since is for one channel: each channel has positions of its own");
    }
    let mut tail = Tail {
        positions: args.channels.iter().map(|c| (c.clone(), args.since.clone())).collect(),
        session: None,
        token: args.target.token.clone(),
        left: args.count.unwrap_or(usize::MAX),
        json: args.json,
        pause: PAUSES.0,
    };
    let url = args.target.join("/ws").replacen("http", "ws", 1);
    let stop = crate::lifecycle::shutdown_signal()?;
    tokio::select! {
        ended = tail.follow(&url) => ended,
        () = stop => Ok(ExitCode::SUCCESS),
    }
}

struct Tail {
    /// The last position of each channel.
    positions: BTreeMap<String, Option<String>>,
    session: Option<String>,
    token: Option<Token>,
    left: usize,
    json: bool,
    pause: Duration,
}

type Ws = WebSocketStream<MaybeTlsStream<TcpStream>>;

impl Tail {
    async fn follow(&mut self, url: &str) -> anyhow::Result<ExitCode> {
        while self.left != 0 {
            match self.listen(url).await {
                Ok(()) if self.left == 0 => break,
                Ok(()) => {}
                Err(err) if err.is::<Refused>() => return Err(err),
                Err(err) => eprintln!("{err:#}; trying on"),
            }
            #[expect(clippy::disallowed_methods, reason = "a pause between tries")]
            tokio::time::sleep(self.pause.mul_f64(rand::random_range(0.5..1.0))).await;
            self.pause = (self.pause * 2).min(PAUSES.1);
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Listens until the connection ends.
    async fn listen(&mut self, url: &str) -> anyhow::Result<()> {
        let mut request =
            url.into_client_request().map_err(|err| Refused(format!("{url}: {err}")))?;
        let protocol = HeaderValue::from_static("crossfade.v1");
        request.headers_mut().insert("sec-websocket-protocol", protocol);
        let (mut ws, _) = connect_async(request).await.map_err(|err| unreached(url, err))?;
        let token = self.token.as_ref().map(Token::reveal);
        let connect = json!({ "type": "connect", "session": self.session, "token": token });
        ws.send(Message::text(connect.to_string())).await?;
        for (channel, since) in &self.positions {
            let subscribe = json!({ "type": "subscribe", "channel": channel, "since": since });
            ws.send(Message::text(subscribe.to_string())).await?;
        }
        while self.left != 0 {
            let Some(message) = ws.next().await else { bail!("the connection ended") };
            match message.context("the connection broke")? {
                Message::Text(text) => self.hear(&mut ws, &text).await?,
                Message::Close(frame) => return Err(closed(frame)),
                Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
        Ok(())
    }

    async fn hear(&mut self, ws: &mut Ws, text: &str) -> anyhow::Result<()> {
        let frame: Frame<'_> = serde_json::from_str(text).context("no frame of the protocol")?;
        match frame.kind.as_str() {
            "welcome" => {
                self.session = frame.session;
                self.pause = PAUSES.0;
            }
            "ping" => ws.send(Message::text(r#"{"type":"pong"}"#)).await?,
            "subscribed" => {
                // Where something is known already, the events missed come behind this frame.
                let known = self.positions.entry(frame.channel.unwrap_or_default()).or_default();
                *known = known.take().or(frame.position);
            }
            "event" => {
                self.print(&frame, text)?;
                self.left -= 1;
                self.positions.insert(frame.channel.unwrap_or_default(), frame.position);
            }
            "reset" => {
                let (channel, reason) = (frame.channel.unwrap_or_default(), frame.reason);
                let reason = reason.unwrap_or_default();
                eprintln!("{channel}: events were missed and are gone ({reason})");
                self.positions.insert(channel, frame.position);
            }
            // What it says counts more than the close code behind it, which may go either way.
            "goodbye" => {
                let (code, reason) = (frame.code.unwrap_or_default(), frame.reason);
                let reason = reason.unwrap_or_default();
                if frame.reconnect == Some(false) {
                    return Err(parted(&code, &reason).into());
                }
                self.pause = Duration::from_millis(frame.after.unwrap_or(0)).max(PAUSES.0);
                bail!("the gateway says goodbye: {code} {reason}");
            }
            "error" => {
                let (code, message) = (frame.code.unwrap_or_default(), frame.message);
                let message = message.unwrap_or_default();
                if code == "unavailable" {
                    bail!("{message}");
                }
                return Err(Refused(message).into());
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

/// Whether a handshake that failed is worth another try.
fn unreached(url: &str, err: tungstenite::Error) -> anyhow::Error {
    if let tungstenite::Error::Http(answer) = &err {
        let status = answer.status();
        let passes = matches!(status.as_u16(), 408 | 425 | 429) || !status.is_client_error();
        if !passes {
            let body = answer.body().as_deref().unwrap_or_default();
            let said = String::from_utf8_lossy(body);
            return Refused(format!("{url} answered {status}: {}", said.trim())).into();
        }
    }
    anyhow::Error::new(err).context(format!("no way to {url}"))
}

/// Whether a close is worth another try: the protocol's table says so, and a code that is not in it
/// comes from something in between.
fn closed(frame: Option<CloseFrame>) -> anyhow::Error {
    let Some(CloseFrame { code, reason }) = frame else {
        return anyhow!("the gateway closed without a reason");
    };
    let known = CloseCode::ALL.into_iter().find(|known| known.number() == u16::from(code));
    match known {
        Some(known) if !known.reconnect() => parted(&code, &reason).into(),
        Some(_) | None => anyhow!("the gateway closed: {code} {reason}"),
    }
}

fn parted(code: &impl Display, reason: &str) -> Refused {
    Refused(format!("the gateway closed: {code} {reason}; coming back would not help"))
}

/// Trying again would not help.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);
