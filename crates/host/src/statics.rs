//! Files of a machine's image, served whether the machine runs or not.
//!
//! Never the writable layer, never anything but a plain file, and never outside the image's tree:
//! every link on the way is followed as if that tree were all there is.

use std::fs::File;
use std::path::Path;

use perch_types::machine_config::StaticConfig;
use perch_types::{ApiError, Code, MachineId};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::Host;

/// The largest file.
pub(crate) const STATIC_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// How many digits of a hash tell two contents of a path apart.
const TAG_DIGITS: usize = 32;

/// A file that was found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) file: File,
    pub(crate) bytes: u64,
    /// Its name, by which its type is told.
    pub(crate) name: String,
    /// The same for the same content.
    pub(crate) tag: String,
}

impl Host {
    /// Opens the file that the path of a request leads to.
    ///
    /// # Errors
    /// [`Code::NotFound`] when there is none.
    pub(crate) async fn static_file(&self, id: &MachineId, path: &str) -> Result<Found, ApiError> {
        let machine = self.get(id)?;
        let image = self.shared.effects.images.mount(&machine.image_ref).await;
        let root = image.map_err(|fault| fault.error)?.root;
        let digest = machine.image_ref.digest.map(String::from).unwrap_or_default();
        let (statics, path) = (machine.config.statics, path.to_owned());
        let opened = tokio::task::spawn_blocking(move || open(&root, &digest, &statics, &path));
        let opened = opened.await.map_err(|_| fault("the read was given up"))?;
        opened.map_err(|errno| match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG | Errno::INVAL => {
                ApiError::new(Code::NotFound, "there is no such file")
            }
            errno => fault(&format!("open a file of the image: {errno}")),
        })
    }
}

fn fault(text: &str) -> ApiError {
    ApiError::new(Code::Internal, text)
}

/// Returns the entry with the longest prefix of a path, and what follows it.
fn entry<'a, 'b>(
    statics: &'a [StaticConfig],
    path: &'b str,
) -> Option<(&'a StaticConfig, &'b str)> {
    let all = statics.iter().filter_map(|one| Some((one, one.rest_of(path)?)));
    all.max_by_key(|(one, _)| one.url_prefix.trim_end_matches('/').len())
}

fn open(root: &Path, digest: &str, statics: &[StaticConfig], path: &str) -> Result<Found, Errno> {
    let (one, rest) = entry(statics, path).ok_or(Errno::NOENT)?;
    if rest.split('/').any(|part| matches!(part, "." | "..")) || rest.contains('\0') {
        return Err(Errno::NOENT);
    }
    let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, folder, Mode::empty())?;
    let wanted = Path::new(&one.guest_path).join(rest.trim_end_matches('/'));
    match open_file(&root, &wanted) {
        Err(Errno::ISDIR) if !one.index_document.is_empty() => {
            let wanted = wanted.join(&one.index_document);
            open_file(&root, &wanted).map(|found| name(found, &wanted, digest))
        }
        // A path that ends with a slash is a folder's.
        Ok(_) if rest.ends_with('/') => Err(Errno::NOENT),
        Err(Errno::ISDIR) => Err(Errno::NOENT),
        opened => opened.map(|found| name(found, &wanted, digest)),
    }
}

/// Opens a plain file below `root`.
fn open_file(root: &impl std::os::fd::AsFd, path: &Path) -> Result<(File, u64), Errno> {
    // A pipe of the image must not hold this up.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let opened = openat2(root, path, flags, Mode::empty(), resolve)?;
    let found = rustix::fs::fstat(&opened)?;
    let bytes = u64::try_from(found.st_size).unwrap_or(u64::MAX);
    match FileType::from_raw_mode(found.st_mode) {
        FileType::RegularFile if bytes <= STATIC_BYTES_MAX => Ok((File::from(opened), bytes)),
        FileType::Directory => Err(Errno::ISDIR),
        _ => Err(Errno::NOENT),
    }
}

fn name((file, bytes): (File, u64), path: &Path, digest: &str) -> Found {
    let mut hash = Sha256::new();
    hash.update(digest);
    hash.update([0]);
    hash.update(path.as_os_str().as_encoded_bytes());
    let mut tag = format!("{:x}", hash.finalize());
    tag.truncate(TAG_DIGITS);
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    Found { file, bytes, name, tag }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read as _;
    use std::os::unix::fs::symlink;

    use super::*;

    fn statics() -> Vec<StaticConfig> {
        serde_json::from_str(
            r#"[{"guest_path": "/app/public", "url_prefix": "/static/", "index_document": "index.html"},
                {"guest_path": "/app/docs", "url_prefix": "/static/docs"}]"#,
        )
        .unwrap()
    }

    #[test]
    fn files_of_the_image_are_found_and_nothing_else() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "host").unwrap();
        let tree = tempfile::tempdir().unwrap();
        let at = |path: &str| tree.path().join(path);
        fs::create_dir_all(at("app/public/deep")).unwrap();
        fs::create_dir_all(at("app/docs")).unwrap();
        fs::create_dir_all(at("data")).unwrap();
        fs::write(at("app/public/a.css"), "css").unwrap();
        fs::write(at("app/public/index.html"), "index").unwrap();
        fs::write(at("app/docs/b.txt"), "docs").unwrap();
        fs::write(at("data/linked"), "linked").unwrap();
        fs::write(at("secret"), "of the image").unwrap();
        symlink("/data/linked", at("app/public/link")).unwrap();
        symlink(outside.path().join("secret"), at("app/public/host")).unwrap();
        symlink("../../../../../../secret", at("app/public/up")).unwrap();
        symlink("/proc/self/environ", at("app/public/environ")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("app/public/pipe"),
            FileType::Fifo,
            Mode::from_raw_mode(0o644),
            0,
        )
        .unwrap();
        for (path, want) in [
            ("/static/a.css", Some("css")),
            ("/static/link", Some("linked")),
            ("/static/docs/b.txt", Some("docs")),
            ("/static", Some("index")),
            ("/static/", Some("index")),
            // The image's own, whatever the link says.
            ("/static/up", Some("of the image")),
            ("/static/a.css/", None),
            ("/static/deep/", None),
            ("/static/docs/", None),
            ("/static/none", None),
            ("/static/host", None),
            ("/static/environ", None),
            ("/static/pipe", None),
            ("/static/../../secret", None),
            ("/static/deep/../../../secret", None),
            ("/other", None),
        ] {
            let found = open(tree.path(), "sha256:1", &statics(), path);
            let text = found.ok().map(|mut found| {
                let mut text = String::new();
                found.file.read_to_string(&mut text).unwrap();
                assert_eq!(found.bytes, text.len() as u64);
                text
            });
            assert_eq!(text.as_deref(), want, "{path}");
        }
    }

    #[test]
    fn another_image_or_path_is_another_tag() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir_all(tree.path().join("app/public")).unwrap();
        for name in ["a", "b"] {
            fs::write(tree.path().join("app/public").join(name), name).unwrap();
        }
        let tag = |digest, path| open(tree.path(), digest, &statics(), path).unwrap().tag;
        assert_eq!(tag("1", "/static/a"), tag("1", "/static/a"));
        assert_ne!(tag("1", "/static/a"), tag("2", "/static/a"));
        assert_ne!(tag("1", "/static/a"), tag("1", "/static/b"));
    }
}
