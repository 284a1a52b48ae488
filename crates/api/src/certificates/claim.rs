//! Whose a host name is: claimed with its certificate, by compare-and-set, one owner each.
//!
//! Never takes one from another app but for a record of DNS that names this one: whoever sets
//! records there decides.

use perch_certs::dns;
use perch_store::{
    Compare, Entry, Expected, Op, Store, Versioned, compare, delete_op, get_doc, put_op,
};
use perch_types::Code;
use perch_types::certificate_docs::{
    CertificateDoc, CertificateOrder, OrderWorker, ServedCertificate,
};
use perch_types::certificates::{CertificateSource, WILDCARD};
use perch_types::directory::{AppDoc, Document as _, HostnameClaim};
use perch_types::error::chain;

use super::{Key, answer, is_at_or_below, served};
use crate::config::Shared;
use crate::error::{Error, store as fault};
use crate::reply::Failure;

/// Whose a host name is.
#[derive(Debug)]
pub(super) enum Taken {
    /// What a transaction needs so that it is the app's.
    Ours(Vec<Compare>, Vec<Op>),
    /// It is another's; the failure says how it is to be shown that it is not.
    Anothers(Failure),
}

/// Who else has a right to a host name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rival {
    /// Another app of the same organization.
    SameOrg,
    /// Another organization.
    AnotherOrg,
}

/// Returns whether DNS names the app for a host name that another has a right to; where none has,
/// nobody is asked. Whoever sets records there may answer slowly: it is asked before the turn.
///
/// # Errors
/// When the directory does not answer.
pub(super) async fn is_proven(
    shared: &Shared,
    app: &AppDoc,
    hostname: &str,
) -> Result<bool, Error> {
    let (_, rival) = standing(shared.store.as_ref(), app, hostname).await?;
    if rival.is_none() {
        return Ok(false);
    }
    Ok(match dns::ownership(shared.certificates.dns.as_ref(), hostname).await {
        Ok(values) => values.contains(&answer::app_value(app)),
        Err(error) => {
            tracing::debug!(error = chain(&error), "record of ownership not looked up");
            false
        }
    })
}

/// Claims a host name for an app; `is_proven` says that DNS names it.
///
/// # Errors
/// When the directory does not answer.
pub(super) async fn take(
    shared: &Shared,
    app: &AppDoc,
    hostname: &str,
    is_proven: bool,
) -> Result<Taken, Error> {
    let (found, rival) = standing(shared.store.as_ref(), app, hostname).await?;
    if let Some(rival) = rival.filter(|_| !is_proven) {
        return Ok(Taken::Anothers(refused(app, hostname, rival)));
    }
    let key = (hostname.to_owned(),);
    let claim = HostnameClaim { org: app.org.clone(), app: app.name.clone() };
    let put = put_op(&key, &claim).map_err(fault("write a claim"))?;
    let Some(found) = found else {
        let compares = compare::<HostnameClaim>(&key, Expected::Absent).into_iter().collect();
        return Ok(Taken::Ours(compares, vec![put]));
    };
    let expected = Expected::Revision(found.revision);
    let compares = compare::<HostnameClaim>(&key, expected).into_iter().collect();
    if found.document == claim {
        return Ok(Taken::Ours(compares, Vec::new()));
    }
    tracing::info!(
        hostname, from = %found.document.app, to = %app.name,
        "host name goes to the app that its record of ownership names"
    );
    let HostnameClaim { org, app } = found.document;
    let before = (org, app, hostname.to_owned());
    let mut ops = vec![
        put,
        delete_op::<CertificateDoc>(&before),
        delete_op::<CertificateOrder>(&before),
        delete_op::<OrderWorker>(&before),
    ];
    let gone = |source| delete_op::<ServedCertificate>(&served(&before, source));
    ops.extend(CertificateSource::ALL.map(gone));
    Ok(Taken::Ours(compares, ops))
}

/// Returns the claim of a host name, and who but the app has a right to it.
async fn standing(
    store: &dyn Store,
    app: &AppDoc,
    hostname: &str,
) -> Result<(Option<Versioned<HostnameClaim>>, Option<Rival>), Error> {
    let key = (hostname.to_owned(),);
    let found = get_doc::<HostnameClaim>(store, &key).await.map_err(fault("read a claim"))?;
    let rival = match found.as_ref().map(|found| &found.document) {
        Some(claim) if claim.org != app.org => Some(Rival::AnotherOrg),
        Some(claim) if claim.app != app.name => Some(Rival::SameOrg),
        Some(_) => None,
        None => {
            let is_anothers = is_below_anothers(store, app, hostname).await?
                || is_above_anothers(store, app, hostname).await?;
            is_anothers.then_some(Rival::AnotherOrg)
        }
    };
    Ok((found, rival))
}

/// Returns whether another organization has all names right below the one above this.
async fn is_below_anothers(store: &dyn Store, app: &AppDoc, hostname: &str) -> Result<bool, Error> {
    let above = (!hostname.starts_with(WILDCARD)).then(|| hostname.split_once('.'));
    let Some((_, above)) = above.flatten() else { return Ok(false) };
    let key = (format!("{WILDCARD}{above}"),);
    let found = get_doc::<HostnameClaim>(store, &key).await.map_err(fault("read a claim"))?;
    Ok(found.is_some_and(|found| found.document.org != app.org))
}

/// Returns whether all names below one are wanted while another organization has that one, or one
/// below it: requests to it would be answered by whoever has them all.
async fn is_above_anothers(store: &dyn Store, app: &AppDoc, hostname: &str) -> Result<bool, Error> {
    let Some(base) = hostname.strip_prefix(WILDCARD) else { return Ok(false) };
    let listing = store.list(HostnameClaim::PREFIX).await.map_err(fault("list claims"))?;
    let is_there = |entry: &&Entry| {
        let name = entry.key.strip_prefix(HostnameClaim::PREFIX);
        name.is_some_and(|name| is_at_or_below(name, base))
    };
    // One that cannot be read may be anybody's.
    let is_ours = |entry: &Entry| {
        let claim = serde_json::from_slice::<HostnameClaim>(&entry.value);
        claim.is_ok_and(|claim| claim.org == app.org)
    };
    Ok(listing.entries.iter().filter(is_there).any(|entry| !is_ours(entry)))
}

/// Says whose a host name is, and how it is shown to be the app's.
fn refused(app: &AppDoc, hostname: &str, rival: Rival) -> Failure {
    let whose = match rival {
        Rival::SameOrg => "another app of yours has it",
        Rival::AnotherOrg => "another app has it",
    };
    let (record, value) = (dns::ownership_name(hostname), answer::app_value(app));
    Failure::new(Code::NameTaken, format!("hostname: `{hostname}` is taken: {whose}"))
        .with_hint(format!("to take it over, set the TXT record `{record}` to `{value}`"))
}

/// Adds to a transaction what gives a host name back, if it is this app's.
pub(super) async fn release(
    store: &dyn Store,
    (org, app, hostname): &Key,
    ops: &mut Vec<Op>,
) -> Result<Option<Compare>, Error> {
    let key = (hostname.clone(),);
    let found = get_doc::<HostnameClaim>(store, &key).await.map_err(fault("read a claim"))?;
    let Some(found) = found.filter(|it| it.document.org == *org && it.document.app == *app) else {
        return Ok(None);
    };
    ops.push(delete_op::<HostnameClaim>(&key));
    Ok(compare::<HostnameClaim>(&key, Expected::Revision(found.revision)))
}
