use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ED25519,
    PKCS_RSA_SHA256, PublicKeyData, SignatureAlgorithm, date_time_ymd,
};

use super::*;

fn now() -> Timestamp {
    "2026-06-01T00:00:00Z".parse().unwrap()
}

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    Authority { pem, issuer: Issuer::new(params, key) }
}

fn params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_before = date_time_ymd(2026, 5, 1);
    params.not_after = date_time_ymd(2026, 8, 1);
    params.use_authority_key_identifier_extension = true;
    params
}

fn leaf(authority: &Authority, params: &CertificateParams) -> (String, Secret) {
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &authority.issuer).unwrap();
    (certificate.pem(), Secret::new(key.serialize_pem()))
}

#[test]
fn a_good_certificate_is_taken_and_its_facts_are_read() {
    let authority = authority("Honest");
    let (certificate, key) = leaf(&authority, &params(&["shop.example", "*.shop.example"]));
    let chain = format!("{certificate}{}", authority.pem);
    for hostname in ["shop.example", "a.shop.example", "*.shop.example"] {
        let leaf = admit(hostname, &chain, &key, now()).unwrap();
        assert_eq!((leaf.kind, leaf.issuer.as_str()), (KeyKind::Ecdsa, "Honest"));
        assert_eq!(leaf.not_after, "2026-08-01T00:00:00Z".parse().unwrap());
        let id = leaf.renewal_id.unwrap().to_string();
        assert_eq!(id.split('.').filter(|part| !part.is_empty()).count(), 2, "{id}");
    }
    // Without those that it is signed with it is one too.
    admit("shop.example", &certificate, &key, now()).unwrap();
    certified_key(&chain, &key).unwrap();
}

#[test]
fn what_is_wrong_with_a_certificate_is_told_by_its_field() {
    let (honest, other) = (authority("Honest"), authority("Other"));
    let (good, key) = leaf(&honest, &params(&["shop.example", "*.deep.example"]));
    let (another, another_key) = leaf(&honest, &params(&["shop.example"]));
    let mut ended = params(&["shop.example"]);
    ended.not_after = date_time_ymd(2026, 5, 31);
    let (ended, ended_key) = leaf(&honest, &ended);
    let mut early = params(&["shop.example"]);
    early.not_before = date_time_ymd(2026, 6, 2);
    let (early, early_key) = leaf(&honest, &early);
    let (nameless, nameless_key) = leaf(&honest, &params(&[]));
    let ed25519 = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let odd = params(&["shop.example"]).signed_by(&ed25519, &honest.issuer).unwrap().pem();
    let secret = |text: &str| Secret::new(text);
    let key_text = key.expose().to_owned();
    for (hostname, chain, key, want) in [
        ("shop.example", "", secret(&key_text), "fullchain: has no certificate as PEM"),
        ("shop.example", "-----BEGIN", secret(&key_text), "fullchain: has no certificate as PEM"),
        (
            "shop.example",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            secret(&key_text),
            "fullchain: has a certificate that cannot be read",
        ),
        ("shop.example", &key_text, secret(&key_text), "fullchain: has a private key in it"),
        ("other.example", &good, secret(&key_text), "fullchain: is for shop.example, *.deep"),
        ("deep.example", &good, secret(&key_text), "and not for deep.example"),
        ("a.b.deep.example", &good, secret(&key_text), "and not for a.b.deep.example"),
        ("*.shop.example", &good, secret(&key_text), "and not for *.shop.example"),
        ("shop.example", &nameless, nameless_key, "fullchain: names no host"),
        ("shop.example", &ended, ended_key, "fullchain: ended at 2026-05-31"),
        ("shop.example", &early, early_key, "fullchain: begins at 2026-06-02"),
        ("shop.example", &honest.pem, secret(&key_text), "the certificate of an authority"),
        (
            "shop.example",
            &format!("{good}{}", other.pem),
            secret(&key_text),
            "fullchain: certificate 1 was not issued by the one behind it",
        ),
        (
            "shop.example",
            &format!("{}{good}", honest.pem),
            secret(&key_text),
            "fullchain: certificate 1 was not issued by the one behind it",
        ),
        (
            "shop.example",
            &odd,
            secret(&ed25519.serialize_pem()),
            "fullchain: has a key that is neither RSA nor ECDSA",
        ),
        ("shop.example", &good, secret(""), "private_key: is not a private key as PEM"),
        ("shop.example", &good, secret("hunter2"), "private_key: is not a private key as PEM"),
        ("shop.example", &good, another_key, "private_key: is not the key of the first"),
        ("shop.example", &another, secret(&key_text), "private_key: is not the key of the first"),
        (
            "shop.example",
            &"a".repeat(CHAIN_BYTES_MAX + 1),
            secret(&key_text),
            "fullchain: 32769 bytes are more than 32768",
        ),
        (
            "shop.example",
            &good.repeat(CHAIN_LENGTH_MAX + 1),
            secret(&key_text),
            "fullchain: has more than 10 certificates",
        ),
        (
            "shop.example",
            &good,
            secret(&"a".repeat(PRIVATE_KEY_BYTES_MAX + 1)),
            "private_key: is longer than 16384 bytes",
        ),
    ] {
        let text = admit(hostname, chain, &key, now()).unwrap_err().to_string();
        assert!(text.contains(want), "{want}: {text}");
        assert!(!text.contains("hunter2"));
    }
}

/// The public half of a key of RSA (RFC 8017, appendix A.1.1), which nobody has the other half of.
struct Rsa(Vec<u8>);

impl Rsa {
    fn of(bytes: u16) -> Self {
        let field = |tag: u8, content: &[u8]| {
            let length = u16::try_from(content.len()).unwrap().to_be_bytes();
            [&[tag, 0x82][..], &length[..], content].concat()
        };
        let modulus = [vec![0_u8], vec![0xff; usize::from(bytes)]].concat();
        let fields = [field(2, &modulus), vec![2, 3, 1, 0, 1]].concat();
        Self(field(0x30, &fields))
    }
}

impl PublicKeyData for Rsa {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_RSA_SHA256
    }
}

#[test]
fn a_key_of_rsa_that_would_cost_too_much_is_refused() {
    let honest = authority("Honest");
    let certificate = |bytes: u16| {
        params(&["shop.example"]).signed_by(&Rsa::of(bytes), &honest.issuer).unwrap().pem()
    };
    let key = Secret::new(KeyPair::generate().unwrap().serialize_pem());
    for (bytes, want) in [
        (512, "private_key: is not the key of the first"),
        (513, "fullchain: has an RSA key of 4104 bits, more than 4096"),
        (2048, "fullchain: has an RSA key of 16384 bits, more than 4096"),
    ] {
        let text = admit("shop.example", &certificate(bytes), &key, now()).unwrap_err().to_string();
        assert!(text.contains(want), "{want}: {text}");
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_break_the_reader(
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..512),
        cut in 0_usize..2_000,
        at in 0_usize..2_000,
    ) {
        let authority = authority("Honest");
        let (good, key) = leaf(&authority, &params(&["shop.example"]));
        let mut der = CertificateDer::from_pem_slice(good.as_bytes()).unwrap().to_vec();
        der.truncate(cut);
        if let Some(byte) = der.get_mut(at) {
            *byte = byte.wrapping_add(1);
        }
        drop(facts_of(&CertificateDer::from(der)));
        drop(facts_of(&CertificateDer::from(bytes.clone())));
        drop(admit("shop.example", &String::from_utf8_lossy(&bytes), &key, now()));
    }
}
