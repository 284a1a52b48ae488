//! What the service manager keeps for a server that is restarted: its public sockets, and with them
//! the connections that nobody has accepted yet (the file descriptor store of systemd).
//!
//! Never needed: without a manager sockets are bound anew. What an operator stops is let go.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use anyhow::{Context as _, Result};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::setup::Purpose;

/// Variables of the manager's protocol; a program that takes this one's place must not see the first
/// three: what they name is taken.
pub(crate) const LISTEN: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
/// What is kept. The others are sockets of the server's own processes, which begin anew with it.
const PUBLIC: [(Purpose, &str); 5] = [
    (Purpose::Api, "perch-api"),
    (Purpose::ApiTls, "perch-api-tls"),
    (Purpose::Http, "perch-http"),
    (Purpose::Https, "perch-https"),
    (Purpose::EdgePeers, "perch-edge-peers"),
];

/// Takes what was kept from the server before; nothing if it is not as the protocol says.
pub(crate) fn kept() -> Vec<(Purpose, OwnedFd)> {
    let [pid, count, names] = LISTEN.map(|name| std::env::var(name).unwrap_or_default());
    if pid != std::process::id().to_string() {
        return Vec::new();
    }
    left(&count, &names)
}

fn left(count: &str, names: &str) -> Vec<(Purpose, OwnedFd)> {
    match taken(count) {
        Ok(sockets) => named(names, sockets),
        Err(error) => {
            // The manager would leave the same at each start.
            tracing::warn!(error = format!("{error:#}"), "sockets kept are not used");
            Vec::new()
        }
    }
}

fn taken(count: &str) -> Result<Vec<OwnedFd>> {
    let count = count.parse::<i32>().context("read LISTEN_FDS")?;
    perch_runtime::inherited::sockets(count).context("take the sockets kept")
}

/// Gives sockets the purpose that their name says; others are closed.
fn named(names: &str, sockets: Vec<OwnedFd>) -> Vec<(Purpose, OwnedFd)> {
    let purpose = |name: &str| PUBLIC.iter().find(|(_, own)| *own == name).map(|(own, _)| *own);
    let pairs = names.split(':').zip(sockets);
    pairs.filter_map(|(name, socket)| Some((purpose(name)?, socket))).collect()
}

/// Has the manager keep the public ones of `sockets`, in place of what it kept before.
pub(crate) fn keep(sockets: &[(Purpose, OwnedFd)]) -> Result<()> {
    let Some(path) = std::env::var_os(NOTIFY_SOCKET) else {
        return Ok(());
    };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&path),
    };
    let address = address.context("read NOTIFY_SOCKET")?;
    let manager = UnixDatagram::unbound().context("make a socket")?;
    manager.connect_addr(&address).context("connect to the service manager")?;
    tell(&manager, sockets)
}

fn tell(manager: &UnixDatagram, sockets: &[(Purpose, OwnedFd)]) -> Result<()> {
    for (_, name) in PUBLIC {
        send(manager, &format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[])?;
    }
    for (purpose, socket) in sockets {
        if let Some((_, name)) = PUBLIC.iter().find(|(own, _)| own == purpose) {
            // A listening socket has no end to be watched for.
            send(manager, &format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}"), &[socket.as_fd()])?;
        }
    }
    Ok(())
}

fn send(manager: &UnixDatagram, text: &str, sockets: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !sockets.is_empty() {
        anyhow::ensure!(
            ancillary.push(SendAncillaryMessage::ScmRights(sockets)),
            "a socket does not fit the message"
        );
    }
    let text = [IoSlice::new(text.as_bytes())];
    rustix::net::sendmsg(manager, &text, &mut ancillary, SendFlags::NOSIGNAL)
        .context("tell the service manager")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::setup;

    #[test]
    fn what_is_not_as_the_protocol_says_keeps_no_server_from_its_start() {
        for count in ["254", "-1", "many", ""] {
            assert!(left(count, "perch-http").is_empty(), "{count}");
        }
    }

    #[test]
    fn public_sockets_are_kept_by_name_and_found_again() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let http = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = http.local_addr().unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let sockets: [(Purpose, OwnedFd); 2] =
            [(Purpose::Http, http.into()), (Purpose::DnsTcp, other.into())];
        tell(&ours, &sockets).unwrap();
        drop((ours, sockets));
        let (mut texts, mut stored) = (Vec::new(), Vec::new());
        for _ in 0..PUBLIC.len() + 1 {
            let (text, fds) = setup::receive_packet(&theirs).unwrap();
            texts.push(String::from_utf8(text).unwrap());
            stored.extend(fds);
        }
        assert_eq!(texts[2], "FDSTOREREMOVE=1\nFDNAME=perch-http");
        assert_eq!(texts[3], "FDSTOREREMOVE=1\nFDNAME=perch-https");
        assert_eq!(texts[4], "FDSTOREREMOVE=1\nFDNAME=perch-edge-peers");
        assert_eq!(texts[5], "FDSTORE=1\nFDPOLL=0\nFDNAME=perch-http");
        assert_eq!(stored.len(), 1);
        // What the manager starts the next server with, beside one that nobody knows.
        let unknown: OwnedFd = TcpListener::bind("127.0.0.1:0").unwrap().into();
        let waiting = TcpStream::connect(address).unwrap();
        let found = named("other:perch-http", vec![unknown, stored.remove(0)]);
        let [(Purpose::Http, socket)] = <[_; 1]>::try_from(found).unwrap() else {
            unreachable!("another purpose");
        };
        let (_, peer) = TcpListener::from(socket).accept().unwrap();
        assert_eq!(peer, waiting.local_addr().unwrap());
    }

    #[test]
    fn without_a_manager_nothing_is_kept_or_found() {
        assert!(kept().is_empty());
    }
}
