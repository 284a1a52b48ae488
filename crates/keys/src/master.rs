//! The master key: a file that only its owner reads, and what is wrapped with it.
//!
//! Never leaves this process. It has versions: what is wrapped says with which. The newest one
//! wraps, the one before still opens, older ones are gone (see `rotate`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use perch_types::Secret;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::envelope;
use crate::error::Error;
#[cfg(test)]
use crate::tests::between_steps;

/// Where the tests end the process: after each thing that stays on the disk.
#[cfg(not(test))]
const fn between_steps() {}

/// The file in the role's folder.
pub const MASTER_FILE: &str = "master.json";
/// The format of the file.
const FILE_FORMAT: u32 = 1;
/// The largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// The format of what is wrapped.
const WRAPPED_FORMAT: u8 = 1;

#[derive(Serialize, Deserialize)]
struct OnDisk {
    format: u32,
    keys: Vec<KeyOnDisk>,
}

#[derive(Serialize, Deserialize)]
struct KeyOnDisk {
    version: u32,
    /// Base64.
    key: Secret,
}

type Key = Zeroizing<[u8; envelope::KEY_BYTES]>;

/// The master key in all the versions that still open something; the newest is the last.
pub(crate) struct Master {
    path: PathBuf,
    older: Vec<(u32, Key)>,
    newest: (u32, Key),
}

impl std::fmt::Debug for Master {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Master").field("version", &self.newest.0).finish_non_exhaustive()
    }
}

impl Master {
    /// Reads the master key in a folder, or makes it the first time.
    pub(crate) fn open(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(MASTER_FILE);
        // Whoever was killed while it wrote a new version left a key that nothing is wrapped with.
        remove_new(&path)?;
        let data = match fs::metadata(&path) {
            Ok(data) => data,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = Self { path, older: Vec::new(), newest: (1, new_key()?) };
                made.write()?;
                return Ok(made);
            }
            Err(source) => return Err(Error::Read { path, source }),
        };
        let mode = data.permissions().mode() & 0o7777;
        if mode != 0o600 {
            return Err(Error::Open { path, mode });
        }
        if data.len() > FILE_BYTES_MAX {
            let reason = format!("it is larger than {FILE_BYTES_MAX} bytes");
            return Err(Error::Understand { path, reason });
        }
        let bytes = match fs::read(&path) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(source) => return Err(Error::Read { path, source }),
        };
        Self::parse(path, &bytes)
    }

    fn parse(path: PathBuf, bytes: &[u8]) -> Result<Self, Error> {
        let bad =
            |reason: &str| Error::Understand { path: path.clone(), reason: reason.to_owned() };
        // What serde says of a fault may show a piece of the file.
        let file: OnDisk =
            serde_json::from_slice(bytes).map_err(|_| bad("it is not of the known shape"))?;
        if file.format != FILE_FORMAT {
            return Err(bad("it is of another format"));
        }
        let mut keys = Vec::new();
        for KeyOnDisk { version, key } in file.keys {
            let decoded = BASE64.decode(key.expose()).map(Zeroizing::new);
            let decoded = decoded.map_err(|_| bad("a key is not base64"))?;
            if decoded.len() != envelope::KEY_BYTES {
                return Err(bad("a key has another length"));
            }
            let mut key = Key::default();
            key.copy_from_slice(&decoded);
            keys.push((version, key));
        }
        if !keys.is_sorted_by(|one, other| one.0 < other.0) {
            return Err(bad("its versions do not grow"));
        }
        let newest = keys.pop().ok_or_else(|| bad("it has no key"))?;
        Ok(Self { path, older: keys, newest })
    }

    /// Returns the version that wraps.
    pub(crate) const fn version(&self) -> u32 {
        self.newest.0
    }

    /// Returns this master key with a new version that wraps, written down; of the versions before
    /// only the last stays.
    pub(crate) fn with_new_version(&self) -> Result<Self, Error> {
        let rotated = Self {
            path: self.path.clone(),
            older: vec![self.newest.clone()],
            newest: (self.newest.0.saturating_add(1), new_key()?),
        };
        rotated.write()?;
        Ok(rotated)
    }

    fn write(&self) -> Result<(), Error> {
        let keys = self.older.iter().chain(std::iter::once(&self.newest));
        let file = OnDisk {
            format: FILE_FORMAT,
            keys: keys
                .map(|(version, key)| KeyOnDisk {
                    version: *version,
                    key: Secret::new(BASE64.encode(key.as_slice())),
                })
                .collect(),
        };
        let path = &self.path;
        let fault = |source: io::Error| Error::Write { path: path.clone(), source };
        let bytes = serde_json::to_vec(&file).map(Zeroizing::new);
        let bytes = bytes.map_err(|error| fault(error.into()))?;
        // One that is there may have other rights.
        let fresh = remove_new(path)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)
            .map_err(fault)?;
        between_steps();
        file.write_all(&bytes).map_err(fault)?;
        between_steps();
        file.sync_all().map_err(fault)?;
        fs::rename(&fresh, path).map_err(fault)?;
        between_steps();
        let folder = path.parent().unwrap_or(path);
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(fault)
    }

    /// Wraps bytes with the newest version, bound to what they are for; returns base64.
    pub(crate) fn wrap(&self, bound_to: &[u8], plain: &[u8]) -> Result<String, Error> {
        let (version, key) = &self.newest;
        let sealed = envelope::seal(key, &associated(*version, bound_to), plain)?;
        let mut wrapped = vec![WRAPPED_FORMAT];
        wrapped.extend(version.to_be_bytes());
        wrapped.extend(sealed);
        Ok(BASE64.encode(wrapped))
    }

    /// Opens what was wrapped with any version that is still there.
    pub(crate) fn unwrap(
        &self,
        bound_to: &[u8],
        wrapped: &str,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let bytes = BASE64.decode(wrapped).map_err(|_| Error::Unwrap)?;
        let Some((&WRAPPED_FORMAT, rest)) = bytes.split_first() else {
            return Err(Error::Unwrap);
        };
        let (version, sealed) = rest.split_first_chunk::<4>().ok_or(Error::Unwrap)?;
        let version = u32::from_be_bytes(*version);
        let all = self.older.iter().chain(std::iter::once(&self.newest));
        let (_, key) = all.into_iter().find(|(one, _)| *one == version).ok_or(Error::Unwrap)?;
        envelope::open(key, &associated(version, bound_to), sealed)
    }
}

/// Removes the file that a new version is written to; returns where it is.
fn remove_new(path: &Path) -> Result<PathBuf, Error> {
    let fresh = path.with_extension("new");
    match fs::remove_file(&fresh) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Write { path: path.to_owned(), source })
        }
        Ok(()) | Err(_) => Ok(fresh),
    }
}

fn associated(version: u32, bound_to: &[u8]) -> Vec<u8> {
    perch_seal::bind(&[b"perch master 1", &version.to_be_bytes(), bound_to])
}

fn new_key() -> Result<Key, Error> {
    let mut key = Key::default();
    aws_lc_rs::rand::fill(key.as_mut_slice()).map_err(|_| Error::Library)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn t13_the_master_key_is_made_once_and_read_by_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let first = Master::open(folder.path()).unwrap();
        let wrapped = first.wrap(b"a", b"plain").unwrap();
        let path = folder.path().join(MASTER_FILE);
        assert_eq!(mode(&path), 0o600);
        let second = Master::open(folder.path()).unwrap();
        assert_eq!(second.unwrap(b"a", &wrapped).unwrap().as_slice(), b"plain");
        assert!(!format!("{second:?}").contains("key"));
        for loose in [0o644, 0o640, 0o666, 0o700] {
            fs::set_permissions(&path, fs::Permissions::from_mode(loose)).unwrap();
            assert!(matches!(Master::open(folder.path()), Err(Error::Open { .. })), "{loose:o}");
        }
    }

    #[test]
    fn t13_a_new_version_wraps_and_the_one_before_still_opens() {
        let folder = tempfile::tempdir().unwrap();
        let first = Master::open(folder.path()).unwrap();
        let of_first = first.wrap(b"a", b"one").unwrap();
        let second = first.with_new_version().unwrap();
        let of_second = second.wrap(b"a", b"two").unwrap();
        assert_eq!(
            first.unwrap(b"a", &of_second).unwrap_err().to_string(),
            Error::Unwrap.to_string()
        );
        let read = Master::open(folder.path()).unwrap();
        assert_eq!(read.version(), 2);
        assert_eq!(mode(&folder.path().join(MASTER_FILE)), 0o600);
        assert_eq!(read.unwrap(b"a", &of_first).unwrap().as_slice(), b"one");
        let third = read.with_new_version().unwrap();
        assert!(third.unwrap(b"a", &of_first).is_err(), "the first version is gone");
        assert_eq!(third.unwrap(b"a", &of_second).unwrap().as_slice(), b"two");
    }

    #[test]
    fn t13_what_is_wrapped_opens_for_its_purpose_only_and_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        let master = Master::open(folder.path()).unwrap();
        let wrapped = master.wrap(b"a", b"plain").unwrap();
        master.unwrap(b"b", &wrapped).unwrap_err();
        let bytes = BASE64.decode(&wrapped).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(master.unwrap(b"a", &BASE64.encode(&changed)).is_err(), "byte {at}");
        }
        for length in 0..bytes.len() {
            assert!(master.unwrap(b"a", &BASE64.encode(&bytes[..length])).is_err(), "{length}");
        }
    }

    #[test]
    fn a_file_that_is_no_master_key_is_refused_without_being_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(MASTER_FILE);
        let good = BASE64.encode([7; 32]);
        for (text, words) in [
            ("not json hunter2".to_owned(), "shape"),
            (r#"{"format":2,"keys":[]}"#.to_owned(), "format"),
            (r#"{"format":1,"keys":[]}"#.to_owned(), "no key"),
            (r#"{"format":1,"keys":[{"version":1,"key":"%hunter2"}]}"#.to_owned(), "base64"),
            (r#"{"format":1,"keys":[{"version":1,"key":"AAAA"}]}"#.to_owned(), "length"),
            (
                format!(
                    r#"{{"format":1,"keys":[{{"version":2,"key":"{good}"}},{{"version":1,"key":"{good}"}}]}}"#
                ),
                "grow",
            ),
        ] {
            fs::write(&path, &text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let error = Master::open(folder.path()).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_crash_in_the_middle_of_a_write_leaves_the_key_before() {
        let folder = tempfile::tempdir().unwrap();
        let first = Master::open(folder.path()).unwrap();
        let wrapped = first.wrap(b"a", b"one").unwrap();
        fs::write(folder.path().join("master.new"), "half").unwrap();
        let again = Master::open(folder.path()).unwrap();
        assert_eq!(again.unwrap(b"a", &wrapped).unwrap().as_slice(), b"one");
        assert!(!folder.path().join("master.new").exists());
        assert_eq!(again.with_new_version().unwrap().version(), 2);
    }
}
