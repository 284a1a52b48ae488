//! Tokens for a registry from the server that it names (Docker's token authentication).
//!
//! Never asks a server at a private address for a registry that the operator did not name, and
//! never shows credentials to another host without TLS.

use reqwest::Url;
use reqwest::header::AUTHORIZATION;
use serde::Deserialize;

use super::{Credentials, Session, basic, guard};
use crate::error::Error;
use crate::limits::ANSWER_BYTES_MAX;

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Session {
    /// Asks the token server for the right to pull this repository.
    pub(super) async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        credentials: Option<&Credentials>,
    ) -> Result<String, Error> {
        let refused = |text| Error::invalid(&self.reference, text);
        let mut url =
            check(realm, &self.base, (!self.named, credentials.is_some())).map_err(refused)?;
        url.query_pairs_mut()
            .extend_pairs(service.map(|service| ("service", service)))
            .append_pair("scope", &format!("repository:{}:pull", self.reference.repository()));
        let mut request = self.http.get(url);
        if let Some(credentials) = credentials {
            request = request.header(AUTHORIZATION, basic(credentials).expose());
        }
        let work = async {
            let response = request.send().await.map_err(|e| self.unreachable(e))?;
            let response = self.checked(response).await?;
            self.body(response, ANSWER_BYTES_MAX).await
        };
        let bytes = self.timed(work).await?;
        let answer: Answer = serde_json::from_slice(&bytes)
            .map_err(|_| refused("its registry's token server gave no token"))?;
        let token = answer.token.or(answer.access_token).filter(|token| is_token(token));
        token.ok_or_else(|| refused("its registry's token server gave no token"))
    }
}

/// Tells whether a text can stand in a header.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Returns the token server's address, or what is wrong with it.
fn check(
    realm: &str,
    base: &Url,
    (guarded, with_credentials): (bool, bool),
) -> Result<Url, &'static str> {
    let url = Url::parse(realm).map_err(|_| "its registry's token server is no URL")?;
    let same_host = url.host_str() == base.host_str()
        && url.port_or_known_default() == base.port_or_known_default();
    match (url.scheme(), base.scheme()) {
        ("https", _) => {}
        ("http", "http") if same_host || !with_credentials => {}
        ("http", "http") => {
            return Err("its registry's token server is another host and not behind TLS");
        }
        _ => return Err("its registry's token server is not behind TLS"),
    }
    if guarded && guard::is_private(&url) {
        return Err("its registry's token server is at a private address");
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_token_servers_are_asked() {
        let (secure, plain) = ("https://registry.example/", "http://127.0.0.1:5000/");
        let table = [
            (secure, "https://auth.example/token", (true, true), true),
            (secure, "http://registry.example/token", (false, false), false),
            (secure, "https://169.254.169.254/token", (true, false), false),
            (secure, "https://[::1]/token", (true, false), false),
            (secure, "https://10.0.0.7/token", (false, true), true),
            (secure, "file:///etc/passwd", (false, false), false),
            (secure, "/token", (false, false), false),
            (plain, "http://127.0.0.1:5000/token", (false, true), true),
            (plain, "http://127.0.0.1:5001/token", (false, true), false),
            (plain, "http://127.0.0.1:5001/token", (false, false), true),
            (plain, "http://auth.example:5000/token", (false, true), false),
            (plain, "https://auth.example/token", (false, true), true),
        ];
        for (base, realm, flags, good) in table {
            let base = Url::parse(base).expect("base");
            assert_eq!(check(realm, &base, flags).is_ok(), good, "{base} {realm} {flags:?}");
        }
    }

    #[test]
    fn what_a_token_may_be() {
        assert!(is_token("eyJ.a-b_c~+/="));
        for text in ["", "a b", "a\r\nx: y", "\u{e9}"] {
            assert!(!is_token(text), "{text:?}");
        }
    }
}
