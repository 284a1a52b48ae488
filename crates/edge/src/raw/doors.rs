//! Which claimed ports are open: those that the view says.
//!
//! Never closes a port at which an app stays, and never ends what is under way: only listeners go.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use perch_sockets::{keep_alive, send_at_once};
use perch_store::turning;
use perch_types::ports::{Holder, RAW_PORTS_MAX, RawPort};
use perch_types::pulse::Pulse;
use perch_types::service::Protocol;
use perch_types::view::View;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Entry, Raw, tcp, udp};
use crate::connection::asked_to_stop;
use crate::handing::Loops;
use crate::live::AppKey;

/// The apps that have a port.
type Holders = Arc<[AppKey]>;

/// A port at which somebody is let in; closed when it is dropped.
#[derive(Debug)]
struct Open {
    holders: watch::Sender<Holders>,
    task: JoinHandle<()>,
}

impl Open {
    /// Takes over who has the port now; returns whether it stays open, because one of them had it
    /// before.
    fn stays(&self, wanted: &Holders) -> bool {
        let stays = self.holders.borrow().iter().any(|app| wanted.contains(app));
        if stays {
            self.holders.send_if_modified(|holders| {
                let is_other = *holders != *wanted;
                if is_other {
                    *holders = Arc::clone(wanted);
                }
                is_other
            });
        }
        stays && !self.task.is_finished()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Keeps the ports open that the view says, until the edge is stopped.
pub(super) async fn follow(
    raw: Arc<Raw>,
    loops: Arc<Loops>,
    pulse: Pulse,
    mut stopping: watch::Receiver<bool>,
) {
    let mut views = raw.shared.view.changed();
    let mut doors = Doors::default();
    loop {
        views.borrow_and_update();
        let wanted = wanted(&raw.shared.view.load());
        let opening = async {
            doors.close(&raw, &wanted).await;
            doors.open(&raw, &loops, wanted).await;
        };
        turning(&pulse, opening).await;
        let news = async {
            tokio::select! {
                changed = views.changed() => changed.is_err(),
                () = tokio::time::sleep(raw.limits.bind_pause), if !doors.is_done() => false,
                () = asked_to_stop(&mut stopping) => true,
            }
        };
        let is_over = turning(&pulse, news).await;
        if is_over {
            return;
        }
    }
}

/// What is open, and what could not be done yet.
#[derive(Debug, Default)]
struct Doors {
    open: BTreeMap<RawPort, Open>,
    refused: BTreeSet<RawPort>,
    /// What the binder was told last.
    told: Option<BTreeSet<RawPort>>,
}

impl Doors {
    fn is_done(&self) -> bool {
        self.refused.is_empty() && self.told.is_some()
    }

    /// Closes what nobody wants any more.
    async fn close(&mut self, raw: &Raw, wanted: &BTreeMap<RawPort, Holders>) {
        let before = self.open.len();
        self.open.retain(|port, it| wanted.get(port).is_some_and(|holders| it.stays(holders)));
        let is_less = self.open.len() < before;
        self.refused.retain(|port| wanted.contains_key(port));
        // A copy of the view may be old: what it does not know may be somebody's.
        if !raw.shared.view.is_live() {
            return;
        }
        if is_less {
            // Also of a port that is another app's now: who waits there has come to the one before.
            let only = self.open.keys().copied().collect();
            self.told = tell(raw, only).await;
        }
        let only: BTreeSet<RawPort> = wanted.keys().copied().collect();
        if self.told.as_ref() != Some(&only) {
            self.told = tell(raw, only).await;
        }
    }

    /// Opens what is wanted and not open.
    async fn open(
        &mut self,
        raw: &Arc<Raw>,
        loops: &Arc<Loops>,
        wanted: BTreeMap<RawPort, Holders>,
    ) {
        for (port, holders) in wanted {
            if self.open.contains_key(&port) {
                continue;
            }
            let (protocol, number) = (port.0.as_str(), port.1);
            match begin(raw, loops, port, holders).await {
                Ok(opened) => {
                    tracing::info!(protocol, port = number, "claimed port opened");
                    self.refused.remove(&port);
                    self.open.insert(port, opened);
                }
                Err(error) if self.refused.insert(port) => {
                    tracing::warn!(protocol, port = number, %error,
                        "claimed port not opened, trying again");
                }
                Err(_) => {}
            }
        }
    }
}

/// Tells the binder which ports there are; nothing when it did not hear it.
async fn tell(raw: &Raw, only: BTreeSet<RawPort>) -> Option<BTreeSet<RawPort>> {
    let binder = Arc::clone(&raw.binder);
    let told = tokio::task::spawn_blocking(move || binder.only(&only).map(|()| only)).await;
    match told.map_err(io::Error::other).flatten() {
        Ok(only) => Some(only),
        Err(error) => {
            tracing::warn!(%error, "claimed ports not told, trying again");
            None
        }
    }
}

/// Returns whose ports are to be open.
fn wanted(view: &View) -> BTreeMap<RawPort, Holders> {
    let key = |holder: &Holder| AppKey { org: holder.org.clone(), name: holder.app.clone() };
    let ports = view.raw_ports().take(RAW_PORTS_MAX);
    ports.map(|(port, holders)| (port, holders.into_iter().map(key).collect())).collect()
}

async fn begin(
    raw: &Arc<Raw>,
    loops: &Arc<Loops>,
    (protocol, port): RawPort,
    now: Holders,
) -> io::Result<Open> {
    let (raw, binder) = (Arc::clone(raw), Arc::clone(&raw.binder));
    let app = now.first().cloned();
    let (holders, known) = watch::channel(now);
    let task = match protocol {
        Protocol::Tcp => {
            let listener = tokio::task::spawn_blocking(move || binder.tcp(port)).await;
            let listener = listener.map_err(io::Error::other).flatten()?;
            listener.set_nonblocking(true)?;
            // What is accepted has both of the listener.
            keep_alive(&listener)?;
            send_at_once(&listener)?;
            let door = tcp::Listening { listener: TcpListener::from_std(listener)?, port, known };
            tokio::spawn(tcp::accept(raw, Arc::clone(loops), door))
        }
        Protocol::Udp => {
            // Nothing in a datagram says whom it is for.
            let app = app.ok_or(io::ErrorKind::NotFound)?;
            let entry = Arc::new(Entry { protocol, port, app });
            let socket = tokio::task::spawn_blocking(move || binder.udp(port)).await;
            let socket = socket.map_err(io::Error::other).flatten()?;
            socket.set_nonblocking(true)?;
            tokio::spawn(udp::relay(raw, UdpSocket::from_std(socket)?, entry))
        }
    };
    Ok(Open { holders, task })
}
