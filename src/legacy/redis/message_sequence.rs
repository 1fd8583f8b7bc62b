//! Numbering and backlog of received Pub/Sub messages. Pure.
//!
//! A mark resets the count; a message is the n-th of its Redis channel after a mark. Every node that
//! received the mark and everything since counts alike, so an id derived from both and from the
//! payload is the same on all of them, and two equal payloads are two messages. A node that has not
//! received a mark yet, or not everything since, cannot number messages and queues none.
//!
//! The backlog keeps, in order of arrival, the messages and marks that are not known to be in the
//! logs. Entries have sequence numbers that are local to this node.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::IngestConfig;
use crate::{
    broker::Publication,
    legacy::{
        GatewaySettings, JsonPath,
        pattern::{Glob, Template},
    },
    protocol::{
        Channel, Data, Draft, MessageId,
        id::{MADE_ID, TEXT_ID},
    },
};

/// Maps messages of Redis channels to publications.
#[derive(Debug)]
pub(super) struct MessageMapper {
    patterns: Vec<Glob>,
    channel: Template,
    id: Option<JsonPath>,
    name: Option<JsonPath>,
    settings: GatewaySettings,
    marks_channel: String,
    backlog_bytes: usize,
}

impl MessageMapper {
    pub(super) fn new(config: &IngestConfig, settings: GatewaySettings) -> Self {
        Self {
            patterns: config.patterns.clone(),
            channel: config.channel.clone(),
            id: config.id.clone(),
            name: config.name.clone(),
            settings,
            marks_channel: format!("{}:marks", config.prefix),
            backlog_bytes: config.backlog_bytes,
        }
    }

    /// Whether a Redis channel is used by the gateway itself: the marks channel, or one of the
    /// broker's.
    fn is_gateway_channel(&self, name: &str) -> bool {
        let is_broker_channel = |prefix: &String| {
            let rest = name.strip_prefix(&**prefix);
            rest.is_some_and(|rest| rest.starts_with(":{"))
        };
        name == self.marks_channel
            || self.settings.broker_prefix.as_ref().is_some_and(is_broker_channel)
    }

    fn map_channel(&self, pattern: &str, name: &str) -> Result<Channel, MessageOutcome> {
        if self.is_gateway_channel(name) {
            return Err(MessageOutcome::Ignored);
        }
        // Redis delivers a message once per matching pattern: only the first pattern counts.
        let mut matching = self.patterns.iter().filter_map(|p| Some((p, p.captures(name)?)));
        let Some((_, captures)) = matching.next().filter(|(first, _)| first.as_str() == pattern)
        else {
            return Err(MessageOutcome::Ignored);
        };
        let channel =
            self.channel.fill(&captures).map_err(|_| MessageOutcome::Refused("channel"))?;
        channel.parse().map_err(|_| MessageOutcome::Refused("channel"))
    }

    /// `number` identifies the message. It contains a mark, so only nodes that received the message
    /// can derive its id.
    fn draft(&self, number: &[u8], payload: &[u8]) -> Result<Draft, MessageOutcome> {
        if self.settings.event_bytes < payload.len() {
            return Err(MessageOutcome::Refused("size"));
        }
        let text = String::from_utf8_lossy(payload);
        let parsed = serde_json::from_str::<Value>(&text).ok();
        let find = |path: &Option<JsonPath>| path.as_ref()?.find(parsed.as_ref()?);
        let publisher_id = find(&self.id).and_then(|id| id.parse().ok());
        let derived_id = || {
            let digest = Sha256::new().chain_update(number).chain_update(payload).finalize();
            let prefix = if parsed.is_some() { MADE_ID } else { TEXT_ID };
            let id = format!("{prefix}{}", BASE64_URL_SAFE_NO_PAD.encode(&digest[..16]));
            id.parse::<MessageId>().map_err(|_| MessageOutcome::Refused("id"))
        };
        let id = publisher_id.map_or_else(derived_id, Ok)?;
        let name = find(&self.name).and_then(|name| name.parse().ok());
        Ok(Draft { id, name, data: Data::lenient(&text) })
    }
}

/// The outcome of a received message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MessageOutcome {
    /// It was added to the backlog.
    Queued,
    /// A gateway node republished it, so it is in the logs already.
    Republished,
    /// It was delivered for another pattern as well, or belongs to a channel of the gateway itself.
    Ignored,
    /// It arrived before the first mark.
    TooEarly,
    /// It cannot become an event: `channel`, `size` or `id`.
    Refused(&'static str),
}

/// What the lease holder reports with its marks; empty in the marks of other nodes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HolderProgress<'a> {
    /// Everything that the holder received before this mark is in the logs.
    pub(super) written: Option<&'a str>,
    /// The holder has received everything since this mark.
    pub(super) since: Option<&'a str>,
}

/// Numbers messages and keeps those not known to be in the logs.
#[derive(Debug)]
pub(super) struct MessageSequence {
    mapper: MessageMapper,
    /// The latest mark; messages are counted from it.
    mark: Option<Arc<str>>,
    /// The first mark since which everything was received.
    since: Option<Arc<str>>,
    /// The holder did not receive entries before this sequence number, so this node writes them.
    holder_missed: u64,
    /// Messages since the latest mark, by Redis channel.
    counts: HashMap<Bytes, u64>,
    /// The next message on this Redis channel was republished by a node.
    republished: Option<Bytes>,
    backlog: VecDeque<BacklogEntry>,
    bytes: usize,
    messages: usize,
    /// Sequence number of the oldest entry of the backlog.
    first: u64,
    /// The last mark before which everything is in the logs.
    written: Option<Arc<str>>,
    dropped: u64,
}

#[derive(Debug)]
enum BacklogEntry {
    Mark(Arc<str>),
    Message(Publication),
}

impl BacklogEntry {
    fn is_message(&self) -> bool {
        matches!(self, Self::Message(_))
    }

    /// Approximate memory, in bytes.
    fn size(&self) -> usize {
        const ENTRY: usize = size_of::<BacklogEntry>();
        match self {
            Self::Mark(mark) => ENTRY + mark.len(),
            Self::Message(Publication { draft, .. }) => ENTRY + 64 + draft.data.len(),
        }
    }
}

impl MessageSequence {
    pub(super) fn new(mapper: MessageMapper) -> Self {
        Self {
            mapper,
            mark: None,
            since: None,
            holder_missed: 0,
            counts: HashMap::new(),
            republished: None,
            backlog: VecDeque::new(),
            bytes: 0,
            messages: 0,
            first: 0,
            written: None,
            dropped: 0,
        }
    }

    /// Processes a mark: restarts the count and discards what the holder has written.
    pub(super) fn mark(&mut self, mark: &str, holder: HolderProgress<'_>) {
        let mark: Arc<str> = mark.into();
        self.counts.clear();
        self.republished = None;
        self.mark = Some(Arc::clone(&mark));
        self.since.get_or_insert_with(|| Arc::clone(&mark));
        self.push(BacklogEntry::Mark(mark));
        let holder_since = holder.since.and_then(|since| self.position_of(since));
        let end = holder_since.unwrap_or(self.first);
        let missed = self.backlog.iter().take(usize::try_from(end - self.first).unwrap_or(0));
        if missed.clone().any(BacklogEntry::is_message) {
            self.holder_missed = end;
            return;
        }
        if let Some(end) = holder.written.and_then(|written| self.position_of(written)) {
            self.discard_written(end);
        }
    }

    /// The sequence number of a mark, if it is in the backlog.
    fn position_of(&self, mark: &str) -> Option<u64> {
        let is_mark =
            |entry: &BacklogEntry| matches!(entry, BacklogEntry::Mark(other) if **other == *mark);
        self.backlog.iter().position(is_mark).map(|at| self.first + at as u64)
    }

    /// Announces that the next message on this Redis channel was republished by a node.
    pub(super) fn expect_republished(&mut self, channel: Bytes) {
        self.republished = Some(channel);
    }

    /// Processes a message that Redis delivered for a pattern.
    pub(super) fn message(
        &mut self,
        pattern: &[u8],
        channel: Bytes,
        payload: &[u8],
    ) -> MessageOutcome {
        let utf8 =
            |bytes| std::str::from_utf8(bytes).map_err(|_| MessageOutcome::Refused("channel"));
        let target = match (utf8(pattern), utf8(&channel)) {
            (Ok(pattern), Ok(name)) => self.mapper.map_channel(pattern, name),
            (Err(outcome), _) | (_, Err(outcome)) => Err(outcome),
        };
        if target == Err(MessageOutcome::Ignored) {
            return MessageOutcome::Ignored;
        }
        if self.republished.take().as_ref() == Some(&channel) {
            return MessageOutcome::Republished;
        }
        let Some(mark) = &self.mark else { return MessageOutcome::TooEarly };
        let count = self.counts.entry(channel.clone()).or_default();
        *count += 1;
        let number = [mark.as_bytes(), &channel, &count.to_be_bytes()].join(&b'\n');
        let publication = target.and_then(|channel| {
            let draft = self.mapper.draft(&number, payload)?;
            Ok(Publication { channel, draft })
        });
        match publication {
            Ok(publication) => self.push(BacklogEntry::Message(publication)),
            Err(outcome) => return outcome,
        }
        MessageOutcome::Queued
    }

    /// Records that the subscription broke: messages cannot be numbered until the next mark.
    pub(super) fn interrupted(&mut self) {
        self.mark = None;
        self.since = None;
        self.counts.clear();
        self.republished = None;
    }

    /// Up to `limit` of the oldest messages that this node has to write, and the sequence number to
    /// pass to [`discard_written`](Self::discard_written) once they are written. Without the lease,
    /// only messages that the holder did not receive.
    pub(super) fn next_batch(
        &mut self,
        limit: usize,
        holds_lease: bool,
    ) -> (u64, Vec<Publication>) {
        let writable_end = if holds_lease { u64::MAX } else { self.holder_missed };
        while self.first < writable_end
            && let Some(BacklogEntry::Mark(_)) = self.backlog.front()
        {
            self.discard_written(self.first + 1);
        }
        let mut batch = Vec::new();
        let mut end = self.first;
        for entry in &self.backlog {
            match entry {
                _ if end == writable_end => break,
                BacklogEntry::Message(_) if batch.len() == limit => break,
                BacklogEntry::Message(publication) => batch.push(publication.clone()),
                BacklogEntry::Mark(_) => {}
            }
            end += 1;
        }
        (end, batch)
    }

    /// Discards entries before a sequence number: they are in the logs.
    pub(super) fn discard_written(&mut self, end: u64) {
        while self.first < end
            && let Some(entry) = self.pop()
        {
            if let BacklogEntry::Mark(mark) = entry {
                self.written = Some(mark);
            }
        }
    }

    /// The last mark before which everything is in the logs.
    pub(super) fn written_mark(&self) -> Option<&Arc<str>> {
        self.written.as_ref()
    }

    /// The sequence number of the oldest entry that is not known to be in the logs.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// The sequence number after the newest message.
    pub(super) fn end(&self) -> u64 {
        let last = self.backlog.iter().rposition(BacklogEntry::is_message);
        last.map_or(self.first, |last| self.first + last as u64 + 1)
    }

    /// The first mark since which everything was received.
    pub(super) fn since_mark(&self) -> Option<&Arc<str>> {
        self.since.as_ref()
    }

    /// The number of messages in the backlog.
    pub(super) fn len(&self) -> usize {
        self.messages
    }

    /// The number of messages dropped because of `backlog_bytes` since the last call.
    pub(super) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    fn push(&mut self, entry: BacklogEntry) {
        self.bytes += entry.size();
        self.messages += usize::from(entry.is_message());
        self.backlog.push_back(entry);
        while self.mapper.backlog_bytes < self.bytes
            && let Some(oldest) = self.pop()
        {
            self.dropped += u64::from(oldest.is_message());
        }
    }

    fn pop(&mut self) -> Option<BacklogEntry> {
        let entry = self.backlog.pop_front()?;
        self.first += 1;
        self.bytes -= entry.size();
        self.messages -= usize::from(entry.is_message());
        Some(entry)
    }
}

#[cfg(test)]
mod tests;
