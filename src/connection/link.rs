//! What ties a subscription to its channel: a hold on the log, and the channel's presence.

use crate::{
    cluster::{Entered, Watching},
    node::{ChannelLog, Hold},
};

/// What ties a subscription to its channel. Dropped, it lets go of everything. Most clients only read,
/// so what presence takes is in boxes.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) hold: Hold,
    /// The client is told who is there.
    pub(super) onlooker: Option<Box<Onlooker>>,
    /// The client shows itself.
    pub(super) entered: Option<Box<Entered>>,
    /// The client said that it does not want to be shown, before it was known whether it was.
    pub(super) hidden: bool,
}

/// A look at a channel's presence that is kept up to date.
#[derive(Debug)]
pub(super) struct Onlooker {
    pub(super) watching: Watching,
    /// The last news the client has.
    pub(super) number: u64,
    /// The client missed news while its socket was full: it is shown everything once there is room.
    pub(super) stale: bool,
}

impl Link {
    pub(super) fn new(hold: Hold) -> Self {
        Self { hold, onlooker: None, entered: None, hidden: false }
    }

    pub(super) fn log(&self) -> &ChannelLog {
        self.hold.log()
    }
}
