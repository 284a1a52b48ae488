//! Whose a host name is: claimed with its certificate, by compare-and-set, one owner each.
//!
//! Never takes one from another app but for a record of DNS that names this one: whoever sets
//! records there decides.

use perch_certs::dns;
use perch_store::{Compare, Expected, Op, Store, compare, delete_op, get_doc, put_op};
use perch_types::Code;
use perch_types::certificate_docs::{
    CertificateDoc, CertificateOrder, OrderWorker, ServedCertificate,
};
use perch_types::certificates::{CertificateSource, WILDCARD};
use perch_types::directory::{AppDoc, HostnameClaim};

use super::{Key, answer, served};
use crate::config::Shared;
use crate::error::{Error, store as fault};
use crate::reply::{Failure, chain};

/// Whose a host name is.
#[derive(Debug)]
pub(super) enum Taken {
    /// What a transaction needs so that it is the app's.
    Ours(Vec<Compare>, Vec<Op>),
    /// It is another's; the failure says how it is to be shown that it is not.
    Anothers(Failure),
}

/// Claims a host name for an app.
///
/// # Errors
/// When the directory does not answer.
pub(super) async fn take(shared: &Shared, app: &AppDoc, hostname: &str) -> Result<Taken, Error> {
    let store = shared.store.as_ref();
    let key = (hostname.to_owned(),);
    let found = get_doc::<HostnameClaim>(store, &key).await.map_err(fault("read a claim"))?;
    let claim = HostnameClaim { org: app.org.clone(), app: app.name.clone() };
    let put = put_op(&key, &claim).map_err(fault("write a claim"))?;
    let Some(found) = found else {
        if is_below_anothers(store, app, hostname).await?
            && let Err(refused) = prove(shared, app, hostname, false).await
        {
            return Ok(Taken::Anothers(refused));
        }
        let compares = compare::<HostnameClaim>(&key, Expected::Absent).into_iter().collect();
        return Ok(Taken::Ours(compares, vec![put]));
    };
    let expected = Expected::Revision(found.revision);
    let compares = compare::<HostnameClaim>(&key, expected).into_iter().collect();
    if found.document == claim {
        return Ok(Taken::Ours(compares, Vec::new()));
    }
    if let Err(refused) = prove(shared, app, hostname, found.document.org == app.org).await {
        return Ok(Taken::Anothers(refused));
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

/// Returns whether another organization has all names right below the one above this.
async fn is_below_anothers(store: &dyn Store, app: &AppDoc, hostname: &str) -> Result<bool, Error> {
    let above = (!hostname.starts_with(WILDCARD)).then(|| hostname.split_once('.'));
    let Some((_, above)) = above.flatten() else { return Ok(false) };
    let key = (format!("{WILDCARD}{above}"),);
    let found = get_doc::<HostnameClaim>(store, &key).await.map_err(fault("read a claim"))?;
    Ok(found.is_some_and(|found| found.document.org != app.org))
}

/// Accepts the wish for a host name that another app has, if DNS names this one.
async fn prove(
    shared: &Shared,
    app: &AppDoc,
    hostname: &str,
    of_same_org: bool,
) -> Result<(), Failure> {
    let value = answer::app_value(app);
    match dns::ownership(shared.certificates.dns.as_ref(), hostname).await {
        Ok(values) if values.contains(&value) => return Ok(()),
        Ok(_) => {}
        Err(error) => tracing::debug!(error = chain(&error), "record of ownership not looked up"),
    }
    let whose = if of_same_org { "another app of yours has it" } else { "another app has it" };
    let record = dns::ownership_name(hostname);
    Err(Failure::new(Code::NameTaken, format!("hostname: `{hostname}` is taken: {whose}"))
        .with_hint(format!("to take it over, set the TXT record `{record}` to `{value}`")))
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
