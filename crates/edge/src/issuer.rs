//! Documents of the platform itself at a host name of its own.
//!
//! Never makes one: whoever starts the edge does. They are for everybody.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{Method, Response};
use tokio::runtime::Handle;

use crate::body::ReplyBody;
use crate::cause::Cause;

/// How long others may keep a document.
const KEPT: &str = "public, max-age=300";

/// Documents of JSON by their path.
#[async_trait]
pub trait Documents: Send + Sync + fmt::Debug {
    /// Returns a document; nothing when there is none of the path.
    async fn get(&self, path: &str) -> Option<Vec<u8>>;
}

/// What is served at one host name.
#[derive(Debug, Clone)]
pub struct Issuer {
    /// The host name, in lower case.
    pub host: String,
    /// What is there.
    pub documents: Arc<dyn Documents>,
}

impl Issuer {
    /// Answers a request to the host name. The documents are made on `runtime`, where what they
    /// are made of lives.
    pub(crate) async fn answer(
        &self,
        runtime: &Handle,
        request: &Parts,
    ) -> Result<Response<ReplyBody>, Cause> {
        if request.method != Method::GET && request.method != Method::HEAD {
            return Err(Cause::UnknownHost);
        }
        let (documents, path) = (Arc::clone(&self.documents), request.uri.path().to_owned());
        let made = runtime.spawn(async move { documents.get(&path).await }).await;
        let document = made.ok().flatten().ok_or(Cause::UnknownHost)?;
        let mut response = Response::new(ReplyBody::page(Bytes::from(document)));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static(KEPT));
        Ok(response)
    }
}
