//! What stands inside a payload that the gateway does not understand otherwise: an id, a name.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where in a payload something stands: `meta.id`, `items.0.id`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JsonPath(Vec<String>);

impl JsonPath {
    /// The text or number that stands there.
    pub fn find(&self, payload: &Value) -> Option<String> {
        let found = self.0.iter().try_fold(payload, |at, step| match at {
            Value::Object(fields) => fields.get(step),
            Value::Array(items) => items.get(step.parse::<usize>().ok()?),
            _ => None,
        })?;
        match found {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }
}

impl FromStr for JsonPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let steps: Vec<_> = text.split('.').map(str::to_owned).collect();
        if steps.iter().any(String::is_empty) {
            return Err(format!("{text:?} has an empty step: write \"meta.id\""));
        }
        Ok(Self(steps))
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
    fn a_path_leads_to_a_text_or_a_number() {
        let at = |path: &str, payload: &Value| path.parse::<JsonPath>().unwrap().find(payload);
        let payload = json!({ "meta": { "id": "m1", "n": 7 }, "list": [{ "id": "x" }] });
        assert_eq!(at("meta.id", &payload).as_deref(), Some("m1"));
        assert_eq!(at("meta.n", &payload).as_deref(), Some("7"));
        assert_eq!(at("list.0.id", &payload).as_deref(), Some("x"));
        assert_eq!(at("meta", &payload), None);
        assert_eq!(at("meta.id.more", &payload), None);
        assert!("meta..id".parse::<JsonPath>().is_err());
    }
}
