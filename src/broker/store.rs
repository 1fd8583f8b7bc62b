//! The port to what the nodes decide together and must not forget: a few small records, each with a
//! version, and the journal of who changed them and why.
//!
//! A [`Store`] knows keys and texts, nothing of what they mean. It is no place for events, nor for
//! what changes with every client. Beside what is kept, nodes tell each other figures here that
//! expire by themselves.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::BrokerError;

/// Records, compared and set.
///
/// # Promises
/// - **One winner.** Of all writers that saw the same version one succeeds; the others are told what
///   is there now. Versions of a key are 1, 2, 3 …
/// - **Kept.** What was written is there after the store restarts, as far as its own settings
///   promise that (`appendonly`, `fsync`), and its note is in the journal if and only if it is.
/// - **Any error** means: not known to be written.
#[async_trait]
pub trait Store: std::fmt::Debug + Send + Sync + 'static {
    /// What stands at a key.
    async fn get(&self, key: &str) -> Result<Option<Record>, BrokerError>;

    /// Everything at keys that begin like this, in the keys' order.
    async fn list(&self, prefix: &str) -> Result<Vec<(String, Record)>, BrokerError>;

    /// Writes where the record has the version that is expected, 0 meaning that there is none, and
    /// puts the note into the journal.
    async fn put(&self, key: &str, write: Write) -> Result<Written, BrokerError>;

    /// The notes on keys that begin like this, the newest first, all before number `before`; fewer than
    /// `limit` only where there are no more.
    async fn journal(
        &self,
        prefix: &str,
        before: u64,
        limit: usize,
    ) -> Result<Vec<Note>, BrokerError>;

    /// Says something that nobody needs to know after `keep`, in place of what was said before.
    async fn tell(&self, key: &str, value: &str, keep: Duration) -> Result<(), BrokerError>;

    /// What is said at keys that begin like this.
    async fn told(&self, prefix: &str) -> Result<Vec<(String, String)>, BrokerError>;
}

/// What stands at a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// How often it was written.
    pub version: u64,
    /// What.
    pub value: String,
}

/// What is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The version that has to stand there; 0 where there may be none.
    pub expected: u64,
    /// What.
    pub value: String,
    /// For the journal, where it is worth a note.
    pub note: Option<String>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// It stands there, with this version.
    Done(u64),
    /// Something else does, or nothing.
    Conflict(Option<Record>),
}

/// A line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Its place: later notes have higher numbers, though not the next ones.
    pub number: u64,
    /// About which record.
    pub key: String,
    /// The version that was written.
    pub version: u64,
    /// When, in milliseconds since 1970, by the store's clock.
    pub time: u64,
    /// The words of who wrote it.
    pub text: String,
}

/// Notes that are kept at least.
pub const JOURNAL_NOTES: usize = 10_000;
