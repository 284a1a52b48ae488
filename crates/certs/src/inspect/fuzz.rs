//! What must hold of certificates, whatever bytes they are made of.
//!
//! Never reads one itself: it looks at what was read with rules that are simpler.

use base64::Engine as _;
use perch_types::certificate_docs::Leaf;
use perch_types::certificates::{CHAIN_LENGTH_MAX, WILDCARD};
use perch_types::{Secret, Timestamp};
use rustls::pki_types::CertificateDer;

use super::{
    BASE64_URL, Facts, ISSUER_CHARS_MAX, admit, chain_of, covers, facts_of, hangs_together,
};

/// Names of which no certificate's name covers two.
const HOSTS: [&str; 3] = ["shop.example", "a.shop.example", "a.b.shop.example"];

/// Text of a user: a chain is within its bounds and has no key in it.
pub(crate) fn text(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(chain) = chain_of(text) {
        assert!((1..=CHAIN_LENGTH_MAX).contains(&chain.len()), "{}", chain.len());
        assert!(!text.contains("PRIVATE KEY-----"), "{text}");
        chain.iter().for_each(der);
    }
    // One text is never both, the chain and its key.
    let admitted = admit(HOSTS[0], text, &Secret::new(text), Timestamp::UNIX_EPOCH);
    assert_eq!(admitted.ok(), None, "{text}");
}

/// One certificate: what is read of it can be shown and sent.
pub(crate) fn der(der: &CertificateDer<'_>) {
    // Whatever it is, the question has an answer.
    let _said = hangs_together(&[der.clone(), der.clone()]);
    let Ok(Facts { leaf, names, .. }) = facts_of(der) else {
        return;
    };
    let Leaf { issuer, renewal_id, .. } = &leaf;
    assert!(issuer.chars().count() <= ISSUER_CHARS_MAX, "{issuer:?}");
    assert!(!issuer.contains(char::is_control), "{issuer:?}");
    for part in renewal_id.iter().flat_map(|id| [&id.authority, &id.serial]) {
        assert!(BASE64_URL.decode(part).ok().is_some(), "{part}");
    }
    for name in &names {
        let covered = HOSTS.iter().filter(|host| covers(name, host)).count();
        assert!(covered <= 1, "{name:?}");
        let is_one = HOSTS.contains(&name.as_str()) || name.starts_with(WILDCARD);
        assert!(is_one || covered == 0, "{name:?}");
    }
}
