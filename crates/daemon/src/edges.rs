//! This server's edge as edges of other servers see it: its certificate, and where it is.
//!
//! Never reached by anybody else: who connects has to show a certificate of the same authority. As
//! long as each server makes an authority of its own, there is nobody who has one; the key of it is
//! root's, and this process has only what it is given.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use perch_edge::FarConfig;
use perch_store::{Expected, Store, delete_doc, get_doc, put_doc};
use perch_types::HostId;
use perch_types::directory::EdgeDoc;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::Config;
use crate::setup::{Purpose, Setup, Sockets};

/// The first and the longest pause before it is tried again to write the edge's address down.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Returns what the edge needs to speak with others, where it is to.
pub(crate) fn config(setup: &Setup, sockets: &mut Sockets) -> Result<Option<FarConfig>> {
    let Some((chain, key)) = &setup.edge_certificate else {
        return Ok(None);
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<_, _>>()
        .context("read the edge's certificate")?;
    let key =
        PrivateKeyDer::from_pem_slice(key.expose().as_bytes()).context("read the edge's key")?;
    let authority = chain.last().context("find the authority of the edge's certificate")?;
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).context("use the authority of the edge's certificate")?;
    Ok(Some(FarConfig { listeners: sockets.take(Purpose::EdgePeers), chain, key, roots }))
}

/// Returns where edges of other servers reach this one's.
pub(crate) fn address(config: &Config) -> Option<SocketAddr> {
    let bound = config.edge_peers?;
    if !bound.ip().is_unspecified() {
        return Some(bound);
    }
    let public = config.public_ips().into_iter().next()?;
    Some(SocketAddr::new(public, bound.port()))
}

/// Sees to it that where that is is written down. Until then others do not reach this edge, which
/// serves all the same. Never ends: there is nothing that could follow.
pub(crate) async fn keep(
    store: Arc<dyn Store>,
    host: HostId,
    address: Option<SocketAddr>,
) -> Result<()> {
    until_done(|| write_down(store.as_ref(), &host, address)).await;
    std::future::pending().await
}

/// Tries until it succeeds, after growing pauses.
async fn until_done<F: Future<Output = Result<()>>>(attempt: impl Fn() -> F) {
    let mut pause = BACKOFF_MIN;
    while let Err(error) = attempt().await {
        let error = format!("{error:#}");
        tracing::warn!(error, "edge's address not written down, it is tried again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BACKOFF_MAX);
    }
}

/// Writes down where that is, or that it is nowhere any more.
async fn write_down(store: &dyn Store, host: &HostId, address: Option<SocketAddr>) -> Result<()> {
    let key = (host.clone(),);
    let known = get_doc::<EdgeDoc>(store, &key).await.context("look for the edge's address")?;
    let known = known.map(|found| found.document.address);
    match address {
        Some(address) if known != Some(address) => {
            let put = put_doc(store, &key, &EdgeDoc { address }, Expected::Any).await;
            put.context("write the edge's address down")?;
        }
        None if known.is_some() => {
            let deleted = delete_doc::<EdgeDoc>(store, &key, Expected::Any).await;
            deleted.context("take the edge's address back")?;
        }
        Some(_) | None => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use perch_store::SqliteStore;

    use super::*;
    use crate::certificate::Authority;
    use crate::clock::SystemClock;

    #[test]
    fn the_edge_shows_whose_it_is_under_the_servers_authority() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open(folder.path(), &SystemClock).unwrap();
        let (host, other) = (HostId::from_bits(1), HostId::from_bits(2));
        let (chain, _) = authority.issue_edge(&host, &SystemClock).unwrap();
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(chain.last().unwrap().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let roots = Arc::new(roots);
        let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(
            Arc::clone(&roots),
            Arc::clone(&provider),
        );
        let now = rustls::pki_types::UnixTime::now();
        clients.build().unwrap().verify_client_cert(&chain[0], &[], now).unwrap();
        let servers =
            rustls::client::WebPkiServerVerifier::builder_with_provider(roots, provider).build();
        let servers = servers.unwrap();
        let is_of = |host: &HostId| {
            use rustls::client::danger::ServerCertVerifier as _;
            let name = perch_edge::peer_name(host).try_into().unwrap();
            servers.verify_server_cert(&chain[0], &[], &name, &[], now).is_ok()
        };
        assert_eq!([is_of(&host), is_of(&other)], [true, false]);
    }

    #[test]
    fn others_reach_it_where_it_is_bound_or_at_a_public_address() {
        let at = |peers: Option<&str>| {
            let public_ips = vec!["198.51.100.1".parse().unwrap()];
            let edge_peers = peers.map(|peers| peers.parse().unwrap());
            let config = Config { edge_peers, public_ips, ..Config::default() };
            address(&config).map(|address| address.to_string())
        };
        assert_eq!(at(None), None);
        assert_eq!(at(Some("192.0.2.7:4283")).as_deref(), Some("192.0.2.7:4283"));
        assert_eq!(at(Some("0.0.0.0:4283")).as_deref(), Some("198.51.100.1:4283"));
    }

    #[tokio::test]
    async fn where_it_is_is_written_down_and_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let store =
            SqliteStore::open(folder.path().join("directory.db"), Arc::new(SystemClock)).unwrap();
        let host = HostId::from_bits(1);
        for wanted in [None, Some("192.0.2.7:1"), Some("192.0.2.8:1"), Some("192.0.2.8:1"), None] {
            let wanted: Option<SocketAddr> = wanted.map(|address| address.parse().unwrap());
            write_down(&store, &host, wanted).await.unwrap();
            let known = get_doc::<EdgeDoc>(&store, &(host.clone(),)).await.unwrap();
            assert_eq!(known.map(|found| found.document.address), wanted);
        }
    }

    #[tokio::test]
    async fn what_is_not_written_down_is_tried_again() {
        let tries = Cell::new(0);
        until_done(|| {
            tries.set(tries.get() + 1);
            let outcome =
                if tries.get() < 3 { Err(anyhow::anyhow!("the disk is full")) } else { Ok(()) };
            std::future::ready(outcome)
        })
        .await;
        assert_eq!(tries.get(), 3);
    }

    #[tokio::test]
    async fn a_directory_that_takes_nothing_ends_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(
            SqliteStore::open(folder.path().join("directory.db"), Arc::new(SystemClock)).unwrap(),
        );
        let (host, address) = (HostId::from_bits(1), "192.0.2.7:1".parse().unwrap());
        let keeping = tokio::spawn(keep(Arc::clone(&store), host.clone(), Some(address)));
        let key = (host,);
        while get_doc::<EdgeDoc>(store.as_ref(), &key).await.unwrap().is_none() {
            tokio::task::yield_now().await;
        }
        assert!(!keeping.is_finished(), "the front takes an end for a fault");
        keeping.abort();
    }
}
