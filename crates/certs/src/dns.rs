//! What DNS says of a host name: asked through a seam, put together here.
//!
//! Never decides what it means but by [`validation`], which is pure.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use async_trait::async_trait;
use perch_types::certificates::{
    CertificateValidation, DnsRecords, RecordType, SEEN_MAX, WILDCARD, below_wildcard,
};
use sha2::{Digest as _, Sha256};

/// The label at which DNS-01 looks.
const CHALLENGE_LABEL: &str = "_acme-challenge";
/// The label at which a record of ownership is.
const OWNERSHIP_LABEL: &str = "_fly-ownership";
/// What values of a record of ownership begin with.
const OWNERS: [&str; 2] = ["app-", "org-"];
/// A label below a name that stands for all names below it.
const ANY_LABEL: &str = "perch-check";
/// Bytes of a digest that a label of the platform's zone is made of: too many for two host names to
/// meet at one, whatever they are.
const LABEL_BYTES: usize = 16;
/// The longest text that is kept of a record, in characters.
const TEXT_CHARS_MAX: usize = 255;

/// DNS did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("ask DNS about `{name}`: {reason}")]
pub struct Fault {
    /// What was asked about.
    pub name: String,
    /// Why there is no answer.
    pub reason: String,
}

/// Asks DNS as everybody sees it.
#[async_trait]
pub trait Dns: Send + Sync + fmt::Debug {
    /// Returns the records of a kind that are answered for a name, CNAME records followed; none
    /// when there is no such name.
    async fn records(&self, name: &str, kind: RecordType) -> Result<Vec<String>, Fault>;
}

/// Returns the name at which DNS-01 looks for a host name.
#[must_use]
pub fn challenge_name(hostname: &str) -> String {
    format!("{CHALLENGE_LABEL}.{}", below_wildcard(hostname))
}

/// Returns the label, in the platform's zone, that DNS-01 looks at for a host name of an app. It is
/// the app's for its life: a record that leads there shows nothing of the next app that has the
/// host name. A name and all names below it share one, as they share [`challenge_name`].
#[must_use]
pub fn challenge_label(app_id: &str, hostname: &str) -> String {
    let digest = Sha256::new().chain_update(app_id).chain_update([0_u8]);
    let digest = digest.chain_update(below_wildcard(hostname)).finalize();
    digest.iter().take(LABEL_BYTES).map(|byte| format!("{byte:02x}")).collect()
}

/// Returns whether a label is one that [`challenge_label`] makes.
#[must_use]
pub fn is_challenge_label(label: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    label.len() == LABEL_BYTES * 2 && label.bytes().all(is_digit)
}

/// Returns where a CNAME record at the name of DNS-01 has to lead for a host name of an app; nowhere
/// without a zone of the platform's.
#[must_use]
pub fn challenge_target(zone: Option<&str>, app_id: &str, hostname: &str) -> String {
    let target = |zone: &str| format!("{}.{zone}", challenge_label(app_id, hostname));
    zone.map(target).unwrap_or_default()
}

/// Returns where CNAME records at the name of DNS-01 of a host name lead.
///
/// # Errors
/// When DNS does not answer.
pub async fn challenge_leads(dns: &dyn Dns, hostname: &str) -> Result<Vec<String>, Fault> {
    Ok(kept(dns.records(&challenge_name(hostname), RecordType::Cname).await?))
}

/// Returns the name at which the record of ownership of a host name is.
#[must_use]
pub fn ownership_name(hostname: &str) -> String {
    format!("{OWNERSHIP_LABEL}.{}", below_wildcard(hostname))
}

/// Returns the values of a host name's record of ownership.
///
/// # Errors
/// When DNS does not answer.
pub async fn ownership(dns: &dyn Dns, hostname: &str) -> Result<Vec<String>, Fault> {
    Ok(kept(dns.records(&ownership_name(hostname), RecordType::Txt).await?))
}

/// Returns the records of a host name.
///
/// # Errors
/// When DNS does not answer.
pub async fn look(dns: &dyn Dns, hostname: &str) -> Result<DnsRecords, Fault> {
    let base = below_wildcard(hostname);
    let asked = match hostname.strip_prefix(WILDCARD) {
        Some(base) => format!("{ANY_LABEL}.{base}"),
        None => hostname.to_owned(),
    };
    let (challenge, owner) = (challenge_name(hostname), ownership_name(hostname));
    let (a, aaaa, cname, soa, challenge, challenge_txt, owner) = tokio::try_join!(
        dns.records(&asked, RecordType::A),
        dns.records(&asked, RecordType::Aaaa),
        dns.records(&asked, RecordType::Cname),
        // Who serves the zone is only told: a server that does not say it is no reason to say nothing.
        async { Ok(dns.records(base, RecordType::Soa).await.unwrap_or_default()) },
        dns.records(&challenge, RecordType::Cname),
        // Nor is that no one answers where a record leads: the record itself is told of.
        async { Ok(dns.records(&challenge, RecordType::Txt).await.unwrap_or_default()) },
        dns.records(&owner, RecordType::Txt),
    )?;
    let addresses = |texts: Vec<String>| -> Vec<IpAddr> {
        let found: BTreeSet<IpAddr> = texts.iter().filter_map(|text| text.parse().ok()).collect();
        found.into_iter().take(SEEN_MAX).collect()
    };
    let (a, aaaa) = (addresses(a), addresses(aaaa));
    let first = |texts: Vec<String>| kept(texts).into_iter().next().unwrap_or_default();
    // Other records may lie at the same name, and come first.
    let owners = kept(owner);
    let is_ours = |text: &&String| OWNERS.iter().any(|prefix| text.starts_with(prefix));
    let owner = owners.iter().find(is_ours).or_else(|| owners.first()).cloned();
    Ok(DnsRecords {
        resolved_addresses: a.iter().chain(&aaaa).copied().collect(),
        a,
        aaaa,
        cname: kept(cname),
        soa: first(soa),
        acme_challenge_cname: first(challenge),
        ownership_txt: owner.unwrap_or_default(),
        acme_challenge_txt: kept(challenge_txt),
        ownership_txts: owners,
    })
}

fn kept(texts: Vec<String>) -> Vec<String> {
    let shown = |text: String| -> String {
        let text = text.trim_end_matches('.').chars();
        text.filter(|one| !one.is_control()).take(TEXT_CHARS_MAX).collect()
    };
    texts.into_iter().take(SEEN_MAX).map(shown).collect()
}

/// What a platform answers at, as far as host names are concerned.
#[derive(Debug, Clone, Copy)]
pub struct Reached<'a> {
    /// Its public addresses.
    pub addresses: &'a [IpAddr],
    /// Whether it answers with TLS at port 443.
    pub tls: bool,
}

/// Returns whether the records of a host name lead to a platform.
#[must_use]
pub fn leads_here(seen: &DnsRecords, here: Reached<'_>) -> bool {
    let found = &seen.resolved_addresses;
    // One that leads elsewhere is enough for requests to go there.
    !found.is_empty() && found.iter().all(|address| here.addresses.contains(address))
}

/// What is to be found in a host name's records.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// Where a CNAME record at the name of DNS-01 has to lead; empty where the platform has no
    /// zone for that.
    pub challenge_target: &'a str,
    /// The TXT record that an order waits for; empty while none does.
    pub challenge_txt: &'a str,
    /// The values of a record of ownership that name the app.
    pub ownership: &'a [&'a str],
}

impl Wanted<'_> {
    fn has_challenge(&self, seen: &DnsRecords) -> bool {
        let leads = seen.acme_challenge_cname.eq_ignore_ascii_case(self.challenge_target);
        let holds = seen.acme_challenge_txt.iter().any(|txt| txt == self.challenge_txt);
        (leads && !self.challenge_target.is_empty()) || (holds && !self.challenge_txt.is_empty())
    }

    /// Returns whether the record of ownership names the app.
    #[must_use]
    pub fn is_owned(&self, seen: &DnsRecords) -> bool {
        let mut found = seen.ownership_txts.iter().chain(std::iter::once(&seen.ownership_txt));
        found.any(|txt| self.ownership.contains(&txt.as_str()))
    }
}

/// Returns by which ways a host name can be shown to be an app's.
#[must_use]
pub fn validation(
    hostname: &str,
    seen: Option<&DnsRecords>,
    here: Reached<'_>,
    wanted: Wanted<'_>,
) -> CertificateValidation {
    let Some(seen) = seen else {
        return CertificateValidation::default();
    };
    let leads = leads_here(seen, here);
    let single = !hostname.starts_with(WILDCARD);
    CertificateValidation {
        dns_configured: wanted.has_challenge(seen),
        alpn_configured: leads && single && here.tls,
        http_configured: leads && single,
        ownership_txt_configured: wanted.is_owned(seen),
    }
}

/// Returns who serves a zone, by its primary name server: the last two labels of that.
#[must_use]
pub fn provider(seen: Option<&DnsRecords>) -> String {
    let soa = seen.map(|seen| seen.soa.as_str()).unwrap_or_default();
    let labels: Vec<&str> = soa.split('.').filter(|label| !label.is_empty()).collect();
    labels.get(labels.len().saturating_sub(2)..).unwrap_or_default().join(".")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, Default)]
    struct Zone(BTreeMap<(String, &'static str), Vec<&'static str>>);

    #[async_trait]
    impl Dns for Zone {
        async fn records(&self, name: &str, kind: RecordType) -> Result<Vec<String>, Fault> {
            let is_lost = name == "_acme-challenge.lost.example" && kind == RecordType::Txt;
            if is_lost || name.ends_with("broken.example") {
                return Err(Fault { name: name.to_owned(), reason: "silence".to_owned() });
            }
            let kind = match kind {
                RecordType::A => "a",
                RecordType::Aaaa => "aaaa",
                RecordType::Cname => "cname",
                RecordType::Txt => "txt",
                RecordType::Soa => "soa",
            };
            let found = self.0.get(&(name.to_owned(), kind)).cloned().unwrap_or_default();
            Ok(found.into_iter().map(str::to_owned).collect())
        }
    }

    fn zone() -> Zone {
        let record =
            |name: &str, kind, values: &[&'static str]| ((name.to_owned(), kind), values.to_vec());
        Zone(BTreeMap::from([
            record("shop.example", "a", &["192.0.2.1"]),
            record("shop.example", "aaaa", &["2001:db8::1", "nonsense"]),
            record("shop.example", "soa", &["ns1.dns.example."]),
            record("perch-check.shop.example", "a", &["192.0.2.9"]),
            record("_acme-challenge.shop.example", "cname", &["x.acme.example."]),
            record("_acme-challenge.shop.example", "txt", &["digest", "older"]),
            record("lost.example", "a", &["192.0.2.1"]),
            record("_acme-challenge.lost.example", "cname", &["y.acme.example."]),
            record("_fly-ownership.shop.example", "txt", &["v=other", "app-app_1", "org-a"]),
        ]))
    }

    #[tokio::test]
    async fn all_records_of_a_host_name_are_put_together() {
        let seen = look(&zone(), "shop.example").await.unwrap();
        assert_eq!(seen.resolved_addresses.len(), 2);
        assert_eq!(
            (seen.soa.as_str(), seen.acme_challenge_cname.as_str(), seen.ownership_txt.as_str()),
            ("ns1.dns.example", "x.acme.example", "app-app_1")
        );
        assert_eq!(seen.acme_challenge_txt, ["digest", "older"]);
        assert_eq!(seen.ownership_txts.len(), 3);
        assert_eq!(provider(Some(&seen)), "dns.example");
        let below = look(&zone(), "*.shop.example").await.unwrap();
        assert_eq!(below.a, ["192.0.2.9".parse::<IpAddr>().unwrap()]);
        assert_eq!(below.ownership_txt, "app-app_1");
        let none = look(&zone(), "none.example").await.unwrap();
        assert_eq!((none, provider(None)), (DnsRecords::default(), String::new()));
        look(&zone(), "broken.example").await.unwrap_err();
        // The record leads to where nobody answers.
        let lost = look(&zone(), "lost.example").await.unwrap();
        assert_eq!((lost.a.len(), lost.acme_challenge_cname.as_str()), (1, "y.acme.example"));
        assert!(lost.acme_challenge_txt.is_empty());
    }

    #[tokio::test]
    async fn each_host_name_of_an_app_has_a_label_of_its_own() {
        let label = challenge_label("app_1", "shop.example");
        assert!(is_challenge_label(&label), "{label}");
        assert_eq!(label, "afa798d18ed4b075845555d33fa317b9");
        assert_eq!(challenge_label("app_1", "*.shop.example"), label);
        for (app_id, hostname) in [
            ("app_2", "shop.example"),
            ("app_1", "a.shop.example"),
            ("app_1s", "hop.example"),
            ("", "app_1shop.example"),
        ] {
            assert_ne!(challenge_label(app_id, hostname), label, "{app_id} {hostname}");
        }
        let target = challenge_target(Some("acme.example"), "app_1", "shop.example");
        assert_eq!(target, format!("{label}.acme.example"));
        assert_eq!(challenge_target(None, "app_1", "shop.example"), "");
        let (short, long) = (label.replacen('d', "", 1), format!("{label}0"));
        for label in ["", "label", &short, &long, &label.to_uppercase()] {
            assert!(!is_challenge_label(label), "{label}");
        }
        let leads = challenge_leads(&zone(), "*.shop.example").await.unwrap();
        assert_eq!(leads, ["x.acme.example"]);
    }

    #[test]
    fn a_host_name_is_configured_when_all_of_its_addresses_lead_here() {
        let ips = |texts: &[&str]| -> Vec<IpAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let own = ips(&["192.0.2.1", "2001:db8::1"]);
        for (hostname, found, tls, want) in [
            ("a.b", &["192.0.2.1"][..], true, (true, true)),
            ("a.b", &["192.0.2.1", "2001:db8::1"], false, (true, false)),
            ("a.b", &["192.0.2.1", "192.0.2.2"], true, (false, false)),
            ("a.b", &[], true, (false, false)),
            ("*.a.b", &["192.0.2.1"], true, (false, false)),
        ] {
            let seen = DnsRecords { resolved_addresses: ips(found), ..DnsRecords::default() };
            let here = Reached { addresses: &own, tls };
            let wanted = Wanted { ownership: &["app-1"], ..Wanted::default() };
            let found = validation(hostname, Some(&seen), here, wanted);
            assert_eq!((found.http_configured, found.alpn_configured), want, "{hostname}");
            assert!(!found.ownership_txt_configured && !found.dns_configured);
        }
        let here = Reached { addresses: &own, tls: true };
        let unseen = validation("a.b", None, here, Wanted::default());
        assert_eq!(unseen, CertificateValidation::default());
    }

    #[test]
    fn records_count_only_when_they_are_the_ones_that_are_to_be_set() {
        let here = Reached { addresses: &[], tls: true };
        for (cname, txts, target, txt, want) in [
            ("x.acme.example", &[][..], "", "", false),
            ("x.acme.example", &[], "y.acme.example", "", false),
            ("X.acme.example", &[], "x.acme.example", "", true),
            ("", &[""], "", "", false),
            ("", &["other"], "", "digest", false),
            ("", &["other", "digest"], "", "digest", true),
            ("x.acme.example", &["digest"], "", "digest", true),
        ] {
            let seen = DnsRecords {
                acme_challenge_cname: cname.to_owned(),
                acme_challenge_txt: txts.iter().map(|it| (*it).to_owned()).collect(),
                ..DnsRecords::default()
            };
            let wanted =
                Wanted { challenge_target: target, challenge_txt: txt, ..Wanted::default() };
            let found = validation("a.b", Some(&seen), here, wanted).dns_configured;
            assert_eq!(found, want, "{cname} {txts:?} {target} {txt}");
        }
        let seen = DnsRecords {
            ownership_txt: "app-2".to_owned(),
            ownership_txts: vec!["app-2".to_owned(), "app-1".to_owned()],
            ..DnsRecords::default()
        };
        for (values, want) in
            [(&["app-1"][..], true), (&["app-2"], true), (&["app-3"], false), (&[], false)]
        {
            let wanted = Wanted { ownership: values, ..Wanted::default() };
            let found = validation("a.b", Some(&seen), here, wanted).ownership_txt_configured;
            assert_eq!(found, want, "{values:?}");
        }
    }
}
