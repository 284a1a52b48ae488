//! Datagrams at one raw port: relayed to a machine, and its answers back.
//!
//! Never trusts a source: it may be made up, so a flow that gets no answer ends soon, and there are
//! only so many. The machine sees the edge's address: what comes to it from outside is dropped
//! unless it belongs to something that the host began, and that rule stays.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

use super::{Entry, Raw, caps};
use crate::cause::Cause;
use crate::direction::Direction;
use crate::live::{InFlight, Target};
use crate::peer::Once;
use crate::pick;
use crate::wake::{self, Place, Tried, Wanted};

/// The largest datagram.
const DATAGRAM_BYTES_MAX: usize = 65_535;
/// Datagrams of one flow that wait, such as for a machine that is woken, and how much they are in
/// all; more are lost.
const WAITING_MAX: usize = 32;
const WAITING_BYTES_MAX: usize = 64 * 1024;
/// How much waits of all flows.
const ALL_WAITING_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Flows that were ended for others and still hold their place.
const LEAVING_MAX: usize = 64;
/// Ends of flows that wait to be noted.
const ENDS_MAX: usize = 256;
/// Datagrams that are taken before others have their turn.
const BATCH_MAX: usize = 64;

thread_local! {
    /// Where a datagram is received: its length is known only afterwards.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; DATAGRAM_BYTES_MAX]);
}

/// How much more may wait.
#[derive(Debug, Clone)]
pub(super) struct Room(Arc<Semaphore>);

impl Room {
    /// That of all flows.
    pub(super) fn of_all() -> Self {
        Self(Arc::new(Semaphore::new(ALL_WAITING_BYTES_MAX)))
    }

    fn of_flow() -> Self {
        Self(Arc::new(Semaphore::new(WAITING_BYTES_MAX)))
    }

    fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        // An empty one takes some too.
        let bytes = u32::try_from(bytes.max(1)).ok()?;
        Arc::clone(&self.0).try_acquire_many_owned(bytes).ok()
    }
}

/// A datagram that waits, and the room that it takes meanwhile.
#[derive(Debug)]
struct Datagram {
    bytes: Vec<u8>,
    _room: [OwnedSemaphorePermit; 2],
}

impl Datagram {
    /// Keeps one if there is room.
    fn kept(bytes: Vec<u8>, of_flow: &Room, of_all: &Room) -> Option<Self> {
        let room = [of_flow.take(bytes.len())?, of_all.take(bytes.len())?];
        Some(Self { bytes, _room: room })
    }
}

/// A flow as its port knows it.
#[derive(Debug)]
struct Known {
    number: u64,
    is_answered: Arc<AtomicBool>,
    room: Room,
    datagrams: mpsc::Sender<Datagram>,
}

impl Known {
    /// Passes a datagram on to the flow. What does not fit is lost, as datagrams are. Returns it
    /// where the flow has ended.
    fn pass(&self, bytes: Vec<u8>, of_all: &Room) -> Option<Vec<u8>> {
        if self.datagrams.is_closed() {
            return Some(bytes);
        }
        let datagram = Datagram::kept(bytes, &self.room, of_all)?;
        match self.datagrams.try_send(datagram) {
            Err(mpsc::error::TrySendError::Closed(datagram)) => Some(datagram.bytes),
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => None,
        }
    }
}

/// The flows of a port.
#[derive(Debug, Default)]
struct Flows {
    known: HashMap<SocketAddr, Known>,
    /// Those that may have had no answer, the oldest first; some have, or have ended.
    unanswered: VecDeque<(SocketAddr, u64)>,
    leaving: usize,
    last: u64,
}

impl Flows {
    /// Adds a flow; returns its number, and what notes that it has had an answer.
    fn begin(
        &mut self,
        client: SocketAddr,
        room: Room,
        datagrams: mpsc::Sender<Datagram>,
    ) -> (u64, Arc<AtomicBool>) {
        self.last += 1;
        let (number, is_answered) = (self.last, Arc::<AtomicBool>::default());
        let known = Known { number, is_answered: Arc::clone(&is_answered), room, datagrams };
        self.known.insert(client, known);
        self.unanswered.push_back((client, number));
        if self.unanswered.len() > 2 * self.known.len() {
            let known = &self.known;
            self.unanswered.retain(|(client, number)| is_unanswered(known, client, *number));
        }
        (number, is_answered)
    }

    /// Notes that a flow has ended.
    fn ended(&mut self, client: &SocketAddr, number: u64) {
        // Another flow of the client may have begun since.
        if self.known.get(client).is_some_and(|known| known.number == number) {
            self.known.remove(client);
        } else {
            self.leaving = self.leaving.saturating_sub(1);
        }
    }

    /// Ends the flow that has had no answer for longest: what it came from may be made up.
    fn give_way(&mut self) {
        while self.leaving < LEAVING_MAX {
            let Some((client, number)) = self.unanswered.pop_front() else { return };
            if is_unanswered(&self.known, &client, number) {
                // It ends as nothing more can come.
                self.known.remove(&client);
                self.leaving += 1;
                return;
            }
        }
    }
}

fn is_unanswered(flows: &HashMap<SocketAddr, Known>, client: &SocketAddr, number: u64) -> bool {
    let known = flows.get(client).filter(|known| known.number == number);
    known.is_some_and(|known| !known.is_answered.load(Ordering::Relaxed))
}

/// Relays for as long as the port is open.
pub(super) async fn relay(raw: Arc<Raw>, socket: UdpSocket, entry: Arc<Entry>) {
    let socket = Arc::new(socket);
    let mut flows = Flows::default();
    let (ending, mut ended) = mpsc::channel::<(SocketAddr, u64)>(ENDS_MAX);
    loop {
        tokio::select! {
            readable = socket.readable() => if let Err(error) = readable {
                tracing::warn!(%error, port = entry.port, "datagrams not received");
                return;
            },
            Some((client, number)) = ended.recv() => {
                flows.ended(&client, number);
                continue;
            }
        }
        for _ in 0..BATCH_MAX {
            let Ok((datagram, client)) = receive_from(&socket) else { break };
            let datagram = match flows.known.get(&client) {
                Some(known) => match known.pass(datagram, &raw.waiting) {
                    Some(datagram) => datagram,
                    None => continue,
                },
                None => datagram,
            };
            let port = (entry.protocol, entry.port);
            let Some(place) = raw.caps.enter(port, Some(&entry.app), client.ip()) else {
                flows.give_way();
                continue;
            };
            let room = Room::of_flow();
            // A flow without a first datagram would wait for one for ever.
            let Some(first) = Datagram::kept(datagram, &room, &raw.waiting) else { continue };
            let (datagrams, waiting) = mpsc::channel(WAITING_MAX);
            // There is room: it is new.
            datagrams.try_send(first).ok();
            let (number, is_answered) = flows.begin(client, room, datagrams);
            let flow = Flow {
                raw: Arc::clone(&raw),
                entry: Arc::clone(&entry),
                public: Arc::clone(&socket),
                client,
                waiting,
                is_answered,
                _place: place,
            };
            let ending = ending.clone();
            tokio::spawn(async move {
                flow.run().await;
                // The port may be closed by now.
                ending.send((client, number)).await.ok();
            });
        }
    }
}

/// What one client and one machine send each other.
#[derive(Debug)]
struct Flow {
    raw: Arc<Raw>,
    entry: Arc<Entry>,
    public: Arc<UdpSocket>,
    client: SocketAddr,
    waiting: mpsc::Receiver<Datagram>,
    is_answered: Arc<AtomicBool>,
    _place: caps::Place,
}

/// Why a flow leaves its machine.
#[derive(Debug)]
enum Left {
    /// Nothing moved, or the port was closed.
    Over,
    /// The machine takes no more: what came is another's.
    Closed(Datagram),
}

impl Flow {
    async fn run(mut self) {
        let Some(mut first) = self.waiting.recv().await else { return };
        loop {
            let link = match self.connect().await {
                Ok(link) => link,
                Err(cause) => {
                    let (app, port) = (&self.entry.app.name, self.entry.port);
                    tracing::debug!(%app, port, code = cause.code(), "datagrams ended by the edge");
                    self.raw.shared.tell_owner(&self.entry.app, None, cause);
                    return;
                }
            };
            match self.carry(&link, first).await {
                Left::Over => return,
                Left::Closed(datagram) => first = datagram,
            }
        }
    }

    async fn connect(&self) -> Result<Link, Cause> {
        let (tried, anywhere) = (Tried::default(), Direction::default());
        let (app, door, random) = (&self.entry.app, self.entry.door(), self.raw.lot());
        let wanted = Wanted {
            app,
            door,
            asks: &Once,
            direction: &anywhere,
            tried: &tried,
            random,
            sticky: None,
        };
        let Place { target, in_flight, .. } =
            wake::ready_machine(&self.raw.shared, &wanted).await?;
        let found = pick::raw(&target.record.services, self.entry.protocol, self.entry.port);
        let port = found.ok_or(Cause::NoMachine)?.0.internal_port;
        let address = SocketAddr::new(IpAddr::V4(target.record.private_ipv4), port);
        let socket = match bound(address).await {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(machine = %target.record.id, %error, "machine not connected");
                return Err(Cause::Upstream);
            }
        };
        Ok(Link { socket, target, in_flight: in_flight.into_tunnel() })
    }

    /// Carries datagrams both ways, `first` before all.
    async fn carry(&mut self, link: &Link, first: Datagram) -> Left {
        let limits = &self.raw.limits;
        let (mut moved, mut is_answered) = (Instant::now(), false);
        link.send(&first.bytes).await;
        drop(first);
        loop {
            let idle = if is_answered { limits.flow_idle } else { limits.flow_unanswered };
            tokio::select! {
                datagram = self.waiting.recv() => {
                    let Some(datagram) = datagram else { return Left::Over };
                    if !link.target.load.is_open() {
                        return Left::Closed(datagram);
                    }
                    link.send(&datagram.bytes).await;
                    moved = Instant::now();
                }
                readable = link.socket.readable() => {
                    if readable.is_err() {
                        return Left::Over;
                    }
                    for _ in 0..BATCH_MAX {
                        match link.answer(&self.public, self.client) {
                            Ok(()) => (moved, is_answered) = (Instant::now(), true),
                            // Nothing listens there yet: the client asks again.
                            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                            Err(_) => break,
                        }
                    }
                    self.is_answered.store(is_answered, Ordering::Relaxed);
                }
                () = tokio::time::sleep_until(moved + idle) => return Left::Over,
            }
        }
    }
}

/// A machine that a flow goes to, in which it is counted.
#[derive(Debug)]
struct Link {
    socket: UdpSocket,
    target: Arc<Target>,
    in_flight: InFlight,
}

impl Link {
    /// Passes one datagram of the machine on to its client.
    fn answer(&self, public: &UdpSocket, client: SocketAddr) -> io::Result<()> {
        SCRATCH.with_borrow_mut(|scratch| {
            let length = self.socket.try_recv(scratch)?;
            let datagram = scratch.get(..length).unwrap_or_default();
            self.in_flight.metrics().bytes_out.add(bytes(datagram));
            // What cannot be sent now is lost, as datagrams are.
            public.try_send_to(datagram, client).ok();
            Ok(())
        })
    }

    /// Sends a datagram to the machine.
    async fn send(&self, datagram: &[u8]) {
        self.in_flight.metrics().bytes_in.add(bytes(datagram));
        // An error may be what the one before met, and then this one was not sent. Twice, it is
        // lost, as datagrams are.
        if self.socket.send(datagram).await.is_err() {
            self.socket.send(datagram).await.ok();
        }
    }
}

fn bytes(datagram: &[u8]) -> u64 {
    u64::try_from(datagram.len()).unwrap_or(u64::MAX)
}

async fn bound(machine: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(machine).await?;
    Ok(socket)
}

fn receive_from(socket: &UdpSocket) -> io::Result<(Vec<u8>, SocketAddr)> {
    SCRATCH.with_borrow_mut(|scratch| {
        let (length, client) = socket.try_recv_from(scratch)?;
        Ok((scratch.get(..length).unwrap_or_default().to_vec(), client))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_much_waits_of_a_flow_and_of_all() {
        let all = Room(Arc::new(Semaphore::new(WAITING_BYTES_MAX + 2)));
        let flow = || {
            let (datagrams, waiting) = mpsc::channel(WAITING_MAX);
            let (room, is_answered) = (Room::of_flow(), Arc::default());
            (Known { number: 1, is_answered, room, datagrams }, waiting)
        };
        let ((one, mut of_one), (two, mut of_two)) = (flow(), flow());
        let largest = || vec![1; DATAGRAM_BYTES_MAX];
        assert!(one.pass(largest(), &all).is_none());
        assert!(one.pass(vec![2; 2], &all).is_none());
        assert!(two.pass(largest(), &all).is_none());
        assert!(two.pass(Vec::new(), &all).is_none());
        // The flow had no room for the second, all had none for the third.
        let first = of_one.try_recv().unwrap();
        assert!(first.bytes.len() == DATAGRAM_BYTES_MAX && of_one.try_recv().is_err());
        assert!(of_two.try_recv().unwrap().bytes.is_empty() && of_two.try_recv().is_err());
        drop(first);
        assert!(two.pass(largest(), &all).is_none());
        assert_eq!(of_two.try_recv().unwrap().bytes.len(), DATAGRAM_BYTES_MAX);
        drop(of_one);
        assert_eq!(one.pass(vec![3], &all), Some(vec![3]), "it has ended");
    }

    #[test]
    fn the_flow_that_had_no_answer_for_longest_gives_way() {
        let mut flows = Flows::default();
        let client = |port: u16| SocketAddr::from(([192, 0, 2, 1], port));
        let begin = |flows: &mut Flows, port| {
            let (datagrams, _) = mpsc::channel(1);
            flows.begin(client(port), Room::of_flow(), datagrams)
        };
        let (_, answered) = begin(&mut flows, 1);
        let (second, _) = begin(&mut flows, 2);
        begin(&mut flows, 3);
        answered.store(true, Ordering::Relaxed);
        flows.give_way();
        assert!(flows.known.contains_key(&client(1)) && !flows.known.contains_key(&client(2)));
        assert_eq!(flows.leaving, 1);
        flows.ended(&client(2), second);
        assert_eq!(flows.leaving, 0);
        // What comes and goes leaves nothing behind.
        for _ in 0..100 {
            let (number, _) = begin(&mut flows, 4);
            flows.ended(&client(4), number);
        }
        assert!(flows.unanswered.len() <= 2 * flows.known.len() + 2, "{flows:?}");
    }
}
