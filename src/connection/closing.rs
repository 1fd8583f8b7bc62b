//! Closing a connection: the goodbye, and the time a client has to read it.

use std::{io, time::Duration};

use rand::Rng as _;
use tracing::debug;

use super::{
    client::Client,
    close_reason::CloseReason,
    delivery::WriteOutcome,
    socket::Socket,
    task::{Connection, READ_BYTES},
};
use crate::{
    metrics::CloseLabel,
    protocol::{CloseCode, ServerFrame},
};

/// How long a client may take to read the goodbye before its socket is dropped.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// No client is asked to reconnect sooner than this.
const RECONNECT_MIN: Duration = Duration::from_millis(100);

impl Connection {
    /// Says goodbye, ends all subscriptions, and lets the client read what was written.
    pub(super) async fn close(&mut self, code: CloseCode) {
        // Pending events that are in memory go out first: they need not be read again elsewhere.
        let _ = self.client.write_pending();
        self.connections.record_disconnect(&self.client, code);
        self.release();
        let goodbye = (code != CloseCode::Normal).then(|| self.goodbye(code));
        {
            let mut state = self.client.state();
            let bytes = state.replies.close(code, goodbye.as_ref());
            if !bytes.is_empty() {
                self.client.send_bytes(&mut state, bytes);
            }
        }
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, drain(&self.client)).await;
        let metrics = self.connections.node.metrics();
        metrics.connections_closed.get_or_create(&CloseLabel { code: code.number() }).inc();
        debug!(code = code.number(), reason = code.as_str(), "connection closed");
    }

    /// What a client is told before the connection closes.
    fn goodbye(&self, code: CloseCode) -> ServerFrame {
        let requested =
            self.client.state().close_reason().filter(|reason| reason.code == code).cloned();
        let CloseReason { reconnect, reason, .. } = requested.unwrap_or_else(|| code.into());
        let reconnect = reconnect.unwrap_or_else(|| code.reconnect());
        ServerFrame::Goodbye {
            code: code.number(),
            reason: reason.unwrap_or_else(|| code.as_str().into()),
            reconnect,
            after: if reconnect { self.reconnect_after(code) } else { 0 },
        }
    }

    /// The milliseconds that a client is asked to wait before it reconnects.
    fn reconnect_after(&self, code: CloseCode) -> u64 {
        let config = &self.connections.config;
        let max = match code {
            CloseCode::Draining => config.drain_spread,
            _ => config.sse_retry,
        };
        rand::rng().random_range(RECONNECT_MIN..=max.max(RECONNECT_MIN)).as_millis() as u64
    }
}

/// Writes what is unsent, and waits until the client has closed its side.
async fn drain(client: &Client) {
    while let WriteOutcome::Blocked | WriteOutcome::More = client.write_pending() {
        client.socket.writable().await;
        client.socket_writable();
    }
    client.socket.end_writing();
    // Dropping a socket with unread bytes resets it, and the goodbye with it.
    while discard_unread(&client.socket) {
        client.socket.readable().await;
    }
}

/// Discards what the client sent after the close. Returns whether it may send more.
fn discard_unread(socket: &Socket) -> bool {
    // In a function of its own: a buffer in a future is a buffer in every connection.
    let mut buffer = [0; READ_BYTES];
    match socket.try_read(&mut buffer) {
        Ok(0) => false,
        Ok(_) => true,
        Err(err) => err.kind() == io::ErrorKind::WouldBlock,
    }
}
