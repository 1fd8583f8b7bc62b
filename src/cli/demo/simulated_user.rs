//! A simulated user: a client that uses the transport the gateway assigns and migrates when asked, like
//! `@crossfade/client`.

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

use super::DemoState;
use crate::lifecycle;

/// The channel that all users subscribe to.
pub(super) const CHANNEL: &str = "demo";

/// Interval of client reports.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Most delays in one report.
const MAX_DELAYS: usize = 30;

/// A simulated user.
pub(super) struct SimulatedUser {
    number: u32,
    state: Arc<DemoState>,
    session: Option<String>,
    position: Option<String>,
    events: u32,
    delays: Vec<u64>,
}

/// The connection of a user, by transport.
enum UserConnection {
    WebSocket(Box<WebSocketStream<MaybeTlsStream<TcpStream>>>),
    Sse(BufReader<TcpStream>),
}

impl SimulatedUser {
    pub(super) fn new(number: u32, state: Arc<DemoState>) -> Self {
        let (events, delays) = (0, Vec::new());
        Self { number, state, session: None, position: None, events, delays }
    }

    /// Connects, receives events until the connection fails, and reconnects; forever.
    pub(super) async fn run(mut self) {
        pause(0..5_000).await;
        loop {
            let transport = self.route().await.unwrap_or_else(|_| "sse".to_owned());
            if let Ok(connection) = self.open(&transport, false).await {
                self.run_connection(connection).await;
            }
            pause(200..1_500).await;
        }
    }

    async fn route(&self) -> anyhow::Result<String> {
        let DemoState { http, addr, .. } = &*self.state;
        let url = format!("http://{addr}/api/route?client=user-{}", self.number);
        let route: Value = http.get(url).send().await?.json().await?;
        route["transport"]
            .as_str()
            .map(str::to_owned)
            .context("/api/route answered without a transport")
    }

    async fn open(&mut self, transport: &str, overlap: bool) -> anyhow::Result<UserConnection> {
        let (addr, unit) = (self.state.addr, format!("user-{}", self.number));
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
            let mut connection = UserConnection::WebSocket(Box::new(ws));
            self.on_frame(&connection.next().await?);
            return Ok(connection);
        }
        let since = self.position.as_ref().map(|at| format!("&since={at}")).unwrap_or_default();
        let session = self.session.as_ref().map(|id| format!("&session={id}")).unwrap_or_default();
        let overlap = if overlap { "&overlap=1" } else { "" };
        let query = format!("channel={CHANNEL}&client=demo/1&unit={unit}{session}{since}{overlap}");
        let mut stream = TcpStream::connect(addr).await?;
        let head = format!("GET /events?{query} HTTP/1.1\r\nhost: {addr}\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let mut connection = UserConnection::Sse(BufReader::with_capacity(1024, stream));
        self.on_frame(&connection.next().await?);
        Ok(connection)
    }

    async fn run_connection(&mut self, mut connection: UserConnection) {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        let mut seconds_to_report = rand::rng().random_range(1..=REPORT_INTERVAL.as_secs());
        let mut migration: Option<(Instant, String)> = None;
        loop {
            let frame = tokio::select! {
                frame = connection.next() => frame,
                to = migration_due(&mut migration) => {
                    // If the new connection fails, the old one stays.
                    if let Ok(next) = self.open(&to, true).await {
                        connection = next;
                    }
                    continue;
                }
                _ = second.tick() => {
                    if connection.fails(&self.state) {
                        return;
                    }
                    seconds_to_report -= 1;
                    if seconds_to_report == 0 {
                        seconds_to_report = REPORT_INTERVAL.as_secs();
                        self.report(&mut connection).await;
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
                    migration = Some((Instant::now() + random_ms(0..within.max(1)), to));
                }
                Some("ping") => connection.send(&json!({ "type": "pong" })).await,
                _ => self.on_frame(&frame),
            }
        }
    }

    fn on_frame(&mut self, frame: &Value) {
        if let Some(session) = frame["session"].as_str() {
            self.session = Some(session.to_owned());
        }
        let (Some(position), Some(time)) = (frame["position"].as_str(), frame["time"].as_u64())
        else {
            return;
        };
        self.position = Some(position.to_owned());
        self.events += 1;
        self.state.received.fetch_add(1, Ordering::Relaxed);
        if self.delays.len() < MAX_DELAYS {
            // Both clocks are this machine's; a random network delay is added.
            let network = rand::rng().random_range(5..60);
            self.delays.push(lifecycle::unix_ms().saturating_sub(time) + network);
        }
    }

    async fn report(&mut self, connection: &mut UserConnection) {
        let delays = std::mem::take(&mut self.delays);
        let stats = json!({ "events": std::mem::take(&mut self.events), "delays": delays });
        let frame = json!({ "type": "report", "stats": stats });
        match (connection, &self.session) {
            (connection @ UserConnection::WebSocket(_), _) => connection.send(&frame).await,
            (UserConnection::Sse(_), Some(session)) => {
                let url = format!("http://{}/events/{session}", self.state.addr);
                let _ = self.state.http.post(url).json(&frame).send().await;
            }
            (UserConnection::Sse(_), None) => {}
        }
    }
}

impl UserConnection {
    /// The next frame, in the shape of the WebSocket protocol.
    async fn next(&mut self) -> anyhow::Result<Value> {
        match self {
            Self::WebSocket(ws) => loop {
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
        if let Self::WebSocket(ws) = self {
            let _ = ws.send(Message::text(frame.to_string())).await;
        }
    }

    /// Whether the simulated fault interrupts it in this second.
    fn fails(&self, state: &DemoState) -> bool {
        let has_fault = matches!(self, Self::WebSocket(_)) && state.fault.load(Ordering::Relaxed);
        has_fault && rand::rng().random_range(0..100) < 3
    }
}

/// Waits for the moment to migrate; returns the transport.
async fn migration_due(migration: &mut Option<(Instant, String)>) -> String {
    match migration {
        Some((at, _)) => tokio::time::sleep_until(*at).await,
        None => std::future::pending().await,
    }
    migration.take().map(|(_, to)| to).unwrap_or_default()
}

/// Sleeps for a random time, in milliseconds.
async fn pause(range: Range<u64>) {
    tokio::time::sleep_until(Instant::now() + random_ms(range)).await;
}

fn random_ms(range: Range<u64>) -> Duration {
    Duration::from_millis(rand::rng().random_range(range))
}
