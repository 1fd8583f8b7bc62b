//! Section `[connection]`: timeouts and delays of a connection.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Section `[connection]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectionConfig {
    /// A WebSocket client sends its first frame within this time.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// A ping is sent this often; a WebSocket client that is silent for twice as long is closed.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// A client whose socket accepts no bytes for this long is closed.
    #[serde(with = "humantime_serde")]
    pub stall_timeout: Duration,
    /// The delay after which an EventSource reconnects (SSE `retry:`).
    #[serde(with = "humantime_serde")]
    pub sse_retry: Duration,
    /// When the node stops, each client is told to reconnect at a random moment within this time.
    #[serde(with = "humantime_serde")]
    pub drain_spread: Duration,
}

impl Default for ConnectionConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            heartbeat: Duration::from_secs(25),
            stall_timeout: Duration::from_secs(60),
            sse_retry: Duration::from_secs(2),
            drain_spread: Duration::from_secs(5),
        }
    }
}
