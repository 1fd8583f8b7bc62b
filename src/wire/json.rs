//! The JSON of an event, as both of our own wires carry it.

use serde::Serialize;

use crate::protocol::{Channel, Data, Event, EventName, MessageId, Position};

/// An event as a frame: `{"type":"event","name":…,"channel":…,…}`.
pub(super) fn event_frame(channel: &Channel, position: Position, event: &Event) -> String {
    let envelope = Envelope::new(channel, position, event);
    let frame = EventFrame { kind: "event", name: event.name.as_ref(), envelope };
    to_json_sized(&frame, event)
}

/// An event's envelope alone, for wires that state type and name beside it.
pub(super) fn event_envelope(channel: &Channel, position: Position, event: &Event) -> String {
    to_json_sized(&Envelope::new(channel, position, event), event)
}

/// Any other frame.
pub(super) fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("no map of ours has a key that is not text")
}

#[derive(Serialize)]
struct Envelope<'a> {
    channel: &'a Channel,
    id: &'a MessageId,
    data: &'a Data,
    position: Position,
    time: u64,
}

impl<'a> Envelope<'a> {
    fn new(channel: &'a Channel, position: Position, event: &'a Event) -> Self {
        Self { channel, id: &event.id, data: &event.data, position, time: event.time }
    }
}

#[derive(Serialize)]
struct EventFrame<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a EventName>,
    #[serde(flatten)]
    envelope: Envelope<'a>,
}

/// Bytes that an envelope adds to an event's data, at most in most cases.
const ENVELOPE_BYTES: usize = 256;

fn to_json_sized(value: &impl Serialize, event: &Event) -> String {
    let mut json = Vec::with_capacity(event.data.len() + ENVELOPE_BYTES);
    serde_json::to_writer(&mut json, value).expect("an envelope has no map, and memory takes all");
    String::from_utf8(json).expect("JSON is text")
}
