//! Connections to machines that can be used again, one pool a loop.
//!
//! Never shared between apps, machines or versions of one: a connection is kept under all three.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use hyper::client::conn::http1::SendRequest;
use perch_types::{InstanceId, MachineId};
use tokio::time::Instant;

use crate::body::RequestBody;

/// How long a connection may lie idle; apps close theirs after five seconds and more.
const IDLE_MAX: Duration = Duration::from_secs(4);
/// How many idle connections are kept to one machine, a loop.
const IDLE_COUNT_MAX: usize = 64;
/// How often connections that lay idle for too long are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// What a connection leads to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) machine: MachineId,
    pub(crate) instance: InstanceId,
    pub(crate) port: u16,
}

pub(crate) type Sender = SendRequest<RequestBody>;

/// Idle connections of one loop.
#[derive(Debug, Default, Clone)]
pub(crate) struct Pool(Rc<RefCell<Idle>>);

#[derive(Debug, Default)]
struct Idle {
    connections: HashMap<Key, Vec<(Sender, Instant)>>,
    swept: Option<Instant>,
}

impl Pool {
    /// Takes a connection that is ready for a request.
    pub(crate) fn take(&self, key: &Key) -> Option<Sender> {
        let mut idle = self.0.borrow_mut();
        let connections = idle.connections.get_mut(key)?;
        let now = Instant::now();
        while let Some((sender, since)) = connections.pop() {
            if sender.is_ready() && now.duration_since(since) < IDLE_MAX {
                return Some(sender);
            }
        }
        None
    }

    /// Keeps a connection whose answer was read to its end.
    pub(crate) fn put(&self, key: &Key, sender: Sender) {
        if sender.is_closed() {
            return;
        }
        let now = Instant::now();
        let mut idle = self.0.borrow_mut();
        if idle.swept.is_none_or(|swept| now.duration_since(swept) > SWEEP_EVERY) {
            idle.swept = Some(now);
            idle.connections.retain(|_, connections| {
                connections.retain(|(sender, since)| {
                    !sender.is_closed() && now.duration_since(*since) < IDLE_MAX
                });
                !connections.is_empty()
            });
        }
        match idle.connections.get_mut(key) {
            Some(connections) if connections.len() < IDLE_COUNT_MAX => {
                connections.push((sender, now));
            }
            Some(_) => {}
            None => {
                idle.connections.insert(key.clone(), vec![(sender, now)]);
            }
        }
    }
}
