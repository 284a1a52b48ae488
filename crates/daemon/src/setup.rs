//! The channel between the supervisor and one of its processes.
//!
//! Never used between servers. It is a Unix packet socket that the process has as its standard
//! input: one packet brings the [`Setup`] with the listening sockets, then the process sends a
//! byte now and then to show that it is alive, and the end of the channel means that the
//! supervisor is gone.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use perch_types::{HostId, Secret};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};

use crate::config::Config;

/// The largest setup packet.
const SETUP_BYTES_MAX: usize = 64 * 1024;
/// The most sockets that one process is given; the kernel passes at most 253 at once.
pub(crate) const SOCKETS_MAX: usize = 128;
/// How often a process shows that it is alive.
pub(crate) const BEAT_EVERY_MS: u64 = 1_000;
/// What a process sends to show that.
pub(crate) const BEAT: u8 = b'.';
/// What it sends when another may take its place, while it ends what is under way.
pub(crate) const HANDED_OVER: u8 = b'h';

/// What a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Purpose {
    /// The API and the registry, plain, on loopback.
    Api,
    /// The API and the registry under TLS.
    ApiTls,
    /// The API and the registry on a Unix socket.
    ApiUnix,
    /// The edge; one per core.
    Http,
    /// The edge under TLS; one per core.
    Https,
    /// The edge for edges of other servers; one per core.
    EdgePeers,
    /// What the edge counts.
    Metrics,
    /// Names for machines, datagrams.
    DnsUdp,
    /// Names for machines, connections.
    DnsTcp,
    /// The zone of challenges, datagrams.
    ZoneUdp,
    /// The zone of challenges, connections.
    ZoneTcp,
    /// The directory for the host process.
    Directory,
    /// The host's own interface.
    Host,
    /// The builder's own interface.
    Builder,
    /// Connections out of machines, for the host process from monitors.
    Monitors,
    /// Connections out of machines, for the API from the host process.
    Inside,
    /// The keys' interface for the api.
    Keys,
    /// The keys' interface for this host.
    KeysHost,
    /// What the keys need of the directory.
    DirectoryKeys,
    /// Questions of the edge for ports that apps have claimed; the supervisor's own.
    Ports,
    /// A port that an app has claimed, connections; for the program that takes this one's place.
    ClaimedTcp,
    /// The same, datagrams.
    ClaimedUdp,
}

/// All that a process is told by the supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// The server's settings, ports as bound.
    pub(crate) config: Config,
    /// What the passed sockets are for, in their order.
    pub(crate) sockets: Vec<Purpose>,
    /// This server's id.
    pub(crate) host_id: HostId,
    /// The user id of the unprivileged process.
    pub(crate) front_uid: u32,
    /// The user id of the process that holds the master key.
    pub(crate) keys_uid: u32,
    /// The secret with which the host pulls from the registry; new at every start.
    pub(crate) host_token: Secret,
    /// SHA-256 of the administrator's token, hexadecimal.
    pub(crate) admin_token_hash: String,
    /// The certificate chain and key of the API, PEM, when it serves TLS.
    pub(crate) api_certificate: Option<(String, Secret)>,
    /// The certificate chain, with the CA at its end, and key of the edge, PEM, when it has others.
    pub(crate) edge_certificate: Option<(String, Secret)>,
    /// The folder with `perch-init` and `perch-monitor`.
    pub(crate) guest_dir: PathBuf,
}

/// Makes both ends of a channel.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .context("make a supervision channel")
}

/// Hands an end of a channel to the runtime, once the setup has gone over it. From then on it
/// carries single bytes, and reads and writes of a packet socket are those of a stream.
pub(crate) fn stream(end: OwnedFd) -> Result<tokio::net::UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(end);
    stream.set_nonblocking(true).context("prepare the supervision channel")?;
    tokio::net::UnixStream::from_std(stream).context("prepare the supervision channel")
}

/// Sends the setup and the sockets.
pub(crate) fn send(channel: &OwnedFd, setup: &Setup, sockets: &[BorrowedFd<'_>]) -> Result<()> {
    ensure!(sockets.len() == setup.sockets.len(), "a socket without a purpose");
    let bytes = serde_json::to_vec(setup).context("write the setup")?;
    send_packet(channel, &bytes, sockets).context("send the setup")
}

/// Sends one packet with descriptors.
pub(crate) fn send_packet(
    channel: &OwnedFd,
    bytes: &[u8],
    sockets: &[BorrowedFd<'_>],
) -> Result<()> {
    ensure!(sockets.len() <= SOCKETS_MAX, "{} sockets are more than {SOCKETS_MAX}", sockets.len());
    ensure!(bytes.len() <= SETUP_BYTES_MAX, "the packet is larger than {SETUP_BYTES_MAX} bytes");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !sockets.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(sockets)) {
        bail!("sockets do not fit the message");
    }
    rustix::net::sendmsg(channel, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)
        .context("send a packet")?;
    Ok(())
}

/// Receives the setup and the sockets; blocks until they come.
pub(crate) fn receive(channel: impl AsFd) -> Result<(Setup, Sockets)> {
    let (bytes, fds) = receive_packet(channel)
        .context("receive the setup: this process is started by `perchd serve`, not by hand")?;
    ensure!(!bytes.is_empty(), "the supervisor is gone");
    let setup: Setup = serde_json::from_slice(&bytes).context("read the setup")?;
    ensure!(fds.len() == setup.sockets.len(), "sockets were lost on the way");
    let sockets = Sockets(setup.sockets.iter().copied().zip(fds).collect());
    Ok((setup, sockets))
}

/// Receives one packet with descriptors; no bytes are the end of the channel.
pub(crate) fn receive_packet(channel: impl AsFd) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; SETUP_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        channel,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .context("receive a packet")?;
    bytes.truncate(received.bytes);
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok((bytes, fds))
}

/// Sockets that a process was given.
#[derive(Debug)]
pub(crate) struct Sockets(Vec<(Purpose, OwnedFd)>);

impl Sockets {
    /// Takes all sockets of one purpose.
    pub(crate) fn take<T: From<OwnedFd>>(&mut self, purpose: Purpose) -> Vec<T> {
        let (taken, rest) =
            std::mem::take(&mut self.0).into_iter().partition(|(kind, _)| *kind == purpose);
        self.0 = rest;
        let taken: Vec<(Purpose, OwnedFd)> = taken;
        taken.into_iter().map(|(_, fd)| T::from(fd)).collect()
    }

    /// Takes the one socket of a purpose.
    pub(crate) fn take_one<T: From<OwnedFd>>(&mut self, purpose: Purpose) -> Result<T> {
        self.take(purpose)
            .pop()
            .with_context(|| format!("the supervisor passed no socket for {purpose:?}"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn setup(sockets: Vec<Purpose>) -> Setup {
        Setup {
            config: Config::default(),
            sockets,
            host_id: HostId::from_bits(1),
            front_uid: 1000,
            keys_uid: 1001,
            host_token: Secret::new("pull"),
            admin_token_hash: "00".to_owned(),
            api_certificate: None,
            edge_certificate: None,
            guest_dir: PathBuf::from("/usr/lib/perch"),
        }
    }

    #[test]
    fn a_listener_still_accepts_on_the_other_side() {
        let (ours, theirs) = pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        send(&ours, &setup(vec![Purpose::Api]), &[listener.as_fd()]).unwrap();
        drop(listener);
        let (received, mut sockets) = receive(&theirs).unwrap();
        assert_eq!(received.host_token.expose(), "pull");
        let listener: TcpListener = sockets.take_one(Purpose::Api).unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        client.write_all(b"hello").unwrap();
        let mut bytes = [0; 5];
        accepted.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
        sockets.take_one::<TcpListener>(Purpose::Api).unwrap_err();
    }

    #[test]
    fn a_dead_supervisor_is_an_error() {
        let (ours, theirs) = pair().unwrap();
        drop(ours);
        receive(&theirs).unwrap_err();
    }
}
