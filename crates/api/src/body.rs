//! Reads bodies and queries, within limits and with errors that name the field.
//!
//! Never waits for a body longer than [`Limits::body_timeout`](crate::Limits::body_timeout).

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use bytes::Bytes;
use http::request::Parts;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use perch_types::Code;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::config::Shared;
use crate::machines::lease;
use crate::reply::Failure;
use crate::routes::{Leased, OfApp, Target};

/// The largest body of JSON in bytes.
pub(crate) const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Characters of a value, and of what is wrong with it, that an error shows.
const SHOWN_CHARS_MAX: usize = 80;
const FAULT_CHARS_MAX: usize = 200;
/// Parameters of a query.
const PARAMETERS_MAX: usize = 64;

/// A body of JSON. An empty body is read as `{}`: clients send none for "nothing to say".
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Arc<Shared>> for Json<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, shared: &Arc<Shared>) -> Result<Self, Failure> {
        let bytes = read_leased(request, shared).await?;
        parse(if bytes.is_empty() { b"{}" } else { &bytes }).map(Self)
    }
}

/// A body of JSON with secrets in it: its errors say where, and never what stands there.
#[derive(Debug)]
pub(crate) struct SecretJson<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Arc<Shared>> for SecretJson<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, shared: &Arc<Shared>) -> Result<Self, Failure> {
        let bytes = read_leased(request, shared).await?;
        let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        read_json(bytes).map(Self).map_err(Fault::covertly)
    }
}

/// Why bytes are not what a body has to be.
#[derive(Debug)]
enum Fault {
    /// They are not JSON.
    Broken(serde_json::Error),
    /// They are JSON of another shape; where, and what is wrong there.
    Shape(String, serde_json::Error),
}

impl Fault {
    /// Tells it, with the value that is not as it should be.
    fn openly(self) -> Failure {
        let text = match self {
            Self::Broken(reason) => format!("the body is not JSON: {reason}"),
            Self::Shape(path, reason) => format!("{path}: {reason}"),
        };
        Failure::new(Code::InvalidRequest, text)
    }

    /// Tells it without a value, which may be a secret.
    fn covertly(self) -> Failure {
        let Self::Shape(path, reason) = &self else {
            // Of text that is no JSON the reason says where it ends to be one, and no more.
            return self.openly();
        };
        let fault = reason.to_string();
        // These have the name of a field in them that the type has, and nothing else.
        if fault.starts_with("missing field") || fault.starts_with("duplicate field") {
            return self.openly();
        }
        // What follows the last of these words is of the type, not of the value.
        let expected = fault.rsplit_once(", expected ").map_or("another", |it| it.1);
        let text = format!("{path}: is not of the kind it must be; expected {expected}");
        Failure::new(Code::InvalidRequest, text)
    }
}

/// Reads a body. It may take its time, in which somebody may acquire the lease of the machine that
/// the request changes: that is looked at again.
async fn read_leased(request: Request, shared: &Shared) -> Result<Bytes, Failure> {
    let extensions = request.extensions();
    let leased = match (extensions.get::<Leased>(), extensions.get::<OfApp>()) {
        (Some(_), Some(OfApp(app))) => extensions.get::<Target>().cloned().map(|Target(target)| {
            let nonce = lease::nonce(request.headers()).ok().flatten().map(str::to_owned);
            (app.org.clone(), target.id.clone(), nonce)
        }),
        _ => None,
    };
    let bytes = read(request, shared.limits.body_timeout).await?;
    if let Some((org, id, nonce)) = leased {
        lease::guard(shared, (&org, &id), nonce.as_deref()).await?;
    }
    Ok(bytes)
}

async fn read(request: Request, patience: Duration) -> Result<Bytes, Failure> {
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect();
    match tokio::time::timeout(patience, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Failure::new(
            Code::BodyTooLarge,
            format!("the body is larger than {BODY_BYTES_MAX} bytes"),
        )),
        Ok(Err(_)) => Err(Failure::new(Code::InvalidRequest, "the body did not come whole")),
        Err(_) => Err(Failure::new(
            Code::InvalidRequest,
            format!("the body did not come within {patience:?}"),
        )),
    }
}

/// Parses JSON; the error says where.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    read_json(bytes).map_err(Fault::openly)
}

fn read_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let reason = error.into_inner();
        if !reason.is_syntax() && !reason.is_eof() {
            return Fault::Shape(path, reason);
        }
        // The reader of text takes a number where a word has to be for broken JSON; the reader of
        // values knows better.
        let value = serde_json::from_slice::<Value>(bytes).ok();
        match value.map(serde_path_to_error::deserialize::<_, T>) {
            Some(Err(error)) => Fault::Shape(error.path().to_string(), error.into_inner()),
            Some(Ok(_)) | None => Fault::Broken(reason),
        }
    })?;
    deserializer.end().map_err(Fault::Broken)?;
    Ok(value)
}

/// The parameters of a query, in their order. Unknown ones are left alone (contract 1.1).
#[derive(Debug, Default)]
pub(crate) struct Parameters(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Parameters {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Failure> {
        let bad = || Failure::new(Code::InvalidRequest, "the query cannot be read");
        let Query(pairs): Query<Vec<(String, String)>> =
            Query::try_from_uri(&parts.uri).map_err(|_| bad())?;
        if pairs.len() > PARAMETERS_MAX {
            return Err(Failure::new(
                Code::InvalidRequest,
                format!("the query has more than {PARAMETERS_MAX} parameters"),
            ));
        }
        Ok(Self(pairs))
    }
}

impl Parameters {
    /// Makes parameters of pairs.
    #[cfg(test)]
    pub(crate) fn of(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    /// Returns the first value of a parameter, unless it is empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.all(name).find(|value| !value.is_empty())
    }

    /// Returns all values of a parameter that may be repeated.
    pub(crate) fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Returns parameters whose name has a prefix, without that.
    pub(crate) fn prefixed(&self, prefix: &str) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .filter_map(move |(name, value)| Some((name.strip_prefix(prefix)?, value.as_str())))
    }

    /// Returns whether a parameter says yes.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, Failure> {
        match self.get(name) {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1") => Ok(true),
            Some(other) => {
                let shown: String = other.chars().take(SHOWN_CHARS_MAX).collect();
                let text = format!("{name}: `{shown}` is not `true` or `false`");
                Err(Failure::new(Code::InvalidRequest, text))
            }
        }
    }

    /// Returns a parameter that parses, or nothing.
    pub(crate) fn parsed<T>(&self, name: &str) -> Result<Option<T>, Failure>
    where
        T: std::str::FromStr<Err: std::fmt::Display>,
    {
        self.get(name)
            .map(|text| {
                text.parse().map_err(|error: T::Err| {
                    let shown: String = text.chars().take(SHOWN_CHARS_MAX).collect();
                    let fault: String = error.to_string().chars().take(FAULT_CHARS_MAX).collect();
                    // Some say themselves what they did not like.
                    let text = if fault.contains(&format!("`{shown}`")) {
                        format!("{name}: {fault}")
                    } else {
                        format!("{name}: `{shown}`: {fault}")
                    };
                    Failure::new(Code::InvalidRequest, text)
                })
            })
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use perch_types::api::CreateMachineRequest;
    use perch_types::secret_keys::SetSecretKey;

    use super::*;

    /// The same faults as of another body, and never a value.
    #[test]
    fn a_body_with_secrets_is_told_with_the_place_and_without_the_value() {
        let text = |json: &str| {
            let fault = read_json::<SetSecretKey>(json.as_bytes()).unwrap_err();
            let text = fault.covertly().error().error.clone();
            assert!(!text.contains("8051"), "{text}");
            text
        };
        for (json, told) in [
            (r#"{"type":8051}"#, "type: is not of the kind it must be; expected string or map"),
            (
                r#"{"type":"8051, expected 8051"}"#,
                "type: is not of the kind it must be; expected one of `es256`, ",
            ),
            (r#"{"type":["8051"]}"#, "type: is not of the kind it must be; expected "),
            (
                r#"{"type":"hs256","value":"8051?"}"#,
                "value: is not of the kind it must be; expected base64",
            ),
            (
                r#"{"type":"hs256","value":[8051]}"#,
                "value: is not of the kind it must be; expected base64",
            ),
            (
                r#"{"type":"hs256","value":[[8051]]}"#,
                "value[0]: is not of the kind it must be; expected u64",
            ),
            (r#"{"value":"gFE="}"#, ".: missing field `type`"),
            (r#"{"type":"hs256","type":"hs256"}"#, ".: duplicate field `type`"),
            ("8051", ".: is not of the kind it must be; expected struct SetSecretKey"),
            (r#"{"type":"hs256","value":"8051"#, "the body is not JSON: EOF while"),
            (r#"{"type":"hs256"} 8051"#, "the body is not JSON: trailing characters"),
        ] {
            assert!(text(json).starts_with(told), "{json}: {}", text(json));
        }
    }

    #[test]
    fn a_broken_body_is_told_with_the_place() {
        let text = |json: &str| {
            let failure = parse::<CreateMachineRequest>(json.as_bytes()).unwrap_err();
            assert_eq!(failure.error().code, Code::InvalidRequest);
            failure.error().error.clone()
        };
        insta::assert_snapshot!(text("{"), @"the body is not JSON: EOF while parsing an object at line 1 column 1");
        insta::assert_snapshot!(text("{}"), @".: missing field `config` at line 1 column 2");
        insta::assert_snapshot!(
            text(r#"{"config":{"guest":{"cpus":"two"}}}"#),
            @r#"config.guest.cpus: invalid type: string "two", expected u32 at line 1 column 32"#
        );
        insta::assert_snapshot!(
            text(r#"{"config":{"guest":{"cpu_kind":7}}}"#),
            @"config.guest.cpu_kind: invalid type: integer `7`, expected string or map"
        );
        insta::assert_snapshot!(text(r#"{"config":{}} x"#), @"the body is not JSON: trailing characters at line 1 column 15");
    }
}
