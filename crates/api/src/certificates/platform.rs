//! What is told of the certificate for all names under the platform's own domain.
//!
//! Never orders it: `certs` does.

use perch_store::get_doc;
use perch_types::certificate_docs::{CertificateOrder, ServedCertificate, platform_key};
use perch_types::certificates::{CertificateSource, PlatformCertificate};

use super::{answer, served};
use crate::config::Shared;
use crate::error::{Error, store as fault};

/// Returns the certificate; nothing where none is ordered.
pub(crate) async fn of_platform(shared: &Shared) -> Result<Option<PlatformCertificate>, Error> {
    let store = shared.store.as_ref();
    let key = platform_key(&shared.platform.domain).filter(|_| shared.certificates.orders);
    let Some(key) = key else { return Ok(None) };
    let order = get_doc::<CertificateOrder>(store, &key).await.map_err(fault("read an order"))?;
    let Some(order) = order.map(|order| order.document) else { return Ok(None) };
    let held = get_doc::<ServedCertificate>(store, &served(&key, CertificateSource::Fly)).await;
    let held = held.map_err(fault("read a certificate"))?;
    let ends = held.map(|held| held.document.leaf.not_after);
    let now = shared.clock.now();
    Ok(Some(PlatformCertificate {
        acme_challenge: answer::challenge(shared, (&order.app_id, &key.2), Some(&order)),
        expires_at: ends.filter(|ends| *ends > now),
        errors: order.errors,
        hostname: key.2,
    }))
}
