//! The embedded broker's store: records in memory, and in a file where a directory is configured.
//!
//! The file is a log of writes, one a line, each flushed to the disk before it counts. A crash can
//! leave no more than half a last line, which is dropped on the next start. A file that has grown is
//! written anew beside the old one and takes its name.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{
    broker::{
        BrokerError,
        store::{JOURNAL_NOTES, Note, Record, Store, Write, Written},
    },
    lifecycle,
};

/// Keeps the records of a single node.
#[derive(Debug)]
pub(super) struct MemoryStore {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    records: BTreeMap<String, Record>,
    journal: VecDeque<Note>,
    said: BTreeMap<String, (Instant, String)>,
    /// Lines written so far; a note's number is its line's.
    lines: u64,
    disk: Option<Disk>,
}

#[derive(Debug)]
struct Disk {
    path: PathBuf,
    file: File,
    /// Lines in the file.
    lines: usize,
    /// A write failed half-way: the file has to be written anew before the next one counts.
    torn: bool,
}

/// One write, as the file has it.
#[derive(Serialize, Deserialize)]
struct Line {
    number: u64,
    key: String,
    version: u64,
    time: u64,
    value: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

/// A file with more lines than this is written anew, with what is still needed.
const LINES_MAX: usize = 4 * JOURNAL_NOTES;

/// The file's name within the directory.
const FILE: &str = "records.jsonl";

impl MemoryStore {
    /// A store in memory alone: a restart forgets it.
    pub(super) fn volatile() -> Self {
        let state = State {
            records: BTreeMap::new(),
            journal: VecDeque::new(),
            said: BTreeMap::new(),
            lines: 0,
            disk: None,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// A store that is kept in this directory, which is made where it is missing.
    ///
    /// # Errors
    /// When the directory cannot be used, another gateway uses it, or the file is damaged.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let path = directory.join(FILE);
        let this = Self::volatile();
        {
            let mut state = this.state.lock();
            if path.exists() {
                state.read(&path)?;
            }
            let file = state.write_anew(&path)?;
            let lines = state.kept();
            state.disk = Some(Disk { path, file, lines, torn: false });
        }
        Ok(this)
    }
}

impl State {
    fn read(&mut self, path: &Path) -> io::Result<()> {
        let lock = File::open(path)?;
        refuse_second(&lock)?;
        let bytes = fs::read(path)?;
        for (at, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
            // Half a line, left by a crash: nobody was told that it was written.
            let Some(line) = line.strip_suffix(b"\n") else { break };
            let line = serde_json::from_slice(line).map_err(|err| {
                let reason = format!("line {} cannot be read: {err}", at + 1);
                io::Error::new(io::ErrorKind::InvalidData, reason)
            })?;
            self.apply(line);
        }
        Ok(())
    }

    fn apply(&mut self, line: Line) {
        let Line { number, key, version, time, value, note } = line;
        self.lines = self.lines.max(number);
        if let Some(text) = note {
            self.journal.push_back(Note { number, key: key.clone(), version, time, text });
            if JOURNAL_NOTES < self.journal.len() {
                self.journal.pop_front();
            }
        }
        let newer = self.records.get(&key).is_none_or(|record| record.version <= version);
        if newer {
            self.records.insert(key, Record { version, value });
        }
    }

    fn kept(&self) -> usize {
        self.records.len() + self.journal.len()
    }

    /// Writes what is needed to a file beside the old one, which then takes its name.
    fn write_anew(&self, path: &Path) -> io::Result<File> {
        let beside = path.with_extension("new");
        let mut file = File::create(&beside)?;
        for note in &self.journal {
            let line = Line {
                number: note.number,
                key: note.key.clone(),
                version: 0,
                time: note.time,
                value: String::new(),
                note: None,
            };
            // A note's line has no value: the record's own line, further down, has the newest.
            let line = Line { version: note.version, note: Some(note.text.clone()), ..line };
            write_line(&mut file, &line)?;
        }
        for (key, Record { version, value }) in &self.records {
            let line = Line {
                number: self.lines,
                key: key.clone(),
                version: *version,
                time: lifecycle::unix_ms(),
                value: value.clone(),
                note: None,
            };
            write_line(&mut file, &line)?;
        }
        file.sync_all()?;
        refuse_second(&file)?;
        fs::rename(&beside, path)?;
        if let Some(directory) = path.parent() {
            File::open(directory)?.sync_all()?;
        }
        Ok(file)
    }

    fn put(&mut self, key: &str, write: Write) -> io::Result<Written> {
        let found = self.records.get(key);
        if found.map_or(0, |record| record.version) != write.expected {
            return Ok(Written::Conflict(found.cloned()));
        }
        let line = Line {
            number: self.lines + 1,
            key: key.to_owned(),
            version: write.expected + 1,
            time: lifecycle::unix_ms(),
            value: write.value,
            note: write.note,
        };
        self.save(&line)?;
        let version = line.version;
        self.apply(line);
        Ok(Written::Done(version))
    }

    /// Has the line on the disk, or fails with nothing of it counted.
    fn save(&mut self, line: &Line) -> io::Result<()> {
        let Some(mut disk) = self.disk.take() else { return Ok(()) };
        let saved = self.append(&mut disk, line);
        self.disk = Some(disk);
        saved
    }

    fn append(&self, disk: &mut Disk, line: &Line) -> io::Result<()> {
        if disk.torn || LINES_MAX.max(2 * self.kept()) < disk.lines {
            disk.file = self.write_anew(&disk.path)?;
            (disk.lines, disk.torn) = (self.kept(), false);
        }
        disk.torn = true;
        write_line(&mut disk.file, line)?;
        disk.file.sync_data()?;
        disk.torn = false;
        disk.lines += 1;
        Ok(())
    }
}

fn write_line(file: &mut File, line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_string(line)?;
    text.push('\n');
    file.write_all(text.as_bytes())
}

/// One process at a time: the lock goes with it.
fn refuse_second(file: &File) -> io::Result<()> {
    let taken = || io::Error::new(io::ErrorKind::ResourceBusy, "another gateway uses it");
    file.try_lock().map_err(|_| taken())
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<Record>, BrokerError> {
        Ok(self.state.lock().records.get(key).cloned())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Record)>, BrokerError> {
        let state = self.state.lock();
        let from = state.records.range(prefix.to_owned()..);
        let found = from.take_while(|(key, _)| key.starts_with(prefix));
        Ok(found.map(|(key, record)| (key.clone(), record.clone())).collect())
    }

    async fn put(&self, key: &str, write: Write) -> Result<Written, BrokerError> {
        let (state, key) = (Arc::clone(&self.state), key.to_owned());
        // It waits for the disk.
        let put = tokio::task::spawn_blocking(move || state.lock().put(&key, write)).await;
        let put = put.map_err(|err| unavailable(&err))?;
        put.map_err(|err| unavailable(&err))
    }

    async fn journal(
        &self,
        prefix: &str,
        before: u64,
        limit: usize,
    ) -> Result<Vec<Note>, BrokerError> {
        let state = self.state.lock();
        let newest = state.journal.iter().rev().filter(|note| note.number < before);
        let about = newest.filter(|note| note.key.starts_with(prefix));
        Ok(about.take(limit).cloned().collect())
    }

    async fn tell(&self, key: &str, value: &str, keep: Duration) -> Result<(), BrokerError> {
        let said = (Instant::now() + keep, value.to_owned());
        self.state.lock().said.insert(key.to_owned(), said);
        Ok(())
    }

    async fn told(&self, prefix: &str) -> Result<Vec<(String, String)>, BrokerError> {
        let (mut state, now) = (self.state.lock(), Instant::now());
        state.said.retain(|_, (until, _)| now < *until);
        let said = state.said.iter().filter(|(key, _)| key.starts_with(prefix));
        Ok(said.map(|(key, (_, value))| (key.clone(), value.clone())).collect())
    }
}

fn unavailable(reason: &dyn std::fmt::Display) -> BrokerError {
    BrokerError::Unavailable {
        broker: "the embedded broker's data_dir".to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(expected: u64, value: &str) -> Write {
        Write { expected, value: value.to_owned(), note: Some(format!("wrote {value}")) }
    }

    #[tokio::test]
    async fn what_was_written_is_there_after_a_restart_whatever_the_crash_left() {
        let directory = tempfile::tempdir().unwrap();
        let store = MemoryStore::open(directory.path()).unwrap();
        for version in 0..5 {
            let written = store.put("flag/a", write(version, &format!("v{version}"))).await;
            assert_eq!(written.unwrap(), Written::Done(version + 1));
        }
        drop(store);
        let path = directory.path().join(FILE);
        let whole = fs::read(&path).unwrap();
        let last = whole[..whole.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
        for cut in last..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let store = MemoryStore::open(directory.path()).unwrap();
            let record = store.get("flag/a").await.unwrap().unwrap();
            assert_eq!((record.version, record.value.as_str()), (4, "v3"), "cut at {cut}");
            let notes = store.journal("flag/", u64::MAX, 10).await.unwrap();
            assert_eq!(notes.len(), 4);
            assert_eq!(store.put("flag/a", write(4, "again")).await.unwrap(), Written::Done(5));
        }
    }

    #[tokio::test]
    async fn a_damaged_file_is_not_taken_for_an_empty_one_and_a_second_gateway_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = MemoryStore::open(directory.path()).unwrap();
        store.put("a", write(0, "x")).await.unwrap();
        let second = MemoryStore::open(directory.path()).unwrap_err();
        assert_eq!(second.to_string(), "another gateway uses it");
        drop(store);
        let path = directory.path().join(FILE);
        let mut bytes = b"rubbish\n".to_vec();
        bytes.extend(fs::read(&path).unwrap());
        fs::write(&path, bytes).unwrap();
        let damaged = MemoryStore::open(directory.path()).unwrap_err();
        assert!(damaged.to_string().starts_with("line 1 cannot be read"), "{damaged}");
    }
}
