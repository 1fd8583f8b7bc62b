//! Reads slices of the broker's logs within bounds: bytes of one read, and reads at the same time.
//!
//! A broker counts events, and an event may have a quarter of a megabyte. So a slice is read in pages
//! whose size follows from how large the events turn out to be.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::{
    broker::{Broker, BrokerError, Range, Slice},
    protocol::Channel,
};

/// Bytes of a slice: it ends with the page that reaches this.
const BYTES: usize = 1 << 20;

/// Events of the first page, when their size is not known yet.
const FIRST_PAGE: usize = 16;

/// Reads at the same time; others wait.
const AT_ONCE: usize = 64;

/// Reads logs for a node.
#[derive(Debug)]
pub(super) struct LogReader {
    broker: Arc<dyn Broker>,
    permits: Semaphore,
}

impl LogReader {
    /// A reader of this broker's logs.
    pub(super) fn new(broker: Arc<dyn Broker>) -> Self {
        Self { broker, permits: Semaphore::new(AT_ONCE) }
    }

    /// Reads a slice: consecutive events, at most `limit` and about [`BYTES`] bytes of them, and at least
    /// one if there is one.
    pub(super) async fn read(
        &self,
        channel: &Channel,
        range: Range,
        limit: usize,
    ) -> Result<Slice, BrokerError> {
        // The semaphore is never closed.
        let _permit = self.permits.acquire().await;
        let mut page = limit.min(FIRST_PAGE);
        let mut slice = self.broker.read(channel, range, page).await?;
        let mut got = slice.events.len();
        let mut bytes = weight(&slice);
        while got == page && slice.events.len() < limit && bytes < BYTES {
            let heaviest = slice.events.iter().map(|(_, event)| event.weight()).max().unwrap_or(1);
            page = ((BYTES - bytes) / heaviest).max(1).min(limit - slice.events.len());
            let Some(range) = continuation(&slice, range) else { break };
            let next = self.broker.read(channel, range, page).await?;
            got = next.events.len();
            bytes += weight(&next);
            if !follows(&slice, &next, range) {
                break;
            }
            slice.head = next.head;
            slice.events.extend(next.events);
        }
        Ok(slice)
    }
}

fn weight(slice: &Slice) -> usize {
    slice.events.iter().map(|(_, event)| event.weight()).sum()
}

/// The range that continues a slice, in the same direction.
fn continuation(slice: &Slice, range: Range) -> Option<Range> {
    let (last, _) = slice.events.last()?;
    match range {
        Range::After(_) => Some(Range::After(*last)),
        Range::Until(_) => last.checked_sub(1).filter(|last| *last != 0).map(Range::Until),
    }
}

/// Whether `next` continues where the slice ended, in the same epoch.
fn follows(slice: &Slice, next: &Slice, range: Range) -> bool {
    let first = next.events.first().map(|(offset, _)| *offset);
    let expected = match range {
        Range::After(offset) => offset.saturating_add(1),
        Range::Until(offset) => offset,
    };
    slice.epoch == next.epoch && first.is_none_or(|first| first == expected)
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
    async fn an_empty_slice_is_one() {
        let (reading, channel) = log_of(3, 1).await;
        assert!(reading.read(&channel, Range::After(3), 10).await.unwrap().events.is_empty());
    }
}
