//! How many connections one client has at once.
//!
//! Never waits: over the limit there is no place.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Connections at once, by client.
type Counts<K> = Arc<Mutex<BTreeMap<K, usize>>>;

/// Gives places for connections. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Limiter<K> {
    max: usize,
    counts: Counts<K>,
}

impl<K: Ord + Clone> Limiter<K> {
    /// Makes one that gives each client so many places.
    pub(crate) fn new(max: usize) -> Self {
        Self { max, counts: Counts::default() }
    }

    /// Takes a place of a client's, `None` when it has all of them.
    pub(crate) fn take(&self, client: &K) -> Option<Place<K>> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.get(client).copied().unwrap_or_default();
        if count >= self.max {
            return None;
        }
        counts.insert(client.clone(), count + 1);
        Some(Place { client: client.clone(), counts: Arc::clone(&self.counts) })
    }
}

/// A place that is given back when dropped.
#[derive(Debug)]
pub(crate) struct Place<K: Ord> {
    client: K,
    counts: Counts<K>,
}

impl<K: Ord> Drop for Place<K> {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_its_places_and_gets_them_back() {
        let limiter = Limiter::new(2);
        let mut held: Vec<_> = (0..2).map(|_| limiter.take(&1).unwrap()).collect();
        assert!(limiter.take(&1).is_none());
        let other = limiter.take(&2).unwrap();
        held.pop();
        assert!(limiter.take(&1).is_some());
        drop((held, other));
        assert!(limiter.counts.lock().unwrap().is_empty(), "nobody is remembered for nothing");
    }
}
