//! Commands that come up from the cluster to the connections of this node.

use super::message::{Claim, Disconnect};
use crate::{presence::NodeId, protocol::MemberId};

/// Something that this node's connections have to do.
#[derive(Debug)]
pub enum Command {
    /// Release a session that has a new connection.
    Takeover {
        /// The node of the new connection.
        node: NodeId,
        /// The connection.
        claim: Claim,
    },
    /// Repeat the claims that have not been read back: they may have been lost.
    RepeatClaims,
    /// Disconnect sessions.
    Disconnect(Disconnect),
    /// Perform what a client asks for beside its stream.
    Perform {
        /// The session of the stream.
        session: MemberId,
        /// The requests, as they were POSTed.
        frames: String,
        /// Where the response goes.
        origin: RequestOrigin,
    },
}

/// The node that waits for a response, and the request's number there.
#[derive(Clone, Copy, Debug)]
pub struct RequestOrigin {
    pub(super) node: NodeId,
    pub(super) number: u64,
}
