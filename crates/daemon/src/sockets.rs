//! Binds every socket of the server, once, in the supervisor.
//!
//! Never accepts on one. A process that is restarted finds its sockets still bound, and no
//! process but the supervisor needs the right to bind low ports. Ports that apps have claimed are
//! none of these: they come and go with the apps ([`crate::ports`]).

use std::fs;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::config::{Config, Https};
use crate::setup::Purpose;

/// Connections that wait to be accepted, per socket.
const BACKLOG: i32 = 1024;
/// The most edge sockets of a kind; one a core.
const HTTP_SOCKETS_MAX: usize = 32;

/// Names of the Unix sockets in the run folder.
pub(crate) const API_SOCKET: &str = "api.sock";
pub(crate) const HOST_SOCKET: &str = "host.sock";
pub(crate) const DIRECTORY_SOCKET: &str = "directory.sock";
pub(crate) const BUILDER_SOCKET: &str = "builder.sock";
pub(crate) const MONITORS_SOCKET: &str = "monitors.sock";
pub(crate) const INSIDE_SOCKET: &str = "inside.sock";
pub(crate) const KEYS_SOCKET: &str = "keys.sock";
pub(crate) const KEYS_HOST_SOCKET: &str = "keys-host.sock";
pub(crate) const DIRECTORY_KEYS_SOCKET: &str = "directory-keys.sock";
pub(crate) const PORTS_SOCKET: &str = "ports.sock";

/// Every socket with its purpose.
#[derive(Debug)]
pub(crate) struct Bound(Vec<(Purpose, OwnedFd)>);

impl Bound {
    /// Binds everything that `config` asks for and writes the ports that were free into it.
    ///
    /// What is `kept` of the program before, at the same place and for the same purpose, is not bound
    /// again: connections wait in it.
    pub(crate) fn bind(
        config: &mut Config,
        dns: &[SocketAddr],
        (front_uid, keys_uid): (u32, u32),
        kept: Vec<(Purpose, OwnedFd)>,
    ) -> Result<Self> {
        let mut bound = Vec::new();
        let mut kept = Kept(kept);
        let api = alone(&mut kept, Purpose::Api, config.api, "api")?;
        config.api = address(&api)?;
        bound.push((Purpose::Api, api.into()));
        if let Some(wanted) = config.api_tls {
            let api_tls = alone(&mut kept, Purpose::ApiTls, wanted, "api_tls")?;
            config.api_tls = Some(address(&api_tls)?);
            bound.push((Purpose::ApiTls, api_tls.into()));
        }
        if let Some(wanted) = config.metrics {
            let metrics = alone(&mut kept, Purpose::Metrics, wanted, "metrics")?;
            config.metrics = Some(address(&metrics)?);
            bound.push((Purpose::Metrics, metrics.into()));
        }
        let (http, sharing) = every_core(&mut kept, Purpose::Http, config.http, "http")?;
        config.http = http;
        bound.extend(sharing.into_iter().map(|listener| (Purpose::Http, listener.into())));
        config.https = match config.https.wanted(config.http) {
            Some(wanted) => {
                let (https, sharing) = every_core(&mut kept, Purpose::Https, wanted, "https")?;
                bound.extend(sharing.into_iter().map(|it| (Purpose::Https, it.into())));
                Https::At(https)
            }
            None => Https::Off,
        };
        if let Some(wanted) = config.edge_peers {
            let (at, sharing) = every_core(&mut kept, Purpose::EdgePeers, wanted, "edge_peers")?;
            config.edge_peers = Some(at);
            bound.extend(sharing.into_iter().map(|it| (Purpose::EdgePeers, it.into())));
        }
        for wanted in dns {
            let of = (Purpose::DnsUdp, Purpose::DnsTcp);
            both(&mut kept, &mut bound, of, *wanted, "dns")?;
        }
        for wanted in &mut config.acme.dns {
            let of = (Purpose::ZoneUdp, Purpose::ZoneTcp);
            *wanted = both(&mut kept, &mut bound, of, *wanted, "acme.dns")?;
        }
        let run = &config.run_dir;
        for (purpose, name, mode, owner) in [
            (Purpose::ApiUnix, API_SOCKET, 0o666, 0),
            (Purpose::Host, HOST_SOCKET, 0o600, front_uid),
            (Purpose::Directory, DIRECTORY_SOCKET, 0o600, 0),
            (Purpose::Builder, BUILDER_SOCKET, 0o600, front_uid),
            (Purpose::Monitors, MONITORS_SOCKET, 0o600, 0),
            (Purpose::Inside, INSIDE_SOCKET, 0o600, 0),
            (Purpose::Keys, KEYS_SOCKET, 0o600, front_uid),
            (Purpose::KeysHost, KEYS_HOST_SOCKET, 0o600, 0),
            (Purpose::DirectoryKeys, DIRECTORY_KEYS_SOCKET, 0o600, keys_uid),
            (Purpose::Ports, PORTS_SOCKET, 0o600, front_uid),
        ] {
            let path = run.join(name);
            let listener = match kept.unix(purpose, &path) {
                Some(listener) => listener,
                None => unix(&path)?,
            };
            own(&path, mode, owner)?;
            bound.push((purpose, listener.into()));
        }
        Ok(Self(bound))
    }

    /// Returns every socket, for the program that takes this one's place.
    pub(crate) fn all(&self) -> &[(Purpose, OwnedFd)] {
        &self.0
    }

    /// Returns the one of a purpose, for the supervisor itself.
    pub(crate) fn own(&self, purpose: Purpose) -> Result<OwnedFd> {
        let found = self.0.iter().find(|(kind, _)| *kind == purpose);
        let (_, socket) = found.with_context(|| format!("there is no socket for {purpose:?}"))?;
        socket.try_clone().context("keep a socket")
    }

    /// Returns the sockets of the given purposes.
    pub(crate) fn of(&self, purposes: &[Purpose]) -> (Vec<Purpose>, Vec<BorrowedFd<'_>>) {
        self.0
            .iter()
            .filter(|(purpose, _)| purposes.contains(purpose))
            .map(|(purpose, fd)| (*purpose, fd.as_fd()))
            .unzip()
    }
}

/// Binds one port for one socket, unless that is kept.
fn alone(kept: &mut Kept, purpose: Purpose, wanted: SocketAddr, key: &str) -> Result<TcpListener> {
    match kept.tcp(purpose, wanted) {
        Some(listener) => Ok(listener),
        None => tcp(wanted, key, Shared::No),
    }
}

/// Binds one port for datagrams and for connections, unless it is kept; returns where.
fn both(
    kept: &mut Kept,
    bound: &mut Vec<(Purpose, OwnedFd)>,
    (for_udp, for_tcp): (Purpose, Purpose),
    wanted: SocketAddr,
    key: &str,
) -> Result<SocketAddr> {
    let listener = alone(kept, for_tcp, wanted, key)?;
    let at = address(&listener)?;
    let socket = match kept.udp(for_udp, at) {
        Some(socket) => socket,
        None => udp(at, key)?,
    };
    bound.push((for_udp, socket.into()));
    bound.push((for_tcp, listener.into()));
    Ok(at)
}

/// Binds one port once a core, beside what is kept of it; returns where.
fn every_core(
    kept: &mut Kept,
    purpose: Purpose,
    wanted: SocketAddr,
    key: &str,
) -> Result<(SocketAddr, Vec<TcpListener>)> {
    let mut sharing = kept.shared(purpose, wanted);
    let at = match sharing.first() {
        Some(first) => address(first)?,
        // The first one is bound alone, so that a port in use is found; then it is shared.
        None => address(&tcp(wanted, key, Shared::No)?)?,
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    while sharing.len() < cores.min(HTTP_SOCKETS_MAX) {
        sharing.push(tcp(at, key, Shared::Yes)?);
    }
    Ok((at, sharing))
}

/// Sockets of the program before, of which some are still wanted.
struct Kept(Vec<(Purpose, OwnedFd)>);

impl Kept {
    fn take<T: From<OwnedFd>>(
        &mut self,
        purpose: Purpose,
        is_wanted: impl Fn(&OwnedFd) -> bool,
    ) -> Option<T> {
        let index = self.0.iter().position(|(kind, fd)| *kind == purpose && is_wanted(fd))?;
        Some(T::from(self.0.swap_remove(index).1))
    }

    fn tcp(&mut self, purpose: Purpose, wanted: SocketAddr) -> Option<TcpListener> {
        self.take(purpose, |fd| is_at(fd, wanted))
    }

    fn udp(&mut self, purpose: Purpose, wanted: SocketAddr) -> Option<UdpSocket> {
        self.take(purpose, |fd| is_at(fd, wanted))
    }

    /// Takes all that share one port.
    fn shared(&mut self, purpose: Purpose, wanted: SocketAddr) -> Vec<TcpListener> {
        std::iter::from_fn(|| self.tcp(purpose, wanted)).collect()
    }

    /// Takes one that can still be reached by its path.
    fn unix(&mut self, purpose: Purpose, path: &Path) -> Option<UnixListener> {
        if !path.exists() {
            return None;
        }
        self.take(purpose, |fd| {
            let address = fd.try_clone().ok().map(UnixListener::from);
            let address = address.and_then(|listener| listener.local_addr().ok());
            address.is_some_and(|address| address.as_pathname() == Some(path))
        })
    }
}

/// Returns whether a socket is bound at an address; port 0 stands for any.
fn is_at(fd: &OwnedFd, wanted: SocketAddr) -> bool {
    bound_at(fd).is_some_and(|found| {
        found.ip() == wanted.ip() && (wanted.port() == 0 || found.port() == wanted.port())
    })
}

/// Returns where a socket is bound.
pub(crate) fn bound_at(fd: &OwnedFd) -> Option<SocketAddr> {
    rustix::net::getsockname(fd).ok().and_then(|any| SocketAddr::try_from(any).ok())
}

/// Whether others may listen at the same port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shared {
    No,
    Yes,
}

fn address(listener: &TcpListener) -> Result<SocketAddr> {
    listener.local_addr().context("read a socket's address")
}

fn tcp(wanted: SocketAddr, key: &str, shared: Shared) -> Result<TcpListener> {
    listener(wanted, shared).map_err(|errno| in_use(errno, wanted, key))
}

fn udp(wanted: SocketAddr, key: &str) -> Result<UdpSocket> {
    datagrams(wanted).map_err(|errno| in_use(errno, wanted, key))
}

/// Listens at an address.
pub(crate) fn listener(wanted: SocketAddr, shared: Shared) -> Result<TcpListener, Errno> {
    let socket = socket(wanted, SocketType::STREAM)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, shared == Shared::Yes)?;
    freebind(&socket, wanted)?;
    rustix::net::bind(&socket, &wanted)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

/// Takes datagrams at an address.
pub(crate) fn datagrams(wanted: SocketAddr) -> Result<UdpSocket, Errno> {
    let socket = socket(wanted, SocketType::DGRAM)?;
    freebind(&socket, wanted)?;
    rustix::net::bind(&socket, &wanted)?;
    Ok(UdpSocket::from(socket))
}

fn socket(wanted: SocketAddr, kind: SocketType) -> Result<OwnedFd, Errno> {
    let family = match wanted {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)
}

/// The resolver's addresses are made by the host process, which starts later.
fn freebind(socket: &OwnedFd, wanted: SocketAddr) -> Result<(), Errno> {
    match wanted {
        SocketAddr::V4(_) => sockopt::set_ip_freebind(socket, true),
        SocketAddr::V6(_) => sockopt::set_ipv6_freebind(socket, true),
    }
}

fn in_use(errno: Errno, wanted: SocketAddr, key: &str) -> anyhow::Error {
    let error = anyhow::Error::new(std::io::Error::from(errno))
        .context(format!("listen on {wanted} (`{key}`)"));
    if errno != Errno::ADDRINUSE {
        return error;
    }
    let other = match key {
        // None that a flag says.
        "acme.dns" => format!("another address with `{key}`"),
        key => format!("another with `--{}`", key.replace('_', "-")),
    };
    error.context(format!(
        "port {} is in use: stop what listens there (`ss -ltunp 'sport = :{}'` names it), \
         or choose {other}",
        wanted.port(),
        wanted.port(),
    ))
}

fn unix(path: &Path) -> Result<UnixListener> {
    let what = || format!("listen on `{}`", path.display());
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(what);
        }
        _ => {}
    }
    UnixListener::bind(path).with_context(what)
}

/// Says who may connect.
fn own(path: &Path, mode: u32, owner: u32) -> Result<()> {
    let what = || format!("give out `{}`", path.display());
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).with_context(what)?;
    rustix::fs::chown(path, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)))
        .with_context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(folder: &Path) -> Config {
        Config {
            run_dir: folder.to_owned(),
            api: "127.0.0.1:0".parse().unwrap(),
            http: "127.0.0.1:0".parse().unwrap(),
            metrics: Some("127.0.0.1:0".parse().unwrap()),
            ..Config::default()
        }
    }

    #[test]
    fn ports_that_were_free_are_written_down() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        let bound = Bound::bind(&mut config, &[], (0, 0), Vec::new()).unwrap();
        assert_ne!(config.api.port(), 0);
        assert_ne!(config.http.port(), 0);
        // A server on a port of its own takes no other's 443.
        assert_eq!(config.https, Https::Off);
        assert_ne!(config.metrics.unwrap().port(), 0);
        let (purposes, fds) = bound.of(&[Purpose::Http, Purpose::Host]);
        assert_eq!(purposes.len(), fds.len());
        assert!(purposes.contains(&Purpose::Http) && purposes.contains(&Purpose::Host));
    }

    #[test]
    fn what_is_counted_is_served_nowhere_unless_it_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        let bound = Bound::bind(&mut config, &[], (0, 0), Vec::new()).unwrap();
        assert_eq!(bound.of(&[Purpose::Metrics]).0.len(), 1);
        config.metrics = None;
        let bound = Bound::bind(&mut config, &[], (0, 0), bound.0).unwrap();
        assert!(bound.of(&[Purpose::Metrics]).0.is_empty());
    }

    #[test]
    fn https_and_the_edges_other_side_are_bound_as_often_as_http() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        config.https = "127.0.0.1:0".parse().unwrap();
        config.edge_peers = Some("127.0.0.1:0".parse().unwrap());
        let bound = Bound::bind(&mut config, &[], (0, 0), Vec::new()).unwrap();
        assert_ne!(config.https.address().unwrap().port(), 0);
        let count = |purpose| bound.of(&[purpose]).0.len();
        assert_eq!(count(Purpose::Https), count(Purpose::Http));
        assert_eq!(count(Purpose::EdgePeers), count(Purpose::Http));
        assert_ne!(config.edge_peers.unwrap().port(), 0);
    }

    #[test]
    fn the_zone_is_bound_for_datagrams_and_connections_and_kept_over_a_replacement() {
        let folder = tempfile::tempdir().unwrap();
        let mut before = config(folder.path());
        let none = Bound::bind(&mut before, &[], (0, 0), Vec::new()).unwrap();
        assert!(none.of(&[Purpose::ZoneUdp, Purpose::ZoneTcp]).0.is_empty());
        before.acme.dns = vec!["127.0.0.1:0".parse().unwrap()];
        let bound = Bound::bind(&mut before, &[], (0, 0), none.0).unwrap();
        let at = before.acme.dns[0];
        assert_ne!(at.port(), 0);
        let asking = UdpSocket::bind("127.0.0.1:0").unwrap();
        asking.send_to(b"waits", at).unwrap();
        let mut after = config(folder.path());
        after.acme.dns = vec![at];
        let bound = Bound::bind(&mut after, &[], (0, 0), bound.0).unwrap();
        let (purposes, fds) = bound.of(&[Purpose::ZoneUdp, Purpose::ZoneTcp]);
        assert_eq!(purposes, [Purpose::ZoneUdp, Purpose::ZoneTcp]);
        let socket = UdpSocket::from(fds[0].try_clone_to_owned().unwrap());
        let mut buffer = [0; 16];
        assert_eq!(socket.recv_from(&mut buffer).unwrap(), (5, asking.local_addr().unwrap()));
    }

    #[test]
    fn what_is_kept_is_not_bound_again_and_what_waits_in_it_is_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let mut before = config(folder.path());
        let bound = Bound::bind(&mut before, &[], (0, 0), Vec::new()).unwrap();
        let waiting = std::net::TcpStream::connect(before.api).unwrap();
        let inside = std::os::unix::net::UnixStream::connect(folder.path().join(HOST_SOCKET));
        // The ports are asked for as they were at first: any.
        let mut after = config(folder.path());
        let bound = Bound::bind(&mut after, &[], (0, 0), bound.0).unwrap();
        assert_eq!((after.api, after.http), (before.api, before.http));
        let api = bound.0.iter().find(|(purpose, _)| *purpose == Purpose::Api).unwrap();
        let api = TcpListener::from(api.1.try_clone().unwrap());
        let (_, peer) = api.accept().unwrap();
        assert_eq!(peer, waiting.local_addr().unwrap());
        let host = bound.0.iter().find(|(purpose, _)| *purpose == Purpose::Host).unwrap();
        UnixListener::from(host.1.try_clone().unwrap()).accept().unwrap();
        drop(inside.unwrap());
        // Another port is another socket.
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut other = Config { api: free, ..config(folder.path()) };
        Bound::bind(&mut other, &[], (0, 0), bound.0).unwrap();
        assert_eq!((other.api, other.http), (free, before.http));
    }

    #[test]
    fn a_port_in_use_is_named_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = config(folder.path());
        config.http = holder.local_addr().unwrap();
        let error = format!("{:#}", Bound::bind(&mut config, &[], (0, 0), Vec::new()).unwrap_err());
        assert!(error.contains(&format!("port {} is in use", config.http.port())), "{error}");
        assert!(error.contains("--http"), "{error}");
    }
}
