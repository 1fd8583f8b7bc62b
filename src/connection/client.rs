//! One connected client, as the fan-out and its own task share it.
//!
//! The fan-out writes to it on the spot where it can; everything else is left to the task, which is
//! woken. What is written is decided by the session's cursors; this file knows how to put it on a
//! socket, and that a socket may take half a frame. There is no queue of events: what a client has
//! not read yet stays in the log.

use std::{
    collections::VecDeque,
    fmt, io,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use parking_lot::{Mutex, MutexGuard};
use prometheus_client::metrics::counter::Counter;
use smallvec::SmallVec;
use tokio::sync::Notify;

use super::{
    Admit, accounts::Account, link::Link, moving::Mobility, orders::Parting, socket::Socket,
};
use crate::{
    auth::Identity,
    cluster::Look,
    lifecycle,
    node::{Batch, LogEntry, Node, Read, Reader, Tag},
    presence::audience::{News, Watcher},
    protocol::{
        CloseCode, Data, MemberId, Position, Positions, ServerFrame, UserId, WireFormat, codec,
        frame::ResetReason,
    },
    session::{Allowance, Session, Subscription},
};

/// Bytes of events written to one client before others get their turn.
const WRITE_BUDGET: usize = 64 << 10;

/// Writes in a row before the task lets others run.
const WRITES_IN_A_ROW: usize = 8;

/// A connected client.
///
/// In this order, here and on the desk: what a delivery touches lies side by side. With thousands of
/// clients none of it is in the CPU's cache, and each line of it that has to be fetched shows.
#[repr(C)]
pub struct Client {
    pub(super) socket: Socket,
    delivered: Counter,
    pub(super) format: WireFormat,
    desk: Mutex<Desk>,
    pub(super) node: Arc<Node>,
    pub(super) wake: Notify,
    /// Which of this node's connections it is.
    pub(super) number: u64,
    /// When it came, in milliseconds since 1970.
    pub(super) arrived: u64,
}

/// What the fan-out and the task take turns at.
#[repr(C)]
pub(super) struct Desk {
    flow: Flow,
    /// Bytes the socket did not take: replies, and the rest of at most one event.
    rest: VecDeque<Bytes>,
    pub(super) session: Session<Link>,
    /// Who it is; none until it has said so.
    pub(super) identity: Option<Arc<Identity>>,
    /// Its place among the clients, given back when the connection ends.
    pub(super) admission: Option<Box<dyn Admit>>,
    /// How much the client may ask for.
    pub(super) allowance: Allowance,
    /// How much it may publish.
    pub(super) publishing: Allowance,
    /// The session had a connection before, and may be shown somewhere.
    pub(super) returning: bool,
    /// The nodes are being told that it has come here.
    pub(super) claiming: bool,
    /// It came by plan, beside the connection before.
    pub(super) by_plan: bool,
    /// The session goes on elsewhere; this connection may end by itself.
    pub(super) superseded: bool,
    /// What is known for moving it to another transport.
    pub(super) mobility: Mobility,
    /// What is counted of it.
    pub(super) account: Account,
    /// Somebody said that the connection is to end.
    parting: Option<Parting>,
    /// Some onlooker has missed news.
    stale: bool,
    /// The connection is over: nothing may be opened any more.
    closed: bool,
}

/// What the socket said last.
#[derive(Debug, Default)]
struct Flow {
    /// It takes nothing until it is writable again.
    full: bool,
    /// Since when it took nothing, however often it was tried.
    blocked_since: Option<Instant>,
}

impl Desk {
    /// How long the socket has been taking nothing.
    pub(super) fn stalled_for(&self) -> Option<Duration> {
        self.flow.blocked_since.map(|since| since.elapsed())
    }

    /// Whether everything that was said to the client is out.
    pub(super) fn is_clear(&self) -> bool {
        self.rest.is_empty()
    }

    /// Takes everything back that was opened, and lets nothing be opened any more: a request that
    /// ends later finds it closed.
    pub(super) fn close(&mut self) -> Vec<Subscription<Link>> {
        self.closed = true;
        self.admission = None;
        self.session.close_all()
    }

    /// How the connection is to end, if somebody said so.
    pub(super) fn parting(&self) -> Option<&Parting> {
        self.parting.as_ref()
    }

    /// Whose session it is.
    pub(super) fn user(&self) -> Option<UserId> {
        self.identity.as_ref().and_then(|identity| identity.user.clone())
    }

    /// The client is this one from now on, unless its user has too many clients already.
    pub(super) fn take_identity(&mut self, identity: Arc<Identity>) -> bool {
        let admission = self.admission.as_mut();
        let admitted = match (&identity.user, admission) {
            (Some(user), Some(admission)) => admission.admit_user(user),
            _ => true,
        };
        if admitted {
            self.identity = Some(identity);
        }
        admitted
    }

    /// The name by which others see the session.
    pub(super) fn member(&self) -> MemberId {
        MemberId::of(self.session.id())
    }

    /// How the session shows itself, with this state.
    pub(super) fn look(&self, state: Option<Data>) -> Look {
        let info = self.identity.as_ref().and_then(|identity| identity.info.clone());
        Look { user: self.user(), info, state }
    }

    /// Whether the connection is over.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }
}

/// How far a client's task got with what is due.
#[derive(Debug)]
pub(super) enum Due {
    /// Everything is written.
    Nothing,
    /// The socket is full.
    Blocked,
    /// It is somebody else's turn first.
    More,
    /// The ring no longer holds what comes next: it has to be read from the broker's log.
    CatchUp(Tag),
    /// The client is gone.
    Gone,
    /// The connection is to end.
    Parting(CloseCode),
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("format", &self.format).finish_non_exhaustive()
    }
}

impl Client {
    /// A client that reads nothing yet.
    pub(super) fn new(
        socket: Socket,
        format: WireFormat,
        node: Arc<Node>,
        (number, delivered): (u64, Counter),
        session: Session<Link>,
    ) -> Self {
        let allowance = Allowance::full(Instant::now());
        let desk = Desk {
            session,
            identity: None,
            admission: None,
            allowance,
            publishing: allowance,
            returning: false,
            claiming: false,
            by_plan: false,
            superseded: false,
            mobility: Mobility::default(),
            account: Account::default(),
            parting: None,
            stale: false,
            closed: false,
            rest: VecDeque::new(),
            flow: Flow::default(),
        };
        let wake = Notify::new();
        let arrived = lifecycle::unix_ms();
        Self { socket, format, node, wake, number, arrived, delivered, desk: Mutex::new(desk) }
    }

    pub(super) fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock()
    }

    /// Bytes that are kept for the client, the kernel's not counted.
    pub(super) fn accounted(&self, desk: &Desk) -> u64 {
        let rest: usize = desk.rest.iter().map(Bytes::len).sum();
        (size_of::<Self>() + rest + desk.session.bytes_elsewhere()) as u64
    }

    /// Puts a frame behind what is written already.
    pub(super) fn send(&self, desk: &mut Desk, frame: &ServerFrame) {
        let moves = matches!(frame, ServerFrame::Welcome { .. } | ServerFrame::Reset { .. });
        let id = (self.format.is_sse() && moves).then(|| desk.session.positions());
        // Without a channel there is no place to come back to.
        let id = id.filter(|id| !matches!(id, Positions::Many(list) if list.is_empty()));
        desk.rest.push_back(codec::control(frame, self.format, id.as_ref()));
    }

    /// Puts bytes behind what is written already.
    pub(super) fn send_bytes(&self, desk: &mut Desk, bytes: Bytes) {
        desk.rest.push_back(bytes);
    }

    /// Ends the connection.
    pub(super) fn part(&self, parting: Parting) {
        self.desk().parting.get_or_insert(parting);
        self.wake.notify_one();
    }

    /// Shows the members of the channels whose news were missed.
    fn show_anew(&self, desk: &mut Desk) {
        desk.stale = false;
        let mut frames = Vec::new();
        for Subscription { channel, link, .. } in desk.session.subscriptions() {
            let Some(onlooker) = link.onlooker.as_mut().filter(|onlooker| onlooker.stale) else {
                continue;
            };
            onlooker.stale = false;
            if let Some(view) = onlooker.watching.look() {
                onlooker.number = view.number;
                let news = Box::new(view.into());
                frames.push(ServerFrame::Presence { channel: channel.clone(), news });
            }
        }
        for frame in frames {
            self.send(desk, &frame);
        }
    }

    /// The socket has room again.
    pub(super) fn has_room(&self) {
        self.desk().flow.full = false;
    }

    /// Writes what is due, in pieces of [`WRITE_BUDGET`].
    pub(super) fn write_due(&self) -> Due {
        let mut desk = self.desk();
        if let Some(parting) = desk.parting.as_ref().filter(|_| !desk.closed) {
            return Due::Parting(parting.code);
        }
        if desk.flow.full {
            return Due::Blocked;
        }
        let mut far_behind = None;
        for _ in 0..WRITES_IN_A_ROW {
            match self.flush(&mut desk) {
                Ok(true) => {}
                Ok(false) => return Due::Blocked,
                Err(_) => return Due::Gone,
            }
            if desk.stale {
                self.show_anew(&mut desk);
                continue;
            }
            let Some(subscription) = desk.session.behind(far_behind) else {
                return far_behind.map_or(Due::Nothing, Due::CatchUp);
            };
            let tag = subscription.tag;
            match subscription.link.log().read_after(subscription.cursor, WRITE_BUDGET) {
                Read::UpToDate => subscription.behind = false,
                // The others first: they only need what is at hand.
                Read::FellBehind if far_behind.is_none() => far_behind = Some(tag),
                Read::FellBehind => return Due::CatchUp(tag),
                Read::OtherEpoch(head) => self.reset(&mut desk, tag, head, ResetReason::Epoch),
                Read::Entries(entries) => {
                    if self.write(&mut desk, tag, &entries).is_err() {
                        return Due::Gone;
                    }
                    if desk.flow.full {
                        return Due::Blocked;
                    }
                }
            }
        }
        Due::More
    }

    /// Tells the client that something is lost, and goes on at `to`.
    pub(super) fn reset(&self, desk: &mut Desk, tag: Tag, to: Position, reason: ResetReason) {
        if let Some(frame) = desk.session.reset(tag, to, reason) {
            self.node.metrics().resets.inc();
            self.send(desk, &frame);
        }
    }

    /// Writes entries that were read from the broker's log, unless something has to go out first:
    /// then they are read again.
    pub(super) fn write_read(&self, desk: &mut Desk, tag: Tag, entries: &[Arc<LogEntry>]) {
        // A client that is gone is found gone by its own task.
        if matches!(self.flush(desk), Ok(true)) {
            let _ = self.write(desk, tag, entries);
        }
    }

    /// Writes entries that follow the subscription's cursor, and moves it past those that are out.
    /// Nothing may wait in front of them.
    fn write(&self, desk: &mut Desk, tag: Tag, entries: &[Arc<LogEntry>]) -> io::Result<()> {
        let mut frames: SmallVec<[Bytes; 16]> = SmallVec::with_capacity(entries.len());
        for entry in entries {
            frames.push(self.frame(desk, tag, entry));
        }
        let nothing_shown = frames.iter().all(Bytes::is_empty);
        let written = if nothing_shown { 0 } else { self.attempt(&mut desk.flow, &frames)? };
        self.settle(desk, tag, entries, &frames, written);
        Ok(())
    }

    /// Writes what waits; whether all of it is out.
    fn flush(&self, desk: &mut Desk) -> io::Result<bool> {
        while !desk.rest.is_empty() {
            desk.rest.make_contiguous();
            let (pieces, _) = desk.rest.as_slices();
            let mut written = self.attempt(&mut desk.flow, pieces)?;
            if desk.flow.full {
                return Ok(false);
            }
            while let Some(piece) = desk.rest.front_mut() {
                if written < piece.len() {
                    let _ = piece.split_to(written);
                    break;
                }
                written -= piece.len();
                desk.rest.pop_front();
            }
        }
        // A queue that was used once would stay as it grew for as long as the client is there.
        desk.rest.shrink_to_fit();
        Ok(true)
    }

    /// Writes what fits, and notes since when nothing does.
    fn attempt(&self, flow: &mut Flow, pieces: &[Bytes]) -> io::Result<usize> {
        match self.socket.try_write(pieces) {
            Ok(written) => {
                *flow = Flow::default();
                Ok(written)
            }
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                flow.full = true;
                flow.blocked_since.get_or_insert_with(Instant::now);
                Ok(0)
            }
            Err(err) => Err(err),
        }
    }

    /// Moves the cursor past the entries of which `written` bytes are out. The rest of one that was
    /// torn is kept, the others stay in the log.
    fn settle(
        &self,
        desk: &mut Desk,
        tag: Tag,
        entries: &[Arc<LogEntry>],
        frames: &[Bytes],
        mut written: usize,
    ) {
        let Some(subscription) = desk.session.get_mut(tag) else { return };
        let mut delivered = 0;
        for (entry, frame) in entries.iter().zip(frames) {
            if written == 0 && !frame.is_empty() {
                break;
            }
            subscription.cursor = entry.position;
            delivered += u64::from(!frame.is_empty());
            if written < frame.len() {
                desk.rest.push_back(frame.slice(written..));
                break;
            }
            written -= frame.len();
        }
        self.delivered.inc_by(delivered);
    }

    /// The entry as this client gets it; empty for one that is not shown.
    fn frame(&self, desk: &Desk, tag: Tag, entry: &LogEntry) -> Bytes {
        if !entry.is_shown() {
            return Bytes::new();
        }
        let encoded = entry.frame(self.format);
        if !self.format.is_sse() || desk.session.tells_one_position() {
            return encoded.bytes.clone();
        }
        // A stream of several channels says with each event where it stands in all of them.
        let id = codec::id_line(&desk.session.positions_with(tag, entry.position));
        let mut own = BytesMut::with_capacity(id.len() + encoded.bytes.len());
        own.extend_from_slice(&id);
        own.extend_from_slice(&encoded.without_id());
        own.freeze()
    }

    fn leave_to_task(&self, subscription: &mut Subscription<Link>) {
        if !subscription.behind {
            subscription.behind = true;
            self.wake.notify_one();
        }
    }
}

impl Reader for Client {
    fn offer(&self, tag: Tag, batch: &Batch) {
        let mut guard = self.desk();
        let desk = &mut *guard;
        let shared = !self.format.is_sse() || desk.session.tells_one_position();
        let Some(subscription) = desk.session.get_mut(tag) else { return };
        if subscription.holds(batch.ends_at()) {
            return;
        }
        let follows = subscription.cursor == batch.starts_after();
        if !follows || subscription.behind || !desk.rest.is_empty() {
            return self.leave_to_task(subscription);
        }
        if !shared {
            let written = self.write(desk, tag, &batch.entries);
            return self.check_out(desk, tag, batch, written.is_ok());
        }
        let joined = batch.joined(self.format);
        if joined.is_empty() {
            // Nothing but repeats: a write of nothing would make a full socket look free.
            subscription.cursor = batch.ends_at();
            return;
        }
        let written = self.attempt(&mut desk.flow, std::slice::from_ref(joined));
        if written.as_ref().is_ok_and(|written| *written == joined.len()) {
            subscription.cursor = batch.ends_at();
            self.delivered.inc_by(batch.shown() as u64);
            return;
        }
        let frames: SmallVec<[Bytes; 16]> =
            batch.entries.iter().map(|entry| self.frame(desk, tag, entry)).collect();
        self.settle(desk, tag, &batch.entries, &frames, *written.as_ref().unwrap_or(&0));
        self.check_out(desk, tag, batch, written.is_ok());
    }

    fn nudge(&self, tag: Tag) {
        if let Some(subscription) = self.desk().session.get_mut(tag) {
            self.leave_to_task(subscription);
        }
    }
}

impl Watcher for Client {
    fn tell(&self, tag: Tag, news: &Arc<News>) {
        let mut guard = self.desk();
        let desk = &mut *guard;
        let clear = desk.rest.is_empty() && !desk.flow.full;
        let Some(subscription) = desk.session.get_mut(tag) else { return };
        let Some(onlooker) = &mut subscription.link.onlooker else { return };
        if news.number <= onlooker.number || onlooker.stale {
            return;
        }
        if !clear {
            onlooker.stale = true;
            desk.stale = true;
            return self.wake.notify_one();
        }
        onlooker.number = news.number;
        self.node.metrics().presence_frames.inc();
        desk.rest.push_back(news.encoded(self.format).clone());
        if !matches!(self.flush(desk), Ok(true)) {
            self.wake.notify_one();
        }
    }
}

impl Client {
    /// Wakes the task unless the whole batch is out: it sees to the rest, or finds the client gone.
    fn check_out(&self, desk: &mut Desk, tag: Tag, batch: &Batch, alive: bool) {
        let torn = !desk.rest.is_empty();
        if let Some(subscription) = desk.session.get_mut(tag)
            && (torn || !alive || !subscription.holds(batch.ends_at()))
        {
            self.leave_to_task(subscription);
        }
    }
}
