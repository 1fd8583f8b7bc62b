//! Crossfade's Server-Sent Events wire at `/events`: for `EventSource`, curl and every HTTP client.
//!
//! Three formats, chosen by `?format=`: the event's envelope (default), the event's own data (`raw`),
//! or the JSON frames of the WebSocket wire (`frames`). `encode` writes blocks, `query` reads
//! requests. A client's own requests are POSTed beside the stream. The reference is
//! protocol/PROTOCOL.md.

mod encode;
mod query;

use std::time::Duration;

use bytes::Bytes;

use self::encode::{EnvelopeCodec, FramesCodec, RawCodec};
use super::{
    Codec, Conversation, Format, Handshake, HandshakeError, Replies, StreamRequest, StreamWire,
    Transport, WireFormat,
};
use crate::protocol::{CloseCode, Positions, ServerFrame};

/// The wire.
#[derive(Debug)]
pub struct Crossfade;

impl StreamWire for Crossfade {
    fn path(&self) -> &'static str {
        "/events"
    }

    fn open(
        &self,
        request: Handshake<'_>,
    ) -> Result<(Conversation, StreamRequest), HandshakeError> {
        let (format, stream) = query::parse(request)?;
        let replies: Box<dyn Replies> =
            if format == FRAMES { Box::new(UnnamedReplies) } else { Box::new(NamedReplies) };
        Ok((Conversation { format, inbound: None, replies }, stream))
    }
}

/// Blocks whose data is the event's envelope.
pub static ENVELOPE: WireFormat = &Format {
    name: "crossfade sse",
    index: 1,
    transport: Transport::Sse,
    states_positions: true,
    codec: &EnvelopeCodec,
};

/// Blocks whose data is the event's own data and nothing else.
pub static RAW: WireFormat = &Format {
    name: "crossfade sse raw",
    index: 2,
    transport: Transport::Sse,
    states_positions: true,
    codec: &RawCodec,
};

/// Blocks without a name whose data is what a WebSocket carries: for an `EventSource` that has to
/// receive every event and every ping, whatever it is called.
pub static FRAMES: WireFormat = &Format {
    name: "crossfade sse frames",
    index: 3,
    transport: Transport::Sse,
    states_positions: true,
    codec: &FramesCodec,
};

/// Replies of the formats whose frames are named events. Takes no memory.
struct NamedReplies;

/// Replies of the format without names. Takes no memory.
struct UnnamedReplies;

impl Replies for NamedReplies {
    fn preamble(&mut self, reconnect_after: Duration) -> Option<Bytes> {
        Some(encode::retry_line(reconnect_after))
    }

    fn frame(&mut self, frame: &ServerFrame, positions: &dyn Fn() -> Positions) -> Bytes {
        encode::named_frame(frame, stated_positions(frame, positions).as_ref())
    }

    fn close(&mut self, _: CloseCode, goodbye: Option<&ServerFrame>) -> Bytes {
        goodbye.map(|goodbye| encode::named_frame(goodbye, None)).unwrap_or_default()
    }
}

impl Replies for UnnamedReplies {
    fn preamble(&mut self, reconnect_after: Duration) -> Option<Bytes> {
        Some(encode::retry_line(reconnect_after))
    }

    fn frame(&mut self, frame: &ServerFrame, positions: &dyn Fn() -> Positions) -> Bytes {
        encode::unnamed_frame(frame, stated_positions(frame, positions).as_ref())
    }

    fn close(&mut self, _: CloseCode, goodbye: Option<&ServerFrame>) -> Bytes {
        goodbye.map(|goodbye| FramesCodec.frame(goodbye)).unwrap_or_default()
    }
}

/// The positions that go out with a frame: with those that state where the stream is, so that an
/// `EventSource` that has not received an event yet resumes from there.
fn stated_positions(frame: &ServerFrame, positions: &dyn Fn() -> Positions) -> Option<Positions> {
    let states = matches!(frame, ServerFrame::Welcome { .. } | ServerFrame::Reset { .. });
    // Without a channel there is no position to resume from.
    let has_channels =
        |positions: &Positions| !matches!(positions, Positions::Many(list) if list.is_empty());
    states.then(positions).filter(has_channels)
}
