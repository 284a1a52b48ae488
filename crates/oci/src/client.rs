//! A pull client for any registry that speaks the OCI distribution specification.
//!
//! Never follows a reference to a private address that the operator did not name, never sends
//! credentials to another host over plain HTTP, and never reads an answer without a limit. Written
//! on plain HTTP rather than on a registry library because those read manifests and token answers
//! of any size and follow the URLs that a layer brings along.

mod blob;
mod challenge;
mod guard;
mod token;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use perch_types::Secret;
use perch_types::image::{DEFAULT_REGISTRY, Digest, Reference};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, WWW_AUTHENTICATE};
use reqwest::{Method, Response, StatusCode, Url};
use sha2::{Digest as _, Sha256};

use crate::error::Error;
use crate::limits::{ANSWER_BYTES_MAX, ANSWER_TIMEOUT, CONFIG_BYTES_MAX, MANIFEST_BYTES_MAX};
use crate::manifest::{self, Descriptor, Manifest, Refusal};
use challenge::Challenge;

/// Where Docker Hub's API really is.
const DOCKER_HUB_URL: &str = "https://registry-1.docker.io";
/// How much of a registry's error text is kept.
const ERROR_TEXT_CHARS_MAX: usize = 300;

/// A name and a password for a registry.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The name.
    pub user: String,
    /// The password or token.
    pub password: Secret,
}

/// Where a registry really is.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Scheme, host and port: `http://127.0.0.1:5000`.
    pub base_url: String,
    /// What to show it when a caller has nothing of its own.
    pub credentials: Option<Credentials>,
}

/// How to reach registries.
#[derive(Debug, Clone, Default)]
pub struct ClientConfig {
    /// Real endpoints by the registry's name in references, first of all
    /// [`perch_types::image::PLATFORM_REGISTRY`].
    pub endpoints: BTreeMap<String, Endpoint>,
    /// Whether registries outside [`Self::endpoints`] may be at private or loopback addresses.
    pub allow_private_addresses: bool,
}

/// A pull client; cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    /// For registries that the operator named.
    named: reqwest::Client,
    /// For all others.
    guarded: reqwest::Client,
    config: Arc<ClientConfig>,
}

/// An image whose manifest was read and found in order.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The digest of the image's own manifest.
    pub digest: Digest,
    /// The digest of the index that led to it.
    pub index: Option<Digest>,
    /// Its configuration.
    pub config: Descriptor,
    /// Its layers, the lowest first.
    pub layers: Vec<Descriptor>,
    session: Arc<Session>,
}

#[derive(Debug)]
struct Session {
    http: reqwest::Client,
    /// Whether the operator named the registry.
    named: bool,
    base: Url,
    reference: Reference,
    credentials: Option<Credentials>,
    /// The last `Authorization` that a challenge led to.
    authorization: Mutex<Option<Secret>>,
    /// Held while a challenge is answered.
    authenticating: tokio::sync::Mutex<()>,
}

impl Client {
    /// Returns a client.
    ///
    /// # Errors
    /// When TLS cannot be set up or an endpoint is not a URL.
    pub fn new(config: ClientConfig) -> Result<Self, Error> {
        for (registry, endpoint) in &config.endpoints {
            parse_base(registry, &endpoint.base_url)?;
        }
        let make = |guarded| guard::client(guarded).map_err(|source| Error::Client { source });
        let named = make(false)?;
        let guarded = make(!config.allow_private_addresses)?;
        Ok(Self { named, guarded, config: Arc::new(config) })
    }

    /// Reads the manifest that a reference names, through an index if it is one. A caller's
    /// credentials go before the endpoint's.
    ///
    /// # Errors
    /// As [`Error`] tells apart.
    pub async fn resolve(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
    ) -> Result<Resolved, Error> {
        let session = Arc::new(self.session(reference, credentials)?);
        let wanted = reference.digest().map(Digest::as_str);
        let name = wanted.or_else(|| reference.tag()).unwrap_or_default();
        let (digest, found) = session.manifest(name, reference.digest()).await?;
        let (digest, index, found) = match found {
            Manifest::Index(entries) => {
                let entry = manifest::pick(&entries).map_err(|e| session.refuse(e))?;
                let (inner, found) =
                    session.manifest(entry.digest.as_str(), Some(&entry.digest)).await?;
                (inner, Some(digest), found)
            }
            image @ Manifest::Image { .. } => (digest, None, image),
        };
        let Manifest::Image { config, layers } = found else {
            return Err(Error::invalid(reference, "its index names another index"));
        };
        Ok(Resolved { digest, index, config, layers, session })
    }

    fn session(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
    ) -> Result<Session, Error> {
        let registry = reference.registry();
        let endpoint = self.config.endpoints.get(registry);
        let base = match endpoint {
            Some(endpoint) => parse_base(registry, &endpoint.base_url)?,
            None if registry == DEFAULT_REGISTRY => parse_base(registry, DOCKER_HUB_URL)?,
            None => parse_base(registry, &format!("https://{registry}"))?,
        };
        if endpoint.is_none() && !self.config.allow_private_addresses && guard::is_private(&base) {
            return Err(Error::invalid(reference, "its registry is at a private address"));
        }
        let http = if endpoint.is_some() { &self.named } else { &self.guarded };
        let credentials =
            credentials.cloned().or_else(|| endpoint.and_then(|e| e.credentials.clone()));
        // A registry that the operator named gets its credentials without being asked first.
        let known = if endpoint.is_some() { credentials.as_ref().map(basic) } else { None };
        Ok(Session {
            http: http.clone(),
            named: endpoint.is_some(),
            base,
            reference: reference.clone(),
            credentials,
            authorization: Mutex::new(known),
            authenticating: tokio::sync::Mutex::new(()),
        })
    }
}

impl Resolved {
    /// Returns the configuration's bytes, verified.
    ///
    /// # Errors
    /// As [`Error`] tells apart.
    pub async fn config_bytes(&self) -> Result<Vec<u8>, Error> {
        let session = &self.session;
        let path = format!("blobs/{}", self.config.digest);
        let response = session.get(&path, "*/*").await?;
        let bytes = session.body(response, self.config.size.min(CONFIG_BYTES_MAX)).await?;
        session.verify(&bytes, &self.config.digest)?;
        Ok(bytes)
    }

    /// Tells whether the operator named the registry that the image lies in.
    pub(crate) fn is_named(&self) -> bool {
        self.session.named
    }

    /// Returns the address of the registry that the image lies in.
    pub(crate) fn registry(&self) -> &str {
        self.session.base.as_str()
    }

    /// Returns what tells apart from where, and for whom, an image is read: callers with the same
    /// text get the same answers.
    pub(crate) fn source(&self) -> String {
        let Session { base, reference, credentials, .. } = &*self.session;
        let shown = credentials.as_ref().map(|pair| {
            let pair = Sha256::digest(basic(pair).expose());
            Digest::from_sha256(&pair.into()).to_string()
        });
        format!("{base}{} {}", reference.repository(), shown.unwrap_or_default())
    }
}

impl Session {
    fn boxed(&self) -> Box<Reference> {
        Box::new(self.reference.clone())
    }

    fn refuse(&self, refusal: Refusal) -> Error {
        match refusal {
            Refusal::Invalid(reason) => Error::Invalid { reference: self.boxed(), reason },
            Refusal::OverLimit { what, limit } => Error::over(&self.reference, what, limit),
        }
    }

    fn unreachable(&self, error: reqwest::Error) -> Error {
        Error::Unreachable { reference: self.boxed(), source: Box::new(error.without_url()) }
    }

    async fn manifest(
        &self,
        name: &str,
        expected: Option<&Digest>,
    ) -> Result<(Digest, Manifest), Error> {
        let work = async {
            let response = self.get(&format!("manifests/{name}"), manifest::ACCEPT).await?;
            let header = response.headers().get(CONTENT_TYPE);
            let content_type = header.and_then(|v| v.to_str().ok()).map(str::to_owned);
            let bytes = self.body(response, MANIFEST_BYTES_MAX).await?;
            Ok::<_, Error>((content_type, bytes))
        };
        let (content_type, bytes) = self.timed(work).await?;
        let digest = match expected {
            Some(expected) => self.verify(&bytes, expected).map(|()| expected.clone())?,
            None => Digest::from_sha256(&Sha256::digest(&bytes).into()),
        };
        let found = manifest::parse(&bytes, content_type.as_deref()).map_err(|e| self.refuse(e))?;
        Ok((digest, found))
    }

    fn verify(&self, bytes: &[u8], expected: &Digest) -> Result<(), Error> {
        let actual = Digest::from_sha256(&Sha256::digest(bytes).into());
        if actual == *expected {
            return Ok(());
        }
        Err(Error::DigestMismatch { reference: self.boxed(), expected: expected.clone(), actual })
    }

    async fn timed<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        tokio::time::timeout(ANSWER_TIMEOUT, work).await.unwrap_or_else(|_| {
            let reference = self.boxed();
            Err(Error::Timeout { reference, operation: "pull", limit: ANSWER_TIMEOUT })
        })
    }

    /// Gets a path of the repository.
    async fn get(&self, path: &str, accept: &'static str) -> Result<Response, Error> {
        self.send(Method::GET, path, &[(ACCEPT, accept.to_owned())]).await
    }

    /// Sends one request, and once more when the registry says how to authenticate.
    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, String)],
    ) -> Result<Response, Error> {
        let url = format!("{}v2/{}/{path}", self.base, self.reference.repository());
        for attempt in 0..2 {
            let mut request = self.http.request(method.clone(), &url);
            for (name, value) in headers {
                request = request.header(name, value);
            }
            let shown = self.authorization();
            if let Some(value) = &shown {
                request = request.header(AUTHORIZATION, value.expose());
            }
            let response = request.send().await.map_err(|e| self.unreachable(e))?;
            if response.status() == StatusCode::UNAUTHORIZED && attempt == 0 {
                let header = response.headers().get(WWW_AUTHENTICATE);
                let header = header.and_then(|value| value.to_str().ok()).unwrap_or_default();
                if self.authenticate(challenge::parse(header), shown.as_ref()).await? {
                    continue;
                }
            }
            return self.checked(response).await;
        }
        Err(Error::NotAuthorized { reference: self.boxed(), status: 401 })
    }

    async fn checked(&self, response: Response) -> Result<Response, Error> {
        let reference = self.boxed();
        match response.status() {
            status if status.is_success() => Ok(response),
            StatusCode::NOT_FOUND => Err(Error::Unknown { reference }),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                Err(Error::NotAuthorized { reference, status: status.as_u16() })
            }
            status => {
                let body = self.body(response, ANSWER_BYTES_MAX).await.unwrap_or_default();
                let text = String::from_utf8_lossy(&body);
                let text = text.trim().chars().take(ERROR_TEXT_CHARS_MAX).collect();
                Err(Error::Answer { reference, status: status.as_u16(), text })
            }
        }
    }

    fn authorization(&self) -> Option<Secret> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gets what a challenge to a request that has shown this asks for; returns whether there is
    /// something new to show. Requests of the same time share what the first of them gets.
    async fn authenticate(
        &self,
        challenge: Option<Challenge>,
        shown: Option<&Secret>,
    ) -> Result<bool, Error> {
        let _turn = self.authenticating.lock().await;
        if self.authorization().as_ref() != shown {
            return Ok(true);
        }
        let value = match (challenge, &self.credentials) {
            (Some(Challenge::Basic), Some(credentials)) => basic(credentials),
            (Some(Challenge::Bearer { realm, service }), credentials) => {
                let token = self.token(&realm, service.as_deref(), credentials.as_ref()).await?;
                Secret::new(format!("Bearer {token}"))
            }
            _ => return Ok(false),
        };
        let mut known = self.authorization.lock().unwrap_or_else(PoisonError::into_inner);
        let new = known.as_ref() != Some(&value);
        *known = Some(value);
        Ok(new)
    }

    async fn body(&self, mut response: Response, limit: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.unreachable(e))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > limit {
                return Err(Error::over(&self.reference, "an answer of its registry", limit));
            }
        }
        Ok(bytes)
    }
}

fn basic(credentials: &Credentials) -> Secret {
    let pair = format!("{}:{}", credentials.user, credentials.password.expose());
    Secret::new(format!("Basic {}", STANDARD.encode(pair)))
}

fn parse_base(registry: &str, text: &str) -> Result<Url, Error> {
    let fault = || Error::Endpoint { registry: registry.to_owned(), url: text.to_owned() };
    let url = Url::parse(text).map_err(|_| fault())?;
    let plain = url.path() == "/" && url.query().is_none() && url.username().is_empty();
    if plain && matches!(url.scheme(), "http" | "https") && url.has_host() {
        Ok(url)
    } else {
        Err(fault())
    }
}
