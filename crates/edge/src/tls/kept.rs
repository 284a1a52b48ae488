//! What was made for handshakes before: the next one by the same terms takes it again.
//!
//! Never decides anything: where one of the terms is another, all is made anew. A certificate that
//! is served no more stays until its name comes again, or all are forgotten, and is not used. Names
//! that are no app's have nothing kept, as there is no end of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::ServerConfig;
use rustls::sign::CertifiedKey;

use super::{Offer, Said};
use crate::live::AppKey;

/// For how many names; all are forgotten when there would be more.
const KEPT_MAX: usize = 1024;

/// Configurations by the name that clients said.
#[derive(Debug, Default)]
pub(super) struct Kept {
    usual: Mutex<HashMap<String, Made>>,
    /// For clients that have no AES of their own.
    chacha: Mutex<HashMap<String, Made>>,
}

/// A configuration and what it was made of, beside its name.
#[derive(Debug)]
struct Made {
    tenant: AppKey,
    key: Arc<CertifiedKey>,
    said: Said,
    config: Arc<ServerConfig>,
}

impl Made {
    fn fits(&self, tenant: &AppKey, offer: &Offer<'_>) -> bool {
        // Held here, it has its address to itself.
        Arc::ptr_eq(&self.key, offer.key) && self.tenant == *tenant && self.said == *offer.said
    }
}

impl Kept {
    /// Returns what was made by the same terms, or has it made.
    pub(super) fn or_make(
        &self,
        offer: &Offer<'_>,
        make: impl FnOnce() -> Arc<ServerConfig>,
    ) -> Arc<ServerConfig> {
        let Some(tenant) = &offer.secure.tenant else { return make() };
        let name = offer.secure.name.as_str();
        let known = self.of(offer).get(name).filter(|made| made.fits(tenant, offer)).map(config_of);
        known.unwrap_or_else(|| {
            let config = make();
            let made = Made {
                tenant: tenant.clone(),
                key: Arc::clone(offer.key),
                said: offer.said.clone(),
                config: Arc::clone(&config),
            };
            let mut kept = self.of(offer);
            if kept.len() >= KEPT_MAX && !kept.contains_key(name) {
                kept.clear();
            }
            kept.insert(name.to_owned(), made);
            config
        })
    }

    fn of(&self, offer: &Offer<'_>) -> MutexGuard<'_, HashMap<String, Made>> {
        let kept = if offer.prefers_chacha { &self.chacha } else { &self.usual };
        kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn config_of(made: &Made) -> Arc<ServerConfig> {
    Arc::clone(&made.config)
}

#[cfg(test)]
mod tests {
    use perch_types::OrgSlug;

    use super::super::{FirstOf, Secure, Tls};
    use super::*;

    #[test]
    fn only_so_many_are_kept() {
        let (tls, said) = (Tls::new(Arc::new(FirstOf::default())).unwrap(), Said::default());
        let count = || tls.kept.usual.lock().unwrap().len();
        for number in 0..=KEPT_MAX {
            let tenant = AppKey { org: OrgSlug::personal(), name: "web".parse().unwrap() };
            let secure = Secure { name: format!("{number}.d"), tenant: Some(tenant) };
            let (key, secure) = (&tls.self_signed, &secure);
            let offer = Offer { key, said: &said, secure, prefers_chacha: false };
            tls.kept.or_make(&offer, || Arc::clone(&tls.refusing));
            assert_eq!(count(), number % KEPT_MAX + 1);
        }
    }
}
