//! Connections to machines that can be used again, one pool a loop.
//!
//! Never shared between apps, machines or versions of one: a connection is kept under all three.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use hyper::client::conn::http2;
use perch_types::{InstanceId, MachineId};
use tokio::time::Instant;

use crate::buffers::Buffers;
use crate::origin1::Origin;
use crate::splice::Pipes;
use crate::upload::RequestBody;

/// How long a connection may lie idle; apps close theirs after five seconds and more.
const IDLE_MAX: Duration = Duration::from_secs(4);
/// How many idle connections are kept to one machine, a loop.
const IDLE_COUNT_MAX: usize = 256;
/// How many requests are under way at once over one connection of HTTP/2; for more there is
/// another.
const STREAMS_MAX: usize = 100;

/// What a connection leads to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) machine: MachineId,
    pub(crate) instance: InstanceId,
    pub(crate) port: u16,
    /// The client's connection that has it for itself; 0 when it is for all.
    pub(crate) client: u64,
}

/// A place on a connection that carries many requests at once; free when it is dropped.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) sender: http2::SendRequest<RequestBody>,
    pub(crate) streams: Rc<()>,
}

/// Connections of one loop, and the memory and the pipes that are used over them.
#[derive(Debug, Default, Clone)]
pub(crate) struct Pool {
    idle: Rc<RefCell<Idle>>,
    buffers: Buffers,
    pipes: Pipes,
}

#[derive(Debug, Default)]
struct Idle {
    connections: HashMap<Key, Vec<(Box<Origin>, Instant)>>,
    shared: HashMap<Key, Vec<Shared>>,
}

#[derive(Debug)]
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    streams: Rc<()>,
    used: Instant,
}

impl Shared {
    fn is_worth_keeping(&self, now: Instant) -> bool {
        let is_used = Rc::strong_count(&self.streams) > 1;
        !self.sender.is_closed() && (is_used || now.duration_since(self.used) < IDLE_MAX)
    }
}

impl Pool {
    /// Returns the loop's buffers.
    pub(crate) const fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// Returns the loop's pipes.
    pub(crate) const fn pipes(&self) -> &Pipes {
        &self.pipes
    }

    /// Takes a connection that is ready for a request.
    pub(crate) fn take(&self, key: &Key) -> Option<Box<Origin>> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.connections.get_mut(key)?;
        let now = Instant::now();
        while let Some((origin, since)) = connections.pop() {
            if is_worth_keeping(&origin, since, now) {
                return Some(origin);
            }
        }
        None
    }

    /// Keeps a connection if its answer was read to its end, and closes it if it was not.
    pub(crate) fn put(&self, key: &Key, mut origin: Box<Origin>) {
        if !origin.rests() || !origin.is_quiet() {
            return;
        }
        let now = Instant::now();
        let mut idle = self.idle.borrow_mut();
        match idle.connections.get_mut(key) {
            Some(connections) if connections.len() < IDLE_COUNT_MAX => {
                connections.push((origin, now));
            }
            Some(_) => {}
            None => {
                idle.connections.insert(key.clone(), vec![(origin, now)]);
            }
        }
    }

    /// Closes connections that lay idle for too long, those that machines have closed, and pipes
    /// that nobody needs.
    pub(crate) fn sweep(&self) {
        self.pipes.sweep();
        self.idle.borrow_mut().sweep(Instant::now());
    }

    /// Takes a place on a connection that carries many.
    pub(crate) fn take_stream(&self, key: &Key) -> Option<Stream> {
        let mut idle = self.idle.borrow_mut();
        let shared = idle.shared.get_mut(key)?;
        let now = Instant::now();
        shared.retain(|one| one.is_worth_keeping(now));
        let one = shared.iter_mut().find(|one| Rc::strong_count(&one.streams) <= STREAMS_MAX)?;
        one.used = now;
        Some(Stream { sender: one.sender.clone(), streams: Rc::clone(&one.streams) })
    }

    /// Keeps a new connection that carries many, and takes the first place on it.
    pub(crate) fn share(&self, key: &Key, sender: http2::SendRequest<RequestBody>) -> Stream {
        let (streams, now) = (Rc::new(()), Instant::now());
        let mut idle = self.idle.borrow_mut();
        let shared = Shared { sender: sender.clone(), streams: Rc::clone(&streams), used: now };
        idle.shared.entry(key.clone()).or_default().push(shared);
        Stream { sender, streams }
    }

    /// Takes a connection out over which nothing more can be sent.
    pub(crate) fn give_up(&self, key: &Key, stream: &Stream) {
        let mut idle = self.idle.borrow_mut();
        if let Some(shared) = idle.shared.get_mut(key) {
            shared.retain(|one| !Rc::ptr_eq(&one.streams, &stream.streams));
        }
    }

    /// Closes all that is idle under a key.
    pub(crate) fn forget(&self, key: &Key) {
        let mut idle = self.idle.borrow_mut();
        let closed = (idle.connections.remove(key), idle.shared.remove(key));
        drop(idle);
        drop(closed);
    }
}

impl Idle {
    fn sweep(&mut self, now: Instant) {
        self.connections.retain(|_, connections| {
            connections.retain(|(origin, since)| is_worth_keeping(origin, *since, now));
            !connections.is_empty()
        });
        self.shared.retain(|_, shared| {
            shared.retain(|one| one.is_worth_keeping(now));
            !shared.is_empty()
        });
    }
}

fn is_worth_keeping(origin: &Origin, since: Instant, now: Instant) -> bool {
    now.duration_since(since) < IDLE_MAX && origin.is_quiet()
}
