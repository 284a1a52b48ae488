//! The pulling process killed at every step: what is left never passes for an image, and the next
//! pull ends as if nothing had been.
//!
//! Never lets the killed process tidy up: it gets SIGKILL.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::sync::Semaphore;

use crate::registry::{Registry, Seen};
use crate::shop::{Image, Shelf, child, lacks, left_in, noise, puller, reference, tar};

const REFERENCE: &str = "registry.internal/app:v1";
/// At how many moments of a whole pull the process is killed.
const MOMENTS: u32 = 16;

/// The pulling process; killed with the test.
struct Puller(Child);

impl Puller {
    fn start(root: &Path, url: &str) -> Self {
        let mut command = Command::new(puller());
        command.arg(root.join("store")).args([url, REFERENCE]).stdout(Stdio::null());
        Self(command.spawn().expect("puller"))
    }

    fn kill(&mut self) {
        self.0.kill().expect("kill");
        self.0.wait().expect("wait");
    }
}

impl Drop for Puller {
    fn drop(&mut self) {
        // Already gone in every test that passes.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// An image whose unpacking takes long enough to be hit.
fn image() -> Image {
    let mut builder = tar::Builder::new(Vec::new());
    for number in 0..400_u32 {
        let content = noise(u64::from(number) + 7, 10_000);
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1);
        let name = format!("d{}/f{number}", number % 17);
        builder.append_data(&mut header, name, content.as_slice()).expect("tar");
    }
    Image::new(&[tar("base", b"base"), builder.into_inner().expect("tar")])
}

/// Returns the bytes that the image has when nothing goes wrong.
async fn undisturbed(image: &Image) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("folder");
    let honest = image.clone();
    let registry = Registry::start(move |seen| honest.answer(seen)).await;
    let shelf = Shelf { privilege: child(), ..Shelf::new(folder.path(), registry.url()) };
    let stored = shelf.open().await.ensure(&reference(REFERENCE), None).await.expect("image");
    fs::read(stored.erofs).expect("erofs")
}

/// Opens what a killed process left, looks at it and pulls again.
async fn recovers(folder: &TempDir, image: &Image, expected: &[u8], step: &str) {
    let honest = image.clone();
    let registry = Registry::start(move |seen| honest.answer(seen)).await;
    let shelf = Shelf { privilege: child(), ..Shelf::new(folder.path(), registry.url()) };
    let store = shelf.open().await;
    assert_eq!(left_in(folder.path()), Vec::<String>::new(), "{step}");
    for found in store.list().await.expect("list") {
        assert!(fs::read(&found.erofs).expect("erofs") == expected, "{step}: half an image");
    }
    let stored = store.ensure(&reference(REFERENCE), None).await.expect(step);
    assert!(fs::read(&stored.erofs).expect("erofs") == expected, "{step}: another image");
    assert_eq!(left_in(folder.path()), Vec::<String>::new(), "{step}");
    let images = fs::read_dir(folder.path().join("store/images")).expect("images").count();
    assert_eq!(images, 1, "{step}");
}

/// Tells whether a process works in a folder.
fn someone_works_in(folder: &Path) -> bool {
    let processes = fs::read_dir("/proc").expect("proc").filter_map(Result::ok);
    let mut folders = processes.filter_map(|entry| fs::read_link(entry.path().join("cwd")).ok());
    folders.any(|cwd| cwd.starts_with(folder))
}

async fn nobody_works_in(folder: &Path, step: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while someone_works_in(folder) {
        assert!(Instant::now() < deadline, "{step}: the unpacking child outlives its parent");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_the_registry_sends() {
    if lacks("killed_while_the_registry_sends") {
        return;
    }
    let image = image();
    let expected = undisturbed(&image).await;
    let steps = [
        ("/manifests/", 0),
        ("/manifests/", 100),
        (image.config.as_str(), 10),
        (image.layers[0].as_str(), 20),
        (image.layers[1].as_str(), 0),
        (image.layers[1].as_str(), 3_000_000),
    ];
    let folder = tempfile::tempdir().expect("folder");
    for (part, at) in steps {
        let (honest, held) = (image.clone(), part.to_owned());
        let registry = Registry::start(move |seen: &Seen| {
            let reply = honest.answer(seen);
            let gate = Arc::new(Semaphore::new(0));
            if seen.path.contains(&held) { reply.held(at, &gate) } else { reply }
        })
        .await;
        let mut process = Puller::start(folder.path(), &registry.url());
        registry.wait_for("GET", part).await;
        // Until what was sent is on the disk, where there is something to see.
        let layers = folder.path().join("store/tmp/layers");
        let deadline = Instant::now() + Duration::from_secs(20);
        let size = || -> u64 {
            let entries = fs::read_dir(&layers).into_iter().flatten().filter_map(Result::ok);
            entries.filter_map(|entry| entry.metadata().ok()).map(|data| data.len()).sum()
        };
        while part.starts_with("sha256") && at > 1_000_000 && size() < 1_000_000 {
            assert!(Instant::now() < deadline, "{part} {at}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        process.kill();
        drop(registry);
    }
    // Six times killed in the same store, and opened once in between each time by the next.
    recovers(&folder, &image, &expected, "while the registry sends").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_it_unpacks_and_stores() {
    if lacks("killed_while_it_unpacks_and_stores") {
        return;
    }
    let image = image();
    let expected = undisturbed(&image).await;
    // What to wait for in the work folder, and at last in the folder of images.
    let steps = [
        ("the tree is made", Some("tree")),
        ("a first file is unpacked", Some("tree/base")),
        ("half is unpacked", Some("tree/d3/f20")),
        ("the file system begins", Some("rootfs.erofs")),
        ("the record is written", Some("config.json")),
        ("the image is there", None),
    ];
    let names = |folder: &Path| {
        let entries = fs::read_dir(folder).into_iter().flatten();
        entries.filter_map(Result::ok).map(|entry| entry.path())
    };
    let reached = |root: &Path, wanted: Option<&str>| match wanted {
        Some(wanted) => names(&root.join("store/tmp")).any(|work| work.join(wanted).exists()),
        None => names(&root.join("store/images")).next().is_some(),
    };
    for (step, wanted) in steps {
        let (folder, honest) = (tempfile::tempdir().expect("folder"), image.clone());
        let registry = Registry::start(move |seen| honest.answer(seen)).await;
        let mut process = Puller::start(folder.path(), &registry.url());
        // A step that is over before it was seen is seen at the next; the pull's end ends the wait.
        while !reached(folder.path(), wanted) && process.0.try_wait().expect("wait").is_none() {
            std::hint::spin_loop();
        }
        process.kill();
        // At once, as a supervisor would: the child may still be dying.
        recovers(&folder, &image, &expected, step).await;
        nobody_works_in(folder.path(), step).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment() {
    if lacks("killed_at_any_moment") {
        return;
    }
    let image = image();
    let expected = undisturbed(&image).await;
    let honest = image.clone();
    let registry = Registry::start(move |seen| honest.answer(seen)).await;
    let whole = tempfile::tempdir().expect("folder");
    let began = Instant::now();
    let status = Puller::start(whole.path(), &registry.url()).0.wait().expect("wait");
    assert!(status.success());
    let took = began.elapsed();
    let folder = tempfile::tempdir().expect("folder");
    for moment in 0..MOMENTS {
        let mut process = Puller::start(folder.path(), &registry.url());
        tokio::time::sleep(took * moment / MOMENTS).await;
        process.kill();
    }
    // Killed again and again without a look in between: nothing has piled up.
    let entries = fs::read_dir(folder.path().join("store/tmp")).expect("tmp").count();
    assert!(entries <= 3, "{entries} left by {MOMENTS} processes");
    recovers(&folder, &image, &expected, "at any moment").await;
    nobody_works_in(folder.path(), "at any moment").await;
}
