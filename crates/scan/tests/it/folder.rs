//! Source folders on disk: links, huge files, deep trees.
//!
//! Never outside of a temporary folder.

use std::fs;
use std::os::unix::fs::symlink;

use perch_scan::{FILE_BYTES_MAX, Files as _, Folder, Kind, scan};

#[test]
fn a_link_out_of_the_folder_is_seen_and_never_read() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("Dockerfile"), "FROM a\nEXPOSE 1\n").unwrap();
    let folder = tempfile::tempdir().unwrap();
    symlink(outside.path().join("Dockerfile"), folder.path().join("Dockerfile")).unwrap();
    symlink(outside.path(), folder.path().join("up")).unwrap();
    symlink("nowhere", folder.path().join("app.py")).unwrap();
    symlink(".", folder.path().join("loop")).unwrap();
    fs::write(folder.path().join("real.php"), "<?php").unwrap();
    symlink("real.php", folder.path().join("index.php")).unwrap();

    let files = Folder::open(folder.path()).unwrap();
    let kinds: Vec<_> = files.entries().iter().map(|it| (it.path.as_str(), it.kind)).collect();
    assert_eq!(
        kinds,
        [
            ("Dockerfile", Kind::Other),
            ("app.py", Kind::Other),
            ("index.php", Kind::File),
            ("loop", Kind::Folder),
            ("real.php", Kind::File),
            ("up", Kind::Other),
        ]
    );
    assert_eq!(files.read("Dockerfile"), None);
    assert_eq!(files.read("../Dockerfile"), None);
    assert_eq!(scan(&files).unwrap().family, perch_scan::Family::Php);
}

#[test]
fn a_huge_file_is_read_to_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let mut text = "# filler\n".repeat(FILE_BYTES_MAX / 8);
    text.push_str("flask\n");
    fs::write(folder.path().join("requirements.txt"), text).unwrap();
    fs::write(folder.path().join("app.py"), "app = Flask(__name__)").unwrap();
    let files = Folder::open(folder.path()).unwrap();
    assert_eq!(files.read("requirements.txt").unwrap().len(), FILE_BYTES_MAX);
    scan(&files).unwrap_err();
}

#[test]
fn other_peoples_code_is_not_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("vendor/lib")).unwrap();
    fs::write(folder.path().join("vendor/lib/index.php"), "").unwrap();
    fs::create_dir_all(folder.path().join("a/b/c/d/e")).unwrap();
    let files = Folder::open(folder.path()).unwrap();
    let paths: Vec<_> = files.entries().iter().map(|it| it.path.as_str()).collect();
    assert_eq!(paths, ["a", "a/b", "a/b/c", "a/b/c/d", "vendor"]);
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let error = Folder::open(std::path::Path::new("/nowhere/at/all")).unwrap_err();
    assert_eq!(error.to_string(), "read the folder `/nowhere/at/all`");
}
