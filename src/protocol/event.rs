//! What travels: an event as its publisher drafts it, and as the log keeps it.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};

use super::{EventName, MessageId, id::TEXT_ID};

/// The content of an event: any JSON, kept as the publisher's own text on a single line. It was checked
/// when it came in, and is not checked again when it is written.
#[derive(Clone)]
pub struct Data(Arc<RawValue>);

impl Data {
    /// Takes a text that has to be JSON.
    ///
    /// # Errors
    /// When it is not.
    pub fn json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str::<Box<RawValue>>(text).map(Self::from)
    }

    /// Takes whatever text a publisher beside the gateway left in the log: JSON as it is,
    /// anything else as a JSON string. Every node makes the same of it.
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
        // Not `contains`: that goes by characters, and by one at a time.
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

/// The text that a publisher sent bare, if it was one: see [`TEXT_ID`].
pub fn bare_text(id: &MessageId, data: &Data) -> Option<String> {
    let is_text = id.as_str().starts_with(TEXT_ID);
    is_text.then(|| serde_json::from_str(data.as_str()).ok()).flatten()
}

/// An event as its publisher hands it in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// The publisher's own, or one made by the gateway: the same id is the same event.
    pub id: MessageId,
    /// What kind of event it is.
    pub name: Option<EventName>,
    /// Its content.
    pub data: Data,
}

/// An event as the log keeps it, at an offset that stands beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The same id is the same event.
    pub id: MessageId,
    /// What kind of event it is.
    pub name: Option<EventName>,
    /// Its content.
    pub data: Data,
    /// When the broker accepted it, in milliseconds since 1970.
    pub time: u64,
}

impl Event {
    /// What it takes to keep it, in bytes, near enough for a budget.
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
