//! Events: as a publisher drafts them, and as the log keeps them.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};

use super::{EventName, MessageId, id::TEXT_ID};

/// The content of an event: any JSON, kept as the publisher's own text on a single line. It is checked
/// once, when it is published, and not when it is written.
#[derive(Clone)]
pub struct Data(Arc<RawValue>);

impl Data {
    /// Parses JSON.
    ///
    /// # Errors
    /// When the text is not JSON.
    pub fn json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str::<Box<RawValue>>(text).map(Self::from)
    }

    /// Accepts any text that a publisher beside the gateway wrote into the log: JSON as it is, anything
    /// else as a JSON string. Every node derives the same value.
    pub fn lenient(text: &str) -> Self {
        let quoted = || to_raw_value(text).expect("every text is a JSON string");
        Self::json(text).unwrap_or_else(|_| Self(quoted().into()))
    }

    /// The JSON text, without line breaks.
    pub fn as_str(&self) -> &str {
        self.0.get()
    }

    /// Its length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "JSON is never empty")]
    pub fn len(&self) -> usize {
        self.as_str().len()
    }
}

impl From<Box<RawValue>> for Data {
    /// A line break can stand only between JSON's tokens (inside a string it is escaped), so a
    /// space in its place changes nothing and keeps an SSE `data:` line whole.
    fn from(raw: Box<RawValue>) -> Self {
        // Not `contains`: it decodes characters, this loop vectorises over bytes.
        let broken = |found, byte: &u8| found | matches!(byte, b'\n' | b'\r');
        if !raw.get().as_bytes().iter().fold(false, broken) {
            return Self(raw.into());
        }
        let line = raw.get().replace(['\n', '\r'], " ");
        Self(RawValue::from_string(line).expect("a space is no less JSON than a line break").into())
    }
}

impl From<&RawValue> for Data {
    fn from(raw: &RawValue) -> Self {
        Self::from(raw.to_owned())
    }
}

impl PartialEq for Data {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Data {}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Data {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(deserializer).map(Self::from)
    }
}

/// The text of an event that was published as bare text: see [`TEXT_ID`].
pub fn bare_text(id: &MessageId, data: &Data) -> Option<String> {
    let is_text = id.as_str().starts_with(TEXT_ID);
    is_text.then(|| serde_json::from_str(data.as_str()).ok()).flatten()
}

/// An event as it is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// The publisher's own id or one made by the gateway: the same id is the same event.
    pub id: MessageId,
    /// The event's name.
    pub name: Option<EventName>,
    /// Its content.
    pub data: Data,
}

/// An event as the log keeps it; its offset is kept beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The message id: the same id is the same event.
    pub id: MessageId,
    /// The event's name.
    pub name: Option<EventName>,
    /// Its content.
    pub data: Data,
    /// When the broker accepted it, in milliseconds since 1970.
    pub time: u64,
}

impl Event {
    /// About how many bytes of memory it takes.
    pub fn weight(&self) -> usize {
        let name = self.name.as_ref().map_or(0, |name| name.as_str().len());
        size_of::<Self>() + self.id.as_str().len() + name + self.data.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_one_line_whatever_the_publisher_sent() {
        let data = Data::json("{\n  \"a\": \"x\\ny\"\r\n}").unwrap();
        assert_eq!(data.as_str(), "{   \"a\": \"x\\ny\"  }");
    }

    #[test]
    fn text_that_is_no_json_becomes_a_json_string() {
        assert_eq!(Data::lenient("hello \"you\"").as_str(), r#""hello \"you\"""#);
        assert_eq!(Data::lenient("[1, 2]").as_str(), "[1, 2]");
    }
}
