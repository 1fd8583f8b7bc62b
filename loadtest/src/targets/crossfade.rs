//! The gateway itself, as any client meets it: `GET /ws`, `GET /events`, `POST /api/publish`.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::Stdio,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use memchr::memmem;

use crate::{
    frames::{self, Wire},
    measure::Process,
    process::Spawned,
    publisher::{HttpPublisher, Publisher, get_status},
    target::{Dialogue, Meaning, Target},
};

/// How subscribers are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// `GET /ws`.
    WebSocket,
    /// `GET /events`.
    EventStream,
}

/// A gateway.
#[derive(Debug)]
pub struct Crossfade {
    address: SocketAddr,
    transport: Transport,
    pid: u32,
    spawned: Option<Spawned>,
}

/// What a gateway that is started is told beside its defaults: logs say nothing of each client.
const SETTINGS: [(&str, &str); 1] = [("CROSSFADE_TELEMETRY__LOG", "error")];

impl Crossfade {
    /// A gateway that runs already.
    pub fn running(address: SocketAddr, pid: u32, transport: Transport) -> Self {
        Self { address, transport, pid, spawned: None }
    }

    /// Starts a gateway with a memory broker on a free port, and waits until it is ready.
    ///
    /// # Errors
    /// When it is not `within` the time.
    pub fn start(
        program: &Path,
        transport: Transport,
        pin: bool,
        within: Duration,
    ) -> anyhow::Result<Self> {
        let program = program
            .canonicalize()
            .with_context(|| format!("{} is not there: build it first", program.display()))?;
        let address = free_port()?;
        let mut spawned = Spawned::start(&program, &["serve".into()], pin, |command| {
            command.env("CROSSFADE_SERVER__LISTEN", address.to_string());
            command.envs(SETTINGS).stdin(Stdio::null()).stdout(Stdio::null());
            // Where no config.toml lies.
            command.current_dir("/");
        })?;
        let deadline = Instant::now() + within;
        while get_status(address, "/health/ready").ok() != Some(200) {
            spawned.expect_alive()?;
            if deadline < Instant::now() {
                bail!("the gateway is not ready after {within:?}");
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { address, transport, pid: spawned.pid(), spawned: Some(spawned) })
    }
}

/// The gateway listens where it is told to, so a port is looked for before. Another process may
/// take it in between; then the gateway says so and ends.
fn free_port() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

impl Target for Crossfade {
    fn name(&self) -> &str {
        match self.transport {
            Transport::WebSocket => "crossfade-ws",
            Transport::EventStream => "crossfade-sse",
        }
    }

    fn process(&self) -> Process {
        Process(self.pid)
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn dialogue(&self) -> Arc<dyn Dialogue> {
        match self.transport {
            Transport::WebSocket => Arc::new(WebSocket),
            Transport::EventStream => Arc::new(EventStream),
        }
    }

    fn publisher(&mut self) -> anyhow::Result<Box<dyn Publisher>> {
        Ok(Box::new(HttpPublisher::connect(self.address)?))
    }

    fn expect_alive(&mut self) -> anyhow::Result<()> {
        self.spawned.as_mut().map_or(Ok(()), Spawned::expect_alive)
    }
}

/// Subscribes with a frame.
#[derive(Debug)]
pub struct WebSocket;

impl Dialogue for WebSocket {
    fn wire(&self) -> Wire {
        Wire::WebSocket
    }

    fn opening(&self, _channel: &str) -> Vec<u8> {
        // The key is RFC 6455's own example: what comes back is not checked, any server's is right.
        b"GET /ws HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
          sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            .to_vec()
    }

    fn after_head(&self, channel: &str) -> Vec<u8> {
        frames::text(format!(r#"{{"type":"subscribe","channel":"{channel}"}}"#).as_bytes())
    }

    fn accepts(&self, head: &[u8]) -> bool {
        head.starts_with(b"HTTP/1.1 101")
    }

    fn understand(&self, message: &[u8]) -> Meaning {
        let is = |kind| memmem::find(message, kind).is_some();
        if is(br#""type":"subscribed""#) {
            Meaning::Subscribed
        } else if is(br#""type":"ping""#) {
            Meaning::Answer(frames::text(br#"{"type":"pong"}"#))
        } else if is(br#""type":"error""#) || is(br#""type":"goodbye""#) {
            Meaning::Refused
        } else {
            Meaning::Nothing
        }
    }
}

/// Subscribes by its address.
#[derive(Debug)]
struct EventStream;

impl Dialogue for EventStream {
    fn wire(&self) -> Wire {
        Wire::EventStream
    }

    fn opening(&self, channel: &str) -> Vec<u8> {
        format!("GET /events?channel={channel} HTTP/1.1\r\nhost: localhost\r\n\r\n").into_bytes()
    }

    fn after_head(&self, _channel: &str) -> Vec<u8> {
        Vec::new()
    }

    fn accepts(&self, head: &[u8]) -> bool {
        head.starts_with(b"HTTP/1.1 200")
    }

    fn understand(&self, message: &[u8]) -> Meaning {
        if memmem::find(message, b"event: open\n").is_some() {
            Meaning::Subscribed
        } else if memmem::find(message, b"event: crossfade.goodbye\n").is_some() {
            Meaning::Refused
        } else {
            Meaning::Nothing
        }
    }
}
