//! Crossfade's WebSocket wire, `crossfade.v1` at `/ws`: JSON text frames in both directions.
//!
//! The reference is protocol/PROTOCOL.md. RFC 6455 framing is `protocol::rfc6455`'s.

use bytes::{Bytes, BytesMut};

use super::{
    Codec, Conversation, Encoded, Format, Handshake, HandshakeError, Inbound, Input, Replies,
    Transport, WebSocketWire, WireFormat, json,
};
use crate::protocol::{
    Channel, ClientFrame, CloseCode, Event, Position, Positions, ServerFrame,
    rfc6455::{self, Decoder, Message},
};

/// The wire.
#[derive(Debug)]
pub struct Crossfade;

impl WebSocketWire for Crossfade {
    fn path(&self) -> &'static str {
        "/ws"
    }

    fn subprotocol(&self) -> &'static str {
        "crossfade.v1"
    }

    fn open(&self, _: Handshake<'_>) -> Result<Conversation, HandshakeError> {
        let inbound: Box<dyn Inbound> = Box::<Frames>::default();
        Ok(Conversation { format: TEXT, inbound: Some(inbound), replies: Box::new(TextReplies) })
    }
}

/// Events as text frames.
pub static TEXT: WireFormat = &Format {
    name: "crossfade websocket",
    index: 0,
    transport: Transport::WebSocket,
    states_positions: false,
    codec: &TextCodec,
};

struct TextCodec;

impl Codec for TextCodec {
    fn event(&self, channel: &Channel, position: Position, event: &Event) -> Encoded {
        Encoded::new(rfc6455::text(&json::event_frame(channel, position, event)))
    }

    fn frame(&self, frame: &ServerFrame) -> Bytes {
        rfc6455::text(&json::to_json(frame))
    }
}

/// Replies need no state of their connection: this takes no memory.
struct TextReplies;

impl Replies for TextReplies {
    fn frame(&mut self, frame: &ServerFrame, _: &dyn Fn() -> Positions) -> Bytes {
        TextCodec.frame(frame)
    }

    fn close(&mut self, code: CloseCode, goodbye: Option<&ServerFrame>) -> Bytes {
        let mut bytes = BytesMut::new();
        if let Some(goodbye) = goodbye {
            bytes.extend_from_slice(&TextCodec.frame(goodbye));
        }
        bytes.extend_from_slice(&rfc6455::close(code));
        bytes.freeze()
    }
}

/// Reads text frames as requests.
#[derive(Default)]
struct Frames(Decoder);

impl Inbound for Frames {
    fn feed(
        &mut self,
        bytes: &[u8],
        message_max: usize,
        inputs: &mut Vec<Input>,
    ) -> Result<(), CloseCode> {
        let mut messages = Vec::new();
        let fed = self.0.feed(bytes, message_max, &mut messages);
        inputs.extend(messages.into_iter().map(|message| match message {
            Message::Text(text) => match ClientFrame::parse(&text) {
                Ok(frame) => Input::Request(frame),
                Err(err) => Input::Invalid(err),
            },
            Message::Ping(payload) => Input::Ping(rfc6455::pong(&payload)),
            Message::Pong => Input::Pong,
            Message::Close => Input::Close,
        }));
        fed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Data, Epoch};

    #[test]
    fn an_event_is_one_text_frame() {
        let event = Event {
            id: "m1".parse().unwrap(),
            name: Some("created".parse().unwrap()),
            data: Data::json(r#"{"total":9}"#).unwrap(),
            time: 1_763_692_800_000,
        };
        let channel = "orders:42".parse().unwrap();
        let encoded = TEXT.codec.event(&channel, Position::new(Epoch::new(35), 18), &event);
        let json = concat!(
            r#"{"type":"event","name":"created","channel":"orders:42","id":"m1","#,
            r#""data":{"total":9},"position":"z-18","time":1763692800000}"#
        );
        assert_eq!(encoded.bytes, rfc6455::text(json));
    }

    #[test]
    fn a_goodbye_and_the_close_frame_are_written_as_one_piece() {
        let goodbye = ServerFrame::goodbye(CloseCode::Draining, 7);
        let bytes = TextReplies.close(CloseCode::Draining, Some(&goodbye));
        let mut expected = rfc6455::text(&json::to_json(&goodbye)).to_vec();
        expected.extend_from_slice(&rfc6455::close(CloseCode::Draining));
        assert_eq!(bytes, expected);
        assert_eq!(TextReplies.close(CloseCode::Normal, None), rfc6455::close(CloseCode::Normal));
    }
}
