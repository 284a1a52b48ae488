//! Session tickets that only the tenant they were made for can be resumed with.
//!
//! Never keeps a key: those are the inner ticketer's, which throws them away in turn. The library
//! itself resumes only under the name that a session began with; a name may change hands, though.

use std::fmt;
use std::sync::Arc;

use rustls::server::ProducesTickets;

/// A ticketer for one tenant.
pub(super) struct BoundTickets {
    inner: Arc<dyn ProducesTickets>,
    /// The scope with its length in front, so that none is the beginning of another.
    scope: Vec<u8>,
}

impl BoundTickets {
    pub(super) fn new(inner: Arc<dyn ProducesTickets>, scope: &str) -> Self {
        let length = (scope.len() as u64).to_be_bytes();
        Self { inner, scope: [length.as_slice(), scope.as_bytes()].concat() }
    }
}

impl fmt::Debug for BoundTickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundTickets").finish_non_exhaustive()
    }
}

impl ProducesTickets for BoundTickets {
    fn enabled(&self) -> bool {
        self.inner.enabled()
    }

    fn lifetime(&self) -> u32 {
        self.inner.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.inner.encrypt(&[self.scope.as_slice(), plain].concat())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let bound = self.inner.decrypt(cipher)?;
        bound.strip_prefix(self.scope.as_slice()).map(<[u8]>::to_vec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e9_a_ticket_of_one_tenant_is_nothing_to_another() {
        let inner = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
        let scoped = |scope| BoundTickets::new(Arc::clone(&inner), scope);
        let (web, webs) = (scoped("app personal web"), scoped("app personal webs"));
        let ticket = web.encrypt(b"secret").unwrap();
        assert_eq!(web.decrypt(&ticket).as_deref(), Some(b"secret".as_slice()));
        assert_eq!(webs.decrypt(&ticket), None);
        assert_eq!(scoped("app personal we").decrypt(&ticket), None);
        // Another server's, or one from before a restart.
        let other = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
        assert_eq!(BoundTickets::new(other, "app personal web").decrypt(&ticket), None);
        assert!(web.enabled() && web.lifetime() > 0 && web.lifetime() <= 24 * 3600);
    }
}
