//! Which raw ports are open: those that apps have claimed.
//!
//! Never closes a port whose app stays, and never ends what is under way: only listeners go.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use perch_store::turning;
use perch_types::ports::{RAW_PORTS_MAX, RawPort};
use perch_types::pulse::Pulse;
use perch_types::service::Protocol;
use perch_types::view::View;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Entry, Raw, tcp, udp};
use crate::connection::asked_to_stop;
use crate::live::AppKey;

/// A port at which somebody is let in; closed when it is dropped.
#[derive(Debug)]
struct Open {
    app: AppKey,
    task: JoinHandle<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Keeps the ports open that the view says, until the edge is stopped.
pub(super) async fn follow(raw: Arc<Raw>, pulse: Pulse, mut stopping: watch::Receiver<bool>) {
    let mut views = raw.shared.view.changed();
    let mut open: BTreeMap<RawPort, Open> = BTreeMap::new();
    let mut refused: BTreeSet<RawPort> = BTreeSet::new();
    loop {
        views.borrow_and_update();
        let wanted = wanted(&raw.shared.view.load());
        open.retain(|port, it| wanted.get(port) == Some(&it.app) && !it.task.is_finished());
        refused.retain(|port| wanted.contains_key(port));
        for (port, app) in wanted {
            if open.contains_key(&port) {
                continue;
            }
            match begin(&raw, port, &app) {
                Ok(task) => {
                    let (protocol, number) = (port.0.as_str(), port.1);
                    tracing::info!(protocol, port = number, app = %app.name, "raw port opened");
                    refused.remove(&port);
                    open.insert(port, Open { app, task });
                }
                Err(error) if refused.insert(port) => {
                    let (protocol, number) = (port.0.as_str(), port.1);
                    tracing::warn!(protocol, port = number, app = %app.name, %error,
                        "raw port not opened, trying again");
                }
                Err(_) => {}
            }
        }
        let news = async {
            tokio::select! {
                changed = views.changed() => changed.is_err(),
                () = tokio::time::sleep(raw.limits.bind_pause), if !refused.is_empty() => false,
                () = asked_to_stop(&mut stopping) => true,
            }
        };
        let is_over = turning(&pulse, news).await;
        if is_over {
            return;
        }
    }
}

/// Returns whose ports are to be open.
fn wanted(view: &View) -> BTreeMap<RawPort, AppKey> {
    let ports = view.raw_ports().take(RAW_PORTS_MAX);
    ports
        .map(|(port, claim)| (port, AppKey { org: claim.org.clone(), name: claim.app.clone() }))
        .collect()
}

fn begin(raw: &Arc<Raw>, (protocol, port): RawPort, app: &AppKey) -> io::Result<JoinHandle<()>> {
    let entry = Arc::new(Entry { protocol, port, app: app.clone() });
    let raw = Arc::clone(raw);
    Ok(match protocol {
        Protocol::Tcp => {
            let listener = raw.binder.tcp(port)?;
            listener.set_nonblocking(true)?;
            tokio::spawn(tcp::accept(raw, TcpListener::from_std(listener)?, entry))
        }
        Protocol::Udp => {
            let socket = raw.binder.udp(port)?;
            socket.set_nonblocking(true)?;
            tokio::spawn(udp::relay(raw, UdpSocket::from_std(socket)?, entry))
        }
    })
}
