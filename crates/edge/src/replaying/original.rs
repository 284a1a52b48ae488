//! A request as it was before it was sent, so that it can be sent again.
//!
//! Never more of its body than is kept.

use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Uri, Version};

use crate::cause::Cause;
use crate::forward::{Outbound, Switch};
use crate::upload::{Keeper, Progress};

/// What a request was before it was sent.
pub(crate) struct Original {
    method: Method,
    pub(super) path: PathAndQuery,
    pub(super) headers: HeaderMap,
    pub(super) body: Keeper,
    progress: Progress,
    takes_trailers: bool,
}

impl Original {
    pub(crate) fn of(outbound: &Outbound) -> Self {
        let request = &outbound.request;
        let path = request.uri().path_and_query();
        Self {
            method: request.method().clone(),
            path: path.cloned().unwrap_or_else(|| PathAndQuery::from_static("/")),
            headers: request.headers().clone(),
            body: request.body().keeper(),
            progress: outbound.progress.clone(),
            takes_trailers: outbound.takes_trailers,
        }
    }

    /// Returns the request once more; an error when too much of its body has passed.
    pub(crate) fn again(&self, switch: Option<Switch>) -> Result<Box<Outbound>, Cause> {
        let body = self.body.again().ok_or(Cause::ReplayTooLarge)?;
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = Uri::from(self.path.clone());
        *request.headers_mut() = self.headers.clone();
        *request.version_mut() = Version::HTTP_11;
        Ok(Box::new(Outbound {
            request,
            progress: self.progress.clone(),
            switch,
            takes_trailers: self.takes_trailers,
        }))
    }
}
