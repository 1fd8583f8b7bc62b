//! What ties a subscription to its channel: a hold on the log, and the channel's presence.

use crate::{
    cluster::{PresenceHandle, SubscriberHandle},
    node::{ChannelHandle, ChannelLog},
};

/// What ties a subscription to its channel. Dropped, it lets go of everything. Most clients only read,
/// so what presence takes is in boxes.
#[derive(Debug)]
pub(super) struct ActiveSubscription {
    pub(super) handle: ChannelHandle,
    /// The client is told who is there.
    pub(super) onlooker: Option<Box<PresenceSubscription>>,
    /// The client shows itself.
    pub(super) entered: Option<Box<PresenceHandle>>,
    /// The client said that it does not want to be shown, before it was known whether it was.
    pub(super) hidden: bool,
}

/// A look at a channel's presence that is kept up to date.
#[derive(Debug)]
pub(super) struct PresenceSubscription {
    pub(super) watching: SubscriberHandle,
    /// The last news the client has.
    pub(super) number: u64,
    /// The client missed news while its socket was full: it is shown everything once there is room.
    pub(super) stale: bool,
}

impl ActiveSubscription {
    pub(super) fn new(handle: ChannelHandle) -> Self {
        Self { handle, onlooker: None, entered: None, hidden: false }
    }

    pub(super) fn log(&self) -> &ChannelLog {
        self.handle.log()
    }
}
