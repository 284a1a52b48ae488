//! Ports that apps have claimed: the supervisor binds them when the edge asks, and keeps them.
//!
//! Never accepts on one. They outlive the process of the edge and go on to the program that takes
//! the supervisor's place, with the connections that wait in them; and the process that faces the
//! network needs no right to low ports.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use perch_api::PortRules;
use perch_types::ports::{RAW_PORTS_MAX, RawPort};
use perch_types::service::Protocol;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};

use crate::config::Config;
use crate::setup::{self, Purpose};
use crate::sockets;

/// The longest question.
const ASKED_BYTES_MAX: u64 = 64 * 1024;
/// How long a question, and its answer, may take.
const ASK_MAX: Duration = Duration::from_secs(2);
/// The pause after an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the edge wants.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Asked {
    /// This port's socket.
    Open(RawPort),
    /// That all but these are closed.
    Only(BTreeSet<RawPort>),
}

/// What it is told; a socket comes with it.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    errno: Option<i32>,
}

/// Returns which ports apps cannot have.
pub(crate) fn rules(config: &Config) -> PortRules {
    let mut rules = PortRules::default();
    let own = [
        (Some(config.api), "the api"),
        (config.api_tls, "the api"),
        (Some(config.http), "the edge"),
        (config.https.wanted(config.http), "the edge"),
        (config.edge_peers, "the edge"),
        (config.metrics, "metrics"),
    ];
    let zone = config.acme.dns.iter().map(|at| (Some(*at), "the zone of challenges"));
    let own = own.into_iter().chain(zone).filter_map(|(at, what)| Some((at?.port(), what)));
    let others = config.reserved_ports.iter().map(|port| (*port, "another program"));
    for (port, what) in own.chain(others) {
        rules.reserved.entry(port).or_insert(what);
    }
    rules
}

/// Sockets of the program before.
type Inherited = Vec<(Purpose, OwnedFd)>;

/// Takes the claimed ports out of what the program before has left. Those that no app can have now
/// are closed: what the server wants for itself is bound after this.
pub(crate) fn part(inherited: Inherited, rules: &PortRules) -> (Inherited, Inherited) {
    let (mut claimed, others): (Inherited, Inherited) = inherited
        .into_iter()
        .partition(|(purpose, _)| matches!(purpose, Purpose::ClaimedTcp | Purpose::ClaimedUdp));
    claimed.retain(|(_, socket)| {
        sockets::bound_at(socket).is_some_and(|at| !rules.reserved.contains_key(&at.port()))
    });
    (claimed, others)
}

/// The supervisor's side.
#[derive(Debug)]
pub(crate) struct Keeper {
    at: IpAddr,
    rules: PortRules,
    open: Mutex<BTreeMap<RawPort, OwnedFd>>,
}

impl Keeper {
    /// Keeps what the program before has left, where that is still at the edge's address.
    pub(crate) fn new(config: &Config, inherited: Inherited) -> Self {
        let at = config.http.ip();
        let open = inherited.into_iter().filter_map(|(purpose, socket)| {
            let protocol = match purpose {
                Purpose::ClaimedTcp => Protocol::Tcp,
                Purpose::ClaimedUdp => Protocol::Udp,
                _ => return None,
            };
            let bound = sockets::bound_at(&socket).filter(|bound| bound.ip() == at)?;
            Some(((protocol, bound.port()), socket))
        });
        Self { at, rules: rules(config), open: Mutex::new(open.collect()) }
    }

    /// Begins to answer the edge, for as long as the server runs; must be called inside a runtime.
    pub(crate) fn start(self: &Arc<Self>, listener: OwnedFd) -> Result<()> {
        let listener = StdUnixListener::from(listener);
        listener.set_nonblocking(true).context("prepare the socket for claimed ports")?;
        let listener =
            UnixListener::from_std(listener).context("prepare the socket for claimed ports")?;
        tokio::spawn(Arc::clone(self).serve(listener));
        Ok(())
    }

    async fn serve(self: Arc<Self>, listener: UnixListener) {
        loop {
            let outcome = match listener.accept().await {
                // One after the other: there is one edge, and it waits for each answer.
                Ok((stream, _)) => tokio::time::timeout(ASK_MAX, self.answer(stream)).await,
                Err(error) => {
                    tracing::warn!(%error, "question for a claimed port not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if let Err(error) = outcome.context("answer in time").flatten() {
                tracing::warn!(error = format!("{error:#}"), "claimed port not answered for");
            }
        }
    }

    async fn answer(&self, mut stream: UnixStream) -> Result<()> {
        let mut bytes = Vec::new();
        (&mut stream).take(ASKED_BYTES_MAX).read_to_end(&mut bytes).await.context("read")?;
        let done = match serde_json::from_slice::<Asked>(&bytes).context("read a question")? {
            Asked::Open(port) => self.open(port).map(Some),
            Asked::Only(ports) => {
                self.sockets().retain(|port, _| ports.contains(port));
                Ok(None)
            }
        };
        let (socket, errno) = match done {
            Ok(socket) => (socket, None),
            Err(errno) => (None, Some(errno.raw_os_error())),
        };
        let bytes = serde_json::to_vec(&Told { errno }).context("write an answer")?;
        let stream = OwnedFd::from(stream.into_std().context("keep the connection")?);
        let passed: Vec<_> = socket.iter().map(|socket| socket.as_fd()).collect();
        setup::send_packet(&stream, &bytes, &passed)
    }

    /// Returns a port's socket, bound now or before.
    fn open(&self, (protocol, port): RawPort) -> Result<OwnedFd, Errno> {
        let clone = |socket: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(socket, 0);
        let mut open = self.sockets();
        if let Some(socket) = open.get(&(protocol, port)) {
            return clone(socket);
        }
        // Also from a process of the edge that is not its own master any more.
        if port == 0 || self.rules.reserved.contains_key(&port) {
            return Err(Errno::PERM);
        }
        if open.len() >= RAW_PORTS_MAX {
            return Err(Errno::MFILE);
        }
        let at = SocketAddr::new(self.at, port);
        let socket: OwnedFd = match protocol {
            Protocol::Tcp => sockets::listener(at, sockets::Shared::No)?.into(),
            Protocol::Udp => sockets::datagrams(at)?.into(),
        };
        let given = clone(&socket)?;
        open.insert((protocol, port), socket);
        drop(open);
        Ok(given)
    }

    /// Takes every socket, for the program that takes this one's place.
    pub(crate) fn take(&self) -> Inherited {
        let purpose = |protocol| match protocol {
            Protocol::Tcp => Purpose::ClaimedTcp,
            Protocol::Udp => Purpose::ClaimedUdp,
        };
        let open = std::mem::take(&mut *self.sockets());
        open.into_iter().map(|((protocol, _), socket)| (purpose(protocol), socket)).collect()
    }

    fn sockets(&self) -> MutexGuard<'_, BTreeMap<RawPort, OwnedFd>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The edge's side: asks at the supervisor's socket.
#[derive(Debug)]
pub(crate) struct ClaimedPorts(pub(crate) PathBuf);

impl ClaimedPorts {
    fn ask(&self, asked: &Asked) -> io::Result<Option<OwnedFd>> {
        let mut stream = StdUnixStream::connect(&self.0)?;
        stream.set_read_timeout(Some(ASK_MAX))?;
        stream.set_write_timeout(Some(ASK_MAX))?;
        stream.write_all(&serde_json::to_vec(asked)?)?;
        stream.shutdown(Shutdown::Write)?;
        let (bytes, sockets) = setup::receive_packet(&stream).map_err(io::Error::other)?;
        let told: Told = serde_json::from_slice(&bytes)?;
        match told.errno {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(sockets.into_iter().next()),
        }
    }

    fn open<T: From<OwnedFd>>(&self, port: RawPort) -> io::Result<T> {
        let socket = self.ask(&Asked::Open(port))?;
        socket.map(T::from).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl perch_edge::Binder for ClaimedPorts {
    fn tcp(&self, port: u16) -> io::Result<TcpListener> {
        self.open((Protocol::Tcp, port))
    }

    fn udp(&self, port: u16) -> io::Result<UdpSocket> {
        self.open((Protocol::Udp, port))
    }

    fn only(&self, ports: &BTreeSet<RawPort>) -> io::Result<()> {
        self.ask(&Asked::Only(ports.clone())).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::TcpStream;
    use std::path::Path;

    use perch_edge::Binder as _;
    use perch_types::ports::RESERVED;

    use super::*;
    use crate::sockets::Bound;

    const HERE: &str = "127.0.0.1";
    /// A port of another program.
    const OTHERS: u16 = 15_998;

    fn config() -> Config {
        let any = SocketAddr::new(HERE.parse().unwrap(), 0);
        Config { http: any, reserved_ports: vec![OTHERS], ..Config::default() }
    }

    /// Serves as the supervisor does, and returns what it keeps sockets with.
    fn serving(path: &Path, inherited: Inherited) -> Arc<Keeper> {
        let keeper = Arc::new(Keeper::new(&config(), inherited));
        std::fs::remove_file(path).ok();
        let listener = StdUnixListener::bind(path).unwrap();
        keeper.start(listener.into()).unwrap();
        keeper
    }

    fn free() -> u16 {
        TcpListener::bind((HERE, 0)).unwrap().local_addr().unwrap().port()
    }

    /// Does what blocks, as an edge does.
    async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        tokio::task::spawn_blocking(work).await.unwrap()
    }

    #[tokio::test]
    async fn e10_a_connection_that_waits_at_a_claimed_port_is_accepted_by_the_edge_after() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ports.sock");
        let keeper = serving(&path, Vec::new());
        let (port, asks) = (free(), Arc::new(ClaimedPorts(path.clone())));
        let ask = Arc::clone(&asks);
        let first = blocking(move || ask.tcp(port)).await.unwrap();
        assert_eq!(first.local_addr().unwrap().ip().to_string(), HERE);
        // The edge is gone, and then its supervisor is another program.
        drop(first);
        let waiting = TcpStream::connect((HERE, port)).unwrap();
        let left = keeper.take();
        assert_eq!(left.iter().map(|it| it.0).collect::<Vec<_>>(), [Purpose::ClaimedTcp]);
        let _after = serving(&path, left);
        let ask = Arc::clone(&asks);
        let second = blocking(move || ask.tcp(port)).await.unwrap();
        let (_, client) = second.accept().unwrap();
        assert_eq!(client, waiting.local_addr().unwrap());
        // Whatever the edge itself holds, a port that nobody has claimed is closed.
        drop(second);
        blocking(move || asks.only(&BTreeSet::new())).await.unwrap();
        let error = TcpStream::connect((HERE, port)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn a_port_is_given_by_protocol_and_none_that_is_kept_for_the_server_or_somebody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ports.sock");
        let _keeper = serving(&path, Vec::new());
        let asks = ClaimedPorts(path);
        blocking(move || {
            let port = free();
            let datagrams = asks.udp(port).unwrap();
            assert_eq!(datagrams.local_addr().unwrap().port(), port);
            let listener = asks.tcp(port).unwrap();
            assert_eq!(listener.local_addr().unwrap().port(), port);
            let own = config().api.port();
            for reserved in RESERVED.map(|it| it.0).into_iter().chain([OTHERS, own]) {
                let error = asks.tcp(reserved).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{reserved}");
            }
            let other = TcpListener::bind((HERE, 0)).unwrap();
            let error = asks.tcp(other.local_addr().unwrap().port()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AddrInUse);
            asks.only(&BTreeSet::from([(Protocol::Udp, port)])).unwrap();
            drop((datagrams, listener));
            UdpSocket::bind((HERE, port)).unwrap_err();
            TcpListener::bind((HERE, port)).unwrap();
        })
        .await;
    }

    #[test]
    fn what_is_bound_elsewhere_or_for_something_else_is_not_kept() {
        let socket = || OwnedFd::from(TcpListener::bind((HERE, 0)).unwrap());
        let inherited = vec![(Purpose::ClaimedTcp, socket()), (Purpose::Http, socket())];
        let elsewhere = Config { http: "127.0.0.2:80".parse().unwrap(), ..Config::default() };
        assert!(Keeper::new(&elsewhere, inherited).take().is_empty());
    }

    #[test]
    fn a_claimed_port_that_the_server_wants_now_is_bound_for_it_and_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let [wanted, other] = [0; 2].map(|any| TcpListener::bind((HERE, any)).unwrap());
        let [wanted_at, other_at] = [&wanted, &other].map(|it| it.local_addr().unwrap());
        let mut config = Config {
            run_dir: folder.path().to_owned(),
            api: SocketAddr::new(wanted_at.ip(), 0),
            metrics: Some(wanted_at),
            ..config()
        };
        let inherited = [wanted, other].map(|it| (Purpose::ClaimedTcp, OwnedFd::from(it)));
        let (claimed, others) = part(inherited.into(), &rules(&config));
        assert!(others.is_empty());
        let bound = Bound::bind(&mut config, &[], (0, 0), others).unwrap();
        assert_eq!(bound.of(&[Purpose::Metrics]).0.len(), 1);
        let left = Keeper::new(&config, claimed).take();
        let left: Vec<_> = left.iter().map(|it| (it.0, sockets::bound_at(&it.1))).collect();
        assert_eq!(left, [(Purpose::ClaimedTcp, Some(other_at))]);
    }

    #[test]
    fn the_servers_own_ports_and_those_of_its_other_programs_are_no_apps() {
        let config = Config {
            api: "127.0.0.1:4280".parse().unwrap(),
            api_tls: Some("0.0.0.0:4281".parse().unwrap()),
            http: "0.0.0.0:8080".parse().unwrap(),
            https: "0.0.0.0:8443".parse().unwrap(),
            metrics: Some("127.0.0.1:4282".parse().unwrap()),
            edge_peers: Some("0.0.0.0:4283".parse().unwrap()),
            reserved_ports: vec![5432],
            ..Config::default()
        };
        let reserved = rules(&config).reserved;
        let more: Vec<(u16, &str)> = reserved
            .into_iter()
            .filter(|it| !PortRules::default().reserved.contains_key(&it.0))
            .collect();
        let want = [
            (4280, "the api"),
            (4281, "the api"),
            (4282, "metrics"),
            (4283, "the edge"),
            (5432, "another program"),
            (8080, "the edge"),
            (8443, "the edge"),
        ];
        assert_eq!(more, want);
    }
}
