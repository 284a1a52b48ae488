//! The socket to the monitor.
//!
//! Never blocks for a message that has not arrived.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use perch_types::guest::{
    FROM_GUEST_BYTES_MAX, FrameBuffer, FromGuest, SOCKET_FD, TO_GUEST_BYTES_MAX,
    TO_GUEST_DESCRIPTORS_MAX, ToGuest, encode,
};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// The most bytes taken up at once.
const PIECE_BYTES: usize = 16 * 1024;

/// The socket and what has arrived on it.
pub(crate) struct Channel {
    socket: OwnedFd,
    frames: FrameBuffer,
    descriptors: VecDeque<OwnedFd>,
}

impl Channel {
    /// Takes over the socket that the monitor left at [`SOCKET_FD`]. Comes once.
    pub(crate) fn take() -> io::Result<Self> {
        #[expect(unsafe_code, reason = "a descriptor left by the parent has no other way in")]
        // SAFETY: the monitor's executor put the socket at this number, and nothing in this
        // process has taken it since: this is the first thing that `run` does.
        let socket = unsafe { OwnedFd::from_raw_fd(SOCKET_FD) };
        fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
        Ok(Self { socket, frames: FrameBuffer::default(), descriptors: VecDeque::new() })
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes up what has arrived; `false` at the end of the stream: the monitor is gone.
    pub(crate) fn fill(&mut self) -> io::Result<bool> {
        let mut piece = [0; PIECE_BYTES];
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(TO_GUEST_DESCRIPTORS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut piece)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&self.socket, &mut slices, &mut ancillary, flags)?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        self.frames.push(piece.get(..received.bytes).unwrap_or_default());
        Ok(received.bytes > 0)
    }

    /// Returns the next message that has arrived whole.
    pub(crate) fn next(&mut self) -> io::Result<Option<ToGuest>> {
        self.frames.next(TO_GUEST_BYTES_MAX).map_err(io::Error::other)
    }

    /// Returns the next descriptor that came along.
    pub(crate) fn descriptor(&mut self) -> io::Result<OwnedFd> {
        self.descriptors
            .pop_front()
            .ok_or_else(|| io::Error::other("a message came without its descriptors"))
    }

    /// Reports to the monitor, with a descriptor if there is one.
    pub(crate) fn send(&self, message: &FromGuest, with: Option<&OwnedFd>) -> io::Result<()> {
        let frame = encode(message, FROM_GUEST_BYTES_MAX).map_err(io::Error::other)?;
        let mut rest = frame.as_slice();
        let mut with = with;
        while !rest.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let descriptors: Vec<BorrowedFd<'_>> =
                with.take().map(|one| one.as_fd()).into_iter().collect();
            if !descriptors.is_empty() {
                ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
            }
            let slices = [IoSlice::new(rest)];
            let sent = sendmsg(&self.socket, &slices, &mut ancillary, SendFlags::NOSIGNAL)?;
            rest = rest.get(sent..).unwrap_or_default();
        }
        Ok(())
    }
}
