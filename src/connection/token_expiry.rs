//! When a client's token expires, and a warning before that.

use std::{
    pin::Pin,
    time::{Duration, SystemTime},
};

use tokio::time::{Sleep, sleep};

use super::client::Client;

/// A client is warned this long before its token expires, or at half of what is left when that is
/// less.
const WARNING: Duration = Duration::from_secs(30);

/// What the timer calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExpiryEvent {
    /// The token expires within this time.
    Near(Duration),
    /// The token has expired.
    Expired,
}

/// The expiry of one client's token. Costs nothing where there is none.
#[derive(Default)]
pub(super) struct TokenExpiry {
    at: Option<SystemTime>,
    timer: Option<(Pin<Box<Sleep>>, ExpiryEvent)>,
}

impl TokenExpiry {
    /// Reads the client's token. Returns whether its expiry is another than before.
    pub(super) fn watch(&mut self, client: &Client) -> bool {
        let at = client.state().identity.as_ref().and_then(|identity| identity.expires_at);
        if self.at == at {
            return false;
        }
        self.at = at;
        self.timer = at.map(|at| {
            let left = at.duration_since(SystemTime::now()).unwrap_or_default();
            let warning = WARNING.min(left / 2);
            (new_timer(left - warning), ExpiryEvent::Near(warning))
        });
        true
    }

    /// Waits for the warning, then for the expiry. Cancel-safe: the timer keeps running.
    pub(super) async fn next(&mut self) -> ExpiryEvent {
        let Some((timer, event)) = &mut self.timer else { return std::future::pending().await };
        timer.as_mut().await;
        let event = *event;
        self.timer = match event {
            ExpiryEvent::Near(within) => Some((new_timer(within), ExpiryEvent::Expired)),
            ExpiryEvent::Expired => None,
        };
        event
    }
}

fn new_timer(after: Duration) -> Pin<Box<Sleep>> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a timer of the connection's, awaited beside the rest"
    )]
    Box::pin(sleep(after))
}
