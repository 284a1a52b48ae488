//! Pebble, a real ACME server, and zones in which every name is at 127.0.0.1.
//!
//! Never a server of its own: Debian has both programs in the package `pebble`.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::skipped;

/// Pebble's own certificate and its key, as files of the folder that it is started in.
pub const CERTIFICATE_FILE: &str = "pebble.pem";
/// See [`CERTIFICATE_FILE`].
pub const KEY_FILE: &str = "pebble.key";

/// Returns a port that nobody has at the moment.
///
/// # Errors
/// When there is none.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("look for a free port")?;
    Ok(listener.local_addr().context("read the free port")?.port())
}

/// Where pebble is asked, where it asks, and where it looks.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// The directory, under TLS.
    pub listen: u16,
    /// Its zones.
    pub dns: u16,
    /// Where records of the zones are set.
    pub zones: u16,
    /// Where it looks for proofs by HTTP.
    pub http: u16,
    /// Where it looks for proofs by TLS.
    pub tls: u16,
}

/// The programs.
#[derive(Debug)]
pub struct Pebble {
    issuer: PathBuf,
    zones: PathBuf,
}

/// Programs that end with this.
#[derive(Debug)]
pub struct Running(Vec<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

impl Pebble {
    /// Finds them; `None`, and said aloud, where they are not.
    #[must_use]
    pub fn find(test: &str) -> Option<Self> {
        let found = program("pebble").zip(program("pebble-challtestsrv"));
        if found.is_none() {
            skipped(test, "pebble");
        }
        found.map(|(issuer, zones)| Self { issuer, zones })
    }

    /// Starts both, with settings of pebble's environment. The folder has its certificate.
    ///
    /// # Errors
    /// When one of them cannot be started.
    pub fn start(&self, folder: &Path, at: Ports, settings: &[(&str, &str)]) -> Result<Running> {
        self.start_asking(folder, at, at.dns, settings)
    }

    /// Starts both; the issuer asks a resolver at another port than that of its zones.
    ///
    /// # Errors
    /// When one of them cannot be started.
    pub fn start_asking(
        &self,
        folder: &Path,
        at: Ports,
        resolver: u16,
        settings: &[(&str, &str)],
    ) -> Result<Running> {
        let local = |port: u16| format!("127.0.0.1:{port}");
        let config = json!({"pebble": {
            "listenAddress": local(at.listen),
            "managementListenAddress": local(free_port()?),
            "certificate": folder.join(CERTIFICATE_FILE), "privateKey": folder.join(KEY_FILE),
            "httpPort": at.http, "tlsPort": at.tls, "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
        }});
        let file = folder.join("pebble.json");
        std::fs::write(&file, config.to_string()).context("write pebble's configuration")?;
        let dns = local(at.dns);
        let mut zones = Command::new(&self.zones);
        zones
            .args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""])
            .args(["-http01", "", "-https01", "", "-tlsalpn01", ""])
            .args(["-dns01", &dns, "-management", &local(at.zones)]);
        let mut issuer = Command::new(&self.issuer);
        issuer.arg("-config").arg(&file).args(["-dnsserver", &local(resolver)]);
        issuer.env("PEBBLE_VA_NOSLEEP", "1").envs(settings.iter().copied());
        let mut running = Running(Vec::new());
        for command in [&mut zones, &mut issuer] {
            let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
            running.0.push(child.context("start pebble")?);
        }
        Ok(running)
    }
}

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|it| it.is_file())
}
