//! What comes from a socket, and what follows from it.

use std::{
    io::{self, Read as _},
    time::Duration,
};

use rustix::{
    event::{Timespec, epoll},
    io::Errno,
    net::sockopt,
};

use super::{
    Member, Swarm, WOKEN, Watch,
    ear::{Books, Ear, Side},
    link::Stage,
    token,
};
use crate::target::{Seat, Transport};

impl Swarm {
    pub(super) fn wait(
        &mut self,
        at_most: Duration,
        hear: &mut dyn FnMut(u64),
    ) -> anyhow::Result<()> {
        let mut woken = Vec::with_capacity(WOKEN);
        let timeout = Timespec::try_from(at_most)?;
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut woken), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(err) => return Err(err.into()),
        }
        for event in woken {
            let token = usize::try_from(event.data.u64())?;
            let (index, new) = (token / 2, token % 2 == 1);
            match self.members[index].side(new).map(|link| link.stage) {
                Some(Stage::Connecting) => self.connected(index, new)?,
                Some(_) => self.read(index, new, hear)?,
                None => {}
            }
        }
        Ok(())
    }

    fn connected(&mut self, index: usize, new: bool) -> anyhow::Result<()> {
        let member = &mut self.members[index];
        let room = &self.rooms[member.room as usize];
        let (number, position, session) =
            (member.room, member.position.clone(), member.session.clone());
        let Some(link) = member.side(new) else { return Ok(()) };
        if sockopt::socket_error(&link.stream)?.is_err() {
            return self.ended(index, new);
        }
        epoll::modify(&self.epoll, &link.stream, token(index, new), epoll::EventFlags::IN)?;
        let since = (!link.fresh && !position.is_empty()).then_some(position.as_str());
        let session = (!link.fresh && !session.is_empty()).then_some(session.as_str());
        let unit = self.names.then_some(index);
        let seat = Seat { channel: &room.name, room: number, since, session, unit };
        let dialogue = match link.transport {
            Transport::WebSocket => &self.websocket,
            Transport::EventStream => &self.event_stream,
        };
        link.stage = Stage::Greeting;
        link.say(&dialogue.opening(&seat))?;
        if dialogue.is_ready_at_once() {
            self.weigh(index, new, &[], &mut |_| {})?;
        }
        Ok(())
    }

    pub(super) fn read(
        &mut self,
        index: usize,
        new: bool,
        hear: &mut dyn FnMut(u64),
    ) -> anyhow::Result<()> {
        let Some(link) = self.members[index].side(new) else { return Ok(()) };
        if matches!(link.stage, Stage::Connecting | Stage::Mute) {
            return Ok(());
        }
        let len = match link.stream.read(&mut self.buffer) {
            Ok(len) => len,
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            // A reset: gone like one that ends.
            Err(_) => 0,
        };
        if len == 0 {
            return self.ended(index, new);
        }
        self.tally.bytes += len as u64;
        let buffer = std::mem::take(&mut self.buffer);
        let weighed = self.weigh(index, new, &buffer[..len], hear);
        self.buffer = buffer;
        weighed
    }

    /// Takes in what a connection said, answers, and draws the consequences. No bytes at all mean
    /// that a server which says nothing takes it as subscribed.
    fn weigh(
        &mut self,
        index: usize,
        new: bool,
        bytes: &[u8],
        hear: &mut dyn FnMut(u64),
    ) -> anyhow::Result<()> {
        let Member { room, link, successor, ledgers, settled, position, session, .. } =
            &mut self.members[index];
        let side = match (new, &successor) {
            (true, _) => Side::New,
            (false, Some(_)) => Side::Old,
            (false, None) => Side::Only,
        };
        let link = if new { successor.as_deref_mut() } else { link.as_mut() };
        let Some(link) = link else { return Ok(()) };
        let was = link.stage;
        let mut ear = Ear {
            dialogue: match link.transport {
                Transport::WebSocket => &*self.websocket,
                Transport::EventStream => &*self.event_stream,
            },
            marker: &self.marker,
            tally: &mut self.tally,
            hear,
            room: &mut self.rooms[*room as usize],
            owed: &mut self.owed,
            books: Books { number: *room, ledgers, settled, position, session },
            stage: &mut link.stage,
            fresh: link.fresh,
            side,
            unit: self.names.then_some(index),
            remembers: self.remembers,
            answers: Vec::new(),
            refused: false,
            moves_to: None,
        };
        if bytes.is_empty() {
            ear.subscribed();
        }
        link.reader.feed(bytes, &mut |heard| ear.take(heard))?;
        let (answers, refused, moves_to) = (ear.answers, ear.refused, ear.moves_to);
        link.say(&answers)?;
        let is_ready = was == Stage::Greeting && link.stage == Stage::Ready;
        self.moves.extend(moves_to.map(|to| (index, to)));
        if refused {
            self.ended(index, new)?;
        } else if is_ready {
            self.ready(index, new)?;
        }
        Ok(())
    }

    fn ready(&mut self, index: usize, new: bool) -> anyhow::Result<()> {
        self.under_way -= 1;
        let member = &mut self.members[index];
        if new && let Some(successor) = member.successor.take() {
            // What the old connection brought, the new one may bring again.
            for ledger in &mut member.ledgers {
                ledger.tolerate_before_now();
            }
            epoll::modify(
                &self.epoll,
                &successor.stream,
                token(index, false),
                epoll::EventFlags::IN,
            )?;
            member.link = Some(*successor);
        }
        match (&member.link, self.watch) {
            (Some(link), Watch::Sweep) => Ok(epoll::delete(&self.epoll, &link.stream)?),
            _ => Ok(()),
        }
    }

    fn ended(&mut self, index: usize, new: bool) -> anyhow::Result<()> {
        let member = &mut self.members[index];
        if new {
            self.tally.gone += 1;
            member.successor = None;
            self.under_way -= 1;
            return Ok(());
        }
        // A closed socket leaves the epoll by itself.
        let successor = member.successor.take();
        self.leave(index);
        let Some(successor) = successor else {
            self.tally.gone += 1;
            self.members[index].gone = true;
            return Ok(());
        };
        // The server ends what is being moved away from: the rest comes over the new connection.
        let interest = match successor.stage {
            Stage::Connecting => epoll::EventFlags::OUT,
            _ => epoll::EventFlags::IN,
        };
        epoll::modify(&self.epoll, &successor.stream, token(index, false), interest)?;
        self.members[index].link = Some(*successor);
        Ok(())
    }
}
