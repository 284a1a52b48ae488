//! Memory that one loop uses again: for what has come of an answer, and for what is to be sent.
//!
//! Never keeps more than its limits say (24 MiB a loop at the most), or one that somebody still reads.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::BytesMut;

/// How much a buffer holds at least.
pub(crate) const BYTES: usize = 16 * 1024;
/// A larger one is not kept.
const KEPT_BYTES_MAX: usize = 96 * 1024;
/// How many are kept, a loop: a request under way has two or three.
const KEPT_MAX: usize = 256;

/// Buffers of one loop.
#[derive(Debug, Clone, Default)]
pub(crate) struct Buffers(Rc<RefCell<Vec<BytesMut>>>);

impl Buffers {
    /// Takes one that is empty.
    pub(crate) fn take(&self) -> BytesMut {
        let kept = self.0.borrow_mut().pop();
        kept.unwrap_or_else(|| BytesMut::with_capacity(BYTES))
    }

    /// Takes one back.
    pub(crate) fn give(&self, mut buffer: BytesMut) {
        buffer.clear();
        if !buffer.try_reclaim(BYTES) || buffer.capacity() > KEPT_BYTES_MAX {
            return;
        }
        let mut kept = self.0.borrow_mut();
        if kept.len() < KEPT_MAX {
            kept.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_unless_somebody_reads_it_or_it_is_large() {
        let buffers = Buffers::default();
        let kept = || buffers.0.borrow().len();
        let mut buffer = buffers.take();
        buffer.extend_from_slice(b"secret");
        let read = buffer.split_to(3).freeze();
        buffers.give(buffer);
        assert_eq!(kept(), 0);
        drop(read);
        let mut buffer = buffers.take();
        buffer.extend_from_slice(b"secret");
        drop(buffer.split_to(3).freeze());
        buffers.give(buffer);
        assert_eq!(kept(), 1);
        let again = buffers.take();
        assert!(again.is_empty() && again.capacity() >= BYTES);
        buffers.give(BytesMut::with_capacity(KEPT_BYTES_MAX + 1));
        buffers.give(BytesMut::new());
        assert_eq!(kept(), 0);
        for _ in 0..2 * KEPT_MAX {
            buffers.give(BytesMut::with_capacity(BYTES));
        }
        assert_eq!(kept(), KEPT_MAX);
    }
}
