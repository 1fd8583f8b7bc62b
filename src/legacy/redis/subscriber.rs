//! Subscription to the legacy Redis channels and the marks channel: one connection, reconnected with
//! backoff.

use std::{io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, timeout},
};
use tracing::{info, warn};

use super::{
    Ingest,
    message_sequence::{HolderProgress, MessageOutcome},
    peers::ABSENT,
};
use crate::broker::redis::{
    backoff::Backoff,
    dial::{Wire, dial},
    resp::{self, Reply},
};

/// Minimum free space of the read buffer, in bytes.
const READ_BYTES: usize = 64 * 1024;

/// Subscribes until the writer is done.
pub(super) async fn run(ingest: Arc<Ingest>) {
    let stop = ingest.writer_done.clone();
    let mut backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
    let mut warned = false;
    loop {
        let subscription = async {
            let connection = dial(&ingest.connection_info, ingest.config.lease).await?;
            subscribe(&ingest, connection).await
        };
        let error = tokio::select! {
            () = stop.cancelled() => return,
            Err(error) = subscription => error,
        };
        let was_receiving = ingest.peers.lock().disconnected();
        ingest.sequence.lock().interrupted();
        if was_receiving {
            ingest.metrics().interruptions.inc();
            backoff.reset();
            warned = false;
        }
        if !warned {
            warn!(redis = %ingest.config.url, %error, "legacy.redis: subscription failed, retrying");
            warned = true;
        }
        if backoff.pause(&stop).await.is_break() {
            return;
        }
    }
}

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// A subscription ends only with an error.
enum Never {}

/// Subscribes and processes pushes until the connection fails or is silent for a lease.
async fn subscribe(ingest: &Ingest, mut connection: Box<dyn Wire>) -> io::Result<Never> {
    let marks = ingest.marks_channel();
    let mut buffer = BytesMut::new();
    resp::put(&mut buffer, &[b"SUBSCRIBE", marks.as_bytes()]);
    let mut psubscribe: Vec<&[u8]> = vec![b"PSUBSCRIBE"];
    psubscribe.extend(ingest.config.patterns.iter().map(|pattern| pattern.as_str().as_bytes()));
    resp::put(&mut buffer, &psubscribe);
    connection.write_all_buf(&mut buffer).await?;
    let mut unconfirmed = 1 + ingest.config.patterns.len();
    loop {
        while let Some(reply) = resp::take(&mut buffer).map_err(|_| io::ErrorKind::InvalidData)? {
            match reply {
                Reply::Error(error) => {
                    return Err(io::Error::other(String::from_utf8_lossy(&error).into_owned()));
                }
                Reply::Status => {}
                Reply::Array(items) => {
                    if handle_push(ingest, &marks, items) {
                        unconfirmed -= 1;
                        if unconfirmed == 0 {
                            info!(redis = %ingest.config.url, "legacy.redis: subscribed");
                            ingest.wake_lease.notify_one();
                        }
                    }
                }
            }
        }
        buffer.reserve(READ_BYTES);
        // This node's own marks arrive several times per lease, so silence means a dead connection.
        match timeout(ingest.config.lease, connection.read_buf(&mut buffer)).await {
            Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => drop(read?),
            Err(_) => {
                let message = "nothing received within legacy.redis.lease";
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
        }
    }
}

/// Processes one push from Redis. Returns whether it confirmed a subscription.
fn handle_push(ingest: &Ingest, marks: &str, items: Vec<Bytes>) -> bool {
    match items.as_slice() {
        [kind, ..] if &**kind == b"subscribe" || &**kind == b"psubscribe" => return true,
        [kind, channel, payload] if &**kind == b"message" && &**channel == marks.as_bytes() => {
            handle_mark(ingest, payload);
        }
        [kind, pattern, channel, payload] if &**kind == b"pmessage" => {
            let mut sequence = ingest.sequence.lock();
            // Copied, because a slice would keep the whole read buffer alive.
            let outcome = sequence.message(pattern, Bytes::copy_from_slice(channel), payload);
            let (dropped, backlog) = (sequence.take_dropped(), sequence.len());
            drop(sequence);
            count_outcome(ingest, outcome, dropped);
            ingest.set_backlog(backlog);
            ingest.wake_writer.notify_one();
        }
        _ => {}
    }
    false
}

/// Processes a payload of the marks channel:
///
/// - `M MARK WRITTEN SINCE UPTIME`: a mark `TOKEN.NUMBER`; the [`HolderProgress`] of the lease holder,
///   `-` from other nodes; for how many milliseconds the node has received everything.
/// - `C CHANNEL`: the next message on this Redis channel was republished by a node.
/// - `B TOKEN`: the node is stopping and has written what it received.
fn handle_mark(ingest: &Ingest, payload: &[u8]) {
    let Ok(text) = std::str::from_utf8(payload) else { return };
    match text.split_once(' ') {
        Some(("M", rest)) => {
            let mut fields = rest.split(' ');
            let mark = fields.next().unwrap_or_default();
            let mut next_field = || fields.next().filter(|field| *field != ABSENT);
            let progress = HolderProgress { written: next_field(), since: next_field() };
            let uptime = next_field()
                .and_then(|uptime| uptime.parse().ok())
                .map_or(Duration::ZERO, Duration::from_millis);
            let mut sequence = ingest.sequence.lock();
            sequence.mark(mark, progress);
            let backlog = sequence.len();
            drop(sequence);
            ingest.set_backlog(backlog);
            let (token, now) =
                (mark.split_once('.').map_or(mark, |(token, _)| token), Instant::now());
            let mut peers = ingest.peers.lock();
            if token == ingest.token {
                peers.own_mark_received(now);
            } else {
                peers.peer_mark_received(token, uptime, now);
            }
            drop(peers);
            ingest.wake_writer.notify_one();
        }
        Some(("C", channel)) => {
            ingest.sequence.lock().expect_republished(Bytes::copy_from_slice(channel.as_bytes()));
        }
        Some(("B", token)) => {
            ingest.peers.lock().remove(token);
            ingest.wake_lease.notify_one();
        }
        _ => {}
    }
}

fn count_outcome(ingest: &Ingest, outcome: MessageOutcome, dropped: u64) {
    let metrics = ingest.metrics();
    match outcome {
        MessageOutcome::Queued | MessageOutcome::Ignored => {}
        MessageOutcome::Republished => metrics.messages("republished", 1),
        MessageOutcome::TooEarly => metrics.messages("too_early", 1),
        MessageOutcome::Refused(_) => metrics.messages("refused", 1),
    }
    if dropped != 0 {
        metrics.messages("dropped", dropped);
    }
}
