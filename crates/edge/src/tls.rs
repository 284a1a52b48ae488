//! Certificates by name, as whoever ends TLS asks for them.
//!
//! Never waits: whoever has the certificates knows them already.

use std::fmt;
use std::sync::Arc;

use rustls::sign::CertifiedKey;

/// Certificates by name, and answers to those who want proof that a name leads here.
///
/// It is asked on the loops that serve requests: whatever it knows, it knows already.
pub trait Certificates: Send + Sync + fmt::Debug {
    /// Returns the certificate of a name, in lower case; `*.example.com` asks for that wildcard.
    fn resolve(&self, name: &str) -> Option<Arc<CertifiedKey>>;

    /// Returns what answers a TLS-ALPN-01 challenge for a name.
    fn challenge(&self, name: &str) -> Option<Arc<CertifiedKey>>;

    /// Returns what answers an HTTP-01 challenge at a host.
    fn http_challenge(&self, host: &str, token: &str) -> Option<String>;
}
