//! Connections that somebody inside a machine opened, on their way from process to process.
//!
//! Never reads a byte of one: the connection itself is passed on, as a descriptor beside a small
//! message that says whose it is. Whoever takes it confirms it with a byte; until then the one who
//! passed it on answers for it.

use std::io::{self, IoSlice, IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::time::Duration;

use perch_types::MachineId;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;

/// The longest message. It fits a socket's buffer, so that it comes whole.
pub const MESSAGE_BYTES_MAX: usize = 1024;
/// How long a process may take to confirm a connection.
pub const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);
/// What confirms.
const TAKEN: u8 = b'+';

/// Which boot a connection came out of, as its monitor says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The machine.
    pub machine: MachineId,
    /// Its boot.
    pub boot: u64,
}

/// Passes a connection on, from a thread that may wait.
///
/// # Errors
/// When nobody took it in time.
pub fn pass_blocking<T: Serialize>(
    to: &Path,
    about: &T,
    connection: BorrowedFd<'_>,
) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // A queue that is full holds up connecting as sending.
    for direction in [Timeout::Send, Timeout::Recv] {
        set_socket_timeout(&socket, direction, Some(CONFIRM_TIMEOUT))?;
    }
    rustix::net::connect(&socket, &SocketAddrUnix::new(to)?)?;
    send(socket.as_fd(), &encode(about)?, connection)?;
    let mut answer = [0];
    StdUnixStream::from(socket).read_exact(&mut answer)?;
    taken(answer[0])
}

/// Passes a connection on.
///
/// # Errors
/// When nobody took it in time.
pub async fn pass<T: Serialize + Sync>(
    to: &Path,
    about: &T,
    connection: BorrowedFd<'_>,
) -> io::Result<()> {
    let message = encode(about)?;
    let passed = async {
        let mut stream = UnixStream::connect(to).await?;
        let connection = connection.try_clone_to_owned()?;
        stream
            .async_io(Interest::WRITABLE, || send(stream.as_fd(), &message, connection.as_fd()))
            .await?;
        taken(stream.read_u8().await?)
    };
    tokio::time::timeout(CONFIRM_TIMEOUT, passed).await?
}

/// Takes a connection; it is still to be confirmed.
///
/// # Errors
/// When no connection comes, or none with such a message.
pub async fn receive<T: DeserializeOwned>(from: &UnixStream) -> io::Result<(T, UnixStream)> {
    let received = from.async_io(Interest::READABLE, || take(from.as_fd()));
    let (message, connection) = tokio::time::timeout(CONFIRM_TIMEOUT, received).await??;
    let about = serde_json::from_slice(&message).map_err(io::Error::other)?;
    let connection = StdUnixStream::from(connection);
    connection.set_nonblocking(true)?;
    Ok((about, UnixStream::from_std(connection)?))
}

/// Confirms a connection.
///
/// # Errors
/// When the one who passed it on waits no more.
pub async fn confirm(from: &mut UnixStream) -> io::Result<()> {
    from.write_all(&[TAKEN]).await
}

fn encode<T: Serialize>(about: &T) -> io::Result<Vec<u8>> {
    let message = serde_json::to_vec(about).map_err(io::Error::other)?;
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(io::Error::other("the message is longer than its limit"));
    }
    Ok(message)
}

fn taken(answer: u8) -> io::Result<()> {
    if answer == TAKEN { Ok(()) } else { Err(io::Error::other("another answer came")) }
}

fn send(socket: BorrowedFd<'_>, message: &[u8], connection: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [connection];
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    let sent = sendmsg(socket, &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL)?;
    if sent == message.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

fn take(socket: BorrowedFd<'_>) -> io::Result<(Vec<u8>, OwnedFd)> {
    let mut message = vec![0; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut message)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    message.truncate(received.bytes);
    let mut connections = ancillary.drain().filter_map(|one| match one {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let connection = connections.next().and_then(|mut descriptors| descriptors.next());
    let connection = connection.ok_or_else(|| io::Error::other("no connection came along"))?;
    Ok((message, connection))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tokio::net::UnixListener;

    use super::*;

    fn origin() -> Origin {
        Origin { machine: MachineId::from_bits(7), boot: 3 }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_connection_arrives_with_what_is_said_about_it_and_works_from_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (mut client, inner) = StdUnixStream::pair().unwrap();
        let from_monitor = tokio::task::spawn_blocking({
            let path = path.clone();
            move || pass_blocking(&path, &origin(), inner.as_fd())
        });
        let (mut stream, _) = listener.accept().await.unwrap();
        let (about, connection) = receive::<Origin>(&stream).await.unwrap();
        assert_eq!(about, origin());
        confirm(&mut stream).await.unwrap();
        from_monitor.await.unwrap().unwrap();

        // Another hop, as from the agent to the front process.
        let hop = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (about, connection) = receive::<Origin>(&stream).await.unwrap();
            confirm(&mut stream).await.unwrap();
            (about, connection)
        };
        let about = origin();
        let (passed, (_, mut last)) = tokio::join!(pass(&path, &about, connection.as_fd()), hop);
        passed.unwrap();
        drop(connection);
        client.write_all(b"hello").unwrap();
        let mut heard = [0; 5];
        last.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nobody_there_and_nobody_who_takes_it_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let (_client, inner) = StdUnixStream::pair().unwrap();
        assert!(pass_blocking(&path, &origin(), inner.as_fd()).is_err());
        let listener = UnixListener::bind(&path).unwrap();
        let refuse = async { drop(listener.accept().await.unwrap()) };
        let about = origin();
        let (passed, ()) = tokio::join!(pass(&path, &about, inner.as_fd()), refuse);
        assert!(passed.is_err());
    }

    #[tokio::test]
    async fn a_message_without_a_connection_is_refused() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"{}").await.unwrap();
        receive::<Origin>(&ours).await.unwrap_err();
    }
}
