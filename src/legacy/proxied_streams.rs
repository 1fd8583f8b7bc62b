//! Registry of open streams proxied to the upstream, so that a rollout can end those of users that
//! moved to the gateway.

use std::sync::Arc;

use parking_lot::Mutex;
use slab::Slab;
use tokio_util::sync::CancellationToken;

/// All streams that this node proxies to the upstream.
#[derive(Debug, Default)]
pub struct ProxiedStreams(Mutex<Slab<ProxiedStreamEntry>>);

#[derive(Debug)]
struct ProxiedStreamEntry {
    unit: String,
    groups: Vec<String>,
    cancellation: CancellationToken,
}

/// Registration of one proxied stream, removed on drop.
#[derive(Debug)]
pub struct ProxiedStreamGuard {
    streams: Arc<ProxiedStreams>,
    key: usize,
    cancellation: CancellationToken,
}

impl ProxiedStreams {
    /// Registers a stream. The caller ends the stream when the guard's
    /// [`cancellation`](ProxiedStreamGuard::cancellation) is cancelled, which `stop` also does.
    pub fn register(
        self: &Arc<Self>,
        unit: String,
        groups: Vec<String>,
        stop: &CancellationToken,
    ) -> ProxiedStreamGuard {
        let cancellation = stop.child_token();
        let entry = ProxiedStreamEntry { unit, groups, cancellation: cancellation.clone() };
        let key = self.0.lock().insert(entry);
        ProxiedStreamGuard { streams: Arc::clone(self), key, cancellation }
    }

    /// Cancels up to `limit` streams whose unit and groups match, and returns how many. Streams that
    /// were cancelled before are not counted.
    pub fn end_where(&self, limit: usize, matches: impl Fn(&str, &[String]) -> bool) -> usize {
        let streams = self.0.lock();
        let open = streams.iter().filter(|(_, entry)| !entry.cancellation.is_cancelled());
        let matching = open.filter(|(_, entry)| matches(&entry.unit, &entry.groups));
        matching.take(limit).map(|(_, entry)| entry.cancellation.cancel()).count()
    }
}

impl ProxiedStreamGuard {
    /// Cancelled when the stream has to end.
    pub fn cancellation(&self) -> &CancellationToken {
        &self.cancellation
    }
}

impl Drop for ProxiedStreamGuard {
    fn drop(&mut self) {
        self.streams.0.lock().try_remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matching_streams_are_ended_up_to_the_limit() {
        let (streams, stop) = (Arc::new(ProxiedStreams::default()), CancellationToken::new());
        let register = |unit: &str| streams.register(unit.to_owned(), Vec::new(), &stop);
        let guards = ["anna", "bert", "carl", "anna"].map(register);
        let ended = || guards.iter().filter(|guard| guard.cancellation().is_cancelled()).count();
        assert_eq!(streams.end_where(1, |unit, _| unit == "anna"), 1);
        assert_eq!(ended(), 1);
        assert_eq!(streams.end_where(9, |unit, _| unit == "anna"), 1, "ended stream counted again");
        assert!(!guards[1].cancellation().is_cancelled());
        assert!(!guards[2].cancellation().is_cancelled());
        stop.cancel();
        assert_eq!(ended(), 4);
        drop(guards);
        assert!(streams.0.lock().is_empty());
    }
}
