//! Requests to the kernel over one netlink socket, several in one system call.
//!
//! Never used from two threads at once, never retries. A socket belongs to the network namespace
//! of the thread that opened it, for good.

use std::io;
use std::time::Duration;

use rtnetlink::sys::Socket;
use rustix::net::sockopt;

const HEADER_BYTES: usize = 16;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const FLAG_REQUEST: u16 = 0x01;
const FLAG_ACK: u16 = 0x04;
const FLAG_DUMP: u16 = 0x300;
/// For requests that make something: make it, or change it if it is there.
pub(super) const REPLACE: u16 = 0x400 | 0x100;
/// For requests that make something: refuse if it is there.
pub(super) const EXCLUSIVE: u16 = 0x400 | 0x200;
/// The kernel answers while it is asked; longer than this means that it never will.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Entries taken of one dump.
const DUMP_ENTRIES_MAX: usize = 1 << 20;

/// One request: the type, flags beyond request and acknowledgement, the body.
#[derive(Debug, Clone)]
pub(super) struct Request {
    /// Which request of the protocol.
    pub(super) kind: u16,
    /// [`REPLACE`], [`EXCLUSIVE`] or nothing.
    pub(super) flags: u16,
    /// Whether the kernel answers it by itself.
    pub(super) acknowledged: bool,
    /// What follows the header.
    pub(super) body: Vec<u8>,
}

/// What the kernel refused: which of the requests, and why.
#[derive(Debug)]
pub(super) struct Refused {
    /// Position among the requests.
    pub(super) request: usize,
    /// The kernel's reason.
    pub(super) source: io::Error,
}

impl From<io::Error> for Refused {
    fn from(source: io::Error) -> Self {
        Self { request: 0, source }
    }
}

/// An open netlink socket.
#[derive(Debug)]
pub(super) struct Channel {
    socket: Socket,
    sequence: u32,
}

struct Message<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

impl Channel {
    /// Opens a socket of a netlink protocol in the calling thread's network namespace.
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends all requests at once and waits for their acknowledgements. The kernel carries out
    /// what it can even if it refuses one of them, except in a batch of netfilter's.
    pub(super) fn transact(&mut self, requests: &[Request]) -> Result<(), Refused> {
        let first = self.sequence + 1;
        let mut bytes = Vec::with_capacity(1024);
        for request in requests {
            let flags =
                FLAG_REQUEST | request.flags | if request.acknowledged { FLAG_ACK } else { 0 };
            self.append(&mut bytes, request, flags);
        }
        let mut waiting = requests.iter().filter(|request| request.acknowledged).count();
        self.socket.send(&bytes, 0)?;
        while waiting > 0 {
            let (datagram, _) = self.socket.recv_from_full()?;
            for message in messages(&datagram) {
                // Answers to a transaction that was left at its first refusal may still come.
                let Some(request) = message.sequence.checked_sub(first) else {
                    continue;
                };
                let request = usize::try_from(request).unwrap_or(usize::MAX);
                if message.kind != ERROR || request >= requests.len() {
                    continue;
                }
                error_of(message.body).map_err(|source| Refused { request, source })?;
                waiting = waiting.saturating_sub(1);
            }
        }
        Ok(())
    }

    /// Asks for a list and returns its entries, each with its message type.
    pub(super) fn dump(&mut self, kind: u16, body: Vec<u8>) -> io::Result<Vec<(u16, Vec<u8>)>> {
        let request = Request { kind, flags: 0, acknowledged: false, body };
        let mut bytes = Vec::with_capacity(128);
        self.append(&mut bytes, &request, FLAG_REQUEST | FLAG_DUMP);
        self.socket.send(&bytes, 0)?;
        let mut entries = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for message in messages(&datagram) {
                match message.kind {
                    _ if message.sequence != self.sequence => {}
                    DONE => return Ok(entries),
                    ERROR => error_of(message.body)?,
                    kind if entries.len() < DUMP_ENTRIES_MAX => {
                        entries.push((kind, message.body.to_vec()));
                    }
                    _ => return Err(io::ErrorKind::FileTooLarge.into()),
                }
            }
        }
    }

    fn append(&mut self, bytes: &mut Vec<u8>, request: &Request, flags: u16) {
        self.sequence += 1;
        let length = u32::try_from(HEADER_BYTES + request.body.len()).unwrap_or(u32::MAX);
        bytes.extend(length.to_ne_bytes());
        bytes.extend(request.kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(self.sequence.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(&request.body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
}

/// Appends an attribute of netlink: length, type, value, padding.
pub(super) fn attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let header = rest.first_chunk::<HEADER_BYTES>()?;
        let [a, b, c, d, k0, k1, _, _, s0, s1, s2, s3, ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([a, b, c, d])).ok()?;
        let body = rest.get(HEADER_BYTES..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            body,
        })
    })
}

/// An acknowledgement is an error whose number is zero.
fn error_of(body: &[u8]) -> io::Result<()> {
    match body.first_chunk::<4>().map(|code| i32::from_ne_bytes(*code)) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_datagram_is_read_without_a_panic(bytes: Vec<u8>) {
            for message in messages(&bytes) {
                let _checked = error_of(message.body);
            }
        }
    }

    #[test]
    fn a_datagram_holds_several_messages() {
        let mut bytes = Vec::new();
        for (kind, body) in [(5_u16, &b"abc"[..]), (6, b"")] {
            bytes.extend(u32::try_from(16 + body.len()).unwrap().to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0, 0]);
            bytes.extend(u32::from(kind).to_ne_bytes());
            bytes.extend([0; 4]);
            bytes.extend(body);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let seen: Vec<_> = messages(&bytes).map(|m| (m.kind, m.sequence, m.body.len())).collect();
        assert_eq!(seen, [(5, 5, 3), (6, 6, 0)]);
    }
}
