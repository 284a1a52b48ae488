//! `perch certs …`: certificates of the app's own host names.
//!
//! Never asks DNS itself: the platform says what it sees.

use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};
use perch_client::Api;
use perch_types::certificates::{
    AcmeChallengeRecord, CHAIN_BYTES_MAX, CertificateDetail, CertificateStatus, CertificateSummary,
    CreateAcmeCertificate, CreateCustomCertificate, DnsRecords, PRIVATE_KEY_BYTES_MAX, WILDCARD,
};
use perch_types::{AppName, Secret};

use crate::clock::{age, now};
use crate::error::{CommandError, During as _, Result};
use crate::invocation::Invocation;
use crate::table::{row, table};

/// Certificates of a page.
const PAGE: usize = 500;

/// What to do with certificates.
#[derive(Debug, Subcommand)]
pub(crate) enum CertsCommand {
    /// Have a certificate ordered for a host name, and show the records to set
    #[command(visible_alias = "create")]
    Add {
        /// Host name, such as `shop.example.com` or `*.example.com`
        hostname: String,
    },
    /// List the app's certificates
    #[command(visible_alias = "ls")]
    List,
    /// Show a certificate and the records to set
    Show {
        /// Host name
        hostname: String,
    },
    /// Look at a host name's records now, and go on with its order
    Check {
        /// Host name
        hostname: String,
    },
    /// Remove a host name's certificates; it leads to the app no more
    #[command(visible_alias = "rm", visible_alias = "delete")]
    Remove {
        /// Host name
        hostname: String,
        /// Remove this one only; the host name goes on leading to the app
        #[arg(long)]
        only: Option<Source>,
    },
    /// Upload a certificate of your own
    Import {
        /// Host name
        hostname: String,
        /// File with the certificate and those that it is signed with, as PEM
        #[arg(long, value_name = "FILE")]
        fullchain: PathBuf,
        /// File with its private key, as PEM
        #[arg(long, value_name = "FILE")]
        private_key: PathBuf,
    },
}

/// Where a certificate comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Source {
    /// The platform ordered it
    Acme,
    /// It was uploaded
    Custom,
}

pub(crate) async fn run(invocation: &Invocation, command: CertsCommand) -> Result {
    let app = invocation.app()?;
    let api = invocation.api()?;
    let to = (&api, &app);
    match command {
        CertsCommand::Add { hostname } => add(invocation, to, hostname).await,
        CertsCommand::List => list(invocation, to).await,
        CertsCommand::Show { hostname } => {
            let detail = api.certificate(&app, &hostname).await;
            let detail = detail.during(format!("show the certificate of `{hostname}`"))?;
            show(invocation, &detail, None);
            Ok(())
        }
        CertsCommand::Check { hostname } => check(invocation, to, &hostname).await,
        CertsCommand::Remove { hostname, only } => remove(invocation, to, &hostname, only).await,
        CertsCommand::Import { hostname, fullchain, private_key } => {
            import(invocation, to, hostname, (&fullchain, &private_key)).await
        }
    }
}

async fn add(invocation: &Invocation, (api, app): (&Api, &AppName), hostname: String) -> Result {
    let what = format!("order a certificate for `{hostname}`");
    let wanted = CreateAcmeCertificate { hostname };
    let detail = api.order_certificate(app, &wanted).await.during(what)?;
    if !invocation.ui.is_json() && detail.status != CertificateStatus::PendingOwnership {
        invocation.ui.good(format!("`{}` leads to `{app}`", detail.hostname));
    }
    show(invocation, &detail, None);
    if !invocation.ui.is_json() {
        let hostname = &detail.hostname;
        invocation.ui.hint(format!("once the records are set: perch certs check '{hostname}'"));
    }
    Ok(())
}

async fn list(invocation: &Invocation, (api, app): (&Api, &AppName)) -> Result {
    let mut all: Vec<CertificateSummary> = Vec::new();
    let mut cursor = None;
    loop {
        let page = api.certificates(app, cursor.as_deref(), PAGE).await;
        let page = page.during(format!("list the certificates of `{app}`"))?;
        let got = page.certificates.len();
        all.extend(page.certificates);
        // A page without anything would be asked for again and again.
        cursor = page.next_cursor.filter(|_| got > 0);
        if cursor.is_none() {
            break;
        }
    }
    if invocation.ui.is_json() {
        invocation.ui.json(&all);
        return Ok(());
    }
    if all.is_empty() {
        invocation.ui.say(format!("`{app}` has no host names of its own"));
        return Ok(());
    }
    let mut rows = vec![row(["HOST NAME", "STATUS", "SOURCE", "AGE"])];
    rows.extend(all.iter().map(|it| {
        let source = match (it.has_custom_certificate, it.has_fly_certificate) {
            (true, true) => "custom, acme",
            (true, false) => "custom",
            (false, true) => "acme",
            (false, false) => "-",
        };
        row([it.hostname.as_str(), it.status.as_str(), source, &age(it.created_at, now())])
    }));
    table(&rows).iter().for_each(|line| invocation.ui.data(line));
    Ok(())
}

async fn check(invocation: &Invocation, (api, app): (&Api, &AppName), hostname: &str) -> Result {
    let checked = api.check_certificate(app, hostname).await;
    let checked = checked.during(format!("check the records of `{hostname}`"))?;
    if invocation.ui.is_json() {
        invocation.ui.json(&checked);
        return Ok(());
    }
    show(invocation, &checked.certificate, Some(&checked.dns_records));
    Ok(())
}

async fn remove(
    invocation: &Invocation,
    (api, app): (&Api, &AppName),
    hostname: &str,
    only: Option<Source>,
) -> Result {
    let what = || format!("remove the certificate of `{hostname}`");
    match only {
        None => api.remove_certificate(app, hostname).await.during(what())?,
        Some(Source::Acme) => {
            api.remove_ordered_certificate(app, hostname).await.map(drop).during(what())?;
        }
        Some(Source::Custom) => {
            let removed = api.remove_imported_certificate(app, hostname).await.during(what())?;
            if !removed.warning.is_empty() {
                invocation.ui.warn(removed.warning);
            }
        }
    }
    invocation.ui.good(format!("the certificate of `{hostname}` is removed"));
    Ok(())
}

async fn import(
    invocation: &Invocation,
    (api, app): (&Api, &AppName),
    hostname: String,
    (fullchain, private_key): (&Path, &Path),
) -> Result {
    let what = format!("upload a certificate for `{hostname}`");
    let private_key = Secret::new(read(private_key, PRIVATE_KEY_BYTES_MAX)?);
    let fullchain = read(fullchain, CHAIN_BYTES_MAX)?;
    let own = CreateCustomCertificate { hostname, fullchain, private_key };
    let detail = api.import_certificate(app, &own).await.during(what)?;
    if !invocation.ui.is_json() {
        invocation.ui.good(format!("`{}` has the certificate", detail.hostname));
    }
    show(invocation, &detail, None);
    Ok(())
}

/// Reads a file that is not larger than it may be.
fn read(path: &Path, bytes_max: usize) -> Result<String> {
    let what = || format!("read `{}`", path.display());
    let length = std::fs::metadata(path).during(what())?.len();
    if usize::try_from(length).unwrap_or(usize::MAX) > bytes_max {
        let fact = format!("`{}` is larger than {bytes_max} bytes", path.display());
        return Err(CommandError::usage(fact, "name a file with certificates or a key as PEM"));
    }
    std::fs::read_to_string(path).during(what())
}

fn show(invocation: &Invocation, detail: &CertificateDetail, seen: Option<&DnsRecords>) {
    let ui = &invocation.ui;
    if ui.is_json() {
        ui.json(detail);
        return;
    }
    let mut rows =
        vec![row(["Host name", detail.hostname.as_str()]), row(["Status", detail.status.as_str()])];
    for entry in &detail.certificates {
        let until = entry.expires_at.map(|at| format!(", ends at {at}")).unwrap_or_default();
        let text = format!("{}{until}", entry.status.as_str());
        let text = match entry.issuer.as_str() {
            "" => text,
            issuer => format!("{text}, issued by {issuer}"),
        };
        rows.push(row([entry.source.as_str(), &text]));
    }
    if let Some(until) = detail.rate_limited_until {
        rows.push(row(["No order before", &until.to_string()]));
    }
    table(&rows).iter().for_each(|line| ui.data(line));
    let records = records(detail, seen);
    ui.data("");
    let mut rows = vec![row(["RECORD", "NAME", "VALUE", "SEEN"])];
    rows.extend(records.iter().map(|it| row([it.kind, &it.name, &it.value, &it.seen])));
    table(&rows).iter().for_each(|line| ui.data(line));
    let note = detail.dns_requirements.acme_challenge.note.as_str();
    if !note.is_empty() {
        ui.hint(note);
    }
    for error in &detail.validation_errors {
        ui.warn(format!("{}: {}", error.code, error.message));
        ui.hint(&error.remediation);
    }
}

/// A record to set, and what is there instead.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    kind: &'static str,
    name: String,
    value: String,
    seen: String,
}

/// Returns the records that a certificate needs, with what the platform sees of each.
fn records(detail: &CertificateDetail, seen: Option<&DnsRecords>) -> Vec<Record> {
    const UNSEEN: &str = "not looked at";
    let needs = &detail.dns_requirements;
    let listed = |found: Vec<String>| match (seen.is_some(), found.is_empty()) {
        (false, _) => UNSEEN.to_owned(),
        (true, true) => "nothing".to_owned(),
        (true, false) => found.join(", "),
    };
    let texts = |ips: &[std::net::IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>();
    let name = || detail.hostname.clone();
    let mut records = Vec::new();
    for (kind, wanted, found) in [
        ("A", texts(&needs.a), seen.map(|seen| texts(&seen.a))),
        ("AAAA", texts(&needs.aaaa), seen.map(|seen| texts(&seen.aaaa))),
    ] {
        let seen = listed(found.unwrap_or_default());
        records.extend(wanted.into_iter().map(|value| Record {
            kind,
            name: name(),
            value,
            seen: seen.clone(),
        }));
    }
    let found = seen.map(|seen| seen.cname.clone()).unwrap_or_default();
    records.push(Record {
        kind: "or CNAME",
        name: name(),
        value: needs.cname.clone(),
        seen: listed(found),
    });
    records.extend(challenge_records(detail, seen, &listed));
    if detail.status == CertificateStatus::PendingOwnership {
        let found = seen.map(|seen| seen.ownership_txts.clone()).unwrap_or_default();
        records.push(Record {
            kind: "TXT",
            name: needs.ownership.name.clone(),
            value: needs.ownership.app_value.clone(),
            seen: listed(found),
        });
    }
    records
}

/// Returns the records of DNS-01: one that is set once, where the platform has a zone that it may
/// lead to, or the one that the order waits for.
fn challenge_records(
    detail: &CertificateDetail,
    seen: Option<&DnsRecords>,
    listed: &dyn Fn(Vec<String>) -> String,
) -> Vec<Record> {
    let AcmeChallengeRecord { name, target, txt, .. } = &detail.dns_requirements.acme_challenge;
    let is_wanted = detail.acme_requested && detail.hostname.starts_with(WILDCARD);
    if txt.is_empty() && !is_wanted {
        return Vec::new();
    }
    let cname = seen.map(|seen| seen.acme_challenge_cname.as_str()).unwrap_or_default();
    let cname = (!cname.is_empty()).then(|| cname.to_owned());
    let txts = seen.map(|seen| seen.acme_challenge_txt.clone()).unwrap_or_default();
    let record = |kind, value: &str, seen: String| Record {
        kind,
        name: name.clone(),
        value: value.to_owned(),
        seen,
    };
    if !target.is_empty() {
        let instead = txts.iter().map(|txt| format!("TXT {txt}"));
        let seen = cname.map_or_else(|| instead.collect(), |cname| vec![cname]);
        return vec![record("CNAME", target, listed(seen))];
    }
    let value = if txt.is_empty() { "shown here once the order is placed" } else { txt.as_str() };
    let cname = cname.map(|cname| format!("CNAME {cname}"));
    vec![record("TXT", value, listed(cname.into_iter().chain(txts).collect()))]
}

#[cfg(test)]
mod tests {
    use perch_types::certificates::{DnsRequirements, OwnershipRecord};

    use super::*;

    fn detail(hostname: &str, txt: &str) -> CertificateDetail {
        CertificateDetail {
            hostname: hostname.to_owned(),
            acme_requested: true,
            dns_requirements: DnsRequirements {
                a: vec!["192.0.2.1".parse().unwrap()],
                aaaa: vec!["2001:db8::1".parse().unwrap()],
                cname: "web.perch.example".to_owned(),
                acme_challenge: AcmeChallengeRecord {
                    name: "_acme-challenge.shop.example".to_owned(),
                    target: String::new(),
                    txt: txt.to_owned(),
                    note: String::new(),
                },
                ownership: OwnershipRecord {
                    name: "_fly-ownership.shop.example".to_owned(),
                    app_value: "app-1".to_owned(),
                    org_value: "org-a".to_owned(),
                },
            },
            ..CertificateDetail::default()
        }
    }

    fn lines(detail: &CertificateDetail, seen: Option<&DnsRecords>) -> Vec<String> {
        let line = |it: Record| format!("{} {} {}: {}", it.kind, it.name, it.value, it.seen);
        records(detail, seen).into_iter().map(line).collect()
    }

    #[test]
    fn each_record_is_shown_with_what_is_there_instead() {
        let one = detail("shop.example", "");
        assert_eq!(
            lines(&one, None),
            [
                "A shop.example 192.0.2.1: not looked at",
                "AAAA shop.example 2001:db8::1: not looked at",
                "or CNAME shop.example web.perch.example: not looked at",
            ]
        );
        let seen = DnsRecords {
            a: vec!["192.0.2.9".parse().unwrap(), "192.0.2.8".parse().unwrap()],
            ..DnsRecords::default()
        };
        assert_eq!(
            lines(&one, Some(&seen)),
            [
                "A shop.example 192.0.2.1: 192.0.2.9, 192.0.2.8",
                "AAAA shop.example 2001:db8::1: nothing",
                "or CNAME shop.example web.perch.example: nothing",
            ]
        );
    }

    #[test]
    fn a_certificate_for_all_names_below_another_needs_a_record_of_text() {
        let before = lines(&detail("*.shop.example", ""), None);
        let shown = "TXT _acme-challenge.shop.example";
        assert!(before[3].starts_with(&format!("{shown} shown here once")), "{before:?}");
        let after = lines(&detail("*.shop.example", "digest"), None);
        assert_eq!(after[3], format!("{shown} digest: not looked at"));
        for (cname, txts, want) in [
            ("", &[][..], "nothing"),
            ("", &["older", "other"], "older, other"),
            ("x.acme.example", &["older"], "CNAME x.acme.example, older"),
        ] {
            let seen = DnsRecords {
                acme_challenge_cname: cname.to_owned(),
                acme_challenge_txt: txts.iter().map(|it| (*it).to_owned()).collect(),
                ..DnsRecords::default()
            };
            let found = lines(&detail("*.shop.example", "digest"), Some(&seen));
            assert_eq!(found[3], format!("{shown} digest: {want}"));
        }
    }

    #[test]
    fn where_the_platform_has_a_zone_a_record_is_set_once_and_it_is_said_what_is_there_instead() {
        let zoned = |hostname: &str, txt: &str| {
            let mut one = detail(hostname, txt);
            one.dns_requirements.acme_challenge.target = "x.acme.example".to_owned();
            one
        };
        assert_eq!(lines(&zoned("shop.example", ""), None).len(), 3);
        let shown = "CNAME _acme-challenge.shop.example x.acme.example";
        for (hostname, txt) in
            [("*.shop.example", ""), ("*.shop.example", "digest"), ("shop.example", "digest")]
        {
            let found = lines(&zoned(hostname, txt), None);
            assert_eq!(found[3..], [format!("{shown}: not looked at")], "{hostname} {txt}");
        }
        for (cname, txts, want) in [
            ("", &[][..], "nothing"),
            ("", &["older"], "TXT older"),
            ("y.acme.example", &["older"], "y.acme.example"),
        ] {
            let seen = DnsRecords {
                acme_challenge_cname: cname.to_owned(),
                acme_challenge_txt: txts.iter().map(|it| (*it).to_owned()).collect(),
                ..DnsRecords::default()
            };
            let found = lines(&zoned("*.shop.example", "digest"), Some(&seen));
            assert_eq!(found[3..], [format!("{shown}: {want}")]);
        }
    }

    #[test]
    fn a_host_name_that_another_app_has_needs_a_record_that_says_whose_it_is() {
        let mut one = detail("shop.example", "");
        assert_eq!(lines(&one, None).len(), 3);
        one.status = CertificateStatus::PendingOwnership;
        let shown = "TXT _fly-ownership.shop.example app-1";
        assert_eq!(lines(&one, None)[3], format!("{shown}: not looked at"));
        let seen = DnsRecords {
            ownership_txts: vec!["v=other".to_owned(), "app-2".to_owned()],
            ..DnsRecords::default()
        };
        assert_eq!(lines(&one, Some(&seen))[3], format!("{shown}: v=other, app-2"));
    }
}
