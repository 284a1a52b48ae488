//! The authority behind apps' names on a server without a public one: made once, by itself.
//!
//! Never vouches for a name outside the server's domain: its certificate says that it may not, so
//! that whoever trusts it trusts it for these names alone. Its key lies in the folder of the
//! process that ends TLS for them, and is that user's alone to read.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use arc_swap::ArcSwap;
use perch_edge::Certificates;
use perch_types::clock::Clock;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use crate::certificate::{EARLY_S, set_validity, write_private};

/// It holds for ten years: those who trust it do so once.
const AUTHORITY_S: i64 = 10 * 365 * 24 * 3600;
/// A certificate under it holds for ninety days and is made anew after sixty.
const LEAF_S: i64 = 90 * 24 * 3600;
const RENEW_AFTER_S: i64 = 60 * 24 * 3600;
/// How many certificates for single names are kept; beyond that all are made again when they are
/// asked for.
const NAMES_MAX: usize = 1_024;

/// The authority of this server's domain.
pub(crate) struct LocalAuthority {
    domain: String,
    wildcard: String,
    certificate_pem: String,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    clock: Arc<dyn Clock>,
    leaves: ArcSwap<HashMap<String, Leaf>>,
}

/// A certificate under it.
#[derive(Debug, Clone)]
struct Leaf {
    key: Arc<CertifiedKey>,
    made_at_s: i64,
}

impl Leaf {
    /// Whether it is served: not too old, nor made while the clock was ahead so that it does not
    /// hold yet.
    fn holds(&self, now_s: i64) -> bool {
        let from_s = self.made_at_s.saturating_sub(EARLY_S);
        (from_s..self.made_at_s.saturating_add(RENEW_AFTER_S)).contains(&now_s)
    }
}

impl LocalAuthority {
    /// Reads the authority of a domain from `folder`, or makes it there.
    pub(crate) fn open(folder: &Path, domain: &str, clock: Arc<dyn Clock>) -> Result<Self> {
        // A domain has one of its own: none may vouch for another's names.
        let certificate_path = folder.join(format!("local-ca-{domain}.pem"));
        let key_path = folder.join(format!("local-ca-{domain}.key"));
        if !certificate_path.is_file() {
            let key = KeyPair::generate().context("make a key")?;
            let made = params(domain, clock.as_ref())?
                .self_signed(&key)
                .context("sign the local authority")?;
            // The certificate is last: while it is missing, the key belongs to nothing.
            write_private(&key_path, key.serialize_pem().as_bytes())?;
            write_private(&certificate_path, made.pem().as_bytes())?;
        }
        let read = |path: &Path| {
            fs::read_to_string(path).with_context(|| format!("read `{}`", path.display()))
        };
        let (certificate_pem, key_pem) = (read(&certificate_path)?, read(&key_path)?);
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .context("read the local authority's certificate")?;
        let key = KeyPair::from_pem(&key_pem).context("read the local authority's key")?;
        Ok(Self {
            domain: domain.to_owned(),
            wildcard: format!("*.{domain}"),
            certificate_pem,
            certificate,
            issuer: Issuer::new(params(domain, clock.as_ref())?, key),
            clock,
            leaves: ArcSwap::default(),
        })
    }

    /// Returns its certificate, for those who are to trust it.
    pub(crate) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Returns the certificate for a name that is ours, made now if there is none that holds.
    fn leaf(&self, name: &str, names: &[&str]) -> Option<Arc<CertifiedKey>> {
        let now = self.clock.now().unix_s();
        let known = self.leaves.load();
        if let Some(leaf) = known.get(name).filter(|leaf| leaf.holds(now)) {
            return Some(Arc::clone(&leaf.key));
        }
        let key = match self.issue(names) {
            Ok(key) => Arc::new(key),
            Err(error) => {
                tracing::error!(name, error = format!("{error:#}"), "certificate not made");
                return None;
            }
        };
        let leaf = Leaf { key: Arc::clone(&key), made_at_s: now };
        // What another loop made in the same moment is as good.
        self.leaves.rcu(|leaves| {
            let mut leaves = HashMap::clone(leaves);
            if leaves.len() >= NAMES_MAX {
                leaves.clear();
            }
            leaves.insert(name.to_owned(), leaf.clone());
            leaves
        });
        Some(key)
    }

    fn issue(&self, names: &[&str]) -> Result<CertifiedKey> {
        let all: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(all)
            .with_context(|| format!("make a certificate for {names:?}"))?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Perch app");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, self.clock.as_ref(), LEAF_S)?;
        let key = KeyPair::generate().context("make a key")?;
        let made = params.signed_by(&key, &self.issuer).context("sign a certificate")?;
        let chain = vec![made.der().clone(), self.certificate.clone()];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
            .context("use a certificate")
    }
}

/// Whether there is a name: its label under the domain, and all of it.
type IsName = dyn Fn(&str, &str) -> bool + Send + Sync;

/// The authority for names that there are: whoever asks for others has no key made for them on a
/// loop that serves requests.
pub(crate) struct OfNames {
    authority: Arc<LocalAuthority>,
    is_one: Box<IsName>,
}

impl OfNames {
    pub(crate) fn new(
        authority: Arc<LocalAuthority>,
        is_one: impl Fn(&str, &str) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { authority, is_one: Box::new(is_one) }
    }
}

impl fmt::Debug for OfNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OfNames").field("authority", &self.authority).finish_non_exhaustive()
    }
}

impl Certificates for OfNames {
    fn resolve(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let LocalAuthority { domain, wildcard, .. } = self.authority.as_ref();
        if name != domain && name != wildcard {
            let label = name.strip_suffix(domain.as_str())?.strip_suffix('.')?;
            if !(self.is_one)(label, name) {
                return None;
            }
        }
        self.authority.resolve(name)
    }

    fn challenge(&self, _: &str) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn http_challenge(&self, _: &str, _: &str) -> Option<String> {
        None
    }
}

impl fmt::Debug for LocalAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalAuthority").field("domain", &self.domain).finish_non_exhaustive()
    }
}

impl Certificates for LocalAuthority {
    fn resolve(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        if name == self.domain || name == self.wildcard {
            return self.leaf(&self.wildcard, &[&self.wildcard, &self.domain]);
        }
        // Clients take no wildcard for all of a top-level domain: there, each name has its own.
        let label = name.strip_suffix(self.domain.as_str())?.strip_suffix('.')?;
        let is_one = !self.domain.contains('.') && !label.contains(['.', '*']);
        is_one.then(|| self.leaf(name, &[name]))?
    }

    fn challenge(&self, _: &str) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn http_challenge(&self, _: &str, _: &str) -> Option<String> {
        None
    }
}

fn params(domain: &str, clock: &dyn Clock) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Perch");
    params.distinguished_name.push(DnType::CommonName, "Perch local CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(domain.to_owned())],
        // What is not named is allowed: no address is.
        excluded_subtrees: vec![
            GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])),
            GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])),
        ],
    });
    set_validity(&mut params, clock, AUTHORITY_S)?;
    Ok(params)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::atomic::{AtomicI64, Ordering};

    use perch_types::Timestamp;
    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::pki_types::{ServerName, UnixTime};

    use super::*;
    use crate::clock::SystemClock;

    const DOMAIN: &str = "perch.localhost";

    fn open(folder: &Path, domain: &str) -> LocalAuthority {
        LocalAuthority::open(folder, domain, Arc::new(SystemClock)).unwrap()
    }

    /// Whether somebody who trusts the authority takes its certificate for a name.
    fn is_trusted(authority: &LocalAuthority, key: &CertifiedKey, name: &str) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate.clone()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let (leaf, chain) = key.cert.split_first().unwrap();
        let now = u64::try_from(SystemClock.now().unix_s()).unwrap();
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now));
        verifier.build().unwrap().verify_server_cert(leaf, chain, &name, &[], now).is_ok()
    }

    #[test]
    fn e9_it_is_made_once_and_its_key_is_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(folder.path(), DOMAIN);
        assert_eq!(first.certificate_pem(), open(folder.path(), DOMAIN).certificate_pem());
        assert_ne!(first.certificate_pem(), open(folder.path(), "a.example").certificate_pem());
        let key = folder.path().join("local-ca-perch.localhost.key");
        assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn apps_have_a_certificate_that_those_who_trust_it_take() {
        let folder = tempfile::tempdir().unwrap();
        let authority = open(folder.path(), DOMAIN);
        let wildcard = authority.resolve("*.perch.localhost").unwrap();
        assert!(is_trusted(&authority, &wildcard, "web.perch.localhost"));
        assert!(is_trusted(&authority, &wildcard, DOMAIN));
        assert!(!is_trusted(&authority, &wildcard, "web.example"));
        // It is made once, not for everyone who asks.
        assert!(Arc::ptr_eq(&wildcard, &authority.resolve(DOMAIN).unwrap()));
        for other in ["web.perch.localhost", "*.example", "perch.localhost.example", "localhost"] {
            assert!(authority.resolve(other).is_none(), "{other}");
        }
        // Another server's authority is another one, although it has the same names.
        let elsewhere = tempfile::tempdir().unwrap();
        let other = open(elsewhere.path(), DOMAIN);
        assert!(!is_trusted(&other, &wildcard, "web.perch.localhost"));
    }

    /// Goes as it is told.
    #[derive(Debug)]
    struct Told(AtomicI64);

    impl Clock for Told {
        fn now(&self) -> Timestamp {
            Timestamp::from_unix_ms(self.0.load(Ordering::Relaxed).saturating_mul(1000))
        }

        fn boot_ms(&self) -> u64 {
            0
        }
    }

    #[test]
    fn a_certificate_is_made_anew_when_it_is_old_or_the_clock_was_ahead() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemClock.now().unix_s();
        let clock = Arc::new(Told(AtomicI64::new(now)));
        let authority =
            LocalAuthority::open(folder.path(), DOMAIN, Arc::<Told>::clone(&clock)).unwrap();
        let at = |at_s: i64| {
            clock.0.store(at_s, Ordering::Relaxed);
            authority.resolve(DOMAIN).unwrap()
        };
        let ahead = at(now + EARLY_S + 1);
        assert!(Arc::ptr_eq(&ahead, &at(now + 1)), "it holds a day before");
        let right = at(now);
        assert!(!Arc::ptr_eq(&ahead, &right), "it would not hold yet");
        assert!(is_trusted(&authority, &right, DOMAIN));
        assert!(Arc::ptr_eq(&right, &at(now + RENEW_AFTER_S - 1)));
        assert!(!Arc::ptr_eq(&right, &at(now + RENEW_AFTER_S)));
    }

    #[test]
    fn e9_nothing_outside_the_domain_is_taken_from_it() {
        let folder = tempfile::tempdir().unwrap();
        let authority = open(folder.path(), DOMAIN);
        for name in ["bank.example", "perch.localhost.example", "127.0.0.1"] {
            let key = authority.issue(&[name]).unwrap();
            assert!(!is_trusted(&authority, &key, name), "{name}");
        }
        let inside = authority.issue(&["a.b.perch.localhost"]).unwrap();
        assert!(is_trusted(&authority, &inside, "a.b.perch.localhost"));
    }

    #[test]
    fn nothing_is_made_for_a_name_that_there_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Arc::new(open(folder.path(), "internal"));
        let names = OfNames::new(Arc::clone(&authority), |label, name| {
            label == "web" && name == "web.internal"
        });
        for name in ["other.internal", "a.web.internal", "*.web.internal", "web.example", "web"] {
            assert!(names.resolve(name).is_none(), "{name}");
        }
        assert!(authority.leaves.load().is_empty());
        names.resolve("web.internal").unwrap();
        names.resolve("*.internal").unwrap();
        assert_eq!(authority.leaves.load().len(), 2);
    }

    #[test]
    fn under_a_domain_of_one_label_each_name_has_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let authority = open(folder.path(), "internal");
        let web = authority.resolve("web.internal").unwrap();
        assert!(is_trusted(&authority, &web, "web.internal"));
        assert!(Arc::ptr_eq(&web, &authority.resolve("web.internal").unwrap()));
        assert!(authority.resolve("a.web.internal").is_none());
        for number in 0..NAMES_MAX {
            let leaf = Leaf { key: Arc::clone(&web), made_at_s: i64::MAX };
            authority.leaves.rcu(|leaves| {
                let mut leaves = HashMap::clone(leaves);
                leaves.insert(format!("{number}.internal"), leaf.clone());
                leaves
            });
        }
        authority.resolve("one-more.internal").unwrap();
        assert!(authority.leaves.load().len() <= NAMES_MAX);
    }
}
