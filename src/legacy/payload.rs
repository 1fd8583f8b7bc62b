//! Dotted paths into JSON payloads, to find a message id or an event name.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A dotted path of object keys and array indexes: `meta.id`, `items.0.id`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JsonPath(Vec<String>);

impl JsonPath {
    /// The string or number at the path; none for any other value.
    pub fn find(&self, payload: &Value) -> Option<String> {
        let value = self.0.iter().try_fold(payload, |at, segment| match at {
            Value::Object(fields) => fields.get(segment),
            Value::Array(items) => items.get(segment.parse::<usize>().ok()?),
            _ => None,
        })?;
        match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }
}

impl FromStr for JsonPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let segments: Vec<_> = text.split('.').map(str::to_owned).collect();
        if segments.iter().any(String::is_empty) {
            return Err(format!("{text:?} has an empty segment: write \"meta.id\""));
        }
        Ok(Self(segments))
    }
}

impl fmt::Display for JsonPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

impl TryFrom<String> for JsonPath {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<JsonPath> for String {
    fn from(path: JsonPath) -> Self {
        path.to_string()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_path_finds_strings_and_numbers_only() {
        let find = |path: &str, payload: &Value| path.parse::<JsonPath>().unwrap().find(payload);
        let payload = json!({ "meta": { "id": "m1", "n": 7 }, "list": [{ "id": "x" }] });
        assert_eq!(find("meta.id", &payload).as_deref(), Some("m1"));
        assert_eq!(find("meta.n", &payload).as_deref(), Some("7"));
        assert_eq!(find("list.0.id", &payload).as_deref(), Some("x"));
        assert_eq!(find("meta", &payload), None);
        assert_eq!(find("meta.id.more", &payload), None);
        assert!("meta..id".parse::<JsonPath>().is_err());
    }
}
