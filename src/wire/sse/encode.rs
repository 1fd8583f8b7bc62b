//! Writes events and frames as blocks of a `text/event-stream`.

use std::{fmt::Write as _, time::Duration};

use bytes::{Bytes, BytesMut};

use crate::{
    protocol::{Channel, Event, EventName, Position, Positions, ServerFrame, event::bare_text},
    wire::{Codec, Encoded, json},
};

/// Writes envelopes.
pub(super) struct EnvelopeCodec;

/// Writes bare data.
pub(super) struct RawCodec;

/// Writes the JSON frames of the WebSocket wire.
pub(super) struct FramesCodec;

impl Codec for EnvelopeCodec {
    fn event(&self, channel: &Channel, position: Position, event: &Event) -> Encoded {
        let json = json::event_envelope(channel, position, event);
        block(position, event.name.as_ref(), &json)
    }

    fn event_with_positions(&self, encoded: &Encoded, positions: &Positions) -> Bytes {
        with_positions(encoded, positions)
    }

    fn frame(&self, frame: &ServerFrame) -> Bytes {
        named_frame(frame, None)
    }
}

impl Codec for RawCodec {
    fn event(&self, _: &Channel, position: Position, event: &Event) -> Encoded {
        let name = event.name.as_ref();
        match bare_text(&event.id, &event.data) {
            // A line of data for each line of text.
            Some(text) => block(position, name, &data_lines(&text)),
            None => block(position, name, event.data.as_str()),
        }
    }

    fn event_with_positions(&self, encoded: &Encoded, positions: &Positions) -> Bytes {
        with_positions(encoded, positions)
    }

    fn frame(&self, frame: &ServerFrame) -> Bytes {
        named_frame(frame, None)
    }
}

impl Codec for FramesCodec {
    fn event(&self, channel: &Channel, position: Position, event: &Event) -> Encoded {
        block(position, None, &json::event_frame(channel, position, event))
    }

    fn event_with_positions(&self, encoded: &Encoded, positions: &Positions) -> Bytes {
        with_positions(encoded, positions)
    }

    fn frame(&self, frame: &ServerFrame) -> Bytes {
        unnamed_frame(frame, None)
    }
}

/// A frame as an event with a reserved name; a ping is a comment.
pub(super) fn named_frame(frame: &ServerFrame, positions: Option<&Positions>) -> Bytes {
    if matches!(frame, ServerFrame::Ping { .. }) {
        return PING;
    }
    frame_block(frame, positions, Some(event_name(frame)))
}

/// A frame as an event without a name.
pub(super) fn unnamed_frame(frame: &ServerFrame, positions: Option<&Positions>) -> Bytes {
    frame_block(frame, positions, None)
}

/// The line that tells an `EventSource` after how long to reconnect.
pub(super) fn retry_line(after: Duration) -> Bytes {
    format!("retry: {}\n", after.as_millis()).into()
}

/// The comment that keeps proxies from closing a quiet stream.
const PING: Bytes = Bytes::from_static(b": ping\n\n");

fn frame_block(frame: &ServerFrame, positions: Option<&Positions>, name: Option<&str>) -> Bytes {
    let mut text = String::new();
    if let Some(positions) = positions {
        let _ = writeln!(text, "id: {positions}");
    }
    // An EventSource waits `retry` before it reconnects: a goodbye's `after` is that delay.
    if let ServerFrame::Goodbye { after, reconnect: true, .. } = frame {
        let _ = writeln!(text, "retry: {after}");
    }
    if let Some(name) = name {
        let _ = writeln!(text, "event: {name}");
    }
    let _ = write!(text, "data: {}\n\n", json::to_json(frame));
    text.into()
}

fn event_name(frame: &ServerFrame) -> &'static str {
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

fn block(position: Position, name: Option<&EventName>, data: &str) -> Encoded {
    let mut text = String::with_capacity(data.len() + 96);
    let _ = writeln!(text, "id: {position}");
    let position_len = text.len();
    if let Some(name) = name {
        let _ = writeln!(text, "event: {name}");
    }
    let _ = write!(text, "data: {data}\n\n");
    Encoded { bytes: text.into(), position_len }
}

fn with_positions(encoded: &Encoded, positions: &Positions) -> Bytes {
    let id = format!("id: {positions}\n");
    let mut block = BytesMut::with_capacity(id.len() + encoded.bytes.len());
    block.extend_from_slice(id.as_bytes());
    block.extend_from_slice(&encoded.without_position());
    block.freeze()
}

fn data_lines(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n").replace('\n', "\ndata: ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        protocol::{Data, Epoch, id::TEXT_ID},
        wire::{
            WireFormat,
            sse::{ENVELOPE, FRAMES, RAW},
        },
    };

    fn encoded(format: WireFormat, event: &Event) -> Encoded {
        let channel = "orders:42".parse().unwrap();
        format.codec.event(&channel, Position::new(Epoch::new(35), 18), event)
    }

    fn created(name: Option<&str>) -> Event {
        Event {
            id: "m1".parse().unwrap(),
            name: name.map(|name| name.parse().unwrap()),
            data: Data::json(r#"{"total":9}"#).unwrap(),
            time: 1_763_692_800_000,
        }
    }

    #[test]
    fn an_envelope_states_everything_but_the_name() {
        let encoded = encoded(ENVELOPE, &created(Some("created")));
        let json = concat!(
            r#"{"channel":"orders:42","id":"m1","data":{"total":9},"#,
            r#""position":"z-18","time":1763692800000}"#
        );
        assert_eq!(encoded.bytes, format!("id: z-18\nevent: created\ndata: {json}\n\n"));
        let positions: Positions = "a~z-1,b~z-2".parse().unwrap();
        assert_eq!(
            ENVELOPE.codec.event_with_positions(&encoded, &positions),
            format!("id: a~z-1,b~z-2\nevent: created\ndata: {json}\n\n")
        );
    }

    #[test]
    fn a_text_that_was_published_bare_is_bare_again_on_a_raw_stream() {
        let event = Event {
            id: format!("{TEXT_ID}x").parse().unwrap(),
            data: Data::lenient("hello\r\nyou"),
            ..created(None)
        };
        assert_eq!(encoded(RAW, &event).bytes, "id: z-18\ndata: hello\ndata: you\n\n");
        let envelope = encoded(ENVELOPE, &event).bytes;
        let envelope = std::str::from_utf8(&envelope).unwrap();
        assert!(envelope.contains(r#""data":"hello\r\nyou""#), "{envelope}");
    }

    #[test]
    fn a_stream_of_frames_carries_what_a_websocket_carries_without_names() {
        let json = concat!(
            r#"{"type":"event","name":"created","channel":"orders:42","id":"m1","#,
            r#""data":{"total":9},"position":"z-18","time":1763692800000}"#
        );
        let encoded = encoded(FRAMES, &created(Some("created")));
        assert_eq!(encoded.bytes, format!("id: z-18\ndata: {json}\n\n"));
        let ping = FRAMES.codec.frame(&ServerFrame::Ping { time: 7 });
        assert_eq!(ping, "data: {\"type\":\"ping\",\"time\":7}\n\n");
    }

    #[test]
    fn an_event_without_a_name_reaches_a_pages_onmessage() {
        let encoded = encoded(RAW, &created(None));
        assert_eq!(encoded.bytes, "id: z-18\ndata: {\"total\":9}\n\n");
    }
}
