//! `perch certs …` and what the doctor says of them, against a platform that is made up.

use perch_types::certificates::{
    AcmeChallengeRecord, CertificateStatus, CertificateValidationError, DnsRecords,
    PlatformCertificate,
};
use perch_types::{ApiError, Code, Timestamp};

use crate::fake::{Fake, THEN};
use crate::run::Perch;

const CERTIFICATES: &str = "/v1/apps/web/certificates";

fn perch(fake: &Fake) -> Perch {
    Perch::of(fake).with("NO_COLOR", "1")
}

fn error(code: &str, message: &str, remediation: &str) -> CertificateValidationError {
    CertificateValidationError {
        code: code.to_owned(),
        message: message.to_owned(),
        remediation: remediation.to_owned(),
        timestamp: Timestamp::from_unix_ms(THEN),
    }
}

#[test]
fn a_certificate_is_added_shown_listed_and_removed() {
    let fake = Fake::start().with_app("web");
    let perch = perch(&fake);
    let none = perch.run("certs list -a web");
    assert_eq!((none.code, none.stdout.as_str()), (0, ""));
    assert_eq!(none.stderr, "`web` has no host names of its own\n");
    let added = perch.run("certs add shop.example -a web");
    assert_eq!(added.code, 0, "{added:?}");
    assert!(added.stderr.contains("ok: `shop.example` leads to `web`"), "{added:?}");
    assert!(added.stderr.contains("perch certs check 'shop.example'"), "{added:?}");
    let shown = perch.run("certs show shop.example -a web");
    assert_eq!(shown.stdout, added.stdout);
    for part in ["pending_validation", "192.0.2.1", "or CNAME", "web.localhost", "not looked at"] {
        assert!(shown.stdout.contains(part), "{part}: {shown:?}");
    }
    let json = perch.run("certs show shop.example -a web --json").good();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json["hostname"], &json["acme_requested"]),
        (&"shop.example".into(), &true.into())
    );
    let listed = perch.run("certs ls -a web").good();
    let mut lines = listed.lines();
    assert!(lines.next().unwrap().starts_with("HOST NAME"), "{listed}");
    let words: Vec<&str> = lines.next().unwrap().split_whitespace().take(3).collect();
    assert_eq!(words, ["shop.example", "pending_validation", "acme"]);
    perch.run("certs remove shop.example -a web").good();
    assert_eq!(perch.run("certs show shop.example -a web").code, 1);
    assert_eq!(
        fake.changes(),
        [format!("POST {CERTIFICATES}/acme"), format!("DELETE {CERTIFICATES}/shop.example")]
    );
}

#[test]
fn a_check_shows_what_is_seen_instead_of_each_record() {
    let fake = Fake::start().with_app("web");
    let perch = perch(&fake);
    perch.run("certs add *.shop.example -a web").good();
    {
        let mut world = fake.world();
        let detail = world.certificates.get_mut("*.shop.example").unwrap();
        detail.dns_requirements.acme_challenge.txt = "digest".to_owned();
        detail.dns_requirements.acme_challenge.note = "set a TXT record".to_owned();
        detail.validation_errors =
            vec![error("dns_record_missing", "the TXT record is not there", "set it")];
        world.dns_records = DnsRecords {
            a: vec!["192.0.2.9".parse().unwrap()],
            acme_challenge_txt: vec!["older".to_owned()],
            ..DnsRecords::default()
        };
    }
    let checked = perch.run("certs check *.shop.example -a web");
    assert_eq!(checked.code, 0, "{checked:?}");
    let line = |kind: &str| checked.stdout.lines().find(|line| line.starts_with(kind)).unwrap();
    assert!(line("A ").ends_with("192.0.2.9"), "{checked:?}");
    assert!(line("or CNAME").ends_with("nothing"), "{checked:?}");
    let txt: Vec<&str> = line("TXT").split_whitespace().collect();
    assert_eq!(txt, ["TXT", "_acme-challenge.shop.example", "digest", "older"]);
    assert!(checked.stderr.contains("hint: set a TXT record\n"), "{checked:?}");
    assert!(checked.stderr.contains("warning: dns_record_missing: the TXT record"), "{checked:?}");
}

#[test]
fn a_host_name_that_another_app_has_says_which_record_would_take_it_over() {
    let fake = Fake::start().with_app("web");
    let perch = perch(&fake);
    perch.run("certs add shop.example -a web").good();
    {
        let mut world = fake.world();
        let detail = world.certificates.get_mut("shop.example").unwrap();
        detail.status = CertificateStatus::PendingOwnership;
        world.dns_records.ownership_txts = vec!["app-2".to_owned()];
    }
    let checked = perch.run("certs check shop.example -a web");
    let line = checked.stdout.lines().find(|line| line.starts_with("TXT")).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words, ["TXT", "_fly-ownership.shop.example", "app-1", "app-2"]);
}

#[test]
fn one_of_two_certificates_is_removed_and_what_that_means_is_told() {
    let fake = Fake::start().with_app("web");
    let perch = perch(&fake);
    perch.file("chain.pem", "chain").file("key.pem", "hunter2");
    let files = "--fullchain chain.pem --private-key key.pem";
    let imported = perch.run(&format!("certs import shop.example -a web {files}"));
    assert_eq!(imported.code, 0, "{imported:?}");
    assert!(imported.stdout.contains("custom"), "{imported:?}");
    assert!(!format!("{imported:?}").contains("hunter2"), "{imported:?}");
    perch.run("certs add shop.example -a web").good();
    let listed = perch.run("certs list -a web").good();
    assert!(listed.contains("custom, acme"), "{listed}");
    let removed = perch.run("certs remove shop.example --only custom -a web");
    assert!(removed.code == 0 && removed.stderr.contains("no certificate now"), "{removed:?}");
    perch.run("certs rm shop.example --only acme -a web").good();
    assert_eq!(perch.run("certs remove shop.example --only both -a web").code, 2);
    assert_eq!(
        fake.changes(),
        [
            format!("POST {CERTIFICATES}/custom"),
            format!("POST {CERTIFICATES}/acme"),
            format!("DELETE {CERTIFICATES}/shop.example/custom"),
            format!("DELETE {CERTIFICATES}/shop.example/acme"),
        ]
    );
}

#[test]
fn what_cannot_be_uploaded_or_is_refused_is_told() {
    let fake = Fake::start().with_app("web");
    let perch = perch(&fake);
    perch.file("key.pem", "key").file("large.pem", &"x".repeat(40 * 1024));
    let large =
        perch.run("certs import shop.example -a web --fullchain large.pem --private-key key.pem");
    assert!(large.code == 2 && large.stderr.contains("larger than"), "{large:?}");
    let missing =
        perch.run("certs import shop.example -a web --fullchain none.pem --private-key key.pem");
    assert!(missing.stderr.contains("read `none.pem`"), "{missing:?}");
    assert!(fake.changes().is_empty());
    let refusal = ApiError::new(Code::InvalidValue, "hostname: `web` is not a full host name");
    fake.world().refuse.push((format!("POST {CERTIFICATES}/acme"), refusal));
    let refused = perch.run("certs add web -a web");
    assert!(refused.code == 1 && refused.stderr.contains("is not a full host name"), "{refused:?}");
}

#[test]
fn the_doctor_says_which_record_the_platforms_own_certificate_needs() {
    let fake = Fake::start();
    let perch = perch(&fake);
    let challenge = AcmeChallengeRecord {
        name: "_acme-challenge.localhost".to_owned(),
        txt: "digest".to_owned(),
        ..AcmeChallengeRecord::default()
    };
    let mut certificate = PlatformCertificate {
        hostname: "*.localhost".to_owned(),
        expires_at: None,
        acme_challenge: challenge,
        errors: vec![error("dns_record_missing", "the TXT record is not there", "set it")],
    };
    fake.world().certificate = Some(certificate.clone());
    let waits = perch.run("doctor");
    assert!(waits.stdout.contains("TXT _acme-challenge.localhost digest\n"), "{waits:?}");
    assert!(waits.stderr.contains("`*.localhost` has no certificate"), "{waits:?}");
    assert!(waits.stderr.contains("dns_record_missing"), "{waits:?}");
    certificate.acme_challenge.target = "x.acme.example".to_owned();
    fake.world().certificate = Some(certificate.clone());
    let waits = perch.run("doctor");
    let record = "CNAME _acme-challenge.localhost x.acme.example\n";
    assert!(waits.stdout.contains(record) && !waits.stdout.contains("TXT"), "{waits:?}");
    certificate.expires_at = Some(Timestamp::from_unix_ms(THEN));
    certificate.acme_challenge.txt.clear();
    certificate.errors.clear();
    fake.world().certificate = Some(certificate);
    let fine = perch.run("doctor");
    assert!(fine.stderr.contains("until 2023-11-14"), "{fine:?}");
    assert!(!fine.stdout.contains("TXT"), "{fine:?}");
    assert!(perch.run("doctor --json").good().contains("\"hostname\": \"*.localhost\""));
}
