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
    AdmissionPermit, active_subscription::ActiveSubscription, cluster_commands::CloseReason,
    migration::MigrationState, session_stats::SessionStats, socket::Socket,
};
use crate::{
    auth::Identity,
    cluster::Look,
    lifecycle,
    node::{Batch, LogEntry, Node, Read, Reader, Tag},
    presence::subscribers::{PresenceDiff, PresenceSubscriber},
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
    client_state: Mutex<ClientState>,
    pub(super) node: Arc<Node>,
    pub(super) wake: Notify,
    /// Which of this node's connections it is.
    pub(super) number: u64,
    /// When it came, in milliseconds since 1970.
    pub(super) arrived: u64,
}

/// What the fan-out and the task take turns at.
#[repr(C)]
pub(super) struct ClientState {
    flow: WriteState,
    /// Bytes the socket did not take: replies, and the rest of at most one event.
    rest: VecDeque<Bytes>,
    pub(super) session: Session<ActiveSubscription>,
    /// Who it is; none until it has said so.
    pub(super) identity: Option<Arc<Identity>>,
    /// Its place among the clients, given back when the connection ends.
    pub(super) admission: Option<Box<dyn AdmissionPermit>>,
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
    pub(super) mobility: MigrationState,
    /// What is counted of it.
    pub(super) account: SessionStats,
    /// Somebody said that the connection is to end.
    parting: Option<CloseReason>,
    /// Some onlooker has missed news.
    stale: bool,
    /// The connection is over: nothing may be opened any more.
    closed: bool,
}

/// What the socket said last.
#[derive(Debug, Default)]
struct WriteState {
    /// It takes nothing until it is writable again.
    full: bool,
    /// Since when it took nothing, however often it was tried.
    blocked_since: Option<Instant>,
}

impl ClientState {
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
    pub(super) fn close(&mut self) -> Vec<Subscription<ActiveSubscription>> {
        self.closed = true;
        self.admission = None;
        self.session.close_all()
    }

    /// How the connection is to end, if somebody said so.
    pub(super) fn parting(&self) -> Option<&CloseReason> {
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
pub(super) enum Pending {
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
    CloseReason(CloseCode),
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
        session: Session<ActiveSubscription>,
    ) -> Self {
        let allowance = Allowance::full(Instant::now());
        let client_state = ClientState {
            session,
            identity: None,
            admission: None,
            allowance,
            publishing: allowance,
            returning: false,
            claiming: false,
            by_plan: false,
            superseded: false,
            mobility: MigrationState::default(),
            account: SessionStats::default(),
            parting: None,
            stale: false,
            closed: false,
            rest: VecDeque::new(),
            flow: WriteState::default(),
        };
        let wake = Notify::new();
        let arrived = lifecycle::unix_ms();
        Self {
            socket,
            format,
            node,
            wake,
            number,
            arrived,
            delivered,
            client_state: Mutex::new(client_state),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, ClientState> {
        self.client_state.lock()
    }

    /// Bytes that are kept for the client, the kernel's not counted.
    pub(super) fn accounted(&self, client_state: &ClientState) -> u64 {
        let rest: usize = client_state.rest.iter().map(Bytes::len).sum();
        (size_of::<Self>() + rest + client_state.session.bytes_elsewhere()) as u64
    }

    /// Puts a frame behind what is written already.
    pub(super) fn send(&self, client_state: &mut ClientState, frame: &ServerFrame) {
        let moves = matches!(frame, ServerFrame::Welcome { .. } | ServerFrame::Reset { .. });
        let id = (self.format.is_sse() && moves).then(|| client_state.session.positions());
        // Without a channel there is no place to come back to.
        let id = id.filter(|id| !matches!(id, Positions::Many(list) if list.is_empty()));
        client_state.rest.push_back(codec::control(frame, self.format, id.as_ref()));
    }

    /// Puts bytes behind what is written already.
    pub(super) fn send_bytes(&self, client_state: &mut ClientState, bytes: Bytes) {
        client_state.rest.push_back(bytes);
    }

    /// Ends the connection.
    pub(super) fn part(&self, parting: CloseReason) {
        self.state().parting.get_or_insert(parting);
        self.wake.notify_one();
    }

    /// Shows the members of the channels whose news were missed.
    fn show_anew(&self, client_state: &mut ClientState) {
        client_state.stale = false;
        let mut frames = Vec::new();
        for Subscription { channel, link, .. } in client_state.session.subscriptions() {
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
            self.send(client_state, &frame);
        }
    }

    /// The socket has room again.
    pub(super) fn has_room(&self) {
        self.state().flow.full = false;
    }

    /// Writes what is due, in pieces of [`WRITE_BUDGET`].
    pub(super) fn write_due(&self) -> Pending {
        let mut client_state = self.state();
        if let Some(parting) = client_state.parting.as_ref().filter(|_| !client_state.closed) {
            return Pending::CloseReason(parting.code);
        }
        if client_state.flow.full {
            return Pending::Blocked;
        }
        let mut far_behind = None;
        for _ in 0..WRITES_IN_A_ROW {
            match self.flush(&mut client_state) {
                Ok(true) => {}
                Ok(false) => return Pending::Blocked,
                Err(_) => return Pending::Gone,
            }
            if client_state.stale {
                self.show_anew(&mut client_state);
                continue;
            }
            let Some(subscription) = client_state.session.behind(far_behind) else {
                return far_behind.map_or(Pending::Nothing, Pending::CatchUp);
            };
            let tag = subscription.tag;
            match subscription.link.log().read_after(subscription.cursor, WRITE_BUDGET) {
                Read::UpToDate => subscription.behind = false,
                // The others first: they only need what is at hand.
                Read::FellBehind if far_behind.is_none() => far_behind = Some(tag),
                Read::FellBehind => return Pending::CatchUp(tag),
                Read::OtherEpoch(head) => {
                    self.reset(&mut client_state, tag, head, ResetReason::Epoch)
                }
                Read::Entries(entries) => {
                    if self.write(&mut client_state, tag, &entries).is_err() {
                        return Pending::Gone;
                    }
                    if client_state.flow.full {
                        return Pending::Blocked;
                    }
                }
            }
        }
        Pending::More
    }

    /// Tells the client that something is lost, and goes on at `to`.
    pub(super) fn reset(
        &self,
        client_state: &mut ClientState,
        tag: Tag,
        to: Position,
        reason: ResetReason,
    ) {
        if let Some(frame) = client_state.session.reset(tag, to, reason) {
            self.node.metrics().resets.inc();
            self.send(client_state, &frame);
        }
    }

    /// Writes entries that were read from the broker's log, unless something has to go out first:
    /// then they are read again.
    pub(super) fn write_read(
        &self,
        client_state: &mut ClientState,
        tag: Tag,
        entries: &[Arc<LogEntry>],
    ) {
        // A client that is gone is found gone by its own task.
        if matches!(self.flush(client_state), Ok(true)) {
            let _ = self.write(client_state, tag, entries);
        }
    }

    /// Writes entries that follow the subscription's cursor, and moves it past those that are out.
    /// Nothing may wait in front of them.
    fn write(
        &self,
        client_state: &mut ClientState,
        tag: Tag,
        entries: &[Arc<LogEntry>],
    ) -> io::Result<()> {
        let mut frames: SmallVec<[Bytes; 16]> = SmallVec::with_capacity(entries.len());
        for entry in entries {
            frames.push(self.frame(client_state, tag, entry));
        }
        let nothing_shown = frames.iter().all(Bytes::is_empty);
        let written =
            if nothing_shown { 0 } else { self.attempt(&mut client_state.flow, &frames)? };
        self.settle(client_state, tag, entries, &frames, written);
        Ok(())
    }

    /// Writes what waits; whether all of it is out.
    fn flush(&self, client_state: &mut ClientState) -> io::Result<bool> {
        while !client_state.rest.is_empty() {
            client_state.rest.make_contiguous();
            let (pieces, _) = client_state.rest.as_slices();
            let mut written = self.attempt(&mut client_state.flow, pieces)?;
            if client_state.flow.full {
                return Ok(false);
            }
            while let Some(piece) = client_state.rest.front_mut() {
                if written < piece.len() {
                    let _ = piece.split_to(written);
                    break;
                }
                written -= piece.len();
                client_state.rest.pop_front();
            }
        }
        // A queue that was used once would stay as it grew for as long as the client is there.
        client_state.rest.shrink_to_fit();
        Ok(true)
    }

    /// Writes what fits, and notes since when nothing does.
    fn attempt(&self, flow: &mut WriteState, pieces: &[Bytes]) -> io::Result<usize> {
        match self.socket.try_write(pieces) {
            Ok(written) => {
                *flow = WriteState::default();
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
        client_state: &mut ClientState,
        tag: Tag,
        entries: &[Arc<LogEntry>],
        frames: &[Bytes],
        mut written: usize,
    ) {
        let Some(subscription) = client_state.session.get_mut(tag) else { return };
        let mut delivered = 0;
        for (entry, frame) in entries.iter().zip(frames) {
            if written == 0 && !frame.is_empty() {
                break;
            }
            subscription.cursor = entry.position;
            delivered += u64::from(!frame.is_empty());
            if written < frame.len() {
                client_state.rest.push_back(frame.slice(written..));
                break;
            }
            written -= frame.len();
        }
        self.delivered.inc_by(delivered);
    }

    /// The entry as this client gets it; empty for one that is not shown.
    fn frame(&self, client_state: &ClientState, tag: Tag, entry: &LogEntry) -> Bytes {
        if !entry.is_shown() {
            return Bytes::new();
        }
        let encoded = entry.frame(self.format);
        if !self.format.is_sse() || client_state.session.tells_one_position() {
            return encoded.bytes.clone();
        }
        // A stream of several channels says with each event where it stands in all of them.
        let id = codec::id_line(&client_state.session.positions_with(tag, entry.position));
        let mut own = BytesMut::with_capacity(id.len() + encoded.bytes.len());
        own.extend_from_slice(&id);
        own.extend_from_slice(&encoded.without_id());
        own.freeze()
    }

    fn leave_to_task(&self, subscription: &mut Subscription<ActiveSubscription>) {
        if !subscription.behind {
            subscription.behind = true;
            self.wake.notify_one();
        }
    }
}

impl Reader for Client {
    fn offer(&self, tag: Tag, batch: &Batch) {
        let mut guard = self.state();
        let client_state = &mut *guard;
        let shared = !self.format.is_sse() || client_state.session.tells_one_position();
        let Some(subscription) = client_state.session.get_mut(tag) else { return };
        if subscription.holds(batch.ends_at()) {
            return;
        }
        let follows = subscription.cursor == batch.starts_after();
        if !follows || subscription.behind || !client_state.rest.is_empty() {
            return self.leave_to_task(subscription);
        }
        if !shared {
            let written = self.write(client_state, tag, &batch.entries);
            return self.check_out(client_state, tag, batch, written.is_ok());
        }
        let joined = batch.joined(self.format);
        if joined.is_empty() {
            // Nothing but repeats: a write of nothing would make a full socket look free.
            subscription.cursor = batch.ends_at();
            return;
        }
        let written = self.attempt(&mut client_state.flow, std::slice::from_ref(joined));
        if written.as_ref().is_ok_and(|written| *written == joined.len()) {
            subscription.cursor = batch.ends_at();
            self.delivered.inc_by(batch.shown() as u64);
            return;
        }
        let frames: SmallVec<[Bytes; 16]> =
            batch.entries.iter().map(|entry| self.frame(client_state, tag, entry)).collect();
        self.settle(client_state, tag, &batch.entries, &frames, *written.as_ref().unwrap_or(&0));
        self.check_out(client_state, tag, batch, written.is_ok());
    }

    fn wake(&self, tag: Tag) {
        if let Some(subscription) = self.state().session.get_mut(tag) {
            self.leave_to_task(subscription);
        }
    }
}

impl PresenceSubscriber for Client {
    fn tell(&self, tag: Tag, news: &Arc<PresenceDiff>) {
        let mut guard = self.state();
        let client_state = &mut *guard;
        let clear = client_state.rest.is_empty() && !client_state.flow.full;
        let Some(subscription) = client_state.session.get_mut(tag) else { return };
        let Some(onlooker) = &mut subscription.link.onlooker else { return };
        if news.number <= onlooker.number || onlooker.stale {
            return;
        }
        if !clear {
            onlooker.stale = true;
            client_state.stale = true;
            return self.wake.notify_one();
        }
        onlooker.number = news.number;
        self.node.metrics().presence_frames.inc();
        client_state.rest.push_back(news.encoded(self.format).clone());
        if !matches!(self.flush(client_state), Ok(true)) {
            self.wake.notify_one();
        }
    }
}

impl Client {
    /// Wakes the task unless the whole batch is out: it sees to the rest, or finds the client gone.
    fn check_out(&self, client_state: &mut ClientState, tag: Tag, batch: &Batch, alive: bool) {
        let torn = !client_state.rest.is_empty();
        if let Some(subscription) = client_state.session.get_mut(tag)
            && (torn || !alive || !subscription.holds(batch.ends_at()))
        {
            self.leave_to_task(subscription);
        }
    }
}
