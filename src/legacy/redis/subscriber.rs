//! Listening to the old channels: one connection, made anew whenever it breaks.

use std::{io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, timeout},
};
use tracing::{info, warn};

use super::{
    TakeIn,
    message_sequence::{Holder, Verdict},
    peers::NOTHING,
};
use crate::broker::redis::{
    backoff::Backoff,
    dial::{Wire, dial},
    resp::{self, Reply},
};

/// Read at once, at least.
const READ_BYTES: usize = 64 * 1024;

/// Listens until the last is written.
pub(super) async fn listen(taking: Arc<TakeIn>) {
    let stop = taking.finished.clone();
    let mut backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
    let mut warned = false;
    loop {
        let conversation = async {
            let wire = dial(&taking.place, taking.config.lease).await?;
            converse(&taking, wire).await
        };
        let why = tokio::select! {
            () = stop.cancelled() => return,
            Err(why) = conversation => why,
        };
        let heard = taking.company.lock().deaf();
        taking.tally.lock().interrupted();
        if heard {
            taking.metrics().interruptions.inc();
            backoff.reset();
            warned = false;
        }
        if !warned {
            warn!(redis = %taking.config.url, %why, "not listening to the old channels, trying on");
            warned = true;
        }
        if backoff.pause(&stop).await.is_break() {
            return;
        }
    }
}

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Ends only with an error.
enum Never {}

async fn converse(taking: &TakeIn, mut wire: Box<dyn Wire>) -> io::Result<Never> {
    let marks = taking.marks();
    let mut inbox = BytesMut::new();
    resp::put(&mut inbox, &[b"SUBSCRIBE", marks.as_bytes()]);
    let mut words: Vec<&[u8]> = vec![b"PSUBSCRIBE"];
    words.extend(taking.config.patterns.iter().map(|pattern| pattern.as_str().as_bytes()));
    resp::put(&mut inbox, &words);
    wire.write_all_buf(&mut inbox).await?;
    let mut confirmations = 1 + taking.config.patterns.len();
    loop {
        while let Some(said) = resp::take(&mut inbox).map_err(|_| io::ErrorKind::InvalidData)? {
            match said {
                Reply::Error(why) => {
                    return Err(io::Error::other(String::from_utf8_lossy(&why).into_owned()));
                }
                Reply::Status => {}
                Reply::Array(words) => {
                    if hear(taking, &marks, words) {
                        confirmations -= 1;
                        if confirmations == 0 {
                            info!(redis = %taking.config.url, "listening to the old channels");
                            taking.hurry.notify_one();
                        }
                    }
                }
            }
        }
        inbox.reserve(READ_BYTES);
        // Marks of this node's own come several times in a lease.
        match timeout(taking.config.lease, wire.read_buf(&mut inbox)).await {
            Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => drop(read?),
            Err(_) => return Err(io::Error::new(io::ErrorKind::TimedOut, "it says nothing")),
        }
    }
}

/// Takes one thing that was said. Whether it was the confirmation of a subscription.
fn hear(taking: &TakeIn, marks: &str, words: Vec<Bytes>) -> bool {
    match words.as_slice() {
        [kind, ..] if &**kind == b"subscribe" || &**kind == b"psubscribe" => return true,
        [kind, channel, payload] if &**kind == b"message" && &**channel == marks.as_bytes() => {
            hear_mark(taking, payload);
        }
        [kind, pattern, channel, payload] if &**kind == b"pmessage" => {
            let mut tally = taking.tally.lock();
            // A copy of the piece that was read would be held as long as any message of it.
            let verdict = tally.message(pattern, Bytes::copy_from_slice(channel), payload);
            let (overflown, waiting) = (tally.overflown(), tally.len());
            drop(tally);
            count(taking, verdict, overflown);
            taking.waiting(waiting);
            taking.due.notify_one();
        }
        _ => {}
    }
    false
}

/// `M MARK DONE SINCE AGE`: a mark, what the holder says with its own, and for how many milliseconds
/// the node has heard everything. `C CHANNEL`: what follows on that channel is a copy. `B TOKEN`: a
/// node goes.
fn hear_mark(taking: &TakeIn, payload: &[u8]) {
    let Ok(text) = std::str::from_utf8(payload) else { return };
    match text.split_once(' ') {
        Some(("M", rest)) => {
            let mut words = rest.split(' ');
            let mark = words.next().unwrap_or_default();
            let mut said = || words.next().filter(|word| *word != NOTHING);
            let holder = Holder { done: said(), since: said() };
            let age = said()
                .and_then(|age| age.parse().ok())
                .map_or(Duration::ZERO, Duration::from_millis);
            let mut tally = taking.tally.lock();
            tally.mark(mark, holder);
            let waiting = tally.len();
            drop(tally);
            taking.waiting(waiting);
            let (token, now) =
                (mark.split_once('.').map_or(mark, |(token, _)| token), Instant::now());
            let mut company = taking.company.lock();
            if token == taking.token {
                company.heard_itself(now);
            } else {
                company.heard(token, age, now);
            }
            drop(company);
            taking.due.notify_one();
        }
        Some(("C", channel)) => {
            taking.tally.lock().copied(Bytes::copy_from_slice(channel.as_bytes()));
        }
        Some(("B", token)) => {
            taking.company.lock().left(token);
            taking.hurry.notify_one();
        }
        _ => {}
    }
}

fn count(taking: &TakeIn, verdict: Verdict, overflown: u64) {
    let metrics = taking.metrics();
    match verdict {
        Verdict::Kept | Verdict::NotMeant => {}
        Verdict::Copy => metrics.messages("copy", 1),
        Verdict::Unnumbered => metrics.messages("too_early", 1),
        Verdict::Refused(_) => metrics.messages("refused", 1),
    }
    if overflown != 0 {
        metrics.messages("overflown", overflown);
    }
}
