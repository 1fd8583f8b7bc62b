//! Presence on the wire: members of a channel, and snapshots and diffs of them.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, de};
use sha2::{Digest as _, Sha256};

use super::{Data, SessionId, UserId};

/// A session's public id: it is derived from the session and does not reveal it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberId([u8; Self::LEN]);

impl MemberId {
    const LEN: usize = 10;

    /// The public id of a session.
    pub fn of(session: SessionId) -> Self {
        let digest = Sha256::digest(format!("crossfade member {session}"));
        let mut id = [0; Self::LEN];
        id.copy_from_slice(&digest[..Self::LEN]);
        Self(id)
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MemberId {
    type Err = NoMember;

    fn from_str(raw: &str) -> Result<Self, NoMember> {
        let mut id = [0; Self::LEN];
        if raw.len() != 2 * Self::LEN || !raw.is_ascii() {
            return Err(NoMember);
        }
        for (byte, at) in id.iter_mut().zip((0..raw.len()).step_by(2)) {
            *byte = u8::from_str_radix(&raw[at..at + 2], 16).map_err(|_| NoMember)?;
        }
        Ok(Self(id))
    }
}

/// Why a member id is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a member id is 20 hexadecimal digits")]
pub struct NoMember;

impl Serialize for MemberId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MemberId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A member of a channel's presence: one session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The session's public id.
    pub session: MemberId,
    /// The session's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
    /// The `info` claim of the user's token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub info: Option<Data>,
    /// The state that the session published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Data>,
    /// When it joined, in milliseconds since 1970.
    pub since: u64,
}

impl Member {
    /// Whether subscribers see no difference between the two.
    pub fn looks_like(&self, other: &Self) -> bool {
        self.user == other.user && self.info == other.info && self.state == other.state
    }
}

/// A snapshot of a channel's members, or a diff.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PresenceFrame {
    /// A snapshot: it replaces what was known before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub members: Option<Vec<Arc<Member>>>,
    /// Members that joined.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub joined: Vec<Arc<Member>>,
    /// Members whose state changed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub updated: Vec<Arc<Member>>,
    /// Members that left.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<Left>,
    /// The number of members now.
    pub count: usize,
}

/// A member that left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Left {
    /// The session's public id.
    pub session: MemberId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_members_name_is_the_same_wherever_its_session_is_and_reads_back() {
        let session: SessionId = "00000000-0000-4000-8000-000000000001".parse().unwrap();
        let id = MemberId::of(session);
        assert_eq!(id, MemberId::of(session));
        assert_eq!(id.to_string().parse::<MemberId>(), Ok(id));
        assert!(!id.to_string().contains("0000"), "it must not show the session: {id}");
        assert!("zz".repeat(10).parse::<MemberId>().is_err());
        assert!("é".repeat(10).parse::<MemberId>().is_err());
    }
}
