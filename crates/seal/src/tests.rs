use perch_types::{AppName, OrgSlug};

use super::*;

fn names() -> (OrgSlug, AppName) {
    (OrgSlug::personal(), "web".parse().unwrap())
}

#[test]
fn t13_a_secret_opens_for_its_organization_app_name_and_version_only() {
    let (org, app) = names();
    let (other_org, other_app): (OrgSlug, AppName) =
        ("acme".parse().unwrap(), "api".parse().unwrap());
    let (public, private) = generate().unwrap();
    let right = Purpose::AppSecret { org: &org, app: &app, name: "A", version: 3 };
    let sealed = public.seal(right, b"hunter2").unwrap();
    assert_eq!(private.open_text(right, &sealed).unwrap().expose(), "hunter2");
    for wrong in [
        Purpose::AppSecret { org: &other_org, app: &app, name: "A", version: 3 },
        Purpose::AppSecret { org: &org, app: &other_app, name: "A", version: 3 },
        Purpose::AppSecret { org: &org, app: &app, name: "B", version: 3 },
        Purpose::AppSecret { org: &org, app: &app, name: "A", version: 4 },
        Purpose::KeyForHost { org: &org, app: &app, app_id: "A" },
        Purpose::CertificateKey { org: &org, app: &app, app_id: "A", hostname: "A" },
        Purpose::AcmeAccountKey { directory: "A" },
    ] {
        assert_eq!(private.open_text(wrong, &sealed).unwrap_err(), Error::Open, "{wrong:?}");
    }
    let (_, other) = generate().unwrap();
    assert_eq!(other.open_text(right, &sealed).unwrap_err(), Error::Open);
}

#[test]
fn e9_a_certificates_key_opens_for_its_app_and_host_name_only() {
    let (org, app) = names();
    let (other_org, other_app): (OrgSlug, AppName) =
        ("acme".parse().unwrap(), "api".parse().unwrap());
    let (public, private) = generate().unwrap();
    let of = |org, app, app_id, hostname| Purpose::CertificateKey { org, app, app_id, hostname };
    let sealed = public.seal(of(&org, &app, "app_1", "a.b"), b"hunter2").unwrap();
    private.open_text(of(&org, &app, "app_1", "a.b"), &sealed).unwrap();
    for wrong in [
        of(&other_org, &app, "app_1", "a.b"),
        of(&org, &other_app, "app_1", "a.b"),
        of(&org, &app, "app_2", "a.b"),
        of(&org, &app, "app_1", "a.c"),
        Purpose::KeyForHost { org: &org, app: &app, app_id: "app_1" },
    ] {
        assert_eq!(private.open_text(wrong, &sealed).unwrap_err(), Error::Open, "{wrong:?}");
    }
}

#[test]
fn t4_nothing_of_a_value_shows_and_the_same_value_is_sealed_anew() {
    let (org, app) = names();
    let (public, private) = generate().unwrap();
    let purpose = Purpose::AppSecret { org: &org, app: &app, name: "A", version: 1 };
    let sealed = public.seal(purpose, b"hunter2").unwrap();
    assert_ne!(sealed, public.seal(purpose, b"hunter2").unwrap());
    let bytes = BASE64.decode(&sealed).unwrap();
    assert!(!bytes.windows(7).any(|window| window == b"hunter2"));
    assert_eq!(format!("{private:?}"), "PrivateKey(…)");
}

#[test]
fn each_change_of_a_sealed_text_is_seen() {
    let (org, app) = names();
    let (public, private) = generate().unwrap();
    let purpose = Purpose::AppSecret { org: &org, app: &app, name: "A", version: 1 };
    let sealed = BASE64.decode(public.seal(purpose, b"x").unwrap()).unwrap();
    for at in 0..sealed.len() {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        let opened = private.open(purpose, &BASE64.encode(&changed));
        assert!(opened.is_err(), "byte {at}");
    }
    for length in 0..sealed.len() {
        let cut = BASE64.encode(&sealed[..length]);
        assert!(private.open(purpose, &cut).is_err(), "length {length}");
    }
}

#[test]
fn bad_keys_and_texts_are_refused() {
    for bad in ["", "AAAA", "%%%", &BASE64.encode([0; 33])] {
        assert_eq!(PublicKey::from_base64(bad).unwrap_err(), Error::Key, "{bad}");
    }
    assert_eq!(PrivateKey::from_bytes(&[0; 31]).unwrap_err(), Error::Key);
    let (org, app) = names();
    let purpose = Purpose::AppSecret { org: &org, app: &app, name: "A", version: 1 };
    let (public, private) = generate().unwrap();
    for bad in ["", "AAAA", "%%%"] {
        assert_eq!(private.open(purpose, bad).unwrap_err(), Error::Format, "{bad}");
    }
    let binary = public.seal(purpose, &[0xff, 0xfe]).unwrap();
    assert_eq!(private.open_text(purpose, &binary).unwrap_err(), Error::Text);
    // A key of small order would give everybody the same secret.
    let weak = PublicKey::from_base64(&BASE64.encode([0; 32])).unwrap();
    assert_eq!(weak.seal(purpose, b"x").unwrap_err(), Error::Library);
}

proptest::proptest! {
    #[test]
    fn parts_that_differ_are_bound_differently(
        one in proptest::collection::vec(".{0,5}", 0..4), other in proptest::collection::vec(".{0,5}", 0..4),
    ) {
        let bytes = |parts: &[String]| {
            bind(&parts.iter().map(String::as_bytes).collect::<Vec<_>>())
        };
        proptest::prop_assert_eq!(one == other, bytes(&one) == bytes(&other));
    }

    #[test]
    fn any_value_comes_back(value: Vec<u8>) {
        let (org, app) = names();
        let (public, private) = generate().unwrap();
        let purpose = Purpose::AppSecret { org: &org, app: &app, name: "A", version: 1 };
        let sealed = public.seal(purpose, &value).unwrap();
        proptest::prop_assert_eq!(&*private.open(purpose, &sealed).unwrap(), &value);
    }
}
