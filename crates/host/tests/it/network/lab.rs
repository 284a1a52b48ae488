//! A server, its surroundings and its machines as network namespaces of this test.
//!
//! Never touches the namespace that the tests were started in.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use perch_host::network::{Attached, MachineNetwork, Network, NetworkConfig};
use perch_types::MachineId;

/// Longer than anything takes that works.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How long something that must not happen is waited for.
pub(crate) const DOUBT: Duration = Duration::from_millis(400);
/// The internet's only server.
pub(crate) const OUTSIDE_V4: &str = "203.0.113.2";
pub(crate) const OUTSIDE_V6: &str = "2001:db8::2";
/// The host's public addresses.
pub(crate) const HOST_V4: &str = "203.0.113.1";
pub(crate) const HOST_V6: &str = "2001:db8::1";
/// Neighbours of the host in networks of its own, the metadata service of its provider.
pub(crate) const PRIVATE_NEIGHBOURS: [&str; 6] =
    ["10.50.0.2", "192.168.77.2", "172.20.0.2", "100.64.0.2", "169.254.169.254", "fd00:77::2"];

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Namespaces, removed at the end.
pub(crate) struct Lab {
    tag: String,
    machines: Vec<String>,
}

impl Lab {
    /// Makes a server and its surroundings; `None`, with a word on stderr, where that cannot be.
    pub(crate) fn new(test: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            perch_testkit::skipped(test, "root");
            return None;
        }
        for program in ["ip", "nft", "python3"] {
            if Command::new(program).arg("-V").output().is_err() {
                perch_testkit::skipped(test, program);
                return None;
            }
        }
        let tag = format!("pt{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let lab = Self { tag, machines: Vec::new() };
        ip(&["netns", "add", &lab.host()]);
        ip(&["netns", "add", &lab.outside()]);
        lab.connect_outside();
        Some(lab)
    }

    pub(crate) fn host(&self) -> String {
        format!("{}-host", self.tag)
    }

    pub(crate) fn outside(&self) -> String {
        format!("{}-out", self.tag)
    }

    fn connect_outside(&self) {
        let (host, outside) = (self.host(), self.outside());
        ip(&["-n", &host, "link", "set", "lo", "up"]);
        ip(&["-n", &outside, "link", "set", "lo", "up"]);
        let pair = ["link", "add", "wan", "type", "veth", "peer", "wan", "netns", &outside];
        ip(&[&["-n", host.as_str()][..], &pair].concat());
        for (namespace, last) in [(&host, "1"), (&outside, "2")] {
            ip(&["-n", namespace, "link", "set", "wan", "up"]);
            for net in ["203.0.113.", "10.50.0.", "192.168.77.", "172.20.0.", "100.64.0."] {
                ip(&["-n", namespace, "addr", "add", &format!("{net}{last}/24"), "dev", "wan"]);
            }
            for net in ["2001:db8::", "fd00:77::"] {
                let address = format!("{net}{last}/64");
                ip(&["-n", namespace, "addr", "add", &address, "dev", "wan", "nodad"]);
            }
        }
        ip(&["-n", &outside, "addr", "add", "169.254.169.254/32", "dev", "wan"]);
        ip(&["-n", &host, "route", "add", "169.254.169.254/32", "dev", "wan"]);
        ip(&["-n", &host, "route", "add", "default", "via", OUTSIDE_V4]);
        ip(&["-n", &host, "-6", "route", "add", "default", "via", OUTSIDE_V6]);
        // So that what leaks is answered: the outside knows the way to the pools.
        ip(&["-n", &outside, "route", "add", "10.209.0.0/16", "via", HOST_V4]);
        ip(&["-n", &outside, "-6", "route", "add", "fdaa::/16", "via", HOST_V6]);
    }

    /// Runs a test on a thread inside the server's namespace.
    pub(crate) fn run<F: Future<Output = ()>>(&mut self, test: impl FnOnce(Net) -> F + Send) {
        self.run_with(NetworkConfig::default(), test);
    }

    pub(crate) fn run_with<F: Future<Output = ()>>(
        &mut self,
        config: NetworkConfig,
        test: impl FnOnce(Net) -> F + Send,
    ) {
        let (tag, host) = (self.tag.clone(), self.host());
        let outside = self.outside();
        let machines = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let made = machines.clone();
        let result = thread::scope(|scope| {
            scope
                .spawn(move || {
                    enter(&host);
                    let runtime =
                        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(async {
                        let network = Network::open(config).await.unwrap();
                        test(Net { network, tag, host, outside, made }).await;
                    });
                })
                .join()
        });
        self.machines.append(&mut machines.lock().unwrap());
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in self.machines.iter().chain([&self.host(), &self.outside()]) {
            let _removed = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

/// The server with its networking open.
pub(crate) struct Net {
    pub(crate) network: Network,
    tag: String,
    pub(crate) host: String,
    pub(crate) outside: String,
    made: std::sync::Arc<std::sync::Mutex<Vec<String>>>,
}

/// A machine: its namespace and what it was given.
#[derive(Clone)]
pub(crate) struct Machine {
    pub(crate) id: MachineId,
    pub(crate) namespace: String,
    pub(crate) attached: Attached,
}

impl Machine {
    pub(crate) fn v6(&self, port: u16) -> SocketAddr {
        (self.attached.private_ip, port).into()
    }

    pub(crate) fn v4(&self, port: u16) -> SocketAddr {
        (self.attached.private_ipv4, port).into()
    }
}

impl Net {
    /// Makes a namespace without anything in it.
    pub(crate) fn namespace(&self, slot: u32) -> String {
        let name = format!("{}-m{slot}", self.tag);
        ip(&["netns", "add", &name]);
        self.made.lock().unwrap().push(name.clone());
        name
    }

    /// Makes and attaches a machine.
    pub(crate) async fn machine(&self, network_id: u32, slot: u32) -> Machine {
        let namespace = self.namespace(slot);
        let id = MachineId::from_bits(0x00c0_ffee_0000_0000 | u64::from(slot));
        let wanted = MachineNetwork { machine: id.clone(), network_id, slot };
        let attached = self.network.attach(open(&namespace), wanted).await.unwrap();
        Machine { id, namespace, attached }
    }
}

/// Opens a named namespace.
pub(crate) fn open(namespace: &str) -> OwnedFd {
    File::open(format!("/run/netns/{namespace}")).unwrap().into()
}

/// Moves the calling thread.
pub(crate) fn enter(namespace: &str) {
    rustix::thread::move_into_link_name_space(open(namespace).as_fd(), None).unwrap();
}

/// Runs `work` on a thread inside a namespace.
pub(crate) fn inside<T: Send + 'static>(
    namespace: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let namespace = namespace.to_owned();
    thread::spawn(move || {
        enter(&namespace);
        work()
    })
    .join()
    .unwrap()
}

/// Runs `ip` and returns its output.
pub(crate) fn ip(arguments: &[&str]) -> String {
    run("ip", arguments)
}

/// Runs a program that must succeed and returns its output.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}

/// Opens a TCP server inside a namespace that sends every client its address, and returns its port.
pub(crate) fn serve(namespace: &str, address: &str) -> u16 {
    serve_at(namespace, address, 0)
}

pub(crate) fn serve_at(namespace: &str, address: &str, port: u16) -> u16 {
    let address: IpAddr = address.parse().unwrap();
    let listener = inside(namespace, move || TcpListener::bind((address, port)).unwrap());
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        // The clients are kept: a connection that ends would free its place.
        let mut clients = Vec::new();
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let peer = client.peer_addr().unwrap().ip().to_canonical().to_string();
            if client.write_all(peer.as_bytes()).is_ok() {
                let _closed = client.shutdown(std::net::Shutdown::Write);
            }
            clients.push(client);
        }
    });
    port
}

/// What became of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was answered by a server that saw this address.
    Seen(IpAddr),
    Refused,
    Unreachable,
    Silence,
}

impl Outcome {
    pub(crate) fn is_connected(&self) -> bool {
        matches!(self, Self::Seen(_))
    }
}

/// Connects from inside a namespace.
pub(crate) fn connect(namespace: &str, to: impl Into<SocketAddr>) -> Outcome {
    let to = to.into();
    inside(namespace, move || connect_here(to, PATIENCE).0)
}

/// Connects from inside a namespace where nothing but silence is thought likely.
pub(crate) fn connect_briefly(namespace: &str, to: impl Into<SocketAddr>) -> Outcome {
    let to = to.into();
    inside(namespace, move || connect_here(to, DOUBT).0)
}

/// Connects from the calling thread's namespace.
pub(crate) fn connect_here(to: SocketAddr, patience: Duration) -> (Outcome, Option<TcpStream>) {
    let mut stream = match TcpStream::connect_timeout(&to, patience) {
        Ok(stream) => stream,
        Err(error) => {
            let outcome = match error.kind() {
                ErrorKind::ConnectionRefused => Outcome::Refused,
                ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Outcome::Unreachable,
                ErrorKind::TimedOut => Outcome::Silence,
                ErrorKind::PermissionDenied => Outcome::Unreachable,
                other => panic!("connect {to}: {other:?} {error}"),
            };
            return (outcome, None);
        }
    };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut seen = String::new();
    stream.read_to_string(&mut seen).unwrap();
    (Outcome::Seen(seen.parse().unwrap()), Some(stream))
}

/// Opens a UDP socket inside a namespace.
pub(crate) fn udp(namespace: &str, at: impl Into<SocketAddr>) -> UdpSocket {
    let at = at.into();
    let socket = inside(namespace, move || UdpSocket::bind(at).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Receives until the marker comes and returns what came before it.
pub(crate) fn until_marker(socket: &UdpSocket, marker: &[u8]) -> Vec<Vec<u8>> {
    let mut before = Vec::new();
    let mut buffer = [0; 2048];
    loop {
        let (length, _) = socket.recv_from(&mut buffer).expect("the marker comes");
        if &buffer[..length] == marker {
            return before;
        }
        before.push(buffer[..length].to_vec());
    }
}
