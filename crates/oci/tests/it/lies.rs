//! Registries that send something else than they promised.
//!
//! Never expects an image from one: each lie is an error with its own code, and leaves nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use perch_oci::limits::BLOB_TRIES_MAX;
use perch_oci::{Error, Limits};
use perch_types::Code;
use perch_types::image::Digest;
use tempfile::TempDir;

use crate::registry::{Registry, Reply, Seen};
use crate::shop::{Image, MANIFEST, Shelf, credentials, lacks, left_in, reference};

fn folder() -> TempDir {
    tempfile::tempdir().expect("folder")
}

/// Pulls from a registry whose answers are changed; the pull must fail and leave nothing.
async fn refused(
    image: &Image,
    change: impl Fn(&Seen, Reply) -> Reply + Send + Sync + 'static,
) -> (Error, Registry) {
    let (folder, honest) = (folder(), image.clone());
    let registry = Registry::start(move |seen| change(seen, honest.answer(seen))).await;
    let store = Shelf::new(folder.path(), registry.url()).open().await;
    let outcome = store.ensure(&reference("registry.internal/app:v1"), None).await;
    let error = outcome.expect_err("a lie");
    assert_eq!(left_in(folder.path()), Vec::<String>::new(), "{error}");
    assert_eq!(store.list().await.expect("list"), []);
    (inner(error), registry)
}

fn inner(error: Error) -> Error {
    match error {
        Error::Shared(shared) => Arc::try_unwrap(shared).expect("one caller"),
        other => other,
    }
}

fn is(seen: &Seen, digest: &Digest) -> bool {
    seen.path.ends_with(digest.as_str())
}

/// Changes the answers about one blob.
fn for_one(
    victim: Digest,
    change: impl Fn(Reply) -> Reply + Send + Sync + 'static,
) -> impl Fn(&Seen, Reply) -> Reply + Send + Sync + 'static {
    move |seen, reply| if is(seen, &victim) { change(reply) } else { reply }
}

#[tokio::test]
async fn blobs_that_are_not_what_was_promised() {
    let image = Image::small();
    for victim in [image.config.clone(), image.layers[1].clone()] {
        let length = image.blob(&victim).len();
        let asked = |registry: &Registry| registry.count("GET", victim.as_str());
        let changed = |change: fn(Reply, usize) -> Reply| {
            for_one(victim.clone(), move |reply| change(reply, length))
        };
        let config = victim == image.config;
        // As long as promised, other bytes.
        let flip = changed(|mut reply, length| {
            reply.body[length / 2] ^= 1;
            reply
        });
        let (error, registry) = refused(&image, flip).await;
        assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
        assert_eq!((error.code(), asked(&registry)), (Code::ImageInvalid, 1));
        // Longer, and says so.
        let longer =
            changed(|reply, length| Reply::new(200, [reply.body, vec![0; length]].concat()));
        let (error, registry) = refused(&image, longer).await;
        let sized = matches!(error, Error::SizeMismatch { .. } | Error::OverLimit { .. });
        assert!(sized, "{error}");
        assert_eq!((error.code(), asked(&registry)), (Code::ImageInvalid, 1));
        // Without an end, and without a word about its length.
        let endless = changed(|reply, _| Reply { says: None, endless: true, ..reply });
        let (error, _registry) = refused(&image, endless).await;
        assert!(matches!(error, Error::SizeMismatch { .. } | Error::OverLimit { .. }), "{error}");
        // Shorter, and says so.
        let shorter = changed(|reply, length| Reply::new(200, &reply.body[..length / 2]));
        let (error, registry) = refused(&image, shorter).await;
        assert_eq!(matches!(error, Error::SizeMismatch { .. }), !config, "{error}");
        assert_eq!((error.code(), asked(&registry)), (Code::ImageInvalid, 1));
    }
}

#[tokio::test]
async fn manifests_that_are_not_what_was_promised() {
    let (image, other) = (Image::small(), Image::new(&[]));
    let (honest, lie) = (image.clone(), other.clone());
    let registry = Registry::start(move |seen| match seen.path.as_str() {
        "/v2/app/manifests/huge" => Reply::new(200, vec![b' '; 5 << 20]),
        "/v2/app/manifests/endless" => {
            let reply = Reply::new(200, "{").with("content-type", MANIFEST);
            Reply { says: None, endless: true, ..reply }
        }
        "/v2/app/manifests/html" => {
            Reply::new(200, "<html>").with("content-type", "text/html; charset=utf-8")
        }
        path if path.contains("/manifests/sha256") => lie.answer(seen),
        _ => honest.answer(seen),
    })
    .await;
    let folder = folder();
    let store = Shelf::new(folder.path(), registry.url()).open().await;
    let pinned = format!("registry.internal/app:v1@{}", image.digest());
    let error = store.ensure(&reference(&pinned), None).await.expect_err("another manifest");
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    assert_eq!(registry.count("GET", "/blobs/"), 0, "nothing of it is asked for");
    for tag in ["huge", "endless"] {
        let text = format!("registry.internal/app:{tag}");
        let error = store.ensure(&reference(&text), None).await.expect_err("over the limit");
        assert!(matches!(error, Error::OverLimit { .. }), "{error}");
    }
    let error = store.ensure(&reference("registry.internal/app:html"), None).await;
    assert_eq!(error.expect_err("no manifest").code(), Code::ImageInvalid);
    // A manifest that promises more than an image may have is refused before a layer is asked for.
    let small = Limits { compressed_bytes_max: 1000, ..Limits::default() };
    let tight = Shelf { limits: small, ..Shelf::new(&folder.path().join("2"), registry.url()) };
    let error = tight.open().await.ensure(&reference("registry.internal/app:v1"), None).await;
    assert_eq!(error.expect_err("too large").code(), Code::ImageInvalid);
    assert_eq!(registry.count("GET", image.layers[0].as_str()), 0);
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_was() {
    if lacks("a_broken_transfer_goes_on_where_it_was") {
        return;
    }
    let image = Image::small();
    let (victim, honest) = (image.layers[1].clone(), image.clone());
    for parts in [true, false] {
        let (victim, honest) = (victim.clone(), honest.clone());
        let sent = Arc::new(AtomicUsize::new(0));
        let sum = Arc::clone(&sent);
        let registry = Registry::start(move |seen| {
            let mut asked = seen.clone();
            if !parts {
                asked.headers.remove("range");
            }
            let reply = honest.answer(&asked);
            if !is(seen, &victim) {
                return reply;
            }
            let reply = match seen.before {
                0 => reply.cut(20_000),
                1 => Reply::new(503, "later"),
                2 => reply.cut(15_000),
                _ => reply,
            };
            sum.fetch_add(if reply.status == 503 { 0 } else { reply.body.len() }, Ordering::SeqCst);
            reply
        })
        .await;
        let folder = folder();
        let store = Shelf::new(folder.path(), registry.url()).open().await;
        let stored = store.ensure(&reference("registry.internal/app:v1"), None).await;
        assert_eq!(stored.expect("in the end").digest, image.digest());
        assert_eq!(left_in(folder.path()), Vec::<String>::new());
        let asked: Vec<Option<usize>> = registry
            .seen()
            .iter()
            .filter(|seen| is(seen, &image.layers[1]))
            .map(Seen::start)
            .collect();
        let length = image.blob(&image.layers[1]).len();
        if parts {
            assert_eq!(asked, [None, Some(20_000), Some(20_000), Some(35_000)]);
            assert_eq!(sent.load(Ordering::SeqCst), length, "no byte twice");
        } else {
            assert_eq!(asked, [None, Some(20_000), Some(20_000), Some(15_000)]);
            assert_eq!(sent.load(Ordering::SeqCst), 35_000 + length);
        }
    }
}

#[tokio::test]
async fn a_registry_that_always_breaks_off_is_asked_so_often() {
    let image = Image::small();
    let victim = image.layers[0].clone();
    let cut = {
        let victim = victim.clone();
        move |seen: &Seen, reply: Reply| if is(seen, &victim) { reply.cut(0) } else { reply }
    };
    let (error, registry) = refused(&image, cut).await;
    assert!(matches!(error, Error::Unreachable { .. }) && error.is_transient(), "{error}");
    assert_eq!(registry.count("GET", victim.as_str()), BLOB_TRIES_MAX as usize);
    // One that takes up somewhere else is not trusted, and not asked again.
    let other = {
        let victim = victim.clone();
        move |seen: &Seen, reply: Reply| match seen.start() {
            Some(start) if is(seen, &victim) => {
                let range = format!("bytes {}-{}/*", start + 1, start + reply.body.len());
                Reply { headers: vec![("content-range", range)], ..reply }
            }
            None if is(seen, &victim) => reply.cut(5),
            _ => reply,
        }
    };
    let (error, registry) = refused(&image, other).await;
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    assert_eq!(registry.count("GET", victim.as_str()), 2);
}

#[tokio::test]
async fn redirects_are_followed_without_what_is_secret() {
    if lacks("redirects_are_followed_without_what_is_secret") {
        return;
    }
    let image = Image::small();
    let honest = image.clone();
    let storage = Registry::start(move |seen| honest.answer(seen)).await;
    let (elsewhere, honest) = (storage.url(), image.clone());
    let registry = Registry::start(move |seen| {
        if seen.header("authorization").is_empty() {
            return Reply::new(401, "").with("www-authenticate", "Basic realm=\"x\"");
        }
        if seen.path.contains("/blobs/") {
            let to = format!("{elsewhere}/store{}", seen.path);
            return Reply::new(307, "").with("location", to);
        }
        honest.answer(seen)
    })
    .await;
    let folder = folder();
    let store = Shelf::new(folder.path(), registry.url()).open().await;
    let pulled = store.ensure(&reference("registry.internal/app:v1"), Some(&credentials())).await;
    assert_eq!(pulled.expect("image").digest, image.digest());
    let seen = storage.seen();
    assert_eq!(seen.len(), 3, "{seen:?}");
    for request in &seen {
        assert_eq!(request.header("authorization"), "", "{request:?}");
        assert_eq!(request.header("cookie"), "");
    }
    let shown = registry.seen().iter().filter(|s| !s.header("authorization").is_empty()).count();
    assert_eq!(shown, 4, "the registry itself is shown them");
}

#[tokio::test]
async fn redirects_end() {
    let image = Image::small();
    let (error, registry) = refused(&image, |seen, reply| {
        if seen.path.contains("/blobs/") {
            let to = format!("{}x", seen.path);
            Reply::new(302, "").with("location", to)
        } else {
            reply
        }
    })
    .await;
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    let most = perch_oci::limits::REDIRECTS_MAX + 1;
    assert_eq!(registry.count("GET", "/blobs/"), most, "the configuration's blob, and no other");
}
