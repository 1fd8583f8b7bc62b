//! A server that does wrong on purpose, and what the books say of it.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use indicatif::ProgressBar;

use super::{
    Pace, Plan,
    lane::{Calm, Lane, Turmoil},
};
use crate::{
    frames,
    measure::Process,
    publisher::{Publisher, http::HttpPublisher},
    swarm::{Swarm, Watch},
    target::{Dialogue, Mix, Target, Transport},
    targets::crossfade::{WebSocket, wording},
    verify::{Mark, Marker, Tally},
};

/// What a subscriber is sent when an event is published: (subscriber, number) to numbers.
type Script = fn(usize, u64) -> Vec<u64>;

/// The warm-up's numbers come before the turn's.
const CALLS: u64 = 10;
const DELIVERIES: u64 = 3 * CALLS;

/// Three subscribers of one channel, [`CALLS`] bursts of one.
pub(super) fn plan() -> Plan {
    Plan {
        subscribers: 3,
        channels: 1,
        publishers: 1,
        shared: false,
        bytes: 0,
        burst: 1,
        batch: 1,
        pace: Pace::Window(1),
        publishes: CALLS,
        time: Duration::from_secs(20),
        patience: Duration::from_millis(200),
        watch: Watch::Sweep,
        names: false,
    }
}

/// One turn against a server that follows `script`, with something beside it.
fn turn(script: Script, plan: &Plan, turmoil: &mut dyn Turmoil) -> Tally {
    let target = Box::new(Scripted::start(script));
    let mix = Mix::only(Transport::WebSocket);
    let mut lane = Lane::open(target, plan, &mix, |_| {}).unwrap();
    lane.warm_up(plan).unwrap();
    lane.turn(plan, turmoil, &ProgressBar::hidden()).unwrap();
    Tally { bytes: 0, ..lane.into_figures().tally() }
}

fn tally(script: Script, plan: &Plan) -> Tally {
    turn(script, plan, &mut Calm)
}

#[test]
fn a_server_that_keeps_its_word_has_nothing_to_hear() {
    let flawless = Tally { deliveries: DELIVERIES, ..Tally::default() };
    for watch in [Watch::Sweep, Watch::Epoll] {
        for pace in [Pace::Window(1), Pace::Window(4), Pace::Rate(500.0)] {
            assert_eq!(tally(|_, seq| vec![seq], &Plan { watch, pace, ..plan() }), flawless);
        }
    }
    let four = Tally { deliveries: 4 * DELIVERIES, ..Tally::default() };
    assert_eq!(tally(|_, seq| vec![seq], &Plan { burst: 4, ..plan() }), four);
    let many = Plan { publishers: 3, shared: true, pace: Pace::Window(3), ..plan() };
    assert_eq!(tally(|_, seq| vec![seq], &many), flawless);
}

#[test]
fn what_a_server_loses_is_missed() {
    let lossy: Script = |subscriber, seq| match (subscriber, seq) {
        // One from the middle, two from the end.
        (1, 12) | (2, 18 | 19) => vec![],
        _ => vec![seq],
    };
    let expected = Tally { deliveries: DELIVERIES - 3, lost: 3, ..Tally::default() };
    assert_eq!(tally(lossy, &plan()), expected);
    assert_eq!(tally(lossy, &Plan { pace: Pace::Rate(200.0), ..plan() }), expected);
}

#[test]
fn what_a_server_doubles_is_noticed() {
    let stutter: Script = |subscriber, seq| match (subscriber, seq) {
        (0, 13 | 19) => vec![seq, seq],
        (1, 15) => vec![15, 11],
        _ => vec![seq],
    };
    let expected = Tally { deliveries: DELIVERIES, doubled: 3, ..Tally::default() };
    assert_eq!(tally(stutter, &plan()), expected);
}

#[test]
fn what_a_server_reorders_is_noticed() {
    let muddle: Script = |subscriber, seq| match (subscriber, seq) {
        (2, 14) => vec![],
        (2, 15) => vec![15, 14],
        _ => vec![seq],
    };
    let expected = Tally { deliveries: DELIVERIES, reordered: 1, ..Tally::default() };
    assert_eq!(tally(muddle, &plan()), expected);
}

#[test]
fn what_goes_wrong_in_the_warm_up_counts() {
    let late: Script = |_, seq| if seq == 3 { vec![] } else { vec![seq] };
    let expected = Tally { deliveries: DELIVERIES, lost: 3, ..Tally::default() };
    assert_eq!(tally(late, &plan()), expected);
}

/// Moves one subscriber over, as a rollout does.
struct MoveOne(bool);

impl Turmoil for MoveOne {
    fn stir(&mut self, swarm: &mut Swarm, _now: u64) -> anyhow::Result<()> {
        if !std::mem::replace(&mut self.0, true) {
            swarm.move_over(1, Transport::WebSocket)?;
        }
        Ok(())
    }
}

#[test]
fn what_two_connections_of_one_subscriber_bring_is_no_mishap() {
    let flawless = Tally { deliveries: DELIVERIES, ..Tally::default() };
    for watch in [Watch::Sweep, Watch::Epoll] {
        let plan = Plan { watch, pace: Pace::Rate(200.0), ..plan() };
        assert_eq!(turn(|_, seq| vec![seq], &plan, &mut MoveOne(false)), flawless);
    }
}

/// A gateway in a thread, as far as a subscriber and a publisher can tell.
struct Scripted(SocketAddr);

impl Scripted {
    fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let room = Arc::new(Mutex::new(Vec::new()));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, room) = (stream.unwrap(), Arc::clone(&room));
                // Ends with its client.
                thread::spawn(move || serve(&stream, &room, script));
            }
        });
        Self(address)
    }
}

impl Target for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    fn process(&self) -> Process {
        Process(std::process::id())
    }

    fn address(&self) -> SocketAddr {
        self.0
    }

    fn dialogue(&self, _transport: Transport) -> Arc<dyn Dialogue> {
        Arc::new(WebSocket)
    }

    fn publisher(&mut self) -> anyhow::Result<Box<dyn Publisher>> {
        Ok(Box::new(HttpPublisher::connect(self.0, wording)?))
    }

    fn expect_alive(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

fn serve(stream: &TcpStream, room: &Mutex<Vec<TcpStream>>, script: Script) {
    let mut reader = BufReader::new(stream);
    while let Some((first, len)) = read_head(&mut reader) {
        let mut out = stream;
        if first.starts_with("GET") {
            out.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").unwrap();
            // A subscribe is as long as its channel's name makes it.
            reader.read_exact(&mut [0; 6]).unwrap();
            let mut room = room.lock().unwrap();
            room.push(stream.try_clone().unwrap());
            out.write_all(&frames::server_text(br#"{"type":"subscribed"}"#)).unwrap();
            return;
        }
        let mut body = vec![0; len];
        reader.read_exact(&mut body).unwrap();
        let mut room = room.lock().unwrap();
        let marker = Marker::default();
        let mut rest = &body[..];
        while let Some((mark, behind)) = marker.find(rest) {
            rest = behind;
            for (subscriber, stream) in room.iter_mut().enumerate() {
                let again = |seq: &u64| Mark { seq: *seq, ..mark }.payload(0);
                let frame = |seq: &u64| frames::server_text(again(seq).as_bytes());
                let frames: Vec<u8> = script(subscriber, mark.seq).iter().flat_map(frame).collect();
                // One that moved away is gone.
                let _ = stream.write_all(&frames);
            }
        }
        drop(room);
        out.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]").unwrap();
    }
}

/// The first line of a request and the length of its body; none at the end.
fn read_head(reader: &mut BufReader<&TcpStream>) -> Option<(String, usize)> {
    let mut lines = reader.by_ref().lines().map_while(Result::ok);
    let first = lines.next()?;
    let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let len = head.iter().find_map(|line| line.strip_prefix("content-length: "));
    Some((first, len.map_or(0, |len| len.parse().unwrap())))
}
