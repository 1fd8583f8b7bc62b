//! Bounded reads of the broker's logs: bytes of one read, and concurrent reads.
//!
//! A broker limits a read by the number of events, and an event may have a quarter of a megabyte. So a
//! slice is read in pages, whose size depends on how large the events before turned out to be.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::{
    broker::{Broker, BrokerError, Range, Slice},
    protocol::Channel,
};

/// Bytes of a slice: it ends with the page that reaches this.
const SLICE_BYTES: usize = 1 << 20;

/// Events of the first page, when their size is not known yet.
const FIRST_PAGE: usize = 16;

/// Concurrent reads of this node; others wait.
const CONCURRENT_READS: usize = 64;

/// Reads logs for a node.
#[derive(Debug)]
pub(super) struct LogReader {
    broker: Arc<dyn Broker>,
    permits: Semaphore,
}

impl LogReader {
    /// A reader of this broker's logs.
    pub(super) fn new(broker: Arc<dyn Broker>) -> Self {
        Self { broker, permits: Semaphore::new(CONCURRENT_READS) }
    }

    /// Reads a slice: consecutive events, at most `limit` and about [`SLICE_BYTES`] bytes of them, and at least
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
        while got == page && slice.events.len() < limit && bytes < SLICE_BYTES {
            let heaviest = slice.events.iter().map(|(_, event)| event.weight()).max().unwrap_or(1);
            page = ((SLICE_BYTES - bytes) / heaviest).max(1).min(limit - slice.events.len());
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
    async fn a_slice_of_small_events_has_the_requested_number() {
        let (log_reader, channel) = log_of(1200, 10).await;
        let forwards = log_reader.read(&channel, Range::After(100), 1000).await.unwrap();
        assert_eq!(offsets(&forwards), (101..=1100).collect::<Vec<_>>());
        let backwards = log_reader.read(&channel, Range::Until(30), 1000).await.unwrap();
        assert_eq!(offsets(&backwards), (1..=30).rev().collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_slice_of_large_events_ends_at_the_byte_limit() {
        let (log_reader, channel) = log_of(100, 200 << 10).await;
        let slice = log_reader.read(&channel, Range::After(0), 100).await.unwrap();
        assert_eq!(offsets(&slice), (1..=FIRST_PAGE as u64).collect::<Vec<_>>());
        assert_eq!(slice.head, 100);
    }

    #[tokio::test]
    async fn a_read_after_the_head_returns_an_empty_slice() {
        let (log_reader, channel) = log_of(3, 1).await;
        assert!(log_reader.read(&channel, Range::After(3), 10).await.unwrap().events.is_empty());
    }
}
