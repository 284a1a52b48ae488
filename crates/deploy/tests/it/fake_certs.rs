//! What the made-up platform has of certificates: no issuer, and records that a test says.
//!
//! Never checks anything. The tests of the CLI use this file too.

use axum::body::Bytes;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use perch_types::certificates::{
    AcmeChallengeRecord, CertificateCheck, CertificateDetail, CertificateEntry, CertificateList,
    CertificateSource, CertificateStatus, CertificateSummary, CreateAcmeCertificate,
    CreateCustomCertificate, CustomCertificateRemoved, DnsRequirements, OwnershipRecord,
};
use perch_types::{ApiError, Code, Timestamp};

use crate::fake::{THEN, World, json};

pub(crate) fn certificates(
    world: &mut World,
    method: &Method,
    rest: &[&str],
    body: &Bytes,
) -> Response {
    match (method.as_str(), rest) {
        ("GET", []) => list(world),
        ("POST", ["acme"]) => {
            let wanted: CreateAcmeCertificate = serde_json::from_slice(body).unwrap();
            add(world, &wanted.hostname, CertificateSource::Fly)
        }
        ("POST", ["custom"]) => {
            let own: CreateCustomCertificate = serde_json::from_slice(body).unwrap();
            add(world, &own.hostname, CertificateSource::Custom)
        }
        (_, [hostname, rest @ ..]) if world.certificates.contains_key(*hostname) => {
            one(world, method, hostname, rest)
        }
        _ => {
            let error = ApiError::new(Code::NotFound, "hostname: the app has no certificate");
            json(error.code.status(), &error)
        }
    }
}

fn one(world: &mut World, method: &Method, hostname: &str, rest: &[&str]) -> Response {
    let mut detail = world.certificates.get(hostname).cloned().unwrap();
    match (method.as_str(), rest) {
        ("GET", []) => json(200, &detail),
        ("POST", ["check"]) => {
            let dns_records = world.dns_records.clone();
            json(200, &CertificateCheck { certificate: detail, dns_records })
        }
        ("DELETE", []) => {
            world.certificates.remove(hostname);
            StatusCode::NO_CONTENT.into_response()
        }
        ("DELETE", ["acme"]) => {
            detail.acme_requested = false;
            detail.certificates.retain(|it| it.source != CertificateSource::Fly);
            world.certificates.insert(hostname.to_owned(), detail.clone());
            json(200, &detail)
        }
        ("DELETE", ["custom"]) => {
            detail.certificates.retain(|it| it.source != CertificateSource::Custom);
            world.certificates.insert(hostname.to_owned(), detail.clone());
            let warning = format!("{hostname} has no certificate now");
            json(200, &CustomCertificateRemoved { certificate: detail, warning })
        }
        (method, rest) => panic!("{method} {rest:?}"),
    }
}

fn add(world: &mut World, hostname: &str, source: CertificateSource) -> Response {
    let mut detail = world.certificates.get(hostname).cloned().unwrap_or_default();
    let (status, expires_at) = match source {
        CertificateSource::Custom => (CertificateStatus::Active, Some(THEN + 86_400_000)),
        CertificateSource::Fly => (CertificateStatus::PendingValidation, None),
    };
    detail.hostname = hostname.to_owned();
    detail.acme_requested |= source == CertificateSource::Fly;
    detail.status = status;
    detail.certificates.push(CertificateEntry {
        source,
        status,
        created_at: Timestamp::from_unix_ms(THEN),
        expires_at: expires_at.map(Timestamp::from_unix_ms),
        issuer: String::new(),
        issued: Vec::new(),
    });
    detail.dns_requirements = requirements(hostname);
    world.certificates.insert(hostname.to_owned(), detail.clone());
    json(201, &detail)
}

fn requirements(hostname: &str) -> DnsRequirements {
    let base = hostname.trim_start_matches("*.");
    DnsRequirements {
        a: vec!["192.0.2.1".parse().unwrap()],
        aaaa: Vec::new(),
        cname: "web.localhost".to_owned(),
        acme_challenge: AcmeChallengeRecord {
            name: format!("_acme-challenge.{base}"),
            ..AcmeChallengeRecord::default()
        },
        ownership: OwnershipRecord {
            name: format!("_fly-ownership.{base}"),
            app_value: "app-1".to_owned(),
            org_value: "org-personal".to_owned(),
        },
    }
}

/// All of them on one page.
fn list(world: &World) -> Response {
    let summary = |detail: &CertificateDetail| {
        let has = |source| detail.certificates.iter().any(|it| it.source == source);
        CertificateSummary {
            hostname: detail.hostname.clone(),
            status: detail.status,
            configured: detail.configured,
            acme_requested: detail.acme_requested,
            acme_dns_configured: false,
            acme_alpn_configured: false,
            acme_http_configured: false,
            ownership_txt_configured: false,
            has_custom_certificate: has(CertificateSource::Custom),
            has_fly_certificate: has(CertificateSource::Fly),
            dns_provider: String::new(),
            created_at: Timestamp::from_unix_ms(THEN),
            updated_at: Timestamp::from_unix_ms(THEN),
        }
    };
    let certificates: Vec<_> = world.certificates.values().map(summary).collect();
    let total_count = u64::try_from(certificates.len()).unwrap();
    json(200, &CertificateList { certificates, next_cursor: None, total_count })
}
