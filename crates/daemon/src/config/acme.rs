//! Who issues certificates: the part of the configuration that says it.
//!
//! Never asks anybody: what is named is checked for its form alone.

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
}

/// Resolvers that may be named.
const RESOLVERS_MAX: usize = 4;

impl Acme {
    pub(super) fn check(&self) -> Result<()> {
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
        Ok(())
    }
}
