//! Certificates of an app's host names (contract 1.10): wanted, uploaded, looked at, taken away.
//!
//! Never gets one: an order that is written down here is carried out by `certs`. Never has a private
//! key but in the body that brings it: it is sealed at once.

mod answer;
mod claim;
mod platform;
mod stored;

pub(crate) use self::platform::of_platform;

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::{Extension, Json as JsonReply};
use http::StatusCode;
use perch_certs::order::{Event, advance};
use perch_certs::{dns, inspect};
use perch_seal::Purpose;
use perch_store::{
    Compare, Expected, Op, Purpose as Write, Store, Txn, compare, delete_op, put_op,
};
use perch_types::certificate_docs::{
    self, CertificateDoc, CertificateOrder, OrderWorker, ServedCertificate,
};
use perch_types::certificates::{
    CERTIFICATES_MAX, CertificateCheck, CertificateDetail, CertificateList, CertificateSource,
    CreateAcmeCertificate, CreateCustomCertificate, CustomCertificateRemoved,
};
use perch_types::directory::{AppDoc, Document as _, HostnameClaim};
use perch_types::error::chain;
use perch_types::{AppName, Code, OrgSlug};

use self::claim::Taken;
use self::stored::Stored;
use crate::body::{Json, Parameters, SecretJson};
use crate::config::Shared;
use crate::documents;
use crate::error::{Error, store as fault};
use crate::reply::Failure;
use crate::routes::OfApp;

/// Certificates of one page, when nothing else was said and at most.
const LIMIT_DEFAULT: usize = 25;
const LIMIT_MAX: usize = 500;
/// Characters of a name that an error shows.
const SHOWN_CHARS_MAX: usize = 80;

type Answer<T> = Result<JsonReply<T>, Failure>;

pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    parameters: Parameters,
) -> Answer<CertificateList> {
    let limit = parameters.parsed::<usize>("limit")?.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        let text = format!("limit: {limit} is not 1 to {LIMIT_MAX}");
        return Err(Failure::new(Code::InvalidRequest, text));
    }
    let filter = parameters.get("filter").map(str::to_ascii_lowercase);
    let wanted = |name: &str| filter.as_deref().is_none_or(|part| name.contains(part));
    let mut all = stored::of_app(&shared, &app).await?;
    all.retain(|hostname, _| wanted(hostname));
    let total_count = u64::try_from(all.len()).unwrap_or(u64::MAX);
    let cursor = parameters.get("cursor").unwrap_or_default();
    let page: Vec<_> = all.iter().filter(|(hostname, _)| hostname.as_str() > cursor).collect();
    let (here, more) = page.split_at(limit.min(page.len()));
    let summary =
        |(hostname, stored): &(&String, &Stored)| answer::summary(&shared, &app, hostname, stored);
    let last = here.last().map(|(hostname, _)| (*hostname).clone());
    Ok(JsonReply(CertificateList {
        certificates: here.iter().map(summary).collect(),
        next_cursor: last.filter(|_| !more.is_empty()),
        total_count,
    }))
}

pub(crate) async fn get(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Path((_, asked)): Path<(String, String)>,
) -> Answer<CertificateDetail> {
    let (hostname, stored) = find(&shared, &app, &asked).await?;
    Ok(JsonReply(answer::detail(&shared, &app, &hostname, &stored)))
}

pub(crate) async fn create_acme(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Json(request): Json<CreateAcmeCertificate>,
) -> Result<(StatusCode, JsonReply<CertificateDetail>), Failure> {
    let hostname = wanted(&shared, &request.hostname)?;
    if !shared.certificates.orders {
        let text = "hostname: this server orders no certificates";
        return Err(Failure::new(Code::UnsupportedKey, text).with_hint(
            "upload one with `perch certs import`, or have the server's operator name an issuer: \
             `[acme] directory` in perchd.toml",
        ));
    }
    let detail = match want(&shared, &app, &hostname).await? {
        true => created(&shared, &app, &hostname).await?,
        false => {
            let (hostname, stored) = find(&shared, &app, &hostname).await?;
            answer::detail(&shared, &app, &hostname, &stored)
        }
    };
    Ok((StatusCode::CREATED, JsonReply(detail)))
}

/// Writes down that a certificate is to be ordered; returns whether the host name is the app's.
/// One that another app has waits for the record that says whose it is.
async fn want(shared: &Shared, app: &AppDoc, hostname: &str) -> Result<bool, Failure> {
    let mut change = Change::begin(shared, app, hostname).await?;
    let is_anothers = change.refused.is_some();
    let is_news = change.stored.as_ref().is_none_or(|Stored { document, .. }| {
        !document.acme_requested || document.pending_ownership != is_anothers
    });
    if !is_news {
        return Ok(!is_anothers);
    }
    if !is_anothers {
        change.put_order()?;
    }
    change.put_document(|document| {
        (document.acme_requested, document.pending_ownership) = (true, is_anothers);
    })?;
    change.commit().await?;
    Ok(!is_anothers)
}

pub(crate) async fn create_custom(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    SecretJson(request): SecretJson<CreateCustomCertificate>,
) -> Result<(StatusCode, JsonReply<CertificateDetail>), Failure> {
    let hostname = wanted(&shared, &request.hostname)?;
    let CreateCustomCertificate { fullchain, private_key, .. } = request;
    let now = shared.clock.now();
    let leaf = inspect::admit(&hostname, &fullchain, &private_key, now)
        .map_err(|refusal| Failure::new(Code::InvalidValue, refusal.to_string()))?;
    let purpose = Purpose::CertificateKey {
        org: &app.org,
        app: &app.name,
        app_id: &app.id,
        hostname: &hostname,
    };
    let sealed = shared.certificates.key.seal(purpose, private_key.expose().as_bytes());
    let document = ServedCertificate {
        app_id: app.id.clone(),
        chain: fullchain,
        sealed_key: sealed.map_err(Error::Seal)?,
        leaf,
        created_at: now,
    };
    let mut change = Change::begin(&shared, &app, &hostname).await?;
    if let Some(refused) = change.refused.take() {
        return Err(refused);
    }
    let key = change.served_key(CertificateSource::Custom);
    change.ops.push(put_op(&key, &document).map_err(fault("write a certificate"))?);
    // What was wanted of it before it was the app's is ordered now.
    if change.stored.as_ref().is_some_and(Stored::awaits_ownership) {
        change.put_order()?;
    }
    change.put_document(|document| document.pending_ownership = false)?;
    change.commit().await?;
    let detail = created(&shared, &app, &hostname).await?;
    Ok((StatusCode::CREATED, JsonReply(detail)))
}

/// Returns a certificate once the view leads to the app.
async fn created(
    shared: &Shared,
    app: &AppDoc,
    hostname: &str,
) -> Result<CertificateDetail, Failure> {
    let leads = |claim: &HostnameClaim| claim.org == app.org && claim.app == app.name;
    let held = shared
        .view
        .wait_for(|view| view.hostname(hostname).is_some_and(leads), shared.limits.view_timeout);
    if held.await.is_none() {
        tracing::warn!(hostname, "view does not hold the host name yet");
    }
    let (hostname, stored) = find(shared, app, hostname).await?;
    Ok(answer::detail(shared, app, &hostname, &stored))
}

pub(crate) async fn delete(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Path((_, asked)): Path<(String, String)>,
) -> Result<StatusCode, Failure> {
    let (hostname, _) = find(&shared, &app, &asked).await?;
    let key = (app.org.clone(), app.name.clone(), hostname);
    let mut ops = vec![
        delete_op::<CertificateDoc>(&key),
        delete_op::<CertificateOrder>(&key),
        delete_op::<OrderWorker>(&key),
    ];
    ops.extend(
        CertificateSource::ALL.map(|source| delete_op::<ServedCertificate>(&served(&key, source))),
    );
    let mut compares = vec![Compare::Exists { key: CertificateDoc::key(&key) }];
    compares.extend(claim::release(shared.store.as_ref(), &key, &mut ops).await?);
    free(&shared, compares, ops, "remove a certificate").await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn delete_acme(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Path((_, asked)): Path<(String, String)>,
) -> Answer<CertificateDetail> {
    let (hostname, stored) = find(&shared, &app, &asked).await?;
    let key = (app.org.clone(), app.name.clone(), hostname);
    let mut document = stored.document.clone();
    (document.acme_requested, document.updated_at) = (false, shared.clock.now());
    let ops = vec![
        put_op(&key, &document).map_err(fault("write a certificate"))?,
        delete_op::<CertificateOrder>(&key),
        delete_op::<ServedCertificate>(&served(&key, CertificateSource::Fly)),
    ];
    take_away(&shared, &app, (&key, &stored), ops).await
}

pub(crate) async fn delete_custom(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Path((_, asked)): Path<(String, String)>,
) -> Answer<CustomCertificateRemoved> {
    let (hostname, stored) = find(&shared, &app, &asked).await?;
    let key = (app.org.clone(), app.name.clone(), hostname.clone());
    let mut document = stored.document.clone();
    document.updated_at = shared.clock.now();
    let ops = vec![
        put_op(&key, &document).map_err(fault("write a certificate"))?,
        delete_op::<ServedCertificate>(&served(&key, CertificateSource::Custom)),
    ];
    let JsonReply(certificate) = take_away(&shared, &app, (&key, &stored), ops).await?;
    let is_served = stored.served.contains_key(&CertificateSource::Fly);
    let warning = match (is_served, certificate.acme_requested) {
        (true, _) => String::new(),
        (false, true) => format!("{hostname} has no certificate until the one ordered is there"),
        (false, false) => {
            format!("{hostname} has no certificate now; `perch certs add` orders one")
        }
    };
    Ok(JsonReply(CustomCertificateRemoved { certificate, warning }))
}

async fn take_away(
    shared: &Shared,
    app: &AppDoc,
    (key, stored): (&Key, &Stored),
    ops: Vec<Op>,
) -> Answer<CertificateDetail> {
    let expected = Expected::Revision(stored.revision);
    let compares = compare::<CertificateDoc>(key, expected).into_iter().collect();
    free(shared, compares, ops, "remove a certificate").await?;
    let (hostname, stored) = find(shared, app, &key.2).await?;
    Ok(JsonReply(answer::detail(shared, app, &hostname, &stored)))
}

pub(crate) async fn check(
    State(shared): State<Arc<Shared>>,
    Extension(OfApp(app)): Extension<OfApp>,
    Path((_, asked)): Path<(String, String)>,
) -> Answer<CertificateCheck> {
    let (hostname, stored) = find(&shared, &app, &asked).await?;
    let seen = dns::look(shared.certificates.dns.as_ref(), &hostname).await.map_err(|error| {
        tracing::warn!(error = chain(&error), "host name not looked up");
        Failure::new(Code::Unavailable, format!("DNS does not answer for `{hostname}`"))
            .with_hint("try again in a moment")
    })?;
    let key = (app.org.clone(), app.name.clone(), hostname.clone());
    let document = CertificateDoc {
        seen: Some(seen.clone()),
        updated_at: shared.clock.now(),
        ..stored.document.clone()
    };
    let expected = Expected::Revision(stored.revision);
    let compares = compare::<CertificateDoc>(&key, expected).into_iter().collect();
    let ops = vec![put_op(&key, &document).map_err(fault("write a certificate"))?];
    documents::commit(shared.store.as_ref(), compares, ops, "write a certificate").await?;
    if stored.awaits_ownership() {
        want(&shared, &app, &hostname).await?;
    }
    nudge(&shared, &key, &stored).await?;
    let (hostname, stored) = find(&shared, &app, &hostname).await?;
    let certificate = answer::detail(&shared, &app, &hostname, &stored);
    Ok(JsonReply(CertificateCheck { certificate, dns_records: seen }))
}

/// Has an order that waits for people go on now; its limits hold all the same.
async fn nudge(shared: &Shared, key: &Key, stored: &Stored) -> Result<(), Error> {
    let Some((order, revision)) = &stored.order else { return Ok(()) };
    let nudged = advance(order.clone(), Event::Nudged, shared.clock.now(), 0);
    if nudged == *order {
        return Ok(());
    }
    let expected = Expected::Revision(*revision);
    let compares = compare::<CertificateOrder>(key, expected).into_iter().collect();
    let ops = vec![put_op(key, &nudged).map_err(fault("write an order"))?];
    match documents::commit(shared.store.as_ref(), compares, ops, "write an order").await {
        // It went on by itself meanwhile.
        Err(error) if error.is_conflict() => Ok(()),
        done => done.map(drop),
    }
}

/// Removes what is left of the certificates of an app that is gone, and its claims.
pub(crate) async fn forget(store: &dyn Store, org: &OrgSlug, app: &AppName) -> Result<(), Error> {
    for hostname in stored::hostnames(store, org, app).await? {
        let key = (org.clone(), app.clone(), hostname);
        let mut ops = vec![delete_op::<OrderWorker>(&key)];
        let compares = claim::release(store, &key, &mut ops).await?.into_iter().collect();
        documents::commit(store, compares, ops, "release a host name").await?;
    }
    documents::forget_under(store, &certificate_docs::prefix(org, app)).await
}

type Key = (OrgSlug, AppName, String);

fn served((org, app, hostname): &Key, source: CertificateSource) -> certificate_docs::ServedKey {
    (org.clone(), app.clone(), hostname.clone(), source)
}

async fn free(
    shared: &Shared,
    compares: Vec<Compare>,
    ops: Vec<Op>,
    operation: &'static str,
) -> Result<(), Error> {
    let done = shared.store.txn_for(Write::Freeing, compares, ops).await;
    done.and_then(Txn::or_conflict).map(drop).map_err(fault(operation))
}

/// Returns the host name that a body wants.
fn wanted(shared: &Shared, text: &str) -> Result<String, Failure> {
    let shown: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    let refuse = |why: &str| Failure::new(Code::InvalidValue, format!("hostname: `{shown}` {why}"));
    let hostname = perch_types::certificates::hostname(text).map_err(refuse)?;
    if is_at_or_below(&hostname, &shared.platform.domain) {
        return Err(refuse("is the platform's own").with_hint("apps are served there without it"));
    }
    if shared.own_names.iter().any(|name| is_at_or_below(&hostname, name)) {
        return Err(refuse("is the platform's own").with_hint("choose another host name"));
    }
    Ok(hostname)
}

/// Returns whether a host name is another one or below it.
fn is_at_or_below(name: &str, base: &str) -> bool {
    name.strip_suffix(base).is_some_and(|below| below.is_empty() || below.ends_with('.'))
}

async fn find(shared: &Shared, app: &AppDoc, asked: &str) -> Result<(String, Stored), Failure> {
    let unknown = || {
        let shown: String = asked.chars().take(SHOWN_CHARS_MAX).collect();
        let text = format!("hostname: the app has no certificate for `{shown}`");
        Failure::new(Code::NotFound, text).with_hint("`perch certs list` shows those that it has")
    };
    let hostname = perch_types::certificates::hostname(asked).map_err(|_| unknown())?;
    let stored = stored::one(shared, app, &hostname).await?.ok_or_else(unknown)?;
    Ok((hostname, stored))
}

/// A change of one host name, put together for one transaction.
struct Change<'a> {
    shared: &'a Shared,
    app: &'a AppDoc,
    hostname: &'a str,
    stored: Option<Stored>,
    /// Why the host name is not the app's; then nothing claims it.
    refused: Option<Failure>,
    compares: Vec<Compare>,
    ops: Vec<Op>,
    /// One after the other, so that the limit is one.
    _turn: tokio::sync::MutexGuard<'a, ()>,
}

impl<'a> Change<'a> {
    async fn begin(
        shared: &'a Shared,
        app: &'a AppDoc,
        hostname: &'a str,
    ) -> Result<Self, Failure> {
        // Others do not wait for what DNS says: who has the host name is looked at again in turn.
        let is_proven = claim::is_proven(shared, app, hostname).await?;
        let turn = shared.assigning.lock().await;
        let store = shared.store.as_ref();
        let stored = stored::one(shared, app, hostname).await?;
        if stored.is_none()
            && stored::hostnames(store, &app.org, &app.name).await?.len() >= CERTIFICATES_MAX
        {
            let text = format!("an app has at most {CERTIFICATES_MAX} certificates");
            return Err(Failure::new(Code::InvalidValue, text).with_hint("remove one of them"));
        }
        let (mut compares, ops, refused) =
            match claim::take(shared, app, hostname, is_proven).await? {
                Taken::Ours(compares, ops) => (compares, ops, None),
                Taken::Anothers(refused) => (Vec::new(), Vec::new(), Some(refused)),
            };
        // An app that was deleted in between must not get what nobody would take away.
        compares.push(documents::still(store, app).await?);
        Ok(Self { shared, app, hostname, stored, refused, compares, ops, _turn: turn })
    }

    fn key(&self) -> Key {
        (self.app.org.clone(), self.app.name.clone(), self.hostname.to_owned())
    }

    fn served_key(&self, source: CertificateSource) -> certificate_docs::ServedKey {
        served(&self.key(), source)
    }

    fn put_order(&mut self) -> Result<(), Error> {
        let key = self.key();
        let order = CertificateOrder::new(self.app.id.clone(), self.shared.clock.now());
        self.compares.extend(compare::<CertificateOrder>(&key, Expected::Absent));
        self.ops.push(put_op(&key, &order).map_err(fault("write an order"))?);
        Ok(())
    }

    fn put_document(&mut self, change: impl FnOnce(&mut CertificateDoc)) -> Result<(), Error> {
        let (key, now) = (self.key(), self.shared.clock.now());
        let (mut document, expected) = match &self.stored {
            Some(stored) => (stored.document.clone(), Expected::Revision(stored.revision)),
            None => (CertificateDoc::new(self.app.id.clone(), now), Expected::Absent),
        };
        document.updated_at = now;
        change(&mut document);
        self.compares.extend(compare::<CertificateDoc>(&key, expected));
        self.ops.push(put_op(&key, &document).map_err(fault("write a certificate"))?);
        Ok(())
    }

    async fn commit(self) -> Result<(), Error> {
        let Self { shared, compares, ops, .. } = self;
        let store = shared.store.as_ref();
        documents::commit(store, compares, ops, "write a certificate").await.map(drop)
    }
}
