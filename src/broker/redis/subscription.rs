//! Requests to a shard's subscriber, and why one fails.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::protocol::Channel;

/// A request to a shard's subscriber.
#[derive(Debug)]
pub(super) enum SubscriptionRequest {
    /// Subscribe to a channel, and respond when the server has confirmed it.
    Subscribe(Channel, oneshot::Sender<Result<(), NotSubscribed>>),
    /// Unsubscribe from it.
    Unsubscribe(Channel),
}

/// Why a channel is not subscribed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NotSubscribed {
    /// Another shard owns the channel.
    Moved,
    /// For this reason.
    Because(Arc<str>),
}
