//! A window of things seen lately: at most so many, none older than so long.
//!
//! The window knows nothing of brokers or events, and reads no clock. A publisher's retry is
//! answered from it without asking the broker, and a message that two feeds hand over is let
//! through once.

use std::{hash::Hash, num::NonZeroUsize, time::Duration};

use lru::LruCache;

/// What was seen lately, and what is known of it.
#[derive(Debug)]
pub struct Window<K: Hash + Eq, V> {
    seen: LruCache<K, Seen<V>>,
    age_ms: u64,
}

#[derive(Debug)]
struct Seen<V> {
    at_ms: u64,
    value: V,
}

impl<K: Hash + Eq, V: Copy> Window<K, V> {
    /// A window over the last `size` keys, each remembered for `age`. It takes memory as it fills.
    pub fn new(size: NonZeroUsize, age: Duration) -> Self {
        let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        Self { seen: LruCache::sparse(size), age_ms }
    }

    /// What is known of `key`, if it was seen within the window.
    pub fn find(&mut self, key: &K, now_ms: u64) -> Option<V> {
        // Looking does not make it younger: the age counts from when it was first seen.
        let seen = self.seen.peek(key)?;
        (now_ms.saturating_sub(seen.at_ms) < self.age_ms).then_some(seen.value)
    }

    /// Remembers `key` from `now_ms` on.
    pub fn remember(&mut self, key: K, value: V, now_ms: u64) {
        self.seen.push(key, Seen { at_ms: now_ms, value });
    }

    /// How many keys are held, the outlived among them.
    pub fn len(&self) -> usize {
        self.seen.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn window(size: usize, age_ms: u64) -> Window<u32, u32> {
        Window::new(NonZeroUsize::new(size).unwrap(), Duration::from_millis(age_ms))
    }

    #[test]
    fn a_key_is_known_until_its_age_is_over() {
        let mut window = window(10, 1000);
        window.remember(1, 7, 5000);
        assert_eq!(window.find(&1, 5999), Some(7));
        assert_eq!(window.find(&1, 6000), None);
        assert_eq!(window.find(&2, 5000), None);
    }

    proptest! {
        #[test]
        fn it_never_holds_more_than_its_size(keys in prop::collection::vec(0u32..500, 0..2000)) {
            let mut window = window(64, 1_000_000);
            for (now, key) in keys.iter().enumerate() {
                window.remember(*key, 0, now as u64);
                prop_assert!(window.len() <= 64);
                prop_assert_eq!(window.find(key, now as u64), Some(0));
            }
        }
    }
}
