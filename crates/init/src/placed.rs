//! Files that the configuration puts into the machine.
//!
//! Never follows a link in a file's own place, never writes where the kernel only shows files, and
//! never lets a program start without a file that it was promised.

use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use perch_types::guest::{CODE_NOT_EXECUTABLE, GuestFile};
use rustix::fs::{
    AtFlags, Mode, OFlags, ResolveFlags, fchmod, fstat, mkdirat, openat, openat2, renameat,
    unlinkat,
};
use rustix::io::Errno;

use crate::program::Refusal;

/// The name of a file while it is written.
const NEW: &str = ".perch-new";
/// What the kernel or the platform mounts: nothing can be kept there.
const NOT_FILES: [&str; 3] = ["proc", "sys", "dev"];

/// Writes all files below `root`, in their order.
pub(crate) fn write(root: &Path, files: &[GuestFile]) -> Result<(), Refusal> {
    if files.is_empty() {
        return Ok(());
    }
    let opened = rustix::fs::open(root, FOLDER, Mode::empty());
    let refuse = |path: &str, error: &io::Error| {
        Refusal::new(CODE_NOT_EXECUTABLE, format!("write file `{path}`: {error}"))
    };
    let opened = opened.map_err(|error| refuse("/", &error.into()))?;
    for file in files {
        write_one(&opened, file).map_err(|error| refuse(&file.path, &error))?;
    }
    Ok(())
}

const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn write_one(root: &OwnedFd, file: &GuestFile) -> io::Result<()> {
    let path = Path::new(&file.path);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::other("this is no path of a file"));
    };
    let content = BASE64.decode(file.content.expose()).map_err(io::Error::other)?;
    let folder = make_folder(root, parent)?;
    if is_not_for_files(root, &folder)? {
        return Err(io::Error::other("the folder is not one for files"));
    }
    match unlinkat(&folder, NEW, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // Nobody reads it before it has its permissions.
    let new = openat(&folder, NEW, flags, Mode::RUSR | Mode::WUSR)?;
    let mut new = std::fs::File::from(new);
    let written = new.write_all(&content).and_then(|()| {
        fchmod(&new, Mode::from_raw_mode(file.mode))?;
        Ok(renameat(&folder, NEW, &folder, name)?)
    });
    if written.is_err() {
        // What went wrong first is what counts.
        unlinkat(&folder, NEW, AtFlags::empty()).ok();
    }
    written
}

/// Opens a folder below `root`, making it and its parents as needed; for every link on the way
/// `root` is the root.
fn make_folder(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut done = PathBuf::from("/");
    let mut folder = openat2(root, "/", FOLDER, Mode::empty(), resolve)?;
    for part in path.components() {
        let name = match part {
            Component::Normal(name) => name,
            Component::RootDir | Component::CurDir => continue,
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::Error::other("the path leads upwards"));
            }
        };
        done.push(name);
        folder = match openat2(root, &done, FOLDER, Mode::empty(), resolve) {
            Ok(found) => found,
            Err(Errno::NOENT) => {
                mkdirat(&folder, name, Mode::from_raw_mode(0o755))?;
                openat2(root, &done, FOLDER, Mode::empty(), resolve)?
            }
            Err(error) => return Err(error.into()),
        };
    }
    Ok(folder)
}

/// Returns whether a folder, to which a link may have led, lies on a file system that keeps no
/// files.
fn is_not_for_files(root: &OwnedFd, folder: &OwnedFd) -> io::Result<bool> {
    let device = fstat(folder)?.st_dev;
    if device == fstat(root)?.st_dev {
        return Ok(false);
    }
    Ok(NOT_FILES.iter().any(|name| {
        rustix::fs::statat(root, *name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|found| found.st_dev == device)
    }))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use perch_types::Secret;

    use super::*;

    fn file(path: &str, text: &str, mode: u32) -> GuestFile {
        let content = Secret::new(BASE64.encode(text));
        GuestFile { path: path.to_owned(), content, mode }
    }

    #[test]
    fn a_file_gets_its_parents_content_and_permissions_and_takes_the_place_of_a_link() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        fs::write(at("kept"), "mine").unwrap();
        fs::create_dir(at("etc")).unwrap();
        symlink("../kept", at("etc/app.conf")).unwrap();
        let files = [
            file("/etc/app.conf", "colour = green\n", 0o640),
            file("/opt/deep/er/run.sh", "#!/bin/sh\n", 0o755),
            file("/empty", "", 0o444),
        ];
        write(root.path(), &files).unwrap();
        write(root.path(), &files).unwrap();
        assert_eq!(fs::read_to_string(at("kept")).unwrap(), "mine");
        for (path, text, mode) in [
            ("etc/app.conf", "colour = green\n", 0o640),
            ("opt/deep/er/run.sh", "#!/bin/sh\n", 0o755),
            ("empty", "", 0o444),
        ] {
            let found = fs::symlink_metadata(at(path)).unwrap();
            assert!(found.is_file(), "{path}");
            assert_eq!(found.permissions().mode() & 0o7777, mode, "{path}");
            assert_eq!(fs::read_to_string(at(path)).unwrap(), text);
        }
        assert!(!at("etc/.perch-new").exists());
    }

    #[test]
    fn links_on_the_way_stay_below_the_root() {
        let outside = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        let inside = root.path().join(outside.path().strip_prefix("/").unwrap());
        symlink(outside.path(), root.path().join("data")).unwrap();
        fs::create_dir_all(&inside).unwrap();
        write(root.path(), &[file("/data/note", "here", 0o600)]).unwrap();
        assert!(!outside.path().join("note").exists());
        assert_eq!(fs::read_to_string(inside.join("note")).unwrap(), "here");
    }

    #[test]
    fn what_cannot_be_written_is_refused_with_its_path() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("folder")).unwrap();
        fs::write(root.path().join("plain"), "").unwrap();
        symlink("/folder/../../..", root.path().join("up")).unwrap();
        for path in ["/", "/folder", "/plain/below", "/a/../../b"] {
            let refusal = write(root.path(), &[file(path, "x", 0o644)]).unwrap_err();
            assert!(refusal.reason.contains(&format!("`{path}`")), "{}", refusal.reason);
        }
        write(root.path(), &[file("/up/still-inside", "x", 0o644)]).unwrap();
        assert!(root.path().join("still-inside").exists());
        let bad = GuestFile { content: Secret::new("%"), ..file("/x", "", 0o644) };
        assert!(write(root.path(), &[bad]).is_err());
    }
}
