//! Republishing new events to the legacy Redis channels, for subscribers that still use them.
//!
//! Each republished message is announced on the marks channel in the same transaction, so that no
//! node ingests it again. Delivery is that of PUBLISH: once, to the subscribers of that moment. Only
//! events published through this node are seen here, not those written to the broker directly.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::Ingest;
use crate::{
    broker::Publication,
    lifecycle::Stage,
    node::Tap,
    protocol::{Channel, event::bare_text},
};

/// Events that may wait in the queue; beyond it new ones are lost and counted.
const QUEUE_EVENTS: usize = 10_000;

/// Events per Redis transaction.
const BATCH_EVENTS: usize = 100;

/// Registers the tap and starts the republish task.
pub(super) fn start(ingest: Arc<Ingest>, stage: &Stage) {
    let (queue, events) = mpsc::channel(QUEUE_EVENTS);
    let tap = RepublishTap { ingest: Arc::clone(&ingest), queue };
    ingest.node.tap(Arc::new(tap));
    stage.spawn("legacy-republish", run(ingest, events, stage.stopping().clone()));
}

/// Queues events of the namespaces in `legacy.redis.republish`.
#[derive(Debug)]
struct RepublishTap {
    ingest: Arc<Ingest>,
    queue: mpsc::Sender<Publication>,
}

impl Tap for RepublishTap {
    fn wants(&self, channel: &Channel) -> bool {
        self.ingest.config.republish.iter().any(|namespace| namespace == channel.namespace())
    }

    fn stored(&self, publication: Publication) {
        if self.queue.try_send(publication).is_err() {
            self.ingest.metrics().republished("lost", 1);
        }
    }
}

async fn run(ingest: Arc<Ingest>, mut queue: mpsc::Receiver<Publication>, stop: CancellationToken) {
    let mut connection = None;
    let mut warned = false;
    loop {
        let mut events = Vec::new();
        let received = tokio::select! {
            received = queue.recv_many(&mut events, BATCH_EVENTS) => received,
            () = stop.cancelled() => return,
        };
        if received == 0 {
            return;
        }
        let (messages, unmapped) = ingest.map_events(&events);
        if unmapped != 0 {
            ingest.metrics().republished("unmapped", unmapped);
        }
        if messages.is_empty() {
            continue;
        }
        let number = messages.len() as u64;
        match Box::pin(ingest.republish(&mut connection, &messages)).await {
            Ok(()) => {
                ingest.metrics().republished("sent", number);
                warned = false;
            }
            Err(error) => {
                ingest.metrics().republished("lost", number);
                if !std::mem::replace(&mut warned, true) {
                    let redis = &ingest.config.url;
                    warn!(%redis, %error, "legacy.redis.republish: events lost");
                }
            }
        }
    }
}

impl Ingest {
    /// Maps events to Redis channels and payloads; the second value is how many have no Redis
    /// channel.
    fn map_events(&self, events: &[Publication]) -> (Vec<(String, String)>, u64) {
        let messages: Vec<_> = events.iter().filter_map(|event| self.map_event(event)).collect();
        let unmapped = (events.len() - messages.len()) as u64;
        (messages, unmapped)
    }

    fn map_event(&self, Publication { channel, draft }: &Publication) -> Option<(String, String)> {
        let captures = self.config.channel.extract(channel.as_str())?;
        let mut names = self.config.patterns.iter().filter_map(|pattern| {
            let name = pattern.fill(&captures)?;
            // The Redis channel must map back to the same gateway channel.
            let mapped_back = self.config.channel.fill(&pattern.captures(&name)?).ok()?;
            (mapped_back == channel.as_str()).then_some(name)
        });
        let name = names.next()?;
        let text = bare_text(&draft.id, &draft.data);
        Some((name, text.unwrap_or_else(|| draft.data.as_str().to_owned())))
    }

    /// PUBLISHes messages in one transaction, each announced on the marks channel. The connection is
    /// kept only after success.
    async fn republish(
        &self,
        connection: &mut Option<MultiplexedConnection>,
        messages: &[(String, String)],
    ) -> redis::RedisResult<()> {
        let marks = self.marks_channel();
        let mut transaction = redis::pipe();
        transaction.atomic();
        for (name, payload) in messages {
            transaction.cmd("PUBLISH").arg(&marks).arg(format!("C {name}")).ignore();
            transaction.cmd("PUBLISH").arg(name).arg(payload).ignore();
        }
        let mut open = match connection.take() {
            Some(open) => open,
            None => self.connect().await?,
        };
        transaction.exec_async(&mut open).await?;
        *connection = Some(open);
        Ok(())
    }
}
