use std::collections::BTreeMap;
use std::os::unix::fs::symlink;

use super::*;

fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

/// Returns what is in a packed context: kind, then content or target.
fn unpacked(context: Context) -> BTreeMap<String, String> {
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(context.file));
    tar.entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_str().unwrap().to_owned();
            let content = match entry.header().entry_type() {
                EntryType::Directory => "folder".to_owned(),
                EntryType::Symlink => {
                    format!("-> {}", entry.link_name().unwrap().unwrap().display())
                }
                EntryType::Regular => {
                    let mut text = String::new();
                    entry.read_to_string(&mut text).unwrap();
                    format!("{:o} {text}", entry.header().mode().unwrap())
                }
                other => format!("{other:?}"),
            };
            (path, content)
        })
        .collect()
}

fn pack(folder: &Path, keep: &[&str]) -> Context {
    Listing::of(folder, None, keep).unwrap().pack().unwrap()
}

#[test]
fn ignored_files_stay_out_and_the_dockerfile_comes_along() {
    let folder = tree(&[
        (".dockerignore", "*\n!src\nsrc/*.log\n"),
        ("Dockerfile", "FROM a"),
        ("secret", "x"),
        ("src/a.py", "a"),
        ("src/b.log", "b"),
        ("deep/er/x", "x"),
    ]);
    let context = pack(folder.path(), &["Dockerfile", ".dockerignore"]);
    assert_eq!(context.bytes, 6 + 17 + 1);
    assert_eq!(context.entries, 4);
    let names: Vec<String> = unpacked(context).into_keys().collect();
    assert_eq!(names, [".dockerignore", "Dockerfile", "src", "src/a.py"]);
}

#[test]
fn f8_links_travel_as_links_and_are_never_followed() {
    let outside = tree(&[("secret", "do not send"), ("folder/secret", "neither")]);
    let folder = tree(&[("a", "a")]);
    symlink(outside.path().join("secret"), folder.path().join("file")).unwrap();
    symlink(outside.path().join("folder"), folder.path().join("folder")).unwrap();
    symlink("a", folder.path().join("inside")).unwrap();
    symlink("nowhere", folder.path().join("broken")).unwrap();
    symlink(".", folder.path().join("loop")).unwrap();
    let found = unpacked(pack(folder.path(), &[]));
    assert_eq!(found["inside"], "-> a");
    assert_eq!(found["broken"], "-> nowhere");
    assert_eq!(found["loop"], "-> .");
    assert!(found["file"].starts_with("-> /"));
    assert!(found.values().all(|content| !content.contains("do not send")));
    assert_eq!(found.len(), 6);
}

#[test]
fn modes_are_kept_and_special_files_are_named() {
    let folder = tree(&[("run.sh", "#!/bin/sh"), ("a", "")]);
    fs::set_permissions(folder.path().join("run.sh"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::set_permissions(folder.path().join("a"), fs::Permissions::from_mode(0o640)).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(folder.path().join("sock")).unwrap();
    let context = pack(folder.path(), &[]);
    assert_eq!(context.skipped, ["sock"]);
    let found = unpacked(context);
    assert_eq!(found["run.sh"], "755 #!/bin/sh");
    assert_eq!(found["a"], "640 ");
}

#[test]
fn long_names_and_empty_folders_arrive() {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    let folder = tree(&[(&long, "x")]);
    fs::create_dir(folder.path().join("empty")).unwrap();
    let found = unpacked(pack(folder.path(), &[]));
    assert_eq!(found[&long], "644 x");
    assert_eq!(found["empty"], "folder");
}

#[test]
fn a_file_that_became_a_link_is_refused() {
    let folder = tree(&[("a", "a")]);
    let listing = Listing::of(folder.path(), None, &[]).unwrap();
    fs::remove_file(folder.path().join("a")).unwrap();
    symlink("/etc/hostname", folder.path().join("a")).unwrap();
    let error = listing.pack().unwrap_err();
    assert!(matches!(error, ContextError::Read { .. }), "{error}");
}

#[test]
fn an_ignore_file_that_was_named_must_be_there() {
    let folder = tree(&[("a", "a")]);
    let error = Listing::of(folder.path(), Some("other.ignore"), &[]).unwrap_err();
    assert!(error.to_string().ends_with("other.ignore`"));
}

#[test]
fn sizes_are_readable() {
    let words: Vec<String> = [0, 999, 12_345, 3_450_000, 2_000_000_000].map(size_in_words).into();
    assert_eq!(words, ["0 bytes", "999 bytes", "12 kB", "3.4 MB", "2.0 GB"]);
}
