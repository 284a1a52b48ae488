//! The monitor's end of the socket to init. What comes out of it is hostile.
//!
//! Never waits for a message to become whole, and takes no descriptor but a terminal's.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use perch_types::guest::{
    FROM_GUEST_BYTES_MAX, FrameBuffer, FromGuest, TO_GUEST_BYTES_MAX, TO_GUEST_DESCRIPTORS_MAX,
    ToGuest, encode,
};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::clock;

/// The most messages that init may send in a second.
const MESSAGES_PER_SECOND_MAX: u32 = 512;
/// The most descriptors that wait for their message.
const DESCRIPTORS_MAX: usize = 4;
/// The most descriptors in one message of init.
const DESCRIPTORS_PER_MESSAGE_MAX: usize = 3;
/// The type of devpts, from `statfs`.
const DEVPTS_MAGIC: u64 = 0x1cd1;

/// Speaks to init; shared by all threads.
#[derive(Debug)]
pub(crate) struct Speaker {
    socket: Mutex<OwnedFd>,
}

impl Speaker {
    pub(crate) const fn new(socket: OwnedFd) -> Self {
        Self { socket: Mutex::new(socket) }
    }

    /// Sends a message, with descriptors.
    pub(crate) fn send(&self, message: &ToGuest, with: &[BorrowedFd<'_>]) -> io::Result<()> {
        let frame = encode(message, TO_GUEST_BYTES_MAX).map_err(io::Error::other)?;
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rest = frame.as_slice();
        let mut with = with;
        while !rest.is_empty() {
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(TO_GUEST_DESCRIPTORS_MAX))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !with.is_empty() {
                ancillary.push(SendAncillaryMessage::ScmRights(with));
            }
            let slices = [IoSlice::new(rest)];
            let sent = sendmsg(socket.as_fd(), &slices, &mut ancillary, SendFlags::NOSIGNAL)?;
            with = &[];
            rest = rest.get(sent..).unwrap_or_default();
        }
        Ok(())
    }
}

/// Hears init; belongs to the main thread.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    frames: FrameBuffer,
    descriptors: VecDeque<OwnedFd>,
    second: u64,
    messages: u32,
}

impl Listener {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            frames: FrameBuffer::default(),
            descriptors: VecDeque::new(),
            second: 0,
            messages: 0,
        }
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes up what has arrived, waiting for the first byte; `false` at the end.
    pub(crate) fn fill(&mut self) -> io::Result<bool> {
        let mut piece = [0; FROM_GUEST_BYTES_MAX];
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_PER_MESSAGE_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut piece)];
        let received =
            match recvmsg(&self.socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) => received,
                Err(rustix::io::Errno::CONNRESET) => return Ok(false),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return Ok(true),
                Err(error) => return Err(error.into()),
            };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        if self.descriptors.len() > DESCRIPTORS_MAX {
            return Err(io::Error::other("init sent more descriptors than it announced"));
        }
        self.frames.push(piece.get(..received.bytes).unwrap_or_default());
        Ok(received.bytes > 0)
    }

    /// Returns the next message that has arrived whole.
    pub(crate) fn next(&mut self) -> io::Result<Option<FromGuest>> {
        let Some(message) =
            self.frames.next::<FromGuest>(FROM_GUEST_BYTES_MAX).map_err(io::Error::other)?
        else {
            return Ok(None);
        };
        let second = clock::boot_ms() / 1000;
        if second != self.second {
            self.second = second;
            self.messages = 0;
        }
        self.messages = self.messages.saturating_add(1);
        if self.messages > MESSAGES_PER_SECOND_MAX {
            return Err(io::Error::other("init sent more messages than it may"));
        }
        Ok(Some(message))
    }

    /// Takes the terminal that came along.
    pub(crate) fn terminal(&mut self) -> io::Result<OwnedFd> {
        let descriptor = self
            .descriptors
            .pop_front()
            .ok_or_else(|| io::Error::other("init sent no terminal"))?;
        // Anything else, such as a file of a file system that never answers, could hold us up.
        let system = rustix::fs::fstatfs(&descriptor)?;
        let file = rustix::fs::fstat(&descriptor)?;
        let kind = rustix::fs::FileType::from_raw_mode(file.st_mode);
        if u64::try_from(system.f_type).ok() != Some(DEVPTS_MAGIC)
            || kind != rustix::fs::FileType::CharacterDevice
        {
            return Err(io::Error::other("init sent something else than a terminal"));
        }
        crate::descriptors::set_nonblocking(&descriptor)?;
        Ok(descriptor)
    }
}
