//! Many subscribers in one thread.
//!
//! The sockets do not block and one epoll tells which of them have something to say. While a server
//! is measured the swarm may sweep over them instead: epoll's wake-ups are paid for by whoever
//! writes, so a server would be charged for how it is watched.

mod ear;
mod link;
mod reading;
mod visits;

use std::{
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::bail;
use clap::ValueEnum;
use rustix::event::epoll;

use self::link::{Link, Stage};
use crate::{
    target::{Dialogue, Mix, Target, Transport},
    verify::{Ledger, Marker, Tally},
};

/// How a swarm finds out who has something to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Watch {
    /// By asking everybody in turn. The server pays nothing for it, the load a CPU.
    Sweep,
    /// By being woken.
    Epoll,
}

/// Who sits where.
#[derive(Clone, Debug)]
pub struct Seating {
    /// How many.
    pub subscribers: usize,
    /// The channels, which are filled in turn.
    pub rooms: Vec<Arc<str>>,
    /// Publishers that share each channel.
    pub streams: usize,
    /// How they are connected.
    pub mix: Mix,
    /// Whether they say who they are.
    pub names: bool,
}

/// Subscribers of one target.
pub struct Swarm {
    address: SocketAddr,
    websocket: Arc<dyn Dialogue>,
    event_stream: Arc<dyn Dialogue>,
    rooms: Vec<Room>,
    members: Vec<Member>,
    mix: Mix,
    epoll: OwnedFd,
    watch: Watch,
    marker: Marker,
    buffer: Vec<u8>,
    tally: Tally,
    /// Connections that are not subscribed yet.
    under_way: usize,
    /// Deliveries that are still to come, from everybody who is subscribed.
    owed: u64,
    remembers: bool,
    names: bool,
    moves: Vec<(usize, Transport)>,
}

impl std::fmt::Debug for Swarm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Swarm").field("members", &self.members.len()).finish_non_exhaustive()
    }
}

/// A channel, as its subscribers see it.
struct Room {
    name: Arc<str>,
    /// The next number of each stream.
    due: Vec<u64>,
    /// Events of all streams.
    published: u64,
    /// Who is subscribed.
    members: u64,
}

/// One subscriber, with its accounts.
struct Member {
    room: u32,
    link: Option<Link>,
    /// What it moves to.
    successor: Option<Box<Link>>,
    /// The server closed it.
    gone: bool,
    ledgers: Vec<Ledger>,
    /// The room's events that have come, or are not owed.
    settled: u64,
    position: String,
    session: String,
}

/// Connections under way at once: fewer than the smallest backlog in use.
pub const UNDER_WAY: usize = 100;

/// Bytes read from one subscriber before the next has its turn.
const READ_BYTES: usize = 64 << 10;

/// Connections that one wait of epoll tells of.
const WOKEN: usize = 1024;

impl Swarm {
    /// A swarm of which nobody is connected.
    ///
    /// # Errors
    /// When the kernel has no epoll left.
    pub fn new(target: &dyn Target, seating: &Seating) -> anyhow::Result<Self> {
        let room = |name: &Arc<str>| Room {
            name: Arc::clone(name),
            due: vec![0; seating.streams],
            published: 0,
            members: 0,
        };
        let member = |number: usize| Member {
            room: (number % seating.rooms.len()) as u32,
            link: None,
            successor: None,
            gone: false,
            ledgers: Vec::new(),
            settled: 0,
            position: String::new(),
            session: String::new(),
        };
        Ok(Self {
            address: target.address(),
            websocket: target.dialogue(Transport::WebSocket),
            event_stream: target.dialogue(Transport::EventStream),
            rooms: seating.rooms.iter().map(room).collect(),
            members: (0..seating.subscribers).map(member).collect(),
            mix: seating.mix.clone(),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            watch: Watch::Epoll,
            marker: Marker::default(),
            buffer: vec![0; READ_BYTES],
            tally: Tally::default(),
            under_way: 0,
            owed: 0,
            remembers: false,
            names: seating.names,
            moves: Vec::new(),
        })
    }

    /// Connects everybody and waits until all are subscribed. `progress` hears how many are.
    ///
    /// # Errors
    /// When one is refused, or not all are subscribed `within` the time.
    pub fn connect(
        &mut self,
        within: Duration,
        mut progress: impl FnMut(usize),
    ) -> anyhow::Result<()> {
        let (deadline, count) = (Instant::now() + within, self.members.len());
        let mut opened = 0;
        while opened < count || self.under_way != 0 {
            while opened < count && self.under_way < UNDER_WAY {
                self.join(opened, false)?;
                opened += 1;
            }
            self.wait(Duration::from_millis(100), &mut |_| {})?;
            let ready = opened - self.under_way;
            progress(ready);
            if self.tally.gone != 0 {
                bail!("a subscriber was refused after {ready} were not");
            }
            if deadline < Instant::now() {
                bail!("{ready} of {count} are subscribed after {within:?}");
            }
        }
        Ok(())
    }

    /// Keeps the position of each subscriber from now on, so that it can go on from it.
    pub fn remember_positions(&mut self) {
        self.remembers = true;
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
        for (index, member) in self.members.iter().enumerate() {
            let Some(link) = member.link.as_ref().filter(|link| link.stage == Stage::Ready) else {
                continue;
            };
            match watch {
                Watch::Sweep => epoll::delete(&self.epoll, &link.stream)?,
                Watch::Epoll => {
                    let token = token(index, false);
                    epoll::add(&self.epoll, &link.stream, token, epoll::EventFlags::IN)?;
                }
            }
        }
        Ok(())
    }

    /// Takes note that a stream of a room got one more event, and gives its number.
    pub fn publishes(&mut self, room: usize, stream: usize) -> u64 {
        let room = &mut self.rooms[room];
        let seq = room.due[stream];
        room.due[stream] += 1;
        room.published += 1;
        self.owed += room.members;
        seq
    }

    /// Reads what has come. `hear` is told how old each event is. A sweep leaves out who has
    /// everything.
    ///
    /// # Errors
    /// When a server says what none may say.
    pub fn attend(&mut self, hear: &mut dyn FnMut(u64)) -> anyhow::Result<()> {
        if self.watch == Watch::Epoll {
            return self.wait(Duration::from_millis(1), hear);
        }
        for index in 0..self.members.len() {
            let member = &self.members[index];
            if member.owed(&self.rooms[member.room as usize]) != 0 {
                self.read(index, false, hear)?;
            }
        }
        if self.under_way != 0 { self.wait(Duration::ZERO, hear) } else { Ok(()) }
    }

    /// Reads from everybody until nobody has anything to say any more: what came twice is found,
    /// pings are answered.
    ///
    /// # Errors
    /// When a server says what none may say.
    pub fn tend(&mut self, hear: &mut dyn FnMut(u64)) -> anyhow::Result<()> {
        loop {
            let before = self.tally.bytes;
            for index in 0..self.members.len() {
                self.read(index, false, hear)?;
            }
            self.wait(Duration::ZERO, hear)?;
            if self.tally.bytes == before {
                return Ok(());
            }
        }
    }

    /// Deliveries that are still to come.
    pub fn owed(&self) -> u64 {
        self.owed
    }

    /// What was counted since the books were closed.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Who is subscribed.
    pub fn subscribed(&self) -> u64 {
        self.rooms.iter().map(|room| room.members).sum()
    }

    /// Connections that are not subscribed yet.
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    /// How many members there are, subscribed or not.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Closes all accounts and returns what was counted since the last time. Who is away keeps
    /// theirs open.
    pub fn close_books(&mut self) -> Tally {
        for member in &mut self.members {
            let room = &self.rooms[member.room as usize];
            let is_away = member.link.is_none() && !member.gone;
            if is_away || member.link.as_ref().is_some_and(|link| link.stage != Stage::Ready) {
                continue;
            }
            member.settled = room.published;
            let books = member.ledgers.iter_mut().zip(&room.due);
            self.tally.lost += books.map(|(ledger, due)| ledger.close(*due)).sum::<u64>();
        }
        self.owed = 0;
        std::mem::take(&mut self.tally)
    }
}

impl Member {
    fn side(&mut self, new: bool) -> Option<&mut Link> {
        if new { self.successor.as_deref_mut() } else { self.link.as_mut() }
    }
}

fn token(index: usize, new: bool) -> epoll::EventData {
    epoll::EventData::new_u64((index * 2 + usize::from(new)) as u64)
}
