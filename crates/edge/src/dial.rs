//! Connects to a machine of this host.
//!
//! Never sends a byte: what is said over a connection is its owner's.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use perch_types::directory::MachineRecord;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::live::Target;

/// Returns where a machine listens, in the order in which that is tried.
pub(crate) const fn addresses(record: &MachineRecord) -> [IpAddr; 2] {
    [IpAddr::V4(record.private_ipv4), IpAddr::V6(record.private_ip)]
}

/// Connects to a machine, which counts the connection. It is nothing when that takes longer than
/// `limit`, or when the connection cannot be prepared: then it was reset at once.
pub(crate) async fn reach(
    target: &Target,
    address: SocketAddr,
    limit: Duration,
    prepare: fn(&TcpStream) -> io::Result<()>,
) -> Option<TcpStream> {
    let machine = &target.record.id;
    let began = Instant::now();
    match tokio::time::timeout(limit, TcpStream::connect(address)).await {
        Ok(Ok(stream)) if prepare(&stream).is_ok() => {
            target.load.instance.connected(began.elapsed());
            Some(stream)
        }
        Ok(Ok(_)) => None,
        Ok(Err(error)) => {
            tracing::debug!(%machine, %address, %error, "machine not connected");
            None
        }
        Err(_) => {
            tracing::debug!(%machine, %address, "machine did not accept in time");
            None
        }
    }
}
