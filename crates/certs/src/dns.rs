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

/// The label at which DNS-01 looks.
const CHALLENGE_LABEL: &str = "_acme-challenge";
/// The label at which a record of ownership is.
const OWNERSHIP_LABEL: &str = "_fly-ownership";
/// A label below a name that stands for all names below it.
const ANY_LABEL: &str = "perch-check";
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
    let (a, aaaa, cname, soa, challenge, owner) = tokio::try_join!(
        dns.records(&asked, RecordType::A),
        dns.records(&asked, RecordType::Aaaa),
        dns.records(&asked, RecordType::Cname),
        // Who serves the zone is only told: a server that does not say it is no reason to say nothing.
        async { Ok(dns.records(base, RecordType::Soa).await.unwrap_or_default()) },
        dns.records(&challenge, RecordType::Cname),
        dns.records(&owner, RecordType::Txt),
    )?;
    let addresses = |texts: Vec<String>| -> Vec<IpAddr> {
        let found: BTreeSet<IpAddr> = texts.iter().filter_map(|text| text.parse().ok()).collect();
        found.into_iter().take(SEEN_MAX).collect()
    };
    let (a, aaaa) = (addresses(a), addresses(aaaa));
    let first = |texts: Vec<String>| kept(texts).into_iter().next().unwrap_or_default();
    Ok(DnsRecords {
        resolved_addresses: a.iter().chain(&aaaa).copied().collect(),
        a,
        aaaa,
        cname: kept(cname),
        soa: first(soa),
        acme_challenge_cname: first(challenge),
        ownership_txt: first(owner),
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

/// Returns by which ways a host name can be shown to be an app's. `ownership` are the values that
/// name the app.
#[must_use]
pub fn validation(
    hostname: &str,
    seen: Option<&DnsRecords>,
    here: Reached<'_>,
    ownership: &[&str],
) -> CertificateValidation {
    let Some(seen) = seen else {
        return CertificateValidation::default();
    };
    let leads = leads_here(seen, here);
    let single = !hostname.starts_with(WILDCARD);
    CertificateValidation {
        dns_configured: !seen.acme_challenge_cname.is_empty(),
        alpn_configured: leads && single && here.tls,
        http_configured: leads && single,
        ownership_txt_configured: ownership.contains(&seen.ownership_txt.as_str()),
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
            if name.ends_with("broken.example") {
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
            record("_fly-ownership.shop.example", "txt", &["app-app_1"]),
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
        assert_eq!(provider(Some(&seen)), "dns.example");
        let below = look(&zone(), "*.shop.example").await.unwrap();
        assert_eq!(below.a, ["192.0.2.9".parse::<IpAddr>().unwrap()]);
        assert_eq!(below.ownership_txt, "app-app_1");
        let none = look(&zone(), "none.example").await.unwrap();
        assert_eq!((none, provider(None)), (DnsRecords::default(), String::new()));
        look(&zone(), "broken.example").await.unwrap_err();
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
            let found = validation(hostname, Some(&seen), here, &["app-1"]);
            assert_eq!((found.http_configured, found.alpn_configured), want, "{hostname}");
            assert!(!found.ownership_txt_configured && !found.dns_configured);
        }
        let here = Reached { addresses: &own, tls: true };
        assert_eq!(validation("a.b", None, here, &[""]), CertificateValidation::default());
    }
}
