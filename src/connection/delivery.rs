//! Delivery: writing events and presence to a client's socket without waiting.
//!
//! The fan-out writes on the spot where the client is up to date and its socket idle; everything else
//! is left to the client's task, which is woken. What is due follows from the session's cursors. A
//! socket may accept half a frame: the rest of one frame is kept, later events stay in the log.

use std::{io, sync::Arc, time::Instant};

use bytes::Bytes;
use smallvec::SmallVec;

use super::{
    active_subscription::ActiveSubscription,
    client::Client,
    client_state::{ClientState, WriteState},
};
use crate::{
    node::{Batch, LogEntry, Read, Reader, Tag},
    presence::subscribers::{PresenceDiff, PresenceSubscriber},
    protocol::{CloseCode, ServerFrame, frame::ResetReason},
    session::Subscription,
};

/// Bytes of events written to one client before others get their turn.
const WRITE_BUDGET: usize = 64 << 10;

/// Writes in a row before the task yields.
const WRITES_IN_A_ROW: usize = 8;

/// How far [`Client::write_pending`] got.
#[derive(Debug)]
pub(super) enum WriteOutcome {
    /// Everything is written.
    Done,
    /// The socket is full.
    Blocked,
    /// More is pending; others should run first.
    More,
    /// The ring no longer holds what comes next: it has to be read from the broker's log.
    CatchUp(Tag),
    /// The client is gone.
    Gone,
    /// The connection is to be closed.
    Close(CloseCode),
}

impl Client {
    /// Writes what is pending, [`WRITE_BUDGET`] bytes at a time.
    pub(super) fn write_pending(&self) -> WriteOutcome {
        let mut state = self.state();
        if let Some(reason) = state.close_reason().filter(|_| !state.is_closed()) {
            return WriteOutcome::Close(reason.code);
        }
        if state.write.full {
            return WriteOutcome::Blocked;
        }
        let mut far_behind = None;
        for _ in 0..WRITES_IN_A_ROW {
            match self.flush(&mut state) {
                Ok(true) => {}
                Ok(false) => return WriteOutcome::Blocked,
                Err(_) => return WriteOutcome::Gone,
            }
            if state.presence_stale {
                self.resend_presence(&mut state);
                continue;
            }
            let Some(subscription) = state.session.next_behind(far_behind) else {
                return far_behind.map_or(WriteOutcome::Done, WriteOutcome::CatchUp);
            };
            let tag = subscription.tag;
            match subscription.link.log().read_after(subscription.cursor, WRITE_BUDGET) {
                Read::UpToDate => subscription.behind = false,
                // The other channels first: they need only what is in memory.
                Read::FellBehind if far_behind.is_none() => far_behind = Some(tag),
                Read::FellBehind => return WriteOutcome::CatchUp(tag),
                Read::OtherEpoch(head) => self.reset(&mut state, tag, head, ResetReason::Epoch),
                Read::Entries(entries) => {
                    if self.write(&mut state, tag, &entries).is_err() {
                        return WriteOutcome::Gone;
                    }
                    if state.write.full {
                        return WriteOutcome::Blocked;
                    }
                }
            }
        }
        WriteOutcome::More
    }

    /// The socket is writable again.
    pub(super) fn socket_writable(&self) {
        self.state().write.full = false;
    }

    /// Writes entries that were read from the broker's log, unless a reply has to go out first: then
    /// they are read again.
    pub(super) fn write_caught_up(
        &self,
        state: &mut ClientState,
        tag: Tag,
        entries: &[Arc<LogEntry>],
    ) {
        // The client's own task finds out that a client is gone.
        if matches!(self.flush(state), Ok(true)) {
            let _ = self.write(state, tag, entries);
        }
    }

    /// Queues a snapshot of each channel whose presence diffs were missed.
    fn resend_presence(&self, state: &mut ClientState) {
        state.presence_stale = false;
        let mut frames = Vec::new();
        for Subscription { channel, link, .. } in state.session.subscriptions() {
            let Some(presence) = link.presence.as_mut().filter(|presence| presence.stale) else {
                continue;
            };
            presence.stale = false;
            if let Some(view) = presence.subscriber.view() {
                presence.number = view.number;
                let frame = Box::new(view.into());
                frames.push(ServerFrame::Presence { channel: channel.clone(), frame });
            }
        }
        for frame in frames {
            self.send(state, &frame);
        }
    }

    /// Writes entries that follow the subscription's cursor, and moves it past those that are out.
    /// Nothing may be unsent.
    fn write(
        &self,
        state: &mut ClientState,
        tag: Tag,
        entries: &[Arc<LogEntry>],
    ) -> io::Result<()> {
        let mut frames: SmallVec<[Bytes; 16]> = SmallVec::with_capacity(entries.len());
        for entry in entries {
            frames.push(self.encoded(state, tag, entry));
        }
        let only_repeats = frames.iter().all(Bytes::is_empty);
        let written = if only_repeats { 0 } else { self.try_write(&mut state.write, &frames)? };
        self.advance_cursor(state, tag, (entries, &frames), written);
        Ok(())
    }

    /// Writes what is unsent. Returns whether all of it is out.
    fn flush(&self, state: &mut ClientState) -> io::Result<bool> {
        while !state.unsent.is_empty() {
            state.unsent.make_contiguous();
            let (pieces, _) = state.unsent.as_slices();
            let mut written = self.try_write(&mut state.write, pieces)?;
            if state.write.full {
                return Ok(false);
            }
            while let Some(piece) = state.unsent.front_mut() {
                if written < piece.len() {
                    let _ = piece.split_to(written);
                    break;
                }
                written -= piece.len();
                state.unsent.pop_front();
            }
        }
        // A queue that was used once would keep its memory for as long as the client is connected.
        state.unsent.shrink_to_fit();
        Ok(true)
    }

    /// Writes what fits, and notes since when nothing does.
    fn try_write(&self, write: &mut WriteState, pieces: &[Bytes]) -> io::Result<usize> {
        match self.socket.try_write(pieces) {
            Ok(written) => {
                *write = WriteState::default();
                Ok(written)
            }
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                write.full = true;
                write.blocked_since.get_or_insert_with(Instant::now);
                Ok(0)
            }
            Err(err) => Err(err),
        }
    }

    /// Moves the cursor past the entries of which `written` bytes are out. The rest of one that was
    /// written in part is kept, the others stay in the log.
    fn advance_cursor(
        &self,
        state: &mut ClientState,
        tag: Tag,
        (entries, frames): (&[Arc<LogEntry>], &[Bytes]),
        mut written: usize,
    ) {
        let Some(subscription) = state.session.by_tag(tag) else { return };
        let mut delivered = 0;
        for (entry, frame) in entries.iter().zip(frames) {
            if written == 0 && !frame.is_empty() {
                break;
            }
            subscription.cursor = entry.position;
            delivered += u64::from(!frame.is_empty());
            if written < frame.len() {
                state.unsent.push_back(frame.slice(written..));
                break;
            }
            written -= frame.len();
        }
        self.delivered.inc_by(delivered);
    }

    /// The entry as this client receives it; empty for a repeat, which is not shown.
    fn encoded(&self, state: &ClientState, tag: Tag, entry: &LogEntry) -> Bytes {
        if !entry.is_visible() {
            return Bytes::new();
        }
        let encoded = entry.frame(self.format);
        if self.shares_encodings(state) {
            return encoded.bytes.clone();
        }
        let positions = state.session.positions_with(tag, entry.position);
        self.format.codec.event_with_positions(encoded, &positions)
    }

    /// Whether the client receives the same bytes as all other readers. A stream of several channels
    /// that resumes by the last event does not: each event states its positions in all of them.
    fn shares_encodings(&self, state: &ClientState) -> bool {
        !self.format.states_positions || state.session.has_single_position()
    }

    fn leave_to_task(&self, subscription: &mut Subscription<ActiveSubscription>) {
        if !subscription.behind {
            subscription.behind = true;
            self.wake.notify_one();
        }
    }

    /// Wakes the task unless the whole batch is out: it writes the rest, or finds the client gone.
    fn wake_unless_written(&self, state: &mut ClientState, tag: Tag, batch: &Batch, alive: bool) {
        let in_part = !state.unsent.is_empty();
        if let Some(subscription) = state.session.by_tag(tag)
            && (in_part || !alive || !subscription.has_delivered(batch.ends_at()))
        {
            self.leave_to_task(subscription);
        }
    }
}

impl Reader for Client {
    fn offer(&self, tag: Tag, batch: &Batch) {
        let mut guard = self.state();
        let state = &mut *guard;
        let shared = self.shares_encodings(state);
        let Some(subscription) = state.session.by_tag(tag) else { return };
        if subscription.has_delivered(batch.ends_at()) {
            return;
        }
        let follows = subscription.cursor == batch.starts_after();
        if !follows || subscription.behind || !state.unsent.is_empty() {
            return self.leave_to_task(subscription);
        }
        if !shared {
            let written = self.write(state, tag, &batch.entries);
            return self.wake_unless_written(state, tag, batch, written.is_ok());
        }
        let joined = batch.joined(self.format);
        if joined.is_empty() {
            // Nothing but repeats: writing no bytes would make a full socket look free.
            subscription.cursor = batch.ends_at();
            return;
        }
        let written = self.try_write(&mut state.write, std::slice::from_ref(joined));
        if written.as_ref().is_ok_and(|written| *written == joined.len()) {
            subscription.cursor = batch.ends_at();
            self.delivered.inc_by(batch.visible_count() as u64);
            return;
        }
        let frames: SmallVec<[Bytes; 16]> =
            batch.entries.iter().map(|entry| self.encoded(state, tag, entry)).collect();
        let bytes = *written.as_ref().unwrap_or(&0);
        self.advance_cursor(state, tag, (&batch.entries, &frames), bytes);
        self.wake_unless_written(state, tag, batch, written.is_ok());
    }

    fn wake(&self, tag: Tag) {
        if let Some(subscription) = self.state().session.by_tag(tag) {
            self.leave_to_task(subscription);
        }
    }
}

impl PresenceSubscriber for Client {
    fn deliver(&self, tag: Tag, diff: &Arc<PresenceDiff>) {
        let mut guard = self.state();
        let state = &mut *guard;
        let writable = state.unsent.is_empty() && !state.write.full;
        let Some(subscription) = state.session.by_tag(tag) else { return };
        let Some(presence) = &mut subscription.link.presence else { return };
        if diff.number <= presence.number || presence.stale {
            return;
        }
        if !writable {
            presence.stale = true;
            state.presence_stale = true;
            return self.wake.notify_one();
        }
        presence.number = diff.number;
        self.node.metrics().presence_frames.inc();
        state.unsent.push_back(diff.encoded(self.format).clone());
        if !matches!(self.flush(state), Ok(true)) {
            self.wake.notify_one();
        }
    }
}
