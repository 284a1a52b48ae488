//! An issuer that speaks ACME (RFC 8555, RFC 9773).
//!
//! Never keeps an order in memory: each call begins with the order's address, so that it may be
//! made by another life of the process than the call before.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64_URL;
use instant_acme::{
    AuthorizationStatus, CertificateIdentifier, ChallengeType, Identifier, NewOrder, Order,
    OrderStatus, Problem,
};
use perch_store::Store;
use perch_types::Timestamp;
use perch_types::certificate_docs::{ChallengeAnswer, ChallengeMethod, RenewalId};
use perch_types::clock::Clock;
use perch_types::error::chain;
use rustls::pki_types::Der;
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;

use crate::account::{NoAccount, Parts, Session, digest_of};
use crate::edge_key::EdgeKey;
use crate::error::Error;
use crate::issuer::{Issuer, Offer, Progress, Renewal};
use crate::net::Net;
use crate::order::Fault;

/// What the words of errors begin with.
const WORDS: &str = "urn:ietf:params:acme:error:";
/// The longest text of an issuer that is kept, in characters.
const TEXT_CHARS_MAX: usize = 400;

/// How an issuer is reached.
#[derive(Debug, Clone)]
pub struct AcmeConfig {
    /// The address of its directory, with `https`.
    pub directory: String,
    /// Where whoever runs the platform can be reached.
    pub email: Option<String>,
    /// Certificates that vouch for the issuer, as PEM, instead of those that the system trusts.
    pub roots: Option<String>,
}

/// The issuer.
pub struct Acme {
    config: AcmeConfig,
    net: Net,
    store: Arc<dyn Store>,
    key: Arc<EdgeKey>,
    clock: Arc<dyn Clock>,
    /// The account, once it was needed.
    session: Mutex<Option<Session>>,
    /// What the directory says, once it was asked.
    addresses: Mutex<Option<BTreeMap<String, String>>>,
}

impl fmt::Debug for Acme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acme").field("directory", &self.config.directory).finish_non_exhaustive()
    }
}

impl Acme {
    /// Prepares an issuer; it is not asked before something is wanted of it.
    ///
    /// # Errors
    /// When the certificates that vouch for it cannot be used.
    pub fn new(
        config: AcmeConfig,
        store: Arc<dyn Store>,
        key: Arc<EdgeKey>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Error> {
        let net = Net::new(config.roots.as_deref())?;
        let (session, addresses) = (Mutex::new(None), Mutex::new(None));
        Ok(Self { config, net, store, key, clock, session, addresses })
    }

    fn parts(&self) -> Parts<'_> {
        Parts {
            store: self.store.as_ref(),
            key: &self.key,
            net: &self.net,
            directory: &self.config.directory,
            email: self.config.email.as_deref(),
        }
    }

    async fn session(&self) -> Result<Session, Fault> {
        let mut held = self.session.lock().await;
        if let Some(session) = held.as_ref() {
            return Ok(session.clone());
        }
        match self.parts().open().await {
            Ok(session) => {
                *held = Some(session.clone());
                Ok(session)
            }
            Err(NoAccount::Own(error)) => {
                tracing::error!(error = chain(&error), "no account at the issuer");
                Err(Fault::Passing("the platform has no account at the issuer".to_owned()))
            }
            Err(NoAccount::Issuer(error)) => {
                // The issuer may not know the account any more: what forgets it takes the lock.
                drop(held);
                Err(self.failed(&error).await)
            }
        }
    }

    async fn order(&self, url: &str) -> Result<(Session, Order), Fault> {
        let session = self.session().await?;
        match session.account.order(url.to_owned()).await {
            Ok(order) => Ok((session, order)),
            Err(error) => Err(self.failed(&error).await),
        }
    }

    /// Returns what a fault means, and forgets an account that the issuer does not know.
    async fn failed(&self, error: &instant_acme::Error) -> Fault {
        if is(error, "accountDoesNotExist") {
            *self.session.lock().await = None;
            if let Err(error) = self.parts().forget().await {
                tracing::error!(error = chain(&error), "account not forgotten");
            }
            return Fault::Passing("the issuer does not know the platform's account".to_owned());
        }
        self.fault(error)
    }

    fn fault(&self, error: &instant_acme::Error) -> Fault {
        match error {
            instant_acme::Error::Api(problem) => of_problem(problem, || self.net.take_pause()),
            other => Fault::Passing(shown(&chain(other))),
        }
    }

    /// Returns an address of the issuer's directory.
    async fn address(&self, name: &str) -> Result<Option<String>, Fault> {
        let mut held = self.addresses.lock().await;
        if held.is_none() {
            let (directory, _) = self.net.json(&self.config.directory).await.map_err(passing)?;
            let addresses = directory.as_object().into_iter().flatten();
            let addresses = addresses
                .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
            *held = Some(addresses.collect());
        }
        Ok(held.as_ref().and_then(|addresses| addresses.get(name)).cloned())
    }
}

#[async_trait]
impl Issuer for Acme {
    fn account(&self) -> (String, String) {
        (digest_of(&self.config.directory), self.config.directory.clone())
    }

    async fn prepare(&self) -> Result<(), Fault> {
        self.session().await.map(drop)
    }

    async fn place(&self, hostname: &str, replaces: Option<&RenewalId>) -> Result<String, Fault> {
        let session = self.session().await?;
        let names = [Identifier::Dns(hostname.to_owned())];
        // Who knows nothing of renewals refuses an order that says what it replaces.
        let replaces = match self.address("renewalInfo").await? {
            Some(_) => replaces.and_then(identifier),
            None => None,
        };
        if let Some(replaced) = replaces {
            let order = NewOrder::new(&names).replaces(replaced);
            match session.account.new_order(&order).await {
                Ok(order) => return Ok(order.url().to_owned()),
                // It may be replaced already, or nothing of this issuer's.
                Err(error) if is(&error, "alreadyReplaced") || is(&error, "malformed") => {}
                Err(error) => return Err(self.failed(&error).await),
            }
        }
        match session.account.new_order(&NewOrder::new(&names)).await {
            Ok(order) => Ok(order.url().to_owned()),
            Err(error) => Err(self.failed(&error).await),
        }
    }

    async fn offer(&self, url: &str) -> Result<Offer, Fault> {
        let (session, mut order) = self.order(url).await?;
        let progress = progress_of(&mut order);
        let mut answers = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let authorization = match authorization {
                Ok(authorization) => authorization,
                Err(error) => return Err(self.failed(&error).await),
            };
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            for challenge in &authorization.challenges {
                if let Some(method) = method_of(&challenge.r#type) {
                    answers.push(answer(method, &challenge.token, &session.thumbprint));
                }
            }
        }
        Ok(Offer { progress, answers })
    }

    async fn tell(&self, url: &str, method: ChallengeMethod) -> Result<(), Fault> {
        let (_, mut order) = self.order(url).await?;
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = match authorization {
                Ok(authorization) => authorization,
                Err(error) => return Err(self.failed(&error).await),
            };
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            let Some(mut challenge) = authorization.challenge(kind_of(method)) else {
                return Err(Fault::Gone("the issuer has another challenge now".to_owned()));
            };
            if let Err(error) = challenge.set_ready().await {
                return Err(self.failed(&error).await);
            }
        }
        Ok(())
    }

    async fn progress(&self, url: &str) -> Result<Progress, Fault> {
        let (_, mut order) = self.order(url).await?;
        let progress = progress_of(&mut order);
        let Progress::Invalid(..) = &progress else { return Ok(progress) };
        // What was wrong is said where it was looked.
        let mut authorizations = order.authorizations();
        while let Some(Ok(authorization)) = authorizations.next().await {
            let mut faults = authorization.challenges.iter().filter_map(|it| it.error.as_ref());
            if let Some(problem) = faults.next() {
                return Ok(Progress::Invalid(word_of(problem), shown(&problem.to_string())));
            }
        }
        Ok(progress)
    }

    async fn finalize(&self, url: &str, request_der: &[u8]) -> Result<(), Fault> {
        let (_, mut order) = self.order(url).await?;
        match order.finalize_csr(request_der).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.failed(&error).await),
        }
    }

    async fn certificate(&self, url: &str) -> Result<String, Fault> {
        let (_, mut order) = self.order(url).await?;
        match order.certificate().await {
            Ok(Some(chain)) => Ok(chain),
            Ok(None) => Err(Fault::Passing("the issuer has no certificate yet".to_owned())),
            Err(error) => Err(self.failed(&error).await),
        }
    }

    async fn renewal(&self, id: &RenewalId) -> Result<Option<Renewal>, Fault> {
        let Some(base) = self.address("renewalInfo").await? else { return Ok(None) };
        let (told, pause) = self.net.json(&format!("{base}/{id}")).await.map_err(passing)?;
        let time = |name: &str| -> Option<Timestamp> {
            told.pointer(&format!("/suggestedWindow/{name}"))?.as_str()?.parse().ok()
        };
        let (Some(start), Some(end)) = (time("start"), time("end")) else {
            return Err(Fault::Passing("the issuer names no time of renewal".to_owned()));
        };
        let again = pause.map(|pause| self.clock.now().plus(pause));
        Ok((start <= end).then_some(Renewal { start, end, again }))
    }
}

const fn method_of(kind: &ChallengeType) -> Option<ChallengeMethod> {
    match kind {
        ChallengeType::Http01 => Some(ChallengeMethod::Http),
        ChallengeType::TlsAlpn01 => Some(ChallengeMethod::TlsAlpn),
        ChallengeType::Dns01 => Some(ChallengeMethod::Dns),
        _ => None,
    }
}

const fn kind_of(method: ChallengeMethod) -> ChallengeType {
    match method {
        ChallengeMethod::Http => ChallengeType::Http01,
        ChallengeMethod::TlsAlpn => ChallengeType::TlsAlpn01,
        ChallengeMethod::Dns => ChallengeType::Dns01,
    }
}

/// Returns the answer to a challenge (RFC 8555, sections 8.1 and 8.4).
fn answer(method: ChallengeMethod, token: &str, thumbprint: &str) -> ChallengeAnswer {
    let key_authorization = format!("{token}.{thumbprint}");
    let txt = BASE64_URL.encode(Sha256::digest(key_authorization.as_bytes()));
    ChallengeAnswer { method, token: token.to_owned(), key_authorization, txt }
}

fn identifier(id: &RenewalId) -> Option<CertificateIdentifier<'static>> {
    let authority = BASE64_URL.decode(&id.authority).ok()?;
    let serial = BASE64_URL.decode(&id.serial).ok()?;
    let id = CertificateIdentifier::new(Der::from_slice(&authority), Der::from_slice(&serial));
    Some(id.into_owned())
}

fn progress_of(order: &mut Order) -> Progress {
    let state = order.state();
    match state.status {
        OrderStatus::Pending => Progress::Pending,
        OrderStatus::Ready => Progress::Ready,
        OrderStatus::Processing => Progress::Processing,
        OrderStatus::Valid => Progress::Valid,
        OrderStatus::Invalid => match &state.error {
            Some(problem) => Progress::Invalid(word_of(problem), shown(&problem.to_string())),
            None => Progress::Invalid(
                "invalid".to_owned(),
                "the issuer refuses, and does not say why".to_owned(),
            ),
        },
    }
}

fn of_problem(problem: &Problem, pause: impl FnOnce() -> Option<std::time::Duration>) -> Fault {
    let (word, text) = (word_of(problem), shown(&problem.to_string()));
    match (word.as_str(), problem.status) {
        ("rateLimited", _) => Fault::Enough(pause(), text),
        ("badNonce" | "serverInternal", _) | (_, Some(500..)) => Fault::Passing(text),
        (_, Some(404)) => Fault::Gone(text),
        _ => Fault::Refused(word, text),
    }
}

/// Returns the word of a problem, without what all of them begin with.
fn word_of(problem: &Problem) -> String {
    let word = problem.r#type.as_deref().unwrap_or_default();
    let word = word.strip_prefix(WORDS).unwrap_or(word);
    let plain = word.chars().filter(char::is_ascii_alphanumeric).take(40).collect::<String>();
    if plain.is_empty() { "refused".to_owned() } else { plain }
}

fn is(error: &instant_acme::Error, word: &str) -> bool {
    matches!(error, instant_acme::Error::Api(problem) if word_of(problem) == word)
}

#[expect(clippy::needless_pass_by_value, reason = "it is what map_err passes")]
fn passing(fault: crate::net::Fault) -> Fault {
    Fault::Passing(shown(&chain(&fault)))
}

fn shown(text: &str) -> String {
    text.chars().filter(|one| !one.is_control()).take(TEXT_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::Value;

    use super::*;

    fn problem(json: Value) -> Problem {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn what_an_issuer_says_decides_what_follows() {
        let minute = Duration::from_secs(60);
        for (word, status, want) in [
            ("rateLimited", 429, "enough"),
            ("badNonce", 400, "passing"),
            ("serverInternal", 500, "passing"),
            ("somethingNew", 503, "passing"),
            ("malformed", 404, "gone"),
            ("unauthorized", 403, "refused unauthorized"),
            ("caa", 403, "refused caa"),
            ("rejectedIdentifier", 400, "refused rejectedIdentifier"),
            ("", 400, "refused refused"),
        ] {
            let problem = problem(serde_json::json!({
                "type": format!("{WORDS}{word}"), "detail": "so\nit is", "status": status,
            }));
            let found = match of_problem(&problem, || Some(minute)) {
                Fault::Enough(pause, _) => {
                    assert_eq!(pause, Some(minute));
                    "enough".to_owned()
                }
                Fault::Passing(_) => "passing".to_owned(),
                Fault::Gone(_) => "gone".to_owned(),
                Fault::Refused(word, text) => {
                    assert!(!text.contains('\n'), "{text:?}");
                    format!("refused {word}")
                }
            };
            assert_eq!(found, want, "{word} {status}");
        }
    }

    #[test]
    fn an_answer_is_made_of_the_token_and_the_accounts_key() {
        let answer = answer(ChallengeMethod::Dns, "token", "thumb");
        assert_eq!(answer.key_authorization, "token.thumb");
        assert_eq!(BASE64_URL.decode(answer.txt).unwrap().len(), 32);
        for method in [ChallengeMethod::Http, ChallengeMethod::TlsAlpn, ChallengeMethod::Dns] {
            assert_eq!(method_of(&kind_of(method)), Some(method));
        }
        assert_eq!(method_of(&ChallengeType::Unknown("new-01".to_owned())), None);
    }

    #[test]
    fn a_renewal_names_the_certificate_as_it_stands_in_it() {
        let id = RenewalId {
            authority: "aYhba4dGQEHhs3uEe6CuLN4ByNQ".to_owned(),
            serial: "AIdlQyE".to_owned(),
        };
        assert_eq!(identifier(&id).unwrap().to_string(), id.to_string());
        let bad = RenewalId { authority: "?".to_owned(), ..id };
        assert!(identifier(&bad).is_none());
    }
}
