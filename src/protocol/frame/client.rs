//! Client frames: the requests of a session.

use crate::protocol::{Channel, Data, Draft, ErrorCode, Position, ServerFrame, SessionId, Token};

/// The number that a client gives a request; the reply repeats it.
pub type RequestId = u64;

/// What a client sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientFrame {
    /// As the first frame: identifies the client. Later: renews its token.
    Connect {
        /// The request's number.
        id: Option<RequestId>,
        /// The token; none where the handshake carried it or none is needed.
        token: Option<Token>,
        /// The session that the client had before.
        session: Option<SessionId>,
        /// The session's connection so far stays open for a while: the client migrates.
        overlap: bool,
        /// What the client says of itself.
        about: About,
    },
    /// Deliver a channel, after a position or from now on.
    Subscribe {
        /// The request's number.
        id: Option<RequestId>,
        /// The channel.
        channel: Channel,
        /// The last position that the client holds.
        since: Option<Position>,
        /// Deliver the channel's presence too.
        presence: bool,
        /// Join the channel's presence with this state.
        state: Option<Data>,
    },
    /// Join a channel's presence, change the state in it, or leave it.
    Presence {
        /// The request's number.
        id: Option<RequestId>,
        /// The channel.
        channel: Channel,
        /// The state; none leaves.
        state: Option<Data>,
    },
    /// Stop delivering a channel.
    Unsubscribe {
        /// The request's number.
        id: Option<RequestId>,
        /// The channel.
        channel: Channel,
    },
    /// Append an event to a channel.
    Publish {
        /// The request's number.
        id: Option<RequestId>,
        /// The channel.
        channel: Channel,
        /// The event.
        draft: Draft,
    },
    /// Read a channel's log once, without subscribing.
    History {
        /// The request's number.
        id: Option<RequestId>,
        /// The channel.
        channel: Channel,
        /// Read after this position; from the oldest kept event without it.
        since: Option<Position>,
        /// At most this many events.
        limit: Option<usize>,
    },
    /// What the client measured since its last report.
    Report {
        /// The request's number.
        id: Option<RequestId>,
        /// The measurements, as sent.
        stats: Data,
    },
    /// The client leaves on purpose: its disconnect is no interruption.
    Goodbye,
    /// The answer to a ping.
    Pong,
}

/// What a client says of itself. Longer texts are cut to 64 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// The software, such as `web/0.1.0`. A client that states it understands `migrate`.
    pub client: Option<Box<str>>,
    /// An id of the client's own that outlives the session; rollouts use it where there is no user.
    pub unit: Option<Box<str>>,
    /// Whether it connected to an address of the legacy system. Set by the gateway.
    pub legacy_address: bool,
}

/// Bytes kept of each text that a client says of itself.
const ABOUT_BYTES: usize = 64;

impl About {
    /// What a client said of itself, cut to what is kept.
    pub fn new(client: Option<&str>, unit: Option<&str>) -> Self {
        let cut = |text: &str| Box::from(&text[..text.floor_char_boundary(ABOUT_BYTES)]);
        let kept = |text: Option<&str>| text.filter(|text| !text.is_empty()).map(cut);
        Self { client: kept(client), unit: kept(unit), legacy_address: false }
    }
}

impl ClientFrame {
    /// The number that the reply repeats.
    pub fn id(&self) -> Option<RequestId> {
        match self {
            Self::Connect { id, .. }
            | Self::Subscribe { id, .. }
            | Self::Unsubscribe { id, .. }
            | Self::Publish { id, .. }
            | Self::Presence { id, .. }
            | Self::Report { id, .. }
            | Self::History { id, .. } => *id,
            Self::Goodbye | Self::Pong => None,
        }
    }

    /// The reply that refuses it.
    pub fn refused(&self, code: ErrorCode, message: String) -> ServerFrame {
        ServerFrame::Error { id: self.id(), code, message }
    }
}
