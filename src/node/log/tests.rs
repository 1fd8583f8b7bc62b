//! The log against a model: whatever is published, lost or delivered late, every reader receives every
//! event once and in order.

use proptest::prelude::*;

use super::*;
use crate::{
    protocol::{Data, Epoch},
    wire::sse,
};

const EPOCH: u64 = 35;

fn at(offset: u64) -> Position {
    Position::new(Epoch::new(EPOCH), offset)
}

fn event(offset: u64) -> Event {
    let data = Data::json(&offset.to_string()).unwrap();
    Event { id: format!("id-{offset}").parse().unwrap(), name: None, data, time: offset }
}

fn log(events: usize) -> ChannelLog {
    ChannelLog::new("news".parse().unwrap(), RingLimits { events, bytes: 1 << 20 })
}

fn ingest(log: &ChannelLog, offset: u64) -> Next {
    log.ingest(at(offset), event(offset), |_| false)
}

fn slice(after: u64, head: u64, limit: usize) -> Slice {
    let events = (after + 1..=head).take(limit).map(|offset| (offset, event(offset))).collect();
    Slice { epoch: Epoch::new(EPOCH), head, events }
}

/// A reader that takes what it is offered unless its socket is full, and otherwise reads the log itself.
#[derive(Default)]
struct ModelReader {
    state: Mutex<ReaderState>,
}

struct ReaderState {
    cursor: Position,
    received: Vec<u64>,
    full: bool,
    behind: bool,
}

impl Default for ReaderState {
    fn default() -> Self {
        Self { cursor: at(0), received: Vec::new(), full: false, behind: true }
    }
}

impl ReaderState {
    fn take(&mut self, entries: &[Arc<LogEntry>]) {
        for entry in entries {
            assert_eq!(entry.position.offset, self.cursor.offset + 1, "an offset is missing or repeated");
            self.cursor = entry.position;
            self.received.push(entry.position.offset);
        }
    }
}

impl ModelReader {
    /// What a client's task does when it is woken.
    fn catch_up(&self, log: &ChannelLog, head: u64) {
        let mut state = self.state.lock();
        while !state.full && state.behind {
            match log.read_after(state.cursor, 100) {
                Read::UpToDate => state.behind = false,
                Read::Entries(entries) => state.take(&entries),
                Read::FellBehind => {
                    for (offset, event) in slice(state.cursor.offset, head, 3).events {
                        let channel = log.channel().clone();
                        let entry = LogEntry::new(channel, at(offset), event, false);
                        state.take(&[Arc::new(entry)]);
                    }
                }
                Read::OtherEpoch(head) => panic!("unexpected epoch of {head}"),
            }
        }
    }
}

impl Reader for ModelReader {
    fn offer(&self, _tag: Tag, batch: &Batch) {
        let mut state = self.state.lock();
        if batch.ends_at().offset <= state.cursor.offset {
            return;
        }
        if state.full || state.behind || state.cursor != batch.starts_after() {
            state.behind = true;
            return;
        }
        state.take(&batch.entries);
    }

    fn wake(&self, _tag: Tag) {
        self.state.lock().behind = true;
    }
}

fn fan_out(log: &ChannelLog) {
    while let Some(batch) = log.next_batch() {
        for block in (0..).map_while(|number| log.block(number)) {
            block.offer(&batch);
        }
    }
}

fn follow(log: &ChannelLog, next: Next, head: u64) {
    match next {
        Next::FanOut => fan_out(log),
        Next::Repair => repair(log, head),
        Next::None => {}
    }
}

fn repair(log: &ChannelLog, head: u64) {
    loop {
        let after = log.missing_after();
        let repaired = log.apply_repair(slice(after, head, 4), |_, _| false);
        if repaired.next == Next::FanOut {
            fan_out(log);
        }
        if !repaired.again {
            return;
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// An event is published, and its entry arrives.
    Publish,
    /// An event is published, and its entry is lost.
    Lose,
    /// An earlier entry arrives late, or a second time.
    Late(u64),
    /// A reader's socket becomes full, or writable again.
    Toggle(usize),
    /// A reader's task reads what the reader has missed.
    Task(usize),
    /// A reader attaches whose cursor is this far behind the head.
    Attach(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => Just(Step::Publish),
        1 => Just(Step::Lose),
        1 => (0u64..30).prop_map(Step::Late),
        2 => (0usize..4).prop_map(Step::Toggle),
        2 => (0usize..4).prop_map(Step::Task),
        1 => (0u64..30).prop_map(Step::Attach),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #[test]
    fn every_reader_receives_every_event_once_and_in_order(steps in steps(), ring in 1usize..12) {
        let log = log(ring);
        log.open(at(0));
        let mut head = 0;
        let mut readers: Vec<(u64, Arc<ModelReader>)> = Vec::new();
        for step in steps {
            match step {
                Step::Publish => {
                    head += 1;
                    follow(&log, ingest(&log, head), head);
                }
                Step::Lose => head += 1,
                Step::Late(back) if back < head => {
                    follow(&log, ingest(&log, head - back), head);
                }
                Step::Attach(back) if back <= head => {
                    let reader = Arc::new(ModelReader::default());
                    reader.state.lock().cursor = at(head - back);
                    log.attach(Arc::clone(&reader) as Arc<dyn Reader>, 0);
                    readers.push((head - back, reader));
                }
                Step::Toggle(n) if n < readers.len() => {
                    let mut state = readers[n].1.state.lock();
                    state.full = !state.full;
                }
                Step::Task(n) if n < readers.len() => readers[n].1.catch_up(&log, head),
                Step::Late(_) | Step::Attach(_) | Step::Toggle(_) | Step::Task(_) => {}
            }
        }
        // The head check finds a lost last entry, and every socket becomes writable.
        follow(&log, log.observe_head(at(head)), head);
        for (from, reader) in readers {
            reader.state.lock().full = false;
            reader.state.lock().behind = true;
            reader.catch_up(&log, head);
            prop_assert_eq!(&reader.state.lock().received, &(from + 1..=head).collect::<Vec<_>>());
        }
    }
}

#[test]
fn entries_that_arrive_before_the_log_is_open_are_repaired() {
    let log = log(10);
    assert_eq!(ingest(&log, 6), Next::None);
    assert_eq!(log.open(at(5)), Next::Repair);
    repair(&log, 6);
    assert_eq!(log.head(), Some(at(6)));
}

#[test]
fn a_new_epoch_restarts_the_log_and_is_reported_to_readers() {
    let log = log(10);
    log.open(at(5));
    let other = Position::new(Epoch::new(9), 2);
    assert_eq!(log.observe_head(other), Next::Repair);
    log.missing_after();
    let other_log = Slice { epoch: other.epoch, head: 2, events: Vec::new() };
    let repaired = log.apply_repair(other_log, |_, _| false);
    assert_eq!((repaired.discontinuous, repaired.again), (true, false));
    assert!(matches!(log.read_after(at(5), 100), Read::OtherEpoch(head) if head == other));
}

#[test]
fn entries_removed_by_retention_before_a_repair_are_a_discontinuity() {
    let log = log(10);
    log.open(at(5));
    assert_eq!(ingest(&log, 9), Next::Repair);
    log.missing_after();
    let rest = Slice { events: vec![(8, event(8)), (9, event(9))], ..slice(5, 9, 0) };
    assert!(log.apply_repair(rest, |_, _| false).discontinuous);
    assert!(matches!(log.read_after(at(5), 100), Read::FellBehind));
    assert!(matches!(log.read_after(at(7), 100), Read::Entries(entries) if entries.len() == 2));
}

#[test]
fn a_message_under_a_second_offset_keeps_its_position_and_is_not_delivered() {
    let log = log(10);
    log.open(at(0));
    assert_eq!(log.ingest(at(1), event(1), |_| false), Next::FanOut);
    let batch = log.next_batch().unwrap();
    assert_eq!(batch.visible_count(), 1);
    assert!(log.next_batch().is_none());
    assert_eq!(log.ingest(at(2), event(1), |_| true), Next::FanOut);
    let batch = log.next_batch().unwrap();
    assert_eq!((batch.ends_at(), batch.visible_count()), (at(2), 0));
    assert!(batch.joined(sse::ENVELOPE).is_empty());
}

#[test]
fn the_ring_stays_within_its_bytes_but_keeps_one_entry() {
    let limits = RingLimits { events: 100, bytes: 1000 };
    let log = ChannelLog::new("news".parse().unwrap(), limits);
    log.open(at(0));
    for offset in 1..=50 {
        let data = Data::json(&format!("\"{}\"", "x".repeat(5000))).unwrap();
        log.ingest(at(offset), Event { data, ..event(offset) }, |_| false);
    }
    assert!(log.covers(49));
    assert!(!log.covers(48));
}

#[test]
fn the_ring_is_filled_backwards_with_consecutive_entries_only() {
    let log = log(5);
    log.open(at(10));
    ingest(&log, 11);
    assert_eq!(log.free_before(), (10, 4));
    let backwards = [10, 9, 7].map(|offset| (offset, event(offset))).to_vec();
    log.prepend(Slice { events: backwards, ..slice(0, 11, 0) });
    assert!(log.covers(8));
    assert!(!log.covers(7));
}
