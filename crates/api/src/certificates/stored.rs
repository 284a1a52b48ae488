//! What the directory has of an app's certificates.
//!
//! Never opens a private key: it has nothing that does.

use std::collections::{BTreeMap, BTreeSet};

use perch_store::{Entry, Revision, Store};
use perch_types::certificate_docs::{
    CertificateDoc, CertificateOrder, Leaf, PREFIX, ServedCertificate, order_key, prefix,
    served_key,
};
use perch_types::certificates::CertificateSource;
use perch_types::directory::{AppDoc, Document as _};
use perch_types::{AppName, OrgSlug, Timestamp};

use crate::config::Shared;
use crate::error::{Error, store as fault};

/// All of one host name.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) document: CertificateDoc,
    pub(super) revision: Revision,
    pub(super) order: Option<(CertificateOrder, Revision)>,
    pub(super) served: BTreeMap<CertificateSource, Facts>,
}

impl Stored {
    /// Returns whether an order is wanted, and waits until the host name is the app's.
    pub(super) const fn awaits_ownership(&self) -> bool {
        self.document.pending_ownership && self.document.acme_requested
    }
}

/// What is told of a certificate that is served.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) leaf: Leaf,
    pub(super) created_at: Timestamp,
}

/// Returns the certificates of an app, by host name.
pub(super) async fn of_app(
    shared: &Shared,
    app: &AppDoc,
) -> Result<BTreeMap<String, Stored>, Error> {
    under(shared.store.as_ref(), app, &prefix(&app.org, &app.name)).await
}

/// Returns the certificate of one host name.
pub(super) async fn one(
    shared: &Shared,
    app: &AppDoc,
    hostname: &str,
) -> Result<Option<Stored>, Error> {
    let key = (app.org.clone(), app.name.clone(), hostname.to_owned());
    let mut found = under(shared.store.as_ref(), app, &CertificateDoc::key(&key)).await?;
    // Names that begin with this one are found too.
    Ok(found.remove(hostname))
}

/// Returns the host names that an app has something of.
pub(super) async fn hostnames(
    store: &dyn Store,
    org: &OrgSlug,
    app: &AppName,
) -> Result<BTreeSet<String>, Error> {
    let prefix = prefix(org, app);
    let listing = store.list(&prefix).await.map_err(fault("list certificates"))?;
    let name = |entry: &Entry| {
        let name = entry.key.strip_prefix(&prefix)?.split('/').next()?;
        Some(name.to_owned())
    };
    Ok(listing.entries.iter().filter_map(name).collect())
}

async fn under(
    store: &dyn Store,
    app: &AppDoc,
    prefix: &str,
) -> Result<BTreeMap<String, Stored>, Error> {
    let listing = store.list(prefix).await.map_err(fault("list certificates"))?;
    let mut found: BTreeMap<String, Stored> = BTreeMap::new();
    let mut orders = BTreeMap::new();
    let mut served: BTreeMap<String, BTreeMap<CertificateSource, Facts>> = BTreeMap::new();
    for Entry { key, value, revision } in listing.entries {
        if let Some((_, _, hostname)) = order_key(&key) {
            if let Some(order) = read::<CertificateOrder>(&key, &value) {
                orders.insert(hostname, (order, revision));
            }
        } else if let Some((_, _, hostname, source)) = served_key(&key) {
            if let Some(ServedCertificate { leaf, created_at, .. }) = read(&key, &value) {
                served.entry(hostname).or_default().insert(source, Facts { leaf, created_at });
            }
        } else if let Some(document) = read::<CertificateDoc>(&key, &value) {
            let name = key.strip_prefix(PREFIX).and_then(|rest| rest.rsplit('/').next());
            let (order, served) = (None, BTreeMap::new());
            let stored = Stored { document, revision, order, served };
            // What another app of the name had may not be gone yet.
            if stored.document.app_id == app.id && !stored.document.of_platform {
                found.insert(name.unwrap_or_default().to_owned(), stored);
            }
        }
    }
    for (hostname, stored) in &mut found {
        stored.order = orders.remove(hostname);
        stored.served = served.remove(hostname).unwrap_or_default();
    }
    Ok(found)
}

/// Reads a document; one that does not parse hides no other.
fn read<D: serde::de::DeserializeOwned>(key: &str, value: &[u8]) -> Option<D> {
    serde_json::from_slice(value)
        .inspect_err(|error| tracing::error!(key, %error, "unreadable document"))
        .ok()
}
