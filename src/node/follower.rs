//! LogReader a channel's log within this process: entry by entry, as a client would.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::sync::Notify;

use super::{Batch, ChannelHandle, LogEntry, Node, Read, Reader, Tag};
use crate::{
    broker::{BrokerError, Range},
    protocol::{Channel, Event, Position},
};

/// Entries taken from the ring, or read from the broker, in one go.
const BYTES: usize = 64 << 10;
const EVENTS: usize = 256;

/// Pause before the broker is asked again.
const RETRY: Duration = Duration::from_millis(500);

/// Somebody who reads one channel.
#[derive(Debug)]
pub struct Follower {
    node: Arc<Node>,
    handle: ChannelHandle,
    cursor: Position,
    bell: Arc<WakeOnAppend>,
    ready: VecDeque<(Position, Event)>,
}

/// What comes next in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// This.
    Event(Position, Event),
    /// Something that can no longer be read. It goes on behind this position.
    Lost(Position),
}

/// Rings when the log has grown.
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
    /// Begins at the channel's head.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    pub async fn at_head(node: &Arc<Node>, channel: &Channel) -> Result<Self, BrokerError> {
        let (mut handle, start) = node.attach(channel, None).await?;
        let bell = Arc::new(WakeOnAppend::default());
        let reader: Arc<dyn Reader> = Arc::<WakeOnAppend>::clone(&bell);
        handle.attach(reader, 0);
        let ready = VecDeque::new();
        Ok(Self { node: Arc::clone(node), handle, cursor: start.cursor, bell, ready })
    }

    /// Behind which position it reads on.
    pub fn cursor(&self) -> Position {
        self.cursor
    }

    /// What comes next, however long it takes.
    pub async fn next(&mut self) -> Step {
        loop {
            if let Some((position, event)) = self.ready.pop_front() {
                self.cursor = position;
                return Step::Event(position, event);
            }
            match self.handle.log().read_after(self.cursor, BYTES) {
                Read::Entries(entries) => self.take(&entries),
                Read::UpToDate => self.bell.0.notified().await,
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
            if entry.is_shown() {
                self.ready.push_back((entry.position, entry.event().clone()));
            } else {
                self.cursor = entry.position;
            }
        }
    }

    fn lost(&mut self, head: Position) -> Step {
        self.cursor = head;
        Step::Lost(head)
    }

    /// Reads on from the broker's log. The head, if what comes next is not there any more.
    async fn read(&mut self) -> Option<Position> {
        let channel = self.handle.log().channel();
        let Ok(slice) = self.node.read(channel, Range::After(self.cursor.offset), EVENTS).await
        else {
            self.wait().await;
            return None;
        };
        let head = Position::new(slice.epoch, slice.head);
        if slice.epoch != self.cursor.epoch {
            // The ring will begin anew, and tell.
            self.node.observe_head(channel, head);
            self.wait().await;
            return None;
        }
        let next = slice.events.first().map(|(offset, _)| *offset);
        if next != Some(self.cursor.offset + 1) {
            return Some(head);
        }
        let place = |(offset, event)| (Position::new(slice.epoch, offset), event);
        self.ready.extend(slice.events.into_iter().map(place));
        None
    }

    async fn wait(&self) {
        let _ = tokio::time::timeout(RETRY, self.bell.0.notified()).await;
    }
}
