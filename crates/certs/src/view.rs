//! The view: certificates and answers to challenges, as edges and the zone of challenges serve
//! them.
//!
//! Never asks anybody while it answers, and never waits but for whoever opens the same certificate
//! for the first time. It follows the directory, and goes on with what it knows when that is away.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::StreamExt as _;
use perch_seal::Purpose;
use perch_store::{Store, turning};
use perch_types::certificate_docs::{
    CertificateOrder, ChallengeAnswer, ChallengeMethod, PREFIX, ServedCertificate, order_key,
    served_key,
};
use perch_types::certificates::{CertificateSource, WILDCARD};
use perch_types::clock::Clock;
use perch_types::error::chain;
use perch_types::pulse::Pulse;
use perch_types::{AppName, OrgSlug, Secret, Timestamp};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::dns;
use crate::edge_key::EdgeKey;
use crate::inspect::certified_key;

mod shards;
mod texts;

use self::shards::Shards;
use self::texts::Texts;

/// The pauses before the directory is followed anew.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Changes that are taken at once.
const CHANGES_AT_ONCE_MAX: usize = 1_024;

/// The view. Clones are the same; it is followed until the last is dropped.
#[derive(Debug, Clone)]
pub struct CertificateView {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    follower: JoinHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

struct Shared {
    snapshot: ArcSwap<Snapshot>,
    key: Arc<EdgeKey>,
    clock: Arc<dyn Clock>,
    changes: watch::Sender<u64>,
    /// Shows that the directory is followed.
    pulse: Pulse,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Default)]
struct Snapshot {
    served: Shards<Sources>,
    answers: Shards<Arc<Answered>>,
    texts: Texts,
}

/// The certificates of a host name, by where they come from.
#[derive(Debug, Clone, Default)]
struct Sources {
    custom: Option<Arc<Served>>,
    fly: Option<Arc<Served>>,
}

impl Sources {
    const fn of(&mut self, source: CertificateSource) -> &mut Option<Arc<Served>> {
        match source {
            CertificateSource::Custom => &mut self.custom,
            CertificateSource::Fly => &mut self.fly,
        }
    }

    const fn is_empty(&self) -> bool {
        self.custom.is_none() && self.fly.is_none()
    }
}

/// A certificate, opened when it is first asked for: most of many are not.
#[derive(Debug)]
struct Served {
    org: OrgSlug,
    app: AppName,
    not_after: Timestamp,
    sealed: Mutex<Option<Box<ServedCertificate>>>,
    opened: OnceLock<Option<Arc<CertifiedKey>>>,
}

/// The answer to a challenge, and what shows it to whoever connects, made when that is asked for.
#[derive(Debug)]
struct Answered {
    /// Whose order it is: an answer ends with that one, and with no other of the same host name.
    org: OrgSlug,
    app: AppName,
    answer: ChallengeAnswer,
    certificate: OnceLock<Option<Arc<CertifiedKey>>>,
}

impl CertificateView {
    /// Begins to follow a directory. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(store: Arc<dyn Store>, key: Arc<EdgeKey>, clock: Arc<dyn Clock>) -> Self {
        let (snapshot, changes) = (ArcSwap::default(), watch::Sender::new(0));
        let shared = Arc::new(Shared { snapshot, key, clock, changes, pulse: Pulse::default() });
        let follower = tokio::spawn(follow(store, Arc::clone(&shared)));
        Self { inner: Arc::new(Inner { shared, follower }) }
    }

    /// Returns the signs of life of the task that follows the directory.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        self.inner.shared.pulse.clone()
    }

    /// Returns the certificate of a host name in lower case: its own, or the one for all names
    /// right below the one above it. One that was uploaded comes before one that the platform got,
    /// unless it has ended.
    #[must_use]
    pub fn resolve(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let shared = &self.inner.shared;
        let snapshot = shared.snapshot.load();
        shared.of_name(&snapshot, name).or_else(|| {
            let (_, above) = name.split_once('.')?;
            shared.of_name(&snapshot, &format!("{WILDCARD}{above}"))
        })
    }

    /// Returns what answers a challenge of TLS-ALPN-01 for a host name.
    #[must_use]
    pub fn challenge(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let snapshot = self.inner.shared.snapshot.load();
        let answered = snapshot.answers.get(name)?;
        if answered.answer.method != ChallengeMethod::TlsAlpn {
            return None;
        }
        let made = answered.certificate.get_or_init(|| {
            proof(name, &answered.answer.key_authorization)
                .inspect_err(|error| tracing::error!(name, error, "no proof for a challenge"))
                .ok()
                .map(Arc::new)
        });
        made.clone()
    }

    /// Returns what answers a challenge of HTTP-01 at a host.
    #[must_use]
    pub fn http_challenge(&self, host: &str, token: &str) -> Option<String> {
        let snapshot = self.inner.shared.snapshot.load();
        let answer = &snapshot.answers.get(host)?.answer;
        let is_asked = answer.method == ChallengeMethod::Http && answer.token == token;
        is_asked.then(|| answer.key_authorization.clone())
    }

    /// Returns the values of the records of DNS-01 that orders want at a label of the platform's
    /// zone.
    #[must_use]
    pub fn texts(&self, label: &str) -> Vec<String> {
        self.inner.shared.snapshot.load().texts.of(label)
    }

    /// Returns whether the view holds an answer to a challenge; never one by a record of DNS,
    /// which no edge gives.
    #[must_use]
    pub fn answers(&self, hostname: &str, answer: &ChallengeAnswer) -> bool {
        let snapshot = self.inner.shared.snapshot.load();
        snapshot.answers.get(hostname).is_some_and(|it| it.answer == *answer)
    }

    /// Returns a receiver that wakes on every change; its number means nothing else.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.inner.shared.changes.subscribe()
    }
}

impl Shared {
    fn of_name(&self, snapshot: &Snapshot, name: &str) -> Option<Arc<CertifiedKey>> {
        let now = self.clock.now();
        let Sources { custom, fly } = snapshot.served.get(name)?;
        let mut found = [custom.as_ref(), fly.as_ref()];
        // Stable: of two that hold, or have ended, the uploaded one stays first.
        found.sort_by_key(|served| served.is_some_and(|served| served.not_after <= now));
        found.into_iter().flatten().find_map(|served| self.open(name, served))
    }

    fn open(&self, name: &str, served: &Served) -> Option<Arc<CertifiedKey>> {
        let opened = served.opened.get_or_init(|| {
            let sealed = served.sealed.lock().unwrap_or_else(PoisonError::into_inner).take()?;
            match self.unseal(name, served, &sealed) {
                Ok(key) => Some(Arc::new(key)),
                Err(error) => {
                    tracing::error!(name, app = %served.app, error, "certificate not served");
                    None
                }
            }
        });
        opened.clone()
    }

    fn unseal(
        &self,
        hostname: &str,
        of: &Served,
        sealed: &ServedCertificate,
    ) -> Result<CertifiedKey, String> {
        let app_id = sealed.app_id.as_str();
        let purpose = Purpose::CertificateKey { org: &of.org, app: &of.app, app_id, hostname };
        let key: Secret =
            self.key.open_text(purpose, &sealed.sealed_key).map_err(|error| chain(&error))?;
        certified_key(&sealed.chain, &key)
    }

    fn publish(&self, snapshot: Snapshot) {
        self.snapshot.store(Arc::new(snapshot));
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl Snapshot {
    /// Takes one change; one that cannot be read changes nothing.
    fn apply(&mut self, key: &str, value: Option<&[u8]>) {
        let told = |error: serde_json::Error| {
            tracing::error!(key, %error, "unreadable document");
        };
        if let Some((org, app, hostname, source)) = served_key(key) {
            match value.map(serde_json::from_slice::<Box<ServedCertificate>>) {
                Some(Ok(sealed)) => {
                    let not_after = sealed.leaf.not_after;
                    let (sealed, opened) = (Mutex::new(Some(sealed)), OnceLock::new());
                    let served = Arc::new(Served { org, app, not_after, sealed, opened });
                    let mut sources = self.served.get(&hostname).cloned().unwrap_or_default();
                    *sources.of(source) = Some(served);
                    self.served.insert(&hostname, sources);
                }
                Some(Err(error)) => told(error),
                None => {
                    let Some(mut sources) = self.served.get(&hostname).cloned() else { return };
                    *sources.of(source) = None;
                    match sources.is_empty() {
                        true => self.served.remove(&hostname),
                        false => self.served.insert(&hostname, sources),
                    }
                }
            }
        } else if let Some((org, app, hostname)) = order_key(key) {
            let order = value.map(serde_json::from_slice::<CertificateOrder>);
            let order = match order.transpose() {
                Ok(order) => order,
                Err(error) => return told(error),
            };
            let (answer, text) = match order.and_then(|it| Some((it.answer?, it.app_id))) {
                Some((answer, app_id)) if answer.method == ChallengeMethod::Dns => {
                    (None, Some((dns::challenge_label(&app_id, &hostname), answer.txt)))
                }
                Some((answer, _)) => (Some(answer), None),
                None => (None, None),
            };
            self.texts.put(key, text);
            match answer {
                Some(answer) => self.answer((org, app), &hostname, answer),
                None => self.end_answer((&org, &app), &hostname),
            }
        }
    }

    fn answer(&mut self, (org, app): (OrgSlug, AppName), hostname: &str, answer: ChallengeAnswer) {
        let is_known = |it: &Arc<Answered>| it.org == org && it.app == app && it.answer == answer;
        if !self.answers.get(hostname).is_some_and(is_known) {
            let answered = Answered { org, app, answer, certificate: OnceLock::new() };
            self.answers.insert(hostname, Arc::new(answered));
        }
    }

    fn end_answer(&mut self, (org, app): (&OrgSlug, &AppName), hostname: &str) {
        if self.answers.get(hostname).is_some_and(|it| it.org == *org && it.app == *app) {
            self.answers.remove(hostname);
        }
    }
}

/// Makes the certificate that answers a challenge of TLS-ALPN-01 (RFC 8737, section 3).
fn proof(name: &str, key_authorization: &str) -> Result<CertifiedKey, String> {
    let fault = |error: rcgen::Error| chain(&error);
    let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(fault)?;
    let digest = Sha256::digest(key_authorization.as_bytes());
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(&digest)];
    let key = KeyPair::generate().map_err(fault)?;
    let certificate = params.self_signed(&key).map_err(fault)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = any_supported_type(&key).map_err(|error| chain(&error))?;
    // Whether they match is not asked: who asks refuses a certificate with the critical extension
    // that this one is about.
    Ok(CertifiedKey::new(vec![certificate.der().clone()], key))
}

async fn follow(store: Arc<dyn Store>, shared: Arc<Shared>) {
    let mut pause = PAUSE_MIN;
    loop {
        let before = *shared.changes.borrow();
        let followed = turning(&shared.pulse, follow_once(store.as_ref(), &shared)).await;
        if let Err(error) = followed {
            tracing::warn!(error = chain(&error), "lost the directory: serving known certificates");
        }
        let went = *shared.changes.borrow() != before;
        pause = if went { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
        turning(&shared.pulse, tokio::time::sleep(pause)).await;
    }
}

/// Lists, then follows until something breaks.
async fn follow_once(store: &dyn Store, shared: &Shared) -> Result<(), perch_store::Error> {
    let listing = store.list(PREFIX).await?;
    let changes = store.watch(PREFIX, listing.revision.next()).await?;
    let mut snapshot = Snapshot::default();
    for entry in listing.entries {
        snapshot.apply(&entry.key, Some(&entry.value));
    }
    shared.publish(snapshot);
    // Together, so that many changes at once cost one new snapshot.
    let mut changes = changes.ready_chunks(CHANGES_AT_ONCE_MAX);
    while let Some(chunk) = changes.next().await {
        let mut snapshot = Snapshot::clone(&shared.snapshot.load());
        let mut fault = None;
        for change in chunk {
            match change {
                Ok(event) => snapshot.apply(&event.key, event.value.as_deref()),
                Err(error) => fault = Some(error),
            }
        }
        shared.publish(snapshot);
        if let Some(error) = fault {
            return Err(error);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
