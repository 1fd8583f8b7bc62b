//! The task that appends what this node sends to the nodes' log, and its heartbeat.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::debug;

use super::{
    follow::own_log,
    message::{self, Payload},
    shared::Cluster,
};
use crate::{
    broker::Publication,
    lifecycle::Stage,
    presence::PresenceUpdate,
    protocol::{Data, Draft, MessageId},
};

/// Pause before the broker is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// How long a node that stops may take to tell the others.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Appends what waits in the outbox, and something in any case with every heartbeat.
pub(super) async fn publish(cluster: Arc<Cluster>, stage: Stage) {
    let mut heartbeat = interval(cluster.config.heartbeat());
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cluster.outbox_filled.notified() => {}
            _ = heartbeat.tick() => {}
            () = stage.stopping().cancelled() => break,
        }
        tokio::select! {
            () = flush(&cluster) => heartbeat.reset(),
            () = stage.stopping().cancelled() => break,
        }
    }
    let stopped = Payload::Presence(PresenceUpdate::NodeStopped);
    cluster.send(&mut cluster.state.lock(), &stopped);
    if timeout(STOP_TIMEOUT, flush(&cluster)).await.is_err() {
        debug!(
            "the other nodes could not be told that this one stops: they will notice its silence"
        );
    }
}

/// Appends everything that waits, however long the broker is away.
async fn flush(cluster: &Cluster) {
    loop {
        let (data, last) = {
            let mut state = cluster.state.lock();
            let payloads = state.outbox.take_message();
            let data = Data::lenient(&message::write(cluster.me, payloads));
            (data, state.outbox.is_empty())
        };
        // One id for all tries: appended twice, it is one event.
        let draft = Draft { id: MessageId::generate(), name: None, data };
        let mut retry = interval(RETRY);
        loop {
            retry.tick().await;
            let publication = Publication { channel: own_log(), draft: draft.clone() };
            if cluster.node.append_internal(publication).await {
                break;
            }
        }
        if last {
            return;
        }
    }
}
