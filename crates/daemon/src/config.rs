//! The server's configuration: defaults, then a file, then flags.
//!
//! Never binds a port or writes a file: all of it is checked before anything is done.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result, ensure};
use perch_types::Region;
use perch_types::ips::ADDRESSES_MAX;
use perch_types::ports::RAW_PORTS_MAX;
use serde::{Deserialize, Serialize};

mod acme;
mod pool;

pub(crate) use self::acme::Acme;
pub(crate) use self::pool::Ipv4Pool;

/// Where the server looks for its file when no flag names one.
pub(crate) const FILE_DEFAULT: &str = "/etc/perch/perchd.toml";

/// All settings of a server. Every key may be left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// What is kept: machines, images, the directory.
    pub(crate) data_dir: PathBuf,
    /// Sockets; empty after a reboot.
    pub(crate) run_dir: PathBuf,
    /// The API and the registry, plain HTTP: a loopback address.
    pub(crate) api: SocketAddr,
    /// The API and the registry under the server's own CA, for everybody else.
    pub(crate) api_tls: Option<SocketAddr>,
    /// Names and addresses that the certificate of `api_tls` is made for, besides the ones bound.
    pub(crate) api_names: Vec<String>,
    /// The edge, plain HTTP.
    pub(crate) http: SocketAddr,
    /// The edge under TLS: an address, `off`, or `auto`, which is port 443 beside port 80.
    pub(crate) https: Https,
    /// Where edges of other servers pass requests for machines of this one on; none do when unset.
    /// They show each other certificates of the server's CA.
    pub(crate) edge_peers: Option<SocketAddr>,
    /// Public addresses of this server at which apps are reached; the one of `http`, or those that
    /// the server speaks to the internet from, when there are none here.
    pub(crate) public_ips: Vec<IpAddr>,
    /// Public ports that no app can have for itself, beside the platform's own: those of other
    /// programs of this server.
    pub(crate) reserved_ports: Vec<u16>,
    /// Apps are served at `<app>.<domain>`.
    pub(crate) domain: String,
    /// Where this server stands, as its operator calls it.
    pub(crate) region: Region,
    /// The user of the unprivileged process: a name or a number.
    pub(crate) user: String,
    /// The user of the process that holds the master key: a name or a number.
    pub(crate) keys_user: String,
    /// Tells installations on one server apart: interfaces, firewall table, cgroups.
    pub(crate) instance: String,
    /// Private IPv4 addresses of machines on this server; another block counts once no machine runs.
    pub(crate) machines_ipv4: Ipv4Pool,
    /// The first user id of machines' ranges.
    pub(crate) machines_uid_base: u32,
    /// Where `perch-init` and `perch-monitor` are; beside `perchd` or in `../lib/perch` when unset.
    pub(crate) guest_dir: Option<PathBuf>,
    /// Memory that machines may be promised, as a multiple of what the server has.
    pub(crate) memory_overcommit: f64,
    /// Limits of builds.
    pub(crate) build: Build,
    /// Images that no machine names.
    pub(crate) image_cache: ImageCache,
    /// Where volumes are.
    pub(crate) volumes: Volumes,
    /// Machines that nothing uses.
    pub(crate) autostop: Autostop,
    /// What the edge counts, for Prometheus at `/metrics`, plain HTTP; nowhere when unset. Whoever
    /// reaches it learns the names of all apps.
    pub(crate) metrics: Option<SocketAddr>,
    /// How often something may be done to one thing through the API.
    pub(crate) rates: perch_api::Rates,
    /// Who issues certificates for host names.
    pub(crate) acme: Acme,
}

/// Where apps are served under TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum Https {
    /// At port 443 of the edge's address, if plain HTTP is at port 80.
    Auto,
    /// Nowhere.
    Off,
    /// Here.
    At(SocketAddr),
}

impl Https {
    /// Returns where it is to be, beside plain HTTP at `http`.
    pub(crate) fn wanted(self, http: SocketAddr) -> Option<SocketAddr> {
        match self {
            Self::Auto => (http.port() == 80).then(|| SocketAddr::new(http.ip(), 443)),
            Self::Off => None,
            Self::At(address) => Some(address),
        }
    }

    /// Returns where it is, once it is settled.
    pub(crate) fn address(self) -> Option<SocketAddr> {
        match self {
            Self::At(address) => Some(address),
            Self::Auto | Self::Off => None,
        }
    }
}

impl FromStr for Https {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            address => address
                .parse()
                .map(Self::At)
                .map_err(|_| format!("`{address}` is not `auto`, `off` or an ADDRESS:PORT")),
        }
    }
}

impl TryFrom<String> for Https {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Https> for String {
    fn from(https: Https) -> Self {
        match https {
            Https::Auto => "auto".to_owned(),
            Https::Off => "off".to_owned(),
            Https::At(address) => address.to_string(),
        }
    }
}

/// What builds may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Build {
    /// CPUs of one build.
    pub(crate) cpus: u32,
    /// Memory of one build in MiB.
    pub(crate) memory_mb: u64,
    /// Wall time of one build in seconds.
    pub(crate) time_s: u64,
}

/// Where volumes are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Volumes {
    /// A folder on a file system of its own, best XFS with reflink; a file in `data_dir` when
    /// unset, which others can fill the disk of.
    pub(crate) dir: Option<PathBuf>,
    /// The size of that file in GiB, which takes only what is written; 0 is as large as its disk.
    /// It can be made larger later, not smaller.
    pub(crate) size_gb: u64,
}

/// What images that no machine names may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ImageCache {
    /// Their size in MiB.
    pub(crate) size_mb: u64,
    /// How long one stays after its last use even if that is exceeded, in seconds.
    pub(crate) kept_s: u64,
}

/// When machines that nothing uses are stopped or suspended, if their services say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Autostop {
    /// How long nothing uses one before that, in seconds.
    pub(crate) idle_s: u64,
}

impl Default for Autostop {
    fn default() -> Self {
        Self { idle_s: perch_host::AUTOSTOP_IDLE.as_secs() }
    }
}

impl Default for ImageCache {
    fn default() -> Self {
        Self {
            size_mb: perch_host::IMAGE_CACHE_BYTES >> 20,
            kept_s: perch_host::IMAGE_KEPT_MS / 1000,
        }
    }
}

impl Default for Build {
    fn default() -> Self {
        Self { cpus: 2, memory_mb: 4096, time_s: 1800 }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/perch"),
            run_dir: PathBuf::from("/run/perch"),
            api: SocketAddr::from((Ipv4Addr::LOCALHOST, 4280)),
            api_tls: None,
            api_names: Vec::new(),
            http: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 80)),
            https: Https::Auto,
            edge_peers: None,
            public_ips: Vec::new(),
            reserved_ports: Vec::new(),
            domain: "perch.localhost".to_owned(),
            region: "loc".parse().unwrap_or_else(|_| unreachable!("three lowercase letters")),
            user: "perch".to_owned(),
            keys_user: "perch-keys".to_owned(),
            instance: "perch".to_owned(),
            machines_ipv4: Ipv4Pool { network: Ipv4Addr::new(10, 209, 0, 0), prefix: 16 },
            machines_uid_base: 1 << 20,
            guest_dir: None,
            memory_overcommit: 1.0,
            build: Build::default(),
            image_cache: ImageCache::default(),
            volumes: Volumes::default(),
            autostop: Autostop::default(),
            metrics: None,
            rates: perch_api::Rates::default(),
            acme: Acme::default(),
        }
    }
}

/// Values from the command line; each replaces the file's.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Flags {
    /// Read settings from this file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Keep everything here [default: /var/lib/perch]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Put sockets here [default: /run/perch]
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
    /// Serve the API and the registry here, plain HTTP [default: 127.0.0.1:4280]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) api: Option<SocketAddr>,
    /// Serve the API and the registry here too, under the server's own CA
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) api_tls: Option<SocketAddr>,
    /// Serve apps here [default: 0.0.0.0:80]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) http: Option<SocketAddr>,
    /// Serve apps here under TLS; `off` for nowhere [default: port 443, if plain HTTP is at 80]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) https: Option<Https>,
    /// Serve what the edge counts here, for Prometheus; nowhere unless it is said
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) metrics: Option<SocketAddr>,
    /// Serve apps at <app>.<domain> [default: perch.localhost]
    #[arg(long)]
    pub(crate) domain: Option<String>,
    /// Call this server's place so [default: loc]
    #[arg(long)]
    pub(crate) region: Option<Region>,
    /// Run what needs no rights as this user [default: perch]
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// Run what holds the master key as this user [default: perch-keys]
    #[arg(long, value_name = "USER")]
    pub(crate) keys_user: Option<String>,
    /// Tell this installation from others on the server [default: perch]
    #[arg(long)]
    pub(crate) instance: Option<String>,
    /// Find perch-init and perch-monitor here
    #[arg(long, value_name = "DIR", env = perch_types::env::GUEST_DIR)]
    pub(crate) guest_dir: Option<PathBuf>,
}

/// The longest name of an installation: it is part of interface names.
const INSTANCE_BYTES_MAX: usize = 8;
/// How much more memory may be promised than there is. Less than 1 keeps some for other programs.
const MEMORY_OVERCOMMIT: std::ops::RangeInclusive<f64> = 0.1..=64.0;
/// For how long nothing uses a machine before it is stopped, in seconds.
const AUTOSTOP_IDLE_S: std::ops::RangeInclusive<u64> = 1..=7 * 24 * 3_600;
/// The longest domain: apps' names are before it.
const DOMAIN_BYTES_MAX: usize = 180;
/// A Unix socket's path holds 108 bytes; the longest name in the folder takes 60 of them.
const RUN_DIR_BYTES_MAX: usize = 48;

impl Config {
    /// Reads the file, takes the flags and checks the result.
    pub(crate) fn load(flags: &Flags) -> Result<Self> {
        let mut config = match &flags.config {
            Some(path) => Self::read(path)?,
            None if Path::new(FILE_DEFAULT).is_file() => Self::read(Path::new(FILE_DEFAULT))?,
            None => Self::default(),
        };
        config.take(flags);
        config.check()?;
        Ok(config)
    }

    fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read `{}`", path.display()))?;
        toml::from_str(&text).with_context(|| format!("understand `{}`", path.display()))
    }

    fn take(&mut self, flags: &Flags) {
        fn set<T: Clone>(value: &mut T, flag: Option<&T>) {
            if let Some(flag) = flag {
                value.clone_from(flag);
            }
        }
        set(&mut self.data_dir, flags.data_dir.as_ref());
        set(&mut self.run_dir, flags.run_dir.as_ref());
        set(&mut self.api, flags.api.as_ref());
        set(&mut self.http, flags.http.as_ref());
        set(&mut self.https, flags.https.as_ref());
        set(&mut self.domain, flags.domain.as_ref());
        set(&mut self.region, flags.region.as_ref());
        set(&mut self.user, flags.user.as_ref());
        set(&mut self.keys_user, flags.keys_user.as_ref());
        set(&mut self.instance, flags.instance.as_ref());
        self.api_tls = flags.api_tls.or(self.api_tls);
        self.metrics = flags.metrics.or(self.metrics);
        self.guest_dir = flags.guest_dir.clone().or_else(|| self.guest_dir.take());
    }

    fn check(&self) -> Result<()> {
        ensure!(
            self.api.ip().is_loopback(),
            "`api` is plain HTTP and so a loopback address only; {} is not one. \
             For others set `api_tls`",
            self.api
        );
        let paths = [("data_dir", &self.data_dir), ("run_dir", &self.run_dir)];
        let volumes = self.volumes.dir.iter().map(|dir| ("volumes.dir", dir));
        for (key, path) in paths.into_iter().chain(volumes) {
            ensure!(path.is_absolute(), "`{key}` is an absolute path; `{}` is not", path.display());
        }
        self.acme.check(&self.domain, &self.api_names)?;
        ensure!(
            self.run_dir.as_os_str().len() <= RUN_DIR_BYTES_MAX,
            "`run_dir` is at most {RUN_DIR_BYTES_MAX} bytes long, because sockets lie in it"
        );
        ensure!(
            (1..=INSTANCE_BYTES_MAX).contains(&self.instance.len())
                && self.instance.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()),
            "`instance` is 1 to {INSTANCE_BYTES_MAX} lowercase letters and digits"
        );
        ensure!(
            MEMORY_OVERCOMMIT.contains(&self.memory_overcommit),
            "`memory_overcommit` is {} to {}; {} is not",
            MEMORY_OVERCOMMIT.start(),
            MEMORY_OVERCOMMIT.end(),
            self.memory_overcommit
        );
        ensure!(
            AUTOSTOP_IDLE_S.contains(&self.autostop.idle_s),
            "`autostop.idle_s` is {} to {}; {} is not",
            AUTOSTOP_IDLE_S.start(),
            AUTOSTOP_IDLE_S.end(),
            self.autostop.idle_s
        );
        let mut seen = BTreeSet::new();
        for ip in &self.public_ips {
            ensure!(
                !ip.is_unspecified() && !ip.is_multicast() && seen.insert(ip),
                "`public_ips` are addresses of this server, each once; {ip} is not fine"
            );
        }
        ensure!(
            self.public_ips.len() <= ADDRESSES_MAX,
            "`public_ips` are at most {ADDRESSES_MAX} addresses"
        );
        ensure!(
            self.reserved_ports.len() <= RAW_PORTS_MAX,
            "`reserved_ports` are at most {RAW_PORTS_MAX} ports"
        );
        ensure!(
            is_host_name(&self.domain, DOMAIN_BYTES_MAX),
            "`domain` is a host name in lower case; `{}` is not",
            self.domain
        );
        Ok(())
    }

    /// Returns the addresses at which apps are reached.
    pub(crate) fn public_ips(&self) -> Vec<IpAddr> {
        if !self.public_ips.is_empty() {
            return self.public_ips.clone();
        }
        match self.http.ip() {
            IpAddr::V4(any) if any.is_unspecified() => {
                perch_host::network::public_addresses().filter(IpAddr::is_ipv4).collect()
            }
            IpAddr::V6(any) if any.is_unspecified() => {
                perch_host::network::public_addresses().collect()
            }
            bound => vec![bound],
        }
    }

    /// Returns names and addresses that the API's certificate is made for.
    pub(crate) fn certificate_names(&self) -> Vec<String> {
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), self.domain.clone()];
        names.extend(self.api_names.iter().cloned());
        names.extend(
            self.api_tls
                .map(|address| address.ip())
                .filter(|ip: &IpAddr| !ip.is_unspecified())
                .map(|ip| ip.to_string()),
        );
        names.sort();
        names.dedup();
        names
    }
}

/// Returns whether a text is a host name in lower case that is not too long.
fn is_host_name(text: &str, bytes_max: usize) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    text.len() <= bytes_max && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_configuration_is_valid_and_takes_no_port_that_is_not_needed() {
        let config = Config::default();
        config.check().unwrap();
        assert_eq!((config.metrics, config.api_tls), (None, None));
        let metrics = "127.0.0.1:9100".parse().unwrap();
        let mut asked = Config::default();
        asked.take(&Flags { metrics: Some(metrics), ..Flags::default() });
        assert_eq!(asked.metrics, Some(metrics));
    }

    #[test]
    fn apps_are_reached_where_the_operator_says_or_where_the_edge_is_bound() {
        let bound = Config { http: "192.0.2.7:80".parse().unwrap(), ..Config::default() };
        assert_eq!(bound.public_ips(), ["192.0.2.7".parse::<IpAddr>().unwrap()]);
        let said = ["198.51.100.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let config = Config { public_ips: said.into(), ..bound };
        config.check().unwrap();
        assert_eq!(config.public_ips(), said);
    }

    #[test]
    fn https_is_beside_port_80_unless_it_is_said_where() {
        let wanted = |https: &str, http: &str| {
            let https: Https = https.parse().unwrap();
            assert_eq!(String::from(https).parse(), Ok(https));
            https.wanted(http.parse().unwrap()).map(|address| address.to_string())
        };
        assert_eq!(wanted("auto", "0.0.0.0:80").as_deref(), Some("0.0.0.0:443"));
        assert_eq!(wanted("auto", "[::]:80").as_deref(), Some("[::]:443"));
        assert_eq!(wanted("auto", "127.0.0.1:8080"), None);
        assert_eq!(wanted("off", "0.0.0.0:80"), None);
        assert_eq!(wanted("127.0.0.1:0", "0.0.0.0:80").as_deref(), Some("127.0.0.1:0"));
    }

    #[test]
    fn a_zone_of_challenges_is_served_whole_or_refused_by_the_key_that_is_amiss() {
        let (fine, at, name) = ("acme.example", &["192.0.2.1:53"][..], &["ns.example"][..]);
        for (zone, dns, names, directory, amiss) in [
            (fine, at, name, true, ""),
            (fine, &["192.0.2.1:53", "[2001:db8::1]:53"], name, true, ""),
            (fine, at, name, false, "`acme.directory`"),
            ("acme", at, name, true, "`acme.zone`"),
            ("Acme.example", at, name, true, "`acme.zone`"),
            ("acme..example", at, name, true, "`acme.zone`"),
            // The platform's domain would be in it.
            ("perch.example", at, name, true, "`acme.zone`"),
            ("apps.perch.example", at, name, true, "`acme.zone`"),
            // And here a name of the API.
            ("other.example", at, name, true, "`acme.zone`"),
            (fine, &[], name, true, "`acme.dns`"),
            (fine, &["0.0.0.0:53"], name, true, "`acme.dns`"),
            (fine, &["192.0.2.1:53", "192.0.2.1:53"], name, true, "`acme.dns`"),
            (fine, at, &[], true, "`acme.name_servers`"),
            (fine, at, &["ns1.acme.example"], true, "`acme.name_servers`"),
            (fine, at, &["ns_1.example"], true, "`acme.name_servers`"),
        ] {
            let acme = Acme {
                directory: directory.then(|| "https://issuer.example/directory".to_owned()),
                zone: Some(zone.to_owned()),
                dns: dns.iter().map(|at| at.parse().unwrap()).collect(),
                name_servers: names.iter().map(|name| (*name).to_owned()).collect(),
                ..Acme::default()
            };
            let domain = "apps.perch.example".to_owned();
            let api_names = vec!["API.other.example".to_owned()];
            let checked = Config { acme, domain, api_names, ..Config::default() }.check();
            let error = checked.err().map(|error| error.to_string()).unwrap_or_default();
            assert_eq!(error.is_empty(), amiss.is_empty(), "{zone} {dns:?} {names:?}: {error}");
            assert!(error.starts_with(amiss), "{zone} {dns:?} {names:?}: {error}");
        }
    }

    #[test]
    fn a_flag_outweighs_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "domain = \"a.example\"\nregion = \"ams\"\n").unwrap();
        let flags = Flags {
            config: Some(file.path().to_owned()),
            domain: Some("b.example".to_owned()),
            ..Flags::default()
        };
        let config = Config::load(&flags).unwrap();
        assert_eq!(config.rates, perch_api::Rates::default());
        assert_eq!((config.domain.as_str(), config.region.as_str()), ("b.example", "ams"));
    }

    #[test]
    fn each_bad_value_is_refused_by_its_key() {
        for (text, key) in [
            ("api = \"0.0.0.0:4280\"", "api"),
            ("data_dir = \"here\"", "data_dir"),
            ("https = \"443\"", "`443` is not `auto`, `off` or an ADDRESS:PORT"),
            ("instance = \"UPPER\"", "instance"),
            ("domain = \"a b\"", "domain"),
            ("colour = 1", "colour"),
            ("[volumes]\ndir = \"here\"", "volumes.dir"),
            ("[volumes]\ncolour = 1", "colour"),
            ("[rates.read]\nper_minute = 1\nburst = -1", "burst"),
            ("[rates]\ncolour = 1", "colour"),
            ("[acme]\ncolour = 1", "colour"),
            ("[acme]\ndirectory = \"http://issuer.example\"", "acme.directory"),
            ("[acme]\ndirectory = \"issuer\"", "acme.directory"),
            ("[acme]\nemail = \"ops\"", "acme.email"),
            ("[acme]\nemail = \"a b@c.d\"", "acme.email"),
            ("[acme]\nca_file = \"ca.pem\"", "acme.ca_file"),
            ("[acme]\nresolvers = [\"192.0.2.1\"]", "resolvers"),
            ("[acme]\ndns = [\"192.0.2.1:53\"]", "acme.dns"),
            ("[acme]\nname_servers = [\"ns.example\"]", "acme.name_servers"),
            ("[autostop]\nidle_s = 0", "autostop.idle_s"),
            ("[autostop]\nidle_s = 604801", "1 to 604800"),
            ("[autostop]\ncolour = 1", "colour"),
            ("metrics = \"here\"", "metrics"),
            ("edge_peers = \"here\"", "edge_peers"),
            ("public_ips = [\"0.0.0.0\"]", "public_ips"),
            ("public_ips = [\"192.0.2.1\", \"192.0.2.1\"]", "public_ips"),
            ("public_ips = [\"web\"]", "public_ips"),
            ("reserved_ports = [70000]", "reserved_ports"),
            ("memory_overcommit = 0.0", "0.1 to 64"),
            ("memory_overcommit = nan", "memory_overcommit"),
            ("machines_ipv4 = \"8.8.0.0/16\"", "private block"),
            ("run_dir = \"/a-very-long-folder-name-that-no-socket-fits-into-any-more\"", "run_dir"),
        ] {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            let flags = Flags { config: Some(file.path().to_owned()), ..Flags::default() };
            let error = format!("{:#}", Config::load(&flags).unwrap_err());
            assert!(error.contains(key), "{text}: {error}");
        }
    }
}
