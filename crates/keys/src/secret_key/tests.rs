use std::sync::Arc;

use perch_store::SqliteStore;
use perch_types::clock::Clock;
use perch_types::keys::AppRef;
use perch_types::secret_keys::{Decrypt, Encrypt, MESSAGE_BYTES_MAX, Sign, Verify};
use perch_types::{OrgSlug, Timestamp};

use super::*;
use crate::Config;

#[derive(Debug)]
struct StandingClock;

impl Clock for StandingClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(0)
    }

    fn boot_ms(&self) -> u64 {
        0
    }
}

fn keys() -> (tempfile::TempDir, Keys) {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("directory.db"), Arc::new(StandingClock));
    let config = Config {
        folder: folder.path().to_owned(),
        store: Arc::new(store.unwrap()),
        clock: Arc::new(StandingClock),
    };
    let keys = Keys::open(config).unwrap();
    (folder, keys)
}

fn which(keys: &Keys, kind: SecretKeyType) -> SecretKeyRef {
    let of = AppRef {
        org: OrgSlug::personal(),
        app: "web".parse().unwrap(),
        app_id: "app_1".to_owned(),
    };
    let key = keys.make(&of).unwrap();
    SecretKeyRef { of, key, name: "k".to_owned(), kind, version: 3 }
}

fn encrypt(text: &[u8]) -> KeyAction {
    let plaintext = Octets::from(text.to_vec());
    KeyAction::Encrypt(Encrypt { plaintext, ..Encrypt::default() })
}

#[tokio::test]
async fn t4_a_sealed_key_is_used_for_its_app_name_type_and_version_only() {
    let (_folder, keys) = keys();
    let which = which(&keys, SecretKeyType::NaclSecretbox);
    let request = MakeSecretKey { which: which.clone(), value: None };
    let made = keys.make_secret_key(&request).unwrap();
    let uses = |which: &SecretKeyRef, sealed: &str| {
        let (which, sealed) = (which.clone(), sealed.to_owned());
        keys.use_secret_key(&UseSecretKey { which, sealed, action: encrypt(b"text") })
    };
    uses(&which, &made.sealed).unwrap();
    let changes: [fn(&mut SecretKeyRef); 6] = [
        |it| it.of.org = "other".parse().unwrap(),
        |it| it.of.app = "other".parse().unwrap(),
        |it| it.of.app_id = "app_2".to_owned(),
        |it| it.name = "other".to_owned(),
        |it| it.kind = SecretKeyType::Xaes256gcm,
        |it| it.version = 4,
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let mut other = which.clone();
        change(&mut other);
        let error = uses(&other, &made.sealed).unwrap_err();
        assert_eq!(error.code, Code::Internal, "{index}");
    }
    let other_key = SecretKeyRef { key: keys.make(&which.of).unwrap(), ..which.clone() };
    for (which, sealed) in [(&other_key, made.sealed.as_str()), (&which, ""), (&which, "AQ==")] {
        assert_eq!(uses(which, sealed).unwrap_err().code, Code::Internal);
    }
}

#[tokio::test]
async fn t13_a_rotation_of_the_master_key_leaves_secret_keys_as_they_are() {
    let (_folder, keys) = keys();
    let mut which = which(&keys, SecretKeyType::NaclSecretbox);
    let made = keys.make_secret_key(&MakeSecretKey { which: which.clone(), value: None });
    let sealed = made.unwrap().sealed;
    let secret = app_key::open(&keys.master(), &which.of, &which.key).unwrap();
    keys.set_master(keys.master().with_new_version().unwrap());
    which.key = secret.wrap(&keys.master(), &which.of, which.key.public.clone()).unwrap();
    assert_eq!(which.key.master, 2);
    keys.use_secret_key(&UseSecretKey { which, sealed, action: encrypt(b"text") }).unwrap();
}

/// What a host gets of an app's key, and what the api has, opens no secret key.
#[tokio::test]
async fn t5_the_key_that_hosts_get_opens_no_secret_key() {
    let (_folder, keys) = keys();
    let which = which(&keys, SecretKeyType::Hs256);
    let value = Octets::from(vec![7; 32]);
    let request = MakeSecretKey { which: which.clone(), value: Some(value) };
    let sealed = keys.make_secret_key(&request).unwrap().sealed;
    let (public, private) = perch_seal::generate().unwrap();
    let secret = app_key::open(&keys.master(), &which.of, &which.key).unwrap();
    let of = &which.of;
    let purpose =
        perch_seal::Purpose::KeyForHost { org: &of.org, app: &of.app, app_id: &of.app_id };
    let for_host = private.open(purpose, &secret.for_host(of, &public).unwrap()).unwrap();
    let mut host_key = [0; envelope::KEY_BYTES];
    host_key.copy_from_slice(&for_host);
    let bytes = BASE64.decode(&sealed).unwrap();
    envelope::open(&host_key, &bound_to(&which), &bytes[1..]).unwrap_err();
    let of_host = perch_seal::PrivateKey::from_bytes(&for_host).unwrap();
    let name = which.name.as_str();
    let purpose =
        perch_seal::Purpose::AppSecret { org: &of.org, app: &of.app, name, version: which.version };
    of_host.open(purpose, &sealed).unwrap_err();
}

#[tokio::test]
async fn what_a_type_cannot_do_and_what_is_too_long_is_told_by_its_field() {
    let (_folder, keys) = keys();
    let bytes = |length: usize| Octets::from(vec![0; length]);
    let long = MESSAGE_BYTES_MAX + 1;
    let sign = |length| KeyAction::Sign(Sign { plaintext: bytes(length) });
    let verify = |text, signature| {
        KeyAction::Verify(Verify { plaintext: bytes(text), signature: bytes(signature) })
    };
    let seal = |text, associated| {
        let (plaintext, associated_data) = (bytes(text), bytes(associated));
        KeyAction::Encrypt(Encrypt { plaintext, associated_data })
    };
    let open = |text, associated| {
        let (ciphertext, associated_data) = (bytes(text), bytes(associated));
        KeyAction::Decrypt(Decrypt { ciphertext, associated_data })
    };
    use SecretKeyType::{Es256, Hs256, NaclBox, NaclSecretbox, NaclSign, Xaes256gcm};
    for (kind, action, want) in [
        (Hs256, seal(1, 0), "invalid_value type: a key of type hs256 does not encrypt"),
        (Es256, open(1, 0), "invalid_value type: a key of type es256 does not decrypt"),
        (NaclBox, sign(1), "invalid_value type: a key of type nacl_box does not sign"),
        (Xaes256gcm, verify(1, 1), "invalid_value type: a key of type xaes256gcm does not verify"),
        (Hs256, sign(long), "invalid_value plaintext: 65537 bytes"),
        (Hs256, verify(long, 1), "invalid_value plaintext: 65537 bytes"),
        (Hs256, verify(1, long), "invalid_value signature: 65537 bytes"),
        (NaclSecretbox, seal(long, 0), "invalid_value plaintext: 65537 bytes"),
        (NaclSecretbox, open(long, 0), "invalid_value ciphertext: 65537 bytes"),
        (Xaes256gcm, seal(1, long), "invalid_value associated_data: 65537 bytes"),
        (NaclSecretbox, seal(1, 1), "invalid_value associated_data: a key of type nacl_secretbox"),
        (NaclBox, open(1, 1), "invalid_value associated_data: a key of type nacl_box takes none"),
        (Xaes256gcm, open(99, 1), "invalid_request ciphertext: this key does not open it"),
        (NaclSign, verify(1, 64), "invalid_request signature: is not this key's"),
    ] {
        let which = which(&keys, kind);
        let made = keys.make_secret_key(&MakeSecretKey { which: which.clone(), value: None });
        let sealed = made.unwrap().sealed;
        let error = keys.use_secret_key(&UseSecretKey { which, sealed, action }).unwrap_err();
        let told = format!("{} {}", error.code, error.error);
        assert!(told.starts_with(want), "{told}");
    }
    let which = which(&keys, Hs256);
    let short = MakeSecretKey { which, value: Some(bytes(8)) };
    let error = keys.make_secret_key(&short).unwrap_err();
    assert_eq!(error.code, Code::InvalidValue);
    assert!(error.error.starts_with("value: 8 bytes are not 32 to 1024"), "{error}");
}
