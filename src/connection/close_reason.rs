//! Why the gateway closes a connection that works.

use std::sync::Arc;

use crate::protocol::CloseCode;

/// Why the gateway closes a connection, and what its client should do then.
#[derive(Clone, Debug)]
pub(super) struct CloseReason {
    pub(super) code: CloseCode,
    /// Whether to reconnect, where that differs from what the code says.
    pub(super) reconnect: Option<bool>,
    /// The reason in words, where it differs from what the code says.
    pub(super) reason: Option<Arc<str>>,
}

impl From<CloseCode> for CloseReason {
    fn from(code: CloseCode) -> Self {
        Self { code, reconnect: None, reason: None }
    }
}
