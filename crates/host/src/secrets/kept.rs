//! The files in which a host keeps what it was told of apps' secrets, and its own key.
//!
//! Never holds a value in the clear: they stay sealed to the app's key, and that to the host's.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use perch_seal::{PrivateKey, PublicKey};
use perch_types::keys::HostKey;
use perch_types::{AppName, OrgSlug, Secret};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error::Error;

/// The host's own key.
const OWN_KEY: &str = "host.key";
/// How the files of apps end.
const ENDING: &str = ".sealed";
/// The largest file that is read, in bytes: all values of an app, sealed and in base64.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What is kept of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// The version of its secrets.
    pub(super) version: u64,
    /// Its key, sealed to this host.
    pub(super) key: HostKey,
    /// Its secrets, sealed to that key.
    pub(super) values: BTreeMap<String, KeptSecret>,
}

/// One secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptSecret {
    /// Sealed to the app's key.
    pub(super) sealed: String,
    /// The version with which it was set.
    pub(super) version: u64,
}

#[derive(Serialize, Deserialize)]
struct OwnKey {
    public: String,
    private: Secret,
}

/// The folder.
#[derive(Debug)]
pub(super) struct Keeper {
    folder: PathBuf,
}

impl Keeper {
    pub(super) fn open(folder: PathBuf) -> Result<Self, Error> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        match made {
            Ok(()) => Ok(Self { folder }),
            Err(source) => Err(Error::Folder { path: folder, source }),
        }
    }

    /// Reads the host's own key, or makes it the first time.
    pub(super) fn own_key(&self) -> Result<(PublicKey, PrivateKey), Error> {
        let path = self.folder.join(OWN_KEY);
        let fault = |reason: String| Error::OwnKey { path: path.clone(), reason };
        match fs::read(&path).map(Zeroizing::new) {
            Ok(bytes) => {
                // What serde says of a fault may show a piece of the file.
                let own: OwnKey = serde_json::from_slice(&bytes)
                    .map_err(|_| fault("it is not of the known shape".to_owned()))?;
                let private = BASE64.decode(own.private.expose()).map(Zeroizing::new);
                let private = private.map_err(|_| fault("it is not base64".to_owned()))?;
                let public = PublicKey::from_base64(&own.public);
                let pair =
                    public.and_then(|public| Ok((public, PrivateKey::from_bytes(&private)?)));
                pair.map_err(|error| fault(error.to_string()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (public, private) =
                    perch_seal::generate().map_err(|error| fault(error.to_string()))?;
                let own = OwnKey {
                    public: public.to_base64(),
                    private: Secret::new(BASE64.encode(private.expose())),
                };
                let bytes = serde_json::to_vec(&own).map(Zeroizing::new);
                let bytes = bytes.map_err(|error| fault(error.to_string()))?;
                write_private(&path, &bytes).map_err(|error| fault(error.to_string()))?;
                Ok((public, private))
            }
            Err(error) => Err(fault(error.to_string())),
        }
    }

    /// Returns what is kept of an app; one that cannot be read is as good as none.
    pub(super) async fn read(&self, org: &OrgSlug, app: &AppName) -> Option<Kept> {
        let path = self.path(org, app);
        let read = tokio::task::spawn_blocking(move || {
            match fs::metadata(&path) {
                Ok(data) if data.len() <= FILE_BYTES_MAX => {}
                Ok(_) => return Err(io::Error::other("it is too large")),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            }
            let kept = serde_json::from_slice(&fs::read(&path)?)?;
            Ok(Some(kept))
        });
        match read.await {
            Ok(Ok(kept)) => kept,
            Ok(Err(error)) => {
                tracing::warn!(%app, %error, "kept secrets not read");
                None
            }
            Err(_) => None,
        }
    }

    /// Keeps what was told of an app. A boot does not fail because of it.
    pub(super) async fn write(&self, org: &OrgSlug, app: &AppName, kept: &Kept) {
        let (path, bytes) = (self.path(org, app), serde_json::to_vec(kept).unwrap_or_default());
        let written = tokio::task::spawn_blocking(move || write_private(&path, &bytes));
        if let Ok(Err(error)) = written.await {
            tracing::warn!(%app, %error, "secrets not kept: they are needed anew at the next boot");
        }
    }

    /// Forgets what is kept of an app.
    pub(super) async fn forget(&self, org: &OrgSlug, app: &AppName) {
        let removed = tokio::fs::remove_file(self.path(org, app)).await;
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%app, %error, "kept secrets not removed");
            }
            Ok(()) | Err(_) => {}
        }
    }

    /// Lists the apps of which something is kept.
    pub(super) fn list(&self) -> io::Result<Vec<(OrgSlug, AppName)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            let parts = name.to_str().and_then(|name| name.strip_suffix(ENDING)?.split_once('.'));
            if let Some((org, app)) = parts
                && let (Ok(org), Ok(app)) = (org.parse(), app.parse())
            {
                found.push((org, app));
            }
        }
        Ok(found)
    }

    /// Neither part of the name has a dot or a slash.
    fn path(&self, org: &OrgSlug, app: &AppName) -> PathBuf {
        self.folder.join(format!("{org}.{app}{ENDING}"))
    }
}

/// Writes a file that only its owner reads, whole or not at all.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    File::open(path.parent().unwrap_or(path))?.sync_all()
}
