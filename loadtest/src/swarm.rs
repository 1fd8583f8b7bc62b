//! Many subscribers in one thread.
//!
//! The sockets do not block and one epoll tells which of them have something to say. While a server
//! is measured the swarm may sweep over them instead: epoll's wake-ups are paid for by whoever
//! writes, so a server would be charged for how it is watched.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use rustix::{
    event::{Timespec, epoll},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt},
};

use crate::{
    frames::{self, FrameReader, Heard},
    target::{Dialogue, Meaning, Target},
    verify::{Ledger, Marker, Tally, Verdict},
};

/// How a swarm finds out who has something to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Watch {
    /// By asking everybody in turn. The server pays nothing for it, the load a CPU.
    #[default]
    Sweep,
    /// By being woken.
    Epoll,
}

/// Subscribers of one target.
pub struct Swarm {
    dialogue: Arc<dyn Dialogue>,
    subscribers: Vec<Subscriber>,
    epoll: OwnedFd,
    watch: Watch,
    marker: Marker,
    buffer: Vec<u8>,
    tally: Tally,
    ready: usize,
}

impl std::fmt::Debug for Swarm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Swarm")
            .field("subscribers", &self.subscribers.len())
            .finish_non_exhaustive()
    }
}

/// One connection, and its account.
struct Subscriber {
    stream: TcpStream,
    channel: Arc<str>,
    stage: Stage,
    reader: FrameReader,
    ledger: Ledger,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Connecting,
    Greeting,
    Ready,
    Gone,
}

/// Connections under way at once: fewer than the smallest backlog in use.
const UNDER_WAY: usize = 100;

/// Connections from one source address: the ports of one are 28,232 by default.
const PER_SOURCE: usize = 20_000;

/// Bytes read from one subscriber before the next has its turn.
const READ_BYTES: usize = 64 << 10;

/// Subscribers that one wait of epoll tells of.
const WOKEN: usize = 1024;

impl Swarm {
    /// Connects `count` subscribers, each to the channel that `channel_of` names, and waits until
    /// all are subscribed. `progress` hears how many are.
    ///
    /// # Errors
    /// When one is refused, or not all are subscribed `within` the time.
    pub fn connect(
        target: &dyn Target,
        count: usize,
        within: Duration,
        channel_of: impl Fn(usize) -> Arc<str>,
        mut progress: impl FnMut(usize),
    ) -> anyhow::Result<Self> {
        let mut swarm = Self {
            dialogue: target.dialogue(),
            subscribers: Vec::with_capacity(count),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            watch: Watch::Epoll,
            marker: Marker::default(),
            buffer: vec![0; READ_BYTES],
            tally: Tally::default(),
            ready: 0,
        };
        let deadline = Instant::now() + within;
        while swarm.ready < count {
            while swarm.subscribers.len() < count.min(swarm.ready + UNDER_WAY) {
                let channel = channel_of(swarm.subscribers.len());
                swarm.open(target.address(), channel)?;
            }
            swarm.wait(Duration::from_millis(100), &mut |_| {})?;
            progress(swarm.ready);
            if swarm.tally.gone != 0 {
                bail!("{} refused a subscriber after {}", target.name(), swarm.ready);
            }
            if deadline < Instant::now() {
                bail!("{} of {count} are subscribed after {within:?}", swarm.ready);
            }
        }
        Ok(swarm)
    }

    /// Changes how the subscribers are watched from now on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn watch(&mut self, watch: Watch) -> anyhow::Result<()> {
        if self.watch == watch {
            return Ok(());
        }
        self.watch = watch;
        for (index, subscriber) in self.subscribers.iter().enumerate() {
            match (watch, subscriber.stage) {
                (_, Stage::Gone) => {}
                (Watch::Sweep, _) => epoll::delete(&self.epoll, &subscriber.stream)?,
                (Watch::Epoll, _) => {
                    let token = epoll::EventData::new_u64(index as u64);
                    epoll::add(&self.epoll, &subscriber.stream, token, epoll::EventFlags::IN)?;
                }
            }
        }
        Ok(())
    }

    /// Reads what has come. A sweep leaves out who has everything below `due`. `hear` is told the
    /// number of each event that came for the first time.
    ///
    /// # Errors
    /// When a server says what none may say.
    pub fn attend(&mut self, due: u64, hear: &mut dyn FnMut(u64)) -> anyhow::Result<()> {
        match self.watch {
            Watch::Epoll => self.wait(Duration::from_millis(1), hear),
            Watch::Sweep => {
                for index in 0..self.subscribers.len() {
                    let subscriber = &self.subscribers[index];
                    if subscriber.stage != Stage::Gone && subscriber.ledger.next() < due {
                        self.read(index, hear)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Reads from everybody until nobody has anything to say any more: what came twice is found,
    /// pings are answered.
    ///
    /// # Errors
    /// When a server says what none may say.
    pub fn tend(&mut self, hear: &mut dyn FnMut(u64)) -> anyhow::Result<()> {
        loop {
            let before = self.tally.bytes;
            for index in 0..self.subscribers.len() {
                if self.subscribers[index].stage != Stage::Gone {
                    self.read(index, hear)?;
                }
            }
            if self.tally.bytes == before {
                return Ok(());
            }
        }
    }

    /// Whether everybody who is still there has everything below `due`.
    pub fn has_all(&self, due: u64) -> bool {
        let lacks = |s: &Subscriber| s.stage != Stage::Gone && s.ledger.next() < due;
        !self.subscribers.iter().any(lacks)
    }

    /// Closes all accounts at `end` and returns what was counted since the last time.
    pub fn close_books(&mut self, end: u64) -> Tally {
        let lost: u64 = self.subscribers.iter_mut().map(|s| s.ledger.close(end)).sum();
        self.tally.lost += lost;
        std::mem::take(&mut self.tally)
    }

    fn open(&mut self, address: SocketAddr, channel: Arc<str>) -> anyhow::Result<()> {
        let index = self.subscribers.len();
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)
            .context("no socket is left")?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        // Ends with a reset: no port waits for a minute after it.
        sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
        if let source @ 1.. = index / PER_SOURCE {
            let source = Ipv4Addr::new(127, 0, 1, u8::try_from(source)?);
            bind(&socket, &SocketAddrV4::new(source, 0))?;
        }
        match connect(&socket, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(err) => return Err(err).context("a subscriber cannot connect"),
        }
        let token = epoll::EventData::new_u64(index as u64);
        epoll::add(&self.epoll, &socket, token, epoll::EventFlags::OUT)?;
        self.subscribers.push(Subscriber {
            stream: socket.into(),
            channel,
            stage: Stage::Connecting,
            reader: FrameReader::new(self.dialogue.wire()),
            ledger: Ledger::default(),
        });
        Ok(())
    }

    fn wait(&mut self, at_most: Duration, hear: &mut dyn FnMut(u64)) -> anyhow::Result<()> {
        let mut woken = Vec::with_capacity(WOKEN);
        let timeout = Timespec::try_from(at_most)?;
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut woken), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(err) => return Err(err.into()),
        }
        for event in woken {
            let index = usize::try_from(event.data.u64())?;
            match self.subscribers[index].stage {
                Stage::Connecting => self.connected(index)?,
                Stage::Greeting | Stage::Ready => self.read(index, hear)?,
                Stage::Gone => {}
            }
        }
        Ok(())
    }

    fn connected(&mut self, index: usize) -> anyhow::Result<()> {
        let subscriber = &mut self.subscribers[index];
        sockopt::socket_error(&subscriber.stream)?.context("a subscriber cannot connect")?;
        let token = epoll::EventData::new_u64(index as u64);
        epoll::modify(&self.epoll, &subscriber.stream, token, epoll::EventFlags::IN)?;
        let opening = self.dialogue.opening(&subscriber.channel);
        subscriber.stage = Stage::Greeting;
        if opening.is_empty() {
            subscriber.stage = Stage::Ready;
            self.ready += 1;
        }
        subscriber.say(&opening)
    }

    fn read(&mut self, index: usize, hear: &mut dyn FnMut(u64)) -> anyhow::Result<()> {
        let subscriber = &mut self.subscribers[index];
        let len = match subscriber.stream.read(&mut self.buffer) {
            Ok(len) => len,
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            // A reset: gone like one that ends.
            Err(_) => 0,
        };
        self.tally.bytes += len as u64;
        let was = subscriber.stage;
        if len == 0 {
            subscriber.stage = Stage::Gone;
        } else {
            let mut ear = Ear {
                dialogue: &*self.dialogue,
                marker: &self.marker,
                tally: &mut self.tally,
                hear,
                answers: Vec::new(),
            };
            subscriber.take(&self.buffer[..len], &mut ear)?;
            let answers = ear.answers;
            subscriber.say(&answers)?;
        }
        self.moved(index, was)
    }

    fn moved(&mut self, index: usize, was: Stage) -> anyhow::Result<()> {
        let subscriber = &self.subscribers[index];
        match (was, subscriber.stage) {
            (Stage::Greeting, Stage::Ready) => self.ready += 1,
            (Stage::Gone, _) => {}
            (_, Stage::Gone) => {
                self.tally.gone += 1;
                if self.watch == Watch::Epoll {
                    epoll::delete(&self.epoll, &subscriber.stream)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// What a subscriber's words are weighed with.
struct Ear<'a> {
    dialogue: &'a dyn Dialogue,
    marker: &'a Marker,
    tally: &'a mut Tally,
    hear: &'a mut dyn FnMut(u64),
    answers: Vec<u8>,
}

impl Subscriber {
    fn take(&mut self, bytes: &[u8], ear: &mut Ear<'_>) -> anyhow::Result<()> {
        let Self { reader, ledger, stage, channel, .. } = self;
        reader.feed(bytes, &mut |heard| match heard {
            Heard::Message(message) => match ear.marker.find(message) {
                Some(seq) => ear.event(ledger, seq),
                None => ear.word(stage, message),
            },
            Heard::Head(head) if ear.dialogue.accepts(head) => {
                ear.answers.extend(ear.dialogue.after_head(channel));
            }
            Heard::Head(_) | Heard::Close(_) => *stage = Stage::Gone,
            Heard::Ping(payload) => ear.answers.extend(frames::pong(payload)),
        })?;
        Ok(())
    }

    /// Says a few bytes. There is always room for them: what a subscriber says is answered before
    /// it says more.
    fn say(&mut self, words: &[u8]) -> anyhow::Result<()> {
        if words.is_empty() {
            return Ok(());
        }
        match self.stream.write(words) {
            Ok(written) if written == words.len() => Ok(()),
            Ok(_) => bail!("a socket took half of what a subscriber said"),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                bail!("the server reads nothing of what a subscriber says")
            }
            // It shows at the next read.
            Err(_) => Ok(()),
        }
    }
}

impl Ear<'_> {
    fn event(&mut self, ledger: &mut Ledger, seq: u64) {
        let verdict = ledger.enter(seq);
        self.tally.count(verdict);
        if verdict != Verdict::Again {
            (self.hear)(seq);
        }
    }

    fn word(&mut self, stage: &mut Stage, message: &[u8]) {
        match self.dialogue.understand(message) {
            Meaning::Subscribed => *stage = Stage::Ready,
            Meaning::Answer(answer) => self.answers.extend(answer),
            Meaning::Refused => *stage = Stage::Gone,
            Meaning::Nothing => {}
        }
    }
}
