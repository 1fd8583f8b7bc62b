//! Which message is which, and what is not known to be in the logs yet. Pure.
//!
//! A mark begins a new count; a message is the n-th of its channel behind a mark. Every node that
//! heard the mark and everything since counts alike, so the id made of both, and of the content, is
//! the same on all of them; two equal payloads in a row are two messages. A node that has not heard
//! a mark yet, or not everything since, cannot tell, and keeps nothing.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::TakeInConfig;
use crate::{
    broker::Publication,
    legacy::{
        Bounds, JsonPath,
        pattern::{Glob, Template},
    },
    protocol::{
        Channel, Data, Draft, MessageId,
        id::{MADE_ID, TEXT_ID},
    },
};

/// What a message of a Redis channel becomes.
#[derive(Debug)]
pub(super) struct Ingest {
    patterns: Vec<Glob>,
    channel: Template,
    id: Option<JsonPath>,
    name: Option<JsonPath>,
    bounds: Bounds,
    marks: String,
    backlog_bytes: usize,
}

impl Ingest {
    pub(super) fn new(config: &TakeInConfig, bounds: Bounds) -> Self {
        Self {
            patterns: config.patterns.clone(),
            channel: config.channel.clone(),
            id: config.id.clone(),
            name: config.name.clone(),
            bounds,
            marks: format!("{}:marks", config.prefix),
            backlog_bytes: config.backlog_bytes,
        }
    }

    /// Whether a name is one of the gateway's own channels in Redis.
    fn is_ours(&self, name: &str) -> bool {
        let bell = |prefix: &String| {
            let rest = name.strip_prefix(&**prefix);
            rest.is_some_and(|rest| rest.starts_with(":{"))
        };
        name == self.marks || self.bounds.bells.as_ref().is_some_and(bell)
    }

    fn target(&self, pattern: &str, name: &str) -> Result<Channel, Verdict> {
        if self.is_ours(name) {
            return Err(Verdict::NotMeant);
        }
        // Redis says a message once for each pattern that it fits.
        let mut fitting = self.patterns.iter().filter_map(|p| Some((p, p.captures(name)?)));
        let Some((_, captures)) = fitting.next().filter(|(first, _)| first.as_str() == pattern)
        else {
            return Err(Verdict::NotMeant);
        };
        let target = self.channel.fill(&captures).map_err(|_| Verdict::Refused("channel"))?;
        target.parse().map_err(|_| Verdict::Refused("channel"))
    }

    /// `number` is made of what nobody but the hearers of this message knows.
    fn draft(&self, number: &[u8], payload: &[u8]) -> Result<Draft, Verdict> {
        if self.bounds.event_bytes < payload.len() {
            return Err(Verdict::Refused("size"));
        }
        let text = String::from_utf8_lossy(payload);
        let parsed = serde_json::from_str::<Value>(&text).ok();
        let at = |path: &Option<JsonPath>| path.as_ref()?.find(parsed.as_ref()?);
        let given = at(&self.id).and_then(|id| id.parse().ok());
        let made = || {
            let digest = Sha256::new().chain_update(number).chain_update(payload).finalize();
            let kind = if parsed.is_some() { MADE_ID } else { TEXT_ID };
            let id = format!("{kind}{}", BASE64_URL_SAFE_NO_PAD.encode(&digest[..16]));
            id.parse::<MessageId>().map_err(|_| Verdict::Refused("id"))
        };
        let id = given.map_or_else(made, Ok)?;
        let name = at(&self.name).and_then(|name| name.parse().ok());
        Ok(Draft { id, name, data: Data::lenient(&text) })
    }
}

/// What became of a message that was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is in the backlog.
    Kept,
    /// A node PUBLISHed it itself.
    Copy,
    /// It is the same as one heard for another pattern, or the gateway's own.
    NotMeant,
    /// It came before the first mark.
    Unnumbered,
    /// It can be no event: `channel` or `size`.
    Refused(&'static str),
}

/// What the holder says of itself with a mark; nothing with a mark of another node's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Holder<'a> {
    /// Everything before this mark that it heard is in the logs.
    pub(super) done: Option<&'a str>,
    /// It heard everything since this one.
    pub(super) since: Option<&'a str>,
}

/// What was heard, in order.
#[derive(Debug)]
pub(super) struct MessageSequence {
    taking: Ingest,
    mark: Option<Arc<str>>,
    /// The first mark since which everything was heard.
    since: Option<Arc<str>>,
    /// What was heard before this number, the holder did not hear: it is for this node to write.
    orphans: u64,
    counts: HashMap<Bytes, u64>,
    /// The next message of this channel is a copy.
    copied: Option<Bytes>,
    backlog: VecDeque<Heard>,
    bytes: usize,
    messages: usize,
    /// The number of the first of the backlog, of all that was heard.
    first: u64,
    /// Everything before this mark is in the logs.
    done: Option<Arc<str>>,
    overflown: u64,
}

#[derive(Debug)]
enum Heard {
    Mark(Arc<str>),
    Message(Publication),
}

impl Heard {
    fn is_message(&self) -> bool {
        matches!(self, Self::Message(_))
    }

    fn weight(&self) -> usize {
        const SELF: usize = size_of::<Heard>();
        match self {
            Self::Mark(mark) => SELF + mark.len(),
            Self::Message(Publication { draft, .. }) => SELF + 64 + draft.data.len(),
        }
    }
}

impl MessageSequence {
    pub(super) fn new(taking: Ingest) -> Self {
        Self {
            taking,
            mark: None,
            since: None,
            orphans: 0,
            counts: HashMap::new(),
            copied: None,
            backlog: VecDeque::new(),
            bytes: 0,
            messages: 0,
            first: 0,
            done: None,
            overflown: 0,
        }
    }

    /// A node's mark was heard.
    pub(super) fn mark(&mut self, mark: &str, holder: Holder<'_>) {
        let mark: Arc<str> = mark.into();
        self.counts.clear();
        self.copied = None;
        self.mark = Some(Arc::clone(&mark));
        self.since.get_or_insert_with(|| Arc::clone(&mark));
        self.keep(Heard::Mark(mark));
        let heard_since = holder.since.and_then(|since| self.place_of(since));
        let upto = heard_since.unwrap_or(self.first);
        let before = self.backlog.iter().take(usize::try_from(upto - self.first).unwrap_or(0));
        if before.clone().any(Heard::is_message) {
            self.orphans = upto;
            return;
        }
        if let Some(place) = holder.done.and_then(|done| self.place_of(done)) {
            self.written(place);
        }
    }

    /// The number of a mark, if it is in the backlog.
    fn place_of(&self, mark: &str) -> Option<u64> {
        let is = |heard: &Heard| matches!(heard, Heard::Mark(found) if **found == *mark);
        self.backlog.iter().position(is).map(|at| self.first + at as u64)
    }

    /// The next message of this channel is one that a node PUBLISHed itself.
    pub(super) fn copied(&mut self, channel: Bytes) {
        self.copied = Some(channel);
    }

    /// A message was heard, for a pattern.
    pub(super) fn message(&mut self, pattern: &[u8], channel: Bytes, payload: &[u8]) -> Verdict {
        let text = |bytes| std::str::from_utf8(bytes).map_err(|_| Verdict::Refused("channel"));
        let target = match (text(pattern), text(&channel)) {
            (Ok(pattern), Ok(name)) => self.taking.target(pattern, name),
            (Err(verdict), _) | (_, Err(verdict)) => Err(verdict),
        };
        if target == Err(Verdict::NotMeant) {
            return Verdict::NotMeant;
        }
        if self.copied.take().as_ref() == Some(&channel) {
            return Verdict::Copy;
        }
        let Some(mark) = &self.mark else { return Verdict::Unnumbered };
        let count = self.counts.entry(channel.clone()).or_default();
        *count += 1;
        let number = [mark.as_bytes(), &channel, &count.to_be_bytes()].join(&b'\n');
        let publication = target.and_then(|channel| {
            let draft = self.taking.draft(&number, payload)?;
            Ok(Publication { channel, draft })
        });
        match publication {
            Ok(publication) => self.keep(Heard::Message(publication)),
            Err(verdict) => return verdict,
        }
        Verdict::Kept
    }

    /// Listening was interrupted: the count is lost until the next mark.
    pub(super) fn interrupted(&mut self) {
        self.mark = None;
        self.since = None;
        self.counts.clear();
        self.copied = None;
    }

    /// The oldest messages that are not known to be in the logs and are for this node to write, at
    /// most so many, and what to say to [`written`](Self::written) once they are.
    pub(super) fn next(&mut self, most: usize, holds: bool) -> (u64, Vec<Publication>) {
        let end = if holds { u64::MAX } else { self.orphans };
        while self.first < end
            && let Some(Heard::Mark(_)) = self.backlog.front()
        {
            self.written(self.first + 1);
        }
        let mut batch = Vec::new();
        let mut upto = self.first;
        for heard in &self.backlog {
            match heard {
                _ if upto == end => break,
                Heard::Message(_) if batch.len() == most => break,
                Heard::Message(publication) => batch.push(publication.clone()),
                Heard::Mark(_) => {}
            }
            upto += 1;
        }
        (upto, batch)
    }

    /// What was heard before this number is in the logs.
    pub(super) fn written(&mut self, upto: u64) {
        while self.first < upto
            && let Some(heard) = self.pop()
        {
            if let Heard::Mark(mark) = heard {
                self.done = Some(mark);
            }
        }
    }

    /// The last mark before which everything is in the logs.
    pub(super) fn done(&self) -> Option<&Arc<str>> {
        self.done.as_ref()
    }

    /// The number of the first that is not known to be in the logs.
    pub(super) fn begin(&self) -> u64 {
        self.first
    }

    /// The number behind the last message.
    pub(super) fn end(&self) -> u64 {
        let last = self.backlog.iter().rposition(Heard::is_message);
        last.map_or(self.first, |last| self.first + last as u64 + 1)
    }

    /// The first mark since which everything was heard.
    pub(super) fn since(&self) -> Option<&Arc<str>> {
        self.since.as_ref()
    }

    /// How many messages wait.
    pub(super) fn len(&self) -> usize {
        self.messages
    }

    /// How many messages were dropped since this was asked last, because too much waits.
    pub(super) fn overflown(&mut self) -> u64 {
        std::mem::take(&mut self.overflown)
    }

    fn keep(&mut self, heard: Heard) {
        self.bytes += heard.weight();
        self.messages += usize::from(heard.is_message());
        self.backlog.push_back(heard);
        while self.taking.backlog_bytes < self.bytes
            && let Some(oldest) = self.pop()
        {
            self.overflown += u64::from(oldest.is_message());
        }
    }

    fn pop(&mut self) -> Option<Heard> {
        let heard = self.backlog.pop_front()?;
        self.first += 1;
        self.bytes -= heard.weight();
        self.messages -= usize::from(heard.is_message());
        Some(heard)
    }
}

#[cfg(test)]
mod tests;
