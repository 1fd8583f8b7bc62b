//! Requests to the node that has a session's stream, and responses to those of other nodes.

use std::time::Duration;

use tokio::sync::oneshot;

use super::{command::RequestOrigin, message::Payload, shared::Cluster};
use crate::protocol::MemberId;

/// How long another node may take to respond.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(3);

/// Bytes of a request to another node and of a response: they share the log with everything else that
/// nodes send.
const REQUEST_BYTES: usize = 512 << 10;
const RESPONSE_BYTES: usize = 1 << 20;

/// The response in place of one that is too large.
const TOO_LARGE: &str = r#"{"type":"error","code":"too_large","message":"performed, but the reply is too large to be passed between nodes: ask for less at once"}"#;

/// A request that waits for its response; whoever stops waiting withdraws it.
struct PendingRequest<'a> {
    cluster: &'a Cluster,
    number: u64,
}

impl Drop for PendingRequest<'_> {
    fn drop(&mut self) {
        self.cluster.pending.remove(&self.number);
    }
}

impl Cluster {
    /// Has the node with a session's stream perform what its client asks for. None if no node responds.
    pub async fn request(&self, session: MemberId, frames: String) -> Option<String> {
        if REQUEST_BYTES < frames.len() {
            return None;
        }
        let Ok(_permit) = self.request_permits.try_acquire() else { return None };
        let number = self.next_number();
        let (response, responded) = oneshot::channel();
        let pending = PendingRequest { cluster: self, number };
        {
            let mut state = self.state.lock();
            if state.last_heard.keys().all(|node| *node == self.me) {
                return None;
            }
            self.pending.insert(number, response);
            self.send(&mut state, &Payload::Request { number, session, frames });
        }
        let responded = tokio::time::timeout(RESPONSE_TIMEOUT, responded).await;
        drop(pending);
        responded.ok()?.ok()
    }

    /// Responds to a request of another node.
    pub fn respond(&self, origin: RequestOrigin, replies: String) {
        let RequestOrigin { node, number } = origin;
        let replies = if RESPONSE_BYTES < replies.len() { TOO_LARGE.to_owned() } else { replies };
        self.send(&mut self.state.lock(), &Payload::Response { to: node, number, replies });
    }
}
