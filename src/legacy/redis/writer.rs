//! Writing what was heard into the logs, oldest first, while this node holds the lease.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::TakeIn;
use crate::broker::{BrokerError, Receipt, redis::backoff::Backoff};

/// Messages written in one go.
const BATCH: usize = 500;

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Writes until it is time to stop, and until what was heard by then is written, by whomever.
pub(super) async fn write(taking: Arc<TakeIn>, stop: CancellationToken) {
    let _finished = taking.finished.clone().drop_guard();
    let mut backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
    let mut away = false;
    let mut last = None;
    loop {
        if stop.is_cancelled() {
            let (end, deadline) = *last.get_or_insert_with(|| {
                // If nobody holds the lease, it is for this node to take it once more.
                taking.hurry.notify_one();
                (taking.tally.lock().end(), Instant::now() + taking.config.lease)
            });
            if end <= taking.tally.lock().begin() || deadline <= Instant::now() {
                return;
            }
        }
        let holds = taking.may_write();
        let (upto, batch) = taking.tally.lock().next(BATCH, holds);
        if batch.is_empty() {
            tokio::select! {
                () = taking.due.notified() => {}
                () = stop.cancelled(), if last.is_none() => {}
                () = until(last.map(|(_, deadline)| deadline)) => {}
            }
            continue;
        }
        // The lease may have ended since: then the next holder writes the same, and once.
        let receipts = taking.node.append(batch).await;
        match counted(&receipts) {
            Ok((taken, duplicates, refused)) => {
                let mut tally = taking.tally.lock();
                tally.written(upto);
                let waiting = tally.len();
                drop(tally);
                taking.waiting(waiting);
                let metrics = taking.metrics();
                for (outcome, number) in
                    [("taken", taken), ("duplicate", duplicates), ("refused", refused)]
                {
                    if number != 0 {
                        metrics.messages(outcome, number);
                    }
                }
                if std::mem::take(&mut away) {
                    info!("what is PUBLISHed goes into the logs again");
                }
                backoff.reset();
            }
            Err(error) => {
                if !std::mem::replace(&mut away, true) {
                    warn!(%error, "what is PUBLISHed cannot be put into the logs, trying on");
                }
                if backoff.pause(&stop).await.is_break() {
                    return;
                }
            }
        }
    }
}

/// Never, where there is no deadline.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// How many were taken, known, refused; or why some have to be written again.
fn counted(receipts: &[Result<Receipt, BrokerError>]) -> Result<(u64, u64, u64), &BrokerError> {
    let (mut taken, mut duplicates, mut refused) = (0, 0, 0);
    for receipt in receipts {
        match receipt {
            Ok(receipt) if receipt.duplicate => duplicates += 1,
            Ok(_) => taken += 1,
            Err(BrokerError::Refused { .. }) => refused += 1,
            Err(error @ BrokerError::Unavailable { .. }) => return Err(error),
        }
    }
    Ok((taken, duplicates, refused))
}
