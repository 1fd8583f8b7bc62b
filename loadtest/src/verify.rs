//! The books: what each subscriber was sent, and whether it was everything, once and in order.
//!
//! Events are told apart by numbers in their payload that are found by a search for bytes, so that
//! the verifier costs little beside the server it watches. It knows nothing of sockets.

use std::ops::{AddAssign, Range};

use memchr::memmem::Finder;
use serde::{Deserialize, Serialize};

const MARKER: &[u8] = b"load~";

/// Digits of the stream, the number and the time, which have one width each.
const WIDTHS: [usize; 3] = [4, 10, 16];

/// What a payload says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Who published it: order is kept within what one publisher says on one channel.
    pub stream: u32,
    /// Its number in the stream.
    pub seq: u64,
    /// When it was due to be published, by [`clock::now`](crate::clock::now).
    pub due: u64,
}

impl Mark {
    /// An event's data, a JSON string of `bytes` or a little more. No protocol has to escape any of
    /// it, so a mark looks the same within another string.
    pub fn payload(self, bytes: usize) -> String {
        let Self { stream, seq, due } = self;
        let bare = format!("\"load~{stream:04}~{seq:010}~{due:016}~");
        let fill = bytes.saturating_sub(bare.len() + 1);
        bare + &"x".repeat(fill) + "\""
    }
}

/// Finds marks in messages.
#[derive(Debug)]
pub struct Marker(Finder<'static>);

impl Default for Marker {
    fn default() -> Self {
        Self(Finder::new(MARKER))
    }
}

impl Marker {
    /// The first mark, and what lies behind it; none in a message that is no event.
    pub fn find<'a>(&self, message: &'a [u8]) -> Option<(Mark, &'a [u8])> {
        let mut rest = message.get(self.0.find(message)? + MARKER.len()..)?;
        let mut numbers = [0; 3];
        for (number, width) in numbers.iter_mut().zip(WIDTHS) {
            let (digits, behind) = rest.split_at_checked(width)?;
            rest = behind.strip_prefix(b"~")?;
            for digit in digits {
                *number = *number * 10 + u64::from(digit.wrapping_sub(b'0').min(9));
            }
        }
        let [stream, seq, due] = numbers;
        Some((Mark { stream: u32::try_from(stream).ok()?, seq, due }, rest))
    }
}

/// What one delivery was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The first of its number, behind nothing newer.
    InOrder,
    /// The first of its number, behind a newer one.
    Late,
    /// Its number had come before.
    Again,
    /// From before the subscriber asked for events: it may come or not.
    Early,
}

impl Verdict {
    /// Whether it was owed.
    pub fn counts(self) -> bool {
        matches!(self, Self::InOrder | Self::Late)
    }
}

/// One subscriber's account of one stream.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    from: u64,
    next: u64,
    /// What was jumped over. Nothing, with a gateway that keeps its word.
    holes: Vec<Range<u64>>,
}

impl Ledger {
    /// An account that begins with `from`.
    pub fn starting(from: u64) -> Self {
        Self { from, next: from, holes: Vec::new() }
    }

    /// Everything below is delivered, or was jumped over.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// How many below `end` have not come.
    pub fn owed(&self, end: u64) -> u64 {
        let holes: u64 = self.holes.iter().map(|hole| hole.end - hole.start).sum();
        end.saturating_sub(self.next) + holes
    }

    /// What has come until now may come once more.
    pub fn tolerate_before_now(&mut self) {
        self.from = self.next;
    }

    /// Enters a delivery.
    pub fn enter(&mut self, seq: u64) -> Verdict {
        if seq < self.next {
            return if self.fill(seq) {
                Verdict::Late
            } else if seq < self.from {
                Verdict::Early
            } else {
                Verdict::Again
            };
        }
        if self.next < seq {
            self.holes.push(self.next..seq);
        }
        self.next = seq + 1;
        Verdict::InOrder
    }

    fn fill(&mut self, seq: u64) -> bool {
        let Some(at) = self.holes.iter().position(|hole| hole.contains(&seq)) else { return false };
        let hole = self.holes.swap_remove(at);
        let parts = [hole.start..seq, seq + 1..hole.end];
        self.holes.extend(parts.into_iter().filter(|part| !part.is_empty()));
        true
    }

    /// Closes the account at `end` and returns how many below never came. One that comes after all
    /// counts as lost here and as doubled then.
    pub fn close(&mut self, end: u64) -> u64 {
        let lost = self.owed(end);
        self.next = self.next.max(end);
        self.holes.clear();
        lost
    }
}

/// All accounts together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Events delivered, each counted once for each subscriber.
    pub deliveries: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Events that never came.
    pub lost: u64,
    /// Events that came once more.
    pub doubled: u64,
    /// Events that came behind a newer one.
    pub reordered: u64,
    /// Subscribers that the server closed or refused.
    pub gone: u64,
}

impl Tally {
    /// Counts a delivery.
    pub fn count(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::InOrder => self.deliveries += 1,
            Verdict::Late => {
                self.deliveries += 1;
                self.reordered += 1;
            }
            Verdict::Again => self.doubled += 1,
            Verdict::Early => {}
        }
    }

    /// What is wrong; none when everything came once and in order.
    pub fn complaint(&self) -> Option<String> {
        let Self { lost, doubled, reordered, gone, .. } = self;
        let flawless = lost + doubled + reordered + gone == 0;
        (!flawless).then(|| {
            format!("{lost} lost, {doubled} doubled, {reordered} reordered, {gone} closed")
        })
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, more: Self) {
        self.deliveries += more.deliveries;
        self.bytes += more.bytes;
        self.lost += more.lost;
        self.doubled += more.doubled;
        self.reordered += more.reordered;
        self.gone += more.gone;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn books(seqs: &[u64], end: u64) -> Tally {
        let (mut ledger, mut tally) = (Ledger::default(), Tally::default());
        for seq in seqs {
            tally.count(ledger.enter(*seq));
        }
        tally.lost += ledger.close(end);
        tally
    }

    #[test]
    fn everything_once_and_in_order_is_no_complaint() {
        assert_eq!(books(&[0, 1, 2], 3), Tally { deliveries: 3, ..Tally::default() });
        assert_eq!(books(&[0, 1, 2], 3).complaint(), None);
    }

    #[test]
    fn each_mishap_is_told_from_the_others() {
        let lost = Tally { deliveries: 2, lost: 1, ..Tally::default() };
        assert_eq!(books(&[0, 2], 3), lost);
        assert_eq!(books(&[0, 1], 3), lost);
        let doubled = Tally { deliveries: 3, doubled: 1, ..Tally::default() };
        assert_eq!(books(&[0, 1, 0, 2], 3), doubled);
        let reordered = Tally { deliveries: 5, reordered: 2, ..Tally::default() };
        assert_eq!(books(&[0, 4, 2, 1, 3], 5), Tally { reordered: 3, ..reordered });
        assert_eq!(books(&[0, 2, 3, 1, 4], 5), Tally { reordered: 1, ..reordered });
    }

    #[test]
    fn a_late_one_that_comes_again_is_doubled() {
        let both = Tally { deliveries: 3, doubled: 1, reordered: 1, ..Tally::default() };
        assert_eq!(books(&[0, 2, 1, 1], 3), both);
    }

    #[test]
    fn what_comes_from_before_the_account_is_no_mishap() {
        let mut ledger = Ledger::starting(5);
        assert_eq!(ledger.enter(4), Verdict::Early);
        assert_eq!(ledger.enter(6), Verdict::InOrder);
        assert_eq!((ledger.owed(8), ledger.enter(5)), (2, Verdict::Late));
        assert_eq!((ledger.enter(5), ledger.close(8)), (Verdict::Again, 1));
    }

    #[test]
    fn a_payload_has_its_size_and_gives_its_mark_back() {
        let mark = Mark { stream: 7, seq: 12_345, due: 678 };
        let payload = mark.payload(200);
        assert_eq!(payload.len(), 200);
        assert!(serde_json::from_str::<String>(&payload).is_ok());
        let marker = Marker::default();
        let twice = format!(r#"{{"data":{payload},"time":1}}{payload}"#);
        let (first, rest) = marker.find(twice.as_bytes()).unwrap();
        assert_eq!((first, marker.find(rest).unwrap().0), (mark, mark));
        let within = serde_json::to_string(&payload).unwrap();
        assert_eq!(marker.find(within.as_bytes()).unwrap().0, mark);
        assert_eq!(marker.find(br#"{"type":"ping"}"#), None);
        assert_eq!(marker.find(b"load~0001~00"), None);
    }
}
