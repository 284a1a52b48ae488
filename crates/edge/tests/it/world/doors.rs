//! Raw ports, bound where there is room.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use perch_edge::Binder;
use perch_types::ports::RawPort;
use perch_types::service::Protocol;

/// Binds raw ports on loopback, at whatever number is free.
#[derive(Debug, Default)]
pub(crate) struct Doors {
    at: Mutex<BTreeMap<RawPort, SocketAddr>>,
    /// How often a port is somebody else's before it is free.
    pub(crate) taken: AtomicUsize,
    /// What there is to be bound, as it was said last.
    pub(crate) only: Mutex<BTreeSet<RawPort>>,
    /// How many were opened.
    pub(crate) opened: AtomicUsize,
}

impl Doors {
    pub(super) fn at(&self, port: RawPort) -> Option<SocketAddr> {
        self.at.lock().unwrap().get(&port).copied()
    }

    fn is_free(&self) -> std::io::Result<()> {
        let less = |taken: usize| taken.checked_sub(1);
        match self.taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less) {
            Ok(_) => Err(std::io::ErrorKind::AddrInUse.into()),
            Err(_) => Ok(()),
        }
    }
}

impl Binder for Doors {
    fn tcp(&self, port: u16) -> std::io::Result<TcpListener> {
        self.is_free()?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        self.at.lock().unwrap().insert((Protocol::Tcp, port), listener.local_addr()?);
        self.opened.fetch_add(1, Ordering::SeqCst);
        Ok(listener)
    }

    fn udp(&self, port: u16) -> std::io::Result<UdpSocket> {
        self.is_free()?;
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        self.at.lock().unwrap().insert((Protocol::Udp, port), socket.local_addr()?);
        self.opened.fetch_add(1, Ordering::SeqCst);
        Ok(socket)
    }

    fn only(&self, ports: &BTreeSet<RawPort>) -> std::io::Result<()> {
        self.only.lock().unwrap().clone_from(ports);
        Ok(())
    }
}
