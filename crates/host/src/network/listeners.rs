//! Who listens inside a machine, asked of the kernel from outside of it.
//!
//! Never connects to anything: a program that is asked by a probe connection logs an error, one
//! that is looked at does not.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use super::netlink::Channel;
use super::{Error, namespace};

/// The netlink protocol of socket diagnosis.
const SOCK_DIAG: isize = 4;
/// The request for internet sockets by family.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const FAMILY_V4: u8 = 2;
const FAMILY_V6: u8 = 10;
const PROTOCOL_TCP: u8 = 6;
/// The bit of the state LISTEN in a mask of states.
const STATES_LISTEN: u32 = 1 << 10;
const REQUEST_BYTES: usize = 56;
/// Where the inode is in an answer: behind header, socket, timer, queues and user.
const INODE_AT: usize = 68;

/// A TCP socket that accepts connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listener {
    /// The address it is bound to; unspecified means all of the machine's. `::` takes IPv4
    /// connections too unless the program asked not to.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

impl Listener {
    /// Returns whether connections from outside the machine can reach it.
    #[must_use]
    pub const fn is_reachable(&self) -> bool {
        !self.address.is_loopback()
    }
}

/// A listener and the inode by which processes are known to hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenSocket {
    /// Where it listens.
    pub listener: Listener,
    /// Its inode.
    pub inode: u64,
}

/// A socket inside a machine's network namespace that keeps it alive and answers who listens.
#[derive(Debug)]
pub struct SocketDiag {
    channel: Channel,
}

impl SocketDiag {
    /// Opens the socket inside a network namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the kernel lacks socket diagnosis.
    pub fn open(namespace: BorrowedFd<'_>) -> Result<Self, Error> {
        namespace::inside(namespace, || {
            let channel =
                Channel::open(SOCK_DIAG).map_err(|source| Error::OpenSocket { source })?;
            Ok(Self { channel })
        })
    }

    /// Returns the TCP sockets in LISTEN, sorted. Takes some 10 microseconds and does not block.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn listeners(&mut self) -> Result<Vec<Listener>, Error> {
        let sockets = self.sockets()?;
        let mut listeners: Vec<Listener> = sockets.iter().map(|socket| socket.listener).collect();
        listeners.sort_unstable();
        listeners.dedup();
        Ok(listeners)
    }

    /// Returns the TCP sockets in LISTEN with their inodes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn sockets(&mut self) -> Result<Vec<ListenSocket>, Error> {
        let mut sockets = Vec::new();
        for family in [FAMILY_V4, FAMILY_V6] {
            let entries = self
                .channel
                .dump(SOCK_DIAG_BY_FAMILY, request(family))
                .map_err(|source| Error::List { source })?;
            for (_, body) in entries {
                let socket = parse(&body)
                    .ok_or_else(|| Error::List { source: io::ErrorKind::InvalidData.into() })?;
                sockets.push(socket);
            }
        }
        Ok(sockets)
    }
}

/// Returns `struct inet_diag_req_v2`: family, protocol, extensions, padding, states, socket.
fn request(family: u8) -> Vec<u8> {
    let mut body = vec![family, PROTOCOL_TCP, 0, 0];
    body.extend(STATES_LISTEN.to_ne_bytes());
    body.resize(REQUEST_BYTES, 0);
    body
}

/// Reads `struct inet_diag_msg`: family, state, timer, retransmits, then the socket's ports in
/// network order, its source address and, at the end, its inode.
fn parse(body: &[u8]) -> Option<ListenSocket> {
    let [family, _, _, _, high, low, _, _] = *body.first_chunk::<8>()?;
    let source = body.get(8..)?;
    let address = match family {
        FAMILY_V4 => Ipv4Addr::from(*source.first_chunk::<4>()?).into(),
        FAMILY_V6 => Ipv6Addr::from(*source.first_chunk::<16>()?).to_canonical(),
        _ => return None,
    };
    let inode = u32::from_ne_bytes(*body.get(INODE_AT..)?.first_chunk::<4>()?);
    let listener = Listener { address, port: u16::from_be_bytes([high, low]) };
    Some(ListenSocket { listener, inode: inode.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_read_in_network_order() {
        let mut body = vec![FAMILY_V4, 10, 0, 0, 0x1f, 0x90, 0, 0, 127, 0, 0, 1];
        body.resize(68, 0);
        body.extend(77_u32.to_ne_bytes());
        let ListenSocket { listener, inode } = parse(&body).unwrap();
        assert_eq!(inode, 77);
        assert_eq!(listener, Listener { address: Ipv4Addr::LOCALHOST.into(), port: 8080 });
        assert!(!listener.is_reachable());
        assert_eq!(parse(&body[..9]), None);
    }

    #[test]
    fn a_request_is_as_long_as_the_kernel_wants_it() {
        assert_eq!(request(FAMILY_V6).len(), REQUEST_BYTES);
    }
}
