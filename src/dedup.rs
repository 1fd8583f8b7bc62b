//! Deduplication window: remembers recently seen keys, limited by number and by age.
//!
//! Generic over key and value; knows nothing of brokers or events and reads no clock. It is used to
//! answer a publisher's retry without asking the broker, and to deliver a message once when it arrives
//! at a second offset.

use std::{hash::Hash, num::NonZeroUsize, time::Duration};

use lru::LruCache;

/// Keys seen recently, each with a value. When it is full, the least recently inserted key is evicted.
#[derive(Debug)]
pub struct DedupWindow<K: Hash + Eq, V> {
    entries: LruCache<K, Entry<V>>,
    age_ms: u64,
}

#[derive(Debug)]
struct Entry<V> {
    inserted_ms: u64,
    value: V,
}

impl<K: Hash + Eq, V: Copy> DedupWindow<K, V> {
    /// A window over the last `size` keys, each kept for `age`. Memory is allocated as keys come in.
    pub fn new(size: NonZeroUsize, age: Duration) -> Self {
        let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        Self { entries: LruCache::sparse(size), age_ms }
    }

    /// The value of `key`, if it was inserted less than the window's age before `now_ms`.
    pub fn get(&mut self, key: &K, now_ms: u64) -> Option<V> {
        // A peek: a lookup does not make the key younger.
        let entry = self.entries.peek(key)?;
        (now_ms.saturating_sub(entry.inserted_ms) < self.age_ms).then_some(entry.value)
    }

    /// Inserts `key`, or replaces its value and age.
    pub fn insert(&mut self, key: K, value: V, now_ms: u64) {
        self.entries.push(key, Entry { inserted_ms: now_ms, value });
    }

    /// Number of keys held, including expired ones that were not evicted yet.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no key is held.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn window(size: usize, age_ms: u64) -> DedupWindow<u32, u32> {
        DedupWindow::new(NonZeroUsize::new(size).unwrap(), Duration::from_millis(age_ms))
    }

    #[test]
    fn a_key_expires_when_it_reaches_the_age() {
        let mut window = window(10, 1000);
        window.insert(1, 7, 5000);
        assert_eq!(window.get(&1, 5999), Some(7));
        assert_eq!(window.get(&1, 6000), None);
        assert_eq!(window.get(&2, 5000), None);
    }

    proptest! {
        #[test]
        fn it_never_holds_more_keys_than_its_size(keys in prop::collection::vec(0u32..500, 0..2000)) {
            let mut window = window(64, 1_000_000);
            for (now, key) in keys.iter().enumerate() {
                window.insert(*key, 0, now as u64);
                prop_assert!(window.len() <= 64);
                prop_assert_eq!(window.get(key, now as u64), Some(0));
            }
        }
    }
}
