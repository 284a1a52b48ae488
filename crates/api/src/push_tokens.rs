//! Tokens with which a build pushes its image: short-lived, for one scope, in memory only.
//!
//! Never stored: after a restart a build has to begin again anyway.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use perch_types::clock::Clock;
use perch_types::{AppName, OrgSlug, Secret};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::error::Error;

/// What a push token begins with.
const PREFIX: &str = "perch_push_";

/// What a push token may write; it may read base images besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushScope {
    /// The repository of an app. The id is part of it because a name can be another app's later.
    App {
        /// The app's name, which is its repository's.
        name: AppName,
        /// The app's id.
        id: String,
    },
    /// Base images.
    Base,
}

/// The push tokens of running builds. Cheap to clone; clones share them.
#[derive(Debug, Clone)]
pub struct PushTokens {
    clock: Arc<dyn Clock>,
    max: usize,
    of_org_max: usize,
    tokens: Arc<Mutex<Vec<PushToken>>>,
}

#[derive(Debug)]
struct PushToken {
    hash: [u8; 32],
    scope: PushScope,
    org: Option<OrgSlug>,
    expires_boot_ms: u64,
}

impl PushTokens {
    pub(crate) fn new(clock: Arc<dyn Clock>, max: usize, of_org_max: usize) -> Self {
        Self { clock, max, of_org_max, tokens: Arc::default() }
    }

    /// Makes a token that may push images of a scope for at most `ttl`. It counts for the
    /// organization, or for none when the operator asks.
    ///
    /// # Errors
    /// When there are as many as the limit, or no random bytes.
    pub fn mint(
        &self,
        scope: PushScope,
        org: Option<OrgSlug>,
        ttl: Duration,
    ) -> Result<Secret, Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|source| Error::Random { source })?;
        let mut text = String::from(PREFIX);
        bytes.iter().try_for_each(|byte| write!(text, "{byte:02x}")).ok();
        let now = self.clock.boot_ms();
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let mut tokens = self.lock();
        tokens.retain(|token| token.expires_boot_ms > now);
        if tokens.len() >= self.max {
            return Err(Error::PushTokens { max: self.max });
        }
        let of_org = tokens.iter().filter(|token| org.is_some() && token.org == org).count();
        if of_org >= self.of_org_max {
            return Err(Error::PushTokensOfOrg { max: self.of_org_max });
        }
        tokens.push(PushToken {
            hash: Sha256::digest(&text).into(),
            scope,
            org,
            expires_boot_ms: now.saturating_add(ttl_ms),
        });
        Ok(Secret::new(text))
    }

    /// Returns what the token may push.
    #[must_use]
    pub fn check(&self, token: &str) -> Option<PushScope> {
        let hash: [u8; 32] = Sha256::digest(token).into();
        let now = self.clock.boot_ms();
        self.lock()
            .iter()
            .filter(|known| bool::from(known.hash.ct_eq(&hash)))
            .find(|known| known.expires_boot_ms > now)
            .map(|known| known.scope.clone())
    }

    /// Ends all tokens of an app that is gone.
    pub fn revoke_app(&self, app_id: &str) {
        let is_its = |scope: &PushScope| matches!(scope, PushScope::App { id, .. } if id == app_id);
        self.lock().retain(|known| !is_its(&known.scope));
    }

    /// Ends a token.
    pub fn revoke(&self, token: &Secret) {
        let hash: [u8; 32] = Sha256::digest(token.expose()).into();
        self.lock().retain(|known| !bool::from(known.hash.ct_eq(&hash)));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<PushToken>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use perch_types::Timestamp;

    use super::*;

    #[derive(Debug, Default)]
    struct Turned(AtomicU64);

    impl Clock for Turned {
        fn now(&self) -> Timestamp {
            Timestamp::UNIX_EPOCH
        }

        fn boot_ms(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    fn of_app(id: &str) -> PushScope {
        PushScope::App { name: "web".parse().unwrap(), id: id.to_owned() }
    }

    #[test]
    fn the_tokens_of_an_app_end_with_it_and_no_others() {
        let tokens = PushTokens::new(Arc::new(Turned::default()), 4, 4);
        let hour = Duration::from_secs(3600);
        let mint = |scope: &PushScope| tokens.mint(scope.clone(), None, hour).unwrap();
        let scopes = [of_app("app_one"), of_app("app_one"), of_app("app_two"), PushScope::Base];
        let minted = scopes.each_ref().map(mint);
        tokens.revoke_app("app_one");
        let left = minted.each_ref().map(|token| tokens.check(token.expose()));
        assert_eq!(left, [None, None, Some(of_app("app_two")), Some(PushScope::Base)]);
    }

    #[test]
    fn one_organization_leaves_room_for_others() {
        let tokens = PushTokens::new(Arc::new(Turned::default()), 3, 2);
        let mint = |org: &str| {
            let hour = Duration::from_secs(3600);
            tokens.mint(of_app("app_one"), Some(org.parse().unwrap()), hour)
        };
        let first = mint("one").unwrap();
        mint("one").unwrap();
        assert!(matches!(mint("one"), Err(Error::PushTokensOfOrg { max: 2 })));
        mint("two").unwrap();
        assert!(matches!(mint("two"), Err(Error::PushTokens { max: 3 })));
        tokens.revoke(&first);
        mint("one").unwrap();
    }

    #[test]
    fn a_push_token_is_for_one_app_and_ends() {
        let clock = Arc::new(Turned::default());
        let tokens = PushTokens::new(clock.clone(), 2, 2);
        let app = of_app("app_one");
        let first = tokens.mint(app.clone(), None, Duration::from_secs(1)).unwrap();
        let second = tokens.mint(PushScope::Base, None, Duration::from_secs(60)).unwrap();
        assert_ne!(first, second);
        assert_eq!(tokens.check(first.expose()), Some(app));
        assert_eq!(tokens.check(second.expose()), Some(PushScope::Base));
        assert_eq!(tokens.check("perch_push_00"), None);
        assert!(matches!(
            tokens.mint(PushScope::Base, None, Duration::ZERO),
            Err(Error::PushTokens { max: 2 })
        ));
        clock.0.store(1000, Ordering::Relaxed);
        assert_eq!(tokens.check(first.expose()), None);
        tokens.revoke(&second);
        assert_eq!(tokens.check(second.expose()), None);
        assert!(
            tokens
                .mint(PushScope::Base, None, Duration::from_secs(1))
                .is_ok_and(|token| token != second)
        );
    }
}
