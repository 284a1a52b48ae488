//! A machine of this host that takes a connection at a raw port.
//!
//! Never looks at a machine of another host: for those the edge there does the same, when a
//! connection is carried to it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use perch_sockets::keep_alive;
use perch_types::MachineId;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::proxy_proto::{self, Version};
use super::{Ends, Entry};
use crate::cause::Cause;
use crate::dial;
use crate::direction::Direction;
use crate::listen::Worker;
use crate::live::{InFlight, Target};
use crate::passage::{self, Ended, Terms};
use crate::peer::Once;
use crate::pick;
use crate::wake::{self, Place, Tried, Wanted};

/// The search for a machine that takes one connection.
#[derive(Debug)]
pub(crate) struct Search<'a> {
    entry: &'a Entry,
    direction: Direction,
    tried: Tried,
    /// Until when one has to be there, and what it is called when none is.
    until: Option<(Instant, Cause)>,
}

impl<'a> Search<'a> {
    /// Begins the search for a client that came here.
    pub(crate) fn of(entry: &'a Entry) -> Self {
        Self { entry, direction: Direction::default(), tried: Tried::default(), until: None }
    }

    /// Begins that for a client that came to another edge, which says how long it may take and
    /// perhaps which machine it is.
    pub(crate) fn ordered(entry: &'a Entry, only: Option<MachineId>, wait: Duration) -> Self {
        // Looked at once even when nothing is to be waited for.
        let late = if wait.is_zero() { Cause::Full } else { Cause::ReplayLate };
        let direction = Direction { only: only.map(Into::into), ..Direction::default() };
        Self { direction, until: Some((Instant::now() + wait, late)), ..Self::of(entry) }
    }

    /// Returns what is looked for.
    pub(crate) fn wanted(&self, random: u64) -> Wanted<'_, Once> {
        Wanted {
            app: &self.entry.app,
            door: self.entry.door(),
            asks: &Once,
            direction: &self.direction,
            tried: &self.tried,
            random,
            sticky: None,
        }
    }

    /// Connects to a ready machine, waking one if needed; nothing when that one refuses and another
    /// is to be looked for.
    pub(crate) async fn turn(&mut self, worker: &Worker) -> Result<Option<Link>, Cause> {
        let wanted = self.wanted(worker.random());
        let finding = wake::ready_machine(&worker.shared, &wanted);
        let found = match self.until {
            Some((until, late)) => {
                tokio::time::timeout_at(until, finding).await.unwrap_or(Err(late))
            }
            None => finding.await,
        };
        let Place { target, in_flight, .. } = found?;
        let Entry { protocol, port, .. } = self.entry;
        let found = pick::raw(&target.record.services, *protocol, *port);
        let (service, port) = found.ok_or(Cause::NoMachine)?;
        if let Some(machine) = reach(worker, &target, service.internal_port).await {
            let header = proxy_proto::wanted(port);
            // A connection has no end of its own: its app is told by the signal.
            let in_flight = in_flight.into_tunnel();
            return Ok(Some(Link { machine, header, counted: Counted(target), in_flight }));
        }
        drop(in_flight);
        match self.tried.note(&target.record, worker.shared.limits.stale) {
            true => Ok(None),
            false => Err(Cause::NotListening),
        }
    }
}

/// A machine that took a connection, in which it is counted.
#[derive(Debug)]
pub(crate) struct Link {
    machine: TcpStream,
    /// What is put in front.
    header: Option<Version>,
    counted: Counted,
    in_flight: InFlight,
}

impl Link {
    pub(crate) fn machine(&self) -> &MachineId {
        let Counted(target) = &self.counted;
        &target.record.id
    }

    /// Tells the machine of the client, where its port wants that.
    pub(crate) async fn begin(&mut self, ends: Ends) -> io::Result<()> {
        let Some(version) = self.header else { return Ok(()) };
        let header = proxy_proto::header(version, ends.client, ends.public);
        self.machine.write_all(&header).await
    }

    /// Passes all that comes, both ways.
    pub(crate) async fn pass<C>(self, client: C, terms: Terms) -> Ended
    where
        C: AsyncRead + AsyncWrite + Unpin,
    {
        let Self { machine, header: _, counted, in_flight } = self;
        let ended = passage::pass(client, machine, terms).await;
        drop(counted);
        in_flight.metrics().bytes_in.add(ended.sent);
        in_flight.metrics().bytes_out.add(ended.received);
        drop(in_flight);
        ended
    }
}

/// A connection to a machine, of which the end is counted.
#[derive(Debug)]
struct Counted(Arc<Target>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.load.instance.disconnected();
    }
}

async fn reach(worker: &Worker, target: &Target, port: u16) -> Option<TcpStream> {
    for address in dial::addresses(&target.record) {
        let (at, limit) = (SocketAddr::new(address, port), worker.shared.limits.connect);
        if let Some(stream) = dial::reach(target, at, limit, prepare).await {
            return Some(stream);
        }
    }
    None
}

/// Has bytes sent at once, and a machine that is gone without a word found.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    keep_alive(stream)
}
