//! A synthetic validation session on one side: connects, subscribes, records its events.
//!
//! Parses the wire independently of the server's own codecs (the WebSocket with tungstenite), so
//! that the comparison is made on what a client would see.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    time::Duration,
};

use bytes::{Buf as _, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, timeout_at},
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        Error, Message,
        client::IntoClientRequest as _,
        http::{HeaderValue, header},
        protocol::WebSocketConfig,
    },
};

use super::{
    compare::ReceivedEvent,
    self_connector::{SelfConnector, Socket},
};
use crate::{
    auth::InternalTicket,
    protocol::{Channel, Epoch, MessageId, Position},
};

/// Time to connect and subscribe.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest frame or SSE block.
const MAX_FRAME_BYTES: usize = 1 << 20;

/// Longest head of an HTTP response.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// The transport of a session, which determines its side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Sse,
    WebSocket,
}

/// An open session.
pub(super) struct Listener {
    stream: Stream,
    epoch: Epoch,
    /// Limit of recorded events.
    max_events: usize,
    started: Instant,
    /// Events in the order of arrival.
    pub(super) received: Vec<ReceivedEvent>,
    pub(super) resets: u64,
    /// Why the session ended early, if it did.
    pub(super) ended: Option<String>,
}

enum Stream {
    Sse { socket: Box<dyn Socket>, received: BytesMut },
    WebSocket(Box<WebSocketStream<Box<dyn Socket>>>),
}

/// The fields of frames that matter here; both transports use the same envelope.
#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(rename = "type")]
    kind: Option<&'a str>,
    name: Option<String>,
    id: Option<serde_json::Value>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    position: Option<Position>,
    time: Option<u64>,
    message: Option<String>,
}

/// A parsed frame.
enum Incoming {
    Event { position: Position, digest: u64 },
    Reset,
    Subscribed,
    Ping,
    Error(String),
    Other,
}

impl Listener {
    /// Opens a session that reads a channel from a position on.
    pub(super) async fn open(
        connector: &SelfConnector,
        transport: Transport,
        (channel, since): (&Channel, Position),
        ticket: &InternalTicket,
        (started, max_events): (Instant, usize),
    ) -> Result<Self, String> {
        let opening = async {
            let socket = connector.connect().await.map_err(|err| err.to_string())?;
            match transport {
                Transport::Sse => open_sse(socket, connector, channel, since, ticket).await,
                Transport::WebSocket => {
                    open_websocket(socket, connector, channel, since, ticket).await
                }
            }
        };
        let stream = timeout_at(Instant::now() + OPEN_TIMEOUT, opening).await;
        let stream = stream.map_err(|_| format!("not subscribed within {OPEN_TIMEOUT:?}"))??;
        let (epoch, received) = (since.epoch, Vec::new());
        Ok(Self { stream, epoch, max_events, started, received, resets: 0, ended: None })
    }

    /// Records events until the deadline, until an offset is reached, or until the limit of events.
    pub(super) async fn listen(&mut self, deadline: Instant, offset: Option<u64>) {
        while self.ended.is_none() && !self.is_full() && !self.has_reached(offset) {
            match timeout_at(deadline, self.stream.next()).await {
                Err(_) => return,
                Ok(Err(err)) => self.ended = Some(err.to_string()),
                Ok(Ok(Incoming::Ping)) => self.stream.pong().await,
                Ok(Ok(Incoming::Reset)) => self.resets += 1,
                Ok(Ok(Incoming::Error(message))) => self.ended = Some(message),
                Ok(Ok(Incoming::Subscribed | Incoming::Other)) => {}
                Ok(Ok(Incoming::Event { position, digest })) if position.epoch == self.epoch => {
                    let at = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
                    self.received.push(ReceivedEvent { offset: position.offset, digest, at });
                }
                Ok(Ok(Incoming::Event { .. })) => {}
            }
        }
    }

    /// The highest offset received, if recording stopped because the limit of events was reached.
    pub(super) fn full_at_offset(&self) -> Option<u64> {
        self.received.iter().map(|event| event.offset).max().filter(|_| self.is_full())
    }

    fn is_full(&self) -> bool {
        self.max_events <= self.received.len()
    }

    fn has_reached(&self, offset: Option<u64>) -> bool {
        let last = self.received.last().map_or(0, |event| event.offset);
        offset.is_some_and(|offset| offset <= last)
    }
}

async fn open_sse(
    mut socket: Box<dyn Socket>,
    connector: &SelfConnector,
    channel: &Channel,
    since: Position,
    ticket: &InternalTicket,
) -> Result<Stream, String> {
    let query = form_urlencoded::Serializer::new(String::new())
        .append_pair("channel", channel.as_str())
        .append_pair("since", &since.to_string())
        .finish();
    let head = format!(
        "GET /events?{} HTTP/1.1\r\nhost: {}\r\naccept: text/event-stream\r\n\
         authorization: Bearer {}\r\n\r\n",
        query,
        connector.address,
        ticket.reveal()
    );
    let error_text = |err: io::Error| err.to_string();
    socket.write_all(head.as_bytes()).await.map_err(error_text)?;
    let mut received = BytesMut::new();
    let head = read_until(&mut *socket, &mut received, b"\r\n\r\n", MAX_HEAD_BYTES)
        .await
        .map_err(error_text)?;
    let status = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut stream = Stream::Sse { socket, received };
    if status != "200" {
        return Err(format!("GET /events answered {status}"));
    }
    wait_until_subscribed(&mut stream).await?;
    Ok(stream)
}

async fn open_websocket(
    socket: Box<dyn Socket>,
    connector: &SelfConnector,
    channel: &Channel,
    since: Position,
    ticket: &InternalTicket,
) -> Result<Stream, String> {
    let error_text = |err: Error| match err {
        Error::Http(answer) => format!("GET /ws answered {}", answer.status().as_u16()),
        err => err.to_string(),
    };
    let mut request =
        format!("ws://{}/ws", connector.address).into_client_request().map_err(error_text)?;
    let bearer = HeaderValue::from_str(&format!("Bearer {}", ticket.reveal()));
    request.headers_mut().insert(header::AUTHORIZATION, bearer.map_err(|err| err.to_string())?);
    let config = WebSocketConfig::default()
        .read_buffer_size(4096)
        .max_message_size(Some(MAX_FRAME_BYTES))
        .max_frame_size(Some(MAX_FRAME_BYTES));
    let handshake = Box::pin(client_async_with_config(request, socket, Some(config))).await;
    let (mut stream, _) = handshake.map_err(error_text)?;
    let subscribe = json!({ "type": "subscribe", "id": 1, "channel": channel, "since": since });
    stream.send(Message::text(subscribe.to_string())).await.map_err(error_text)?;
    let mut stream = Stream::WebSocket(Box::new(stream));
    wait_until_subscribed(&mut stream).await?;
    Ok(stream)
}

async fn wait_until_subscribed(stream: &mut Stream) -> Result<(), String> {
    loop {
        match stream.next().await.map_err(|err| err.to_string())? {
            Incoming::Subscribed => return Ok(()),
            Incoming::Error(message) => return Err(message),
            Incoming::Ping => stream.pong().await,
            Incoming::Event { .. } => {
                return Err("an event arrived before the subscription was confirmed".to_owned());
            }
            Incoming::Reset | Incoming::Other => {}
        }
    }
}

impl Stream {
    /// Waits for the next frame. Cancel-safe: if dropped while it waits, no data are lost.
    async fn next(&mut self) -> io::Result<Incoming> {
        match self {
            Self::Sse { socket, received } => {
                let block = read_until(&mut **socket, received, b"\n\n", MAX_FRAME_BYTES).await?;
                Ok(parse_sse_block(&block))
            }
            Self::WebSocket(stream) => match stream.next().await {
                None => Err(io::ErrorKind::UnexpectedEof.into()),
                Some(Err(err)) => Err(io::Error::other(err)),
                Some(Ok(Message::Text(text))) => Ok(parse_frame(&text, None)),
                Some(Ok(Message::Close(close))) => {
                    let code = close.map_or(1005, |close| close.code.into());
                    Err(io::Error::other(format!("the WebSocket was closed with code {code}")))
                }
                Some(Ok(_)) => Ok(Incoming::Other),
            },
        }
    }

    async fn pong(&mut self) {
        if let Self::WebSocket(stream) = self {
            // A failed write shows up as an error of the next read.
            let _ = stream.send(Message::text(r#"{"type":"pong"}"#)).await;
        }
    }
}

/// Reads up to and including the delimiter `end`, and returns what is before it.
async fn read_until(
    socket: &mut dyn Socket,
    received: &mut BytesMut,
    end: &[u8],
    max_bytes: usize,
) -> io::Result<String> {
    let mut searched = 0;
    loop {
        let rest = &received[searched..];
        if let Some(at) = rest.windows(end.len()).position(|window| window == end) {
            let piece = received.split_to(searched + at);
            received.advance(end.len());
            return String::from_utf8(piece.into()).map_err(io::Error::other);
        }
        searched = received.len().saturating_sub(end.len() - 1);
        if max_bytes < received.len() {
            return Err(io::Error::other(format!("a frame is longer than {max_bytes} bytes")));
        }
        if socket.read_buf(received).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn parse_sse_block(block: &str) -> Incoming {
    let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
    let name = field("event: ");
    let Some(data) = field("data: ") else { return Incoming::Other };
    match name {
        Some("open") => Incoming::Subscribed,
        Some("crossfade.reset") => Incoming::Reset,
        Some("crossfade.goodbye" | "crossfade.error") => Incoming::Error(data.to_owned()),
        Some(name) if name.starts_with("crossfade.") => Incoming::Other,
        name => parse_frame(data, name),
    }
}

/// Parses the envelope, which is the same on both transports. `name` is the SSE event name.
fn parse_frame(text: &str, name: Option<&str>) -> Incoming {
    let Ok(frame) = serde_json::from_str::<Frame<'_>>(text) else { return Incoming::Other };
    match frame.kind {
        None | Some("event") => {
            let id = frame.id.as_ref().and_then(|id| id.as_str()?.parse::<MessageId>().ok());
            let (Some(id), Some(data), Some(position)) = (id, frame.data, frame.position) else {
                return Incoming::Other;
            };
            let mut digest = DefaultHasher::new();
            let name = frame.name.as_deref().or(name);
            (id, name, data.get(), frame.time).hash(&mut digest);
            Incoming::Event { position, digest: digest.finish() }
        }
        Some("subscribed") => Incoming::Subscribed,
        Some("reset") => Incoming::Reset,
        Some("ping") => Incoming::Ping,
        Some("error" | "goodbye") => {
            Incoming::Error(frame.message.unwrap_or_else(|| text.chars().take(200).collect()))
        }
        Some(_) => Incoming::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        protocol::{Data, Event, rfc6455},
        wire::{WireFormat, sse, websocket},
    };

    #[test]
    fn both_transports_give_the_same_digest() {
        for name in [None, Some("created")] {
            let event = Event {
                id: "m1".parse().unwrap(),
                name: name.map(|name| name.parse().unwrap()),
                data: Data::json(r#"{"total": 9.50, "text": "a\nb"}"#).unwrap(),
                time: 1_763_692_800_000,
            };
            let (channel, position) = ("a".parse().unwrap(), Position::new(Epoch::new(35), 18));
            let encoded = |format: WireFormat| format.codec.event(&channel, position, &event).bytes;
            let block = encoded(sse::ENVELOPE);
            let block = std::str::from_utf8(&block).unwrap().trim_end();
            let framed = encoded(websocket::TEXT);
            let start = framed.iter().position(|byte| *byte == b'{').unwrap();
            let frame = std::str::from_utf8(&framed[start..]).unwrap();
            assert_eq!(rfc6455::text(frame), framed);
            let (Incoming::Event { digest: on_sse, position: at }, Incoming::Event { digest, .. }) =
                (parse_sse_block(block), parse_frame(frame, None))
            else {
                panic!("no event")
            };
            assert_eq!((on_sse, at), (digest, position));
        }
    }
}
