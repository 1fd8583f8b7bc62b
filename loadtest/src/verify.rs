//! The books: what each subscriber was sent, and whether it was everything, once and in order.
//!
//! Events are told apart by a number in their payload that is found by a search for bytes, so that
//! the verifier costs little beside the server it watches. It knows nothing of sockets.

use std::ops::{AddAssign, Range};

use memchr::memmem::Finder;
use serde::Serialize;

/// Numbers are written from here on, which gives them all the same width.
const FIRST: u64 = 1_000_000_000;

const MARKER: &str = "\"seq\":";

/// An event's data: its number, filled up to `bytes`.
pub fn payload(seq: u64, bytes: usize) -> String {
    let bare = format!("{{{MARKER}{},\"fill\":\"\"}}", FIRST + seq);
    let fill = "x".repeat(bytes.saturating_sub(bare.len()));
    format!("{{{MARKER}{},\"fill\":\"{fill}\"}}", FIRST + seq)
}

/// Finds numbers in messages.
#[derive(Debug)]
pub struct Marker(Finder<'static>);

impl Default for Marker {
    fn default() -> Self {
        Self(Finder::new(MARKER))
    }
}

impl Marker {
    /// The event's number; none for a message that is no event.
    pub fn find(&self, message: &[u8]) -> Option<u64> {
        let digits = &message[self.0.find(message)? + MARKER.len()..];
        let value = digits
            .iter()
            .take(19)
            .take_while(|digit| digit.is_ascii_digit())
            .fold(0, |value, digit| value * 10 + u64::from(digit - b'0'));
        value.checked_sub(FIRST)
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
}

/// One subscriber's account.
#[derive(Debug, Default)]
pub struct Ledger {
    next: u64,
    /// What was jumped over. Nothing, with a gateway that keeps its word.
    holes: Vec<Range<u64>>,
}

impl Ledger {
    /// Everything below is delivered, or was jumped over.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Enters a delivery.
    pub fn enter(&mut self, seq: u64) -> Verdict {
        if seq < self.next {
            return if self.fill(seq) { Verdict::Late } else { Verdict::Again };
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
        let tail = end.saturating_sub(self.next);
        self.next = self.next.max(end);
        tail + self.holes.drain(..).map(|hole| hole.end - hole.start).sum::<u64>()
    }
}

/// All accounts together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
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
    /// Subscribers that the server closed.
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
    fn a_payload_has_its_size_and_gives_its_number_back() {
        let payload = payload(12_345, 200);
        assert_eq!(payload.len(), 200);
        let message = format!(r#"{{"type":"event","data":{payload},"time":1}}"#);
        assert_eq!(Marker::default().find(message.as_bytes()), Some(12_345));
        assert_eq!(Marker::default().find(br#"{"type":"ping"}"#), None);
        assert!(serde_json::from_str::<serde_json::Value>(&payload).is_ok());
    }
}
