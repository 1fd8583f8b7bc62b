//! One node at a time: a record in the store that its holder renews.
//!
//! No clock is compared with another node's. Who wants the lease watches the record's version: if it
//! has not changed for the whole time by the watcher's own clock, the holder is gone. What the holder
//! writes elsewhere is compared and set, so one that was only slow does no harm.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::broker::{
    BrokerError, Store,
    store::{Write, Written},
};

/// A claim to be the only one.
#[derive(Debug)]
pub(super) struct Lease {
    key: String,
    me: String,
    time: Duration,
    /// The version last seen, and since when it stands there.
    seen: Option<(u64, Instant)>,
    held_until: Option<Instant>,
}

#[derive(Serialize, Deserialize)]
struct Held {
    by: String,
}

impl Lease {
    /// For a holder that renews more often than every `time`.
    pub(super) fn new(key: &str, me: &str, time: Duration) -> Self {
        let (key, me) = (key.to_owned(), me.to_owned());
        Self { key, me, time, seen: None, held_until: None }
    }

    /// Takes or renews it where that can be. Whether it is held.
    ///
    /// # Errors
    /// When the store is away; until it runs out, the lease is still held then.
    pub(super) async fn hold(&mut self, store: &dyn Store) -> Result<bool, BrokerError> {
        let found = store.get(&self.key).await?;
        let version = found.as_ref().map_or(0, |record| record.version);
        let holder = found.and_then(|record| serde_json::from_str::<Held>(&record.value).ok());
        let mine = holder.as_ref().is_some_and(|held| held.by == self.me);
        if self.seen.is_none_or(|(seen, _)| seen != version) {
            self.seen = Some((version, Instant::now()));
        }
        let stale = self.seen.is_some_and(|(_, since)| self.time <= since.elapsed());
        if holder.is_some() && !mine && !stale {
            self.held_until = None;
            return Ok(false);
        }
        let asked = Instant::now();
        let value = serde_json::to_string(&Held { by: self.me.clone() }).unwrap_or_default();
        let write = Write { expected: version, value, note: None };
        match store.put(&self.key, write).await? {
            Written::Done(version) => {
                self.seen = Some((version, Instant::now()));
                // Counted from before it was asked for: the others see it later than that.
                self.held_until = Some(asked + self.time);
                Ok(true)
            }
            Written::Conflict(_) => {
                self.held_until = None;
                Ok(false)
            }
        }
    }

    /// Whether it is still held, by this node's own clock.
    pub(super) fn is_held(&self) -> bool {
        self.held_until.is_some_and(|until| Instant::now() < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{
        Broker as _, Retention, Retentions,
        memory::{MemoryBroker, MemoryConfig},
    };

    fn store() -> std::sync::Arc<dyn Store> {
        let kept = Retention { events: 1, age: Duration::ZERO, dedup: Duration::from_secs(1) };
        let retentions = Retentions::new(kept, std::collections::HashMap::new());
        MemoryBroker::open(&MemoryConfig::default(), retentions.into()).unwrap().0.store()
    }

    #[tokio::test]
    async fn one_holds_it_until_it_is_gone_for_the_whole_time() {
        let store = store();
        let time = Duration::from_millis(200);
        let (mut one, mut two) =
            (Lease::new("lease", "one", time), Lease::new("lease", "two", time));
        assert!(one.hold(&*store).await.unwrap());
        assert!(!two.hold(&*store).await.unwrap());
        let begin = Instant::now();
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        while begin.elapsed() < 2 * time {
            tick.tick().await;
            assert!(one.hold(&*store).await.unwrap() && one.is_held());
            assert!(!two.hold(&*store).await.unwrap());
        }
        // One falls silent.
        let begin = Instant::now();
        while !two.hold(&*store).await.unwrap() {
            tick.tick().await;
        }
        assert!(time <= begin.elapsed() && !one.is_held());
        assert!(!one.hold(&*store).await.unwrap());
    }
}
