//! Where the platform is, and the token for it.
//!
//! Never sends a token to another address than the one that it was stored for.
//!
//! Options and environment come first, then the CLI's own file, then the file that a server
//! leaves for its own administrator.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use perch_client::{Address, Api, InvalidAddress};
use perch_types::Secret;
use perch_types::env::{CONFIG_DIR, FLY_API_TOKEN};
use serde::{Deserialize, Serialize};

use crate::error::{During as _, Result};

/// The file that a server leaves for its administrator.
const ADMIN_FILE: &str = "/var/lib/perch/admin.json";
/// The CLI's own file.
const CONFIG_NAME: &str = "config.toml";
/// The largest of these files, in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// An address and the token for it.
#[derive(Debug, Clone)]
pub(crate) struct Credentials {
    pub(crate) address: Address,
    pub(crate) token: Secret,
    /// Where they came from, in words.
    pub(crate) origin: String,
}

impl Credentials {
    /// Returns the platform.
    pub(crate) fn api(&self) -> Result<Api> {
        Api::new(&self.address, &self.token).during("use the address and the token")
    }
}

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialsError {
    /// Nothing names a platform.
    #[error("no platform is known: log in with `perch auth login URL#fingerprint`")]
    NoPlatform,
    /// The platform is known, the token is not.
    #[error(
        "no token for `{url}` is known: log in with `perch auth login`, or set PERCH_API_TOKEN"
    )]
    NoToken { url: String },
    /// The address is none.
    #[error("use the address from {origin}")]
    Address { origin: String, source: InvalidAddress },
    /// A file cannot be read or written.
    #[error("{verb} `{}`", path.display())]
    File { verb: &'static str, path: PathBuf, source: io::Error },
    /// A file is not what it should be.
    #[error("understand `{}`", path.display())]
    Shape { path: PathBuf, source: anyhow::Error },
    /// There is no home folder.
    #[error("neither HOME nor {CONFIG_DIR} is set")]
    NoHome,
}

/// What a file holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Stored {
    url: String,
    token: Secret,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
}

impl Stored {
    fn address(&self, path: &Path) -> std::result::Result<Address, CredentialsError> {
        let text = match &self.fingerprint {
            Some(fingerprint) if !self.url.contains('#') => format!("{}#{fingerprint}", self.url),
            _ => self.url.clone(),
        };
        address(&text, &path.display().to_string())
    }
}

/// Returns address and token.
pub(crate) fn find(
    url: Option<&str>,
    token: Option<&str>,
) -> std::result::Result<Credentials, CredentialsError> {
    let token = token.map(str::to_owned).or_else(|| std::env::var(FLY_API_TOKEN).ok());
    let stored = read_stored()?;
    let (address, origin) = match (url, &stored) {
        (Some(url), _) => (address(url, "--api-url or the environment")?, "options".to_owned()),
        (None, Some((path, stored))) => (stored.address(path)?, path.display().to_string()),
        (None, None) => return Err(CredentialsError::NoPlatform),
    };
    let token = match (token, stored) {
        (Some(token), _) => Secret::new(token),
        (None, Some((path, stored))) if same_server(&stored.address(&path)?, &address) => {
            stored.token
        }
        (None, _) => return Err(CredentialsError::NoToken { url: address.url() }),
    };
    Ok(Credentials { address, token, origin })
}

/// Returns whether a token for one address may go to the other.
fn same_server(stored: &Address, wanted: &Address) -> bool {
    stored == wanted
}

pub(crate) fn address(text: &str, origin: &str) -> std::result::Result<Address, CredentialsError> {
    text.parse().map_err(|source| CredentialsError::Address { origin: origin.to_owned(), source })
}

/// Returns the address to log in to. One without a fingerprint is only good when the CLI's own file
/// pins that very server: what a server says of itself is never taken for it.
pub(crate) fn login_address(text: &str) -> std::result::Result<Address, CredentialsError> {
    let source = match text.parse() {
        Ok(address) => return Ok(address),
        Err(source) => source,
    };
    if let InvalidAddress::NoFingerprint(_) = source
        && let Some(stored) = read_own()?
        && let known @ Address::Https { fingerprint, .. } = stored.1.address(&stored.0)?
        && format!("{text}#{fingerprint}").parse() == Ok(known.clone())
    {
        return Ok(known);
    }
    Err(CredentialsError::Address { origin: "the command line".to_owned(), source })
}

/// Takes the CLI's own file away; returns what it named, and `None` when it was not there.
pub(crate) fn forget() -> std::result::Result<Option<(PathBuf, String)>, CredentialsError> {
    let path = config_path()?;
    // A file that cannot be understood is no reason to keep the token in it.
    let url = match read_own() {
        Ok(None) => return Ok(None),
        Ok(Some((_, stored))) => stored.url.split('#').next().unwrap_or_default().to_owned(),
        Err(CredentialsError::Shape { .. }) => "an address that cannot be read".to_owned(),
        Err(error) => return Err(error),
    };
    fs::remove_file(&path).map_err(|source| CredentialsError::File {
        verb: "remove",
        path: path.clone(),
        source,
    })?;
    Ok(Some((path, url)))
}

/// Returns the first of the files that is there and may be read.
fn read_stored() -> std::result::Result<Option<(PathBuf, Stored)>, CredentialsError> {
    if let Some(own) = read_own()? {
        return Ok(Some(own));
    }
    let path = PathBuf::from(ADMIN_FILE);
    // Other users of the server are not meant to read it: for them it is not there.
    let Ok(Some(text)) = read(&path) else {
        return Ok(None);
    };
    let stored = serde_json::from_str(&text)
        .map_err(|source| CredentialsError::Shape { path: path.clone(), source: source.into() })?;
    Ok(Some((path, stored)))
}

/// Returns the CLI's own file, if it is there.
fn read_own() -> std::result::Result<Option<(PathBuf, Stored)>, CredentialsError> {
    let Ok(path) = config_path() else {
        return Ok(None);
    };
    let Some(text) = read(&path)? else {
        return Ok(None);
    };
    // The error's own text would quote the line, and with it the token.
    let stored = toml::from_str(&text).map_err(|error| {
        let source = anyhow::anyhow!("{}", error.message());
        CredentialsError::Shape { path: path.clone(), source }
    })?;
    Ok(Some((path, stored)))
}

fn read(path: &Path) -> std::result::Result<Option<String>, CredentialsError> {
    let error = |source| CredentialsError::File { verb: "read", path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(error(source)),
    };
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(error)?;
    Ok(Some(text))
}

/// Returns the CLI's own file.
pub(crate) fn config_path() -> std::result::Result<PathBuf, CredentialsError> {
    let set = |name: &str| std::env::var_os(name).filter(|it| !it.is_empty()).map(PathBuf::from);
    set(CONFIG_DIR)
        .or_else(|| Some(set("HOME")?.join(".config").join("perch")))
        .map(|folder| folder.join(CONFIG_NAME))
        .ok_or(CredentialsError::NoHome)
}

/// Stores address and token for the next commands, readable by their owner alone.
pub(crate) fn store(
    address: &Address,
    token: &Secret,
) -> std::result::Result<PathBuf, CredentialsError> {
    let path = config_path()?;
    let error = |source| CredentialsError::File { verb: "write", path: path.clone(), source };
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(folder).map_err(error)?;
    let stored = Stored { url: address.to_string(), token: token.clone(), fingerprint: None };
    let text = toml::to_string(&stored)
        .map_err(|source| CredentialsError::Shape { path: path.clone(), source: source.into() })?;
    // A new file that takes the old one's place is never half written nor readable by others.
    let new = folder.join(format!(".{CONFIG_NAME}.{}", std::process::id()));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .map_err(error)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    written.and_then(|()| fs::rename(&new, &path)).map_err(error)?;
    Ok(path)
}
