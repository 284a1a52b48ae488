//! Tables and properties of image names.
//!
//! Never touches the network.

use proptest::prelude::*;

use super::*;

const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn short_names_become_full_ones() {
    let table = [
        ("redis", "docker.io/library/redis:latest"),
        ("redis:7", "docker.io/library/redis:7"),
        ("bitnami/redis", "docker.io/bitnami/redis:latest"),
        ("docker.io/redis", "docker.io/library/redis:latest"),
        ("index.docker.io/redis:7.2-alpine", "docker.io/library/redis:7.2-alpine"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app:v1", "localhost:5000/app:v1"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
        ("GHCR.io/org/app_x/y__z:V1", "ghcr.io/org/app_x/y__z:V1"),
        ("registry.internal/my-app:deployment-01", "registry.internal/my-app:deployment-01"),
    ];
    for (text, full) in table {
        assert_eq!(text.parse::<Reference>().expect(text).to_string(), full);
    }
    let digest = format!("redis@sha256:{HEX}");
    let parsed: Reference = digest.parse().expect("digest");
    assert_eq!(parsed.tag(), None);
    assert_eq!(parsed.to_string(), format!("docker.io/library/redis@sha256:{HEX}"));
    let both: Reference = format!("redis:7@sha256:{HEX}").parse().expect("both");
    assert_eq!(both.tag(), Some("7"));
    assert_eq!(both.digest().map(Digest::hex), Some(HEX));
}

#[test]
fn broken_names_are_refused() {
    let table = [
        "",
        ":",
        "@",
        "/",
        "Redis",
        "a//b",
        "a/",
        "/a",
        "a:",
        "a:-x",
        "a@sha256:00",
        "a b",
        "../etc",
        "a/../b",
        "a/.b",
        "a___b",
        "a..b",
        "a-",
        "host:0/a",
        "host:99999/a",
        "-host.io/a",
        "host..io/a",
        "a\0b",
        "ä",
        "a@sha512:00",
        "a:tag:tag",
        "[zz]:1/a",
    ];
    for text in table {
        assert!(text.parse::<Reference>().is_err(), "{text:?} was accepted");
    }
    "a".repeat(REPOSITORY_BYTES_MAX + 1).parse::<Reference>().unwrap_err();
    format!("a:{}", "t".repeat(TAG_BYTES_MAX + 1)).parse::<Reference>().unwrap_err();
}

#[test]
fn digests_are_lowercase_sha256_only() {
    format!("sha256:{HEX}").parse::<Digest>().unwrap();
    format!("sha256:{}", HEX.to_uppercase()).parse::<Digest>().unwrap_err();
    HEX.parse::<Digest>().unwrap_err();
    serde_json::from_str::<Digest>("\"sha256:zz\"").unwrap_err();
    assert_eq!(Digest::from_sha256(&[0xab; 32]).hex(), "ab".repeat(32));
}

proptest! {
    #[test]
    fn whatever_parses_is_stable_and_safe(text in "[a-zA-Z0-9./:@_\\-\\[\\]]{0,80}") {
        if let Ok(reference) = text.parse::<Reference>() {
            let again: Reference = reference.to_string().parse().expect("full form parses");
            prop_assert_eq!(&again, &reference);
            prop_assert!(!reference.repository().contains(".."));
            prop_assert!(!reference.repository().starts_with('/'));
        }
    }

    #[test]
    fn no_text_makes_the_parser_fall_over(text in ".{0,200}") {
        let _either: Result<Reference, _> = text.parse();
    }
}
