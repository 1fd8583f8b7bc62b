//! Messages that wait to be appended to the nodes' log. Bounded: what does not fit is dropped.

use std::collections::VecDeque;

use serde::Serialize;

/// Bytes that may wait.
const BYTES_MAX: usize = 32 << 20;

/// Bytes of payloads in one message.
const MESSAGE_BYTES: usize = 64 << 10;

/// Payloads that wait to be sent, as JSON.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Each with whether it counts towards the limit.
    payloads: VecDeque<(String, bool)>,
    bytes: usize,
}

impl Outbox {
    /// Adds a payload. Returns false when the limit is exceeded: all payloads that count towards it were
    /// dropped.
    pub(super) fn push(&mut self, payload: &impl Serialize) -> bool {
        let Ok(payload) = serde_json::to_string(payload) else { return true };
        self.bytes += payload.len();
        self.payloads.push_back((payload, true));
        if self.bytes <= BYTES_MAX {
            return true;
        }
        self.payloads.retain(|(_, counts)| !counts);
        self.bytes = 0;
        false
    }

    /// Adds a payload that is as large as this node's state, and so cannot pile up: it does not count
    /// towards the limit.
    pub(super) fn push_uncounted(&mut self, payload: &impl Serialize) {
        if let Ok(payload) = serde_json::to_string(payload) {
            self.payloads.push_back((payload, false));
        }
    }

    /// Takes the payloads of the next message, about [`MESSAGE_BYTES`] of them.
    pub(super) fn take_message(&mut self) -> Vec<String> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while bytes < MESSAGE_BYTES
            && let Some((payload, counts)) = self.payloads.pop_front()
        {
            bytes += payload.len();
            if counts {
                self.bytes = self.bytes.saturating_sub(payload.len());
            }
            taken.push(payload);
        }
        taken
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.payloads.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_the_limit_only_what_does_not_count_is_kept() {
        let mut outbox = Outbox::default();
        outbox.push_uncounted(&"state");
        let megabyte = "x".repeat(1 << 20);
        let fits = (0..40).take_while(|_| outbox.push(&megabyte)).count();
        assert_eq!(fits, 31, "each has two quotation marks");
        assert_eq!(outbox.take_message(), ["\"state\""]);
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_message_ends_with_the_payload_that_fills_it() {
        let mut outbox = Outbox::default();
        for _ in 0..3 {
            assert!(outbox.push(&"x".repeat(MESSAGE_BYTES / 2)));
        }
        assert_eq!(outbox.take_message().len(), 2);
        assert_eq!(outbox.take_message().len(), 1);
        assert!(outbox.is_empty());
    }
}
