//! Tokens and credentials: who is asked, who is shown what.
//!
//! Never lets a test's credentials through unseen: every request that any server gets is looked at.

use perch_oci::{Endpoint, Error};
use perch_types::Code;
use serde_json::json;

use crate::registry::{Registry, Reply, Seen};
use crate::shop::{Image, Shelf, credentials, lacks, left_in, reference};

/// `alice:secret`.
const BASIC: &str = "Basic YWxpY2U6c2VjcmV0";

fn challenge(realm: &str) -> Reply {
    let value =
        format!("Bearer realm=\"{realm}\",service=\"the service\",scope=\"repository:x:push\"");
    Reply::new(401, "{}").with("www-authenticate", value)
}

/// A registry that wants a token of its own server; tokens are good for so many requests.
async fn with_tokens(image: &Image, uses: usize) -> Registry {
    let image = image.clone();
    let state = std::sync::Mutex::new((0_usize, 0_usize));
    Registry::start_knowing(|address| {
        let realm = format!("http://{address}/token");
        move |seen: &Seen| {
            let mut state = state.lock().expect("state");
            if seen.path.starts_with("/token") {
                *state = (state.0 + 1, 0);
                return Reply::new(200, json!({ "token": format!("t{}", state.0) }).to_string());
            }
            let good = seen.header("authorization") == format!("Bearer t{}", state.0);
            if !good || state.1 >= uses {
                return challenge(&realm);
            }
            state.1 += 1;
            image.answer(seen)
        }
    })
    .await
}

#[tokio::test]
async fn the_dance_ends_with_the_image() {
    if lacks("the_dance_ends_with_the_image") {
        return;
    }
    let image = Image::small();
    for (uses, shown) in [(usize::MAX, false), (usize::MAX, true), (2, true)] {
        let registry = with_tokens(&image, uses).await;
        let folder = tempfile::tempdir().expect("folder");
        let store = Shelf::new(folder.path(), registry.url()).open().await;
        let own = shown.then(credentials);
        let pulled = store.ensure(&reference("registry.internal/team/app:v1"), own.as_ref()).await;
        assert_eq!(pulled.expect("image").digest, image.digest());
        let tokens: Vec<Seen> =
            registry.seen().into_iter().filter(|s| s.path.starts_with("/token")).collect();
        assert!(tokens.len() == if uses == 2 { 2 } else { 1 }, "{tokens:?}");
        for request in tokens {
            assert_eq!(
                request.path, "/token?service=the+service&scope=repository%3Ateam%2Fapp%3Apull",
                "what is asked for is this repository, whatever the challenge says"
            );
            assert_eq!(request.header("authorization"), if shown { BASIC } else { "" });
        }
        let basic = registry
            .seen()
            .iter()
            .filter(|seen| seen.path.starts_with("/v2/") && seen.header("authorization") == BASIC)
            .count();
        assert_eq!(basic, usize::from(shown), "only before the registry said what it wants");
    }
}

#[tokio::test]
async fn token_servers_that_lie() {
    let long = "x".repeat(100 << 10);
    let answers = [
        (200, "{}".to_owned(), Code::ImageInvalid),
        (200, "no json".to_owned(), Code::ImageInvalid),
        (200, json!({ "token": "" }).to_string(), Code::ImageInvalid),
        (200, json!({ "token": "a\r\nx-evil: b" }).to_string(), Code::ImageInvalid),
        (200, json!({ "token": long }).to_string(), Code::ImageInvalid),
        (401, "{}".to_owned(), Code::ImageUnavailable),
        (404, "{}".to_owned(), Code::ImageUnknown),
        (500, "broken".to_owned(), Code::ImageUnavailable),
        // A token that the registry then does not take.
        (200, json!({ "access_token": "useless" }).to_string(), Code::ImageUnavailable),
    ];
    for (status, text, code) in answers {
        let said = text.chars().take(40).collect::<String>();
        let registry = Registry::start_knowing(|address| {
            let realm = format!("http://{address}/token");
            move |seen: &Seen| match seen.path.starts_with("/token") {
                true => Reply::new(status, text.clone()),
                false => challenge(&realm),
            }
        })
        .await;
        let folder = tempfile::tempdir().expect("folder");
        let store = Shelf::new(folder.path(), registry.url()).open().await;
        let outcome =
            store.ensure(&reference("registry.internal/app:v1"), Some(&credentials())).await;
        let error = outcome.expect_err("no token");
        assert_eq!(error.code(), code, "{said}: {error}");
        let count = registry.seen().len();
        assert!(count <= 3, "asked, a token, asked again, and no more: {count}");
        let text = format!("{error} {error:?}");
        assert!(!text.contains("secret") && !text.contains("YWxpY2"), "{text}");
        assert_eq!(left_in(folder.path()), Vec::<String>::new());
    }
}

#[tokio::test]
async fn another_host_is_not_shown_credentials() {
    let stranger = Registry::start(|_| Reply::new(200, json!({ "token": "t" }).to_string())).await;
    let realm = format!("{}/token", stranger.url());
    let registry = Registry::start(move |_| challenge(&realm)).await;
    let folder = tempfile::tempdir().expect("folder");
    let mut shelf = Shelf::new(folder.path(), registry.url());
    // The operator's credentials are for the registry, not for whom it points to.
    shelf.endpoints.push((
        "mirror.example".to_owned(),
        Endpoint { base_url: registry.url(), credentials: Some(credentials()) },
    ));
    let store = shelf.open().await;
    for (text, own) in
        [("registry.internal/app:v1", Some(credentials())), ("mirror.example/app:v1", None)]
    {
        let error = store.ensure(&reference(text), own.as_ref()).await.expect_err("refused");
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
    }
    assert!(stranger.seen().is_empty(), "{:?}", stranger.seen());
    // Without credentials there is nothing to give away.
    let error = store.ensure(&reference("registry.internal/app:v1"), None).await;
    assert!(matches!(error, Err(Error::NotAuthorized { .. })), "{error:?}");
    assert_eq!(stranger.seen().len(), 1);
    assert_eq!(stranger.seen()[0].header("authorization"), "");
}

#[tokio::test]
async fn a_token_server_that_redirects_takes_no_credentials_along() {
    let stranger = Registry::start(|_| Reply::new(200, json!({ "token": "t" }).to_string())).await;
    let to = format!("{}/token", stranger.url());
    let registry = Registry::start_knowing(|address| {
        let realm = format!("http://{address}/token");
        move |seen: &Seen| {
            if seen.path.starts_with("/token") {
                Reply::new(302, "").with("location", to.clone())
            } else {
                challenge(&realm)
            }
        }
    })
    .await;
    let folder = tempfile::tempdir().expect("folder");
    let store = Shelf::new(folder.path(), registry.url()).open().await;
    let own = credentials();
    let outcome = store.ensure(&reference("registry.internal/app:v1"), Some(&own)).await;
    outcome.expect_err("the token is a stranger's");
    assert_eq!(stranger.seen().len(), 1);
    assert_eq!(stranger.seen()[0].header("authorization"), "");
}

#[tokio::test]
async fn a_registry_that_wants_a_password_gets_the_callers() {
    let registry =
        Registry::start(|_| Reply::new(401, "{}").with("www-authenticate", "Basic realm=\"x\""))
            .await;
    let folder = tempfile::tempdir().expect("folder");
    let store = Shelf::new(folder.path(), registry.url()).open().await;
    let app = reference("registry.internal/app:v1");
    for own in [None, Some(credentials())] {
        let error = store.ensure(&app, own.as_ref()).await.expect_err("refused");
        assert!(matches!(error, Error::NotAuthorized { status: 401, .. }), "{error}");
    }
    let shown: Vec<String> =
        registry.seen().iter().map(|seen| seen.header("authorization").to_owned()).collect();
    assert_eq!(shown, ["", BASIC], "and not the same once more");
}
