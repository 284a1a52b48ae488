//! What a server's own authority may vouch for, read from its certificate (RFC 5280, section
//! 4.2.1.10). Pure.
//!
//! Never believes the server about it: a machine that trusts an authority trusts it for all that
//! the certificate allows.

#[cfg(any(test, feature = "fuzzing"))]
#[path = "../../../fuzz/src/inputs.rs"]
mod inputs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The largest certificate that is taken from a server.
const PEM_BYTES_MAX: usize = 16 * 1024;
const BEGIN: &str = "-----BEGIN CERTIFICATE-----\n";
const END: &str = "-----END CERTIFICATE-----";

/// Tags of DER.
const SEQUENCE: u8 = 0x30;
const OBJECT_ID: u8 = 0x06;
const BOOLEAN: u8 = 0x01;
const OCTETS: u8 = 0x04;
/// `extensions` of a certificate.
const EXTENSIONS: u8 = 0xa3;
/// `permittedSubtrees` and `excludedSubtrees`.
const PERMITTED: u8 = 0xa0;
const EXCLUDED: u8 = 0xa1;
/// `dNSName` and `iPAddress`.
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;
const NAME_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x1e];
/// All addresses: each with its mask.
const ALL_IPV4: &[u8] = &[0; 8];
const ALL_IPV6: &[u8] = &[0; 32];

/// Returns whether a certificate, as PEM, is one that may vouch for names of a domain alone.
pub(crate) fn is_for_alone(pem: &str, domain: &str) -> bool {
    der_of(pem).is_some_and(|der| constraint(&der).is_some_and(|it| allows_alone(it, domain)))
}

/// Returns the bytes of the one certificate that there is.
fn der_of(pem: &str) -> Option<Vec<u8>> {
    if pem.len() > PEM_BYTES_MAX {
        return None;
    }
    let text = pem.replace("\r\n", "\n");
    let body = text.strip_prefix(BEGIN)?.trim_end().strip_suffix(END)?;
    STANDARD.decode(body.replace('\n', "")).ok()
}

/// An element and what comes after it.
struct Element<'a> {
    tag: u8,
    content: &'a [u8],
    rest: &'a [u8],
}

fn element(bytes: &[u8]) -> Option<Element<'_>> {
    let (tag, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81 => rest.split_first().map(|(length, rest)| (usize::from(*length), rest))?,
        0x82 => {
            let (length, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some(Element { tag: *tag, content, rest })
}

/// Returns an element's content, if it has a tag and is all that there is.
fn only(bytes: &[u8], tag: u8) -> Option<&[u8]> {
    element(bytes).filter(|it| it.tag == tag && it.rest.is_empty()).map(|it| it.content)
}

fn elements(mut bytes: &[u8]) -> Option<Vec<Element<'_>>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let next = element(bytes)?;
        bytes = next.rest;
        all.push(next);
    }
    Some(all)
}

/// Returns the name constraints of a certificate; nothing when others may look past them.
fn constraint(der: &[u8]) -> Option<&[u8]> {
    let certificate = only(der, SEQUENCE)?;
    let body = element(certificate).filter(|it| it.tag == SEQUENCE)?;
    let fields = elements(body.content)?;
    let extensions = fields.iter().find(|it| it.tag == EXTENSIONS)?;
    let mut found = None;
    for extension in elements(only(extensions.content, SEQUENCE)?)? {
        let parts = elements(extension.content)?;
        let [id, rest @ ..] = parts.as_slice() else { return None };
        if id.tag != OBJECT_ID || id.content != NAME_CONSTRAINTS {
            continue;
        }
        let [critical, value] = rest else { return None };
        let is_critical = critical.tag == BOOLEAN && critical.content == [0xff];
        if !is_critical || value.tag != OCTETS || found.is_some() {
            return None;
        }
        found = Some(value.content);
    }
    found
}

/// Returns whether name constraints permit the domain and no other, and no address.
fn allows_alone(constraint: &[u8], domain: &str) -> bool {
    let Some(both) = only(constraint, SEQUENCE).and_then(elements) else { return false };
    let [permitted, excluded] = both.as_slice() else { return false };
    if permitted.tag != PERMITTED || excluded.tag != EXCLUDED {
        return false;
    }
    let (Some(permitted), Some(excluded)) =
        (subtrees(permitted.content), subtrees(excluded.content))
    else {
        return false;
    };
    permitted == [(DNS_NAME, domain.as_bytes())]
        && [ALL_IPV4, ALL_IPV6].iter().all(|all| excluded.contains(&(IP_ADDRESS, *all)))
}

/// Returns the kinds and names of subtrees.
fn subtrees(bytes: &[u8]) -> Option<Vec<(u8, &[u8])>> {
    let all = elements(bytes)?;
    if !all.iter().all(|it| it.tag == SEQUENCE) {
        return None;
    }
    all.iter().map(|it| element(it.content).map(|base| (base.tag, base.content))).collect()
}

/// Bytes that are as they should be: a certificate for `a.example` alone, as the digits of its bytes.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) const FUZZ_SEEDS: &[&str] = &[
    "308201c430820169a00302010202141a0c0723705c0b4506a7b1782bebe911da36b23b300a06082a8648ce3d\
     040302300c310a300806035504030c01613020170d3236313132373134353931315a180f3231323631313033\
     3134353931315a300c310a300806035504030c01613059301306072a8648ce3d020106082a8648ce3d030107\
     03420004d13f6434b3e2906191b16cd4d51ac8ce0ded1bbda0715d35c4cb654992bea8a4917764b007fabd8a\
     c91109188565718c4346b06b69e19291abd3e86da9f156e0a381a63081a3301d0603551d0e04160414e0ee3a\
     51e2b016c0ce5b0b904ce08626f61b81f6301f0603551d23041830168014e0ee3a51e2b016c0ce5b0b904ce0\
     8626f61b81f630120603551d130101ff040830060101ff020100304d0603551d1e0101ff04433041a00d300b\
     8209612e6578616d706c65a130300a8708000000000000000030228720000000000000000000000000000000\
     0000000000000000000000000000000000300a06082a8648ce3d040302034900304602210087ac392817d454\
     a4320d92d5a824c926bde97d52743268fd78f1e565ff796778022100ca58c6d73b102854c5580a101e7c0ad1\
     5c8c1365d042302472ee4858d6329ef3\n",
    "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
    "30820004a30230000000\n",
];

/// Whoever may vouch for one domain alone says so in its bytes, and of no other domain: for the
/// fuzz target.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    // As a server sends it, which has an answer whatever it is.
    let _said = is_for_alone(&String::from_utf8_lossy(bytes), "a.example");
    let der = inputs::unhex(bytes);
    let Some(found) = constraint(&der) else {
        return;
    };
    let has = |part: &[u8]| der.windows(part.len()).any(|it| it == part);
    assert!(has(NAME_CONSTRAINTS), "{der:x?}");
    if allows_alone(found, "a.example") {
        assert!(has(b"a.example") && has(ALL_IPV4) && has(ALL_IPV6), "{der:x?}");
        assert!(["", "example", "b.example"].iter().all(|it| !allows_alone(found, it)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CidrSubnet, GeneralSubtree, IsCa, KeyPair,
        NameConstraints,
    };

    use super::*;

    fn no_address() -> Vec<GeneralSubtree> {
        vec![
            GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])),
            GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])),
        ]
    }

    fn dns(names: &[&str]) -> Vec<GeneralSubtree> {
        names.iter().map(|name| GeneralSubtree::DnsName((*name).to_owned())).collect()
    }

    fn pem(constraints: Option<(Vec<GeneralSubtree>, Vec<GeneralSubtree>)>) -> String {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.name_constraints = constraints.map(|(permitted_subtrees, excluded_subtrees)| {
            NameConstraints { permitted_subtrees, excluded_subtrees }
        });
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    }

    #[test]
    fn e9_an_authority_of_one_domain_is_told_from_one_of_everything() {
        let ours = pem(Some((dns(&["a.example"]), no_address())));
        assert!(is_for_alone(&ours, "a.example"));
        for domain in ["example", "b.example", "a.example.", ""] {
            assert!(!is_for_alone(&ours, domain), "{domain}");
        }
        for (what, other) in [
            ("no constraint", pem(None)),
            ("another domain too", pem(Some((dns(&["a.example", "bank"]), no_address())))),
            ("all names", pem(Some((dns(&[""]), no_address())))),
            ("addresses", pem(Some((dns(&["a.example"]), Vec::new())))),
            ("nothing permitted by name", pem(Some((Vec::new(), no_address())))),
            ("two certificates", ours.repeat(2)),
            (
                "not one",
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(),
            ),
            ("nothing", String::new()),
        ] {
            assert!(!is_for_alone(&other, "a.example"), "{what}");
        }
        // What changes are made of is one of these.
        let seed = STANDARD.encode(inputs::unhex(FUZZ_SEEDS[0].as_bytes()));
        let seed = format!("{BEGIN}{seed}\n{END}");
        assert!(is_for_alone(&seed, "a.example"));
        // Every shorter part of it is no certificate, and none is a fault.
        let der = der_of(&ours).unwrap();
        for length in 0..der.len() {
            assert!(constraint(&der[..length]).is_none(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn e9_any_bytes_vouch_for_what_they_say_alone(bytes in inputs::changed(FUZZ_SEEDS)) {
            fuzz(&bytes);
        }
    }
}
