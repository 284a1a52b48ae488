//! Who is asking: tokens, by the SHA-256 of their text.
//!
//! Never keeps a token's text, and never says why one was refused.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::HeaderMap;
use http::header::AUTHORIZATION;
use perch_store::{Expected, Store, compare, list_docs, put_op};
use perch_types::clock::Clock;
use perch_types::directory::{Document as _, TokenDoc};
use perch_types::endpoint::Action;
use perch_types::error::chain;
use perch_types::{Code, OrgSlug, Timestamp};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::sync::Mutex as AsyncMutex;

use crate::error::{Error, store};
use crate::reply::Failure;

/// How old the copy of the tokens may get: a revoked token is refused after this at the latest.
const TOKENS_AGE_MS_MAX: u64 = 1_000;
/// Tokens in one `Authorization` header.
const TOKENS_IN_HEADER_MAX: usize = 16;
/// The longest token in bytes.
const TOKEN_BYTES_MAX: usize = 4096;
/// Failures of one token within [`FAILURE_WINDOW_MS`] before it is told to wait.
const FAILURES_MAX: u32 = 20;
/// The time over which failures are counted.
const FAILURE_WINDOW_MS: u64 = 60_000;
/// Tokens whose failures are counted.
const FAILING_TOKENS_MAX: usize = 1024;
/// The name of the administrator's token.
const ADMIN: &str = "admin";

/// What a token stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The first digits of the token's hash: enough to name it, useless to use it.
    pub token_id: String,
    /// The name it was given.
    pub name: String,
    /// Whose things it reaches.
    pub org: OrgSlug,
    /// Whether it may run the platform itself.
    pub operator: bool,
    /// Until when it holds.
    pub expires_at: Option<Timestamp>,
    /// The id of the only app that it reaches.
    pub app_id: Option<String>,
}

impl Principal {
    /// Returns whether it may do this to what belongs to its organization.
    #[must_use]
    pub const fn permits(&self, action: Action) -> bool {
        match action {
            Action::Public | Action::Read | Action::Write | Action::Exec => true,
            // A token for one app must not make others that outlive it.
            Action::Grant => self.app_id.is_none(),
            Action::Operate => self.operator,
        }
    }

    /// Returns whether it reaches an app of an organization, by the app's id: a name may be
    /// another app's later.
    #[must_use]
    pub fn reaches(&self, org: &OrgSlug, app_id: &str) -> bool {
        self.org == *org && self.app_id.as_deref().is_none_or(|own| own == app_id)
    }
}

/// Checks tokens against the directory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Identity {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    known: AsyncMutex<Known>,
    failures: Mutex<BTreeMap<[u8; 8], Failures>>,
}

#[derive(Debug, Default)]
struct Known {
    loaded_boot_ms: Option<u64>,
    tokens: Arc<Vec<Token>>,
}

#[derive(Debug)]
struct Token {
    hash: [u8; 32],
    principal: Principal,
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    since_boot_ms: u64,
}

impl Identity {
    pub(crate) fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Self {
        let (known, failures) = (AsyncMutex::default(), Mutex::default());
        Self { inner: Arc::new(Inner { store, clock, known, failures }) }
    }

    /// Returns what a token stands for; `None` when it is not known or has ended.
    ///
    /// # Errors
    /// When the directory was never read and does not answer.
    pub async fn authenticate(&self, token: &str) -> Result<Option<Principal>, Error> {
        let hash: [u8; 32] = Sha256::digest(token).into();
        let tokens = self.tokens().await?;
        let now = self.inner.clock.now();
        // Every token is compared, so that the time says nothing about which one came near.
        let found = tokens.iter().fold(None, |found, known| {
            if bool::from(known.hash.ct_eq(&hash)) { Some(&known.principal) } else { found }
        });
        let holds = |principal: &&Principal| principal.expires_at.is_none_or(|end| now < end);
        Ok(found.filter(holds).cloned())
    }

    /// Returns what the tokens of a request stand for; at least one.
    pub(crate) async fn of_request(&self, headers: &HeaderMap) -> Result<Vec<Principal>, Failure> {
        let refused = || {
            Failure::new(Code::Unauthenticated, "no valid token")
                .with_hint("send `Authorization: Bearer <token>`; `perch auth login` stores one")
        };
        let header = headers.get(AUTHORIZATION).ok_or_else(refused)?;
        let tokens = tokens_of(header.to_str().map_err(|_| refused())?);
        let mut principals = Vec::new();
        let mut is_limited = false;
        for token in &tokens {
            match self.authenticate(token).await? {
                Some(principal) => principals.push(principal),
                None => is_limited |= self.count_failure(token),
            }
        }
        if !principals.is_empty() {
            return Ok(principals);
        }
        if is_limited {
            return Err(Failure::new(Code::RateLimited, "this token was refused too often")
                .with_hint("wait a minute, and use another token"));
        }
        Err(refused())
    }

    /// Makes sure that the administrator's token is the one with this hash; an older one ends.
    pub(crate) async fn ensure_admin_token(&self, sha256_hex: &str) -> Result<(), Error> {
        parse_hash(sha256_hex).ok_or_else(|| Error::TokenHash(sha256_hex.to_owned()))?;
        let inner = &self.inner;
        let found = list_docs::<TokenDoc>(inner.store.as_ref()).await;
        let found = found.map_err(store("list tokens"))?;
        let key = (OrgSlug::personal(), sha256_hex.to_owned());
        let mut ops = Vec::new();
        let mut is_there = false;
        for (other, token) in found.documents {
            if other == TokenDoc::key(&key) {
                is_there = true;
            } else if token.document.name == ADMIN && token.document.operator {
                ops.push(perch_store::Op::delete(other));
            }
        }
        let mut compares = Vec::new();
        if !is_there {
            let token = TokenDoc {
                name: ADMIN.to_owned(),
                org: OrgSlug::personal(),
                operator: true,
                created_at: inner.clock.now(),
                expires_at: None,
                app_id: None,
            };
            compares.extend(compare::<TokenDoc>(&key, Expected::Absent));
            ops.push(put_op(&key, &token).map_err(store("write the administrator's token"))?);
        }
        if !ops.is_empty() {
            let done = inner.store.txn(compares, ops).await.and_then(perch_store::Txn::or_conflict);
            done.map_err(store("write the administrator's token"))?;
        }
        self.read_again().await;
        Ok(())
    }

    /// Has the next request read the tokens again, so that a change holds here at once.
    pub(crate) async fn read_again(&self) {
        self.inner.known.lock().await.loaded_boot_ms = None;
    }

    async fn tokens(&self) -> Result<Arc<Vec<Token>>, Error> {
        let inner = &self.inner;
        let mut known = inner.known.lock().await;
        let now = inner.clock.boot_ms();
        if known.loaded_boot_ms.is_some_and(|at| now.saturating_sub(at) < TOKENS_AGE_MS_MAX) {
            return Ok(Arc::clone(&known.tokens));
        }
        match list_docs::<TokenDoc>(inner.store.as_ref()).await {
            Ok(found) => {
                for unreadable in &found.unreadable {
                    tracing::error!(key = unreadable.key, error = %unreadable.error, "token not readable");
                }
                let documents = found.documents.into_iter();
                let tokens = documents.filter_map(|(key, token)| of_document(&key, token.document));
                known.tokens = Arc::new(tokens.collect());
                known.loaded_boot_ms = Some(now);
            }
            // What was known goes on to hold: the directory may be away (architecture, 1).
            Err(error) if known.loaded_boot_ms.is_some() => {
                tracing::warn!(error = chain(&error), "tokens not read again");
            }
            Err(error) => return Err(store("list tokens")(error)),
        }
        Ok(Arc::clone(&known.tokens))
    }

    /// Counts a failure and returns whether there were too many.
    fn count_failure(&self, token: &str) -> bool {
        let hash: [u8; 32] = Sha256::digest(token).into();
        let mut key = [0; 8];
        key.copy_from_slice(&hash[..8]);
        let now = self.inner.clock.boot_ms();
        let mut failures = self.failures();
        let is_over = |at: u64| now.saturating_sub(at) >= FAILURE_WINDOW_MS;
        if failures.len() >= FAILING_TOKENS_MAX && !failures.contains_key(&key) {
            failures.retain(|_, known| !is_over(known.since_boot_ms));
            if failures.len() >= FAILING_TOKENS_MAX {
                failures.pop_first();
            }
        }
        let fresh = Failures { count: 0, since_boot_ms: now };
        let entry = failures.entry(key).or_insert(fresh);
        if is_over(entry.since_boot_ms) {
            *entry = fresh;
        }
        entry.count = entry.count.saturating_add(1);
        entry.count > FAILURES_MAX
    }

    fn failures(&self) -> MutexGuard<'_, BTreeMap<[u8; 8], Failures>> {
        self.inner.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the tokens of an `Authorization` header (contract 1.1 and 3.2).
fn tokens_of(header: &str) -> Vec<&str> {
    let Some((scheme, tokens)) = header.trim().split_once(' ') else {
        return Vec::new();
    };
    if !scheme.eq_ignore_ascii_case("bearer") && !scheme.eq_ignore_ascii_case("flyv1") {
        return Vec::new();
    }
    tokens
        .split(',')
        .map(str::trim)
        .filter(|token| !token.is_empty() && token.len() <= TOKEN_BYTES_MAX)
        .take(TOKENS_IN_HEADER_MAX)
        .collect()
}

fn of_document(key: &str, token: TokenDoc) -> Option<Token> {
    let (_, hash) = key.rsplit_once('/')?;
    let principal = Principal {
        token_id: token_id(hash),
        name: token.name,
        org: token.org,
        operator: token.operator,
        expires_at: token.expires_at,
        app_id: token.app_id,
    };
    Some(Token { hash: parse_hash(hash)?, principal })
}

/// Returns what names a token, of the hexadecimal hash of its text.
pub(crate) fn token_id(hash: &str) -> String {
    hash.chars().take(12).collect()
}

fn parse_hash(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text
        .chars()
        .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()?;
    let bytes: Vec<u8> =
        digits.chunks_exact(2).map(|pair| pair.iter().fold(0, |v, d| (v << 4) | d)).collect();
    if digits.len() == 64 { bytes.try_into().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_may_hold_several_tokens() {
        assert_eq!(tokens_of("Bearer a"), ["a"]);
        assert_eq!(tokens_of("FlyV1 a, b,,c"), ["a", "b", "c"]);
        assert_eq!(tokens_of("bearer  x "), ["x"]);
        for none in ["", "Bearer", "Bearer ", "Basic a", "a"] {
            assert!(tokens_of(none).is_empty(), "{none}");
        }
        assert_eq!(tokens_of(&format!("Bearer {}", "a,".repeat(100))).len(), TOKENS_IN_HEADER_MAX);
    }

    #[test]
    fn a_hash_is_64_digits() {
        assert_eq!(parse_hash(&"0f".repeat(32)), Some([15; 32]));
        for bad in ["", "0f", &"0f".repeat(33), &"g".repeat(64)] {
            assert_eq!(parse_hash(bad), None, "{bad}");
        }
    }
}
