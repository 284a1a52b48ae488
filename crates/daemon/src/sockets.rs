//! Binds every socket of the server, once, in the supervisor.
//!
//! Never accepts on one. A process that is restarted finds its sockets still bound, and no
//! process but the supervisor needs the right to bind low ports. Raw ports of apps are none of
//! these: the edge has them bound as they are claimed ([`RawPorts`]).

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
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

/// The lowest port that anybody may bind, unless the server says otherwise.
const FIRST_FREE_PORT: u16 = 1024;

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

/// Every socket with its purpose.
#[derive(Debug)]
pub(crate) struct Bound(Vec<(Purpose, OwnedFd)>);

impl Bound {
    /// Binds everything that `config` asks for and writes the ports that were free into it.
    pub(crate) fn bind(
        config: &mut Config,
        dns: &[SocketAddr],
        (front_uid, keys_uid): (u32, u32),
    ) -> Result<Self> {
        let mut bound = Vec::new();
        let api = tcp(config.api, "api", Shared::No)?;
        config.api = address(&api)?;
        bound.push((Purpose::Api, api.into()));
        if let Some(wanted) = config.api_tls {
            let api_tls = tcp(wanted, "api_tls", Shared::No)?;
            config.api_tls = Some(address(&api_tls)?);
            bound.push((Purpose::ApiTls, api_tls.into()));
        }
        let metrics = tcp(config.metrics, "metrics", Shared::No)?;
        config.metrics = address(&metrics)?;
        bound.push((Purpose::Metrics, metrics.into()));
        // The first one is bound alone, so that a port in use is found; then it is shared.
        drop(tcp(config.http, "http", Shared::No).and_then(|first| {
            config.http = address(&first)?;
            Ok(first)
        })?);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..cores.min(HTTP_SOCKETS_MAX) {
            bound.push((Purpose::Http, tcp(config.http, "http", Shared::Yes)?.into()));
        }
        if let Some(wanted) = config.https.wanted(config.http) {
            drop(tcp(wanted, "https", Shared::No).and_then(|first| {
                config.https = Https::At(address(&first)?);
                Ok(first)
            })?);
        } else {
            config.https = Https::Off;
        }
        if let Some(at) = config.https.address() {
            for _ in 0..cores.min(HTTP_SOCKETS_MAX) {
                bound.push((Purpose::Https, tcp(at, "https", Shared::Yes)?.into()));
            }
        }
        for wanted in dns {
            bound.push((Purpose::DnsUdp, udp(*wanted)?.into()));
            bound.push((Purpose::DnsTcp, tcp(*wanted, "dns", Shared::No)?.into()));
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
        ] {
            bound.push((purpose, unix(&run.join(name), mode, owner)?.into()));
        }
        Ok(Self(bound))
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shared {
    No,
    Yes,
}

fn address(listener: &TcpListener) -> Result<SocketAddr> {
    listener.local_addr().context("read a socket's address")
}

fn tcp(wanted: SocketAddr, key: &str, shared: Shared) -> Result<TcpListener> {
    listener(wanted, shared).map_err(|errno| in_use(errno, wanted, key))
}

fn udp(wanted: SocketAddr) -> Result<UdpSocket> {
    datagrams(wanted).map_err(|errno| in_use(errno, wanted, "dns"))
}

fn listener(wanted: SocketAddr, shared: Shared) -> Result<TcpListener, Errno> {
    let socket = socket(wanted, SocketType::STREAM)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, shared == Shared::Yes)?;
    freebind(&socket, wanted)?;
    rustix::net::bind(&socket, &wanted)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

fn datagrams(wanted: SocketAddr) -> Result<UdpSocket, Errno> {
    let socket = socket(wanted, SocketType::DGRAM)?;
    freebind(&socket, wanted)?;
    rustix::net::bind(&socket, &wanted)?;
    Ok(UdpSocket::from(socket))
}

/// Binds the raw ports of apps, in the process of the edge: they come and go with the apps, and it
/// has no right to any that needs one.
#[derive(Debug)]
pub(crate) struct RawPorts(pub(crate) IpAddr);

impl perch_edge::Binder for RawPorts {
    fn tcp(&self, port: u16) -> std::io::Result<TcpListener> {
        // Shared, so that the next process of the edge has the port before this one lets go of it.
        Ok(listener(SocketAddr::new(self.0, port), Shared::Yes)?)
    }

    fn udp(&self, port: u16) -> std::io::Result<UdpSocket> {
        Ok(datagrams(SocketAddr::new(self.0, port))?)
    }
}

/// Returns the lowest port that anybody may bind on this server.
pub(crate) fn first_free_port() -> u16 {
    fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(FIRST_FREE_PORT)
        .max(1)
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
    error.context(format!(
        "port {} is in use: stop what listens there (`ss -ltnp 'sport = :{}'` names it), \
         or choose another with `--{}`",
        wanted.port(),
        wanted.port(),
        key.replace('_', "-")
    ))
}

fn unix(path: &Path, mode: u32, owner: u32) -> Result<UnixListener> {
    let what = || format!("listen on `{}`", path.display());
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(what);
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(what)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).with_context(what)?;
    rustix::fs::chown(path, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)))
        .with_context(what)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(folder: &Path) -> Config {
        Config {
            run_dir: folder.to_owned(),
            api: "127.0.0.1:0".parse().unwrap(),
            http: "127.0.0.1:0".parse().unwrap(),
            metrics: "127.0.0.1:0".parse().unwrap(),
            ..Config::default()
        }
    }

    #[test]
    fn ports_that_were_free_are_written_down() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        let bound = Bound::bind(&mut config, &[], (0, 0)).unwrap();
        assert_ne!(config.api.port(), 0);
        assert_ne!(config.http.port(), 0);
        // A server on a port of its own takes no other's 443.
        assert_eq!(config.https, Https::Off);
        assert_ne!(config.metrics.port(), 0);
        let (purposes, fds) = bound.of(&[Purpose::Http, Purpose::Host]);
        assert_eq!(purposes.len(), fds.len());
        assert!(purposes.contains(&Purpose::Http) && purposes.contains(&Purpose::Host));
    }

    #[test]
    fn https_is_bound_as_often_as_http() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        config.https = "127.0.0.1:0".parse().unwrap();
        let bound = Bound::bind(&mut config, &[], (0, 0)).unwrap();
        assert_ne!(config.https.address().unwrap().port(), 0);
        let count = |purpose| bound.of(&[purpose]).0.len();
        assert_eq!(count(Purpose::Https), count(Purpose::Http));
    }

    #[test]
    fn a_raw_port_is_bound_where_the_edge_is_and_by_no_two() {
        let raw = RawPorts("127.0.0.1".parse().unwrap());
        let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let bound = perch_edge::Binder::udp(&raw, free.port()).unwrap();
        assert_eq!(bound.local_addr().unwrap(), free);
        let error = perch_edge::Binder::udp(&raw, free.port()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = other.local_addr().unwrap().port();
        let error = perch_edge::Binder::tcp(&raw, port).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse, "somebody else's is not shared");
    }

    #[test]
    fn a_port_in_use_is_named_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = config(folder.path());
        config.http = holder.local_addr().unwrap();
        let error = format!("{:#}", Bound::bind(&mut config, &[], (0, 0)).unwrap_err());
        assert!(error.contains(&format!("port {} is in use", config.http.port())), "{error}");
        assert!(error.contains("--http"), "{error}");
    }
}
