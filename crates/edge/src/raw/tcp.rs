//! Connections at claimed ports: accepted, and handed to a loop; what is no HTTP passes from there to
//! a machine of this host or of another, perhaps out of TLS.
//!
//! Never sends a byte to a second machine: another is tried only while the first has not taken the
//! connection.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use perch_sockets::Patient;
use perch_types::service::Protocol;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;

use super::machine::{Link, Search};
use super::{Ends, Entry, Opening, Passed, Raw, caps, pg_tls};
use crate::cause::Cause;
use crate::connection::Door;
use crate::far::{Asked, Carried};
use crate::gate::{self, Gate};
use crate::handing::{Handed, Loops};
use crate::listen::Worker;
use crate::live::AppKey;
use crate::tls::{Secured, hello};

/// The pause after an accept that failed, such as for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why a connection did not pass.
#[derive(Debug, thiserror::Error)]
enum Fault {
    /// No machine took it.
    #[error("find a machine: {}", .0.code())]
    Machine(Cause),
    /// The client did not begin as it has to.
    #[error("shake hands with the client")]
    Handshake(#[source] io::Error),
    /// It took too long for that.
    #[error("wait for the client's handshake")]
    Slow,
    /// Too many others are about to.
    #[error("shake hands with more clients than {0} at once")]
    Busy(usize),
    /// The client asked for no TLS where it has to.
    #[error("take a client without TLS")]
    Open,
    /// There is no certificate for what it named.
    #[error("find a certificate for the client")]
    NoTls,
    /// The machine took the connection and not what was to be put in front.
    #[error("tell the machine of the client")]
    Header(#[source] io::Error),
}

/// A claimed port that is open, and who has it.
#[derive(Debug)]
pub(super) struct Listening {
    pub(super) listener: TcpListener,
    pub(super) port: u16,
    pub(super) known: watch::Receiver<Arc<[AppKey]>>,
}

/// Accepts at a port for as long as it is open.
pub(super) async fn accept(raw: Arc<Raw>, loops: Arc<Loops>, open: Listening) {
    let Listening { listener, port, known } = open;
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                let gate = Gate::claimed(port, Arc::clone(&known.borrow()));
                // One too many is closed at once.
                let found = raw.caps.enter((Protocol::Tcp, port), gate.only(), client.ip());
                let Some(place) = found else { continue };
                let client = Client { stream, address: client, place };
                tokio::spawn(serve(Arc::clone(&raw), Arc::clone(&loops), gate, client));
            }
            Err(error) => {
                tracing::warn!(%error, port, "connection at a claimed port not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[derive(Debug)]
struct Client {
    stream: TcpStream,
    address: SocketAddr,
    place: caps::Place,
}

/// Finds out what an app wants of a connection, and has a loop see to it.
async fn serve(raw: Arc<Raw>, loops: Arc<Loops>, gate: Gate, client: Client) {
    let began = Instant::now();
    let opening = match gate.only() {
        Some(app) => {
            gate::known(&raw.shared, raw.shared.limits.hold).await;
            gate.said(&raw.shared, app, Opening::of).ok_or(Cause::NoMachine)
        }
        // Only what the client says in its handshake can tell whom it wants.
        None => Ok(Opening::Tls),
    };
    let door = match opening {
        Ok(Opening::Http) => Ok(Door::Plain(gate.clone())),
        Ok(Opening::Tls) => {
            let tls = raw.tls.clone().ok_or(Fault::NoTls);
            tls.map(|tls| Door::Tls(gate.clone(), tls))
        }
        Ok(opening @ (Opening::Plain | Opening::PgTls)) => Ok(Door::Raw(gate.clone(), opening)),
        Err(cause) => Err(Fault::Machine(cause)),
    };
    let Client { stream, address: client, place } = client;
    match door {
        Ok(door) => match stream.into_std() {
            Ok(stream) => loops.hand(Handed { stream, client, door, place }),
            Err(error) => tracing::debug!(%error, "connection not handed to a loop"),
        },
        Err(fault) => {
            let Some(app) = gate.only().cloned() else { return };
            let entry = Entry { protocol: Protocol::Tcp, port: gate.public, app };
            tell(&raw, &entry, Err(fault), began);
        }
    }
}

/// Passes a connection that a loop was handed, in which nobody is named: its port is one app's.
pub(crate) async fn pass_opened(worker: &Worker, gate: &Gate, opening: Opening, stream: TcpStream) {
    // Without either nobody has said so.
    let (Some(raw), Some(app)) = (&worker.raw, gate.only().cloned()) else { return };
    let began = Instant::now();
    let entry = Entry { protocol: Protocol::Tcp, port: gate.public, app };
    let outcome = through(worker, raw, (gate, &entry, opening), stream).await;
    tell(raw, &entry, outcome, began);
}

/// Passes a connection that a loop has shaken hands over with a client, which has named its app.
pub(crate) async fn pass_named(
    worker: &Worker,
    gate: &Gate,
    app: AppKey,
    mut client: Secured<Patient<TcpStream>>,
) {
    // Without it nobody has said so.
    let Some(raw) = &worker.raw else { return };
    let began = Instant::now();
    let entry = Entry { protocol: Protocol::Tcp, port: gate.public, app };
    let (held, _) = client.get_mut();
    let patient = held.get_mut();
    // Whoever takes nothing for a while may do so here: nothing else waits for it.
    patient.wait(raw.limits.idle);
    let outcome = match ends(patient.get_ref(), entry.port) {
        Ok(ends) => carry(worker, raw, (&entry, ends), client).await,
        Err(error) => Err(Fault::Handshake(error)),
    };
    tell(raw, &entry, outcome, began);
}

/// Writes a connection's one event, and tells the app's owner what the edge ended.
fn tell(raw: &Raw, entry: &Entry, outcome: Result<Passed, Fault>, began: Instant) {
    let took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    let (app, port) = (&entry.app.name, entry.port);
    match outcome {
        Ok(passed) => passed.tell(entry, began),
        Err(Fault::Machine(cause)) => {
            tracing::info!(
                %app, port, code = cause.code(), fault = ?cause.fault(), took_us,
                "connection ended by the edge"
            );
            raw.shared.tell_owner(&entry.app, None, cause);
        }
        Err(fault) => {
            let error = &fault as &(dyn std::error::Error + 'static);
            tracing::debug!(%app, port, error, took_us, "connection did not begin");
        }
    }
}

async fn through(
    worker: &Worker,
    raw: &Raw,
    (gate, entry, opening): (&Gate, &Entry, Opening),
    stream: TcpStream,
) -> Result<Passed, Fault> {
    let ends = ends(&stream, entry.port).map_err(Fault::Handshake)?;
    if opening == Opening::Plain {
        return carry(worker, raw, (entry, ends), stream).await;
    }
    let shaking = shake(worker, raw, (gate, opening, ends.client.ip()), stream);
    let shaken = tokio::time::timeout(raw.limits.handshake, shaking).await;
    let stream = shaken.map_err(|_| Fault::Slow)??;
    carry(worker, raw, (entry, ends), stream).await
}

/// Has a client begin as it has to.
async fn shake(
    worker: &Worker,
    raw: &Raw,
    (gate, opening, client): (&Gate, Opening, IpAddr),
    mut stream: TcpStream,
) -> Result<Secured<TcpStream>, Fault> {
    let tls = raw.tls.as_ref().ok_or(Fault::NoTls)?;
    if opening == Opening::PgTls && !begins_with_tls(&stream).await.map_err(Fault::Handshake)? {
        let asked = pg_tls::asked_for_tls(&mut stream).await.map_err(Fault::Handshake)?;
        if !asked {
            return Err(Fault::Open);
        }
    }
    let start = hello(stream).await.map_err(Fault::Handshake)?;
    // Only now: whoever says nothing would keep others out.
    let most = raw.shared.limits.handshakes_max;
    let _seat = worker.crowd.seat_handshake(client, most).ok_or(Fault::Busy(most))?;
    let shaken = tls.accept(&raw.shared, gate, start).await.map_err(Fault::Handshake)?;
    shaken.map(|session| session.stream).ok_or(Fault::NoTls)
}

/// Returns whether a client begins with a handshake, without taking a byte.
async fn begins_with_tls(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    stream.peek(&mut first).await?;
    Ok(first == [pg_tls::TLS_HANDSHAKE])
}

/// Prepares a client's connection, and returns whose it is.
fn ends(stream: &TcpStream, public: u16) -> io::Result<Ends> {
    let client = stream.peer_addr()?;
    // The port that is public, whatever port it is bound to.
    let mut at = stream.local_addr()?;
    at.set_port(public);
    Ok(Ends { client, public: at })
}

/// Finds a machine for a connection that has begun, and passes all that comes.
async fn carry<S>(
    worker: &Worker,
    raw: &Raw,
    (entry, ends): (&Entry, Ends),
    client: S,
) -> Result<Passed, Fault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let found = Box::pin(find(worker, entry, ends)).await.map_err(Fault::Machine)?;
    let passed = match found {
        Way::Here(mut link) => {
            link.begin(ends).await.map_err(Fault::Header)?;
            let machine = link.machine().clone();
            let ended = link.pass(client, raw.terms()).await;
            Passed { ended, machine, other: None }
        }
        Way::There(carried) => {
            let (machine, host) = carried.machine();
            let (machine, other) = (machine.clone(), Some(host.clone()));
            let ended = carried.pass(client, raw.terms()).await;
            Passed { ended, machine, other }
        }
    };
    Ok(passed)
}

/// The way to a machine that took a connection.
#[derive(Debug)]
enum Way {
    /// One of this host.
    Here(Link),
    /// One of another, through the edge there.
    There(Carried),
}

/// Finds a machine that takes a connection, as for a request: one of this host while any is at ease,
/// else the best of all; one that refuses is left for another.
async fn find(worker: &Worker, entry: &Entry, ends: Ends) -> Result<Way, Cause> {
    let (mut search, mut elsewhere) = (Search::of(entry), Asked::default());
    loop {
        let choice = worker.choose_far(&search.wanted(worker.random()), &elsewhere, None);
        if let Some(choice) = choice {
            let carried = Box::pin(worker.carry(choice, ends, &mut elsewhere)).await?;
            if let Some(carried) = carried {
                return Ok(Way::There(carried));
            }
            continue;
        }
        let found = search.turn(worker).await.map_err(|cause| elsewhere.cause(cause))?;
        if let Some(link) = found {
            return Ok(Way::Here(link));
        }
    }
}
