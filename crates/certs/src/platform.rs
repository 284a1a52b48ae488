//! Certificates for names under the platform's own domain: which are wanted.
//!
//! Never orders one: it writes down what is wanted, and the worker carries that out within the
//! limits of all orders. One for all names needs a record of DNS that somebody sets; until there
//! is one, and again when it comes to its end without a new one, each app that serves something
//! has one for its own name. What is gone, or has served nothing for long, gives its place up.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use perch_store::view::ViewHandle;
use perch_store::{
    Compare, Expected, Store, Txn, Versioned, compare, delete_op, get_doc, list_docs, put_op,
    turning,
};
use perch_types::certificate_docs::{
    CertificateDoc, CertificateOrder, OrderWorker, PLATFORM_APP_ID, ServedCertificate,
    certificate_key, platform_key,
};
use perch_types::certificates::{CertificateSource, hostname};
use perch_types::clock::Clock;
use perch_types::directory::{AppDoc, Document as _};
use perch_types::error::chain;
use perch_types::pulse::Pulse;
use perch_types::view::View;
use perch_types::{AppName, OrgSlug};
use tokio::task::JoinHandle;

use crate::error::{Error, store as fault};

/// Apps that have a certificate of their own name at once; others have none of a public issuer
/// before there is one for all names.
const NAMES_MAX: usize = 500;
/// The longest pause between two looks: a certificate comes to its end without any news.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How long an app that serves nothing any more keeps its certificate, in milliseconds, as far as
/// this process saw it: one that is deployed anew is not to order another.
const UNSERVED_MAX_MS: u64 = 24 * 3_600 * 1_000;
/// The part of its time that the certificate for all names must have left to be enough alone.
const LEFT_PART: i64 = 9;
/// Top-level domains whose names mean something only here: no public issuer has ever heard of them.
const LOCAL: [&str; 10] = [
    "arpa",
    "home",
    "internal",
    "invalid",
    "lan",
    "local",
    "localdomain",
    "localhost",
    "onion",
    "test",
];

/// Returns whether a public issuer may know a domain.
#[must_use]
pub fn is_public(domain: &str) -> bool {
    let last = domain.rsplit('.').next().unwrap_or_default();
    domain.contains('.') && !LOCAL.contains(&last)
}

/// What is needed to know which certificates are wanted.
#[derive(Clone)]
pub struct PlatformNamesConfig {
    /// The directory.
    pub store: Arc<dyn Store>,
    /// The apps.
    pub apps: ViewHandle,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Apps are served at `<app>.<domain>`.
    pub domain: String,
    /// The shortest pause between two looks.
    pub pause: Duration,
}

impl fmt::Debug for PlatformNamesConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlatformNamesConfig").field("domain", &self.domain).finish_non_exhaustive()
    }
}

/// Keeps what is wanted written down; it ends when this is dropped.
#[derive(Debug)]
pub struct PlatformNames {
    task: JoinHandle<()>,
    pulse: Pulse,
}

impl PlatformNames {
    /// Begins. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(config: PlatformNamesConfig) -> Self {
        let pulse = Pulse::default();
        Self { task: tokio::spawn(keep(config, pulse.clone())), pulse }
    }

    /// Returns its signs of life.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }
}

impl Drop for PlatformNames {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Key = (OrgSlug, AppName, String);
/// Whose an app is, and its id.
type App = (OrgSlug, String);
/// The apps whose names have a certificate of their own.
type Own = BTreeMap<AppName, App>;

/// What is known from one look to the next.
#[derive(Debug, Default)]
struct Known {
    own: Own,
    /// Since when those of them serve nothing that do not, by the boot clock.
    unserved: BTreeMap<AppName, u64>,
}

impl Known {
    /// Returns the apps that have had nothing to serve for too long.
    fn over(&mut self, serving: &Own, now_ms: u64) -> BTreeSet<AppName> {
        let Self { own, unserved } = self;
        unserved.retain(|name, _| own.contains_key(name) && !serving.contains_key(name));
        for name in own.keys().filter(|name| !serving.contains_key(*name)) {
            unserved.entry(name.clone()).or_insert(now_ms);
        }
        let is_over = |since: u64| now_ms.saturating_sub(since) >= UNSERVED_MAX_MS;
        let over = unserved.iter().filter(|(_, since)| is_over(**since));
        over.map(|(name, _)| name.clone()).collect()
    }
}

async fn keep(config: PlatformNamesConfig, pulse: Pulse) {
    let mut changed = config.apps.changed();
    let mut known = None;
    loop {
        changed.borrow_and_update();
        // Apps that are not heard of yet are not gone.
        let mut is_done = config.apps.is_live();
        if is_done && let Err(error) = turning(&pulse, look(&config, &mut known)).await {
            tracing::warn!(error = chain(&error), "certificates of the domain not looked at");
            is_done = false;
        }
        turning(&pulse, tokio::time::sleep(config.pause)).await;
        if !is_done {
            continue;
        }
        let news = tokio::time::timeout(LOOK_EVERY, changed.changed());
        if let Ok(Err(_)) = turning(&pulse, news).await {
            return;
        }
    }
}

/// Looks once. What is known is read anew after a fault.
async fn look(config: &PlatformNamesConfig, known: &mut Option<Known>) -> Result<(), Error> {
    let Some(all) = platform_key(&config.domain) else { return Ok(()) };
    let mut now = match known.take() {
        Some(now) => now,
        None => Known { own: begin(config, &all).await?, ..Known::default() },
    };
    want(config, &all, PLATFORM_APP_ID, None).await?;
    let view = config.apps.load();
    let (own, gone): (Own, Own) = std::mem::take(&mut now.own)
        .into_iter()
        .partition(|(name, (_, id))| view.app(name).is_some_and(|app| app.id == *id));
    now.own = own;
    for (name, app) in gone {
        if !end(config, &name, &app).await? {
            now.own.insert(name, app);
        }
    }
    let serving = serving(&view);
    let over = now.over(&serving, config.clock.boot_ms());
    let plan = plan(&serving, (&now.own, &over), has_all(config, &all).await?);
    for name in plan.unwanted {
        if let Some((org, _)) = now.own.remove(&name) {
            let hostname = under(&name, &config.domain);
            remove(config, &(org, name, hostname), Vec::new()).await?;
        }
    }
    for (name, (org, id)) in plan.wanted {
        let key = (org.clone(), name.clone(), under(&name, &config.domain));
        let still = AppDoc::key(&(org.clone(), name.clone()));
        if hostname(&key.2).is_ok() {
            want(config, &key, &id, Some(Compare::Exists { key: still })).await?;
            now.own.insert(name, (org, id));
        }
    }
    *known = Some(now);
    Ok(())
}

fn under(app: &AppName, domain: &str) -> String {
    format!("{app}.{domain}")
}

/// Returns what was written down before; what is of another domain than now goes.
async fn begin(config: &PlatformNamesConfig, all: &Key) -> Result<Own, Error> {
    let found = list_docs::<CertificateDoc>(config.store.as_ref()).await;
    let found = found.map_err(fault("list certificates"))?;
    let mut own = Own::new();
    for (path, Versioned { document, .. }) in found.documents {
        let Some(key) = certificate_key(&path).filter(|_| document.of_platform) else { continue };
        if key == *all {
            continue;
        }
        if key.2 == under(&key.1, &config.domain) {
            own.insert(key.1, (key.0, document.app_id));
        } else {
            remove(config, &key, Vec::new()).await?;
        }
    }
    Ok(own)
}

/// Returns the apps that have something to serve.
fn serving(view: &View) -> Own {
    let serving = view.machines().filter(|machine| !machine.services.is_empty());
    let apps = serving.filter_map(|machine| view.app(&machine.app));
    apps.map(|app| (app.name.clone(), (app.org.clone(), app.id.clone()))).collect()
}

/// What changes.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    wanted: Vec<(AppName, App)>,
    unwanted: Vec<AppName>,
}

/// Decides whose names are to have a certificate of their own. Pure.
fn plan(serving: &Own, (own, over): (&Own, &BTreeSet<AppName>), has_all: bool) -> Plan {
    if has_all {
        return Plan { wanted: Vec::new(), unwanted: own.keys().cloned().collect() };
    }
    let unwanted: Vec<AppName> = own.keys().filter(|name| over.contains(*name)).cloned().collect();
    let missing = serving.iter().filter(|(name, _)| !own.contains_key(*name));
    let room = NAMES_MAX.saturating_sub(own.len() - unwanted.len());
    let wanted = missing.take(room).map(|(name, app)| (name.clone(), app.clone())).collect();
    Plan { wanted, unwanted }
}

/// Returns whether the certificate for all names is enough alone.
async fn has_all(config: &PlatformNamesConfig, all: &Key) -> Result<bool, Error> {
    let (org, app, hostname) = all.clone();
    let key = (org, app, hostname, CertificateSource::Fly);
    let found = get_doc::<ServedCertificate>(config.store.as_ref(), &key).await;
    let Some(found) = found.map_err(fault("read a certificate"))? else { return Ok(false) };
    let leaf = found.document.leaf;
    let (begin, end) = (leaf.not_before.unix_s(), leaf.not_after.unix_s());
    let left = end.saturating_sub(config.clock.now().unix_s());
    Ok(left > end.saturating_sub(begin) / LEFT_PART)
}

/// Writes down that a certificate is wanted, unless it is so already.
async fn want(
    config: &PlatformNamesConfig,
    key: &Key,
    app_id: &str,
    only_if: Option<Compare>,
) -> Result<(), Error> {
    let (store, now) = (config.store.as_ref(), config.clock.now());
    let found = get_doc::<CertificateDoc>(store, key).await;
    let expected = match found.map_err(fault("read a certificate"))? {
        Some(found) if found.document.app_id == app_id => return Ok(()),
        Some(found) => Expected::Revision(found.revision),
        None => Expected::Absent,
    };
    let mut document = CertificateDoc::new(app_id.to_owned(), now);
    (document.acme_requested, document.of_platform) = (true, true);
    let order = CertificateOrder::new(app_id.to_owned(), now);
    let write = "write a certificate";
    let ops = vec![
        put_op(key, &document).map_err(fault(write))?,
        put_op(key, &order).map_err(fault(write))?,
        // What another app of the name had is not this one's.
        delete_op::<ServedCertificate>(&served(key)),
    ];
    let mut compares: Vec<Compare> = compare::<CertificateDoc>(key, expected).into_iter().collect();
    compares.extend(only_if);
    let written = store.txn(compares, ops).await.and_then(Txn::or_conflict);
    written.map(drop).map_err(fault(write))
}

fn served((org, app, hostname): &Key) -> (OrgSlug, AppName, String, CertificateSource) {
    (org.clone(), app.clone(), hostname.clone(), CertificateSource::Fly)
}

/// Removes what is of an app that is gone; returns whether nothing of it is left. The view may be
/// behind, and what is of another app of the name is not this one's.
async fn end(config: &PlatformNamesConfig, name: &AppName, (org, id): &App) -> Result<bool, Error> {
    let store = config.store.as_ref();
    let key = (org.clone(), name.clone(), under(name, &config.domain));
    let app = get_doc::<AppDoc>(store, &(org.clone(), name.clone())).await;
    if app.map_err(fault("read an app"))?.is_some_and(|found| found.document.id == *id) {
        return Ok(false);
    }
    let found =
        get_doc::<CertificateDoc>(store, &key).await.map_err(fault("read a certificate"))?;
    let Some(found) = found.filter(|it| it.document.of_platform && it.document.app_id == *id)
    else {
        return Ok(true);
    };
    tracing::info!(app = %name, "certificate of an app that is gone is given up");
    let compares = compare::<CertificateDoc>(&key, Expected::Revision(found.revision));
    remove(config, &key, compares.into_iter().collect()).await?;
    Ok(true)
}

async fn remove(
    config: &PlatformNamesConfig,
    key: &Key,
    compares: Vec<Compare>,
) -> Result<(), Error> {
    let ops = vec![
        delete_op::<CertificateDoc>(key),
        delete_op::<CertificateOrder>(key),
        delete_op::<OrderWorker>(key),
        delete_op::<ServedCertificate>(&served(key)),
    ];
    let removed = config.store.txn(compares, ops).await.and_then(Txn::or_conflict);
    removed.map(drop).map_err(fault("remove a certificate"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(names: &[&str]) -> Own {
        let app = |name: &&str| {
            (name.parse::<AppName>().unwrap(), (OrgSlug::personal(), format!("app_{name}")))
        };
        names.iter().map(app).collect()
    }

    #[test]
    fn a_domain_that_means_something_only_here_is_no_public_one() {
        for (domain, want) in [
            ("perch.example", true),
            ("apps.perch.example", true),
            ("perch.localhost", false),
            ("localhost", false),
            ("perch", false),
            ("cloud.internal", false),
            ("perch.test", false),
            ("perch.home.arpa", false),
        ] {
            assert_eq!(is_public(domain), want, "{domain}");
        }
    }

    #[test]
    fn names_have_their_own_until_there_is_one_for_all() {
        let names = |apps: &[(AppName, App)]| -> Vec<String> {
            apps.iter().map(|(name, _)| name.to_string()).collect()
        };
        let none = BTreeSet::new();
        let first = plan(&own(&["b", "a"]), (&own(&["b", "rests"]), &none), false);
        assert_eq!((names(&first.wanted), first.unwanted), (vec!["a".to_owned()], Vec::new()));
        let wide = plan(&own(&["a", "b", "c"]), (&own(&["b", "rests"]), &none), true);
        let unwanted: Vec<String> = wide.unwanted.iter().map(ToString::to_string).collect();
        assert_eq!((wide.wanted, unwanted), (Vec::new(), vec!["b".to_owned(), "rests".to_owned()]));
        let many: Vec<String> = (0..NAMES_MAX + 9).map(|number| format!("app-{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let bounded = plan(&own(&many), (&own(&["x", "y"]), &none), false);
        assert_eq!(bounded.wanted.len(), NAMES_MAX - 2);
        let over = BTreeSet::from(["x".parse::<AppName>().unwrap()]);
        let freed = plan(&own(&many), (&own(&["x", "y"]), &over), false);
        assert_eq!((freed.wanted.len(), freed.unwanted), (NAMES_MAX - 1, Vec::from_iter(over)));
    }

    #[test]
    fn an_app_that_serves_nothing_for_long_gives_its_place_up() {
        let mut known = Known { own: own(&["a", "b"]), ..Known::default() };
        let over = |known: &mut Known, serving: &[&str], now_ms: u64| -> Vec<String> {
            let over = known.over(&own(serving), now_ms);
            over.iter().map(ToString::to_string).collect()
        };
        let late = UNSERVED_MAX_MS;
        assert!(over(&mut known, &["a", "b"], 0).is_empty());
        assert!(over(&mut known, &["a"], 10).is_empty());
        assert!(over(&mut known, &["a"], late + 9).is_empty());
        assert_eq!(over(&mut known, &["a"], late + 10), ["b"]);
        // It serves again for a moment.
        assert!(over(&mut known, &["a", "b"], late + 11).is_empty());
        assert!(over(&mut known, &["a"], late + 20).is_empty());
        assert_eq!(over(&mut known, &["a"], 2 * late + 20), ["b"]);
        known.own.clear();
        assert!(over(&mut known, &[], 2 * late + 30).is_empty() && known.unserved.is_empty());
    }
}
