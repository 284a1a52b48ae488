//! What is told of a certificate.
//!
//! Never more than the directory has: nobody is asked.

use std::net::IpAddr;

use perch_certs::dns::{self, Reached, Wanted};
use perch_types::certificate_docs::{CertificateOrder, ChallengeMethod};
use perch_types::certificates::{
    AcmeChallengeRecord, CertificateDetail, CertificateEntry, CertificateSource, CertificateStatus,
    CertificateSummary, CertificateValidation, CertificateValidationError, DnsRequirements,
    IssuedCertificate, OwnershipRecord, WILDCARD,
};
use perch_types::directory::AppDoc;

use super::stored::{Facts, Stored};
use crate::config::Shared;

const NOTE_ZONE: &str =
    "set the CNAME record once: the platform answers there, at each renewal too";
const NOTE_BEFORE: &str = "the platform serves no zone that a CNAME record could lead to: a TXT \
    record is to be set, whose value is shown here once the order is placed";
const NOTE_NOW: &str = "the platform serves no zone that a CNAME record could lead to: set a TXT \
    record with the value of `txt`, and set it anew for each renewal";

/// Returns the value of a record of ownership that names an app.
pub(super) fn app_value(app: &AppDoc) -> String {
    format!("app-{}", app.id.trim_start_matches("app_"))
}

fn org_value(app: &AppDoc) -> String {
    format!("org-{}", app.org)
}

fn reached(shared: &Shared) -> Reached<'_> {
    Reached { addresses: &shared.public_ips, tls: shared.platform.https_port.is_some() }
}

fn validation(
    shared: &Shared,
    app: &AppDoc,
    hostname: &str,
    stored: &Stored,
) -> CertificateValidation {
    let (app_id, app, org) = (app.id.clone(), app_value(app), org_value(app));
    let ownership = &[app.as_str(), org.as_str()];
    let challenge_txt = awaited_txt(stored.order.as_ref().map(|(order, _)| order));
    let target = target(shared, &app_id, hostname);
    let wanted = Wanted { challenge_target: &target, challenge_txt, ownership };
    dns::validation(hostname, stored.document.seen.as_ref(), reached(shared), wanted)
}

/// Returns the TXT record that an order waits for; empty while none does.
fn awaited_txt(order: Option<&CertificateOrder>) -> &str {
    let answer = order.and_then(|order| order.answer.as_ref());
    let awaited = answer.filter(|answer| answer.method == ChallengeMethod::Dns);
    awaited.map(|answer| answer.txt.as_str()).unwrap_or_default()
}

/// Returns where a CNAME record at the name of DNS-01 of an app's host name has to lead; nowhere
/// without a zone.
fn target(shared: &Shared, app_id: &str, hostname: &str) -> String {
    dns::challenge_target(shared.certificates.zone.as_deref(), app_id, hostname)
}

/// Returns the record of DNS-01 of a host name of an app, by its id, as its order wants it.
pub(super) fn challenge(
    shared: &Shared,
    (app_id, hostname): (&str, &str),
    order: Option<&CertificateOrder>,
) -> AcmeChallengeRecord {
    let txt = awaited_txt(order).to_owned();
    let target = target(shared, app_id, hostname);
    // Other host names need none of it.
    let note = match (hostname.starts_with(WILDCARD), txt.is_empty()) {
        (false, true) => "",
        _ if !target.is_empty() => NOTE_ZONE,
        (true, true) => NOTE_BEFORE,
        (_, false) => NOTE_NOW,
    };
    AcmeChallengeRecord { name: dns::challenge_name(hostname), target, txt, note: note.to_owned() }
}

fn is_configured(shared: &Shared, stored: &Stored) -> bool {
    stored.document.seen.as_ref().is_some_and(|seen| dns::leads_here(seen, reached(shared)))
}

fn status(shared: &Shared, stored: &Stored) -> CertificateStatus {
    let now = shared.clock.now();
    if stored.document.pending_ownership {
        return CertificateStatus::PendingOwnership;
    }
    if stored.served.values().any(|facts| facts.leaf.not_after > now) {
        return CertificateStatus::Active;
    }
    CertificateStatus::PendingValidation
}

/// Returns a certificate as a list shows it.
pub(super) fn summary(
    shared: &Shared,
    app: &AppDoc,
    hostname: &str,
    stored: &Stored,
) -> CertificateSummary {
    let validation = validation(shared, app, hostname, stored);
    CertificateSummary {
        hostname: hostname.to_owned(),
        status: status(shared, stored),
        configured: is_configured(shared, stored),
        acme_requested: stored.document.acme_requested,
        acme_dns_configured: validation.dns_configured,
        acme_alpn_configured: validation.alpn_configured,
        acme_http_configured: validation.http_configured,
        ownership_txt_configured: validation.ownership_txt_configured,
        has_custom_certificate: stored.served.contains_key(&CertificateSource::Custom),
        has_fly_certificate: stored.served.contains_key(&CertificateSource::Fly),
        dns_provider: dns::provider(stored.document.seen.as_ref()),
        created_at: stored.document.created_at,
        updated_at: stored.document.updated_at,
    }
}

/// Returns a certificate with all there is to tell.
pub(super) fn detail(
    shared: &Shared,
    app: &AppDoc,
    hostname: &str,
    stored: &Stored,
) -> CertificateDetail {
    let now = shared.clock.now();
    let order = stored.order.as_ref().map(|(order, _)| order);
    let until = order.and_then(|order| order.rate_limited_until);
    CertificateDetail {
        hostname: hostname.to_owned(),
        configured: is_configured(shared, stored),
        acme_requested: stored.document.acme_requested,
        status: status(shared, stored),
        dns_provider: dns::provider(stored.document.seen.as_ref()),
        rate_limited_until: until.filter(|until| *until > now),
        certificates: entries(shared, stored),
        validation: validation(shared, app, hostname, stored),
        dns_requirements: requirements(shared, app, hostname, stored),
        validation_errors: errors(app, hostname, stored),
    }
}

fn errors(app: &AppDoc, hostname: &str, stored: &Stored) -> Vec<CertificateValidationError> {
    let mut errors = stored.order.as_ref().map(|(order, _)| order.errors.clone());
    if stored.document.pending_ownership {
        let (record, value) = (dns::ownership_name(hostname), app_value(app));
        errors.get_or_insert_default().insert(
            0,
            CertificateValidationError {
                code: "ownership_required".to_owned(),
                message: "another app has the host name".to_owned(),
                remediation: format!(
                    "set the TXT record `{record}` to `{value}`, then `perch certs check`"
                ),
                timestamp: stored.document.updated_at,
            },
        );
    }
    errors.unwrap_or_default()
}

fn entries(shared: &Shared, stored: &Stored) -> Vec<CertificateEntry> {
    let now = shared.clock.now();
    let served = stored.served.iter().map(|(source, Facts { leaf, created_at })| {
        let holds = leaf.not_after > now;
        CertificateEntry {
            source: *source,
            status: match holds {
                true => CertificateStatus::Active,
                false => CertificateStatus::PendingValidation,
            },
            created_at: *created_at,
            expires_at: Some(leaf.not_after),
            issuer: leaf.issuer.clone(),
            issued: vec![IssuedCertificate {
                kind: leaf.kind,
                expires_at: leaf.not_after,
                certificate_authority: leaf.issuer.clone(),
            }],
        }
    });
    let mut entries: Vec<_> = served.collect();
    let has_one = stored.served.contains_key(&CertificateSource::Fly);
    if stored.document.acme_requested && !has_one {
        entries.push(CertificateEntry {
            source: CertificateSource::Fly,
            status: match stored.document.pending_ownership {
                true => CertificateStatus::PendingOwnership,
                false => CertificateStatus::PendingValidation,
            },
            created_at: stored.document.created_at,
            expires_at: None,
            issuer: String::new(),
            issued: Vec::new(),
        });
    }
    entries
}

fn requirements(shared: &Shared, app: &AppDoc, hostname: &str, stored: &Stored) -> DnsRequirements {
    let of_family = |is_v6: bool| -> Vec<IpAddr> {
        shared.public_ips.iter().copied().filter(|ip| ip.is_ipv6() == is_v6).collect()
    };
    DnsRequirements {
        a: of_family(false),
        aaaa: of_family(true),
        cname: format!("{}.{}", app.name, shared.platform.domain),
        acme_challenge: challenge(
            shared,
            (&app.id, hostname),
            stored.order.as_ref().map(|(order, _)| order),
        ),
        ownership: OwnershipRecord {
            name: dns::ownership_name(hostname),
            app_value: app_value(app),
            org_value: org_value(app),
        },
    }
}
