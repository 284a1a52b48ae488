//! Replays that are remembered, so that the next request goes there at once (contract 4.3).
//!
//! Never across apps, host names or sessions, and never without an end. An app that remembers
//! nothing costs no lock.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderMap;
use http::header::{COOKIE, HeaderName};
use perch_types::AppName;
use perch_types::service::{HttpOptions, ReplayCacheRule, SessionKind};
use tokio::time::Instant;

use crate::direction::Direction;
use crate::live::AppKey;
use crate::replay::{PREFIX_BYTES_MAX, Paths};

/// How many replays are remembered of one app.
const ENTRIES_MAX: usize = 512;
/// How many apps have any.
const APPS_MAX: usize = 1024;
/// The longest name of a session.
const SESSION_BYTES_MAX: usize = 256;
/// How long a session is remembered when its rule does not say.
const SESSION_TTL: Duration = Duration::from_secs(300);
/// How many parts of a path are looked at.
const PARTS_MAX: usize = 32;
const CONTROL: HeaderName = HeaderName::from_static("fly-replay-cache-control");

/// Where a remembered replay goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// Another app, of the same organization and network.
    pub(crate) app: Option<AppName>,
    pub(crate) direction: Direction,
}

/// For which requests something is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    host: String,
    paths: Paths,
    /// A session's name, and where it stands.
    session: Option<(SessionKind, String, String)>,
}

/// What is remembered.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) step: Step,
    pub(crate) until: Instant,
    /// Whether a client may ask for the app itself.
    pub(crate) allow_bypass: bool,
}

/// What is known of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// It goes there.
    Hit(Key, Box<Step>),
    /// The client asks for the app itself, and may.
    Bypass,
}

type Entries = Mutex<HashMap<Key, Entry>>;

/// What is remembered, by app.
#[derive(Debug, Default)]
pub(crate) struct ReplayCache {
    apps: ArcSwap<HashMap<AppKey, Arc<Entries>>>,
}

/// A request as the cache sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Query<'a> {
    pub(crate) host: &'a str,
    pub(crate) path: &'a str,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) options: Option<&'a HttpOptions>,
    pub(crate) now: Instant,
}

impl Query<'_> {
    /// Returns the key of the request's session, by the rule with the longest prefix, and for how
    /// long it holds.
    pub(crate) fn session(&self) -> Option<(Key, Duration, bool)> {
        let rule = rule(self.options?, self.path)?;
        let value = match rule.kind {
            SessionKind::Cookie => cookie(self.headers, &rule.name)?,
            SessionKind::Header => self.headers.get(&rule.name)?.to_str().ok()?,
        };
        if value.is_empty() || value.len() > SESSION_BYTES_MAX {
            return None;
        }
        let key = Key {
            host: self.host.to_owned(),
            paths: Paths::Below(rule.path_prefix.clone()),
            session: Some((rule.kind, rule.name.clone(), value.to_owned())),
        };
        let ttl = rule.ttl_seconds.map_or(SESSION_TTL, |ttl| Duration::from_secs(u64::from(ttl)));
        Some((key, ttl, rule.allow_bypass == Some(true)))
    }

    /// Returns the key of all requests to `paths` of the same host.
    pub(crate) fn shared(&self, paths: Paths) -> Key {
        Key { host: self.host.to_owned(), paths, session: None }
    }

    /// Returns keys under which something may be known of the request, the narrowest first.
    fn keys(&self) -> impl Iterator<Item = Key> {
        let session = self.session().map(|(key, ..)| key);
        let slashes = self.path.match_indices('/').map(|(at, _)| at).take(PARTS_MAX);
        // Nothing longer is remembered.
        let slashes = slashes.take_while(|at| *at < PREFIX_BYTES_MAX);
        let mut slashes: Vec<usize> = slashes.collect();
        slashes.reverse();
        let wider = slashes.into_iter().flat_map(move |at| {
            let below = self.path.get(..=at).map(|path| Paths::Below(path.to_owned()));
            let under = self.path.get(..at).filter(|path| !path.is_empty());
            [below, under.map(|path| Paths::Under(path.to_owned()))].into_iter().flatten()
        });
        let itself = [Paths::One(self.path.to_owned()), Paths::Under(self.path.to_owned())];
        let itself = itself.into_iter().filter(move |_| self.path.len() <= PREFIX_BYTES_MAX);
        let paths = itself.chain(wider);
        session.into_iter().chain(paths.map(move |paths| self.shared(paths)))
    }

    fn wants_bypass(&self) -> bool {
        let values = self.headers.get_all(&CONTROL).iter();
        values.filter_map(|value| value.to_str().ok()).any(|word| word.trim() == "skip")
    }
}

fn rule<'a>(options: &'a HttpOptions, path: &str) -> Option<&'a ReplayCacheRule> {
    let fits = options.replay_cache.iter().filter(|rule| path.starts_with(&rule.path_prefix));
    fits.max_by_key(|rule| rule.path_prefix.len())
}

/// Returns what a cookie says.
pub(crate) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let values = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = values.flat_map(|value| value.split(';')).filter_map(|it| it.split_once('='));
    pairs.find(|(known, _)| known.trim() == name).map(|(_, value)| value.trim())
}

impl ReplayCache {
    /// Returns whether nothing is remembered of an app that still holds; what does not is forgotten,
    /// so that no later request has to look through it.
    pub(crate) fn is_empty_for(&self, app: &AppKey, now: Instant) -> bool {
        self.apps.load().get(app).is_none_or(|entries| {
            let mut entries = entries.lock().unwrap_or_else(PoisonError::into_inner);
            let is_over = entries.values().all(|entry| entry.until <= now);
            if is_over {
                entries.clear();
            }
            is_over
        })
    }

    /// Looks for what is remembered of a request.
    pub(crate) fn look(&self, app: &AppKey, query: &Query<'_>) -> Option<Found> {
        let entries = self.apps.load().get(app).cloned()?;
        let mut entries = entries.lock().unwrap_or_else(PoisonError::into_inner);
        for key in query.keys() {
            let Some(entry) = entries.get(&key) else {
                continue;
            };
            if entry.until <= query.now {
                entries.remove(&key);
                continue;
            }
            if entry.allow_bypass && query.wants_bypass() {
                return Some(Found::Bypass);
            }
            let step = entry.step.clone();
            return Some(Found::Hit(key, Box::new(step)));
        }
        None
    }

    /// Remembers a replay; one more than an app may have takes the place of the one that would
    /// have ended first.
    pub(crate) fn put(&self, app: &AppKey, key: Key, entry: Entry, now: Instant) {
        let Some(entries) = self.entries(app, now) else {
            return;
        };
        let mut entries = entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= ENTRIES_MAX && !entries.contains_key(&key) {
            entries.retain(|_, entry| entry.until > now);
            let first = entries.iter().min_by_key(|(_, entry)| entry.until);
            let first = first.map(|(key, _)| key.clone());
            if let Some(first) = first.filter(|_| entries.len() >= ENTRIES_MAX) {
                entries.remove(&first);
            }
        }
        entries.insert(key, entry);
    }

    /// Forgets what is remembered under a key.
    pub(crate) fn forget(&self, app: &AppKey, key: &Key) {
        if let Some(entries) = self.apps.load().get(app) {
            entries.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        }
    }

    /// Returns an app's entries; of a new app nothing when too many have some that hold.
    fn entries(&self, app: &AppKey, now: Instant) -> Option<Arc<Entries>> {
        if let Some(entries) = self.apps.load().get(app) {
            return Some(Arc::clone(entries));
        }
        self.apps.rcu(|apps| {
            let mut apps = HashMap::clone(apps);
            if apps.len() >= APPS_MAX {
                apps.retain(|_, entries| {
                    let entries = entries.lock().unwrap_or_else(PoisonError::into_inner);
                    entries.values().any(|entry| entry.until > now)
                });
            }
            if apps.len() < APPS_MAX {
                apps.entry(app.clone()).or_default();
            }
            apps
        });
        self.apps.load().get(app).cloned()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use perch_types::OrgSlug;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn app(name: &str) -> AppKey {
        AppKey { org: OrgSlug::personal(), name: name.parse().unwrap() }
    }

    fn entry(name: &str, until: Instant, allow_bypass: bool) -> Entry {
        let step = Step { app: Some(name.parse().unwrap()), direction: Direction::default() };
        Entry { step, until, allow_bypass }
    }

    fn options(rules: &str) -> HttpOptions {
        serde_json::from_str(&format!(r#"{{"replay_cache":{rules}}}"#)).unwrap()
    }

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn to<'a>(path: &'a str, headers: &'a HeaderMap, now: Instant) -> Query<'a> {
        Query { host: "web.example", path, headers, options: None, now }
    }

    fn name_of(found: Option<Found>) -> String {
        match found {
            Some(Found::Hit(_, step)) => step.app.unwrap().to_string(),
            Some(Found::Bypass) => "bypass".to_owned(),
            None => String::new(),
        }
    }

    #[test]
    fn the_longest_prefix_counts_and_only_of_its_host_and_app() {
        let (cache, none, now) = (ReplayCache::default(), HeaderMap::new(), Instant::now());
        let web = app("web");
        for (prefix, to_app) in [("/", "root"), ("/a/", "a"), ("/a/b/", "ab")] {
            let key = to("/", &none, now).shared(Paths::Below(prefix.to_owned()));
            cache.put(&web, key, entry(to_app, now + MINUTE, false), now);
        }
        let key = to("/", &none, now).shared(Paths::One("/a/one".to_owned()));
        cache.put(&web, key, entry("one", now + MINUTE, false), now);
        let key = to("/", &none, now).shared(Paths::Under("/u".to_owned()));
        cache.put(&web, key, entry("u", now + MINUTE, false), now);
        for (path, want) in [
            ("/", "root"),
            ("/a", "root"),
            ("/ab/c", "root"),
            ("/a/", "a"),
            ("/a/x/y", "a"),
            ("/a/b/c", "ab"),
            ("/a/one", "one"),
            ("/a/one/", "a"),
            ("/u", "u"),
            ("/u/", "u"),
            ("/u/x", "u"),
            ("/ux", "root"),
        ] {
            assert_eq!(name_of(cache.look(&web, &to(path, &none, now))), want, "{path}");
        }
        let other = Query { host: "other.example", ..to("/a/", &none, now) };
        assert_eq!(cache.look(&web, &other), None);
        assert_eq!(cache.look(&app("other"), &to("/a/", &none, now)), None);
        let slashes = "/".repeat(60_000);
        assert_eq!(name_of(cache.look(&web, &to(&slashes, &none, now))), "root");
        let long = format!("/{}/b/c", "a".repeat(PREFIX_BYTES_MAX));
        assert_eq!(to(&long, &none, now).keys().count(), 1, "nothing as long is remembered");
        assert_eq!(name_of(cache.look(&web, &to(&long, &none, now))), "root");
        let late = to("/a/", &none, now + MINUTE);
        assert_eq!(cache.look(&web, &late), None, "its time is over");
    }

    #[test]
    fn a_session_is_told_by_the_rule_with_the_longest_prefix() {
        let (cache, now, web) = (ReplayCache::default(), Instant::now(), app("web"));
        let options = options(
            r#"[{"path_prefix":"/","type":"cookie","name":"s"},
                {"path_prefix":"/api","type":"header","name":"x-user","ttl_seconds":20}]"#,
        );
        let all = headers(&[("cookie", "a=b; s=one"), ("x-user", "two")]);
        let query = |path| Query { options: Some(&options), ..to(path, &all, now) };
        let (key, ttl, _) = query("/x").session().unwrap();
        assert_eq!(key.session, Some((SessionKind::Cookie, "s".to_owned(), "one".to_owned())));
        assert_eq!(ttl, SESSION_TTL);
        let (api, ttl, _) = query("/api/x").session().unwrap();
        assert_eq!(api.session, Some((SessionKind::Header, "x-user".to_owned(), "two".to_owned())));
        assert_eq!(ttl, Duration::from_secs(20));
        cache.put(&web, key.clone(), entry("one", now + SESSION_TTL, false), now);
        assert_eq!(name_of(cache.look(&web, &query("/other"))), "one");
        assert_eq!(cache.look(&web, &query("/api/x")), None);
        let other = headers(&[("cookie", "s=other")]);
        let other = Query { headers: &other, ..query("/x") };
        assert_eq!(cache.look(&web, &other), None, "another session");
        let nobody = HeaderMap::new();
        assert!(Query { headers: &nobody, ..query("/x") }.session().is_none());
        cache.forget(&web, &key);
        assert_eq!(cache.look(&web, &query("/x")), None);
    }

    #[test]
    fn a_client_goes_around_it_only_where_it_may() {
        let (cache, now, web) = (ReplayCache::default(), Instant::now(), app("web"));
        assert!(cache.is_empty_for(&web, now));
        let skip = headers(&[("fly-replay-cache-control", "skip")]);
        for (prefix, allow_bypass) in [("/open/", true), ("/closed/", false)] {
            let key = to("/", &skip, now).shared(Paths::Below(prefix.to_owned()));
            cache.put(&web, key, entry("there", now + MINUTE, allow_bypass), now);
        }
        assert_eq!(name_of(cache.look(&web, &to("/open/", &skip, now))), "bypass");
        assert_eq!(name_of(cache.look(&web, &to("/closed/", &skip, now))), "there");
        let known = [(&web, now), (&web, now + MINUTE), (&app("other"), now)];
        let known = known.map(|(app, at)| cache.is_empty_for(app, at));
        assert_eq!(known, [false, true, true]);
        assert!(cache.entries(&web, now).unwrap().lock().unwrap().is_empty(), "all were over");
    }

    #[test]
    fn an_app_has_no_more_than_its_share() {
        let (cache, none, now) = (ReplayCache::default(), HeaderMap::new(), Instant::now());
        let web = app("web");
        for number in 0..ENTRIES_MAX + 10 {
            let key = to("/", &none, now).shared(Paths::One(format!("/{number}")));
            let until = now + MINUTE + Duration::from_secs(number as u64);
            cache.put(&web, key, entry("there", until, false), now);
        }
        let entries = cache.entries(&web, now).unwrap();
        assert_eq!(entries.lock().unwrap().len(), ENTRIES_MAX);
        assert_eq!(cache.look(&web, &to("/0", &none, now)), None, "the first to end went");
        let last = format!("/{}", ENTRIES_MAX + 9);
        assert_eq!(name_of(cache.look(&web, &to(&last, &none, now))), "there");
    }
}
