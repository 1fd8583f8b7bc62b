//! Appends received messages to the logs, oldest first, while this node holds the lease.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Ingest;
use crate::broker::{BrokerError, Receipt, redis::backoff::Backoff};

/// Messages per append.
const BATCH_MESSAGES: usize = 500;

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Writes until `stop`, and then until every message received by then is in the logs, written by this
/// node or another; for at most a lease.
pub(super) async fn run(ingest: Arc<Ingest>, stop: CancellationToken) {
    let _writer_done = ingest.writer_done.clone().drop_guard();
    let mut backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
    let mut failing = false;
    let mut drain = None;
    loop {
        if stop.is_cancelled() {
            let (end, deadline) = *drain.get_or_insert_with(|| {
                // If no node holds the lease, this one takes it once more.
                ingest.wake_lease.notify_one();
                (ingest.sequence.lock().end(), Instant::now() + ingest.config.lease)
            });
            if end <= ingest.sequence.lock().first() || deadline <= Instant::now() {
                return;
            }
        }
        let holds_lease = ingest.holds_lease();
        let (end, batch) = ingest.sequence.lock().next_batch(BATCH_MESSAGES, holds_lease);
        if batch.is_empty() {
            tokio::select! {
                () = ingest.wake_writer.notified() => {}
                () = stop.cancelled(), if drain.is_none() => {}
                () = sleep_until_some(drain.map(|(_, deadline)| deadline)) => {}
            }
            continue;
        }
        // If the lease expired meanwhile, the next holder appends the same ids and the broker
        // deduplicates.
        let receipts = ingest.node.append(batch).await;
        match count_receipts(&receipts) {
            Ok((ingested, duplicates, refused)) => {
                let mut sequence = ingest.sequence.lock();
                sequence.discard_written(end);
                let backlog = sequence.len();
                drop(sequence);
                ingest.set_backlog(backlog);
                let metrics = ingest.metrics();
                for (outcome, number) in
                    [("ingested", ingested), ("duplicate", duplicates), ("refused", refused)]
                {
                    if number != 0 {
                        metrics.messages(outcome, number);
                    }
                }
                if std::mem::take(&mut failing) {
                    info!("legacy.redis: messages are appended to the logs again");
                }
                backoff.reset();
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    warn!(%error, "legacy.redis: messages cannot be appended to the logs, retrying");
                }
                if backoff.pause(&stop).await.is_break() {
                    return;
                }
            }
        }
    }
}

/// Sleeps until the deadline; forever without one.
async fn sleep_until_some(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Counts appended, duplicate and refused messages; an error if the batch has to be appended again.
fn count_receipts(
    receipts: &[Result<Receipt, BrokerError>],
) -> Result<(u64, u64, u64), &BrokerError> {
    let (mut ingested, mut duplicates, mut refused) = (0, 0, 0);
    for receipt in receipts {
        match receipt {
            Ok(receipt) if receipt.duplicate => duplicates += 1,
            Ok(_) => ingested += 1,
            Err(BrokerError::Refused { .. }) => refused += 1,
            Err(error @ BrokerError::Unavailable { .. }) => return Err(error),
        }
    }
    Ok((ingested, duplicates, refused))
}
