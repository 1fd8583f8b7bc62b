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

fn arrive(log: &ChannelLog, offset: u64) -> Next {
    log.ingest(at(offset), event(offset), |_| false)
}

fn slice(after: u64, head: u64, limit: usize) -> Slice {
    let events = (after + 1..=head).take(limit).map(|offset| (offset, event(offset))).collect();
    Slice { epoch: Epoch::new(EPOCH), head, events }
}

/// A reader that takes what it is offered while it is not busy, and looks for itself otherwise.
#[derive(Default)]
struct Ana {
    desk: Mutex<TestReader>,
}

struct TestReader {
    cursor: Position,
    heard: Vec<u64>,
    busy: bool,
    behind: bool,
}

impl Default for TestReader {
    fn default() -> Self {
        Self { cursor: at(0), heard: Vec::new(), busy: false, behind: true }
    }
}

impl TestReader {
    fn take(&mut self, entries: &[Arc<LogEntry>]) {
        for entry in entries {
            assert_eq!(entry.position.offset, self.cursor.offset + 1, "a hole or a repeat");
            self.cursor = entry.position;
            self.heard.push(entry.position.offset);
        }
    }
}

impl Ana {
    /// What a client's task does when it is woken.
    fn catch_up(&self, log: &ChannelLog, head: u64) {
        let mut desk = self.desk.lock();
        while !desk.busy && desk.behind {
            match log.read_after(desk.cursor, 100) {
                Read::UpToDate => desk.behind = false,
                Read::Entries(entries) => desk.take(&entries),
                Read::FellBehind => {
                    for (offset, event) in slice(desk.cursor.offset, head, 3).events {
                        let channel = log.channel().clone();
                        let entry = LogEntry::new(channel, at(offset), event, false);
                        desk.take(&[Arc::new(entry)]);
                    }
                }
                Read::OtherEpoch(head) => panic!("the log is still the same, not at {head}"),
            }
        }
    }
}

impl Reader for Ana {
    fn offer(&self, _tag: Tag, batch: &Batch) {
        let mut desk = self.desk.lock();
        if batch.ends_at().offset <= desk.cursor.offset {
            return;
        }
        if desk.busy || desk.behind || desk.cursor != batch.starts_after() {
            desk.behind = true;
            return;
        }
        desk.take(&batch.entries);
    }

    fn wake(&self, _tag: Tag) {
        self.desk.lock().behind = true;
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
    /// An event is published and arrives.
    Publish,
    /// An event is published, and lost on the way.
    Lose,
    /// An old entry arrives once more, or late.
    Late(u64),
    /// A reader's socket is full, or takes bytes again.
    Toggle(usize),
    /// A reader's task runs.
    Task(usize),
    /// A reader comes that holds some of it already.
    Come(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => Just(Step::Publish),
        1 => Just(Step::Lose),
        1 => (0u64..30).prop_map(Step::Late),
        2 => (0usize..4).prop_map(Step::Toggle),
        2 => (0usize..4).prop_map(Step::Task),
        1 => (0u64..30).prop_map(Step::Come),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #[test]
    fn every_reader_gets_every_event_once_and_in_order(steps in steps(), ring in 1usize..12) {
        let log = log(ring);
        log.open(at(0));
        let mut head = 0;
        let mut readers: Vec<(u64, Arc<Ana>)> = Vec::new();
        for step in steps {
            match step {
                Step::Publish => {
                    head += 1;
                    follow(&log, arrive(&log, head), head);
                }
                Step::Lose => head += 1,
                Step::Late(back) if back < head => {
                    follow(&log, arrive(&log, head - back), head);
                }
                Step::Come(back) if back <= head => {
                    let ana = Arc::new(Ana::default());
                    ana.desk.lock().cursor = at(head - back);
                    log.attach(Arc::clone(&ana) as Arc<dyn Reader>, 0);
                    readers.push((head - back, ana));
                }
                Step::Toggle(n) if n < readers.len() => {
                    let mut desk = readers[n].1.desk.lock();
                    desk.busy = !desk.busy;
                }
                Step::Task(n) if n < readers.len() => readers[n].1.catch_up(&log, head),
                Step::Late(_) | Step::Come(_) | Step::Toggle(_) | Step::Task(_) => {}
            }
        }
        // The head check finds what was lost last, and nobody stays busy for ever.
        follow(&log, log.observe_head(at(head)), head);
        for (from, ana) in readers {
            ana.desk.lock().busy = false;
            ana.desk.lock().behind = true;
            ana.catch_up(&log, head);
            prop_assert_eq!(&ana.desk.lock().heard, &(from + 1..=head).collect::<Vec<_>>());
        }
    }
}

#[test]
fn news_from_before_the_log_was_open_are_missing_not_lost() {
    let log = log(10);
    assert_eq!(arrive(&log, 6), Next::None);
    assert_eq!(log.open(at(5)), Next::Repair);
    repair(&log, 6);
    assert_eq!(log.head(), Some(at(6)));
}

#[test]
fn a_new_epoch_starts_the_log_anew_and_tells_the_readers() {
    let log = log(10);
    log.open(at(5));
    let other = Position::new(Epoch::new(9), 2);
    assert_eq!(log.observe_head(other), Next::Repair);
    log.missing_after();
    let anew = Slice { epoch: other.epoch, head: 2, events: Vec::new() };
    let repaired = log.apply_repair(anew, |_, _| false);
    assert_eq!((repaired.discontinuous, repaired.again), (true, false));
    assert!(matches!(log.read_after(at(5), 100), Read::OtherEpoch(head) if head == other));
}

#[test]
fn what_retention_took_from_a_hole_makes_readers_look_for_themselves() {
    let log = log(10);
    log.open(at(5));
    assert_eq!(arrive(&log, 9), Next::Repair);
    log.missing_after();
    let rest = Slice { events: vec![(8, event(8)), (9, event(9))], ..slice(5, 9, 0) };
    assert!(log.apply_repair(rest, |_, _| false).discontinuous);
    assert!(matches!(log.read_after(at(5), 100), Read::FellBehind));
    assert!(matches!(log.read_after(at(7), 100), Read::Entries(entries) if entries.len() == 2));
}

#[test]
fn a_message_under_a_second_offset_keeps_its_place_and_is_not_shown() {
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
fn the_ring_stays_within_its_bytes_but_holds_one_entry_in_any_case() {
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
fn the_ring_is_filled_up_backwards_as_far_as_it_follows_on() {
    let log = log(5);
    log.open(at(10));
    arrive(&log, 11);
    assert_eq!(log.free_before(), (10, 4));
    let back = [10, 9, 7].map(|offset| (offset, event(offset))).to_vec();
    log.prepend(Slice { events: back, ..slice(0, 11, 0) });
    assert!(log.covers(8));
    assert!(!log.covers(7));
}
