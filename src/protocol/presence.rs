//! Who is in a channel, as everybody is told: a member, and news of members.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, de};
use sha2::{Digest as _, Sha256};

use super::{Data, SessionId, UserId};

/// A session's public name: who sees it cannot take the session over.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberId([u8; Self::LEN]);

impl MemberId {
    const LEN: usize = 10;

    /// That of a session.
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

/// A text that names no member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a member's session is named by 20 hexadecimal digits")]
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

/// A session that shows itself in a channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its public name.
    pub session: MemberId,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
    /// What the user's token says about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub info: Option<Data>,
    /// What the session says of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Data>,
    /// Since when it is there, in milliseconds since 1970.
    pub since: u64,
}

impl Member {
    /// Whether somebody who sees the one need not be told of the other.
    pub fn looks_like(&self, other: &Self) -> bool {
        self.user == other.user && self.info == other.info && self.state == other.state
    }
}

/// What is told of a channel's members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PresenceFrame {
    /// All of them: what was known before is void.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub members: Option<Vec<Arc<Member>>>,
    /// Who came.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub joined: Vec<Arc<Member>>,
    /// Who changed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub updated: Vec<Arc<Member>>,
    /// Who went.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<Left>,
    /// How many there are now.
    pub count: usize,
}

/// A member that went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Left {
    /// Its public name.
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
