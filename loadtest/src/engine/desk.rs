//! A connection that publishes, and what waits for it.

use std::{collections::VecDeque, sync::Arc};

use super::Plan;
use crate::{
    publisher::{Event, Publisher},
    swarm::Swarm,
    verify::Mark,
};

/// One publisher.
pub struct Desk {
    publisher: Box<dyn Publisher>,
    waiting: VecDeque<Waiting>,
    /// When the oldest event of the call under way was due.
    asked: Option<u64>,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    room: usize,
    stream: usize,
    due: u64,
}

impl Desk {
    /// One with nothing to do.
    pub fn new(publisher: Box<dyn Publisher>) -> Self {
        Self { publisher, waiting: VecDeque::new(), asked: None }
    }

    /// Puts a burst behind what waits already.
    pub fn put(&mut self, room: usize, stream: usize, due: u64, burst: u64) {
        self.waiting.extend((0..burst).map(|_| Waiting { room, stream, due }));
    }

    /// Whether the last call was answered. `answered` is told how old its oldest event was then.
    ///
    /// # Errors
    /// When it was refused.
    pub fn is_settled(&mut self, now: u64, answered: &mut dyn FnMut(u64)) -> anyhow::Result<bool> {
        let Some(asked) = self.asked else { return Ok(true) };
        if !self.publisher.is_settled()? {
            return Ok(false);
        }
        answered(now.saturating_sub(asked));
        self.asked = None;
        Ok(true)
    }

    /// Publishes what waits, as much as fits into one call; says how many events that were.
    ///
    /// # Errors
    /// When the server is gone.
    pub fn publish(
        &mut self,
        plan: &Plan,
        rooms: &[Arc<str>],
        swarm: &mut Swarm,
    ) -> anyhow::Result<u64> {
        let count = self.waiting.len().min(plan.batch.max(plan.burst as usize));
        if count == 0 {
            return Ok(0);
        }
        self.asked = self.waiting.front().map(|first| first.due);
        let event = |Waiting { room, stream, due }: Waiting| {
            let mark = Mark { stream: stream as u32, seq: swarm.publishes(room, stream), due };
            let channel = Arc::clone(&rooms[room]);
            Event { channel, room: room as u32, data: mark.payload(plan.bytes) }
        };
        let events: Vec<Event> = self.waiting.drain(..count).map(event).collect();
        self.publisher.publish(&events)?;
        Ok(count as u64)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}
