//! Images made by buildah, pushed by buildah and skopeo, pulled and unpacked by the platform.
//!
//! Never compares with itself: the reference tree is the one that buildah mounts.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use perch_oci::Privilege;
use perch_types::image::Reference;

use crate::cloud::{Cloud, child, lacks, must, run};

const PROGRAMS: [&str; 5] = ["buildah", "skopeo", "mkfs.erofs", "busybox", "mount"];

struct Buildah<'a> {
    cloud: &'a Cloud,
    storage: [String; 5],
}

impl<'a> Buildah<'a> {
    fn new(cloud: &'a Cloud) -> Self {
        let text = |name: &str| cloud.path(name).to_string_lossy().into_owned();
        let storage = [
            "--root".to_owned(),
            text("buildah-root"),
            "--runroot".to_owned(),
            text("buildah-run"),
            "--storage-driver=vfs".to_owned(),
        ];
        Self { cloud, storage }
    }

    async fn call(&self, args: &[&str]) -> String {
        let all: Vec<&str> =
            self.storage.iter().map(String::as_str).chain(args.iter().copied()).collect();
        must("buildah", &all).await
    }

    /// An image of two layers; the second deletes, replaces and re-owns what the first has.
    async fn image(&self) {
        let source = self.cloud.path("source");
        make_source(&source);
        let container = self.call(&["from", "--name", "one", "scratch"]).await;
        self.call(&["copy", &container, &source.to_string_lossy(), "/"]).await;
        let root = self.call(&["mount", &container]).await;
        prepare_first(Path::new(&root)).await;
        self.call(&["unmount", &container]).await;
        let config = [
            "config",
            "--env",
            "A=b",
            "--user",
            "1000:1000",
            "--cmd",
            "/bin/busybox sh",
            "--port",
            "8080",
            "--label",
            "fly.version=7",
            "--workingdir",
            "/srv",
            &container,
        ];
        self.call(&config).await;
        self.call(&["commit", "--rm", &container, "first"]).await;
        let container = self.call(&["from", "--name", "two", "localhost/first"]).await;
        let root = self.call(&["mount", &container]).await;
        change_second(Path::new(&root)).await;
        self.call(&["unmount", &container]).await;
        self.call(&["commit", "--rm", &container, "second"]).await;
    }

    async fn push(&self, format: &str, compression: &str, tag: &str) {
        let target = format!("docker://{}/app:{tag}", self.cloud.address);
        self.call(&[
            "push",
            "--tls-verify=false",
            "--creds=alice:secret",
            "--format",
            format,
            "--compression-format",
            compression,
            "localhost/second",
            &target,
        ])
        .await;
    }
}

fn make_source(source: &Path) {
    for name in ["bin", "etc/deep/er", "srv", "gone", "opaque", "var/lib"] {
        fs::create_dir_all(source.join(name)).expect("folder");
    }
    fs::copy("/usr/bin/busybox", source.join("bin/busybox")).expect("busybox");
    for name in
        ["etc/passwd", "gone/a", "gone/b", "opaque/old", "etc/deep/er/file", "becomes-folder"]
    {
        fs::write(source.join(name), name.repeat(100)).expect("file");
    }
    fs::write(source.join("srv/name with space \u{e9}\n"), "x").expect("file");
    symlink("/etc/deep", source.join("etc/absolute")).expect("link");
    symlink("../../../../etc/passwd", source.join("etc/upwards")).expect("link");
    symlink("nowhere", source.join("dangling")).expect("link");
}

async fn prepare_first(root: &Path) {
    let at = |name: &str| root.join(name).to_string_lossy().into_owned();
    let mode = |name: &str, mode| {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).expect("mode");
    };
    must("chown", &["1000:1000", &at("srv")]).await;
    must("chown", &["-h", "65534:100", &at("dangling")]).await;
    must("chown", &["33:33", &at("etc/deep/er/file")]).await;
    fs::hard_link(root.join("bin/busybox"), root.join("bin/sh")).expect("hard link");
    mode("bin/busybox", 0o4755);
    mode("var", 0o1777);
    mode("etc/passwd", 0o600);
    let value = [1, 0, 0, 2, 0x0a, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let none = rustix::fs::XattrFlags::empty();
    let file = root.join("etc/deep/er/file");
    rustix::fs::setxattr(&file, "security.capability", &value, none).expect("capability");
}

async fn change_second(root: &Path) {
    fs::remove_dir_all(root.join("gone")).expect("remove");
    fs::remove_file(root.join("opaque/old")).expect("remove");
    fs::remove_file(root.join("becomes-folder")).expect("remove");
    fs::create_dir(root.join("becomes-folder")).expect("folder");
    fs::write(root.join("becomes-folder/inside"), "new").expect("file");
    fs::remove_dir_all(root.join("opaque")).expect("remove");
    fs::create_dir(root.join("opaque")).expect("folder");
    fs::write(root.join("opaque/new"), "new").expect("file");
    must("chown", &["5:6", &root.join("etc/passwd").to_string_lossy()]).await;
}

/// One line for each file: kind, mode, owner, links, time, link target, content, name.
async fn describe(root: &Path) -> Vec<String> {
    let script = "cd \"$0\" && find . -mindepth 1 \\( -type d -printf '%y %m %U %G %T@ %p\\0' \\) -o \
        -printf '%y %m %U %G %n %s %T@ %l %p\\0' | sort -z | tr '\\n\\0' '?\\n'; \
        find . -type f -print0 | sort -z | xargs -0 sha256sum -z | tr '\\n\\0' '?\\n'";
    let text = must("sh", &["-c", script, &root.to_string_lossy()]).await;
    text.lines().map(str::to_owned).collect()
}

struct Mounted(std::path::PathBuf);

impl Mounted {
    async fn new(erofs: &Path, at: &Path) -> Self {
        fs::create_dir_all(at).expect("folder");
        let (file, folder) = (erofs.to_string_lossy(), at.to_string_lossy());
        let direct = run("mount", &["-i", "-t", "erofs", "-o", "ro", &file, &folder]).await;
        if !direct.status.success() {
            must("mount", &["-t", "erofs", "-o", "ro,loop", &file, &folder]).await;
        }
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let status = std::process::Command::new("umount").arg(&self.0).status();
        assert!(status.is_ok_and(|status| status.success()), "unmount");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tree_is_the_one_that_buildah_sees() {
    if lacks("the_tree_is_the_one_that_buildah_sees", &PROGRAMS) {
        return;
    }
    let cloud = Cloud::start().await;
    let buildah = Buildah::new(&cloud);
    buildah.image().await;
    let container = buildah.call(&["from", "--name", "see", "localhost/second"]).await;
    let reference_root = buildah.call(&["mount", &container]).await;
    let expected = describe(Path::new(&reference_root)).await;
    assert!(expected.iter().any(|line| line.ends_with("./opaque/new")), "{expected:#?}");
    for (format, compression) in [("oci", "gzip"), ("v2s2", "gzip"), ("oci", "zstd")] {
        let tag = format!("{format}-{compression}");
        buildah.push(format, compression, &tag).await;
        let reference: Reference = format!("registry.internal/app:{tag}").parse().expect("ref");
        let mut bytes = Vec::new();
        for (name, privilege) in [("child", child()), ("process", Privilege::InProcess)] {
            let store = cloud.store(&format!("store-{tag}-{name}"), privilege).await;
            let image = store.ensure(&reference, None).await.expect("image");
            assert_eq!(image.config.user, "1000:1000");
            assert_eq!(image.config.labels.get("fly.version").map(String::as_str), Some("7"));
            let mounted =
                Mounted::new(&image.erofs, &cloud.path(&format!("mnt-{tag}-{name}"))).await;
            assert_eq!(describe(&mounted.0).await, expected, "{tag} {name}");
            let mut value = [0; 64];
            let file = mounted.0.join("etc/deep/er/file");
            let length = rustix::fs::getxattr(&file, "security.capability", &mut value[..])
                .expect("capability");
            assert_eq!(
                &value[..length],
                &[1, 0, 0, 2, 0x0a, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
            );
            bytes.push(fs::read(&image.erofs).expect("bytes"));
            let temporary = cloud.path(&format!("store-{tag}-{name}/tmp"));
            let count = |path: &Path| fs::read_dir(path).expect("folder").count();
            // The folder of layers under way, and nothing in it.
            assert_eq!((count(&temporary), count(&temporary.join("layers"))), (1, 0));
        }
        assert!(bytes[0] == bytes[1], "the same image gives the same bytes");
    }
    buildah.call(&["unmount", &container]).await;
}
