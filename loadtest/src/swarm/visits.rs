//! Subscribers that come and go, fall silent, or move to another transport.

use std::{
    io::{self, Read as _},
    sync::Arc,
};

use rustix::event::epoll;

use super::{
    Swarm, Watch,
    link::{Link, Stage},
    token,
};
use crate::target::{Dialogue, Transport};

impl Swarm {
    /// Connects a member; with `resume` it goes on from where it was, if the server knows how.
    ///
    /// # Errors
    /// When there is no socket left.
    pub fn join(&mut self, index: usize, resume: bool) -> anyhow::Result<()> {
        let transport = self.mix.of(index);
        let dialogue = self.dialogue(transport);
        let known = resume && dialogue.resumes() && !self.members[index].position.is_empty();
        let link = Link::open(self.address, index, transport, dialogue.wire(), !known)?;
        epoll::add(&self.epoll, &link.stream, token(index, false), epoll::EventFlags::OUT)?;
        let member = &mut self.members[index];
        member.gone = false;
        member.link = Some(link);
        self.under_way += 1;
        Ok(())
    }

    /// Cuts a member's connection. What it is owed from then on it will be owed when it is back.
    pub fn leave(&mut self, index: usize) {
        let member = &mut self.members[index];
        let room = &mut self.rooms[member.room as usize];
        member.successor = None;
        match member.link.take().map(|link| link.stage) {
            Some(Stage::Ready) => {
                room.members -= 1;
                self.owed = self.owed.saturating_sub(member.owed(room));
            }
            Some(Stage::Connecting | Stage::Greeting) => self.under_way -= 1,
            Some(Stage::Mute) | None => {}
        }
    }

    /// Whether a member is subscribed.
    pub fn is_subscribed(&self, index: usize) -> bool {
        self.members[index].link.as_ref().is_some_and(|link| link.stage == Stage::Ready)
    }

    /// Lets a member read no more; nothing is owed to it from then on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn mute(&mut self, index: usize) -> anyhow::Result<()> {
        let member = &mut self.members[index];
        let room = &mut self.rooms[member.room as usize];
        let owed = member.owed(room);
        if let Some(link) = member.link.as_mut().filter(|link| link.stage == Stage::Ready) {
            link.stage = Stage::Mute;
            room.members -= 1;
            self.owed = self.owed.saturating_sub(owed);
            if self.watch == Watch::Epoll {
                epoll::delete(&self.epoll, &link.stream)?;
            }
        }
        Ok(())
    }

    /// How many of those who do not read were cut off by the server, found out by reading on.
    pub fn muted_and_cut(&mut self) -> u64 {
        let mut cut = 0;
        for member in &mut self.members {
            let Some(link) = member.link.as_mut().filter(|link| link.stage == Stage::Mute) else {
                continue;
            };
            let ended = loop {
                match link.stream.read(&mut self.buffer) {
                    Ok(0) => break true,
                    Ok(_) => {}
                    Err(err) => break err.kind() != io::ErrorKind::WouldBlock,
                }
            };
            cut += u64::from(ended);
        }
        cut
    }

    /// Who was told to move since the last time, and where to.
    pub fn take_moves(&mut self) -> Vec<(usize, Transport)> {
        std::mem::take(&mut self.moves)
    }

    /// Opens a second connection for a member, which replaces the first when it is subscribed.
    ///
    /// # Errors
    /// When there is no socket left.
    pub fn move_over(&mut self, index: usize, to: Transport) -> anyhow::Result<()> {
        let dialogue = self.dialogue(to);
        let link = Link::open(self.address, index, to, dialogue.wire(), false)?;
        epoll::add(&self.epoll, &link.stream, token(index, true), epoll::EventFlags::OUT)?;
        self.members[index].successor = Some(Box::new(link));
        self.under_way += 1;
        Ok(())
    }

    /// How many are subscribed over each of the transports.
    pub fn on(&self, transport: Transport) -> usize {
        let links = self.members.iter().filter_map(|member| member.link.as_ref());
        links.filter(|link| link.transport == transport && link.stage == Stage::Ready).count()
    }

    pub(super) fn dialogue(&self, transport: Transport) -> Arc<dyn Dialogue> {
        Arc::clone(match transport {
            Transport::WebSocket => &self.websocket,
            Transport::EventStream => &self.event_stream,
        })
    }
}
