//! A synthetic session on one side: it opens, listens and writes down what it gets.
//!
//! It reads the wire by itself (the WebSocket with a decoder that is not ours), so that what is
//! compared is what a client would see.

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
    compare::Seen,
    self_connector::{SelfConnector, Wire},
};
use crate::{
    auth::InternalTicket,
    protocol::{Channel, Epoch, MessageId, Position},
};

/// A session is there within this time.
const OPEN: Duration = Duration::from_secs(10);

/// Bytes of one frame.
const FRAME_BYTES: usize = 1 << 20;

/// Bytes of an answer's head, or of a refusal.
const HEAD_BYTES: usize = 16 << 10;

/// Which side it listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Sse,
    WebSocket,
}

/// One session.
pub(super) struct Listener {
    carrier: Carrier,
    epoch: Epoch,
    /// No more than so many events are written down.
    room: usize,
    begun: Instant,
    /// In the order in which they came.
    pub(super) seen: Vec<Seen>,
    pub(super) resets: u64,
    /// Why it ended, if it has.
    pub(super) ended: Option<String>,
}

enum Carrier {
    Sse { wire: Box<dyn Wire>, received: BytesMut },
    WebSocket(Box<WebSocketStream<Box<dyn Wire>>>),
}

/// What either side tells of an event, and what else it says.
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

/// A piece of what came.
enum Piece {
    Event { position: Position, digest: u64 },
    Reset,
    Subscribed,
    Ping,
    Refused(String),
    Other,
}

impl Listener {
    /// Opens a session that reads a channel behind a position.
    pub(super) async fn open(
        door: &SelfConnector,
        transport: Transport,
        (channel, since): (&Channel, Position),
        pass: &InternalTicket,
        (begun, room): (Instant, usize),
    ) -> Result<Self, String> {
        let opening = async {
            let wire = door.enter().await.map_err(|err| err.to_string())?;
            match transport {
                Transport::Sse => open_sse(wire, door, channel, since, pass).await,
                Transport::WebSocket => open_websocket(wire, door, channel, since, pass).await,
            }
        };
        let carrier = timeout_at(Instant::now() + OPEN, opening).await;
        let carrier = carrier.map_err(|_| format!("it was not open within {OPEN:?}"))??;
        let (epoch, seen) = (since.epoch, Vec::new());
        Ok(Self { carrier, epoch, room, begun, seen, resets: 0, ended: None })
    }

    /// Listens until a moment, or until an offset was reached.
    pub(super) async fn listen(&mut self, until: Instant, offset: Option<u64>) {
        while self.ended.is_none() && !self.is_full() && !self.has_reached(offset) {
            match timeout_at(until, self.carrier.next()).await {
                Err(_) => return,
                Ok(Err(err)) => self.ended = Some(err.to_string()),
                Ok(Ok(Piece::Ping)) => self.carrier.pong().await,
                Ok(Ok(Piece::Reset)) => self.resets += 1,
                Ok(Ok(Piece::Refused(message))) => self.ended = Some(message),
                Ok(Ok(Piece::Subscribed | Piece::Other)) => {}
                Ok(Ok(Piece::Event { position, digest })) if position.epoch == self.epoch => {
                    let at = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                    self.seen.push(Seen { offset: position.offset, digest, at });
                }
                Ok(Ok(Piece::Event { .. })) => {}
            }
        }
    }

    /// Whether it stopped listening for want of room: how far it got.
    pub(super) fn full_at(&self) -> Option<u64> {
        self.seen.iter().map(|seen| seen.offset).max().filter(|_| self.is_full())
    }

    fn is_full(&self) -> bool {
        self.room <= self.seen.len()
    }

    fn has_reached(&self, offset: Option<u64>) -> bool {
        let last = self.seen.last().map_or(0, |seen| seen.offset);
        offset.is_some_and(|offset| offset <= last)
    }
}

async fn open_sse(
    mut wire: Box<dyn Wire>,
    door: &SelfConnector,
    channel: &Channel,
    since: Position,
    pass: &InternalTicket,
) -> Result<Carrier, String> {
    let query = form_urlencoded::Serializer::new(String::new())
        .append_pair("channel", channel.as_str())
        .append_pair("since", &since.to_string())
        .finish();
    let head = format!(
        "GET /events?{} HTTP/1.1\r\nhost: {}\r\naccept: text/event-stream\r\n\
         authorization: Bearer {}\r\n\r\n",
        query,
        door.address,
        pass.reveal()
    );
    let said = |err: io::Error| err.to_string();
    wire.write_all(head.as_bytes()).await.map_err(said)?;
    let mut received = BytesMut::new();
    let head =
        take_until(&mut *wire, &mut received, b"\r\n\r\n", HEAD_BYTES).await.map_err(said)?;
    let status = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut carrier = Carrier::Sse { wire, received };
    if status != "200" {
        return Err(format!("it answered {status}"));
    }
    until_subscribed(&mut carrier).await?;
    Ok(carrier)
}

async fn open_websocket(
    wire: Box<dyn Wire>,
    door: &SelfConnector,
    channel: &Channel,
    since: Position,
    pass: &InternalTicket,
) -> Result<Carrier, String> {
    let said = |err: Error| match err {
        Error::Http(answer) => format!("it answered {}", answer.status().as_u16()),
        err => err.to_string(),
    };
    let mut request = format!("ws://{}/ws", door.address).into_client_request().map_err(said)?;
    let bearer = HeaderValue::from_str(&format!("Bearer {}", pass.reveal()));
    request.headers_mut().insert(header::AUTHORIZATION, bearer.map_err(|err| err.to_string())?);
    let config = WebSocketConfig::default()
        .read_buffer_size(4096)
        .max_message_size(Some(FRAME_BYTES))
        .max_frame_size(Some(FRAME_BYTES));
    let shaken = Box::pin(client_async_with_config(request, wire, Some(config))).await;
    let (mut stream, _) = shaken.map_err(said)?;
    let subscribe = json!({ "type": "subscribe", "id": 1, "channel": channel, "since": since });
    stream.send(Message::text(subscribe.to_string())).await.map_err(said)?;
    let mut carrier = Carrier::WebSocket(Box::new(stream));
    until_subscribed(&mut carrier).await?;
    Ok(carrier)
}

async fn until_subscribed(carrier: &mut Carrier) -> Result<(), String> {
    loop {
        match carrier.next().await.map_err(|err| err.to_string())? {
            Piece::Subscribed => return Ok(()),
            Piece::Refused(message) => return Err(message),
            Piece::Ping => carrier.pong().await,
            Piece::Event { .. } => return Err("an event came before it was subscribed".to_owned()),
            Piece::Reset | Piece::Other => {}
        }
    }
}

impl Carrier {
    /// Waits for the next piece. Dropped while it waits, nothing is lost.
    async fn next(&mut self) -> io::Result<Piece> {
        match self {
            Self::Sse { wire, received } => {
                let block = take_until(&mut **wire, received, b"\n\n", FRAME_BYTES).await?;
                Ok(read_block(&block))
            }
            Self::WebSocket(stream) => match stream.next().await {
                None => Err(io::ErrorKind::UnexpectedEof.into()),
                Some(Err(err)) => Err(io::Error::other(err)),
                Some(Ok(Message::Text(text))) => Ok(read_frame(&text, None)),
                Some(Ok(Message::Close(close))) => {
                    let code = close.map_or(1005, |close| close.code.into());
                    Err(io::Error::other(format!("it was closed with {code}")))
                }
                Some(Ok(_)) => Ok(Piece::Other),
            },
        }
    }

    async fn pong(&mut self) {
        if let Self::WebSocket(stream) = self {
            // Who cannot be answered is found gone by the next reading.
            let _ = stream.send(Message::text(r#"{"type":"pong"}"#)).await;
        }
    }
}

/// Reads up to and including `end`, which is not returned.
async fn take_until(
    wire: &mut dyn Wire,
    received: &mut BytesMut,
    end: &[u8],
    most: usize,
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
        if most < received.len() {
            return Err(io::Error::other(format!("a piece has more than {most} bytes")));
        }
        if wire.read_buf(received).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn read_block(block: &str) -> Piece {
    let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
    let name = field("event: ");
    let Some(data) = field("data: ") else { return Piece::Other };
    match name {
        Some("open") => Piece::Subscribed,
        Some("crossfade.reset") => Piece::Reset,
        Some("crossfade.goodbye" | "crossfade.error") => Piece::Refused(data.to_owned()),
        Some(name) if name.starts_with("crossfade.") => Piece::Other,
        name => read_frame(data, name),
    }
}

/// Both sides write the same envelope; what stands around it differs.
fn read_frame(text: &str, name: Option<&str>) -> Piece {
    let Ok(frame) = serde_json::from_str::<Frame<'_>>(text) else { return Piece::Other };
    match frame.kind {
        None | Some("event") => {
            let id = frame.id.as_ref().and_then(|id| id.as_str()?.parse::<MessageId>().ok());
            let (Some(id), Some(data), Some(position)) = (id, frame.data, frame.position) else {
                return Piece::Other;
            };
            let mut digest = DefaultHasher::new();
            let name = frame.name.as_deref().or(name);
            (id, name, data.get(), frame.time).hash(&mut digest);
            Piece::Event { position, digest: digest.finish() }
        }
        Some("subscribed") => Piece::Subscribed,
        Some("reset") => Piece::Reset,
        Some("ping") => Piece::Ping,
        Some("error" | "goodbye") => {
            Piece::Refused(frame.message.unwrap_or_else(|| text.chars().take(200).collect()))
        }
        Some(_) => Piece::Other,
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
    fn both_sides_say_the_same_of_an_event() {
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
            let from = framed.iter().position(|byte| *byte == b'{').unwrap();
            let frame = std::str::from_utf8(&framed[from..]).unwrap();
            assert_eq!(rfc6455::text(frame), framed);
            let (Piece::Event { digest: on_sse, position: at }, Piece::Event { digest, .. }) =
                (read_block(block), read_frame(frame, None))
            else {
                panic!("no event")
            };
            assert_eq!((on_sse, at), (digest, position));
        }
    }
}
