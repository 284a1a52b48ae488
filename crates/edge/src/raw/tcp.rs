//! Connections at claimed ports: accepted, and passed to a machine, perhaps out of TLS, or handed to
//! a loop.
//!
//! Never sends a byte to a second machine: another is tried only while the connection to the first
//! is not there.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use perch_sockets::{Patient, keep_alive};
use perch_types::service::{Port, Protocol};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Entry, Opening, Raw, caps, pg_tls, proxy_proto};
use crate::cause::Cause;
use crate::connection::Door;
use crate::dial;
use crate::direction::Direction;
use crate::gate::{self, Gate};
use crate::handing::{Handed, Loops};
use crate::live::{AppKey, InFlight, Target};
use crate::passage::{self, Ended, How, Terms};
use crate::peer::Once;
use crate::pick;
use crate::tls::{Secured, hello};
use crate::wake::{self, Place, Tried, Wanted};

/// The pause after an accept that failed, such as for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Bytes of a connection that are under way in one direction.
const BUFFER_BYTES: usize = 16 * 1024;

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

/// Finds out what an app wants of a connection, and sees to it.
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
        Ok(Opening::Http) => Some(Door::Plain(gate.clone())),
        Ok(Opening::Tls) => raw.tls.clone().map(|tls| Door::Tls(gate.clone(), tls)),
        Ok(Opening::Plain | Opening::PgTls) | Err(_) => None,
    };
    if let Some(door) = door {
        let Client { stream, address: client, place } = client;
        match stream.into_std() {
            Ok(stream) => loops.hand(Handed { stream, client, door, place }),
            Err(error) => tracing::debug!(%error, "connection not handed to a loop"),
        }
        return;
    }
    // Nothing more comes to a loop from here, and it may end before this does.
    drop(loops);
    let Some(app) = gate.only().cloned() else {
        return;
    };
    let entry = Entry { protocol: Protocol::Tcp, port: gate.public, app };
    raw.shared.metrics.connects.add(1);
    let outcome = match opening {
        Ok(opening) => through(&raw, &gate, (&entry, opening), client).await,
        Err(cause) => Err(Fault::Machine(cause)),
    };
    raw.shared.metrics.disconnects.add(1);
    tell(&raw, &entry, outcome, began);
}

/// Passes a connection that a loop has shaken hands over with a client, which has named its app.
pub(crate) async fn pass_named(
    raw: &Raw,
    gate: &Gate,
    app: AppKey,
    mut client: Secured<Patient<TcpStream>>,
) {
    let began = Instant::now();
    let entry = Entry { protocol: Protocol::Tcp, port: gate.public, app };
    let (held, _) = client.get_mut();
    let patient = held.get_mut();
    // Whoever takes nothing for a while may do so here: nothing else waits for it.
    patient.wait(raw.limits.idle);
    let outcome = match ends(patient.get_ref(), entry.port) {
        Ok(ends) => carry(raw, &entry, client, ends).await,
        Err(error) => Err(Fault::Handshake(error)),
    };
    tell(raw, &entry, outcome, began);
}

/// Writes a connection's one event, and tells the app's owner what the edge ended.
fn tell(raw: &Raw, entry: &Entry, outcome: Result<Ended, Fault>, began: Instant) {
    let took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    let (app, port) = (&entry.app.name, entry.port);
    match outcome {
        Ok(Ended { sent, received, how }) => {
            let (end, error) = match how {
                How::Closed => ("closed", None),
                How::Broken(error) => ("broken", Some(tracing::field::display(error))),
                How::Idle => ("idle", None),
            };
            tracing::debug!(%app, port, sent, received, end, error, took_us, "connection passed");
        }
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
    raw: &Raw,
    gate: &Gate,
    (entry, opening): (&Entry, Opening),
    client: Client,
) -> Result<Ended, Fault> {
    let Client { stream, address: _, place } = client;
    let ends = ends(&stream, entry.port).map_err(Fault::Handshake)?;
    let ended = if opening == Opening::Plain {
        carry(raw, entry, stream, ends).await
    } else {
        let shaking = shake(raw, gate, opening, stream);
        let shaken = tokio::time::timeout(raw.limits.handshake, shaking).await;
        let stream = shaken.map_err(|_| Fault::Slow)??;
        carry(raw, entry, stream, ends).await
    };
    drop(place);
    ended
}

/// Has a client begin as it has to.
async fn shake(
    raw: &Raw,
    gate: &Gate,
    opening: Opening,
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
    let shaken = tls.accept(&raw.shared, gate, start).await.map_err(Fault::Handshake)?;
    shaken.map(|session| session.stream).ok_or(Fault::NoTls)
}

/// Returns whether a client begins with a handshake, without taking a byte.
async fn begins_with_tls(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    stream.peek(&mut first).await?;
    Ok(first == [pg_tls::TLS_HANDSHAKE])
}

/// Who speaks to which public address.
#[derive(Debug, Clone, Copy)]
struct Ends {
    client: SocketAddr,
    public: SocketAddr,
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
async fn carry<S>(raw: &Raw, entry: &Entry, client: S, ends: Ends) -> Result<Ended, Fault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let link = connect(raw, entry).await.map_err(Fault::Machine)?;
    let Link { mut machine, port, target, in_flight } = link;
    let header = proxy_proto::wanted(&port)
        .map(|version| proxy_proto::header(version, ends.client, ends.public));
    let told = match header {
        Some(header) => machine.write_all(&header).await,
        None => Ok(()),
    };
    if let Err(error) = told {
        target.load.instance.disconnected();
        return Err(Fault::Header(error));
    }
    let (idle, half_idle) = (raw.limits.idle, raw.limits.half_idle);
    let terms = Terms { buffer_bytes: BUFFER_BYTES, idle, half_idle };
    let ended = passage::pass(client, machine, terms).await;
    target.load.instance.disconnected();
    in_flight.metrics().bytes_in.add(ended.sent);
    in_flight.metrics().bytes_out.add(ended.received);
    drop(in_flight);
    Ok(ended)
}

/// A machine that took a connection, in which it is counted.
#[derive(Debug)]
struct Link {
    machine: TcpStream,
    port: Port,
    target: Arc<Target>,
    in_flight: InFlight,
}

/// Connects to a ready machine, waking one if needed; one that refuses is left for another.
async fn connect(raw: &Raw, entry: &Entry) -> Result<Link, Cause> {
    let (mut tried, anywhere) = (Tried::default(), Direction::default());
    loop {
        let (app, door, random) = (&entry.app, entry.door(), raw.lot());
        let wanted = Wanted {
            app,
            door,
            asks: &Once,
            direction: &anywhere,
            tried: &tried,
            random,
            sticky: None,
        };
        let Place { target, in_flight, .. } = wake::ready_machine(&raw.shared, &wanted).await?;
        let found = pick::raw(&target.record.services, entry.protocol, entry.port);
        let (service, port) = found.ok_or(Cause::NoMachine)?;
        if let Some(machine) = reach(raw, &target, service.internal_port).await {
            // A connection has no end of its own: its app is told by the signal.
            let in_flight = in_flight.into_tunnel();
            let port = port.clone();
            return Ok(Link { machine, port, target, in_flight });
        }
        drop(in_flight);
        if !tried.note(&target.record, raw.shared.limits.stale) {
            return Err(Cause::NotListening);
        }
    }
}

async fn reach(raw: &Raw, target: &Target, port: u16) -> Option<TcpStream> {
    for address in dial::addresses(&target.record) {
        let (at, limit) = (SocketAddr::new(address, port), raw.shared.limits.connect);
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
