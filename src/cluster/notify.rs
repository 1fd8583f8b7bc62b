//! The task that sends presence diffs to this node's subscribers, gathered for a moment.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::shared::Cluster;
use crate::lifecycle::Stage;

/// How often subscribers receive the count of channels that are too large to be listed.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);

/// Subscribers notified in a row before other tasks run.
const CHUNK: usize = 128;

/// Sends diffs until the stage stops.
pub(super) async fn notify(cluster: Arc<Cluster>, stage: Stage) {
    let mut counts_sent = Instant::now();
    loop {
        tokio::select! {
            () = cluster.presence_changed.notified() => {}
            () = stage.stopping().cancelled() => return,
        }
        while cluster.state.lock().subscribers.has_changes() {
            tokio::select! {
                () = sleep_until(Instant::now() + cluster.config.presence_batch) => {}
                () = stage.stopping().cancelled() => return,
            }
            let counts = COUNT_INTERVAL <= counts_sent.elapsed();
            if counts {
                counts_sent = Instant::now();
            }
            send_diffs(&cluster, counts).await;
        }
    }
}

async fn send_diffs(cluster: &Cluster, counts: bool) {
    let deliveries = {
        let mut guard = cluster.state.lock();
        let state = &mut *guard;
        state.subscribers.take_diffs(&state.roster, counts)
    };
    for delivery in deliveries {
        for chunk in delivery.to.chunks(CHUNK) {
            for (subscriber, tag) in chunk {
                subscriber.deliver(*tag, &delivery.diff);
            }
            tokio::task::yield_now().await;
        }
    }
}
