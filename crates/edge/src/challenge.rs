//! Answers those who want proof over plain HTTP that a name leads here (RFC 8555, section 8.3).
//!
//! Never stands in the way of an app: a path that nobody asked for is the app's.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{Method, Response};

use crate::Shared;
use crate::body::ReplyBody;
use crate::peer::Peer;

const PATH: &str = "/.well-known/acme-challenge/";
/// The longest token that is looked for.
const TOKEN_BYTES_MAX: usize = 128;

/// Returns the answer, when one of ours is asked for.
pub(crate) fn answer(
    shared: &Shared,
    peer: &Peer,
    host: &str,
    request: &Parts,
) -> Option<Response<ReplyBody>> {
    let token = request.uri.path().strip_prefix(PATH)?;
    let is_asked = request.method == Method::GET || request.method == Method::HEAD;
    if !is_asked || peer.over_tls() || !peer.gate.is_everybodys() || token.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let proof = shared.proofs.as_ref()?.http_challenge(host, token)?;
    let mut response = Response::new(ReplyBody::page(Bytes::from(proof)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Some(response)
}
