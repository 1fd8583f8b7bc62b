//! A follower of one channel's log within this process: event by event, in order, each once.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::sync::Notify;

use super::{Batch, ChannelHandle, LogEntry, Node, Read, Reader, Tag};
use crate::{
    broker::{BrokerError, Range},
    protocol::{Channel, Event, Position},
};

/// Bytes of entries taken from the ring, and events read from the broker, at a time.
const READ_BYTES: usize = 64 << 10;
const READ_EVENTS: usize = 256;

/// Pause before the broker is read again.
const RETRY: Duration = Duration::from_millis(500);

/// A reader of one channel.
#[derive(Debug)]
pub struct Follower {
    node: Arc<Node>,
    handle: ChannelHandle,
    cursor: Position,
    wake: Arc<WakeOnAppend>,
    /// Events that were read and not returned yet.
    buffered: VecDeque<(Position, Event)>,
}

/// The next step in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// An event.
    Event(Position, Event),
    /// Events were lost: reading continues after this position.
    Lost(Position),
}

/// Notified when the log has grown or changed.
#[derive(Debug, Default)]
struct WakeOnAppend(Notify);

impl Reader for WakeOnAppend {
    fn offer(&self, _: Tag, _: &Batch) {
        self.0.notify_one();
    }

    fn wake(&self, _: Tag) {
        self.0.notify_one();
    }
}

impl Follower {
    /// Starts at the channel's head.
    ///
    /// # Errors
    /// When the broker is unavailable.
    pub async fn at_head(node: &Arc<Node>, channel: &Channel) -> Result<Self, BrokerError> {
        let (mut handle, start) = node.attach(channel, None).await?;
        let wake = Arc::new(WakeOnAppend::default());
        let reader: Arc<dyn Reader> = Arc::<WakeOnAppend>::clone(&wake);
        handle.attach(reader, 0);
        let buffered = VecDeque::new();
        Ok(Self { node: Arc::clone(node), handle, cursor: start.cursor, wake, buffered })
    }

    /// The position after which it reads on.
    pub fn cursor(&self) -> Position {
        self.cursor
    }

    /// Waits for the next step.
    pub async fn next(&mut self) -> Step {
        loop {
            if let Some((position, event)) = self.buffered.pop_front() {
                self.cursor = position;
                return Step::Event(position, event);
            }
            match self.handle.log().read_after(self.cursor, READ_BYTES) {
                Read::Entries(entries) => self.take(&entries),
                Read::UpToDate => self.wake.0.notified().await,
                Read::OtherEpoch(head) => return self.lost(head),
                Read::FellBehind => {
                    if let Some(head) = self.read().await {
                        return self.lost(head);
                    }
                }
            }
        }
    }

    fn take(&mut self, entries: &[Arc<LogEntry>]) {
        for entry in entries {
            if entry.is_visible() {
                self.buffered.push_back((entry.position, entry.event().clone()));
            } else {
                self.cursor = entry.position;
            }
        }
    }

    fn lost(&mut self, head: Position) -> Step {
        self.cursor = head;
        Step::Lost(head)
    }

    /// Reads on from the broker's log. Returns the head if the next event is not there any more.
    async fn read(&mut self) -> Option<Position> {
        let channel = self.handle.log().channel();
        let Ok(slice) =
            self.node.read(channel, Range::After(self.cursor.offset), READ_EVENTS).await
        else {
            self.wait().await;
            return None;
        };
        let head = Position::new(slice.epoch, slice.head);
        if slice.epoch != self.cursor.epoch {
            // The log restarts with the new epoch, and wakes this reader.
            self.node.observe_head(channel, head);
            self.wait().await;
            return None;
        }
        let next = slice.events.first().map(|(offset, _)| *offset);
        if next != Some(self.cursor.offset + 1) {
            return Some(head);
        }
        let entry = |(offset, event)| (Position::new(slice.epoch, offset), event);
        self.buffered.extend(slice.events.into_iter().map(entry));
        None
    }

    async fn wait(&self) {
        let _ = tokio::time::timeout(RETRY, self.wake.0.notified()).await;
    }
}
