//! The registry as a value: set up, served, collected, measured.
//!
//! Never answers a request before [`Authorize`] allowed it.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Method, StatusCode};
use perch_types::Secret;
use perch_types::api::ImageInfo;
use perch_types::clock::Clock;
use perch_types::image::Digest;
use tokio::sync::RwLock;

use crate::access::{Access, Authorize, Basic, Decision};
use crate::error::Error;
use crate::limits::{AUTHORIZATION_BYTES_MAX, Limits};
use crate::reply::{Fault, answer};
use crate::route::{self, Route};
use crate::storage::Storage;
use crate::uploads::Open;
use crate::{blobs, catalog, gc, lists, manifests, uploads};

/// How a registry is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its folder; made if it is not there. One process at a time may use it.
    pub root: PathBuf,
    /// What may be stored.
    pub limits: Limits,
    /// Who may do what.
    pub authorize: Arc<dyn Authorize>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// What a collection removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GcReport {
    /// Manifests removed.
    pub manifests: u64,
    /// Blobs removed, manifests among them.
    pub blobs: u64,
    /// Uploads removed.
    pub uploads: u64,
    /// Bytes freed.
    pub bytes: u64,
}

/// What the registry takes on its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Blobs, manifests among them.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Open uploads.
    pub uploads: u64,
    /// Their bytes.
    pub upload_bytes: u64,
}

/// The registry; cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) storage: Storage,
    pub(crate) limits: Limits,
    pub(crate) authorize: Arc<dyn Authorize>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) uploads: Mutex<HashMap<String, Open>>,
    /// Held for reading by whoever relies on a blob's staying, for writing by a collection.
    pub(crate) collection: RwLock<()>,
}

impl Registry {
    /// Opens the folder and removes uploads that a former process left in it.
    ///
    /// # Errors
    /// When the folders cannot be made.
    pub async fn open(config: Config) -> Result<Self, Error> {
        let root = config.root;
        let storage = blocking(move || Storage::open(root)).await?;
        Ok(Self {
            inner: Arc::new(Inner {
                storage,
                limits: config.limits,
                authorize: config.authorize,
                clock: config.clock,
                uploads: Mutex::new(HashMap::new()),
                collection: RwLock::new(()),
            }),
        })
    }

    /// Returns the routes under `/v2/` (OCI distribution specification 1.1).
    pub fn router(&self) -> Router {
        Router::new().fallback(serve).with_state(Arc::clone(&self.inner))
    }

    /// Removes what nothing refers to and what is older than the grace time: uploads at rest,
    /// manifests without a tag that are neither in `keep` nor part of a manifest that stays, and
    /// blobs of no manifest. A blob that a push has asked about or sent within the grace time
    /// stays. Pushes wait while it runs; pulls do not.
    ///
    /// # Errors
    /// When a file cannot be read or removed; what was removed before stays so.
    pub async fn gc(&self, keep: &BTreeSet<Digest>) -> Result<GcReport, Error> {
        let uploads = uploads::expire(&self.inner);
        let guard = self.inner.collection.write().await;
        let (inner, keep) = (Arc::clone(&self.inner), keep.clone());
        let report = blocking(move || gc::collect(&inner, &keep)).await;
        drop(guard);
        Ok(GcReport { uploads, ..report? })
    }

    /// Returns what the registry takes on its disk.
    ///
    /// # Errors
    /// When a folder cannot be listed.
    pub async fn usage(&self) -> Result<Usage, Error> {
        let inner = Arc::clone(&self.inner);
        blocking(move || gc::usage(&inner)).await
    }

    /// Returns every repository that has a tag, by name.
    ///
    /// # Errors
    /// When a folder cannot be listed.
    pub async fn images(&self) -> Result<Vec<ImageInfo>, Error> {
        let inner = Arc::clone(&self.inner);
        blocking(move || catalog::images(&inner)).await
    }

    /// Removes the tags and manifests of a repository and of those below it, as when its app is
    /// deleted; their contents go with the next collection.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub async fn delete_repository(&self, repository: &str) -> Result<(), Error> {
        let Ok(name) = route::repository(repository) else {
            return Ok(());
        };
        let _guard = self.inner.collection.write().await;
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.storage.delete_repository(&name)).await
    }
}

impl Inner {
    pub(crate) async fn allow(
        &self,
        headers: &HeaderMap,
        repository: &str,
        access: Access,
    ) -> Result<(), Fault> {
        let credentials = credentials(headers);
        match self.authorize.authorize(credentials.as_ref(), repository, access).await {
            Decision::Allow => Ok(()),
            Decision::Unauthenticated => {
                Err(Fault::unauthorized("these credentials are not known here"))
            }
            Decision::Forbidden => {
                Err(Fault::denied("these credentials do not reach this repository"))
            }
        }
    }
}

/// Runs work that waits for the disk on a thread that may.
pub(crate) async fn blocking<T: Send + 'static, E: From<Error> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    tokio::task::spawn_blocking(work).await.map_err(|source| E::from(Error::Thread { source }))?
}

fn credentials(headers: &HeaderMap) -> Option<Basic> {
    let text = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = text.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") || text.len() > AUTHORIZATION_BYTES_MAX {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some(Basic { user: user.to_owned(), password: Secret::new(password) })
}

async fn serve(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let head = request.method() == Method::HEAD;
    let mut response = match dispatch(&inner, request).await {
        Ok(response) => response,
        Err(fault) => fault.into_response(),
    };
    let version = http::HeaderValue::from_static("registry/2.0");
    response.headers_mut().insert("docker-distribution-api-version", version);
    if head {
        *response.body_mut() = axum::body::Body::empty();
    }
    response
}

async fn dispatch(inner: &Arc<Inner>, request: Request) -> Result<Response, Fault> {
    let route = match route::parse(request.uri().path()) {
        Ok(route) => route,
        // Without known credentials nobody learns even which paths are well formed.
        Err(fault) => {
            let headers = request.headers().clone();
            drop(request);
            inner.allow(&headers, "", Access::Pull).await?;
            return Err(fault);
        }
    };
    let access = match *request.method() {
        Method::GET | Method::HEAD if !matches!(route, Route::Upload(..)) => Access::Pull,
        Method::DELETE if !matches!(route, Route::Upload(..)) => Access::Delete,
        _ => Access::Push,
    };
    let (method, headers) = (request.method().clone(), request.headers().clone());
    inner.allow(&headers, route.repository(), access).await?;
    match (method.as_str(), route) {
        ("GET" | "HEAD", Route::Base) => Ok(answer(
            StatusCode::OK,
            &[("content-type", "application/json".to_owned())],
            "{}".into(),
        )),
        ("GET" | "HEAD", Route::Blob(name, digest)) => {
            blobs::get(inner, &name, &digest, (&method, &headers)).await
        }
        ("DELETE", Route::Blob(name, digest)) => blobs::delete(inner, &name, &digest).await,
        ("POST", Route::Uploads(name)) => uploads::begin(inner, &name, request).await,
        ("GET" | "HEAD", Route::Upload(name, id)) => uploads::status(inner, &name, &id).await,
        ("PATCH", Route::Upload(name, id)) => uploads::append(inner, &name, &id, request).await,
        ("PUT", Route::Upload(name, id)) => uploads::finish(inner, &name, &id, request).await,
        ("DELETE", Route::Upload(name, id)) => uploads::cancel(inner, &name, &id).await,
        ("GET" | "HEAD", Route::Manifest(name, reference)) => {
            manifests::get(inner, &name, &reference, &headers).await
        }
        ("PUT", Route::Manifest(name, reference)) => {
            manifests::put(inner, name, reference, request).await
        }
        ("DELETE", Route::Manifest(name, reference)) => {
            manifests::delete(inner, name, reference).await
        }
        ("GET" | "HEAD", Route::Tags(name)) => lists::tags(inner, &name, &request),
        ("GET" | "HEAD", Route::Referrers(name, subject)) => {
            lists::referrers(inner, &name, &subject, &request)
        }
        _ => Err(Fault::unsupported("the path is known, the method is not")),
    }
}
