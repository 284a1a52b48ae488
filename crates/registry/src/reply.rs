//! Answers: error bodies with the codes of the distribution specification.
//!
//! Never shows a client what went wrong inside; that is logged here and answered as a 500.

use axum::Json;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::WWW_AUTHENTICATE;
use http::{HeaderValue, StatusCode};
use serde_json::json;

use crate::error::Error;

/// A request that is answered with an error.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The client's, with a code of the specification.
    Client { status: StatusCode, code: &'static str, message: String },
    /// Ours.
    Storage(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Storage(error)
    }
}

macro_rules! faults {
    ($($name:ident = $status:ident $code:literal;)*) => {
        impl Fault {
            $(pub(crate) fn $name(message: impl Into<String>) -> Self {
                Self::Client { status: StatusCode::$status, code: $code, message: message.into() }
            })*
        }
    };
}

faults! {
    blob_unknown = NOT_FOUND "BLOB_UNKNOWN";
    upload_invalid = BAD_REQUEST "BLOB_UPLOAD_INVALID";
    upload_range = RANGE_NOT_SATISFIABLE "BLOB_UPLOAD_INVALID";
    upload_unknown = NOT_FOUND "BLOB_UPLOAD_UNKNOWN";
    digest_invalid = BAD_REQUEST "DIGEST_INVALID";
    manifest_blob_unknown = BAD_REQUEST "MANIFEST_BLOB_UNKNOWN";
    manifest_invalid = BAD_REQUEST "MANIFEST_INVALID";
    manifest_unknown = NOT_FOUND "MANIFEST_UNKNOWN";
    name_invalid = BAD_REQUEST "NAME_INVALID";
    name_unknown = NOT_FOUND "NAME_UNKNOWN";
    size_invalid = BAD_REQUEST "SIZE_INVALID";
    too_large = PAYLOAD_TOO_LARGE "SIZE_INVALID";
    unauthorized = UNAUTHORIZED "UNAUTHORIZED";
    denied = FORBIDDEN "DENIED";
    unsupported = METHOD_NOT_ALLOWED "UNSUPPORTED";
    bad_parameter = BAD_REQUEST "UNSUPPORTED";
    too_many = TOO_MANY_REQUESTS "TOOMANYREQUESTS";
    not_found = NOT_FOUND "UNSUPPORTED";
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let (status, code, message) = match self {
            Self::Client { status, code, message } => (status, code, message),
            Self::Storage(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(error = %error, cause, "registry storage");
                let full = matches!(&error, Error::Io { source, .. }
                    if source.kind() == std::io::ErrorKind::StorageFull);
                let status = if full {
                    StatusCode::INSUFFICIENT_STORAGE
                } else {
                    StatusCode::INTERNAL_SERVER_ERROR
                };
                (status, "UNKNOWN", "the registry's storage is at fault".to_owned())
            }
        };
        let body = json!({ "errors": [{ "code": code, "message": message, "detail": null }] });
        let mut response = (status, Json(body)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Basic realm=\"perch\", charset=\"UTF-8\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// Returns an answer with these headers; a value that is no header's is a fault of ours and left
/// out.
pub(crate) fn answer(
    status: StatusCode,
    headers: &[(&'static str, String)],
    body: Body,
) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::try_from(value.as_str()) {
            response.headers_mut().insert(*name, value);
        }
    }
    response
}
