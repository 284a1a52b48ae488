//! What an app says of a replay: `fly-replay` as a field or as a body (contract 4.3). Pure.
//!
//! Never half understood: what is unclear is an error, for nobody knows then where the request
//! was to go.

use std::borrow::Cow;
use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use perch_types::service::REPLAY_TTL_S_MIN;
use perch_types::{AppName, GoDuration, MachineId};
use serde::Deserialize;

use crate::direction::{Direction, Instance};
use crate::headers;
use crate::regions;

/// The field that asks for a replay.
pub(crate) const FIELD: HeaderName = HeaderName::from_static("fly-replay");
const CACHE: HeaderName = HeaderName::from_static("fly-replay-cache");
const CACHE_TTL: HeaderName = HeaderName::from_static("fly-replay-cache-ttl-secs");
const CACHE_BYPASS: HeaderName = HeaderName::from_static("fly-replay-cache-allow-bypass");
/// The body that asks for one.
const JSON: &str = "application/vnd.fly.replay+json";

/// The longest time that an app can set for a replay.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// The longest time for which a replay is remembered.
const TTL_MAX: Duration = Duration::from_secs(86_400);
/// The longest path, or prefix of one, that is remembered.
pub(crate) const PREFIX_BYTES_MAX: usize = 256;
/// The longest state.
const STATE_BYTES_MAX: usize = 4096;
/// How many fields of a request are changed.
const FIELDS_MAX: usize = 32;

/// Where a request is to go instead, and how.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Replay {
    pub(crate) region: Option<String>,
    pub(crate) instance: Option<Instance>,
    pub(crate) prefer_instance: Option<Instance>,
    pub(crate) app: Option<AppName>,
    pub(crate) state: Option<String>,
    pub(crate) elsewhere: bool,
    pub(crate) timeout: Option<Duration>,
    pub(crate) fallback: Option<Fallback>,
    pub(crate) transform: Transform,
    pub(crate) cache: Option<Remember>,
}

/// Who answers when nobody takes the replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fallback {
    /// The machine that asked for it.
    ForceSelf,
    /// Any of its app, that machine first.
    PreferSelf,
}

/// What is changed in the request.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Transform {
    path: Option<PathAndQuery>,
    delete: Vec<HeaderName>,
    set: Vec<(HeaderName, HeaderValue)>,
}

/// For which requests a replay is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Remember {
    Paths {
        host: Option<String>,
        paths: Paths,
        ttl: Duration,
        allow_bypass: bool,
    },
    /// What was remembered for these is forgotten.
    Forget {
        paths: Paths,
    },
}

/// One path, all that begin so, or one and all below it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Paths {
    One(String),
    /// Ends with `/`.
    Below(String),
    /// Does not.
    Under(String),
}

/// A replay that cannot be understood, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read a replay: {0}")]
pub(crate) struct Unclear(pub(crate) &'static str);

impl Replay {
    /// Returns where the request goes among the machines of its app; `responder` asked for it.
    pub(crate) fn direction(&self, responder: &MachineId) -> Direction {
        Direction {
            only: self.instance.clone(),
            prefer: self.prefer_instance.clone(),
            without: self.elsewhere.then(|| responder.clone()),
            regions: self.region.as_deref().map(regions::list).unwrap_or_default(),
            is_region_forced: self.region.is_some(),
        }
    }

    /// Returns whether it may be remembered: only one that is the same for the next request.
    pub(crate) fn is_plain(&self) -> bool {
        self.state.is_none()
            && self.timeout.is_none()
            && self.fallback.is_none()
            && self.transform == Transform::default()
    }
}

impl Transform {
    pub(crate) fn apply(&self, path: &mut PathAndQuery, headers: &mut HeaderMap) {
        if let Some(other) = &self.path {
            *path = other.clone();
        }
        for name in &self.delete {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
    }
}

/// Returns whether an answer's body asks for a replay.
pub(crate) fn is_body(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| is_kind(value.as_bytes()))
}

/// Returns whether a type of content is that of a body which asks for a replay.
pub(crate) fn is_kind(content_type: &[u8]) -> bool {
    let kind = content_type.split(|byte| *byte == b';').next().unwrap_or_default();
    kind.trim_ascii().eq_ignore_ascii_case(JSON.as_bytes())
}

/// Returns whether an answer says that what led to it is not to be remembered.
pub(crate) fn forgets(headers: &HeaderMap) -> bool {
    let value = headers.get(&CACHE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.trim().eq_ignore_ascii_case("invalidate")
}

/// Reads the fields of an answer; nothing when none asks for a replay.
pub(crate) fn from_fields(headers: &HeaderMap) -> Result<Option<Replay>, Unclear> {
    let mut values = headers.get_all(&FIELD).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(Unclear("fly-replay is there more than once"));
    }
    let text = value.to_str().map_err(|_| Unclear("fly-replay is no text"))?;
    let mut replay = Replay::default();
    let mut known = 0;
    for (name, value) in pairs(text)? {
        known += u32::from(take(&mut replay, name, value)?);
    }
    if known == 0 {
        return Err(Unclear("fly-replay says nothing"));
    }
    replay.cache = cache_of(headers)?;
    Ok(Some(replay))
}

/// Splits `name=value;name="value;more"`.
fn pairs(text: &str) -> Result<Vec<(&str, &str)>, Unclear> {
    let mut is_quoted = false;
    let parts = text.split(|letter: char| {
        is_quoted ^= letter == '"';
        letter == ';' && !is_quoted
    });
    let parts: Vec<&str> = parts.map(str::trim).filter(|part| !part.is_empty()).collect();
    let mut pairs = Vec::with_capacity(parts.len());
    for part in parts {
        let (name, value) = part.split_once('=').ok_or(Unclear("a field has no value"))?;
        let value = value.trim();
        let plain = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        let (name, value) = (name.trim(), plain.unwrap_or(value));
        if value.contains('"') {
            return Err(Unclear("a quotation mark is in the middle of a value"));
        }
        if pairs.iter().any(|(known, _)| *known == name) {
            return Err(Unclear("a field is there twice"));
        }
        pairs.push((name, value));
    }
    Ok(pairs)
}

/// Takes one field; returns whether it is known.
fn take(replay: &mut Replay, name: &str, value: &str) -> Result<bool, Unclear> {
    match name {
        "region" => replay.region = Some(value.to_owned()),
        "instance" => replay.instance = Some(Instance::of(value)),
        "prefer_instance" => replay.prefer_instance = Some(Instance::of(value)),
        "app" => replay.app = Some(app(value)?),
        "state" => replay.state = Some(state(value)?),
        "elsewhere" => replay.elsewhere = yes(value)?,
        "timeout" => replay.timeout = Some(timeout(value)?),
        "fallback" => replay.fallback = Some(fallback(value)?),
        // One that comes later than this server.
        _ => return Ok(false),
    }
    Ok(true)
}

fn app(value: &str) -> Result<AppName, Unclear> {
    value.parse().map_err(|_| Unclear("app is no name of an app"))
}

fn state(value: &str) -> Result<String, Unclear> {
    let fine = value.len() <= STATE_BYTES_MAX && HeaderValue::from_str(value).is_ok();
    fine.then(|| value.to_owned()).ok_or(Unclear("state is too long or no text"))
}

/// Returns a state as it stands in a list of fields: as it is, or quoted (RFC 9110, section 5.6.4)
/// where another field could be seen in it.
pub(crate) fn quoted(state: &str) -> Cow<'_, str> {
    if !state.contains(';') {
        return Cow::Borrowed(state);
    }
    let escaped = state.replace('\\', "\\\\").replace('"', "\\\"");
    Cow::Owned(format!("\"{escaped}\""))
}

fn yes(value: &str) -> Result<bool, Unclear> {
    match value {
        "true" | "yes" => Ok(true),
        "false" | "no" => Ok(false),
        _ => Err(Unclear("allowed are true, false")),
    }
}

fn timeout(value: &str) -> Result<Duration, Unclear> {
    let duration: GoDuration =
        value.parse().map_err(|_| Unclear("timeout is no time such as 10s"))?;
    Ok(duration.get().min(TIMEOUT_MAX))
}

fn fallback(value: &str) -> Result<Fallback, Unclear> {
    match value {
        "force_self" => Ok(Fallback::ForceSelf),
        "prefer_self" => Ok(Fallback::PreferSelf),
        _ => Err(Unclear("fallback is force_self or prefer_self")),
    }
}

/// Reads `fly-replay-cache` and the fields beside it.
fn cache_of(headers: &HeaderMap) -> Result<Option<Remember>, Unclear> {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(pattern) = text(&CACHE).filter(|_| !forgets(headers)) else {
        return Ok(None);
    };
    let (host, paths) = pattern_of(pattern)?;
    let ttl = text(&CACHE_TTL).and_then(|ttl| ttl.trim().parse().ok());
    let ttl = ttl_of(ttl.ok_or(Unclear("fly-replay-cache-ttl-secs is no number"))?)?;
    let allow_bypass = text(&CACHE_BYPASS).is_some_and(|value| yes(value.trim()) == Ok(true));
    Ok(Some(Remember::Paths { host, paths, ttl, allow_bypass }))
}

fn ttl_of(seconds: u64) -> Result<Duration, Unclear> {
    if seconds < u64::from(REPLAY_TTL_S_MIN) {
        return Err(Unclear("a replay is remembered for at least 10 seconds"));
    }
    Ok(Duration::from_secs(seconds).min(TTL_MAX))
}

/// Reads `[host]/path/*`.
fn pattern_of(pattern: &str) -> Result<(Option<String>, Paths), Unclear> {
    let pattern = pattern.trim();
    let at = pattern.find('/').ok_or(Unclear("the pattern of a cache has no path"))?;
    let (host, path) = pattern.split_at(at);
    let host = (!host.is_empty()).then(|| host.to_ascii_lowercase());
    if path.len() > PREFIX_BYTES_MAX {
        return Err(Unclear("the pattern of a cache is too long"));
    }
    let paths = match path.strip_suffix('*') {
        Some(prefix) if prefix.ends_with('/') => Paths::Below(prefix.to_owned()),
        None if !path.contains('*') => Paths::One(path.to_owned()),
        _ => return Err(Unclear("the pattern of a cache ends with /* or names one path")),
    };
    Ok((host, paths))
}

/// A replay as a body.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Json {
    region: Option<Words>,
    instance: Option<String>,
    prefer_instance: Option<String>,
    app: Option<String>,
    state: Option<String>,
    elsewhere: Option<bool>,
    timeout: Option<String>,
    fallback: Option<String>,
    transform: Option<JsonTransform>,
    cache: Option<JsonCache>,
    allow_bypass: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Words {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct JsonTransform {
    path: Option<String>,
    delete_headers: Vec<String>,
    set_headers: Vec<JsonField>,
}

#[derive(Debug, Deserialize)]
struct JsonField {
    name: String,
    value: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct JsonCache {
    prefix: Option<String>,
    ttl: Option<Seconds>,
    invalidate: Option<bool>,
    allow_bypass: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Seconds {
    Number(u64),
    Text(GoDuration),
}

/// Reads a body that asks for a replay.
pub(crate) fn from_body(bytes: &[u8]) -> Result<Replay, Unclear> {
    let json: Json =
        serde_json::from_slice(bytes).map_err(|_| Unclear("the body is not as it should be"))?;
    let mut replay = Replay {
        region: json.region.map(|words| match words {
            Words::One(text) => text,
            Words::Many(texts) => texts.join(","),
        }),
        elsewhere: json.elsewhere.unwrap_or(false),
        ..Replay::default()
    };
    let fields = [
        ("instance", json.instance),
        ("prefer_instance", json.prefer_instance),
        ("app", json.app),
        ("state", json.state),
        ("timeout", json.timeout),
        ("fallback", json.fallback),
    ];
    for (name, value) in fields {
        if let Some(value) = value {
            take(&mut replay, name, &value)?;
        }
    }
    if let Some(transform) = json.transform {
        replay.transform = transform_of(transform)?;
    }
    if let Some(cache) = json.cache {
        replay.cache = Some(remember_of(cache, json.allow_bypass)?);
    }
    if replay == Replay::default() {
        return Err(Unclear("the body says nothing"));
    }
    Ok(replay)
}

fn remember_of(cache: JsonCache, beside: Option<bool>) -> Result<Remember, Unclear> {
    let prefix = cache.prefix.ok_or(Unclear("cache has no prefix"))?;
    // A prefix is one of whole parts of a path, with or without the sign for it; `/a` begins so too.
    let whole = prefix.trim_end_matches('*');
    let slash = if whole.ends_with('/') { "" } else { "/" };
    let (host, paths) = pattern_of(&format!("{whole}{slash}*"))?;
    let paths = match paths {
        Paths::Below(path) if !slash.is_empty() && path.len() > 1 => {
            Paths::Under(path.trim_end_matches('/').to_owned())
        }
        paths => paths,
    };
    if cache.invalidate == Some(true) {
        return Ok(Remember::Forget { paths });
    }
    let ttl = match cache.ttl.ok_or(Unclear("cache has no ttl"))? {
        Seconds::Number(seconds) => seconds,
        Seconds::Text(duration) => duration.get().as_secs(),
    };
    let allow_bypass = cache.allow_bypass.or(beside).unwrap_or(false);
    Ok(Remember::Paths { host, paths, ttl: ttl_of(ttl)?, allow_bypass })
}

fn transform_of(json: JsonTransform) -> Result<Transform, Unclear> {
    if json.delete_headers.len() + json.set_headers.len() > FIELDS_MAX {
        return Err(Unclear("transform changes too many fields"));
    }
    let path = match json.path {
        Some(path) if path.starts_with('/') => {
            Some(path.parse().map_err(|_| Unclear("transform.path is no path"))?)
        }
        Some(_) => return Err(Unclear("transform.path is no path")),
        None => None,
    };
    let delete = json.delete_headers.iter().map(|name| field(name)).collect::<Result<_, _>>()?;
    let mut set = Vec::with_capacity(json.set_headers.len());
    for one in json.set_headers {
        let value = HeaderValue::from_str(&one.value);
        set.push((field(&one.name)?, value.map_err(|_| Unclear("a field's value is no text"))?));
    }
    Ok(Transform { path, delete, set })
}

/// Reads the name of a field that an app may change; those that frame a request, name its host or
/// say what the edge saw are not.
fn field(name: &str) -> Result<HeaderName, Unclear> {
    let name =
        HeaderName::from_bytes(name.as_bytes()).map_err(|_| Unclear("a field has no such name"))?;
    if headers::is_edges(&name) {
        return Err(Unclear("a field is the edge's alone"));
    }
    Ok(name)
}

#[cfg(test)]
mod tests;
