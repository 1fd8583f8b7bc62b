//! Patterns of channel names, as grants of tokens use them: `*` matches any run of characters.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A pattern of channel names: every `*` matches zero or more characters, all else matches itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

/// The longest pattern, in bytes.
const PATTERN_BYTES: usize = 200;

impl Pattern {
    /// Whether the pattern matches a name. Takes time proportional to the product of both lengths at
    /// most.
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut p, mut n) = (0, 0);
        // The index of the last `*` in the pattern, and the end of what it matches in the name.
        let mut star: Option<(usize, usize)> = None;
        while n < name.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    star = Some((p, n));
                    p += 1;
                }
                Some(byte) if *byte == name[n] => {
                    p += 1;
                    n += 1;
                }
                _ => {
                    let Some((at, end)) = star else { return false };
                    star = Some((at, end + 1));
                    p = at + 1;
                    n = end + 1;
                }
            }
        }
        pattern[p..].iter().all(|byte| *byte == b'*')
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(raw: &str) -> Result<Self, String> {
        if raw.is_empty() || PATTERN_BYTES < raw.len() {
            return Err(format!("a pattern has 1 to {PATTERN_BYTES} bytes, not {}", raw.len()));
        }
        Ok(Self(raw.to_owned()))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches_naively(pattern: &[u8], name: &[u8]) -> bool {
        match pattern {
            [] => name.is_empty(),
            [b'*', rest @ ..] => (0..=name.len()).any(|skip| matches_naively(rest, &name[skip..])),
            [byte, rest @ ..] => name.first() == Some(byte) && matches_naively(rest, &name[1..]),
        }
    }

    #[test]
    fn a_star_matches_any_run_of_characters() {
        let matches = |pattern: &str, name| pattern.parse::<Pattern>().unwrap().matches(name);
        assert!(matches("orders:*", "orders:42") && matches("*", "a") && matches("a", "a"));
        assert!(matches("orders:*:lines", "orders:4:2:lines") && matches("orders:*", "orders:"));
        assert!(!matches("orders:*", "order:42") && !matches("a", "ab") && !matches("*a", "ab"));
    }

    proptest! {
        #[test]
        fn matching_agrees_with_a_naive_search(pattern in "[ab*]{1,8}", name in "[ab]{0,10}") {
            let matched = pattern.parse::<Pattern>().unwrap().matches(&name);
            prop_assert_eq!(matched, matches_naively(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
