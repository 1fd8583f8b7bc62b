//! A server that does wrong on purpose, and what the scenario says of it.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use clap::Parser as _;
use indicatif::ProgressBar;

use super::{Fanout, lane::Lane};
use crate::{
    frames,
    measure::Process,
    publisher::{HttpPublisher, Publisher},
    target::{Dialogue, Target},
    targets::crossfade::WebSocket,
    verify::{Marker, Tally, payload},
};

/// What a subscriber is sent when an event is published: (subscriber, number) to numbers.
type Script = fn(usize, u64) -> Vec<u64>;

/// The warm-up's numbers come before the round's.
const CALLS: u64 = 10;
const DELIVERIES: u64 = 3 * CALLS;

#[derive(clap::Parser)]
struct Arguments {
    #[command(flatten)]
    fanout: Fanout,
}

/// A round of [`CALLS`] calls with three subscribers against a server that follows `script`.
fn tally(script: Script, more: &[&str]) -> Tally {
    let fixed = ["", "--subscribers", "3", "--publishes", "10", "--patience", "200"];
    let plan = Arguments::try_parse_from(fixed.iter().chain(more)).unwrap().fanout;
    let mut lane = Lane::open(Box::new(Scripted::start(script)), &plan).unwrap();
    lane.warm_up(&plan).unwrap();
    lane.round(&plan, &ProgressBar::hidden()).unwrap();
    let figures = lane.into_figures();
    Tally { bytes: 0, ..figures.tally() }
}

#[test]
fn a_server_that_keeps_its_word_has_nothing_to_hear() {
    let flawless = Tally { deliveries: DELIVERIES, ..Tally::default() };
    for more in [&[][..], &["--watch", "epoll"], &["--rate", "200"]] {
        assert_eq!(tally(|_, seq| vec![seq], more), flawless);
    }
    let four = Tally { deliveries: 4 * DELIVERIES, ..Tally::default() };
    assert_eq!(tally(|_, seq| vec![seq], &["--burst", "4"]), four);
}

#[test]
fn what_a_server_loses_is_missed() {
    let lossy: Script = |subscriber, seq| match (subscriber, seq) {
        // One from the middle, two from the end.
        (1, 12) | (2, 18 | 19) => vec![],
        _ => vec![seq],
    };
    let expected = Tally { deliveries: DELIVERIES - 3, lost: 3, ..Tally::default() };
    assert_eq!(tally(lossy, &[]), expected);
    assert_eq!(tally(lossy, &["--rate", "200"]), expected);
}

#[test]
fn what_a_server_doubles_is_noticed() {
    let stutter: Script = |subscriber, seq| match (subscriber, seq) {
        (0, 13 | 19) => vec![seq, seq],
        (1, 15) => vec![15, 11],
        _ => vec![seq],
    };
    let expected = Tally { deliveries: DELIVERIES, doubled: 3, ..Tally::default() };
    assert_eq!(tally(stutter, &[]), expected);
}

#[test]
fn what_a_server_reorders_is_noticed() {
    let muddle: Script = |subscriber, seq| match (subscriber, seq) {
        (2, 14) => vec![],
        (2, 15) => vec![15, 14],
        _ => vec![seq],
    };
    let expected = Tally { deliveries: DELIVERIES, reordered: 1, ..Tally::default() };
    assert_eq!(tally(muddle, &[]), expected);
}

#[test]
fn what_goes_wrong_in_the_warm_up_counts() {
    let late: Script = |_, seq| if seq == 3 { vec![] } else { vec![seq] };
    let expected = Tally { deliveries: DELIVERIES, lost: 3, ..Tally::default() };
    assert_eq!(tally(late, &[]), expected);
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

    fn dialogue(&self) -> Arc<dyn Dialogue> {
        Arc::new(WebSocket)
    }

    fn publisher(&mut self) -> anyhow::Result<Box<dyn Publisher>> {
        Ok(Box::new(HttpPublisher::connect(self.0)?))
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
        for part in body.split(|byte| *byte == b'}') {
            let Some(seq) = Marker::default().find(part) else { continue };
            for (subscriber, stream) in room.iter_mut().enumerate() {
                let frame = |seq: &u64| frames::server_text(payload(*seq, 0).as_bytes());
                let frames: Vec<u8> = script(subscriber, seq).iter().flat_map(frame).collect();
                stream.write_all(&frames).unwrap();
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
