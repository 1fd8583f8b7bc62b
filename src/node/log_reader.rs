//! LogReader from the broker's logs within bounds: so many bytes a reading, so many readings at once.
//!
//! A broker counts events, and an event may be a quarter of a megabyte. What is asked for here comes
//! in pages that grow with how small the events turn out to be.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::{
    broker::{Broker, BrokerError, Range, Slice},
    protocol::Channel,
};

/// A reading ends with the page that reaches this.
const BYTES: usize = 1 << 20;

/// Events of the first page: how large they are is not known yet.
const FIRST_PAGE: usize = 16;

/// Readings that may be under way at once; the others wait their turn.
const AT_ONCE: usize = 64;

/// Reads logs for a node.
#[derive(Debug)]
pub(super) struct LogReader {
    broker: Arc<dyn Broker>,
    turns: Semaphore,
}

impl LogReader {
    /// From this broker.
    pub(super) fn new(broker: Arc<dyn Broker>) -> Self {
        Self { broker, turns: Semaphore::new(AT_ONCE) }
    }

    /// Reads a piece of a log: consecutive events, at most `limit`, about [`BYTES`] of them, and at
    /// least one if there is one.
    pub(super) async fn read(
        &self,
        channel: &Channel,
        range: Range,
        limit: usize,
    ) -> Result<Slice, BrokerError> {
        // The semaphore is never closed.
        let _turn = self.turns.acquire().await;
        let mut page = limit.min(FIRST_PAGE);
        let mut piece = self.broker.read(channel, range, page).await?;
        let mut got = piece.events.len();
        let mut bytes = weight(&piece);
        while got == page && piece.events.len() < limit && bytes < BYTES {
            let heaviest = piece.events.iter().map(|(_, event)| event.weight()).max().unwrap_or(1);
            page = ((BYTES - bytes) / heaviest).max(1).min(limit - piece.events.len());
            let Some(range) = behind(&piece, range) else { break };
            let next = self.broker.read(channel, range, page).await?;
            got = next.events.len();
            bytes += weight(&next);
            if !follows(&piece, &next, range) {
                break;
            }
            piece.head = next.head;
            piece.events.extend(next.events);
        }
        Ok(piece)
    }
}

fn weight(piece: &Slice) -> usize {
    piece.events.iter().map(|(_, event)| event.weight()).sum()
}

/// What comes after a piece, in the direction of `range`.
fn behind(piece: &Slice, range: Range) -> Option<Range> {
    let (last, _) = piece.events.last()?;
    match range {
        Range::After(_) => Some(Range::After(*last)),
        Range::Until(_) => last.checked_sub(1).filter(|last| *last != 0).map(Range::Until),
    }
}

/// Whether `next` goes on where `piece` ended, in the same life of the log.
fn follows(piece: &Slice, next: &Slice, range: Range) -> bool {
    let first = next.events.first().map(|(offset, _)| *offset);
    let expected = match range {
        Range::After(offset) => offset.saturating_add(1),
        Range::Until(offset) => offset,
    };
    piece.epoch == next.epoch && first.is_none_or(|first| first == expected)
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, time::Duration};

    use super::*;
    use crate::{
        broker::{
            Publication, Retention, Retentions,
            memory::{MemoryBroker, MemoryConfig},
        },
        protocol::{Data, Draft, MessageId},
    };

    async fn log_of(events: usize, data_bytes: usize) -> (LogReader, Channel) {
        let keep = Retention {
            events: 100_000,
            age: Duration::from_secs(60),
            dedup: Duration::from_secs(60),
        };
        let retentions = Arc::new(Retentions::new(keep, HashMap::new()));
        let (broker, _feed) = MemoryBroker::open(&MemoryConfig::default(), retentions).unwrap();
        let channel: Channel = "news".parse().unwrap();
        let data = Data::json(&format!("\"{}\"", "x".repeat(data_bytes))).unwrap();
        for _ in 0..events {
            let draft = Draft { id: MessageId::generate(), name: None, data: data.clone() };
            let receipts =
                broker.publish(vec![Publication { channel: channel.clone(), draft }]).await;
            assert!(receipts[0].is_ok());
        }
        (LogReader::new(Arc::new(broker)), channel)
    }

    fn offsets(slice: &Slice) -> Vec<u64> {
        slice.events.iter().map(|(offset, _)| *offset).collect()
    }

    #[tokio::test]
    async fn small_events_come_as_many_as_were_asked_for() {
        let (reading, channel) = log_of(1200, 10).await;
        let forwards = reading.read(&channel, Range::After(100), 1000).await.unwrap();
        assert_eq!(offsets(&forwards), (101..=1100).collect::<Vec<_>>());
        let backwards = reading.read(&channel, Range::Until(30), 1000).await.unwrap();
        assert_eq!(offsets(&backwards), (1..=30).rev().collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn large_events_end_a_reading_by_their_weight() {
        let (reading, channel) = log_of(100, 200 << 10).await;
        let slice = reading.read(&channel, Range::After(0), 100).await.unwrap();
        assert_eq!(offsets(&slice), (1..=FIRST_PAGE as u64).collect::<Vec<_>>());
        assert_eq!(slice.head, 100);
    }

    #[tokio::test]
    async fn an_empty_piece_is_one() {
        let (reading, channel) = log_of(3, 1).await;
        assert!(reading.read(&channel, Range::After(3), 10).await.unwrap().events.is_empty());
    }
}
