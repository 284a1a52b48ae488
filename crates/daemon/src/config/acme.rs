//! Who issues certificates: the part of the configuration that says it.
//!
//! Never asks anybody: what is named is checked for its form alone.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// Who issues certificates, by ACME. Naming an issuer agrees to its terms of service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Acme {
    /// The address of its directory, such as `https://acme-v02.api.letsencrypt.org/directory`; no
    /// certificates are ordered when unset.
    pub(crate) directory: Option<String>,
    /// Where it can reach whoever runs this server.
    pub(crate) email: Option<String>,
    /// Certificates that vouch for it, as PEM, instead of those that the system trusts. The user of
    /// the unprivileged process reads it.
    pub(crate) ca_file: Option<PathBuf>,
    /// Resolvers that are asked about host names, instead of those of `/etc/resolv.conf`.
    pub(crate) resolvers: Vec<SocketAddr>,
    /// A zone of DNS that this server answers for: names that `_acme-challenge` records of host
    /// names lead to, set once, so that certificates for `*.` are renewed by themselves. Whoever
    /// serves the zone above names `name_servers` for it. None is served when unset.
    pub(crate) zone: Option<String>,
    /// Where the zone is asked for, over UDP and TCP: addresses of this server, at port 53 where
    /// everybody is to find it.
    pub(crate) dns: Vec<SocketAddr>,
    /// Host names of this server, as the zone's NS records have them.
    pub(crate) name_servers: Vec<String>,
}

/// Resolvers that may be named.
const RESOLVERS_MAX: usize = 4;
/// Addresses of the zone, and names of its servers.
const SERVERS_MAX: usize = 4;
/// The longest name of a zone: with a label before it, it is a name of DNS.
const ZONE_BYTES_MAX: usize = 180;

impl Acme {
    /// Checks the settings beside the platform's domain and the names of its API.
    pub(super) fn check(&self, domain: &str, api_names: &[String]) -> Result<()> {
        if let Some(directory) = &self.directory {
            let address = directory.parse::<hyper::Uri>().ok();
            let fine = address.as_ref().is_some_and(|it| {
                it.scheme_str() == Some("https") && it.host().is_some_and(|host| !host.is_empty())
            });
            ensure!(fine, "`acme.directory` is an address with `https://`; `{directory}` is not");
        }
        if let Some(email) = &self.email {
            let plain = |byte: u8| byte.is_ascii_graphic() && !b"<>,?".contains(&byte);
            let parts = email.split_once('@');
            let fine = email.bytes().all(plain)
                && parts.is_some_and(|(name, host)| !name.is_empty() && host.contains('.'));
            ensure!(fine, "`acme.email` is an address such as `ops@example.com`; `{email}` is not");
        }
        if let Some(path) = &self.ca_file {
            ensure!(
                path.is_absolute(),
                "`acme.ca_file` is an absolute path; `{}` is not",
                path.display()
            );
        }
        let count = self.resolvers.len();
        ensure!(
            count <= RESOLVERS_MAX,
            "`acme.resolvers` are at most {RESOLVERS_MAX}; {count} are too many"
        );
        match &self.zone {
            Some(zone) => self.check_zone(zone, domain, api_names),
            None => {
                ensure!(
                    self.dns.is_empty(),
                    "`acme.dns` is where `acme.zone` is served: name that"
                );
                ensure!(
                    self.name_servers.is_empty(),
                    "`acme.name_servers` serve `acme.zone`: name that"
                );
                Ok(())
            }
        }
    }

    fn check_zone(&self, zone: &str, domain: &str, api_names: &[String]) -> Result<()> {
        ensure!(
            super::is_host_name(zone, ZONE_BYTES_MAX) && zone.contains('.'),
            "`acme.zone` is a host name in lower case, such as `acme.example.com`; `{zone}` is not"
        );
        ensure!(
            !is_at_or_below(domain, zone),
            "`acme.zone` is a name of its own, with no others in it; `domain` would be in `{zone}`"
        );
        let inside = api_names.iter().find(|name| is_at_or_below(&name.to_ascii_lowercase(), zone));
        ensure!(
            inside.is_none(),
            "`acme.zone` is a name of its own, with no others in it; `{}` of `api_names` would be in \
             `{zone}`",
            inside.map(String::as_str).unwrap_or_default()
        );
        ensure!(
            self.directory.is_some(),
            "`acme.directory` is the issuer that looks into `acme.zone`: name one"
        );
        let count = self.dns.len();
        ensure!(
            (1..=SERVERS_MAX).contains(&count),
            "`acme.dns` are 1 to {SERVERS_MAX} addresses that `acme.zone` is served at; there are \
             {count}"
        );
        let mut seen = BTreeSet::new();
        for at in &self.dns {
            ensure!(
                !at.ip().is_unspecified() && !at.ip().is_multicast() && seen.insert(at),
                "`acme.dns` are addresses of this server, each once: machines' names are served at \
                 others, at the same port; {at} is not fine"
            );
        }
        let count = self.name_servers.len();
        ensure!(
            (1..=SERVERS_MAX).contains(&count),
            "`acme.name_servers` are 1 to {SERVERS_MAX} names, as the NS records of `acme.zone` have \
             them; there are {count}"
        );
        for name in &self.name_servers {
            ensure!(
                super::is_host_name(name, ZONE_BYTES_MAX) && !is_at_or_below(name, zone),
                "`acme.name_servers` are host names in lower case with addresses, outside the zone; \
                 `{name}` is not"
            );
        }
        Ok(())
    }
}

/// Returns whether a name is another one or below it.
fn is_at_or_below(name: &str, base: &str) -> bool {
    name.strip_suffix(base).is_some_and(|below| below.is_empty() || below.ends_with('.'))
}
