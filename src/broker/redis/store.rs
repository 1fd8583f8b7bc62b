//! The records in Redis: a hash, a stream and another hash under one hash tag.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use redis::{Cmd, FromRedisValue, RedisError, RedisResult, Value};

use super::{
    commands::{Commands, Route},
    error::decoded,
    shards::Shards,
};
use crate::{
    broker::{
        BrokerError,
        store::{Note, Record, Store, Write, Written},
    },
    protocol::Channel,
};

/// Keeps the records in Redis.
#[derive(Debug)]
pub(super) struct RedisStore {
    shards: Arc<Shards>,
    /// Where they lie in a Cluster.
    place: Channel,
}

impl RedisStore {
    pub(super) fn new(shards: Arc<Shards>) -> Self {
        let place = Channel::stored("crossfade:store").expect("a name within the alphabet");
        Self { shards, place }
    }

    fn key(&self, what: &str) -> String {
        format!("{}:{what}", self.shards.context.keys.head(&self.place))
    }

    fn function(&self, name: &str) -> Cmd {
        let mut command = redis::cmd("FCALL");
        command.arg(name).arg(1).arg(self.shards.context.keys.head(&self.place));
        command
    }

    async fn ask(&self, command: Cmd) -> Result<Value, BrokerError> {
        let calls = Commands::new(&self.shards);
        // What must be the newest is read over the writing connection too.
        calls.each(Route::Writing, &[&self.place], |_| command.clone()).await.remove(0)
    }
}

#[async_trait]
impl Store for RedisStore {
    async fn get(&self, key: &str) -> Result<Option<Record>, BrokerError> {
        let mut command = redis::cmd("HGET");
        command.arg(self.key("records")).arg(key);
        let found: Option<String> = read(self.ask(command).await?)?;
        found.as_deref().map(|text| decoded(record(text))).transpose()
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Record)>, BrokerError> {
        let mut command = redis::cmd("HGETALL");
        command.arg(self.key("records"));
        let all: HashMap<String, String> = read(self.ask(command).await?)?;
        let ours = all.into_iter().filter(|(key, _)| key.starts_with(prefix));
        let mut found = ours
            .map(|(key, text)| Ok((key, decoded(record(&text))?)))
            .collect::<Result<Vec<_>, BrokerError>>()?;
        found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    async fn put(&self, key: &str, write: Write) -> Result<Written, BrokerError> {
        let mut command = self.function("crossfade_put");
        command.arg(key).arg(write.expected).arg(write.value);
        if let Some(note) = write.note {
            command.arg(note);
        }
        let (done, found): (bool, String) = read(self.ask(command).await?)?;
        decoded(match done {
            true => found.parse().map(Written::Done).map_err(|_| odd("a version that is none")),
            false if found.is_empty() => Ok(Written::Conflict(None)),
            false => record(&found).map(|record| Written::Conflict(Some(record))),
        })
    }

    async fn journal(
        &self,
        prefix: &str,
        before: u64,
        limit: usize,
    ) -> Result<Vec<Note>, BrokerError> {
        let mut notes = Vec::new();
        let mut end = if before == u64::MAX { "+".to_owned() } else { format!("({}", id(before)) };
        // The stream holds all keys' notes: those of others are passed over.
        while notes.len() < limit {
            let mut command = redis::cmd("XREVRANGE");
            command.arg(self.key("journal")).arg(end).arg("-").arg("COUNT").arg(PAGE);
            let page: Vec<(String, HashMap<String, String>)> = read(self.ask(command).await?)?;
            let Some((last, _)) = page.last() else { break };
            end = format!("({last}");
            let found = page.into_iter().map(|(at, fields)| decoded(note(&at, fields)));
            for note in found {
                let note = note?;
                if note.key.starts_with(prefix) {
                    notes.push(note);
                }
            }
        }
        notes.truncate(limit);
        Ok(notes)
    }

    async fn tell(&self, key: &str, value: &str, keep: Duration) -> Result<(), BrokerError> {
        let mut command = self.function("crossfade_tell");
        command.arg(key).arg(value).arg(keep.as_millis().to_string());
        self.ask(command).await.map(|_| ())
    }

    async fn told(&self, prefix: &str) -> Result<Vec<(String, String)>, BrokerError> {
        let mut command = self.function("crossfade_told");
        command.arg(prefix);
        let told: Vec<String> = read(self.ask(command).await?)?;
        let pairs = told.chunks_exact(2).filter(|pair| pair[0].starts_with(prefix));
        Ok(pairs.map(|pair| (pair[0].clone(), pair[1].clone())).collect())
    }
}

/// Notes read at once.
const PAGE: usize = 256;

/// Notes of one millisecond that can be told apart. Redis numbers them by time and count.
const PER_MS: u64 = 1000;

fn id(number: u64) -> String {
    format!("{}-{}", number / PER_MS, number % PER_MS)
}

fn note(at: &str, mut fields: HashMap<String, String>) -> RedisResult<Note> {
    let numbers = at.split_once('-').and_then(|(ms, count)| {
        Some((ms.parse::<u64>().ok()?, count.parse::<u64>().ok()?.min(PER_MS - 1)))
    });
    let (ms, count) = numbers.ok_or_else(|| odd("a note without a number"))?;
    let mut take = |key: &str| fields.remove(key).unwrap_or_default();
    let number = |text: String| text.parse().map_err(|_| odd("a number that is none"));
    Ok(Note {
        number: ms * PER_MS + count,
        key: take("k"),
        version: number(take("v"))?,
        time: number(take("t"))?,
        text: take("n"),
    })
}

fn record(text: &str) -> RedisResult<Record> {
    let parts = text.split_once(' ');
    let parts = parts.and_then(|(version, value)| Some((version.parse().ok()?, value)));
    let (version, value) = parts.ok_or_else(|| odd("a record without a version"))?;
    Ok(Record { version, value: value.to_owned() })
}

fn read<T: FromRedisValue>(answer: Value) -> Result<T, BrokerError> {
    let answer = answer.extract_error();
    decoded(answer.and_then(|answer| Ok(redis::from_redis_value(answer)?)))
}

fn odd(what: &'static str) -> RedisError {
    RedisError::from((redis::ErrorKind::UnexpectedReturnType, what))
}
