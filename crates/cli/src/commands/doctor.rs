//! `perch doctor`: whether this machine and the platform fit together, and what to do if not.
//!
//! Never changes anything of this machine without a yes.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use clap::Args;
use perch_types::api::Platform;
use perch_types::certificates::{AcmeChallengeRecord, PlatformCertificate};
use serde::Serialize;

use crate::authority;
use crate::error::{CommandError, During as _, Result};
use crate::invocation::Invocation;
use crate::ui::Ui;

/// How long the resolver may take.
const RESOLVE_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Print the certificate of the server's own authority, and nothing else
    #[arg(long)]
    certificate: bool,
}

/// Where a system keeps authorities of its own, and what makes it look there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Store {
    folder: &'static str,
    program: &'static str,
}

/// Debian's and Ubuntu's, and Fedora's.
const STORES: [Store; 2] = [
    Store { folder: "/usr/local/share/ca-certificates", program: "update-ca-certificates" },
    Store { folder: "/etc/pki/ca-trust/source/anchors", program: "update-ca-trust" },
];

#[derive(Debug, Serialize)]
struct Findings {
    platform: String,
    perch: &'static str,
    domain: String,
    /// Addresses that a name under the domain leads to; nothing when it was not asked.
    resolves_to: Option<Vec<IpAddr>>,
    https_port: Option<u16>,
    /// The certificate of a public issuer for all names under the domain, where one is ordered.
    certificate: Option<PlatformCertificate>,
    /// Whether this machine trusts the server's own authority, where it has one.
    authority_trusted: Option<bool>,
}

impl Findings {
    /// Returns whether this machine should trust the server's own authority and does not. Where a
    /// public issuer vouches for all names together or for each by itself, nobody has to.
    fn lacks_trust(&self) -> bool {
        self.authority_trusted == Some(false) && self.certificate.is_none()
    }
}

pub(crate) async fn run(invocation: &Invocation, args: DoctorArgs) -> Result {
    let platform = invocation.api()?.platform().await.during("look at the platform")?;
    let authority = platform.https_ca.as_deref().map(|pem| checked(&platform, pem)).transpose()?;
    if args.certificate {
        let pem = authority.ok_or_else(|| {
            CommandError::refused(
                "the server has no authority of its own",
                "it makes one when it serves HTTPS: `perchd serve --https ADDRESS:443`",
            )
        })?;
        pem.lines().for_each(|line| invocation.ui.data(line));
        return Ok(());
    }
    let store = STORES.into_iter().find(|store| Path::new(store.folder).is_dir());
    let findings = Findings {
        platform: platform.version.clone(),
        perch: env!("CARGO_PKG_VERSION"),
        domain: platform.domain.clone(),
        resolves_to: resolve(&platform.domain).await,
        https_port: platform.https_port,
        certificate: platform.certificate.clone(),
        authority_trusted: authority.map(|pem| {
            store.is_some_and(|store| is_trusted(Path::new(store.folder), &platform.domain, pem))
        }),
    };
    if invocation.ui.is_json() {
        invocation.ui.json(&findings);
        return Ok(());
    }
    tell(&invocation.ui, &findings);
    match authority {
        Some(pem) if findings.lacks_trust() => {
            offer(&invocation.ui, store, &platform.domain, pem).await
        }
        _ => Ok(()),
    }
}

/// Returns the authority's certificate, if it is one for names of the domain alone.
fn checked<'a>(platform: &Platform, pem: &'a str) -> Result<&'a str> {
    let domain = &platform.domain;
    // It becomes part of a file's name.
    let is_name = domain.split('.').all(|label| {
        !label.is_empty()
            && label.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-')
    });
    if is_name && authority::is_for_alone(pem, domain) {
        return Ok(pem);
    }
    Err(CommandError::refused(
        format!("the server's own authority is not one for names under `{domain}` alone"),
        "do not trust it: it could vouch for names of others",
    ))
}

/// Looks for an app's name as a visitor would; nothing for names that never leave a machine.
async fn resolve(domain: &str) -> Option<Vec<IpAddr>> {
    if domain == "localhost" || domain.ends_with(".localhost") {
        return None;
    }
    let looked_up = tokio::net::lookup_host((format!("perch-doctor.{domain}"), 80));
    match tokio::time::timeout(RESOLVE_MAX, looked_up).await {
        Ok(Ok(found)) => Some(found.map(|address| address.ip()).collect()),
        Ok(Err(_)) | Err(_) => Some(Vec::new()),
    }
}

fn tell(ui: &Ui, findings: &Findings) {
    if findings.platform == findings.perch {
        ui.good(format!("the platform answers, version {}", findings.platform));
    } else {
        ui.warn(format!(
            "the platform is version {}, this `perch` is {}",
            findings.platform, findings.perch
        ));
    }
    match findings.resolves_to.as_deref() {
        None => ui.good(format!("names under {} are this machine's own", findings.domain)),
        Some([]) => {
            ui.warn(format!("names under {} lead nowhere from here", findings.domain));
            ui.hint(format!(
                "set a DNS record for `*.{}` with the server's address",
                findings.domain
            ));
        }
        Some(addresses) => {
            let all: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
            ui.good(format!("names under {} lead to {}", findings.domain, all.join(", ")));
        }
    }
    match findings.https_port {
        Some(port) => ui.good(format!("apps are served under HTTPS at port {port}")),
        None => {
            ui.warn("apps are served without HTTPS");
            ui.hint("start the server with `perchd serve --https ADDRESS:443`");
        }
    }
    if let Some(certificate) = &findings.certificate {
        tell_certificate(ui, certificate);
    }
    if findings.authority_trusted == Some(true) {
        ui.good("this machine trusts the server's own authority");
    }
    if findings.lacks_trust() {
        ui.warn(format!(
            "this machine does not trust the server's own authority, which names under {} have \
             their certificates from",
            findings.domain
        ));
    }
}

/// Says how the public certificate stands, and which record it needs.
fn tell_certificate(ui: &Ui, certificate: &PlatformCertificate) {
    let PlatformCertificate { hostname, expires_at, acme_challenge, errors } = certificate;
    match expires_at {
        Some(until) => {
            ui.good(format!("`{hostname}` has a certificate of a public issuer until {until}"));
        }
        None => ui.warn(format!(
            "`{hostname}` has no certificate of a public issuer: each app's name gets its own"
        )),
    }
    let AcmeChallengeRecord { name, target, txt, .. } = acme_challenge;
    if !txt.is_empty() {
        ui.say("its order waits for this record of DNS:");
        ui.data(match target.as_str() {
            "" => format!("TXT {name} {txt}"),
            // It is set once.
            target => format!("CNAME {name} {target}"),
        });
    }
    if let Some(error) = errors.first() {
        ui.warn(format!("{}: {}", error.code, error.message));
    }
}

fn file_in(folder: &Path, domain: &str) -> PathBuf {
    folder.join(format!("perch-{domain}.crt"))
}

fn is_trusted(folder: &Path, domain: &str, pem: &str) -> bool {
    std::fs::read_to_string(file_in(folder, domain))
        .is_ok_and(|known| known.trim_end() == pem.trim_end())
}

/// Returns what somebody who may not do it here has to run.
fn commands(store: Option<Store>, domain: &str) -> Vec<String> {
    if let Some(store) = store {
        let file = file_in(Path::new(store.folder), domain);
        return vec![
            format!("perch doctor --certificate | sudo tee {} >/dev/null", file.display()),
            format!("sudo {}", store.program),
        ];
    }
    let mut all = vec![format!("perch doctor --certificate >perch-{domain}.crt")];
    if cfg!(target_os = "macos") {
        all.push(format!(
            "sudo security add-trusted-cert -d -r trustRoot \
             -k /Library/Keychains/System.keychain perch-{domain}.crt"
        ));
    }
    all
}

/// Offers to trust the authority, or says how to.
async fn offer(ui: &Ui, store: Option<Store>, domain: &str, pem: &str) -> Result {
    let is_root = rustix::process::geteuid().is_root();
    if let Some(store) = store.filter(|_| is_root) {
        let question = format!("Trust the server's authority for names under {domain} here?");
        if ui.confirm(&question) == Some(true) {
            return trust(ui, store, domain, pem).await;
        }
    }
    ui.say("to trust it for names under the domain:");
    for command in commands(store, domain) {
        ui.data(command);
    }
    ui.hint(
        "browsers with a list of their own, such as Firefox, take the same file in their settings",
    );
    Ok(())
}

async fn trust(ui: &Ui, store: Store, domain: &str, pem: &str) -> Result {
    let file = file_in(Path::new(store.folder), domain);
    std::fs::write(&file, pem).during(format!("write `{}`", file.display()))?;
    let ran = tokio::process::Command::new(store.program)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await
        .during(format!("run `{}`", store.program))?;
    if !ran.success() {
        return Err(CommandError::refused(
            format!("`{}` did not succeed ({ran})", store.program),
            "run it yourself to see why",
        ));
    }
    ui.good(format!("this machine trusts the server's own authority for names under {domain}"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEM: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    #[test]
    fn an_authority_is_trusted_when_its_file_is_there_and_the_same() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_trusted(folder.path(), "a.example", PEM));
        std::fs::write(folder.path().join("perch-a.example.crt"), PEM).unwrap();
        assert!(is_trusted(folder.path(), "a.example", PEM.trim_end()));
        assert!(!is_trusted(folder.path(), "b.example", PEM));
        assert!(!is_trusted(folder.path(), "a.example", &PEM.replace("AAAA", "BBBB")));
    }

    #[test]
    fn nobody_has_to_trust_the_authority_where_a_public_issuer_vouches() {
        // Without a certificate for all names each app's name has one of its own.
        let each_its_own = PlatformCertificate::default();
        for (authority_trusted, certificate, want) in [
            (Some(false), None, true),
            (Some(false), Some(each_its_own), false),
            (Some(true), None, false),
            (None, None, false),
        ] {
            let findings = Findings {
                platform: "0.1.0".to_owned(),
                perch: "0.1.0",
                domain: "a.example".to_owned(),
                resolves_to: None,
                https_port: Some(443),
                certificate,
                authority_trusted,
            };
            assert_eq!(findings.lacks_trust(), want, "{findings:?}");
        }
    }

    #[test]
    fn whoever_is_not_root_is_told_the_commands() {
        assert_eq!(
            commands(Some(STORES[0]), "a.example"),
            [
                "perch doctor --certificate | sudo tee \
                 /usr/local/share/ca-certificates/perch-a.example.crt >/dev/null",
                "sudo update-ca-certificates",
            ]
        );
        assert!(commands(None, "a.example")[0].ends_with(">perch-a.example.crt"));
    }
}
