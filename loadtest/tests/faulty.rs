//! The binary against servers: a real gateway, where nothing may go wrong, and a little one that
//! does wrong on purpose, of which the binary has to tell exactly that.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Command, Output},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use crossfade_load::frames;
use serde_json::Value;

const LOAD: &str = env!("CARGO_BIN_EXE_crossfade-load");

fn load(args: &str) -> Output {
    Command::new(LOAD).args(args.split_whitespace()).output().unwrap()
}

fn report(output: &Output) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|err| panic!("{err}: {stderr}"))
}

/// What the binary says of a server with a fault: its tally, and how it ended.
fn judge(fault: Fault) -> (Value, Output) {
    let (address, pid) = (serve(fault), std::process::id());
    let output = load(&format!(
        "fanout --compare crossfade-ws --url {address} --pid {pid} --subscribers 4 --publishes 50 \
         --rounds 2 --patience 300 --check --json"
    ));
    (report(&output)["runs"][0]["figures"]["tally"].clone(), output)
}

#[test]
fn an_honest_server_passes() {
    let (tally, output) = judge(|_, seq| vec![seq]);
    assert!(output.status.success(), "{tally}");
    assert_eq!(tally["deliveries"], 4 * 50 * 2);
}

#[test]
fn each_fault_is_told_by_its_name() {
    let faults: [(Fault, &str, u64); 3] = [
        (|who, seq| if who == 2 && seq == 40 { vec![] } else { vec![seq] }, "lost", 1),
        (
            |who, seq| if who == 1 && seq % 60 == 30 { vec![seq; 2] } else { vec![seq] },
            "doubled",
            2,
        ),
        (
            |who, seq| match (who, seq) {
                (3, 50) => vec![],
                (3, 51) => vec![51, 50],
                _ => vec![seq],
            },
            "reordered",
            1,
        ),
    ];
    for (fault, name, count) in faults {
        let (tally, output) = judge(fault);
        assert!(!output.status.success(), "{name} passes");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains(&format!("{count} {name}")), "{told}");
        for field in ["lost", "doubled", "reordered", "gone"] {
            assert_eq!(tally[field], if field == name { count } else { 0 }, "{field} of {name}");
        }
    }
}

#[test]
fn a_delay_shows_in_the_latency_and_nowhere_else() {
    let (tally, output) = judge(|_, seq| {
        if seq == 60 {
            thread::sleep(Duration::from_millis(100));
        }
        vec![seq]
    });
    assert!(output.status.success(), "{tally}");
    let figures = &report(&output)["runs"][0]["figures"];
    assert!(100.0 <= figures["max_ms"].as_f64().unwrap());
}

#[test]
fn a_gateway_loses_nothing_whatever_is_done_to_it() {
    let gateway = gateway();
    let scenarios = [
        "fanout --compare crossfade-ws crossfade-sse limit --subscribers 40 --publishes 30 --rounds 2",
        "fanout --compare crossfade:ws=50,sse=50 limit --subscribers 40 --publishes 5 --burst 16",
        "latency --compare crossfade-ws --subscribers 20 --seconds 1 --rounds 1",
        "rooms --compare crossfade:ws=50,sse=50 limit --subscribers 60 --channels 20 --rate 300 \
         --seconds 1 --rounds 1",
        "firehose --publishers 8 --subscribers 3 --seconds 1 --rounds 1",
        "storm --compare crossfade:ws=50,sse=50 --subscribers 60 --rounds 2",
        "churn --compare crossfade:ws=50,sse=50 --subscribers 40 --seconds 2 --per-second 40",
        "slow --subscribers 20 --percent 20 --seconds 1 --rate 50",
        "soak --subscribers 20 --seconds 2",
        "rollout --subscribers 40 --seconds 8 --percentages 0,50,0",
    ];
    for scenario in scenarios {
        let output = load(&format!("{scenario} --check --json --server-bin {}", gateway.display()));
        assert!(output.status.success(), "{scenario}: {output:?}");
        for run in report(&output)["runs"].as_array().unwrap() {
            assert_ne!(run["figures"]["tally"]["deliveries"], 0, "{scenario}");
        }
    }
}

#[test]
fn a_peer_that_is_not_asked_for_is_not_started() {
    let output = load("fanout --compare nchan-ws");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("--start"), "{told}");
}

#[test]
fn reports_become_a_page() {
    let folder = std::env::temp_dir().join(format!("crossfade-load-page-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (json, html) = (folder.join("report.json"), folder.join("page.html"));
    let output = load("fanout --compare limit --subscribers 5 --publishes 20 --rounds 1 --json");
    std::fs::write(&json, [&output.stdout[..], &output.stdout].concat()).unwrap();
    let page = load(&format!("page {} --html {}", json.display(), html.display()));
    assert!(page.status.success(), "{page:?}");
    let text = std::fs::read_to_string(&html).unwrap();
    assert_eq!(text.matches("<section>").count(), 2);
    assert!(text.contains("Latency of deliveries"));
    std::fs::remove_dir_all(&folder).unwrap();
}

/// The gateway of this build. `cargo test --workspace` has built it; it is only built here when this
/// crate is tested alone and there is none yet, because a build for one package takes other features
/// of what they share, and minutes.
fn gateway() -> PathBuf {
    let path = PathBuf::from(LOAD).with_file_name("crossfade");
    if path.is_file() {
        return path;
    }
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--workspace", "--manifest-path", manifest]);
    if path.parent().is_some_and(|folder| folder.ends_with("release")) {
        build.arg("--release");
    }
    assert!(build.status().unwrap().success());
    path
}

/// What a subscriber is sent when an event is published: (subscriber, number) to numbers.
type Fault = fn(usize, u64) -> Vec<u64>;

/// As much of a gateway as a subscriber and a publisher notice.
fn serve(fault: Fault) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let room = Arc::new(Mutex::new(Vec::new()));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, room) = (stream.unwrap(), Arc::clone(&room));
            thread::spawn(move || attend(&stream, &room, fault));
        }
    });
    address
}

fn attend(stream: &TcpStream, room: &Mutex<Vec<TcpStream>>, fault: Fault) {
    let mut reader = BufReader::new(stream);
    let mut out = stream;
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if reader.read_until(b'\n', &mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let head = String::from_utf8(head).unwrap();
        if head.starts_with("GET") {
            out.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").unwrap();
            reader.read_exact(&mut [0; 6]).unwrap();
            let mut room = room.lock().unwrap();
            room.push(stream.try_clone().unwrap());
            out.write_all(&frames::server_text(br#"{"type":"subscribed"}"#)).unwrap();
            return;
        }
        let len = head.split("content-length: ").nth(1).unwrap().lines().next().unwrap();
        let mut body = vec![0; len.parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
        publish(&String::from_utf8(body).unwrap(), &mut room.lock().unwrap(), fault);
        out.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").unwrap();
    }
}

/// Sends a mark (`load~STREAM~NUMBER~TIME~`) to everybody, as the fault has it.
fn publish(body: &str, room: &mut [TcpStream], fault: Fault) {
    let mark: Vec<&str> = body.split("load~").nth(1).unwrap().split('~').collect();
    let [stream, seq, due, ..] = mark[..] else { panic!("{body} has no mark") };
    for (who, socket) in room.iter_mut().enumerate() {
        for seq in fault(who, seq.parse().unwrap()) {
            let data = format!(r#"{{"data":"load~{stream}~{seq:010}~{due}~"}}"#);
            socket.write_all(&frames::server_text(data.as_bytes())).unwrap();
        }
    }
}
