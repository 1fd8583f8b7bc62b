//! The functions in Redis: loading them, calling them, reading their answers and their news.

use std::time::Duration;

use bytes::Bytes;
use redis::{Cmd, FromRedisValue, RedisError, RedisResult, Value};

use crate::{
    broker::{Entry, Range, Receipt, Retention},
    protocol::{Channel, Data, Draft, Event, MessageId, Position},
};

/// The library. It says itself what it does.
pub(super) const SOURCE: &str = include_str!("crossfade.lua");

const VERSION_LINE: &str = "-- version: ";

/// Loads the library unless the server has it, or a newer one: nodes of two releases may share it.
pub(super) async fn ensure(connection: &mut redis::aio::MultiplexedConnection) -> RedisResult<()> {
    let list: Value = redis::cmd("FUNCTION")
        .arg(&["LIST", "LIBRARYNAME", "crossfade", "WITHCODE"])
        .query_async(connection)
        .await?;
    let code = code_in(&list);
    if code.is_some_and(|code| code == SOURCE || version(SOURCE) < version(code)) {
        return Ok(());
    }
    load(connection).await
}

/// Loads the library, whatever is there.
pub(super) async fn load(connection: &mut redis::aio::MultiplexedConnection) -> RedisResult<()> {
    redis::cmd("FUNCTION").arg("LOAD").arg("REPLACE").arg(SOURCE).exec_async(connection).await
}

/// The text of the first library in what FUNCTION LIST answers.
fn code_in(list: &Value) -> Option<&str> {
    match list {
        Value::Array(items) => items.iter().find_map(code_in),
        Value::BulkString(text) if text.starts_with(b"#!lua") => std::str::from_utf8(text).ok(),
        _ => None,
    }
}

fn version(source: &str) -> Option<u32> {
    source.lines().find_map(|line| line.strip_prefix(VERSION_LINE)).and_then(|n| n.parse().ok())
}

/// The server does not have the library (any more).
pub(super) fn is_missing(error: &RedisError) -> bool {
    error.detail().is_some_and(|detail| detail.contains("Function not found"))
}

/// The names of one deployment's keys.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// The key of the channel's head; also where its bell rings.
    pub(super) fn head(&self, channel: &Channel) -> String {
        format!("{}:{{{channel}}}", self.prefix)
    }

    pub(super) fn log(&self, channel: &Channel) -> String {
        format!("{}:{{{channel}}}:log", self.prefix)
    }
}

/// Longer than any gateway runs. Redis refuses what does not fit its clock.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

fn call(function: &str, key: &str, retention: Retention) -> (Cmd, [String; 3]) {
    let mut command = redis::cmd("FCALL");
    command.arg(function).arg(1).arg(key);
    let millis = |duration: Duration| duration.min(FOREVER).as_millis().to_string();
    let keep =
        [retention.events.max(1).to_string(), millis(retention.age), millis(retention.dedup)];
    (command, keep)
}

/// Appends an event.
pub(super) fn publish(key: &str, draft: &Draft, retention: Retention) -> Cmd {
    let (mut command, keep) = call("crossfade_publish", key, retention);
    let name = draft.name.as_ref().map_or("", |name| name.as_str());
    command.arg(draft.data.as_str()).arg(name).arg(draft.id.as_str()).arg(&keep);
    command
}

/// Tells the head, and gives the log a new epoch if it ends before `known`.
pub(super) fn head(key: &str, retention: Retention, known: Option<Position>) -> Cmd {
    let (mut command, keep) = call("crossfade_head", key, retention);
    command.arg(&keep);
    if let Some(Position { epoch, offset }) = known {
        command.arg(epoch.to_string()).arg(offset);
    }
    command
}

/// Reads the head without making one.
pub(super) fn stored(key: &str) -> Cmd {
    let mut command = redis::cmd("HMGET");
    command.arg(key).arg("e").arg("o");
    command
}

/// Reads a piece of a log.
pub(super) fn piece(log: &str, range: Range, limit: usize) -> Cmd {
    let (verb, from, to) = match range {
        Range::After(offset) => ("XRANGE", format!("({offset}-0"), "+".to_owned()),
        Range::Until(offset) => ("XREVRANGE", format!("{offset}-0"), "-".to_owned()),
    };
    let mut command = redis::cmd(verb);
    command.arg(log).arg(from).arg(to).arg("COUNT").arg(limit);
    command
}

/// What `crossfade_publish` answered.
pub(super) fn receipt(answer: Value) -> RedisResult<Receipt> {
    let (epoch, offset, duplicate): (String, u64, bool) = read(answer)?;
    Ok(Receipt { position: position(&epoch, offset)?, duplicate })
}

/// What `crossfade_head` answered.
pub(super) fn head_of(answer: Value) -> RedisResult<Position> {
    let (epoch, offset): (String, u64) = read(answer)?;
    position(&epoch, offset)
}

/// What HMGET e o answered, if the log has begun.
pub(super) fn stored_head(answer: Value) -> RedisResult<Option<Position>> {
    let (epoch, offset): (Option<String>, Option<u64>) = read(answer)?;
    epoch.map(|epoch| position(&epoch, offset.unwrap_or(0))).transpose()
}

fn read<T: FromRedisValue>(answer: Value) -> RedisResult<T> {
    Ok(redis::from_redis_value(answer.extract_error()?)?)
}

fn position(epoch: &str, offset: u64) -> RedisResult<Position> {
    Ok(Position::new(epoch.parse().map_err(|_| odd("an epoch that is none"))?, offset))
}

fn odd(what: &'static str) -> RedisError {
    RedisError::from((redis::ErrorKind::UnexpectedReturnType, what))
}

/// What XRANGE or XREVRANGE answered.
pub(super) fn events(answer: Value) -> RedisResult<Vec<(u64, Event)>> {
    match answer.extract_error()? {
        Value::Nil => Ok(Vec::new()),
        Value::Array(entries) => entries.into_iter().map(event).collect(),
        _ => Err(odd("a log that is none")),
    }
}

fn event(entry: Value) -> RedisResult<(u64, Event)> {
    let (at, fields): (String, Vec<Bytes>) = read(entry)?;
    let offset = at.split_once('-').and_then(|(offset, _)| offset.parse().ok());
    let offset = offset.ok_or_else(|| odd("an entry without an offset"))?;
    let of = |key: &str| {
        let pair = fields.chunks_exact(2).find(|pair| pair[0] == key.as_bytes());
        pair.map_or(&[][..], |pair| &pair[1])
    };
    Ok((offset, assemble(offset, of("t"), of("i"), of("n"), of("d"))))
}

/// What a listener hears: `EPOCH-OFFSET TIME ID LENGTH-OF-NAME NAMEDATA`.
pub(super) fn notification(channel: Channel, payload: &[u8]) -> Option<Entry> {
    let mut words = payload.splitn(5, |byte| *byte == b' ');
    let position: Position = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
    let (time, id, name_len, rest) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let name_len: usize = std::str::from_utf8(name_len).ok()?.parse().ok()?;
    let (name, data) = rest.split_at_checked(name_len)?;
    let event = assemble(position.offset, time, id, name, data);
    Some(Entry { channel, position, event })
}

/// An event as the log has it. A backend service may have written what a gateway never would: what
/// cannot be an id or a name is replaced in the same way on every node.
fn assemble(offset: u64, time: &[u8], id: &[u8], name: &[u8], data: &[u8]) -> Event {
    let text = |bytes| std::str::from_utf8(bytes).ok();
    let stand_in = || format!("offset-{offset}").parse().unwrap_or_else(|_| MessageId::generate());
    Event {
        id: text(id).and_then(|id| id.parse().ok()).unwrap_or_else(stand_in),
        name: text(name).and_then(|name| name.parse().ok()),
        data: Data::lenient(&String::from_utf8_lossy(data)),
        time: text(time).and_then(|time| time.parse().ok()).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn news_are_taken_apart_where_they_were_put_together() {
        let channel: Channel = "orders:42".parse().unwrap();
        let entry =
            notification(channel.clone(), b"k3f9-17 1700000000000 id-1 5 a b c{\"d\": 1}").unwrap();
        assert_eq!(entry.position, "k3f9-17".parse().unwrap());
        assert_eq!(entry.event.name.unwrap().as_str(), "a b c");
        assert_eq!(entry.event.data.as_str(), "{\"d\": 1}");
        let entry = notification(channel, b"k3f9-17 1 id-1 0 not json").unwrap();
        assert_eq!((entry.event.name, entry.event.data.as_str()), (None, "\"not json\""));
    }

    proptest! {
        #[test]
        fn no_payload_makes_the_reader_panic(payload: Vec<u8>) {
            notification("a".parse().unwrap(), &payload);
        }
    }
}
