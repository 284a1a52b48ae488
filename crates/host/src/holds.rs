//! Which images may not be taken away right now, and which are being taken away.
//!
//! Never decides which should go: whoever wants one gone asks whether it may.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use perch_types::image::Digest;
use tokio::sync::Notify;

/// Says whether a machine names an image.
pub type IsNamed<'a> = &'a (dyn Fn(&Digest) -> bool + Send + Sync);

/// Holds on images and removals under way. Clones are the same book.
#[derive(Debug, Clone, Default)]
pub struct Holds {
    book: Arc<Mutex<Book>>,
    ended: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Book {
    held: BTreeMap<Digest, usize>,
    going: BTreeSet<Digest>,
}

/// Keeps an image where it is until this is dropped.
#[derive(Debug, Default)]
#[must_use = "the image may go as soon as this is dropped"]
pub struct Hold {
    of: Option<(Holds, Digest)>,
}

/// The removal of an image, under way until this is dropped.
#[derive(Debug)]
#[must_use = "nobody waits for the removal once this is dropped"]
pub struct Going {
    holds: Holds,
    digest: Digest,
}

impl Holds {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a hold of an image, after the removal of it that is under way.
    pub async fn hold(&self, digest: &Digest) -> Hold {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            // Listening begins before the look, so that no end falls in between.
            ended.as_mut().enable();
            if self.try_hold(digest) {
                return Hold { of: Some((self.clone(), digest.clone())) };
            }
            ended.await;
        }
    }

    fn try_hold(&self, digest: &Digest) -> bool {
        let mut book = self.book();
        if book.going.contains(digest) {
            return false;
        }
        *book.held.entry(digest.clone()).or_default() += 1;
        true
    }

    /// Begins the removal of an image unless somebody holds it or a machine names it. A machine
    /// names its image before the hold of its creation ends, so one of the two is always seen.
    pub fn begin_removal(&self, digest: &Digest, is_named: IsNamed<'_>) -> Option<Going> {
        let mut book = self.book();
        if book.held.contains_key(digest) || book.going.contains(digest) || is_named(digest) {
            return None;
        }
        book.going.insert(digest.clone());
        drop(book);
        Some(Going { holds: self.clone(), digest: digest.clone() })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some((holds, digest)) = &self.of else {
            return;
        };
        let mut book = holds.book();
        if let Some(count) = book.held.get_mut(digest) {
            *count -= 1;
            if *count == 0 {
                book.held.remove(digest);
            }
        }
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        self.holds.book().going.remove(&self.digest);
        self.holds.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn digest(byte: u8) -> Digest {
        Digest::from_sha256(&[byte; 32])
    }

    #[tokio::test]
    async fn what_is_held_or_named_does_not_go() {
        let holds = Holds::default();
        let (first, second) = (holds.hold(&digest(1)).await, holds.hold(&digest(1)).await);
        assert!(holds.begin_removal(&digest(1), &|_| false).is_none());
        drop(first);
        assert!(holds.begin_removal(&digest(1), &|_| false).is_none());
        drop(second);
        assert!(holds.begin_removal(&digest(1), &|_| true).is_none());
        let going = holds.begin_removal(&digest(1), &|_| false).unwrap();
        assert!(holds.begin_removal(&digest(1), &|_| false).is_none(), "it is going already");
        assert!(holds.begin_removal(&digest(2), &|_| false).is_some());
        drop(going);
    }

    #[tokio::test]
    async fn a_hold_waits_for_the_removal_under_way() {
        let holds = Holds::default();
        let going = holds.begin_removal(&digest(1), &|_| false).unwrap();
        let waiting = holds.clone();
        let hold = tokio::spawn(async move { waiting.hold(&digest(1)).await });
        drop(tokio::time::timeout(Duration::from_secs(5), holds.hold(&digest(2))).await.unwrap());
        assert!(!hold.is_finished());
        drop(going);
        let hold = tokio::time::timeout(Duration::from_secs(5), hold).await.unwrap().unwrap();
        assert!(holds.begin_removal(&digest(1), &|_| false).is_none());
        drop(hold);
    }
}
