//! Certificates of apps (contract 1.10): their bodies, and what a host name is.
//!
//! Never a private key but in the body that uploads one.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::Secret;
use crate::time::Timestamp;

/// Certificates of one app.
pub const CERTIFICATES_MAX: usize = 1_000;
/// The longest chain that is uploaded, as PEM, in bytes.
pub const CHAIN_BYTES_MAX: usize = 32 * 1024;
/// Certificates of a chain.
pub const CHAIN_LENGTH_MAX: usize = 10;
/// The longest private key that is uploaded, as PEM, in bytes.
pub const PRIVATE_KEY_BYTES_MAX: usize = 16 * 1024;
/// The longest host name (RFC 1035, section 2.3.4); a certificate's record is named after it.
pub const HOSTNAME_BYTES_MAX: usize = 253;
/// The longest label of a host name.
const LABEL_BYTES_MAX: usize = 63;
/// What a host name begins with that stands for all names below another.
pub const WILDCARD: &str = "*.";
/// Addresses and names of one kind that are kept of what was seen.
pub const SEEN_MAX: usize = 16;

/// Returns a host name as it is kept: in lower case, without the root's dot.
///
/// # Errors
/// Why it is none that a certificate can be for.
pub fn hostname(text: &str) -> Result<String, &'static str> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    if name.len() > HOSTNAME_BYTES_MAX {
        return Err("is longer than 253 bytes");
    }
    let labels: Vec<&str> = name.strip_prefix(WILDCARD).unwrap_or(&name).split('.').collect();
    if labels.len() < 2 {
        return Err("is not a full host name such as shop.example.com");
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let fine = |label: &&str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && label.bytes().all(plain)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if !labels.iter().all(fine) {
        return Err("is not labels of letters, digits and dashes with dots between them");
    }
    // Nothing is registered under such a name; it is an address.
    if labels.last().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit())) {
        return Err("is an address and not a host name");
    }
    Ok(name)
}

/// Returns the name under which a host name's DNS records are looked for.
#[must_use]
pub fn below_wildcard(hostname: &str) -> &str {
    hostname.strip_prefix(WILDCARD).unwrap_or(hostname)
}

/// What DNS is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordType {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Another name.
    Cname,
    /// Text.
    Txt,
    /// The primary name server of the zone.
    Soa,
}

/// Body of a wish for a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CreateAcmeCertificate {
    /// The host name; `*.` before it stands for all names right below.
    pub hostname: String,
}

/// Body of an uploaded certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateCustomCertificate {
    /// The host name; `*.` before it stands for all names right below.
    pub hostname: String,
    /// The certificate and those that it is signed with, the root left out, as PEM.
    pub fullchain: String,
    /// The private key of the first, as PEM.
    pub private_key: Secret,
}

/// How a certificate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CertificateStatus {
    /// It is served.
    Active,
    /// It is not known yet whether the host name is the app's.
    PendingOwnership,
    /// It is to be issued.
    #[default]
    PendingValidation,
}

impl CertificateStatus {
    /// Returns the word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::PendingOwnership => "pending_ownership",
            Self::PendingValidation => "pending_validation",
        }
    }
}

/// Where a certificate comes from.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum CertificateSource {
    /// It was uploaded.
    Custom,
    /// The platform got it.
    #[default]
    Fly,
}

impl CertificateSource {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Custom, Self::Fly];

    /// Returns the word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Custom => "custom",
            Self::Fly => "fly",
        }
    }
}

/// What kind of key a certificate has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyKind {
    /// RSA.
    Rsa,
    /// ECDSA.
    #[default]
    Ecdsa,
}

/// A certificate in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the contract's body is made of them")]
pub struct CertificateSummary {
    /// The host name.
    pub hostname: String,
    /// How it stands.
    pub status: CertificateStatus,
    /// Whether the host name's records lead to the platform, as they were seen last.
    pub configured: bool,
    /// Whether the platform is to get one.
    pub acme_requested: bool,
    /// See [`CertificateValidation::dns_configured`].
    pub acme_dns_configured: bool,
    /// See [`CertificateValidation::alpn_configured`].
    pub acme_alpn_configured: bool,
    /// See [`CertificateValidation::http_configured`].
    pub acme_http_configured: bool,
    /// See [`CertificateValidation::ownership_txt_configured`].
    pub ownership_txt_configured: bool,
    /// Whether one was uploaded.
    pub has_custom_certificate: bool,
    /// Whether the platform got one.
    pub has_fly_certificate: bool,
    /// Who serves the host name's zone; empty when it was not seen.
    pub dns_provider: String,
    /// Since when the app has the host name.
    pub created_at: Timestamp,
    /// When something of it last changed.
    pub updated_at: Timestamp,
}

/// A page of certificates.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CertificateList {
    /// The certificates, by host name.
    pub certificates: Vec<CertificateSummary>,
    /// Where the next page begins; nothing when this is the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
    /// How many there are on all pages.
    pub total_count: u64,
}

/// A certificate of one source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateEntry {
    /// Where it comes from.
    pub source: CertificateSource,
    /// How it stands.
    pub status: CertificateStatus,
    /// Since when the platform has it, or is to get it.
    pub created_at: Timestamp,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// Who issued it.
    #[serde(default)]
    pub issuer: String,
    /// What was issued.
    #[serde(default)]
    pub issued: Vec<IssuedCertificate>,
}

/// A certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedCertificate {
    /// The kind of its key.
    #[serde(rename = "type")]
    pub kind: KeyKind,
    /// When it ends.
    pub expires_at: Timestamp,
    /// Who issued it.
    pub certificate_authority: String,
}

/// By which ways the host name can be shown to be the app's, as its records were seen last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the contract's body is made of them")]
pub struct CertificateValidation {
    /// By a record of DNS (DNS-01).
    pub dns_configured: bool,
    /// By the first bytes of a connection to the app (TLS-ALPN-01).
    pub alpn_configured: bool,
    /// By a request to the app (HTTP-01).
    pub http_configured: bool,
    /// The record of ownership is there.
    pub ownership_txt_configured: bool,
}

/// The records that are to be set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DnsRequirements {
    /// A records.
    pub a: Vec<IpAddr>,
    /// AAAA records.
    pub aaaa: Vec<IpAddr>,
    /// What a CNAME record leads to, instead of those.
    pub cname: String,
    /// The record of DNS-01.
    pub acme_challenge: AcmeChallengeRecord,
    /// The record of ownership.
    pub ownership: OwnershipRecord,
}

/// The record of DNS-01, which a certificate for `*.` needs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AcmeChallengeRecord {
    /// Its name.
    pub name: String,
    /// What a CNAME record at the name has to lead to, set once; empty where the platform serves no
    /// zone, so that a TXT record is to be set for each order.
    pub target: String,
    /// The value of the TXT record that an order waits for; empty while none does.
    #[serde(default)]
    pub txt: String,
    /// What to set, in words; empty where nothing has to be.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// The TXT record that shows whose the host name is, for one that another app has too.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OwnershipRecord {
    /// Its name.
    pub name: String,
    /// A value that names this app.
    pub app_value: String,
    /// A value that names the organization.
    pub org_value: String,
}

/// Something that went wrong with a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateValidationError {
    /// What, for programs.
    pub code: String,
    /// What, in words.
    pub message: String,
    /// What to do about it.
    pub remediation: String,
    /// When.
    pub timestamp: Timestamp,
}

/// A certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CertificateDetail {
    /// The host name.
    pub hostname: String,
    /// Whether the host name's records lead to the platform, as they were seen last.
    pub configured: bool,
    /// Whether the platform is to get one.
    pub acme_requested: bool,
    /// How it stands.
    pub status: CertificateStatus,
    /// Who serves the host name's zone; empty when it was not seen.
    pub dns_provider: String,
    /// Until when whoever issues certificates wants no order for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limited_until: Option<Timestamp>,
    /// What there is, by source.
    pub certificates: Vec<CertificateEntry>,
    /// By which ways the host name can be shown to be the app's.
    pub validation: CertificateValidation,
    /// The records that are to be set.
    pub dns_requirements: DnsRequirements,
    /// What went wrong, the newest first.
    pub validation_errors: Vec<CertificateValidationError>,
}

/// Records of a host name as they are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DnsRecords {
    /// A records.
    pub a: Vec<IpAddr>,
    /// AAAA records.
    pub aaaa: Vec<IpAddr>,
    /// Where CNAME records lead, one after the other.
    pub cname: Vec<String>,
    /// All addresses at the end.
    pub resolved_addresses: Vec<IpAddr>,
    /// The primary name server of the zone; empty when it was not seen.
    pub soa: String,
    /// Where a CNAME record at the name of DNS-01 leads; empty for nowhere.
    pub acme_challenge_cname: String,
    /// The record of ownership; empty for none. Of several the first that is one of ours.
    pub ownership_txt: String,
    /// The TXT records at the name of DNS-01 (Perch's own).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub acme_challenge_txt: Vec<String>,
    /// All values of the record of ownership (Perch's own).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ownership_txts: Vec<String>,
}

/// A certificate and the host name's records.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CertificateCheck {
    /// The certificate.
    #[serde(flatten)]
    pub certificate: CertificateDetail,
    /// The records, as they are now.
    pub dns_records: DnsRecords,
}

/// The certificate of all names under the platform's own domain (Perch's own).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PlatformCertificate {
    /// The host name: `*.` and the domain.
    pub hostname: String,
    /// When the one that is served ends; nothing while none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// The record that its order waits for, if it does.
    pub acme_challenge: AcmeChallengeRecord,
    /// What went wrong, the newest first.
    #[serde(default)]
    pub errors: Vec<CertificateValidationError>,
}

/// A certificate without what was taken away.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CustomCertificateRemoved {
    /// What is left.
    #[serde(flatten)]
    pub certificate: CertificateDetail,
    /// What that means for the host name; empty when another certificate is served.
    pub warning: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_full_names_in_lower_case() {
        for (text, want) in [
            ("shop.example.com", Ok("shop.example.com")),
            ("Shop.EXAMPLE.com.", Ok("shop.example.com")),
            ("*.example.com", Ok("*.example.com")),
            ("a-1.xn--bcher-kva.example", Ok("a-1.xn--bcher-kva.example")),
            ("", Err("full host name")),
            ("web", Err("full host name")),
            ("*.com", Err("full host name")),
            ("a..b", Err("labels")),
            (".a.b", Err("labels")),
            ("a.*.b", Err("labels")),
            ("*.*.b", Err("labels")),
            ("-a.b", Err("labels")),
            ("a-.b", Err("labels")),
            ("a_b.c", Err("labels")),
            ("a/b.c", Err("labels")),
            ("bücher.example", Err("labels")),
            ("a.b:443", Err("labels")),
            ("192.0.2.1", Err("an address")),
            ("2001:db8::1", Err("full host name")),
        ] {
            match (hostname(text), want) {
                (Ok(found), Ok(want)) => assert_eq!(found, want),
                (Err(fault), Err(want)) => assert!(fault.contains(want), "{text}: {fault}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
        let label = "a".repeat(LABEL_BYTES_MAX);
        hostname(&format!("{label}.b")).unwrap();
        hostname(&format!("{label}a.b")).unwrap_err();
        hostname(&"a.".repeat(HOSTNAME_BYTES_MAX)).unwrap_err();
    }

    #[test]
    fn e9_a_body_with_a_private_key_does_not_show_it() {
        let body = r#"{"hostname":"a.b","fullchain":"","private_key":"hunter2"}"#;
        let body: CreateCustomCertificate = serde_json::from_str(body).unwrap();
        assert!(!format!("{body:?}").contains("hunter2"));
    }
}
