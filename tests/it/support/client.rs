//! Clients that a browser would be: a WebSocket, and an EventSource without its magic.

use std::net::SocketAddr;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{self, Message},
};

use super::eventually::soon;

/// What a client is welcomed with.
#[derive(Clone, Debug, serde::Deserialize)]
pub(crate) struct Welcome {
    pub(crate) session: String,
    pub(crate) member: String,
}

/// A WebSocket client.
pub(crate) struct Ws {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Ws {
    pub(crate) async fn open(addr: SocketAddr) -> Self {
        Self::try_open(addr).await.unwrap()
    }

    pub(crate) async fn try_open(addr: SocketAddr) -> Result<Self, tungstenite::Error> {
        let (stream, _) = connect_async(format!("ws://{addr}/ws")).await?;
        Ok(Self { stream })
    }

    /// Opens with a session: a new one, or that of a connection before.
    pub(crate) async fn with_session(addr: SocketAddr, session: Option<&str>) -> (Self, Welcome) {
        let mut ws = Self::open(addr).await;
        let mut connect = json!({ "type": "connect", "id": 0 });
        if let Some(session) = session {
            connect["session"] = session.into();
        }
        ws.send(connect).await;
        let welcome = soon("the welcome comes", ws.stream.next()).await.unwrap().unwrap();
        (ws, serde_json::from_str(welcome.to_text().unwrap()).unwrap())
    }

    /// Subscribes and returns the `subscribed` frame.
    pub(crate) async fn subscribe(&mut self, channel: &str, since: Option<&str>) -> Value {
        self.send(json!({ "type": "subscribe", "id": 1, "channel": channel, "since": since }))
            .await;
        self.expect("subscribed").await
    }

    /// The welcome, if the connection lives that long.
    pub(crate) async fn try_welcome(&mut self) -> Option<Welcome> {
        let text = self.stream.next().await?.ok()?;
        serde_json::from_str(text.to_text().ok()?).ok()
    }

    pub(crate) async fn send(&mut self, frame: Value) {
        self.send_raw(Message::text(frame.to_string())).await;
    }

    pub(crate) async fn try_send(&mut self, frame: Value) -> Result<(), tungstenite::Error> {
        self.stream.send(Message::text(frame.to_string())).await
    }

    pub(crate) async fn send_raw(&mut self, message: Message) {
        self.stream.send(message).await.unwrap();
    }

    /// The next frame of this type; pings are answered, welcomes passed over.
    pub(crate) async fn expect(&mut self, kind: &str) -> Value {
        let frame = self.next().await;
        assert_eq!(frame["type"], kind, "{frame}");
        frame
    }

    /// The data of the next events.
    pub(crate) async fn expect_data<const N: usize>(&mut self, data: [i64; N]) {
        for expected in data {
            assert_eq!(self.expect("event").await["data"], expected);
        }
    }

    pub(crate) async fn next(&mut self) -> Value {
        match soon("a frame comes", self.try_next()).await {
            Ok(frame) => frame,
            Err(end) => panic!("the connection ended: {end}"),
        }
    }

    /// The next frame, or how the connection ended.
    pub(crate) async fn try_next(&mut self) -> Result<Value, String> {
        loop {
            match self.stream.next().await {
                Some(Ok(Message::Text(text))) => {
                    let frame: Value = serde_json::from_str(&text).unwrap();
                    match frame["type"].as_str() {
                        // A client that is being cut off need not answer.
                        Some("ping") => drop(self.try_send(json!({ "type": "pong" })).await),
                        Some("welcome") => {}
                        _ => return Ok(frame),
                    }
                }
                Some(Ok(Message::Close(Some(close)))) => {
                    return Err(u16::from(close.code).to_string());
                }
                Some(Ok(_)) => {}
                Some(Err(err)) => return Err(err.to_string()),
                None => return Err("end".to_owned()),
            }
        }
    }

    /// The close code, after whatever else still comes.
    pub(crate) async fn closed(&mut self) -> String {
        let end = async {
            loop {
                if let Err(end) = self.try_next().await {
                    return end;
                }
            }
        };
        soon("the gateway closes", end).await
    }
}

/// A block of an SSE stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) id: Option<String>,
    pub(crate) event: Option<String>,
    pub(crate) data: String,
    pub(crate) retry: Option<u64>,
}

impl Block {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap()
    }
}

/// An SSE client.
pub(crate) struct Sse {
    stream: Option<TcpStream>,
    received: Vec<u8>,
    /// What an EventSource would send as `Last-Event-ID`.
    pub(crate) last_id: Option<String>,
}

impl Sse {
    pub(crate) async fn open(addr: SocketAddr, query: &str) -> Self {
        let mut sse = Self::try_open(addr, query, None).await.unwrap();
        let open = sse.next().await;
        assert_eq!(open.event.as_deref(), Some("open"), "{open:?}");
        sse
    }

    /// A stream that has ended.
    pub(crate) fn gone() -> Self {
        Self { stream: None, received: Vec::new(), last_id: None }
    }

    pub(crate) async fn try_open(
        addr: SocketAddr,
        query: &str,
        last_id: Option<&str>,
    ) -> std::io::Result<Self> {
        let mut stream = TcpStream::connect(addr).await?;
        let mut head = format!("GET /events?{query} HTTP/1.1\r\nhost: {addr}\r\n");
        if let Some(id) = last_id {
            head.push_str(&format!("last-event-id: {id}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).await?;
        let mut sse = Self {
            stream: Some(stream),
            received: Vec::new(),
            last_id: last_id.map(str::to_owned),
        };
        let head = sse.take_until(b"\r\n\r\n").await?;
        if !head.starts_with("HTTP/1.1 200") {
            return Err(std::io::Error::other(head));
        }
        Ok(sse)
    }

    /// The next block; comments are passed over.
    pub(crate) async fn next(&mut self) -> Block {
        soon("an SSE block comes", self.try_next()).await.unwrap()
    }

    pub(crate) async fn try_next(&mut self) -> std::io::Result<Block> {
        loop {
            let text = self.take_until(b"\n\n").await?;
            let mut block = Block::default();
            let mut any = false;
            for line in text.lines() {
                let Some((field, value)) = line.split_once(": ") else { continue };
                any |= !field.is_empty();
                match field {
                    "id" => block.id = Some(value.to_owned()),
                    "event" => block.event = Some(value.to_owned()),
                    "data" => block.data.push_str(value),
                    "retry" => block.retry = value.parse().ok(),
                    "" => {}
                    other => panic!("unknown field {other:?} in {text:?}"),
                }
            }
            if block.id.is_some() {
                self.last_id.clone_from(&block.id);
            }
            if any {
                return Ok(block);
            }
        }
    }

    /// The data of the next events, by their envelopes.
    pub(crate) async fn expect_data<const N: usize>(&mut self, data: [i64; N]) {
        for expected in data {
            let block = self.next().await;
            assert_eq!(block.json()["data"], expected, "{block:?}");
        }
    }

    /// Waits for the end of the stream; the blocks that still came.
    pub(crate) async fn until_end(&mut self) -> Vec<Block> {
        let mut blocks = Vec::new();
        while let Ok(block) = soon("the stream ends", self.try_next()).await {
            blocks.push(block);
        }
        blocks
    }

    async fn take_until(&mut self, end: &[u8]) -> std::io::Result<String> {
        loop {
            let found = self.received.windows(end.len()).position(|window| window == end);
            if let Some(at) = found {
                let rest = self.received.split_off(at + end.len());
                let piece = std::mem::replace(&mut self.received, rest);
                return String::from_utf8(piece).map_err(std::io::Error::other);
            }
            let Some(stream) = &mut self.stream else {
                return Err(std::io::ErrorKind::NotConnected.into());
            };
            if stream.read_buf(&mut self.received).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
