//! Several pulls at once: one download for all, and nobody's trouble is another's.
//!
//! Never relies on who is first: the registry holds answers back until all have come.

use std::sync::Arc;
use std::time::Duration;

use perch_oci::limits::BLOB_TRIES_MAX;
use perch_oci::{Credentials, Error, ImageStore};
use perch_types::Secret;
use perch_types::image::Digest;
use tempfile::TempDir;
use tokio::sync::Semaphore;

use crate::registry::{Registry, Reply, Seen};
use crate::shop::{Image, Shelf, lacks, left_in, noise, reference, tar};

const APP: &str = "registry.internal/app:v1";
const OTHER: &str = "registry.internal/other:v1";

struct Setting {
    folder: TempDir,
    registry: Registry,
    store: ImageStore,
}

async fn setting(handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Setting {
    let folder = tempfile::tempdir().expect("folder");
    let registry = Registry::start(handler).await;
    let store = Shelf::new(folder.path(), registry.url()).open().await;
    Setting { folder, registry, store }
}

/// A registry that begins every blob of an image and goes on when the gate is open.
async fn setting_of(image: &Image, gate: &Arc<Semaphore>) -> Setting {
    let (honest, held) = (image.clone(), Arc::clone(gate));
    setting(move |seen| {
        let reply = honest.answer(seen);
        if seen.path.contains("/blobs/") { reply.held(1, &held) } else { reply }
    })
    .await
}

type Task = tokio::task::JoinHandle<Result<perch_oci::StoredImage, Error>>;

fn pull(store: &ImageStore, text: &str, user: Option<&str>) -> Task {
    let (store, reference) = (store.clone(), reference(text));
    let credentials =
        user.map(|user| Credentials { user: user.to_owned(), password: Secret::new("secret") });
    tokio::spawn(async move { store.ensure(&reference, credentials.as_ref()).await })
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Open for all.
const OPEN: usize = 1000;

#[tokio::test]
async fn callers_share_a_pull_and_one_may_leave() {
    if lacks("callers_share_a_pull_and_one_may_leave") {
        return;
    }
    let (image, gate) = (Image::small(), Arc::new(Semaphore::new(0)));
    let setting = setting_of(&image, &gate).await;
    let first = pull(&setting.store, APP, None);
    setting.registry.wait_for("GET", "/blobs/").await;
    let others: Vec<Task> = (0..5).map(|_| pull(&setting.store, APP, None)).collect();
    until("all have asked", || setting.registry.count("GET", "/manifests/") == 6).await;
    // The one that began it no longer waits.
    first.abort();
    assert!(first.await.expect_err("aborted").is_cancelled());
    gate.add_permits(OPEN);
    for other in others {
        assert_eq!(other.await.expect("task").expect("image").digest, image.digest());
    }
    for blob in image.layers.iter().chain([&image.config]) {
        assert_eq!(setting.registry.count("GET", blob.as_str()), 1, "{blob}");
    }
    assert_eq!(left_in(setting.folder.path()), Vec::<String>::new());
}

#[tokio::test]
async fn a_pull_goes_on_when_nobody_waits() {
    if lacks("a_pull_goes_on_when_nobody_waits") {
        return;
    }
    let (image, gate) = (Image::small(), Arc::new(Semaphore::new(0)));
    let setting = setting_of(&image, &gate).await;
    let only = pull(&setting.store, APP, None);
    setting.registry.wait_for("GET", "/blobs/").await;
    only.abort();
    gate.add_permits(OPEN);
    let path = setting.folder.path().join("store/images").join(image.digest().hex());
    until("the image comes", || path.exists()).await;
}

#[tokio::test]
async fn anothers_credentials_or_repository_are_not_ones_own() {
    if lacks("anothers_credentials_or_repository_are_not_ones_own") {
        return;
    }
    let image = Image::small();
    let gate = Arc::new(Semaphore::new(0));
    let (honest, held) = (image.clone(), Arc::clone(&gate));
    // `mallory` may read manifests; `bWFsbG9yeT` begins her name and password.
    let setting = setting(move |seen| {
        let blob = seen.path.contains("/blobs/");
        match seen.header("authorization") {
            "" => Reply::new(401, "{}").with("www-authenticate", "Basic realm=\"x\""),
            text if blob && text.contains("bWFsbG9yeT") => Reply::new(403, "{}").held(0, &held),
            _ if blob && seen.path.starts_with("/v2/other/") => Reply::new(404, "{}"),
            _ if blob => honest.answer(seen).held(1, &held),
            _ => honest.answer(seen),
        }
    })
    .await;
    let bad = pull(&setting.store, APP, Some("mallory"));
    setting.registry.wait_for("GET", "/blobs/").await;
    let good: Vec<Task> = (0..2).map(|_| pull(&setting.store, APP, Some("alice"))).collect();
    let elsewhere = pull(&setting.store, OTHER, Some("alice"));
    until("all have asked", || setting.registry.count("GET", "/manifests/") == 4).await;
    gate.add_permits(OPEN);
    let error = bad.await.expect("task").expect_err("not hers");
    assert!(error.to_string().contains("refused the credentials"), "{error}");
    for task in good {
        assert_eq!(task.await.expect("task").expect("image").digest, image.digest());
    }
    // Whether it came before or after the image was there is not the point: no failure is shared.
    drop(elsewhere.await.expect("task"));
}

/// Two images with a layer in common.
fn relatives() -> (Image, Image) {
    let base = tar("base", &noise(3, 100_000));
    (Image::new(&[base.clone(), tar("one", b"1")]), Image::new(&[base, tar("two", b"2")]))
}

/// Begins a pull, and another once the common layer is on its way; then opens the gate.
async fn pull_both(
    setting: &Setting,
    gate: &Semaphore,
    base: &Digest,
    two: &Image,
) -> (Task, Task) {
    let first = pull(&setting.store, APP, None);
    setting.registry.wait_for("GET", base.as_str()).await;
    let second = pull(&setting.store, OTHER, None);
    // Its other layer is here: it waits for the common one.
    setting.registry.wait_for("GET", two.layers[1].as_str()).await;
    gate.add_permits(OPEN);
    (first, second)
}

#[tokio::test]
async fn a_common_layer_is_fetched_once() {
    if lacks("a_common_layer_is_fetched_once") {
        return;
    }
    let (one, two) = relatives();
    let (base, gate) = (one.layers[0].clone(), Arc::new(Semaphore::new(0)));
    let (a, b, held, common) = (one.clone(), two.clone(), Arc::clone(&gate), base.clone());
    let setting = setting(move |seen| {
        let image = if seen.path.starts_with("/v2/app/") { &a } else { &b };
        let reply = image.answer(seen);
        if seen.path.contains(common.as_str()) { reply.held(50_000, &held) } else { reply }
    })
    .await;
    let (first, second) = pull_both(&setting, &gate, &base, &two).await;
    assert_eq!(first.await.expect("task").expect("image").digest, one.digest());
    assert_eq!(second.await.expect("task").expect("image").digest, two.digest());
    assert_eq!(setting.registry.count("GET", base.as_str()), 1);
    let asked = format!("/v2/other/blobs/{base}");
    assert_eq!(setting.registry.count("HEAD", &asked), 1, "its own right to it was asked for");
    assert_eq!(left_in(setting.folder.path()), Vec::<String>::new());
}

#[tokio::test]
async fn a_common_layer_is_not_given_to_whom_the_registry_refuses_it() {
    if lacks("a_common_layer_is_not_given_to_whom_the_registry_refuses_it") {
        return;
    }
    let (one, two) = relatives();
    let (base, gate) = (one.layers[0].clone(), Arc::new(Semaphore::new(0)));
    let (a, b, held, common) = (one.clone(), two.clone(), Arc::clone(&gate), base.clone());
    let setting = setting(move |seen| {
        let own = seen.path.starts_with("/v2/app/");
        let is_base = seen.path.contains(common.as_str());
        match (own, is_base) {
            (false, true) => Reply::new(404, "{}"),
            (true, true) => a.answer(seen).held(50_000, &held),
            (true, false) => a.answer(seen),
            (false, false) => b.answer(seen),
        }
    })
    .await;
    let (first, second) = pull_both(&setting, &gate, &base, &two).await;
    first.await.expect("task").expect("image");
    let error = second.await.expect("task").expect_err("not its own");
    assert!(error.to_string().contains("no such image"), "{error}");
}

#[tokio::test]
async fn whoever_waits_for_a_layer_fetches_it_when_the_other_gives_up() {
    if lacks("whoever_waits_for_a_layer_fetches_it_when_the_other_gives_up") {
        return;
    }
    let (one, two) = relatives();
    let (base, gate) = (one.layers[0].clone(), Arc::new(Semaphore::new(0)));
    let (a, b, held, common) = (one.clone(), two.clone(), Arc::clone(&gate), base.clone());
    let setting = setting(move |seen| {
        let own = seen.path.starts_with("/v2/app/");
        if own && seen.path.contains(common.as_str()) {
            return a.answer(seen).cut(0).held(0, &held);
        }
        if own { a.answer(seen) } else { b.answer(seen) }
    })
    .await;
    let (first, second) = pull_both(&setting, &gate, &base, &two).await;
    let error = first.await.expect("task").expect_err("always broken off");
    assert!(error.is_transient(), "{error}");
    assert_eq!(second.await.expect("task").expect("image").digest, two.digest());
    let asked = |name: &str| setting.registry.count("GET", &format!("/v2/{name}/blobs/{base}"));
    assert_eq!((asked("app"), asked("other")), (BLOB_TRIES_MAX as usize, 1));
    assert_eq!(left_in(setting.folder.path()), Vec::<String>::new());
}
