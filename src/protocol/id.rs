//! Ids and names: of messages, users, events, sessions, and tokens.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, de};
use uuid::Uuid;

/// Longest message id and longest event name, in bytes.
pub const NAME_LEN_MAX: usize = 128;

/// The prefix of ids that the gateway gave to messages it ingested without an id.
pub const MADE_ID: &str = "legacy:";

/// The prefix of ids of events whose publisher sent a bare text instead of JSON: their data is that text
/// as a JSON string, and raw streams deliver it bare again.
pub const TEXT_ID: &str = "legacy-text:";

/// A message id, by which a repeated publish is recognised: 1 to 128 bytes of visible ASCII.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct MessageId(Arc<str>);

impl MessageId {
    /// A new id, for an event that was published without one: a UUID that sorts by time.
    pub fn generate() -> Self {
        let mut text = Uuid::encode_buffer();
        Self(Arc::from(&*Uuid::now_v7().hyphenated().encode_lower(&mut text)))
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the gateway gave it to a message that it ingested without an id.
    pub fn is_made(&self) -> bool {
        self.0.starts_with(MADE_ID) || self.0.starts_with(TEXT_ID)
    }
}

impl FromStr for MessageId {
    type Err = NameError;

    fn from_str(raw: &str) -> Result<Self, NameError> {
        check(raw, "message id", |c| c.is_ascii_graphic()).map(Self)
    }
}

/// A user, as tokens name it: 1 to 128 bytes without control characters.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct UserId(Arc<str>);

impl UserId {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UserId {
    type Err = NameError;

    fn from_str(raw: &str) -> Result<Self, NameError> {
        check(raw, "user id", |c| !c.is_control()).map(Self)
    }
}

/// The name of an event, such as `created`: the `event:` line of an SSE stream.
#[derive(Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct EventName(Arc<str>);

impl EventName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for EventName {
    type Err = NameError;

    /// `open`, `error` and `crossfade.…` are refused: SSE streams use them for frames.
    fn from_str(raw: &str) -> Result<Self, NameError> {
        if raw == "open" || raw == "error" || raw.starts_with("crossfade.") {
            return Err(NameError::Reserved { name: raw.to_owned() });
        }
        check(raw, "event name", |c| !c.is_control()).map(Self)
    }
}

/// One logical client, the same over reconnects, nodes and transports. A secret: who knows it can take
/// the session over.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(Uuid);

impl SessionId {
    /// A new random id.
    pub fn generate() -> Self {
        Self(Uuid::new_v4())
    }
}

impl FromStr for SessionId {
    type Err = NameError;

    fn from_str(raw: &str) -> Result<Self, NameError> {
        raw.parse().map(Self).map_err(|_| NameError::NoSession)
    }
}

/// A bearer token. Its `Debug` form does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes the token's text, unchecked.
    pub fn new(shown: impl Into<String>) -> Self {
        Self(shown.into())
    }

    /// The token's text.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl FromStr for Token {
    type Err = std::convert::Infallible;

    fn from_str(shown: &str) -> Result<Self, Self::Err> {
        Ok(Self::new(shown))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(token)")
    }
}

/// Why an id or name is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty or longer than [`NAME_LEN_MAX`].
    #[error("the {what} has {len} bytes, it may have 1 to {NAME_LEN_MAX}")]
    Length {
        /// What it should have been.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
    },
    /// A character that is not allowed.
    #[error("the {what} may not contain {found:?}")]
    Forbidden {
        /// What it should have been.
        what: &'static str,
        /// The first such character.
        found: char,
    },
    /// A name that SSE streams use for frames.
    #[error("the event name {name:?} is reserved: choose another than open, error and crossfade.…")]
    Reserved {
        /// That name.
        name: String,
    },
    /// Not a UUID.
    #[error("a session id is a UUID: use the one of the welcome frame")]
    NoSession,
}

fn check(
    raw: &str,
    what: &'static str,
    allowed: impl Fn(char) -> bool,
) -> Result<Arc<str>, NameError> {
    if raw.is_empty() || NAME_LEN_MAX < raw.len() {
        return Err(NameError::Length { what, len: raw.len() });
    }
    match raw.chars().find(|c| !allowed(*c)) {
        Some(found) => Err(NameError::Forbidden { what, found }),
        None => Ok(raw.into()),
    }
}

macro_rules! reads_like_text {
    ($($name:ty),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    )*};
}
reads_like_text!(MessageId, EventName, SessionId, UserId);

macro_rules! parsed_when_read {
    ($($name:ty),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )*};
}
parsed_when_read!(MessageId, EventName, UserId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_may_not_take_a_name_of_the_stream_itself() {
        for name in ["open", "error", "crossfade.reset"] {
            assert!(matches!(name.parse::<EventName>(), Err(NameError::Reserved { .. })), "{name}");
        }
        assert!("opened".parse::<EventName>().is_ok());
    }

    #[test]
    fn a_line_break_cannot_hide_in_a_name() {
        assert!("a\nb".parse::<EventName>().is_err());
        assert!("a b".parse::<MessageId>().is_err());
        assert!("x".repeat(129).parse::<MessageId>().is_err());
    }
}
