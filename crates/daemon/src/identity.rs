//! What a server is made of at its first start: folders, id, administrator's token.
//!
//! Never changes what is already there, and never writes a token but into the one file that only
//! its owner can read.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use perch_types::{HostId, Secret};
use rustix::fs::{FlockOperation, Gid, Uid};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::certificate::{hex, write_private};

const ADMIN_FILE: &str = "admin.json";
const HOST_ID_FILE: &str = "host-id";
pub(crate) const LOCK_FILE: &str = "perchd.lock";

/// Folders under the data folder.
pub(crate) const HOST_DIR: &str = "host";
pub(crate) const FRONT_DIR: &str = "front";
pub(crate) const BUILD_DIR: &str = "build";
pub(crate) const CA_DIR: &str = "ca";
pub(crate) const KEYS_DIR: &str = "keys";

/// How the administrator of the server reaches it; the CLI reads this when nothing else is set.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Admin {
    /// The API's address.
    pub(crate) url: String,
    /// The administrator's token.
    pub(crate) token: Secret,
    /// The fingerprint of the server's CA, for connections from outside.
    pub(crate) fingerprint: Option<String>,
}

/// Makes the folders of a server, each with its owner.
pub(crate) fn folders(data: &Path, run: &Path, (front_uid, keys_uid): (u32, u32)) -> Result<()> {
    folder(data, 0o711, 0)?;
    folder(run, 0o755, 0)?;
    for (name, mode, owner) in parts((front_uid, keys_uid)) {
        folder(&data.join(name), mode, owner)?;
    }
    Ok(())
}

/// The folders under the data folder, each with its mode and the user whose is all that is in it.
fn parts((front_uid, keys_uid): (u32, u32)) -> [(&'static str, u32, u32); 5] {
    [
        // Searchable, because children without rights work in folders below; what lies in them is
        // closed to others by the processes' umask.
        (HOST_DIR, 0o711, 0),
        (BUILD_DIR, 0o711, 0),
        (CA_DIR, 0o700, 0),
        (FRONT_DIR, 0o700, front_uid),
        (KEYS_DIR, 0o700, keys_uid),
    ]
}

/// Returns whose a file is, by its path below the data folder.
pub(crate) fn owner_of(path: &Path, uids: (u32, u32)) -> u32 {
    let first = path.iter().next();
    let part = parts(uids).into_iter().find(|(name, ..)| first == Some(name.as_ref()));
    part.map_or(0, |(_, _, owner)| owner)
}

/// Checks that the unprivileged process can get to a folder: it must be able to search every
/// folder above, and root's home, where a first try often happens, is closed to it.
pub(crate) fn reachable(path: &Path, front_uid: u32) -> Result<()> {
    for above in path.ancestors().skip(1).filter(|above| above.is_dir()) {
        let data = fs::metadata(above).with_context(|| format!("look at `{}`", above.display()))?;
        let owns = std::os::unix::fs::MetadataExt::uid(&data) == front_uid;
        if data.permissions().mode() & if owns { 0o100 } else { 0o001 } == 0 {
            bail!(
                "`{}` is closed to the user of the unprivileged process, who has to get to `{}`: \
                 choose a folder elsewhere, or open it with `chmod o+x {}`",
                above.display(),
                path.display(),
                above.display()
            );
        }
    }
    Ok(())
}

fn folder(path: &Path, mode: u32, owner: u32) -> Result<()> {
    let what = || format!("make folder `{}`", path.display());
    DirBuilder::new().recursive(true).mode(mode).create(path).with_context(what)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).with_context(what)?;
    rustix::fs::chown(path, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)))
        .with_context(what)
}

/// Holds the data folder for one supervisor; it is free again when the value is dropped.
pub(crate) fn lock(data: &Path) -> Result<File> {
    let path = data.join(LOCK_FILE);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("open `{}`", path.display()))?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).with_context(|| {
        format!(
            "another perchd uses `{}`; stop it first, or choose another with `--data-dir`",
            data.display()
        )
    })?;
    Ok(file)
}

/// Tells whether a server was ever started with this folder.
pub(crate) fn has_host_id(data: &Path) -> bool {
    data.join(HOST_ID_FILE).is_file()
}

/// Reads this server's id, or mints it.
pub(crate) fn host_id(data: &Path) -> Result<HostId> {
    let path = data.join(HOST_ID_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().with_context(|| format!("read `{}`", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let id = HostId::from_bits(u64::from_le_bytes(random()?));
            write_private(&path, id.as_str().as_bytes())?;
            Ok(id)
        }
        Err(error) => Err(error).with_context(|| format!("read `{}`", path.display())),
    }
}

/// Reads the administrator's token, or mints it, and writes down where the API is now.
pub(crate) fn admin(data: &Path, url: &str, fingerprint: Option<String>) -> Result<Admin> {
    let path = admin_path(data);
    let token = match fs::read(&path) {
        Ok(bytes) => {
            let known: Admin = serde_json::from_slice(&bytes)
                .with_context(|| format!("read `{}`", path.display()))?;
            known.token
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => token()?,
        Err(error) => return Err(error).with_context(|| format!("read `{}`", path.display())),
    };
    let admin = Admin { url: url.to_owned(), token, fingerprint };
    write_private(&path, &serde_json::to_vec_pretty(&admin).context("write the token")?)?;
    Ok(admin)
}

/// Returns where the administrator's token is.
pub(crate) fn admin_path(data: &Path) -> PathBuf {
    data.join(ADMIN_FILE)
}

/// Makes a token of 256 random bits.
pub(crate) fn token() -> Result<Secret> {
    Ok(Secret::new(format!("perch_{}", hex(&random::<32>()?))))
}

/// Returns SHA-256 of a token's text, hexadecimal.
pub(crate) fn token_hash(token: &Secret) -> String {
    hex(&Sha256::digest(token.expose()))
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("draw random bytes: {error}"))?;
    Ok(bytes)
}

/// Finds the user id of a name or number.
pub(crate) fn user_id(user: &str, flag: &str) -> Result<u32> {
    if let Ok(uid) = user.parse() {
        return Ok(uid);
    }
    let passwd = fs::read_to_string("/etc/passwd").context("read `/etc/passwd`")?;
    let found = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&user))
        .and_then(|fields| fields.get(2)?.parse().ok());
    match found {
        Some(0) => bail!("user `{user}` is root; what needs no rights must not have them"),
        Some(uid) => Ok(uid),
        None => bail!(
            "there is no user `{user}`: make it with \
             `useradd --system --no-create-home --shell /usr/sbin/nologin {user}`, \
             or name another with `{flag}`"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_stays_and_only_its_owner_can_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = admin(folder.path(), "http://127.0.0.1:1", None).unwrap();
        let second = admin(folder.path(), "http://127.0.0.1:2", None).unwrap();
        assert_eq!(first.token, second.token);
        assert_eq!(second.url, "http://127.0.0.1:2");
        let mode = fs::metadata(admin_path(folder.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn two_supervisors_do_not_share_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let held = lock(folder.path()).unwrap();
        assert!(format!("{:#}", lock(folder.path()).unwrap_err()).contains("another perchd"));
        drop(held);
        lock(folder.path()).unwrap();
    }

    #[test]
    fn a_folder_that_the_unprivileged_process_cannot_get_to_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("closed/data");
        fs::create_dir_all(&data).unwrap();
        for (mode, fine) in [(0o700, false), (0o711, true)] {
            for open in [folder.path(), &folder.path().join("closed")] {
                fs::set_permissions(open, fs::Permissions::from_mode(0o711)).unwrap();
            }
            let closed = folder.path().join("closed");
            fs::set_permissions(closed, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(reachable(&data, 64_000).is_ok(), fine, "{mode:o}");
        }
    }

    #[test]
    fn the_server_keeps_its_id() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(host_id(folder.path()).unwrap(), host_id(folder.path()).unwrap());
    }

    #[test]
    fn an_unknown_user_is_told_with_the_way_out() {
        assert_eq!(user_id("1234", "--user").unwrap(), 1234);
        let error = user_id("no-such-user-here", "--keys-user").unwrap_err().to_string();
        assert!(error.contains("useradd") && error.contains("--keys-user"), "{error}");
        user_id("root", "--user").unwrap_err();
    }
}
