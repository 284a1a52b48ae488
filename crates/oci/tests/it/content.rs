//! Layers that would do harm, pulled the whole way through the unpacking child.
//!
//! Never looks at single functions: what counts is the image at the end, or that there is none.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;

use perch_oci::{Error, ImageStore, Limits, Privilege, StoredImage};
use tar::{EntryType, Header};
use tempfile::TempDir;

use crate::registry::Registry;
use crate::shop::{Image, Shelf, child, lacks, left_in, reference, tar};

fn header(kind: EntryType, name: &str, link: &str, size: usize) -> Header {
    let mut header = Header::new_gnu();
    let bytes = header.as_mut_bytes();
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    bytes[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header.set_size(size as u64);
    header.set_cksum();
    header
}

/// Returns one entry with any name, `..` included.
fn entry(kind: EntryType, name: &str, link: &str, content: &[u8]) -> Vec<u8> {
    let mut all = header(kind, name, link, content.len()).as_bytes().to_vec();
    all.extend_from_slice(content);
    all.resize(all.len().next_multiple_of(512), 0);
    all
}

fn file(name: &str) -> Vec<u8> {
    entry(EntryType::Regular, name, "", name.as_bytes())
}

fn with_mode(mut entry: Vec<u8>, mode: u32) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.as_mut_bytes().copy_from_slice(&entry[..512]);
    header.set_mode(mode);
    header.set_cksum();
    entry[..512].copy_from_slice(header.as_bytes());
    entry
}

/// Returns a PAX header with extended attributes for the entry that follows.
fn attributes(pairs: &[(&str, &[u8])]) -> Vec<u8> {
    let mut records = Vec::new();
    for (name, value) in pairs {
        let body = 1 + "SCHILY.xattr.".len() + name.len() + 1 + value.len() + 1;
        let length = (1..5).map(|digits| body + digits).find(|n| n.to_string().len() + body == *n);
        records.extend_from_slice(length.expect("length").to_string().as_bytes());
        records.extend_from_slice(format!(" SCHILY.xattr.{name}=").as_bytes());
        records.extend_from_slice(value);
        records.push(b'\n');
    }
    entry(EntryType::XHeader, "pax", "", &records)
}

struct Setting {
    folder: TempDir,
    _registry: Registry,
    store: ImageStore,
}

impl Setting {
    async fn new(image: &Image, privilege: Privilege, limits: Limits) -> Self {
        let (folder, honest) = (tempfile::tempdir().expect("folder"), image.clone());
        let registry = Registry::start(move |seen| honest.answer(seen)).await;
        let shelf = Shelf::new(folder.path(), registry.url());
        let store = Shelf { privilege, limits, ..shelf }.open().await;
        Self { folder, _registry: registry, store }
    }

    async fn pull(&self) -> Result<StoredImage, Error> {
        let outcome = self.store.ensure(&reference("registry.internal/app:v1"), None).await;
        assert_eq!(left_in(self.folder.path()), Vec::<String>::new());
        outcome
    }
}

async fn pull_in_child(layers: &[Vec<u8>]) -> Result<StoredImage, Error> {
    Setting::new(&Image::new(layers), child(), Limits::default()).await.pull().await
}

#[tokio::test]
async fn bombs_end_at_their_limit() {
    if lacks("bombs_end_at_their_limit") {
        return;
    }
    const MIB: usize = 1024 * 1024;
    let zeros = tar("zeros", &vec![0; 32 * MIB]);
    // What follows the archive's end counts as well: it is unpacked to be hashed.
    let tail = [tar("small", b"x"), vec![0; 32 * MIB]].concat();
    let several: Vec<Vec<u8>> =
        (0..6).map(|n| tar(&format!("zeros-{n}"), &vec![n; 4 * MIB])).collect();
    let ratio = Limits { ratio_free_bytes: MIB as u64, ratio_max: 50, ..Limits::default() };
    let size = Limits { uncompressed_bytes_max: 20 * MIB as u64, ..Limits::default() };
    let table = [
        ("the ratio", vec![zeros.clone()], ratio.clone()),
        ("the ratio", vec![tail], ratio),
        ("the unpacked size", vec![zeros], size.clone()),
        ("the unpacked size", several, size),
    ];
    for (what, layers, limits) in table {
        let image = Image::new(&layers);
        for privilege in [child(), Privilege::InProcess] {
            let setting = Setting::new(&image, privilege, limits.clone()).await;
            let error = setting.pull().await.expect_err("a bomb");
            assert!(error.to_string().contains(what), "{error}");
            assert_eq!(setting.store.list().await.expect("list"), []);
        }
    }
}

#[tokio::test]
async fn layers_that_reach_out_are_refused() {
    if lacks("layers_that_reach_out_are_refused") {
        return;
    }
    let outside = tempfile::tempdir().expect("folder");
    let victim = outside.path().join("victim");
    fs::write(&victim, "before").expect("file");
    // The child's own user may write here, if it gets here.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(outside.path(), open).expect("mode");
    let (folder, text) = (outside.path().to_str().expect("text"), victim.to_str().expect("text"));
    let layers = [
        file("../../../../../../../tmp/x"),
        file("a/../../x"),
        entry(EntryType::Link, "h", text, b""),
        entry(EntryType::Link, "h", "../../../etc/passwd", b""),
        [entry(EntryType::Symlink, "out", folder, b""), file("out/victim")].concat(),
        [entry(EntryType::Symlink, "p", "/proc/self/cwd/..", b""), file("p/x")].concat(),
        [
            entry(EntryType::Symlink, "out", folder, b""),
            entry(EntryType::Link, "h", "out/victim", b""),
        ]
        .concat(),
    ];
    for layer in layers {
        let error = pull_in_child(&[layer]).await.expect_err("refused");
        assert!(matches!(&error, Error::Shared(inner) if matches!(**inner, Error::Invalid { .. })));
    }
    let names: Vec<_> = fs::read_dir(outside.path()).expect("folder").collect();
    assert_eq!(names.len(), 1);
    assert_eq!(fs::read_to_string(&victim).expect("file"), "before");
}

struct Mounted(std::path::PathBuf);

impl Mounted {
    fn new(erofs: &Path, at: &Path) -> Self {
        fs::create_dir_all(at).expect("folder");
        let mount = |options: &str| {
            let mut command = Command::new("mount");
            command.args(["-i", "-t", "erofs", "-o", options]).arg(erofs).arg(at);
            command.output().expect("mount")
        };
        if !mount("ro").status.success() {
            let output = mount("ro,loop");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(&self.0).status();
        assert!(status.is_ok_and(|status| status.success()), "unmount");
    }
}

#[tokio::test]
async fn what_is_left_of_an_odd_layer() {
    if lacks("what_is_left_of_an_odd_layer") {
        return;
    }
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let below = [
        file("gone"),
        file("folder/old"),
        with_mode(file("setuid"), 0o6755),
        entry(EntryType::Char, "dev/null", "", b""),
        entry(EntryType::Block, "dev/sda", "", b""),
        entry(EntryType::Fifo, "fifo", "", b""),
        entry(EntryType::Symlink, "absolute", "/etc/shadow", b""),
        entry(EntryType::Symlink, "upwards", "../../../../etc/shadow", b""),
        attributes(&[
            ("user.mine", b"kept\n1"),
            ("security.capability", &capability),
            ("trusted.overlay.opaque", b"y"),
            ("trusted.overlay.redirect", b"/etc"),
            ("security.selinux", b"x"),
            ("system.posix_acl_access", b"\x02\0\0\0"),
        ]),
        file("attributes"),
    ];
    let above = [file(".wh.gone"), file("folder/.wh..wh..opq"), file("folder/new")];
    let image = Image::new(&[below.concat(), above.concat()]);
    let setting = Setting::new(&image, child(), Limits::default()).await;
    let stored = setting.pull().await.expect("image");
    let mounted = Mounted::new(&stored.erofs, &setting.folder.path().join("mnt"));
    let at = |name: &str| mounted.0.join(name);
    for name in ["gone", ".wh.gone", "folder/old", "folder/.wh..wh..opq", "dev/null", "fifo"] {
        assert!(fs::symlink_metadata(at(name)).is_err(), "{name}");
    }
    assert!(at("folder/new").is_file());
    let setuid = fs::metadata(at("setuid")).expect("file");
    assert_eq!((setuid.mode() & 0o7777, setuid.uid()), (0o6755, 0));
    for (name, target) in [("absolute", "/etc/shadow"), ("upwards", "../../../../etc/shadow")] {
        assert_eq!(fs::read_link(at(name)).expect("link").to_str(), Some(target));
    }
    let value = |name: &str| {
        let mut bytes = [0; 64];
        let length = rustix::fs::getxattr(at("attributes"), name, &mut bytes[..]).ok()?;
        Some(bytes[..length].to_vec())
    };
    assert_eq!(value("user.mine").as_deref(), Some(&b"kept\n1"[..]));
    assert_eq!(value("security.capability").as_deref(), Some(&capability[..]));
    for name in ["trusted.overlay.opaque", "trusted.overlay.redirect", "system.posix_acl_access"] {
        assert_eq!(value(name), None, "{name}");
    }
    let special = |entry: fs::DirEntry| {
        let kind = entry.file_type().expect("type");
        kind.is_char_device() || kind.is_block_device() || kind.is_fifo()
    };
    assert!(!fs::read_dir(&mounted.0).expect("root").any(|entry| special(entry.expect("entry"))));
}
