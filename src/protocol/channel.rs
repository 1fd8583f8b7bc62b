//! Channel names. A `Channel` that exists is valid: it is checked once, where it is parsed.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, de};

/// Longest channel name, in bytes.
pub const CHANNEL_LEN_MAX: usize = 200;

/// The namespace of a channel whose name has no `:`.
pub const DEFAULT_NAMESPACE: &str = "default";

/// A named log of events: 1 to 200 bytes of `A-Z a-z 0-9 _ - . : / @ # =`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Channel(Arc<str>);

/// The namespace of the gateway's own logs, which clients and publishers cannot name.
pub const RESERVED_NAMESPACE: &str = "crossfade";

impl Channel {
    /// Parses a name that a broker stored, which may be one of the gateway's own channels.
    ///
    /// # Errors
    /// When the name is not valid.
    pub fn stored(raw: &str) -> Result<Self, ChannelError> {
        if raw.is_empty() {
            return Err(ChannelError::Empty);
        }
        if CHANNEL_LEN_MAX < raw.len() {
            return Err(ChannelError::TooLong { len: raw.len() });
        }
        match raw.chars().find(|c| !is_channel_char(*c)) {
            Some(found) => Err(ChannelError::Forbidden { found }),
            None => Ok(Self(raw.into())),
        }
    }

    /// Whether it is one of the gateway's own channels.
    pub fn is_reserved(&self) -> bool {
        self.namespace() == RESERVED_NAMESPACE
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part before the first `:`, which selects the channel's settings.
    pub fn namespace(&self) -> &str {
        self.0.split_once(':').map_or(DEFAULT_NAMESPACE, |(namespace, _)| namespace)
    }
}

impl FromStr for Channel {
    type Err = ChannelError;

    fn from_str(raw: &str) -> Result<Self, ChannelError> {
        let channel = Self::stored(raw)?;
        if channel.is_reserved() { Err(ChannelError::Reserved) } else { Ok(channel) }
    }
}

/// Why a channel name is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// The name is empty.
    #[error("a channel name has at least one character")]
    Empty,
    /// Longer than [`CHANNEL_LEN_MAX`].
    #[error("a channel name has at most {CHANNEL_LEN_MAX} bytes, this one has {len}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// The name is in the gateway's own namespace.
    #[error("the namespace {RESERVED_NAMESPACE} is reserved for the gateway: choose another")]
    Reserved,
    /// A character outside the alphabet.
    #[error("{found:?} may not be in a channel name, only A-Z a-z 0-9 _ - . : / @ # =")]
    Forbidden {
        /// The first such character.
        found: char,
    },
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl<'de> Deserialize<'de> for Channel {
    /// For names that nodes and brokers pass on; names from clients are parsed.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::stored(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

fn is_channel_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_-.:/@#=".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_is_what_stands_before_the_first_colon() {
        let namespace = |name: &str| name.parse::<Channel>().unwrap().namespace().to_owned();
        assert_eq!(namespace("orders:42:items"), "orders");
        assert_eq!(namespace("news"), "default");
        assert_eq!(namespace(":odd"), "");
    }

    #[test]
    fn names_outside_the_alphabet_or_the_length_are_refused() {
        assert_eq!("".parse::<Channel>(), Err(ChannelError::Empty));
        assert_eq!("a b".parse::<Channel>(), Err(ChannelError::Forbidden { found: ' ' }));
        assert_eq!("né".parse::<Channel>(), Err(ChannelError::Forbidden { found: 'é' }));
        assert!("x".repeat(200).parse::<Channel>().is_ok());
        assert_eq!("x".repeat(201).parse::<Channel>(), Err(ChannelError::TooLong { len: 201 }));
    }
}
