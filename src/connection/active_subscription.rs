//! What ties a session's subscription to its channel: the open log, and the channel's presence.

use crate::{
    cluster::{PresenceHandle, SubscriberHandle},
    node::{ChannelHandle, ChannelLog},
};

/// What ties a subscription to its channel. Dropping it ends all of it. Most clients only read, so
/// the parts that presence needs are boxed.
#[derive(Debug)]
pub(super) struct ActiveSubscription {
    pub(super) channel: ChannelHandle,
    /// The client receives the channel's presence.
    pub(super) presence: Option<Box<PresenceSubscription>>,
    /// The session is a member of the channel's presence.
    pub(super) membership: Option<Box<PresenceHandle>>,
    /// The client left the channel's presence before it was known whether its session was a member.
    pub(super) left_presence: bool,
}

/// A client's subscription to a channel's presence.
#[derive(Debug)]
pub(super) struct PresenceSubscription {
    pub(super) subscriber: SubscriberHandle,
    /// The last diff that the client has.
    pub(super) number: u64,
    /// The client missed a diff because its socket was full: it is sent a snapshot once there is
    /// room.
    pub(super) stale: bool,
}

impl ActiveSubscription {
    /// A subscription without presence.
    pub(super) fn new(channel: ChannelHandle) -> Self {
        Self { channel, presence: None, membership: None, left_presence: false }
    }

    /// The channel's log.
    pub(super) fn log(&self) -> &ChannelLog {
        self.channel.log()
    }
}
