//! The key of the edges: certificates' private keys are sealed to it in the directory, so that
//! neither a copy of the directory nor whoever only writes there has them.
//!
//! Never leaves the file and the process of the edge.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use perch_seal::{PrivateKey, PublicKey, Purpose};
use perch_types::Secret;
use zeroize::Zeroizing;

use crate::error::Error;

/// The file in the folder of the process.
const KEY_FILE: &str = "certificates.key";
/// The largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1024;

/// Both halves of the key.
#[derive(Debug)]
pub struct EdgeKey {
    public: PublicKey,
    private: PrivateKey,
}

impl EdgeKey {
    /// Reads the key in a folder, or makes it the first time.
    ///
    /// # Errors
    /// When it cannot be read or written, is not one, or others may read it.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(KEY_FILE);
        let fault = |source| Error::KeyFile { path: path.clone(), source };
        let data = match fs::metadata(&path) {
            Ok(data) => data,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::make(&path),
            Err(error) => return Err(fault(error)),
        };
        let bad = |reason: String| Error::KeyText { path: path.clone(), reason };
        let mode = data.permissions().mode() & 0o7777;
        if mode != 0o600 {
            return Err(bad(format!("its mode is {mode:o}, not 600")));
        }
        if data.len() > FILE_BYTES_MAX {
            return Err(bad(format!("it is larger than {FILE_BYTES_MAX} bytes")));
        }
        let text = Zeroizing::new(fs::read_to_string(&path).map_err(fault)?);
        let mut lines = text.lines();
        let (Some(public), Some(private)) = (lines.next(), lines.next()) else {
            return Err(bad("it is not two lines".to_owned()));
        };
        let private = BASE64.decode(private).map(Zeroizing::new);
        let private = private.map_err(|_| bad("the private half is not base64".to_owned()))?;
        Ok(Self {
            public: PublicKey::from_base64(public)?,
            private: PrivateKey::from_bytes(&private)?,
        })
    }

    fn make(path: &Path) -> Result<Self, Error> {
        let fault = |source| Error::KeyFile { path: path.to_owned(), source };
        let (public, private) = perch_seal::generate()?;
        let secret = Zeroizing::new(BASE64.encode(private.expose()));
        let text = Zeroizing::new(format!("{}\n{}\n", public.to_base64(), secret.as_str()));
        let fresh = path.with_extension("new");
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fault(error)),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)
            .map_err(fault)?;
        file.write_all(text.as_bytes()).map_err(fault)?;
        file.sync_all().map_err(fault)?;
        fs::rename(&fresh, path).map_err(fault)?;
        let folder = path.parent().unwrap_or(path);
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(fault)?;
        Ok(Self { public, private })
    }

    /// Returns the half that seals.
    #[must_use]
    pub const fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Opens a text that was sealed for a purpose.
    ///
    /// # Errors
    /// When it is of another key or purpose.
    pub(crate) fn open_text(&self, purpose: Purpose<'_>, sealed: &str) -> Result<Secret, Error> {
        Ok(self.private.open_text(purpose, sealed)?)
    }

    /// Opens bytes that were sealed for a purpose.
    ///
    /// # Errors
    /// When they are of another key or purpose.
    pub(crate) fn open_bytes(
        &self,
        purpose: Purpose<'_>,
        sealed: &str,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        Ok(self.private.open(purpose, sealed)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e9_the_key_stays_the_same_and_is_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let made = EdgeKey::open(folder.path()).unwrap();
        let read = EdgeKey::open(folder.path()).unwrap();
        assert_eq!(made.public().to_base64(), read.public().to_base64());
        let purpose = Purpose::AcmeAccountKey { directory: "https://a" };
        let sealed = made.public().seal(purpose, b"x").unwrap();
        assert_eq!(read.open_text(purpose, &sealed).unwrap().expose(), "x");
        let other = Purpose::AcmeAccountKey { directory: "https://b" };
        read.open_text(other, &sealed).unwrap_err();
        let path = folder.path().join(KEY_FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = EdgeKey::open(folder.path()).unwrap_err();
        assert!(error.to_string().contains("644"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_key_is_refused_and_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(KEY_FILE);
        for text in ["", "a\n", "a\nb\n", &"x".repeat(2_000)] {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            EdgeKey::open(folder.path()).unwrap_err();
            assert_eq!(fs::read_to_string(&path).unwrap(), *text);
        }
    }
}
