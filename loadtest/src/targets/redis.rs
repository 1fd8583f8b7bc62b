//! Redis's own publish and subscribe: at most once, nothing kept.

use std::{process::Stdio, sync::Arc};

use anyhow::bail;

use super::served::{Served, served};
use crate::{
    frames::{Wire, resp_len},
    process::{Spawned, find_program, free_port},
    publisher::{
        Event, Publisher,
        pipe::{Answer, Pipe},
    },
    target::{Dialogue, Meaning, Seat, Target, Transport},
};

/// A Redis server.
#[derive(Debug)]
pub struct Redis {
    pub(super) name: String,
    pub(super) served: Served,
}

/// Starts `redis-server` from `PATH`.
pub(super) fn start(cpus: &[usize]) -> anyhow::Result<Served> {
    let address = free_port()?;
    let port = address.port().to_string();
    let words = ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--maxclients", "100000"];
    let args = words.map(Into::into);
    let mut spawned = Spawned::start(&find_program("redis-server")?, &args, cpus, |command| {
        command.stdin(Stdio::null()).stdout(Stdio::null()).current_dir("/tmp");
    })?;
    spawned.wait_until("redis-server", || std::net::TcpStream::connect(address).is_ok())?;
    Ok(Served::started(address, spawned, None))
}

impl Target for Redis {
    served!();

    fn dialogue(&self, _transport: Transport) -> Arc<dyn Dialogue> {
        Arc::new(Subscriber)
    }

    fn publisher(&mut self) -> anyhow::Result<Box<dyn Publisher>> {
        Ok(Box::new(Commands(Pipe::connect(self.served.address)?)))
    }
}

struct Subscriber;

impl Dialogue for Subscriber {
    fn wire(&self) -> Wire {
        Wire::Resp
    }

    fn opening(&self, seat: &Seat<'_>) -> Vec<u8> {
        command(&["SUBSCRIBE", seat.channel])
    }

    fn greet(&self, _head: &[u8], _seat: &Seat<'_>) -> Meaning {
        Meaning::Nothing
    }

    fn understand(&self, message: &[u8], _seat: &Seat<'_>) -> Meaning {
        match message {
            [b'-', ..] => Meaning::Refused,
            _ if message.starts_with(b"*3\r\n$9\r\nsubscribe\r\n") => Meaning::Subscribed,
            _ => Meaning::Nothing,
        }
    }
}

#[derive(Debug)]
struct Commands(Pipe);

impl Publisher for Commands {
    fn publish(&mut self, events: &[Event]) -> anyhow::Result<()> {
        let publish = |event: &Event| command(&["PUBLISH", &event.channel, &event.data]);
        self.0.ask(events.iter().flat_map(publish).collect(), events.len())
    }

    fn is_settled(&mut self) -> anyhow::Result<bool> {
        self.0.is_answered(|bytes| {
            if bytes.starts_with(b"-") {
                bail!("Redis refused an event: {}", String::from_utf8_lossy(bytes));
            }
            Ok(resp_len(bytes).map(|len| Answer { len, ends: false }))
        })
    }
}

fn command(words: &[&str]) -> Vec<u8> {
    let mut text = format!("*{}\r\n", words.len());
    for word in words {
        text += &format!("${}\r\n{word}\r\n", word.len());
    }
    text.into_bytes()
}
