//! One simulated user: a client that goes where the gateway sends it, as the browser's does.

use std::{
    ops::Range,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use futures_util::{SinkExt as _, StreamExt as _};
use rand::Rng as _;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    time::Instant,
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

use super::Crowd;
use crate::lifecycle;

/// What everybody listens to.
pub(super) const CHANNEL: &str = "demo";

/// How often a user tells what it measured.
const REPORT: Duration = Duration::from_secs(10);

/// Delays told in one report.
const DELAYS: usize = 30;

/// One user.
pub(super) struct User {
    number: u32,
    crowd: Arc<Crowd>,
    session: Option<String>,
    position: Option<String>,
    events: u32,
    delays: Vec<u64>,
}

enum Carrier {
    Ws(Box<WebSocketStream<MaybeTlsStream<TcpStream>>>),
    Sse(BufReader<TcpStream>),
}

impl User {
    pub(super) fn new(number: u32, crowd: Arc<Crowd>) -> Self {
        let (events, delays) = (0, Vec::new());
        Self { number, crowd, session: None, position: None, events, delays }
    }

    /// Comes, listens, breaks off and comes back.
    pub(super) async fn live(mut self) {
        pause(0..5_000).await;
        loop {
            let wanted = self.route().await.unwrap_or_else(|_| "sse".to_owned());
            if let Ok(carrier) = self.open(&wanted, false).await {
                self.ride(carrier).await;
            }
            pause(200..1_500).await;
        }
    }

    async fn route(&self) -> anyhow::Result<String> {
        let Crowd { http, addr, .. } = &*self.crowd;
        let url = format!("http://{addr}/api/route?client=user-{}", self.number);
        let route: Value = http.get(url).send().await?.json().await?;
        route["transport"].as_str().map(str::to_owned).context("a route without a transport")
    }

    async fn open(&mut self, transport: &str, overlap: bool) -> anyhow::Result<Carrier> {
        let (addr, unit) = (self.crowd.addr, format!("user-{}", self.number));
        if transport == "websocket" {
            let (mut ws, _) = connect_async(format!("ws://{addr}/ws")).await?;
            let connect = json!({
                "type": "connect", "session": self.session, "client": "demo/1", "unit": unit,
                "overlap": overlap,
            });
            let subscribe =
                json!({ "type": "subscribe", "channel": CHANNEL, "since": self.position });
            ws.send(Message::text(connect.to_string())).await?;
            ws.send(Message::text(subscribe.to_string())).await?;
            let mut carrier = Carrier::Ws(Box::new(ws));
            self.take(&carrier.next().await?);
            return Ok(carrier);
        }
        let since = self.position.as_ref().map(|at| format!("&since={at}")).unwrap_or_default();
        let session = self.session.as_ref().map(|id| format!("&session={id}")).unwrap_or_default();
        let overlap = if overlap { "&overlap=1" } else { "" };
        let query = format!("channel={CHANNEL}&client=demo/1&unit={unit}{session}{since}{overlap}");
        let mut stream = TcpStream::connect(addr).await?;
        let head = format!("GET /events?{query} HTTP/1.1\r\nhost: {addr}\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let mut carrier = Carrier::Sse(BufReader::with_capacity(1024, stream));
        self.take(&carrier.next().await?);
        Ok(carrier)
    }

    async fn ride(&mut self, mut carrier: Carrier) {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        let mut until_report = rand::rng().random_range(1..=REPORT.as_secs());
        let mut moving: Option<(Instant, String)> = None;
        loop {
            let frame = tokio::select! {
                frame = carrier.next() => frame,
                to = due(&mut moving) => {
                    // What cannot move stays where it is.
                    if let Ok(next) = self.open(&to, true).await {
                        carrier = next;
                    }
                    continue;
                }
                _ = second.tick() => {
                    if carrier.breaks(&self.crowd) {
                        return;
                    }
                    until_report -= 1;
                    if until_report == 0 {
                        until_report = REPORT.as_secs();
                        self.report(&mut carrier).await;
                    }
                    continue;
                }
            };
            let Ok(frame) = frame else { return };
            match frame["type"].as_str() {
                Some("goodbye") => return,
                Some("migrate") => {
                    let within = frame["within"].as_u64().unwrap_or(0);
                    let to = frame["transport"].as_str().unwrap_or("sse").to_owned();
                    moving = Some((Instant::now() + some(0..within.max(1)), to));
                }
                Some("ping") => carrier.send(&json!({ "type": "pong" })).await,
                _ => self.take(&frame),
            }
        }
    }

    fn take(&mut self, frame: &Value) {
        if let Some(session) = frame["session"].as_str() {
            self.session = Some(session.to_owned());
        }
        let (Some(position), Some(time)) = (frame["position"].as_str(), frame["time"].as_u64())
        else {
            return;
        };
        self.position = Some(position.to_owned());
        self.events += 1;
        self.crowd.received.fetch_add(1, Ordering::Relaxed);
        if self.delays.len() < DELAYS {
            // The same machine, so the same clock; the network of a real user comes on top.
            let network = rand::rng().random_range(5..60);
            self.delays.push(lifecycle::unix_ms().saturating_sub(time) + network);
        }
    }

    async fn report(&mut self, carrier: &mut Carrier) {
        let delays = std::mem::take(&mut self.delays);
        let stats = json!({ "events": std::mem::take(&mut self.events), "delays": delays });
        let frame = json!({ "type": "report", "stats": stats });
        match (carrier, &self.session) {
            (carrier @ Carrier::Ws(_), _) => carrier.send(&frame).await,
            (Carrier::Sse(_), Some(session)) => {
                let url = format!("http://{}/events/{session}", self.crowd.addr);
                let _ = self.crowd.http.post(url).json(&frame).send().await;
            }
            (Carrier::Sse(_), None) => {}
        }
    }
}

impl Carrier {
    /// The next frame, as a WebSocket would say it.
    async fn next(&mut self) -> anyhow::Result<Value> {
        match self {
            Self::Ws(ws) => loop {
                match ws.next().await.context("the connection ended")?? {
                    Message::Text(text) => return Ok(serde_json::from_str(&text)?),
                    Message::Close(_) => return Err(anyhow!("the gateway closed")),
                    _ => {}
                }
            },
            Self::Sse(stream) => {
                let (mut line, mut event) = (String::new(), String::new());
                loop {
                    line.clear();
                    if stream.read_line(&mut line).await? == 0 {
                        return Err(anyhow!("the stream ended"));
                    }
                    if let Some(name) = line.strip_prefix("event: ") {
                        event = name.trim_end().to_owned();
                    }
                    if let Some(data) = line.strip_prefix("data: ") {
                        let mut frame: Value = serde_json::from_str(data)?;
                        let kind = event.strip_prefix("crossfade.").unwrap_or("event");
                        frame["type"] = kind.into();
                        return Ok(frame);
                    }
                }
            }
        }
    }

    async fn send(&mut self, frame: &Value) {
        if let Self::Ws(ws) = self {
            let _ = ws.send(Message::text(frame.to_string())).await;
        }
    }

    /// Whether the user's network breaks it now.
    fn breaks(&self, crowd: &Crowd) -> bool {
        let bad = matches!(self, Self::Ws(_)) && crowd.fault.load(Ordering::Relaxed);
        bad && rand::rng().random_range(0..100) < 3
    }
}

/// Where to go, once it is time.
async fn due(moving: &mut Option<(Instant, String)>) -> String {
    match moving {
        Some((at, _)) => tokio::time::sleep_until(*at).await,
        None => std::future::pending().await,
    }
    moving.take().map(|(_, to)| to).unwrap_or_default()
}

/// A user's own time, in milliseconds.
async fn pause(range: Range<u64>) {
    tokio::time::sleep_until(Instant::now() + some(range)).await;
}

fn some(range: Range<u64>) -> Duration {
    Duration::from_millis(rand::rng().random_range(range))
}
