//! Patterns of channel names: exact, or with `*` for any run of characters.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A pattern of channel names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

/// Longest pattern, in bytes.
const BYTES: usize = 200;

impl Pattern {
    /// Whether it is the pattern of this name. Never slower than the product of both lengths.
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut p, mut n) = (0, 0);
        // Where the last star was, and up to where it stands for something.
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
                    let Some((at, upto)) = star else { return false };
                    star = Some((at, upto + 1));
                    p = at + 1;
                    n = upto + 1;
                }
            }
        }
        pattern[p..].iter().all(|byte| *byte == b'*')
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(raw: &str) -> Result<Self, String> {
        if raw.is_empty() || BYTES < raw.len() {
            return Err(format!("a pattern has 1 to {BYTES} bytes, this one has {}", raw.len()));
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

    fn naive(pattern: &[u8], name: &[u8]) -> bool {
        match pattern {
            [] => name.is_empty(),
            [b'*', rest @ ..] => (0..=name.len()).any(|skip| naive(rest, &name[skip..])),
            [byte, rest @ ..] => name.first() == Some(byte) && naive(rest, &name[1..]),
        }
    }

    #[test]
    fn a_star_stands_for_any_run() {
        let matches = |pattern: &str, name| pattern.parse::<Pattern>().unwrap().matches(name);
        assert!(matches("orders:*", "orders:42") && matches("*", "a") && matches("a", "a"));
        assert!(matches("orders:*:lines", "orders:4:2:lines") && matches("orders:*", "orders:"));
        assert!(!matches("orders:*", "order:42") && !matches("a", "ab") && !matches("*a", "ab"));
    }

    proptest! {
        #[test]
        fn it_agrees_with_trying_everything(pattern in "[ab*]{1,8}", name in "[ab]{0,10}") {
            let quick = pattern.parse::<Pattern>().unwrap().matches(&name);
            prop_assert_eq!(quick, naive(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
