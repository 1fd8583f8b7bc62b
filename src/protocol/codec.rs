//! From frames to bytes: an event is encoded once per [`WireFormat`], and all readers share it.
//!
//! WebSocket and SSE differ in framing only; what stands in the JSON is written in one place.

use std::fmt::Write as _;

use bytes::Bytes;
use serde::Serialize;

use super::{
    Channel, Event, EventName, Position, Positions, ServerFrame, event::bare_text, rfc6455,
};

/// How a reader wants its events written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WireFormat {
    /// A WebSocket text frame.
    WebSocket,
    /// An SSE block with the event's envelope as data.
    Sse,
    /// An SSE block with the event's own data and nothing else.
    SseRaw,
    /// An SSE block without a name, whose data is what a WebSocket would carry: for an `EventSource`
    /// that has to get every event and every ping, whatever it is called.
    SseFrames,
}

impl WireFormat {
    /// How many there are.
    pub const COUNT: usize = 4;

    /// Whether it is a `text/event-stream`.
    pub const fn is_sse(self) -> bool {
        match self {
            Self::WebSocket => false,
            Self::Sse | Self::SseRaw | Self::SseFrames => true,
        }
    }
}

/// An event in one wire format.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// All of it, ready to be written.
    pub bytes: Bytes,
    /// How much of the front is the `id:` line. A stream of several channels puts its own there.
    id_line: usize,
}

impl Encoded {
    /// Writes an event.
    pub fn event(channel: &Channel, position: Position, event: &Event, format: WireFormat) -> Self {
        match format {
            WireFormat::WebSocket => {
                let json = Tagged::json(channel, position, event);
                Self { bytes: rfc6455::text(&json), id_line: 0 }
            }
            WireFormat::Sse => {
                let json = event_json(&Envelope::new(channel, position, event), event);
                Self::block(position, event.name.as_ref(), &json)
            }
            WireFormat::SseFrames => {
                Self::block(position, None, &Tagged::json(channel, position, event))
            }
            WireFormat::SseRaw => match bare_text(&event.id, &event.data) {
                // A line of data for each line of text.
                Some(text) => Self::block(position, event.name.as_ref(), &data_lines(&text)),
                None => Self::block(position, event.name.as_ref(), event.data.as_str()),
            },
        }
    }

    /// The event without its `id:` line.
    pub fn without_id(&self) -> Bytes {
        self.bytes.slice(self.id_line..)
    }

    fn block(position: Position, name: Option<&EventName>, data: &str) -> Self {
        let mut text = String::with_capacity(data.len() + 96);
        let _ = writeln!(text, "id: {position}");
        let id_line = text.len();
        if let Some(name) = name {
            let _ = writeln!(text, "event: {name}");
        }
        let _ = write!(text, "data: {data}\n\n");
        Self { bytes: text.into(), id_line }
    }
}

fn data_lines(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n").replace('\n', "\ndata: ")
}

/// An SSE `id:` line.
pub fn id_line(positions: &Positions) -> Bytes {
    format!("id: {positions}\n").into()
}

/// The comment that keeps an SSE stream from looking dead.
pub const SSE_PING: Bytes = Bytes::from_static(b": ping\n\n");

/// A control frame in a wire format. On SSE it is an event with a reserved name, and carries an
/// `id:` only where it says where the stream stands (`open`, `crossfade.reset`).
pub fn control(frame: &ServerFrame, format: WireFormat, id: Option<&Positions>) -> Bytes {
    if !format.is_sse() {
        return rfc6455::text(&to_json(frame));
    }
    let named = format != WireFormat::SseFrames;
    if named && matches!(frame, ServerFrame::Ping { .. }) {
        return SSE_PING;
    }
    let mut text = String::new();
    if let Some(positions) = id {
        let _ = writeln!(text, "id: {positions}");
    }
    // An EventSource waits `retry` before it comes back: a goodbye's `after` is that.
    if let ServerFrame::Goodbye { after, reconnect: true, .. } = frame {
        let _ = writeln!(text, "retry: {after}");
    }
    if named {
        let _ = writeln!(text, "event: {}", sse_name(frame));
    }
    let _ = write!(text, "data: {}\n\n", to_json(frame));
    text.into()
}

fn sse_name(frame: &ServerFrame) -> &'static str {
    match frame {
        ServerFrame::Welcome { .. } => "open",
        ServerFrame::Subscribed { .. } => "crossfade.subscribed",
        ServerFrame::Unsubscribed { .. } => "crossfade.unsubscribed",
        ServerFrame::Presence { .. } => "crossfade.presence",
        ServerFrame::Shown { .. } => "crossfade.shown",
        ServerFrame::Expiring { .. } => "crossfade.expiring",
        ServerFrame::Reset { .. } => "crossfade.reset",
        ServerFrame::Published { .. } => "crossfade.published",
        ServerFrame::History { .. } => "crossfade.history",
        ServerFrame::Goodbye { .. } => "crossfade.goodbye",
        ServerFrame::Migrate { .. } => "crossfade.migrate",
        ServerFrame::Ping { .. } => "crossfade.ping",
        ServerFrame::Error { .. } => "crossfade.error",
    }
}

/// What a client is told of an event, whatever carries it.
#[derive(Serialize)]
struct Envelope<'a> {
    channel: &'a Channel,
    id: &'a super::MessageId,
    data: &'a super::Data,
    position: Position,
    time: u64,
}

impl<'a> Envelope<'a> {
    fn new(channel: &'a Channel, position: Position, event: &'a Event) -> Self {
        Self { channel, id: &event.id, data: &event.data, position, time: event.time }
    }
}

/// The envelope where no `event:` line stands beside it.
#[derive(Serialize)]
struct Tagged<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a EventName>,
    #[serde(flatten)]
    envelope: Envelope<'a>,
}

impl<'a> Tagged<'a> {
    fn json(channel: &'a Channel, position: Position, event: &'a Event) -> String {
        let envelope = Envelope::new(channel, position, event);
        event_json(&Self { kind: "event", name: event.name.as_ref(), envelope }, event)
    }
}

/// What an event's envelope adds to its data, about.
const ENVELOPE: usize = 256;

fn event_json(value: &impl Serialize, event: &Event) -> String {
    let mut json = Vec::with_capacity(event.data.len() + ENVELOPE);
    serde_json::to_writer(&mut json, value).expect("an envelope has no map, and memory takes all");
    String::from_utf8(json).expect("JSON is text")
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("no map of ours has a key that is not text")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Data, Epoch};

    fn written(format: WireFormat, name: Option<&str>) -> Encoded {
        let event = Event {
            id: "m1".parse().unwrap(),
            name: name.map(|name| name.parse().unwrap()),
            data: Data::json(r#"{"total":9}"#).unwrap(),
            time: 1_763_692_800_000,
        };
        let channel = "orders:42".parse().unwrap();
        Encoded::event(&channel, Position::new(Epoch::new(35), 18), &event, format)
    }

    #[test]
    fn an_event_on_a_websocket() {
        let bytes = written(WireFormat::WebSocket, Some("created")).bytes;
        let json = concat!(
            r#"{"type":"event","name":"created","channel":"orders:42","id":"m1","#,
            r#""data":{"total":9},"position":"z-18","time":1763692800000}"#
        );
        assert_eq!(bytes, rfc6455::text(json));
    }

    #[test]
    fn an_event_on_an_sse_stream() {
        let encoded = written(WireFormat::Sse, Some("created"));
        let json = concat!(
            r#"{"channel":"orders:42","id":"m1","data":{"total":9},"#,
            r#""position":"z-18","time":1763692800000}"#
        );
        assert_eq!(encoded.bytes, format!("id: z-18\nevent: created\ndata: {json}\n\n"));
        assert_eq!(encoded.without_id(), format!("event: created\ndata: {json}\n\n"));
    }

    #[test]
    fn a_text_that_was_sent_bare_is_shown_bare_on_a_raw_stream() {
        let event = Event {
            id: format!("{}x", super::super::id::TEXT_ID).parse().unwrap(),
            name: None,
            data: Data::lenient("hello\r\nyou"),
            time: 0,
        };
        let written = |format| {
            let position = Position::new(Epoch::new(35), 18);
            let bytes = Encoded::event(&"a".parse().unwrap(), position, &event, format).bytes;
            String::from_utf8(bytes.to_vec()).unwrap()
        };
        assert_eq!(written(WireFormat::SseRaw), "id: z-18\ndata: hello\ndata: you\n\n");
        assert!(written(WireFormat::Sse).contains(r#""data":"hello\r\nyou""#));
    }

    #[test]
    fn a_stream_of_frames_says_what_a_websocket_says_and_names_nothing() {
        let encoded = written(WireFormat::SseFrames, Some("created"));
        let json = concat!(
            r#"{"type":"event","name":"created","channel":"orders:42","id":"m1","#,
            r#""data":{"total":9},"position":"z-18","time":1763692800000}"#
        );
        assert_eq!(encoded.bytes, format!("id: z-18\ndata: {json}\n\n"));
        let ping = control(&ServerFrame::Ping { time: 7 }, WireFormat::SseFrames, None);
        assert_eq!(ping, "data: {\"type\":\"ping\",\"time\":7}\n\n");
    }

    #[test]
    fn an_unnamed_event_reaches_a_pages_plain_onmessage() {
        let encoded = written(WireFormat::SseRaw, None);
        assert_eq!(encoded.bytes, "id: z-18\ndata: {\"total\":9}\n\n");
    }
}
