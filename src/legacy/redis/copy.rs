//! Sending new events out to the old channels, for those who still listen there.
//!
//! A copy is announced on the marks' channel in the same transaction, so whoever hears both knows it
//! for one. Like any PUBLISH it reaches who listens at that moment, or nobody.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::TakeIn;
use crate::{
    broker::Publication,
    lifecycle::Stage,
    node::Tap,
    protocol::{Channel, event::bare_text},
};

/// Events that wait to be sent.
const WAITING: usize = 10_000;

/// Sent in one transaction.
const AT_ONCE: usize = 100;

/// Starts to copy.
pub(super) fn start(taking: Arc<TakeIn>, stage: &Stage) {
    let (queue, waiting) = mpsc::channel(WAITING);
    let tap = Copier { taking: Arc::clone(&taking), queue };
    taking.node.tap(Arc::new(tap));
    stage.spawn("legacy-copy", copy(taking, waiting, stage.stopping().clone()));
}

/// Told of what was published through this node.
#[derive(Debug)]
struct Copier {
    taking: Arc<TakeIn>,
    queue: mpsc::Sender<Publication>,
}

impl Tap for Copier {
    fn wants(&self, channel: &Channel) -> bool {
        self.taking.config.copy_out.iter().any(|namespace| namespace == channel.namespace())
    }

    fn stored(&self, publication: Publication) {
        if self.queue.try_send(publication).is_err() {
            self.taking.metrics().copies("lost", 1);
        }
    }
}

async fn copy(
    taking: Arc<TakeIn>,
    mut waiting: mpsc::Receiver<Publication>,
    stop: CancellationToken,
) {
    let mut connection = None;
    let mut warned = false;
    loop {
        let mut events = Vec::new();
        let read = tokio::select! {
            read = waiting.recv_many(&mut events, AT_ONCE) => read,
            () = stop.cancelled() => return,
        };
        if read == 0 {
            return;
        }
        let (mapped, unmapped) = taking.copies(&events);
        if unmapped != 0 {
            taking.metrics().copies("unmapped", unmapped);
        }
        if mapped.is_empty() {
            continue;
        }
        let number = mapped.len() as u64;
        match Box::pin(taking.send(&mut connection, &mapped)).await {
            Ok(()) => {
                taking.metrics().copies("sent", number);
                warned = false;
            }
            Err(error) => {
                taking.metrics().copies("lost", number);
                if !std::mem::replace(&mut warned, true) {
                    let redis = &taking.config.url;
                    warn!(%redis, %error, "events could not be copied to the old channels");
                }
            }
        }
    }
}

impl TakeIn {
    /// The old channels and payloads of events, and how many have none.
    fn copies(&self, events: &[Publication]) -> (Vec<(String, String)>, u64) {
        let mapped: Vec<_> = events.iter().filter_map(|event| self.copy_of(event)).collect();
        let unmapped = (events.len() - mapped.len()) as u64;
        (mapped, unmapped)
    }

    fn copy_of(&self, Publication { channel, draft }: &Publication) -> Option<(String, String)> {
        let captures = self.config.channel.unfill(channel.as_str())?;
        let mut names = self.config.patterns.iter().filter_map(|pattern| {
            let name = pattern.fill(&captures)?;
            // What is heard again has to be the same channel.
            let back = self.config.channel.fill(&pattern.captures(&name)?).ok()?;
            (back == channel.as_str()).then_some(name)
        });
        let name = names.next()?;
        let text = bare_text(&draft.id, &draft.data);
        Some((name, text.unwrap_or_else(|| draft.data.as_str().to_owned())))
    }

    async fn send(
        &self,
        connection: &mut Option<MultiplexedConnection>,
        copies: &[(String, String)],
    ) -> redis::RedisResult<()> {
        let marks = self.marks();
        let mut transaction = redis::pipe();
        transaction.atomic();
        for (name, payload) in copies {
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
