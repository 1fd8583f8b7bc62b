//! A connected client: what the fan-out and the connection's task share.
//!
//! Anyone may queue a reply or ask the connection to close; `delivery` writes. There is no queue of
//! events: what a client has not read yet stays in the log.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::Notify;

use super::{
    active_subscription::ActiveSubscription, client_state::ClientState, close_reason::CloseReason,
    socket::Socket,
};
use crate::{
    lifecycle,
    node::{Node, Tag},
    protocol::{Position, ServerFrame, frame::ResetReason},
    session::Session,
    wire::{Replies, WireFormat},
};

/// A connected client.
///
/// The order of the fields, here and in its state, is that in which a delivery touches them, so that
/// they lie side by side. With thousands of clients none of it is in the CPU's cache, and each cache
/// line that has to be fetched shows.
#[repr(C)]
pub struct Client {
    pub(super) socket: Socket,
    pub(super) delivered: Counter,
    pub(super) format: WireFormat,
    state: Mutex<ClientState>,
    pub(super) node: Arc<Node>,
    /// Wakes the connection's task.
    pub(super) wake: Notify,
    /// The connection's number on this node.
    pub(super) number: u64,
    /// When it connected, in milliseconds since 1970.
    pub(super) connected_at: u64,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("format", &self.format).finish_non_exhaustive()
    }
}

impl Client {
    /// A client that subscribes to nothing yet.
    pub(super) fn new(
        socket: Socket,
        (format, replies): (WireFormat, Box<dyn Replies>),
        node: Arc<Node>,
        (number, delivered): (u64, Counter),
        session: Session<ActiveSubscription>,
    ) -> Self {
        let state = Mutex::new(ClientState::new(session, replies));
        let wake = Notify::new();
        let connected_at = lifecycle::unix_ms();
        Self { socket, delivered, format, state, node, wake, number, connected_at }
    }

    /// Locks the client's state. The lock is brief and never held across an `await`.
    pub(super) fn state(&self) -> MutexGuard<'_, ClientState> {
        self.state.lock()
    }

    /// Bytes of memory that the client takes in this process, the kernel's buffers not counted.
    pub(super) fn memory(&self, state: &ClientState) -> u64 {
        let unsent: usize = state.unsent.iter().map(Bytes::len).sum();
        (size_of::<Self>() + unsent + state.session.heap_bytes()) as u64
    }

    /// Queues a frame after what is unsent already.
    pub(super) fn send(&self, state: &mut ClientState, frame: &ServerFrame) {
        let ClientState { replies, session, .. } = state;
        let bytes = replies.frame(frame, &|| session.positions());
        if !bytes.is_empty() {
            state.unsent.push_back(bytes);
        }
    }

    /// Queues bytes after what is unsent already.
    pub(super) fn send_bytes(&self, state: &mut ClientState, bytes: Bytes) {
        state.unsent.push_back(bytes);
    }

    /// Asks the connection's task to close. The first reason counts.
    pub(super) fn close(&self, reason: CloseReason) {
        self.state().request_close(reason);
        self.wake.notify_one();
    }

    /// Tells the client that events are lost, and moves the subscription's cursor to `to`.
    pub(super) fn reset(
        &self,
        state: &mut ClientState,
        tag: Tag,
        to: Position,
        reason: ResetReason,
    ) {
        if let Some(frame) = state.session.reset(tag, to, reason) {
            self.node.metrics().resets.inc();
            self.send(state, &frame);
        }
    }
}
