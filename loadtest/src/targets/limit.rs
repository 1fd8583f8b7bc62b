//! The yardstick: a process that takes bytes from a pipe and writes them to every socket, once and
//! without waiting. No server that gives each subscriber a write of its own does with less.
//!
//! What it writes looks like the gateway's frames, so that both sides have the same number of bytes
//! to carry and the same verifier watches them.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{ChildStdin, Stdio},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use clap::Args;
use rustix::net::{SendFlags, send};

use crate::{
    frames::{self, Wire},
    measure::Process,
    process::{Spawned, this_binary},
    publisher::{Event, Publisher},
    target::{Dialogue, Meaning, Seat, Target, Transport},
};

/// The raw writer, in a child process.
#[derive(Debug)]
pub struct Limit {
    spawned: Spawned,
    address: SocketAddr,
    /// Whether each event has a write of its own.
    each: bool,
}

impl Limit {
    /// Starts one that waits for so many sockets before it writes.
    ///
    /// # Errors
    /// When the child does not come up.
    pub fn start(subscribers: usize, each: bool, cpus: &[usize]) -> anyhow::Result<Self> {
        let args = ["limit".into(), "--subscribers".into(), subscribers.to_string().into()];
        let mut spawned = Spawned::start(&this_binary()?, &args, cpus, |command| {
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
        })?;
        let stdout = spawned.child().stdout.take().context("the child has no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let address = line.trim().parse().context("the child does not say where it listens")?;
        Ok(Self { spawned, address, each })
    }
}

impl Target for Limit {
    fn name(&self) -> &str {
        if self.each { "limit-each" } else { "limit" }
    }

    fn process(&self) -> Process {
        Process(self.spawned.pid())
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn dialogue(&self, _transport: Transport) -> Arc<dyn Dialogue> {
        Arc::new(Silence)
    }

    fn publisher(&mut self) -> anyhow::Result<Box<dyn Publisher>> {
        let trigger = self.spawned.child().stdin.take();
        let pipe = trigger.context("limit takes one publisher")?;
        Ok(Box::new(Trigger { pipe, each: self.each }))
    }

    fn most_publishers(&self) -> usize {
        1
    }

    fn expect_alive(&mut self) -> anyhow::Result<()> {
        self.spawned.expect_alive()
    }

    fn expect_visitors(&self) -> anyhow::Result<()> {
        bail!("limit writes to those who were there from the beginning; leave it out here")
    }
}

/// A subscriber says which channel it is in, and is subscribed.
struct Silence;

impl Dialogue for Silence {
    fn wire(&self) -> Wire {
        Wire::BareFrames
    }

    fn opening(&self, seat: &Seat<'_>) -> Vec<u8> {
        seat.room.to_le_bytes().to_vec()
    }

    fn greet(&self, _head: &[u8], _seat: &Seat<'_>) -> Meaning {
        Meaning::Nothing
    }

    fn understand(&self, _message: &[u8], _seat: &Seat<'_>) -> Meaning {
        Meaning::Nothing
    }

    fn is_ready_at_once(&self) -> bool {
        true
    }
}

/// Tells the child what to write: a channel's number, a length, and as many bytes.
struct Trigger {
    pipe: ChildStdin,
    each: bool,
}

impl Publisher for Trigger {
    fn publish(&mut self, events: &[Event]) -> anyhow::Result<()> {
        let mut orders = Vec::new();
        // What is due on one channel goes out as one piece.
        for part in events.chunk_by(|one, next| !self.each && one.room == next.room) {
            let frames: Vec<u8> = part.iter().flat_map(look_alike).collect();
            orders.extend(part[0].room.to_le_bytes());
            orders.extend(u32::try_from(frames.len())?.to_le_bytes());
            orders.extend(frames);
        }
        self.pipe.write_all(&orders)?;
        Ok(())
    }

    fn is_settled(&mut self) -> anyhow::Result<bool> {
        Ok(true)
    }
}

/// An event as the gateway would write it to a WebSocket.
fn look_alike(Event { channel, data, .. }: &Event) -> Vec<u8> {
    let json = format!(
        r#"{{"type":"event","channel":"{channel}","id":"00000000-0000-7000-8000-000000000000","data":{data},"position":"00000000-00000","time":1763692800000}}"#
    );
    frames::server_text(json.as_bytes())
}

/// What the child is started with.
#[derive(Args, Debug)]
pub struct LimitArgs {
    /// Sockets to wait for.
    #[arg(long)]
    subscribers: usize,
}

/// The child: accepts, then writes until the pipe ends.
///
/// # Errors
/// When a socket does not take a whole write at once: then it is no yardstick any more.
pub fn serve(args: &LimitArgs) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    writeln!(io::stdout(), "{}", listener.local_addr()?)?;
    let mut rooms: Vec<Vec<TcpStream>> = Vec::new();
    for _ in 0..args.subscribers {
        let (mut socket, _) = listener.accept()?;
        socket.set_nodelay(true)?;
        let room = read_number(&mut socket)?.context("a subscriber left before it said where")?;
        if rooms.len() <= room {
            rooms.resize_with(room + 1, Vec::new);
        }
        rooms[room].push(socket);
    }
    let mut trigger = io::stdin().lock();
    let mut bytes = Vec::new();
    while let Some(room) = read_number(&mut trigger)? {
        bytes.resize(read_number(&mut trigger)?.context("an order has no length")?, 0);
        trigger.read_exact(&mut bytes)?;
        write_to_all(rooms.get(room).map_or(&[][..], Vec::as_slice), &bytes)?;
    }
    Ok(())
}

/// A number, or nothing at the end.
fn read_number(from: &mut impl io::Read) -> anyhow::Result<Option<usize>> {
    let mut number = [0; 4];
    match from.read_exact(&mut number) {
        Ok(()) => Ok(Some(u32::from_le_bytes(number) as usize)),
        Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(err) => Err(err.into()),
    }
}

fn write_to_all(sockets: &[TcpStream], bytes: &[u8]) -> anyhow::Result<()> {
    for socket in sockets {
        let written = send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        if written < bytes.len() {
            bail!("a socket took {written} of {} bytes", bytes.len());
        }
    }
    Ok(())
}
