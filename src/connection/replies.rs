//! Replies to requests: where they go, and how a broker's answers are shown.

use super::client::Client;
use crate::{
    broker::{BrokerError, Slice},
    protocol::{
        Channel, ErrorCode, Position, ServerFrame,
        frame::{Page, PageEvent, RequestId},
    },
};

/// Queues a reply for the client's stream, or returns it to the caller.
pub(super) fn deliver(client: &Client, reply: ServerFrame, to_stream: bool) -> Option<ServerFrame> {
    if !to_stream {
        return Some(reply);
    }
    client.send(&mut client.state(), &reply);
    None
}

/// The reply to a request that the broker failed.
pub(super) fn refusal(id: Option<RequestId>, err: &BrokerError) -> ServerFrame {
    ServerFrame::Error { id, code: code_of(err), message: err.to_string() }
}

/// The error code of a broker's failure.
pub(crate) fn code_of(err: &BrokerError) -> ErrorCode {
    match err {
        BrokerError::Unavailable { .. } => ErrorCode::Unavailable,
        BrokerError::Refused { .. } => ErrorCode::Refused,
    }
}

/// A forward slice of a log as a page.
pub(crate) fn page(channel: Channel, since: Option<Position>, slice: Slice) -> Page {
    let after = since.map_or(0, |since| since.offset);
    let first = slice.events.first().map(|(offset, _)| *offset);
    let last = slice.events.last().map_or(after, |(offset, _)| *offset);
    let same_epoch = since.is_none_or(|since| since.epoch == slice.epoch);
    let from_the_start = first.is_none_or(|first| first == after + 1);
    let complete = same_epoch && from_the_start && last == slice.head;
    let show =
        |(offset, event): &(u64, _)| PageEvent::new(Position::new(slice.epoch, *offset), event);
    let events = slice.events.iter().map(show).collect();
    Page { channel, events, position: Position::new(slice.epoch, slice.head), complete }
}
