//! Connections that are accepted in one place and served on a loop: those at claimed ports.
//!
//! Never waits for a loop: one that has no room gets none. A loop knows that nothing more can come
//! once whoever could hand it something is gone.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;

use crate::connection::Door;
use crate::raw::Place;

/// Connections that wait for their loop.
const HANDED_MAX: usize = 1024;

/// A connection on its way to a loop.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) stream: TcpStream,
    pub(crate) client: SocketAddr,
    /// Where it came in.
    pub(crate) door: Door,
    /// Its place among those that there may be.
    pub(crate) place: Place,
}

/// The loops, as those see them who hand connections on.
#[derive(Debug, Default)]
pub(crate) struct Loops {
    loops: Vec<mpsc::Sender<Handed>>,
    turn: AtomicUsize,
}

impl Loops {
    /// Adds a loop, and returns what it takes connections from.
    pub(crate) fn add(&mut self) -> mpsc::Receiver<Handed> {
        let (sender, receiver) = mpsc::channel(HANDED_MAX);
        self.loops.push(sender);
        receiver
    }

    /// Hands a connection to the next loop; it is ended where that has no room.
    pub(crate) fn hand(&self, handed: Handed) {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let next = turn.checked_rem(self.loops.len()).and_then(|index| self.loops.get(index));
        let is_taken = next.is_some_and(|next| next.try_send(handed).is_ok());
        if !is_taken {
            tracing::debug!(limit = HANDED_MAX, "connections for a loop at their limit");
        }
    }
}
