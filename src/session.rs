//! The rules of one client: what it may ask for next, and how far it has read.
//!
//! Pure: no socket, no clock, no broker, nothing to wait for. A session has no queue; its backlog is
//! the distance between a cursor and the head of its log. `L` is what ties a subscription to its
//! log; the session keeps it and never looks into it.

mod allowance;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

pub use self::allowance::Allowance;
use crate::protocol::{
    Channel, ClientFrame, ErrorCode, Position, Positions, ServerFrame, SessionId,
    frame::ResetReason,
};

/// Section `[limits]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Channels one session may be subscribed to.
    pub subscriptions: usize,
    /// Bytes of one event's data.
    pub event_bytes: usize,
    /// Bytes of the state that a session shows in a channel.
    pub presence_bytes: usize,
    /// Bytes of one WebSocket message.
    pub frame_bytes: usize,
    /// Bytes of one HTTP request body.
    pub body_bytes: usize,
    /// Events in one batch, and channels in one publish call.
    pub batch_events: usize,
    /// Events in one answer of the history.
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

/// One logical client.
#[derive(Debug)]
#[repr(C)]
pub struct Session<L> {
    // In front, and not elsewhere for the one channel that most sessions read: a delivery looks here.
    subscriptions: SmallVec<[Subscription<L>; 1]>,
    id: SessionId,
    next_tag: u32,
    /// It read several channels once: from then on its positions name the channel, since a client
    /// may come back to the address that names them all.
    names_channels: bool,
}

/// A channel that a session reads.
#[derive(Debug)]
#[repr(C)]
pub struct Subscription<L> {
    /// How far it was delivered.
    pub cursor: Position,
    /// Its number within the session; never given twice, so that late news find nobody.
    pub tag: u32,
    /// There is something behind the cursor that was not delivered on the spot.
    pub behind: bool,
    /// Which.
    pub channel: Channel,
    /// What ties it to the log.
    pub link: L,
}

impl<L> Subscription<L> {
    /// Whether everything up to `position` was delivered.
    pub fn holds(&self, position: Position) -> bool {
        self.cursor.epoch == position.epoch && position.offset <= self.cursor.offset
    }
}

impl<L> Session<L> {
    /// A session that reads nothing yet.
    pub fn new(id: SessionId) -> Self {
        Self { subscriptions: SmallVec::new(), id, next_tag: 0, names_channels: false }
    }

    /// Which it is.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Takes the id the client had before.
    pub fn resume(&mut self, id: SessionId) {
        self.id = id;
    }

    /// Whether the rules allow what a frame asks for.
    ///
    /// # Errors
    /// With the frame that refuses it.
    pub fn check(&self, frame: &ClientFrame, limits: &LimitsConfig) -> Result<(), ServerFrame> {
        let refused = |code, message: String| Err(frame.refused(code, message));
        match frame {
            ClientFrame::Pong
            | ClientFrame::Goodbye
            | ClientFrame::Connect { token: Some(_), .. } => Ok(()),
            ClientFrame::Report { stats, .. } if REPORT_BYTES < stats.len() => {
                let message = format!("a report may have {REPORT_BYTES} bytes");
                refused(ErrorCode::TooLarge, message)
            }
            ClientFrame::Report { .. } => Ok(()),
            ClientFrame::History { limit: Some(0), .. } => {
                refused(ErrorCode::Malformed, "a history's limit is 1 or more".to_owned())
            }
            ClientFrame::History { .. } => Ok(()),
            ClientFrame::Connect { .. } => {
                let message =
                    "connect is the first frame of a connection, or brings a new token".to_owned();
                refused(ErrorCode::Malformed, message)
            }
            ClientFrame::Subscribe { state: Some(state), .. }
            | ClientFrame::Presence { state: Some(state), .. }
                if limits.presence_bytes < state.len() =>
            {
                let (len, most) = (state.len(), limits.presence_bytes);
                let message = format!("the state has {len} bytes, it may have {most}");
                refused(ErrorCode::TooLarge, message)
            }
            ClientFrame::Subscribe { channel, .. } => {
                if self.reads(channel) {
                    let message = format!("this session is subscribed to {channel} already");
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
                if !self.reads(channel) {
                    let message = format!("this session is not subscribed to {channel}");
                    return refused(ErrorCode::NotSubscribed, message);
                }
                Ok(())
            }
            ClientFrame::Publish { draft, .. } => {
                let (len, most) = (draft.data.len(), limits.event_bytes);
                if most < len {
                    let message = format!("the data has {len} bytes, an event may have {most}");
                    return refused(ErrorCode::TooLarge, message);
                }
                Ok(())
            }
        }
    }

    /// Begins to read a channel behind `cursor`. Returns the subscription's tag.
    pub fn open(&mut self, channel: Channel, cursor: Position, link: L) -> u32 {
        let tag = self.next_tag;
        self.next_tag = self.next_tag.wrapping_add(1);
        self.subscriptions.push(Subscription { tag, channel, cursor, behind: true, link });
        self.names_channels |= 1 < self.subscriptions.len();
        tag
    }

    /// The subscription to a channel.
    pub fn get(&mut self, channel: &Channel) -> Option<&mut Subscription<L>> {
        self.subscriptions.iter_mut().find(|subscription| subscription.channel == *channel)
    }

    /// What it takes beside itself.
    pub fn bytes_elsewhere(&self) -> usize {
        let many = if self.subscriptions.spilled() { self.subscriptions.capacity() } else { 0 };
        many * size_of::<Subscription<L>>()
    }

    /// All that it reads.
    pub fn subscriptions(&mut self) -> impl Iterator<Item = &mut Subscription<L>> {
        self.subscriptions.iter_mut()
    }

    /// Ends reading a channel.
    pub fn close(&mut self, channel: &Channel) -> Option<Subscription<L>> {
        let index = self.subscriptions.iter().position(|s| s.channel == *channel)?;
        Some(self.subscriptions.remove(index))
    }

    /// Ends reading everything.
    pub fn close_all(&mut self) -> Vec<Subscription<L>> {
        std::mem::take(&mut self.subscriptions).into_vec()
    }

    /// The subscription with this tag.
    pub fn get_mut(&mut self, tag: u32) -> Option<&mut Subscription<L>> {
        self.subscriptions.iter_mut().find(|subscription| subscription.tag == tag)
    }

    /// Whether one position says where it stands: then an event's frame is the same for all.
    pub fn tells_one_position(&self) -> bool {
        !self.names_channels
    }

    /// A subscription that has something undelivered, other than `not`.
    pub fn behind(&mut self, not: Option<u32>) -> Option<&mut Subscription<L>> {
        self.subscriptions.iter_mut().find(|s| s.behind && Some(s.tag) != not)
    }

    /// Passes over what cannot be delivered any more, and the frame that says so.
    pub fn reset(&mut self, tag: u32, to: Position, reason: ResetReason) -> Option<ServerFrame> {
        let subscription = self.get_mut(tag)?;
        subscription.cursor = to;
        Some(ServerFrame::Reset { channel: subscription.channel.clone(), position: to, reason })
    }

    /// Where the session stands in all its channels.
    pub fn positions(&self) -> Positions {
        self.positions_with(u32::MAX, None)
    }

    /// Where it will stand once `tag` was delivered up to `position`.
    pub fn positions_with(&self, tag: u32, position: impl Into<Option<Position>>) -> Positions {
        let position = position.into();
        let place = |s: &Subscription<L>| position.filter(|_| s.tag == tag).unwrap_or(s.cursor);
        match self.subscriptions.as_slice() {
            [only] if !self.names_channels => Positions::One(place(only)),
            many => Positions::Many(many.iter().map(|s| (s.channel.clone(), place(s))).collect()),
        }
    }

    fn reads(&self, channel: &Channel) -> bool {
        self.subscriptions.iter().any(|subscription| subscription.channel == *channel)
    }
}

/// Bytes of what a client measured.
const REPORT_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Epoch;

    fn session_on(channels: &[&str]) -> Session<()> {
        let mut session = Session::new(SessionId::generate());
        for channel in channels {
            session.open(channel.parse().unwrap(), at(3), ());
        }
        session
    }

    fn at(offset: u64) -> Position {
        Position::new(Epoch::new(35), offset)
    }

    fn refusal(session: &Session<()>, frame: &str) -> ErrorCode {
        let limits = LimitsConfig { subscriptions: 2, event_bytes: 4, ..LimitsConfig::default() };
        match session.check(&ClientFrame::parse(frame).unwrap(), &limits) {
            Err(ServerFrame::Error { code, .. }) => code,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn a_channel_is_subscribed_to_once() {
        let session = session_on(&["news"]);
        let code = refusal(&session, r#"{"type":"subscribe","channel":"news"}"#);
        assert_eq!(code, ErrorCode::AlreadySubscribed);
    }

    #[test]
    fn one_channel_takes_no_room_beside_the_session() {
        assert_eq!(session_on(&["a"]).bytes_elsewhere(), 0);
        let each = size_of::<Subscription<()>>();
        assert!(2 * each <= session_on(&["a", "b"]).bytes_elsewhere());
    }

    #[test]
    fn one_subscription_more_than_the_limit_is_refused() {
        let session = session_on(&["a", "b"]);
        let code = refusal(&session, r#"{"type":"subscribe","channel":"c"}"#);
        assert_eq!(code, ErrorCode::LimitExceeded);
    }

    #[test]
    fn only_what_is_subscribed_can_be_left() {
        let code = refusal(&session_on(&["a"]), r#"{"type":"unsubscribe","channel":"b"}"#);
        assert_eq!(code, ErrorCode::NotSubscribed);
    }

    #[test]
    fn an_event_over_the_limit_is_refused_before_anybody_sees_it() {
        let code = refusal(&session_on(&[]), r#"{"type":"publish","channel":"b","data":"abc"}"#);
        assert_eq!(code, ErrorCode::TooLarge);
    }

    #[test]
    fn a_session_of_one_channel_tells_a_bare_position() {
        assert_eq!(session_on(&["a"]).positions().to_string(), "z-3");
        assert_eq!(session_on(&["a", "b"]).positions().to_string(), "a~z-3,b~z-3");
    }

    #[test]
    fn a_session_of_several_channels_goes_on_naming_them() {
        let mut session = session_on(&["a", "b"]);
        session.close(&"a".parse().unwrap());
        assert_eq!(session.positions().to_string(), "b~z-3");
    }

    #[test]
    fn a_reset_moves_the_cursor_to_where_delivery_goes_on() {
        let mut session = session_on(&["a"]);
        let tag = session.behind(None).unwrap().tag;
        assert!(session.reset(tag, at(9), ResetReason::Expired).is_some());
        assert!(session.get_mut(tag).is_some_and(|s| s.holds(at(9)) && !s.holds(at(10))));
    }
}
