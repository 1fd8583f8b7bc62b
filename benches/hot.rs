//! What the hot paths cost by themselves: an event into frames, from the feed into a log, to its
//! readers, and what a client says.
//!
//! No socket, no system call, and nearly all of it in the CPU's cache: the load test measures a
//! delivery as a whole. Nothing is public for this file's sake; a connection's client is not, so a
//! [`Listener`] does here what that does short of writing.

use std::{
    collections::HashMap,
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{BatchSize, BenchmarkGroup, BenchmarkId, Criterion, measurement::WallTime};
use crossfade::{
    broker::{
        Entry, FEED_CAPACITY, Incoming, Retention, Retentions,
        memory::{MemoryBroker, MemoryConfig},
    },
    lifecycle::Stage,
    metrics::Metrics,
    node::{Batch, ChannelLog, DedupConfig, Node, NodeConfig, Reader, Tag, log::RingLimits},
    protocol::{
        Channel, ClientFrame, Data, Epoch, Event, MessageId, Position, Positions, SessionId,
        rfc6455::{self, Decoder},
    },
    session::Session,
    wire::{sse, websocket},
};
use parking_lot::Mutex;
use tokio::{runtime::Builder, sync::mpsc, task::yield_now};

/// The gateway's own.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Bytes of an event's data.
const SIZES: [usize; 2] = [200, 4096];

/// So many inputs are made at a time: the clock is not felt, and they stay in the cache.
const AT_ONCE: BatchSize = BatchSize::NumIterations(64);

const TIME: u64 = 1_763_692_800_000;

fn main() {
    let mut criterion = Criterion::default()
        .without_plots()
        .sample_size(20)
        .nresamples(10_000)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(700))
        .configure_from_args();
    encode(&mut criterion);
    ingest(&mut criterion);
    wake_up(&mut criterion);
    session(&mut criterion);
    client_frame(&mut criterion);
    criterion.final_summary();
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    for size in SIZES {
        let (channel, event) = (channel(1), event(&json(size)));
        for (name, format) in [("websocket", websocket::TEXT), ("sse", sse::ENVELOPE)] {
            group.bench_function(BenchmarkId::new(name, size), |bencher| {
                bencher.iter(|| format.codec.event(&channel, at(17), &event));
            });
        }
    }
}

fn ingest(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ingest");
    let text = json(SIZES[0]);
    let (log, mut offset) = (open_log(), 0);
    group.bench_function("log", |bencher| {
        let take = |event| {
            offset += 1;
            log.ingest(at(offset), event, |_| false);
            while log.next_batch().is_some() {}
        };
        bencher.iter_batched(|| event(&text), take, AT_ONCE);
    });
    feed(&mut group, &text);
}

/// The whole way: the feed, the pump, the hub's dedup window, the log, one frame, one reader.
fn feed(group: &mut BenchmarkGroup<'_, WallTime>, text: &str) {
    let (stage, dedup) = (Stage::default(), DedupConfig::default());
    let runtime = Builder::new_current_thread().enable_time().build().expect("a thread is there");
    let (news, source) = mpsc::channel(FEED_CAPACITY);
    let (mut hold, start) = runtime.block_on(async {
        let retention = Retention { events: 1, age: dedup.window, dedup: dedup.window };
        let retentions = Arc::new(Retentions::new(retention, HashMap::new()));
        let opened = MemoryBroker::open(&MemoryConfig::default(), retentions);
        let source = (Arc::new(opened.expect("it has no directory").0) as _, source);
        let metrics = Arc::new(Metrics::new());
        let node = Node::start(&NodeConfig::default(), &dedup, source, metrics, &stage);
        node.attach(&channel(1), None).await.expect("an embedded broker is there")
    });
    let mut position = start.cursor;
    let listener = Arc::new(Listener::at(position));
    hold.attach(Arc::clone(&listener) as _, 0);
    let mut pass = |mut events: u64| {
        let mut spent = Duration::ZERO;
        while 0 < events {
            let some = events.min(FEED_CAPACITY as u64);
            events -= some;
            let entry = |_| {
                position.offset += 1;
                Incoming::Entry(Entry { channel: channel(1), position, event: event(text) })
            };
            let entries: Vec<_> = (0..some).map(entry).collect();
            let begin = Instant::now();
            for entry in entries {
                news.try_send(entry).expect("all before it were taken");
            }
            // On a runtime with one thread the pump runs here, and only here.
            runtime.block_on(async {
                while listener.0.lock().positions() != Positions::One(position) {
                    yield_now().await;
                }
            });
            spent += begin.elapsed();
        }
        spent
    };
    // A window that is not full yet forgets nothing.
    pass(dedup.delivered_ids.get() as u64);
    group.bench_function("feed", |bencher| bencher.iter_custom(&mut pass));
}

fn wake_up(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wake_up");
    let text = json(SIZES[0]);
    for readers in [1, 1000] {
        let (log, mut offset) = (open_log(), 0);
        for _ in 0..readers {
            log.attach(Arc::new(Listener::at(at(0))), 0);
        }
        let mut next = || {
            offset += 1;
            log.ingest(at(offset), event(&text), |_| false);
            let batch = log.next_batch().expect("an event came");
            batch.joined(websocket::TEXT);
            batch
        };
        // As the hub does it.
        let walk = |batch: &mut Batch| {
            for row in (0..).map_while(|number| log.block(number)) {
                row.offer(batch);
            }
        };
        group.bench_function(BenchmarkId::from_parameter(readers), |bencher| {
            bencher.iter_batched_ref(&mut next, walk, AT_ONCE);
        });
    }
}

fn session(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("session");
    for channels in [1, 10, 128] {
        let (mut session, tag) = session_of(channels);
        group.bench_function(BenchmarkId::new("cursor", channels), |bencher| {
            bencher.iter(|| {
                let subscription = session.by_tag(black_box(tag)).expect("it was opened");
                subscription.cursor.offset += 1;
            });
        });
        let encoded = sse::ENVELOPE.codec.event(&channel(1), at(17), &event(&json(200)));
        group.bench_function(BenchmarkId::new("positions", channels), |bencher| {
            bencher.iter(|| {
                let positions = session.positions_with(tag, at(17));
                sse::ENVELOPE.codec.event_with_positions(&encoded, &positions)
            });
        });
    }
}

fn client_frame(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("client_frame");
    let publish =
        |size| format!(r#"{{"type":"publish","id":7,"channel":"orders:1","data":{}}}"#, json(size));
    let subscribe = r#"{"type":"subscribe","id":7,"channel":"orders:1","since":"z-17"}"#;
    for (name, text) in [
        ("pong", r#"{"type":"pong"}"#.to_owned()),
        ("subscribe", subscribe.to_owned()),
        ("publish_200", publish(200)),
        ("publish_4096", publish(4096)),
    ] {
        let (mut decoder, masked) = (Decoder::default(), masked(&text));
        group.bench_function(BenchmarkId::new("decode", name), |bencher| {
            bencher.iter(|| {
                let mut messages = Vec::new();
                decoder.feed(&masked, 1 << 20, &mut messages).map(|()| messages)
            });
        });
        group.bench_function(BenchmarkId::new("parse", name), |bencher| {
            bencher.iter(|| ClientFrame::parse(&text));
        });
    }
}

/// A client that has caught up, without its socket.
struct Listener(Mutex<Session<()>>);

impl Listener {
    fn at(cursor: Position) -> Self {
        let mut session = Session::new(SessionId::generate());
        session.subscribe(channel(1), cursor, ());
        Self(Mutex::new(session))
    }
}

impl Reader for Listener {
    fn offer(&self, tag: Tag, batch: &Batch) {
        let mut session = self.0.lock();
        let Some(subscription) = session.by_tag(tag) else { return };
        if subscription.has_delivered(batch.ends_at()) {
            return;
        }
        assert_eq!(subscription.cursor, batch.starts_after(), "a batch was passed over");
        black_box(batch.joined(websocket::TEXT));
        subscription.cursor = batch.ends_at();
    }

    fn wake(&self, _: Tag) {}
}

fn open_log() -> ChannelLog {
    let config = NodeConfig::default();
    let (events, bytes) = (config.ring_events.get(), config.ring_bytes.get());
    let log = ChannelLog::new(channel(1), RingLimits { events, bytes });
    log.open(at(0));
    log
}

/// A session that reads so many channels, and the tag of the last of them.
fn session_of(channels: usize) -> (Session<()>, Tag) {
    let mut session = Session::new(SessionId::generate());
    let tags = (1..=channels).map(|number| session.subscribe(channel(number), at(0), ()));
    let tag = tags.last().expect("it reads one at least");
    (session, tag)
}

fn channel(number: usize) -> Channel {
    format!("orders:{number}").parse().expect("it is a name")
}

fn at(offset: u64) -> Position {
    Position::new(Epoch::new(2_176_782_335), offset)
}

fn event(text: &str) -> Event {
    let data = Data::json(text).expect("it is JSON");
    let name = Some("created".parse().expect("it is a name"));
    Event { id: MessageId::generate(), name, data, time: TIME }
}

/// About so many bytes of JSON.
fn json(bytes: usize) -> String {
    let item = r#"{"side":"buy","price":101.25,"size":70}"#;
    format!("[{}]", vec![item; bytes / (item.len() + 1)].join(","))
}

/// A text as a client sends it. A mask of zeros costs as much as any.
fn masked(text: &str) -> Vec<u8> {
    let mut bytes = rfc6455::text(text).to_vec();
    let head = bytes.len() - text.len();
    bytes[1] |= 0x80;
    bytes.splice(head..head, [0; 4]);
    bytes
}
