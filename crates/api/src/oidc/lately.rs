//! Documents of organizations' keys that were read lately: whoever asks for one is anonymous, and
//! does not have the directory read each time.
//!
//! Never reads the directory or a clock: what is read and when come in.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use perch_types::OrgSlug;

/// How long a document is kept: as long as the edge lets others keep it.
const KEPT_MS: u64 = 300_000;
/// How long it is kept that an organization has no key: another api may make one.
const NONE_KEPT_MS: u64 = 5_000;
/// Documents that are kept.
const KEPT_MAX: usize = 1_024;

/// The documents.
#[derive(Debug, Default)]
pub(crate) struct Lately(Mutex<BTreeMap<OrgSlug, Kept>>);

#[derive(Debug)]
struct Kept {
    document: Vec<u8>,
    has_key: bool,
    until_boot_ms: u64,
}

impl Lately {
    fn kept(&self) -> MutexGuard<'_, BTreeMap<OrgSlug, Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the document of an organization, if it was read lately.
    pub(super) fn get(&self, org: &OrgSlug, boot_ms: u64) -> Option<Vec<u8>> {
        let kept = self.kept();
        let known = kept.get(org).filter(|known| known.until_boot_ms > boot_ms)?;
        Some(known.document.clone())
    }

    /// Keeps a document; of too many the one that ends first goes.
    pub(super) fn put(&self, org: OrgSlug, (document, has_key): (Vec<u8>, bool), boot_ms: u64) {
        let mut kept = self.kept();
        // What was read before the key was made may come after it.
        let is_old = |known: &Kept| known.has_key && known.until_boot_ms > boot_ms;
        if !has_key && kept.get(&org).is_some_and(is_old) {
            return;
        }
        if kept.len() >= KEPT_MAX && !kept.contains_key(&org) {
            let first = kept.iter().min_by_key(|(_, known)| known.until_boot_ms);
            if let Some(first) = first.map(|(org, _)| org.clone()) {
                kept.remove(&first);
            }
        }
        let kept_ms = if has_key { KEPT_MS } else { NONE_KEPT_MS };
        let until_boot_ms = boot_ms.saturating_add(kept_ms);
        kept.insert(org, Kept { document, has_key, until_boot_ms });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn org(number: usize) -> OrgSlug {
        format!("org-{number}").parse().unwrap()
    }

    #[test]
    fn a_document_is_kept_for_its_time_and_one_without_a_key_for_a_moment() {
        let lately = Lately::default();
        assert_eq!(lately.get(&org(1), 0), None);
        lately.put(org(1), (b"none".to_vec(), false), 0);
        assert_eq!(lately.get(&org(1), NONE_KEPT_MS - 1), Some(b"none".to_vec()));
        assert_eq!(lately.get(&org(1), NONE_KEPT_MS), None);
        // A key that is made is told at once, whatever is heard late.
        lately.put(org(1), (b"key".to_vec(), true), 0);
        lately.put(org(1), (b"none".to_vec(), false), 1);
        assert_eq!(lately.get(&org(1), KEPT_MS - 1), Some(b"key".to_vec()));
        assert_eq!(lately.get(&org(1), KEPT_MS), None);
        lately.put(org(1), (b"none".to_vec(), false), KEPT_MS);
        assert_eq!(lately.get(&org(1), KEPT_MS), Some(b"none".to_vec()));
    }

    #[test]
    fn names_that_nobody_has_drive_no_document_out() {
        let lately = Lately::default();
        lately.put(org(0), (b"key".to_vec(), true), 0);
        for number in 1..2 * KEPT_MAX {
            lately.put(org(number), (Vec::new(), false), 1);
        }
        assert_eq!(lately.kept().len(), KEPT_MAX);
        assert_eq!(lately.get(&org(0), 1), Some(b"key".to_vec()));
    }
}
