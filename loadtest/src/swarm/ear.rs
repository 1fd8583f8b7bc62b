//! What a subscriber makes of what it hears: events go into its books, words are answered.

use super::{Member, Room, link::Stage};
use crate::{
    clock,
    frames::{self, Heard},
    target::{Dialogue, Meaning, Seat, Transport},
    verify::{Ledger, Mark, Marker, Tally, Verdict},
};

/// What a subscriber's words are weighed with, for as long as one read lasts.
pub(super) struct Ear<'a> {
    pub(super) dialogue: &'a dyn Dialogue,
    pub(super) marker: &'a Marker,
    pub(super) tally: &'a mut Tally,
    /// Is told how old each event is, in nanoseconds.
    pub(super) hear: &'a mut dyn FnMut(u64),
    pub(super) room: &'a mut Room,
    pub(super) owed: &'a mut u64,
    pub(super) books: Books<'a>,
    pub(super) stage: &'a mut Stage,
    pub(super) fresh: bool,
    /// Which of a subscriber's connections this is, and whether there are two.
    pub(super) side: Side,
    /// See [`Seat::unit`].
    pub(super) unit: Option<usize>,
    /// Whether positions are kept.
    pub(super) remembers: bool,
    pub(super) answers: Vec<u8>,
    pub(super) refused: bool,
    pub(super) moves_to: Option<Transport>,
}

/// See [`Ear::side`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Only,
    Old,
    New,
}

/// A member's accounts, apart from its connections.
pub(super) struct Books<'a> {
    pub(super) number: u32,
    pub(super) ledgers: &'a mut Vec<Ledger>,
    pub(super) settled: &'a mut u64,
    pub(super) position: &'a mut String,
    pub(super) session: &'a mut String,
}

impl Ear<'_> {
    pub(super) fn take(&mut self, heard: Heard<'_>) {
        match heard {
            Heard::Message(message) => self.message(message),
            Heard::Head(head) => {
                let meaning = self.with_seat(|dialogue, seat| dialogue.greet(head, seat));
                self.obey(meaning);
            }
            Heard::Ping(payload) => self.answers.extend(frames::pong(payload)),
            Heard::Close(_) => self.refused = true,
        }
    }

    fn message(&mut self, message: &[u8]) {
        let mut rest = message;
        let mut events = 0;
        while let Some((mark, behind)) = self.marker.find(rest) {
            self.event(mark);
            rest = behind;
            events += 1;
        }
        if events == 0 || *self.stage == Stage::Greeting {
            let meaning = self.with_seat(|dialogue, seat| dialogue.understand(message, seat));
            self.obey(meaning);
        }
        if self.remembers
            && let Some(position) = self.dialogue.position(message)
        {
            position.clone_into(self.books.position);
        }
    }

    fn event(&mut self, mark: Mark) {
        let ready = *self.stage == Stage::Ready;
        if self.fresh && !ready {
            return;
        }
        let Some(ledger) = self.books.ledgers.get_mut(mark.stream as usize) else { return };
        let verdict = match ledger.enter(mark.seq) {
            // Two connections of one subscriber bring the same for a while, by design.
            Verdict::Again if self.side != Side::Only => Verdict::Early,
            verdict => verdict,
        };
        self.tally.count(verdict);
        if verdict.counts() {
            if *self.books.settled < self.room.published {
                *self.books.settled += 1;
                if ready {
                    *self.owed = self.owed.saturating_sub(1);
                }
            }
            (self.hear)(clock::now().saturating_sub(mark.due));
        }
    }

    fn with_seat(&self, ask: impl FnOnce(&dyn Dialogue, &Seat<'_>) -> Meaning) -> Meaning {
        let since = (!self.fresh && !self.books.position.is_empty())
            .then_some(self.books.position.as_str());
        let session = (!self.books.session.is_empty()).then_some(self.books.session.as_str());
        let (channel, room, unit) = (&*self.room.name, self.books.number, self.unit);
        let seat = Seat { channel, room, since, session, unit };
        ask(self.dialogue, &seat)
    }

    fn obey(&mut self, meaning: Meaning) {
        match meaning {
            Meaning::Subscribed if *self.stage == Stage::Greeting => self.subscribed(),
            Meaning::Answer(answer) => self.answers.extend(answer),
            Meaning::Refused => self.refused = true,
            Meaning::Session(session) => *self.books.session = session,
            Meaning::SubscribedAs(session) => {
                *self.books.session = session;
                self.obey(Meaning::Subscribed);
            }
            Meaning::Move(transport) => self.moves_to = Some(transport),
            Meaning::Subscribed | Meaning::Nothing => {}
        }
    }

    /// From now on events are owed to it.
    pub(super) fn subscribed(&mut self) {
        *self.stage = Stage::Ready;
        if self.side == Side::New {
            return;
        }
        if self.fresh {
            self.books.ledgers.clear();
            self.books.ledgers.extend(self.room.due.iter().map(|due| Ledger::starting(*due)));
            *self.books.settled = self.room.published;
        }
        self.room.members += 1;
        *self.owed += self.room.published.saturating_sub(*self.books.settled);
    }
}

impl Member {
    /// What has been published and has not come.
    pub(super) fn owed(&self, room: &Room) -> u64 {
        room.published.saturating_sub(self.settled)
    }
}
