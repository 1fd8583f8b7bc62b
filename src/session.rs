//! One client's session: its subscriptions with their cursors, and the checks of its frames.
//!
//! Pure: no socket, no clock, no broker, no waiting. A session has no queue; its backlog is the distance
//! between a cursor and the head of the channel's log. `L` is the link of a subscription to its log,
//! which the session keeps for the connection and does not use.

mod token_bucket;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

pub use self::token_bucket::TokenBucket;
use crate::protocol::{
    Channel, ClientFrame, ErrorCode, Position, Positions, ServerFrame, SessionId,
    frame::ResetReason,
};

/// Section `[limits]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Subscriptions of one session.
    pub subscriptions: usize,
    /// Bytes of one event's data.
    pub event_bytes: usize,
    /// Bytes of a member's presence state.
    pub presence_bytes: usize,
    /// Bytes of one WebSocket message.
    pub frame_bytes: usize,
    /// Bytes of one HTTP request's body.
    pub body_bytes: usize,
    /// Publications in one batch, and channels in one publish request.
    pub batch_events: usize,
    /// Events in one page of a channel's history.
    pub history_events: usize,
    /// Frames a client may send per second, on average.
    pub frames_per_second: u32,
    /// Frames a client may send at once.
    pub frames_burst: u32,
    /// Events a client may publish per second, on average.
    pub publishes_per_second: u32,
    /// Events a client may publish at once.
    pub publishes_burst: u32,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            subscriptions: 128,
            event_bytes: 256 << 10,
            presence_bytes: 1024,
            frame_bytes: 320 << 10,
            body_bytes: 8 << 20,
            batch_events: 1000,
            history_events: 1000,
            frames_per_second: 100,
            frames_burst: 200,
            publishes_per_second: 50,
            publishes_burst: 100,
        }
    }
}

/// One client's session on a connection. The next connection continues it with [`resume`](Self::resume).
#[derive(Debug)]
#[repr(C)]
pub struct Session<L> {
    // The first field, and inline for the one subscription that most sessions have: every delivery
    // reads it.
    subscriptions: SmallVec<[Subscription<L>; 1]>,
    id: SessionId,
    next_tag: u32,
    /// It has had several subscriptions: from then on its positions name their channels, since the
    /// client may reconnect with the URL that names all of them.
    names_channels: bool,
}

/// A subscription of a session to a channel.
#[derive(Debug)]
#[repr(C)]
pub struct Subscription<L> {
    /// The position up to which it has been delivered.
    pub cursor: Position,
    /// Its number within the session. Tags are not reused, so that a late delivery for a subscription
    /// that has ended finds none.
    pub tag: u32,
    /// Events after the cursor may be undelivered: the connection's task has to read them.
    pub behind: bool,
    /// The channel.
    pub channel: Channel,
    /// The link to the channel's log.
    pub link: L,
}

impl<L> Subscription<L> {
    /// Whether everything up to `position` has been delivered.
    pub fn has_delivered(&self, position: Position) -> bool {
        self.cursor.epoch == position.epoch && position.offset <= self.cursor.offset
    }
}

impl<L> Session<L> {
    /// A session without subscriptions.
    pub fn new(id: SessionId) -> Self {
        Self { subscriptions: SmallVec::new(), id, next_tag: 0, names_channels: false }
    }

    /// The session's id.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Continues the client's earlier session: takes its id.
    pub fn resume(&mut self, id: SessionId) {
        self.id = id;
    }

    /// Checks a frame against the limits and the session's subscriptions.
    ///
    /// # Errors
    /// The error frame that refuses it.
    pub fn check(&self, frame: &ClientFrame, limits: &LimitsConfig) -> Result<(), ServerFrame> {
        let refused = |code, message: String| Err(frame.refused(code, message));
        match frame {
            ClientFrame::Pong
            | ClientFrame::Goodbye
            | ClientFrame::Connect { token: Some(_), .. } => Ok(()),
            ClientFrame::Report { stats, .. } if REPORT_BYTES_MAX < stats.len() => {
                let message = format!("a report may have {REPORT_BYTES_MAX} bytes");
                refused(ErrorCode::TooLarge, message)
            }
            ClientFrame::Report { .. } => Ok(()),
            ClientFrame::History { limit: Some(0), .. } => refused(
                ErrorCode::Malformed,
                "the limit of a history request has to be 1 or more".to_owned(),
            ),
            ClientFrame::History { .. } => Ok(()),
            ClientFrame::Connect { .. } => {
                let message =
                    "connect has to be the first frame of a connection, or carry a new token"
                        .to_owned();
                refused(ErrorCode::Malformed, message)
            }
            ClientFrame::Subscribe { state: Some(state), .. }
            | ClientFrame::Presence { state: Some(state), .. }
                if limits.presence_bytes < state.len() =>
            {
                let (len, max) = (state.len(), limits.presence_bytes);
                let message = format!("the presence state has {len} bytes, it may have {max}");
                refused(ErrorCode::TooLarge, message)
            }
            ClientFrame::Subscribe { channel, .. } => {
                if self.is_subscribed(channel) {
                    let message = format!("this session is already subscribed to {channel}");
                    return refused(ErrorCode::AlreadySubscribed, message);
                }
                if limits.subscriptions <= self.subscriptions.len() {
                    let message =
                        format!("a session may have {} subscriptions", limits.subscriptions);
                    return refused(ErrorCode::LimitExceeded, message);
                }
                Ok(())
            }
            ClientFrame::Unsubscribe { channel, .. } | ClientFrame::Presence { channel, .. } => {
                if !self.is_subscribed(channel) {
                    let message = format!("this session is not subscribed to {channel}");
                    return refused(ErrorCode::NotSubscribed, message);
                }
                Ok(())
            }
            ClientFrame::Publish { draft, .. } => {
                let (len, max) = (draft.data.len(), limits.event_bytes);
                if max < len {
                    let message = format!("the data has {len} bytes, an event may have {max}");
                    return refused(ErrorCode::TooLarge, message);
                }
                Ok(())
            }
        }
    }

    /// Adds a subscription whose delivery starts after `cursor`. Returns its tag.
    pub fn subscribe(&mut self, channel: Channel, cursor: Position, link: L) -> u32 {
        let tag = self.next_tag;
        self.next_tag = self.next_tag.wrapping_add(1);
        self.subscriptions.push(Subscription { tag, channel, cursor, behind: true, link });
        self.names_channels |= 1 < self.subscriptions.len();
        tag
    }

    /// The subscription to a channel.
    pub fn by_channel(&mut self, channel: &Channel) -> Option<&mut Subscription<L>> {
        self.subscriptions.iter_mut().find(|subscription| subscription.channel == *channel)
    }

    /// Bytes it takes on the heap.
    pub fn heap_bytes(&self) -> usize {
        let on_heap = if self.subscriptions.spilled() { self.subscriptions.capacity() } else { 0 };
        on_heap * size_of::<Subscription<L>>()
    }

    /// All subscriptions.
    pub fn subscriptions(&mut self) -> impl Iterator<Item = &mut Subscription<L>> {
        self.subscriptions.iter_mut()
    }

    /// Removes the subscription to a channel.
    pub fn unsubscribe(&mut self, channel: &Channel) -> Option<Subscription<L>> {
        let index = self.subscriptions.iter().position(|s| s.channel == *channel)?;
        Some(self.subscriptions.remove(index))
    }

    /// Removes all subscriptions.
    pub fn unsubscribe_all(&mut self) -> Vec<Subscription<L>> {
        std::mem::take(&mut self.subscriptions).into_vec()
    }

    /// The subscription with this tag.
    pub fn by_tag(&mut self, tag: u32) -> Option<&mut Subscription<L>> {
        self.subscriptions.iter_mut().find(|subscription| subscription.tag == tag)
    }

    /// Whether its positions are written without channels. If so, the id of an event's frame is the same
    /// for all such sessions, and the frame can be shared.
    pub fn has_single_position(&self) -> bool {
        !self.names_channels
    }

    /// A subscription that is behind, other than the one with the tag `except`.
    pub fn next_behind(&mut self, except: Option<u32>) -> Option<&mut Subscription<L>> {
        self.subscriptions.iter_mut().find(|s| s.behind && Some(s.tag) != except)
    }

    /// Moves a subscription's cursor past events that can no longer be delivered. Returns the reset frame
    /// for the client.
    pub fn reset(&mut self, tag: u32, to: Position, reason: ResetReason) -> Option<ServerFrame> {
        let subscription = self.by_tag(tag)?;
        subscription.cursor = to;
        Some(ServerFrame::Reset { channel: subscription.channel.clone(), position: to, reason })
    }

    /// The cursors of all subscriptions.
    pub fn positions(&self) -> Positions {
        self.positions_with(u32::MAX, None)
    }

    /// The cursors of all subscriptions, with `position` for the one with `tag`.
    pub fn positions_with(&self, tag: u32, position: impl Into<Option<Position>>) -> Positions {
        let position = position.into();
        let cursor = |s: &Subscription<L>| position.filter(|_| s.tag == tag).unwrap_or(s.cursor);
        match self.subscriptions.as_slice() {
            [only] if !self.names_channels => Positions::One(cursor(only)),
            all => Positions::Many(all.iter().map(|s| (s.channel.clone(), cursor(s))).collect()),
        }
    }

    fn is_subscribed(&self, channel: &Channel) -> bool {
        self.subscriptions.iter().any(|subscription| subscription.channel == *channel)
    }
}

/// The most bytes of a client's report of measurements.
const REPORT_BYTES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Epoch;

    fn session_on(channels: &[&str]) -> Session<()> {
        let mut session = Session::new(SessionId::generate());
        for channel in channels {
            session.subscribe(channel.parse().unwrap(), at(3), ());
        }
        session
    }

    fn at(offset: u64) -> Position {
        Position::new(Epoch::new(35), offset)
    }

    fn refused_with(session: &Session<()>, frame: &str) -> ErrorCode {
        let limits = LimitsConfig { subscriptions: 2, event_bytes: 4, ..LimitsConfig::default() };
        match session.check(&ClientFrame::parse(frame).unwrap(), &limits) {
            Err(ServerFrame::Error { code, .. }) => code,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn a_second_subscription_to_a_channel_is_refused() {
        let session = session_on(&["news"]);
        let code = refused_with(&session, r#"{"type":"subscribe","channel":"news"}"#);
        assert_eq!(code, ErrorCode::AlreadySubscribed);
    }

    #[test]
    fn one_subscription_takes_no_heap() {
        assert_eq!(session_on(&["a"]).heap_bytes(), 0);
        let each = size_of::<Subscription<()>>();
        assert!(2 * each <= session_on(&["a", "b"]).heap_bytes());
    }

    #[test]
    fn a_subscription_over_the_limit_is_refused() {
        let session = session_on(&["a", "b"]);
        let code = refused_with(&session, r#"{"type":"subscribe","channel":"c"}"#);
        assert_eq!(code, ErrorCode::LimitExceeded);
    }

    #[test]
    fn unsubscribing_without_a_subscription_is_refused() {
        let code = refused_with(&session_on(&["a"]), r#"{"type":"unsubscribe","channel":"b"}"#);
        assert_eq!(code, ErrorCode::NotSubscribed);
    }

    #[test]
    fn an_event_over_the_limit_is_refused() {
        let code =
            refused_with(&session_on(&[]), r#"{"type":"publish","channel":"b","data":"abc"}"#);
        assert_eq!(code, ErrorCode::TooLarge);
    }

    #[test]
    fn positions_of_one_subscription_are_written_without_the_channel() {
        assert_eq!(session_on(&["a"]).positions().to_string(), "z-3");
        assert_eq!(session_on(&["a", "b"]).positions().to_string(), "a~z-3,b~z-3");
    }

    #[test]
    fn positions_keep_naming_channels_after_all_but_one_are_unsubscribed() {
        let mut session = session_on(&["a", "b"]);
        session.unsubscribe(&"a".parse().unwrap());
        assert_eq!(session.positions().to_string(), "b~z-3");
    }

    #[test]
    fn a_reset_moves_the_cursor_to_where_delivery_continues() {
        let mut session = session_on(&["a"]);
        let tag = session.next_behind(None).unwrap().tag;
        assert!(session.reset(tag, at(9), ResetReason::Expired).is_some());
        assert!(
            session.by_tag(tag).is_some_and(|s| s.has_delivered(at(9)) && !s.has_delivered(at(10)))
        );
    }
}
