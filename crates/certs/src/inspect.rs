//! Reads certificates, and says whether one is good for a host name and a key.
//!
//! Never trusts or distrusts who issued one: that is for whoever connects. Pure; time comes in.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64_URL;
use perch_types::certificate_docs::{Leaf, RenewalId};
use perch_types::certificates::{
    CHAIN_BYTES_MAX, CHAIN_LENGTH_MAX, KeyKind, PRIVATE_KEY_BYTES_MAX, WILDCARD,
};
use perch_types::{Secret, Timestamp};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;

/// The longest name of an issuer that is kept, in characters.
const ISSUER_CHARS_MAX: usize = 120;
/// The largest key of RSA: what each handshake costs grows with the cube of it.
const RSA_BITS_MAX: usize = 4096;

/// Why a certificate is not taken: the field that it is about, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Refusal {
    /// The field of the body.
    pub field: &'static str,
    /// What is wrong.
    pub reason: String,
}

fn refusal(field: &'static str, reason: impl Into<String>) -> Refusal {
    Refusal { field, reason: reason.into() }
}

/// Checks an uploaded certificate: the chain hangs together, its first certificate is for the host
/// name and holds now, and the key is that certificate's.
///
/// # Errors
/// The field that is at fault.
pub fn admit(
    hostname: &str,
    fullchain: &str,
    private_key: &Secret,
    now: Timestamp,
) -> Result<Leaf, Refusal> {
    const CHAIN: &str = "fullchain";
    const KEY: &str = "private_key";
    if fullchain.len() > CHAIN_BYTES_MAX {
        let text = format!("{} bytes are more than {CHAIN_BYTES_MAX}", fullchain.len());
        return Err(refusal(CHAIN, text));
    }
    if private_key.expose().len() > PRIVATE_KEY_BYTES_MAX {
        return Err(refusal(KEY, format!("is longer than {PRIVATE_KEY_BYTES_MAX} bytes")));
    }
    let chain = chain_of(fullchain).map_err(|reason| refusal(CHAIN, reason))?;
    hangs_together(&chain).map_err(|reason| refusal(CHAIN, reason))?;
    let first = chain.first().ok_or_else(|| refusal(CHAIN, "has no certificate"))?;
    let facts = facts_of(first).map_err(|reason| refusal(CHAIN, reason))?;
    if facts.is_authority {
        return Err(refusal(CHAIN, "begins with the certificate of an authority, not of a host"));
    }
    if !facts.names.iter().any(|name| covers(name, hostname)) {
        let names: Vec<&str> = facts.names.iter().take(10).map(String::as_str).collect();
        let text = format!("is for {} and not for {hostname}", names.join(", "));
        return Err(refusal(
            CHAIN,
            if names.is_empty() { "names no host".to_owned() } else { text },
        ));
    }
    if facts.leaf.not_after <= now {
        return Err(refusal(CHAIN, format!("ended at {}", facts.leaf.not_after)));
    }
    if facts.leaf.not_before > now {
        return Err(refusal(CHAIN, format!("begins at {}", facts.leaf.not_before)));
    }
    certified(chain, private_key).map_err(|reason| refusal(KEY, reason))?;
    Ok(facts.leaf)
}

/// Reads a chain that was issued, and its facts.
///
/// # Errors
/// What is wrong with it.
pub fn issued(fullchain: &str) -> Result<Leaf, String> {
    let chain = chain_of(fullchain)?;
    let first = chain.first().ok_or("has no certificate")?;
    Ok(facts_of(first)?.leaf)
}

/// Makes what TLS serves of a chain and its key.
///
/// # Errors
/// What is wrong; nothing of the key.
pub fn certified_key(fullchain: &str, private_key: &Secret) -> Result<CertifiedKey, String> {
    certified(chain_of(fullchain)?, private_key)
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    private_key: &Secret,
) -> Result<CertifiedKey, String> {
    // What the library says of a key that it cannot read may show a piece of it.
    let key = PrivateKeyDer::from_pem_slice(private_key.expose().as_bytes());
    let key = key.map_err(|_| "is not a private key as PEM without a password")?;
    let key = any_supported_type(&key)
        .map_err(|_| "is not a key of ECDSA, or of RSA with 2048 bits or more")?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(|_| "is not the key of the first certificate of the chain")?;
    Ok(certified)
}

fn chain_of(fullchain: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    if fullchain.contains("PRIVATE KEY-----") {
        return Err("has a private key in it, which belongs into `private_key`".to_owned());
    }
    let mut chain = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(fullchain.as_bytes()) {
        if chain.len() == CHAIN_LENGTH_MAX {
            return Err(format!("has more than {CHAIN_LENGTH_MAX} certificates"));
        }
        chain.push(certificate.map_err(|_| "is not certificates as PEM".to_owned())?);
    }
    if chain.is_empty() {
        return Err("has no certificate as PEM in it".to_owned());
    }
    Ok(chain)
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    let (rest, certificate) = X509Certificate::from_der(der.as_ref())
        .map_err(|_| "has a certificate that cannot be read".to_owned())?;
    if rest.is_empty() {
        return Ok(certificate);
    }
    Err("has something behind a certificate".to_owned())
}

/// Looks whether each certificate names the next one as its issuer.
fn hangs_together(chain: &[CertificateDer<'_>]) -> Result<(), String> {
    for (index, pair) in chain.windows(2).enumerate() {
        let [one, next] = pair else { continue };
        let (one, next) = (parse(one)?, parse(next)?);
        if one.issuer().as_raw() != next.subject().as_raw() {
            return Err(format!(
                "certificate {} was not issued by the one behind it; the host's comes first",
                index + 1
            ));
        }
    }
    Ok(())
}

struct Facts {
    leaf: Leaf,
    names: Vec<String>,
    is_authority: bool,
}

fn facts_of(der: &CertificateDer<'_>) -> Result<Facts, String> {
    let certificate = parse(der)?;
    let kind = match certificate.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => {
            let bits = key.modulus.iter().skip_while(|byte| **byte == 0).count() * 8;
            if bits > RSA_BITS_MAX {
                let text = format!("has an RSA key of {bits} bits, more than {RSA_BITS_MAX}");
                return Err(text);
            }
            KeyKind::Rsa
        }
        Ok(PublicKey::EC(_)) => KeyKind::Ecdsa,
        _ => return Err("has a key that is neither RSA nor ECDSA".to_owned()),
    };
    let names = certificate.subject_alternative_name();
    let names = names.map_err(|_| "has names that cannot be read".to_owned())?;
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let names = names.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    let time = |seconds: i64| Timestamp::from_unix_ms(seconds.saturating_mul(1_000));
    Ok(Facts {
        names: names.collect(),
        is_authority: certificate.is_ca(),
        leaf: Leaf {
            kind,
            issuer: issuer_of(&certificate),
            not_before: time(certificate.validity().not_before.timestamp()),
            not_after: time(certificate.validity().not_after.timestamp()),
            renewal_id: renewal_id(&certificate),
        },
    })
}

fn issuer_of(certificate: &X509Certificate<'_>) -> String {
    let issuer = certificate.issuer();
    let mut names = issuer.iter_organization().chain(issuer.iter_common_name());
    let name = names.find_map(|name| name.as_str().ok()).unwrap_or_default();
    name.chars().filter(|one| !one.is_control()).take(ISSUER_CHARS_MAX).collect()
}

fn renewal_id(certificate: &X509Certificate<'_>) -> Option<RenewalId> {
    let authority = certificate.iter_extensions().find_map(|it| match it.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(found) => found.key_identifier.as_ref(),
        _ => None,
    })?;
    Some(RenewalId {
        authority: BASE64_URL.encode(authority.0),
        serial: BASE64_URL.encode(certificate.raw_serial()),
    })
}

/// Returns whether a name of a certificate is good for a host name.
fn covers(name: &str, hostname: &str) -> bool {
    if name == hostname {
        return true;
    }
    let above = |text: &str| text.split_once('.').map(|(_, above)| above.to_owned());
    !hostname.starts_with(WILDCARD)
        && name.strip_prefix(WILDCARD).is_some_and(|name| above(hostname).as_deref() == Some(name))
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests;
