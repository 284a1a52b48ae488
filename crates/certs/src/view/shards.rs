//! A map by host name whose copies share what did not change.
//!
//! Never costs more for a change than a small part of it: of ten thousand names some forty.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

/// Parts of a map.
const SHARDS: u64 = 256;

type Shard<V> = Arc<BTreeMap<Arc<str>, V>>;

/// The map. A clone is as cheap as it has parts, and is changed without the other.
#[derive(Debug, Clone)]
pub(super) struct Shards<V> {
    hasher: RandomState,
    parts: Vec<Shard<V>>,
}

impl<V> Default for Shards<V> {
    fn default() -> Self {
        let parts = (0..SHARDS).map(|_| Arc::default()).collect();
        Self { hasher: RandomState::new(), parts }
    }
}

impl<V: Clone> Shards<V> {
    pub(super) fn get(&self, name: &str) -> Option<&V> {
        self.parts.get(self.index(name))?.get(name)
    }

    pub(super) fn insert(&mut self, name: &str, value: V) {
        let index = self.index(name);
        if let Some(part) = self.parts.get_mut(index) {
            Arc::make_mut(part).insert(Arc::from(name), value);
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        let index = self.index(name);
        if let Some(part) = self.parts.get_mut(index).filter(|part| part.contains_key(name)) {
            Arc::make_mut(part).remove(name);
        }
    }

    fn index(&self, name: &str) -> usize {
        usize::try_from(self.hasher.hash_one(name) % SHARDS).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_leaves_copies_as_they_were_and_shares_the_rest() {
        let mut first: Shards<usize> = Shards::default();
        for number in 0..10_000 {
            first.insert(&format!("name-{number}.example"), number);
        }
        let before = first.clone();
        first.insert("name-7.example", 0);
        first.remove("name-8.example");
        first.remove("nobody.example");
        assert_eq!(
            (first.get("name-7.example"), before.get("name-7.example")),
            (Some(&0), Some(&7))
        );
        assert_eq!((first.get("name-8.example"), before.get("name-8.example")), (None, Some(&8)));
        assert_eq!(first.get("name-9999.example"), Some(&9_999));
        let pairs = first.parts.iter().zip(&before.parts);
        let copied = pairs.filter(|(one, other)| !Arc::ptr_eq(one, other)).count();
        assert!((1..=2).contains(&copied), "{copied}");
        let most = first.parts.iter().map(|part| part.len()).max().unwrap();
        assert!(most < 200, "{most} in one part");
    }
}
