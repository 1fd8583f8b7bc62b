//! Parses the JSON form of a client frame.
//!
//! Unknown fields are ignored, so that a newer client can talk to an older gateway; only in a publish
//! frame they are refused, since what they say would be missing in the event.

use serde::{Deserialize, Deserializer, de::IgnoredAny};
use serde_json::value::RawValue;

use super::{About, ClientFrame, RequestId};
use crate::protocol::{Channel, Data, Draft, ErrorCode, EventName, MessageId, Position, Token};

impl ClientFrame {
    /// Parses one frame.
    ///
    /// # Errors
    /// [`FrameError`] says what is wrong, in which request, and whether the connection can go on.
    pub fn parse(text: &str) -> Result<Self, FrameError> {
        let fields: Fields<'_> = serde_json::from_str(text).map_err(|err| FrameError {
            id: None,
            code: ErrorCode::Malformed,
            message: format!("a frame is a JSON object with a \"type\": {err}"),
            fatal: true,
        })?;
        let id = fields.id;
        fields.into_frame(text).map_err(|(code, message)| FrameError {
            id,
            code,
            message,
            fatal: false,
        })
    }
}

/// Why a frame is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FrameError {
    /// The request it answers, if the frame had a number.
    pub id: Option<RequestId>,
    /// The kind of mistake.
    pub code: ErrorCode,
    /// What is wrong and what would be right.
    pub message: String,
    /// The text is no frame at all: the connection is closed.
    pub fatal: bool,
}

/// Every field that any client frame has.
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

/// The fields of a publish frame.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PublishFields {
    #[serde(rename = "type")]
    _kind: IgnoredAny,
    #[serde(rename = "id")]
    _id: Option<IgnoredAny>,
    #[serde(rename = "channel")]
    _channel: Option<IgnoredAny>,
    #[serde(rename = "message_id")]
    _message_id: Option<IgnoredAny>,
    #[serde(rename = "name")]
    _name: Option<IgnoredAny>,
    #[serde(rename = "data")]
    _data: Option<IgnoredAny>,
}

/// Refuses a publish frame with a field that is not one of its own: a misspelt `name` would publish an
/// event without its name.
fn only_known_fields(text: &str) -> Result<(), FieldError> {
    match serde_json::from_str::<PublishFields>(text) {
        Ok(_) => Ok(()),
        Err(err) => Err((ErrorCode::Malformed, format!("publish: {err}"))),
    }
}

/// Reads a field that may be absent and counts as present when it is `null`.
///
/// # Errors
/// Those of the field itself.
pub fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Why a field is not valid.
type FieldError = (ErrorCode, String);

impl Fields<'_> {
    fn into_frame(self, text: &str) -> Result<ClientFrame, FieldError> {
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
                only_known_fields(text)?;
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
                    "no frame has the type {other:?}: use \
                     connect, subscribe, unsubscribe, publish, presence, history, report, goodbye \
                     or pong"
                ),
            )),
        }
    }

    fn channel(&self) -> Result<Channel, FieldError> {
        let Some(raw) = self.channel.as_deref() else {
            return Err((ErrorCode::ChannelInvalid, format!("{} needs a \"channel\"", self.kind)));
        };
        raw.parse().map_err(because(ErrorCode::ChannelInvalid))
    }

    fn since(&self) -> Result<Option<Position>, FieldError> {
        let since = self.since.as_deref().map(str::parse).transpose();
        since.map_err(because(ErrorCode::PositionInvalid))
    }

    /// `null` leaves the channel's presence.
    fn presence_state(&self) -> Result<Option<Data>, FieldError> {
        match self.state {
            None => {
                let message = "presence needs \"state\": any JSON, or null to leave".to_owned();
                Err((ErrorCode::Malformed, message))
            }
            Some(state) if state.get() == "null" => Ok(None),
            Some(state) => Ok(Some(Data::from(state))),
        }
    }

    fn draft(&self) -> Result<Draft, FieldError> {
        let Some(data) = self.data else {
            return Err((ErrorCode::Malformed, "publish needs \"data\", any JSON".to_owned()));
        };
        draft(self.message_id.as_deref(), self.name.as_deref(), data)
    }
}

/// Makes a draft of a publisher's fields, with a new id where there is none.
///
/// # Errors
/// With the code and a sentence for the first field that is not valid.
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

/// A field error with `code` and the parser's own sentence.
fn because<E: ToString>(code: ErrorCode) -> impl Fn(E) -> FieldError {
    move |err| (code, err.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error_of(text: &str) -> FrameError {
        ClientFrame::parse(text).unwrap_err()
    }

    #[test]
    fn a_subscribe_with_a_position_is_parsed() {
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
    fn an_invalid_field_names_the_request_and_keeps_the_connection_open() {
        let err = error_of(r#"{"type":"subscribe","id":7,"channel":"a b"}"#);
        assert_eq!((err.id, err.code, err.fatal), (Some(7), ErrorCode::ChannelInvalid, false));
        let err = error_of(r#"{"type":"dance","id":8}"#);
        assert_eq!((err.id, err.code, err.fatal), (Some(8), ErrorCode::UnknownType, false));
        let err = error_of(r#"{"type":"publish","id":9,"channel":"a"}"#);
        assert_eq!((err.id, err.code, err.fatal), (Some(9), ErrorCode::Malformed, false));
    }

    #[test]
    fn an_unknown_field_of_a_publish_is_refused_by_name() {
        let err = error_of(r#"{"type":"publish","id":9,"channel":"a","event":"x","data":1}"#);
        assert_eq!((err.id, err.code, err.fatal), (Some(9), ErrorCode::Malformed, false));
        assert!(err.message.contains("unknown field `event`"), "{}", err.message);
        let all = r#"{"type":"publish","id":9,"channel":"a","name":"x","message_id":"m","data":1}"#;
        assert!(ClientFrame::parse(all).is_ok());
    }

    #[test]
    fn null_is_valid_data() {
        let frame = ClientFrame::parse(r#"{"type":"publish","channel":"a","data":null}"#);
        assert!(matches!(frame, Ok(ClientFrame::Publish { draft, .. }) if draft.data.len() == 4));
    }

    #[test]
    fn a_text_that_is_no_object_with_a_type_is_fatal() {
        for text in ["", "{", "[]", "1", "{}", r#"{"type":1}"#, r#"{"type":"pong","id":"x"}"#] {
            assert!(error_of(text).fatal, "{text}");
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
