//! What a client says and what the gateway answers, as two closed enums.
//!
//! A client frame is parsed here, once and whole: a [`ClientFrame`] that exists needs no further
//! look. Unknown fields are passed over, so that a newer client can talk to an older gateway.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::{
    Channel, CloseCode, Data, Draft, ErrorCode, Event, EventName, MemberId, MessageId, Position,
    PresenceFrame, SessionId, Token,
};

/// The number a client gives a request; the reply repeats it.
pub type RequestId = u64;

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientFrame {
    /// The first frame, or none: who it is. Later: a new token for the same user.
    Connect {
        /// Its number.
        id: Option<RequestId>,
        /// Who it is.
        token: Option<Token>,
        /// The session it had before.
        session: Option<SessionId>,
        /// It moves by plan: the session's connection so far may go on for a while.
        overlap: bool,
        /// What the client says of itself.
        about: About,
    },
    /// Deliver this channel, from this position on or from now on.
    Subscribe {
        /// Its number.
        id: Option<RequestId>,
        /// What to deliver.
        channel: Channel,
        /// The last position the client holds.
        since: Option<Position>,
        /// Tell who is there, and who comes and goes.
        presence: bool,
        /// Show the session in the channel, with this.
        state: Option<Data>,
    },
    /// Show the session in a channel, or no longer.
    Presence {
        /// Its number.
        id: Option<RequestId>,
        /// Where.
        channel: Channel,
        /// With this; none: no longer.
        state: Option<Data>,
    },
    /// Deliver it no longer.
    Unsubscribe {
        /// Its number.
        id: Option<RequestId>,
        /// What not to deliver.
        channel: Channel,
    },
    /// Append an event to a channel.
    Publish {
        /// Its number.
        id: Option<RequestId>,
        /// Where to.
        channel: Channel,
        /// The event.
        draft: Draft,
    },
    /// Read a channel's log once, without subscribing.
    History {
        /// Its number.
        id: Option<RequestId>,
        /// Which log.
        channel: Channel,
        /// Behind this position; from the oldest kept event on without it.
        since: Option<Position>,
        /// At most so many events.
        limit: Option<usize>,
    },
    /// What the client measured since its last report.
    Report {
        /// Its number.
        id: Option<RequestId>,
        /// The figures, as they came.
        stats: Data,
    },
    /// The client leaves by its own will: that it goes is no interruption.
    Goodbye,
    /// The answer to a ping.
    Pong,
}

/// What a client says of itself. Both are short: what is longer is cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Which software it is, such as `web/0.1.0`. One that says so understands `migrate`.
    pub client: Option<Box<str>>,
    /// An id of its own that outlives the session, for rollouts where there is no user.
    pub unit: Option<Box<str>>,
    /// It came to an address of the system before this one. Nobody says so: it is seen.
    pub old_address: bool,
}

/// Bytes of what a client says of itself.
const ABOUT_BYTES: usize = 64;

impl About {
    /// Takes what was said, cut to what is kept.
    pub fn new(client: Option<&str>, unit: Option<&str>) -> Self {
        let cut = |text: &str| Box::from(&text[..text.floor_char_boundary(ABOUT_BYTES)]);
        let said = |text: Option<&str>| text.filter(|text| !text.is_empty()).map(cut);
        Self { client: said(client), unit: said(unit), old_address: false }
    }
}

impl ClientFrame {
    /// The number its reply repeats.
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

    /// The answer that refuses it.
    pub fn refused(&self, code: ErrorCode, message: String) -> ServerFrame {
        ServerFrame::Error { id: self.id(), code, message }
    }

    /// Reads one frame.
    ///
    /// # Errors
    /// [`FrameError`] says what is wrong, for which request, and whether the connection can go on.
    pub fn parse(text: &str) -> Result<Self, FrameError> {
        let fields: Fields<'_> = serde_json::from_str(text).map_err(|err| FrameError {
            id: None,
            code: ErrorCode::Malformed,
            message: format!("a frame is a JSON object with a \"type\": {err}"),
            fatal: true,
        })?;
        let id = fields.id;
        fields.into_frame().map_err(|(code, message)| FrameError {
            id,
            code,
            message,
            fatal: false,
        })
    }
}

/// Why a frame was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FrameError {
    /// The request it answers, if the frame had a number.
    pub id: Option<RequestId>,
    /// What kind of mistake.
    pub code: ErrorCode,
    /// What is wrong and what would be right.
    pub message: String,
    /// The connection is closed: what came is no frame at all.
    pub fatal: bool,
}

/// Every field any client frame has.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(rename = "type")]
    kind: String,
    id: Option<RequestId>,
    token: Option<String>,
    session: Option<String>,
    channel: Option<String>,
    since: Option<String>,
    name: Option<String>,
    message_id: Option<String>,
    limit: Option<usize>,
    client: Option<String>,
    unit: Option<String>,
    #[serde(default)]
    overlap: bool,
    #[serde(default)]
    presence: bool,
    #[serde(borrow, default, deserialize_with = "present")]
    state: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    stats: Option<&'a RawValue>,
}

/// A field that may be absent, but is there when it is `null`.
///
/// # Errors
/// Those of the field itself.
pub fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

type Refusal = (ErrorCode, String);

impl Fields<'_> {
    fn into_frame(self) -> Result<ClientFrame, Refusal> {
        let id = self.id;
        match self.kind.as_str() {
            "connect" => {
                let session = self.session.as_deref().map(str::parse).transpose();
                let session = session.map_err(because(ErrorCode::SessionUnknown))?;
                let token = self.token.map(Token::new);
                let about = About::new(self.client.as_deref(), self.unit.as_deref());
                Ok(ClientFrame::Connect { id, token, session, overlap: self.overlap, about })
            }
            "subscribe" => Ok(ClientFrame::Subscribe {
                id,
                channel: self.channel()?,
                since: self.since()?,
                presence: self.presence,
                state: self.state.filter(|state| state.get() != "null").map(Data::from),
            }),
            "unsubscribe" => Ok(ClientFrame::Unsubscribe { id, channel: self.channel()? }),
            "publish" => {
                Ok(ClientFrame::Publish { id, channel: self.channel()?, draft: self.draft()? })
            }
            "history" => Ok(ClientFrame::History {
                id,
                channel: self.channel()?,
                since: self.since()?,
                limit: self.limit,
            }),
            "presence" => Ok(ClientFrame::Presence {
                id,
                channel: self.channel()?,
                state: self.presence_state()?,
            }),
            "report" => match self.stats {
                Some(stats) => Ok(ClientFrame::Report { id, stats: Data::from(stats) }),
                None => Err((ErrorCode::Malformed, "report needs \"stats\"".to_owned())),
            },
            "goodbye" => Ok(ClientFrame::Goodbye),
            "pong" => Ok(ClientFrame::Pong),
            other => Err((
                ErrorCode::UnknownType,
                format!(
                    "no frame has the type {other:?}: \
                     connect, subscribe, unsubscribe, publish, presence, history, report, goodbye and \
                     pong have"
                ),
            )),
        }
    }

    fn channel(&self) -> Result<Channel, Refusal> {
        let Some(raw) = self.channel.as_deref() else {
            return Err((ErrorCode::ChannelInvalid, format!("{} needs a \"channel\"", self.kind)));
        };
        raw.parse().map_err(because(ErrorCode::ChannelInvalid))
    }

    fn since(&self) -> Result<Option<Position>, Refusal> {
        let since = self.since.as_deref().map(str::parse).transpose();
        since.map_err(because(ErrorCode::PositionInvalid))
    }

    /// `null` takes the session away.
    fn presence_state(&self) -> Result<Option<Data>, Refusal> {
        match self.state {
            None => {
                let message = "presence needs \"state\": any JSON, or null to leave".to_owned();
                Err((ErrorCode::Malformed, message))
            }
            Some(state) if state.get() == "null" => Ok(None),
            Some(state) => Ok(Some(Data::from(state))),
        }
    }

    fn draft(&self) -> Result<Draft, Refusal> {
        let Some(data) = self.data else {
            return Err((ErrorCode::Malformed, "publish needs \"data\", any JSON".to_owned()));
        };
        draft(self.message_id.as_deref(), self.name.as_deref(), data)
    }
}

/// Makes a draft of a publisher's fields, with a new id where it gave none.
///
/// # Errors
/// With the code and a sentence for the first field that is not right.
pub fn draft(
    id: Option<&str>,
    name: Option<&str>,
    data: &RawValue,
) -> Result<Draft, (ErrorCode, String)> {
    let id = id.map(str::parse::<MessageId>).transpose();
    let name = name.map(str::parse::<EventName>).transpose();
    Ok(Draft {
        id: id.map_err(because(ErrorCode::IdInvalid))?.unwrap_or_else(MessageId::generate),
        name: name.map_err(because(ErrorCode::NameInvalid))?,
        data: Data::from(data),
    })
}

/// The refusal with `code` that a parser's own sentence makes.
fn because<E: ToString>(code: ErrorCode) -> impl Fn(E) -> Refusal {
    move |err| (code, err.to_string())
}

/// What the gateway answers.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerFrame {
    /// The session is open.
    Welcome {
        /// The connect frame's number.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
        /// To come back with. Who knows it can take the session over.
        session: SessionId,
        /// By this name others see it.
        member: MemberId,
        /// Which node this is.
        node: Arc<str>,
        /// Milliseconds between two pings; silence of twice that ends the connection.
        heartbeat: u64,
        /// The node's clock, in milliseconds since 1970.
        time: u64,
        /// Of the protocol.
        version: u32,
    },
    /// The channel is delivered from here on.
    Subscribed {
        /// The request's number.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
        /// Which channel.
        channel: Channel,
        /// Where the log stood; what was missed up to here follows.
        position: Position,
        /// Whether everything behind the `since` of the request follows.
        recovered: bool,
        /// Who is there, if that was asked for.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[serde(flatten)]
        presence: Option<Box<PresenceFrame>>,
    },
    /// Who is in a channel, or who came and went.
    Presence {
        /// Which channel.
        channel: Channel,
        /// What is told.
        #[serde(flatten)]
        news: Box<PresenceFrame>,
    },
    /// The session shows itself in a channel, or no longer: the reply to a presence frame.
    Shown {
        /// The request's number.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
        /// Which channel.
        channel: Channel,
        /// By which name; none when it left.
        #[serde(skip_serializing_if = "Option::is_none")]
        session: Option<MemberId>,
    },
    /// The channel is delivered no longer.
    Unsubscribed {
        /// The request's number; none when the gateway took it away.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
        /// Which channel.
        channel: Channel,
        /// Why the gateway took it away.
        #[serde(skip_serializing_if = "Option::is_none")]
        code: Option<ErrorCode>,
    },
    /// The token expires soon: send a new one in a connect frame.
    Expiring {
        /// In so many milliseconds.
        #[serde(rename = "in")]
        within: u64,
    },
    /// Something was missed that the log no longer holds: load the state anew.
    Reset {
        /// Which channel.
        channel: Channel,
        /// Delivery goes on behind this position.
        position: Position,
        /// Why.
        reason: ResetReason,
    },
    /// The event is in the log.
    Published {
        /// The request's number.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
        /// The event's own id.
        message_id: MessageId,
        /// Where it stands.
        position: Position,
        /// It was there already; the position is that of the first try.
        duplicate: bool,
    },
    /// A piece of a channel's log.
    History {
        /// The request's number.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
        /// The piece.
        #[serde(flatten)]
        page: Page,
    },
    /// The connection ends, and what to do then.
    Goodbye {
        /// The close code.
        code: u16,
        /// In words.
        reason: Arc<str>,
        /// Whether to come back.
        reconnect: bool,
        /// After so many milliseconds.
        after: u64,
    },
    /// Go over to another transport with the session and the positions held, then leave this one.
    Migrate {
        /// `websocket` or `sse`.
        transport: &'static str,
        /// At a moment of the client's own within so many milliseconds.
        within: u64,
        /// Why.
        reason: Arc<str>,
    },
    /// Say `pong`.
    Ping {
        /// The node's clock, in milliseconds since 1970.
        time: u64,
    },
    /// The request was refused.
    Error {
        /// The request's number.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<RequestId>,
        /// What kind of refusal.
        code: ErrorCode,
        /// What is wrong and what would be right.
        message: String,
    },
}

impl ServerFrame {
    /// The goodbye that goes with a close code.
    pub fn goodbye(code: CloseCode, after_ms: u64) -> Self {
        Self::Goodbye {
            code: code.number(),
            reason: code.as_str().into(),
            reconnect: code.reconnect(),
            after: after_ms,
        }
    }
}

impl From<FrameError> for ServerFrame {
    fn from(err: FrameError) -> Self {
        Self::Error { id: err.id, code: err.code, message: err.message }
    }
}

/// Why a subscriber has to load its state anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ResetReason {
    /// The log no longer holds what was missed.
    Expired,
    /// The log was lost or recreated.
    Epoch,
}

/// A piece of a channel's log, as it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct Page {
    /// Which channel.
    pub channel: Channel,
    /// The events, in the order asked for.
    pub events: Vec<PageEvent>,
    /// The head of the log when it was read.
    pub position: Position,
    /// Whether the piece holds all there is between `since` and the head.
    pub complete: bool,
}

/// An event as a page shows it.
#[derive(Clone, Debug, Serialize)]
pub struct PageEvent {
    /// The same id is the same event.
    pub id: MessageId,
    /// What kind of event it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<EventName>,
    /// Its content.
    pub data: Data,
    /// Where it stands.
    pub position: Position,
    /// When the broker accepted it, in milliseconds since 1970.
    pub time: u64,
}

impl PageEvent {
    /// Shows an event at its position.
    pub fn new(position: Position, event: &Event) -> Self {
        Self {
            id: event.id.clone(),
            name: event.name.clone(),
            data: event.data.clone(),
            position,
            time: event.time,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(text: &str) -> FrameError {
        ClientFrame::parse(text).unwrap_err()
    }

    #[test]
    fn a_subscription_with_a_position_is_understood() {
        let frame = ClientFrame::parse(
            r#"{"type":"subscribe","id":2,"channel":"orders:42","since":"k3f9-17","new":[1]}"#,
        );
        let expected = ClientFrame::Subscribe {
            id: Some(2),
            channel: "orders:42".parse().unwrap(),
            since: Some("k3f9-17".parse().unwrap()),
            presence: false,
            state: None,
        };
        assert_eq!(frame, Ok(expected));
    }

    #[test]
    fn a_refusal_names_the_request_and_lets_the_connection_live() {
        let err = refused(r#"{"type":"subscribe","id":7,"channel":"a b"}"#);
        assert_eq!((err.id, err.code, err.fatal), (Some(7), ErrorCode::ChannelInvalid, false));
        let err = refused(r#"{"type":"dance","id":8}"#);
        assert_eq!((err.id, err.code, err.fatal), (Some(8), ErrorCode::UnknownType, false));
        let err = refused(r#"{"type":"publish","id":9,"channel":"a"}"#);
        assert_eq!((err.id, err.code, err.fatal), (Some(9), ErrorCode::Malformed, false));
    }

    #[test]
    fn null_is_data_too() {
        let frame = ClientFrame::parse(r#"{"type":"publish","channel":"a","data":null}"#);
        assert!(matches!(frame, Ok(ClientFrame::Publish { draft, .. }) if draft.data.len() == 4));
    }

    #[test]
    fn what_is_no_object_with_a_type_ends_the_connection() {
        for text in ["", "{", "[]", "1", "{}", r#"{"type":1}"#, r#"{"type":"pong","id":"x"}"#] {
            assert!(refused(text).fatal, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".*") {
            let _ = ClientFrame::parse(&text);
        }

        #[test]
        fn no_field_makes_the_parser_panic(kind in "connect|subscribe|publish|history", text in ".*") {
            let text = serde_json::json!({
                "type": kind, "channel": text, "since": text, "name": text,
                "message_id": text, "session": text, "data": text,
            });
            let _ = ClientFrame::parse(&text.to_string());
        }
    }
}
