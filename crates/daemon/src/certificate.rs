//! The server's own certificate authority, and the API's and the edge's certificates under it.
//!
//! Never leaves the key of the authority readable to anybody but root, and never sends it to
//! another process.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use perch_types::clock::Clock;
use perch_types::{HostId, Secret};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use sha2::{Digest as _, Sha256};

const CA_CERTIFICATE: &str = "ca.pem";
const CA_KEY: &str = "ca.key";
/// Certificates begin a day early, for clients whose clock is behind.
pub(crate) const EARLY_S: i64 = 24 * 3600;
/// The authority holds for ten years; it is pinned by its fingerprint, not by its age.
const CA_S: i64 = 10 * 365 * 24 * 3600;
/// The API's certificate is made anew at each start of the server and holds for a year.
const LEAF_S: i64 = 365 * 24 * 3600;

/// The authority of this server.
pub(crate) struct Authority {
    certificate_pem: String,
    certificate_der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Reads the authority from `folder`, or makes it there.
    pub(crate) fn open(folder: &Path, clock: &dyn Clock) -> Result<Self> {
        let (certificate, key) = (folder.join(CA_CERTIFICATE), folder.join(CA_KEY));
        if !certificate.is_file() {
            let key_pair = KeyPair::generate().context("make a key")?;
            let made = authority_params(clock)?.self_signed(&key_pair).context("sign the CA")?;
            // The certificate is last: while it is missing, the key belongs to nothing.
            write_private(&key, key_pair.serialize_pem().as_bytes())?;
            write_private(&certificate, made.pem().as_bytes())?;
        }
        let certificate_pem = fs::read_to_string(&certificate)
            .with_context(|| format!("read `{}`", certificate.display()))?;
        let key_pem =
            fs::read_to_string(&key).with_context(|| format!("read `{}`", key.display()))?;
        let key_pair = KeyPair::from_pem(&key_pem).context("read the CA's key")?;
        let certificate_der =
            rustls::pki_types::pem::PemObject::from_pem_slice(certificate_pem.as_bytes())
                .map(|der: rustls::pki_types::CertificateDer<'_>| der.to_vec())
                .context("read the CA's certificate")?;
        let issuer = Issuer::new(authority_params(clock)?, key_pair);
        Ok(Self { certificate_pem, certificate_der, issuer })
    }

    /// Returns SHA-256 of the certificate, hexadecimal: what `perch auth login` pins.
    pub(crate) fn fingerprint(&self) -> String {
        hex(&Sha256::digest(&self.certificate_der))
    }

    /// Makes a certificate for names and addresses; returns the chain and the key as PEM.
    pub(crate) fn issue(&self, names: &[String], clock: &dyn Clock) -> Result<(String, Secret)> {
        let mut params = CertificateParams::new(names.to_vec())
            .with_context(|| format!("make a certificate for {names:?}"))?;
        params.distinguished_name.push(DnType::CommonName, "perchd");
        self.sign(params, clock).context("make the API's certificate")
    }

    /// Makes the certificate with which the edge of a host shows edges of others whose it is;
    /// returns the chain, with the authority at its end, and the key as PEM.
    pub(crate) fn issue_edge(&self, host: &HostId, clock: &dyn Clock) -> Result<(String, Secret)> {
        let mut params = CertificateParams::new(vec![perch_edge::peer_name(host)])
            .context("name the edge in a certificate")?;
        params.distinguished_name.push(DnType::CommonName, "perchd edge");
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params, clock).context("make the edge's certificate")
    }

    fn sign(&self, mut params: CertificateParams, clock: &dyn Clock) -> Result<(String, Secret)> {
        set_validity(&mut params, clock, LEAF_S)?;
        let key = KeyPair::generate().context("make a key")?;
        let leaf = params.signed_by(&key, &self.issuer).context("sign a certificate")?;
        Ok((format!("{}{}", leaf.pem(), self.certificate_pem), Secret::new(key.serialize_pem())))
    }
}

fn authority_params(clock: &dyn Clock) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Perch server CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, clock, CA_S)?;
    Ok(params)
}

/// Lets a certificate hold for so long.
pub(crate) fn set_validity(
    params: &mut CertificateParams,
    clock: &dyn Clock,
    seconds: i64,
) -> Result<()> {
    let date = |unix_s: i64| {
        let text = perch_types::Timestamp::from_unix_ms(unix_s.saturating_mul(1000)).to_string();
        let mut parts = text.split(['-', 'T']).filter_map(|part| part.parse::<i32>().ok());
        let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
        Some(rcgen::date_time_ymd(year, u8::try_from(month).ok()?, u8::try_from(day).ok()?))
    };
    let now = clock.now().unix_s();
    params.not_before = date(now - EARLY_S).context("read the clock")?;
    params.not_after = date(now + seconds).context("read the clock")?;
    Ok(())
}

/// Writes a file that only its owner can read, whole or not at all.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let what = || format!("write `{}`", path.display());
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)
        .with_context(what)?;
    file.write_all(bytes).with_context(what)?;
    file.sync_all().with_context(what)?;
    fs::rename(&fresh, path).with_context(what)
}

/// Returns bytes as lowercase hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").ok();
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    #[test]
    fn the_authority_stays_the_same_and_its_key_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let first = Authority::open(folder.path(), &SystemClock).unwrap();
        let second = Authority::open(folder.path(), &SystemClock).unwrap();
        assert_eq!(first.fingerprint(), second.fingerprint());
        assert_eq!(first.fingerprint().len(), 64);
        let mode = fs::metadata(folder.path().join(CA_KEY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_certificate_names_what_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open(folder.path(), &SystemClock).unwrap();
        let names = ["perch.example".to_owned(), "127.0.0.1".to_owned()];
        let (chain, key) = authority.issue(&names, &SystemClock).unwrap();
        assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), 2);
        assert!(key.expose().contains("PRIVATE KEY"));
    }
}
