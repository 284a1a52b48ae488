//! Machines' networking on one host: interfaces, addresses, firewall, name of who listens.
//!
//! Never decides who gets which address: ids and slots come in, and the caller keeps them.
//!
//! Every machine has a veth pair of its own whose host side is routed; there is no bridge, hence
//! no shared segment. One nftables table judges all of them by interface group, routing table
//! and network, so that attaching a machine costs a handful of netlink messages and no rule.
//!
//! What an app's network policies leave open is a table in the machine's own namespace.
//!
//! Opening it turns on IP forwarding for the whole host, as every container engine does.

mod address;
mod config;
mod links;
mod listeners;
mod namespace;
mod netlink;
mod nft;
mod policy;
mod public;
mod rules;
mod slots;
mod sysctl;

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use perch_types::MachineId;
use perch_types::address::{network_prefix, private_ip};
use perch_types::network_policy::Allowed;
use tokio::sync::{mpsc, oneshot};

pub use address::{
    GATEWAY_V4, GATEWAY_V6, InvalidPrefix, NETWORK_PREFIX_BITS, Pool, Prefix, RESOLVER_V6,
};
pub use config::{CONNECTIONS_MAX, INTERFACE_GROUP, MTU_BYTES, NetworkConfig};
pub use listeners::{ListenSocket, Listener, SocketDiag};
pub use namespace::{tcp_socket, tcp_socket_inside};
pub(crate) use public::public_address;
pub use public::public_addresses;
pub use slots::{Exhausted, QUARANTINE_MS, Slots};

use links::Links;
use netlink::Channel;

/// Changes that may wait for the worker.
const QUEUE_MAX: usize = 64;
/// How often an interface that goes by itself is looked at, and how many times.
const GONE_PAUSE: Duration = Duration::from_millis(1);
const GONE_LOOKS: u32 = 10;

/// What can go wrong with machines' networking.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name that can be no table's.
    #[error("use `{0}` as instance: lowercase letters, digits and `_`, a letter first")]
    Instance(String),
    /// A slot beyond the pool.
    #[error("use address slot {slot}: the pool has {slots}")]
    Slot {
        /// Which.
        slot: u32,
        /// How many there are.
        slots: u32,
    },
    /// The host has an address or network inside the pool.
    #[error("use {pool} for machines: the host has {taken}/{length}")]
    PoolInUse {
        /// The pool.
        pool: Prefix,
        /// The host's address.
        taken: Ipv4Addr,
        /// The length of its network's prefix.
        length: u8,
    },
    /// An operation on an interface.
    #[error("{operation} interface `{interface}`")]
    Interface {
        /// A verb.
        operation: String,
        /// Its name.
        interface: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Sockets of the kernel's configuration interface.
    #[error("open netlink socket")]
    OpenSocket {
        /// The kernel's reason.
        source: io::Error,
    },
    /// Reading the kernel's lists.
    #[error("list interfaces, routes and sockets")]
    List {
        /// The kernel's reason.
        source: io::Error,
    },
    /// The machine's namespace.
    #[error("enter network namespace")]
    EnterNamespace {
        /// The kernel's reason.
        source: io::Error,
    },
    /// A switch of the kernel.
    #[error("set kernel switch net/{name}")]
    Sysctl {
        /// Its path below /proc/sys/net.
        name: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The nft program.
    #[error("run nft (package nftables)")]
    StartNft {
        /// Why.
        source: io::Error,
    },
    /// The rules were refused.
    #[error("load firewall rules: {complaint}")]
    LoadRules {
        /// What nft wrote.
        complaint: String,
    },
    /// A network could not be made known to the firewall.
    #[error("allow traffic within network {network_id}")]
    AllowNetwork {
        /// Which.
        network_id: u32,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The thread that does the work has ended.
    #[error("reach network worker: it has ended")]
    WorkerGone,
}

impl Error {
    fn interface(operation: &str, interface: &str, source: io::Error) -> Self {
        Self::Interface { operation: operation.to_owned(), interface: interface.to_owned(), source }
    }
}

/// What a machine's networking is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineNetwork {
    /// The machine.
    pub machine: MachineId,
    /// Its network's number; machines with the same number reach each other.
    pub network_id: u32,
    /// Its slot in the host's pool, from [`Slots`].
    pub slot: u32,
}

/// What a machine got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The host's side of its interface.
    pub interface: String,
    /// Its private address, reachable within its network and from its host.
    pub private_ip: Ipv6Addr,
    /// Its private IPv4 address, reachable from its host.
    pub private_ipv4: Ipv4Addr,
}

/// Bytes that went through a machine's interface since it was attached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes to the machine.
    pub received_bytes: u64,
    /// Bytes from the machine.
    pub sent_bytes: u64,
}

type Job = Box<dyn FnOnce(&mut Worker) + Send>;

/// A handle on one host's networking. Its work is done one change after the other on a thread
/// that stays in the network namespace of the thread that opened it (the kernel serializes such
/// changes anyway). Dropping it changes nothing for machines.
#[derive(Debug, Clone)]
pub struct Network {
    jobs: mpsc::Sender<Job>,
    /// A socket of the worker's namespace.
    names: Arc<UdpSocket>,
    pool: Pool,
}

struct Worker {
    config: NetworkConfig,
    links: Links,
    netfilter: Channel,
    /// Networks that the firewall knows.
    networks: BTreeSet<u32>,
}

impl Network {
    /// Prepares the host (rules, forwarding, the resolver's addresses) and keeps what machines
    /// found running have. Loading the rules is one transaction: there is no moment without.
    ///
    /// # Errors
    /// When the configuration is invalid or the kernel or nft refuse.
    pub async fn open(config: NetworkConfig) -> Result<Self, Error> {
        if !config.instance_is_valid() {
            return Err(Error::Instance(config.instance));
        }
        let pool = config.pool;
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE_MAX);
        let (opened, outcome) = oneshot::channel();
        thread::Builder::new()
            .name("network".to_owned())
            .spawn(move || {
                let mut worker = match Worker::open(config) {
                    Ok(worker) => worker,
                    Err(error) => return drop(opened.send(Err(error))),
                };
                if opened.send(worker.links.any_socket()).is_ok() {
                    while let Some(job) = queue.blocking_recv() {
                        job(&mut worker);
                    }
                }
            })
            .map_err(|source| Error::OpenSocket { source })?;
        let names = Arc::new(outcome.await.map_err(|_| Error::WorkerGone)??);
        Ok(Self { jobs, names, pool })
    }

    /// Returns the addresses a machine has or will have.
    ///
    /// # Errors
    /// When its slot is beyond the pool.
    pub fn addresses(&self, machine: &MachineNetwork) -> Result<Attached, Error> {
        let slot = machine.slot;
        let slots = self.pool.slots();
        let private_ipv4 = self.pool.address(slot).ok_or(Error::Slot { slot, slots })?;
        Ok(Attached {
            interface: links::interface_name(&machine.machine),
            private_ip: private_ip(machine.network_id, &machine.machine),
            private_ipv4,
        })
    }

    /// Connects the network namespace of a machine that does not run yet. May run twice: the
    /// second time makes the interface anew.
    ///
    /// # Errors
    /// When the slot is beyond the pool or the kernel refuses; nothing is left then.
    pub async fn attach(
        &self,
        namespace: OwnedFd,
        machine: MachineNetwork,
    ) -> Result<Attached, Error> {
        let attached = self.addresses(&machine)?;
        self.run(move |worker| worker.attach(&namespace, &machine, attached)).await
    }

    /// Closes the network namespace of a machine that does not run yet but for what is allowed. May
    /// run twice.
    ///
    /// # Errors
    /// When the kernel or nft refuse.
    pub async fn confine(&self, namespace: OwnedFd, allowed: Allowed) -> Result<(), Error> {
        let rules = policy::ruleset(&allowed, self.pool);
        self.run(move |_| namespace::inside(namespace.as_fd(), || nft::load(&rules))).await
    }

    /// Removes a machine's interface; returns whether there was one.
    ///
    /// The pair goes with the machine's namespace, a moment after the last process in it, at no
    /// cost of ours. To ask for its removal takes the kernel 20 to 40 ms, in which the worker can
    /// do nothing else: that is only for one that stays.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn detach(&self, machine: MachineId) -> Result<bool, Error> {
        let name = links::interface_name(&machine);
        for look in 0..GONE_LOOKS {
            if links::index_of(&self.names, &name)?.is_none() {
                return Ok(look > 0);
            }
            tokio::time::sleep(GONE_PAUSE).await;
        }
        self.run(move |worker| worker.links.delete(&name)).await?;
        Ok(true)
    }

    /// Lists the machines that have an interface, to find those that should not.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn list(&self) -> Result<Vec<(MachineId, Traffic)>, Error> {
        self.run(|worker| {
            let links = worker.links.list(worker.config.interface_group)?;
            Ok(links
                .into_iter()
                .map(|link| {
                    let (received_bytes, sent_bytes) = (link.received_bytes, link.sent_bytes);
                    (link.machine, Traffic { received_bytes, sent_bytes })
                })
                .collect())
        })
        .await
    }

    /// Removes every machine's interface, the rules and the host's addresses. Forwarding stays
    /// on: somebody else may need it by now.
    ///
    /// # Errors
    /// When the kernel or nft refuse; the rules go last, so that nothing is ever reachable
    /// without them.
    pub async fn teardown(self) -> Result<(), Error> {
        self.run(|worker| {
            for link in worker.links.list(worker.config.interface_group)? {
                worker.links.delete(&links::interface_name(&link.machine))?;
            }
            worker.links.restore_host(&worker.config)?;
            nft::load(&rules::removal(&worker.config))
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Worker) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, outcome) = oneshot::channel();
        let job: Job = Box::new(move |worker| drop(answer.send(work(worker))));
        self.jobs.send(job).await.map_err(|_| Error::WorkerGone)?;
        outcome.await.map_err(|_| Error::WorkerGone)?
    }
}

impl Worker {
    fn open(config: NetworkConfig) -> Result<Self, Error> {
        let mut links = Links::open()?;
        let netfilter =
            Channel::open(nft::NETFILTER).map_err(|source| Error::OpenSocket { source })?;
        let indexes = links.list(config.interface_group)?.iter().map(|link| link.index).collect();
        let networks = links.networks(&indexes)?;
        // Rules first, forwarding last: nothing is forwarded that is not judged.
        nft::load(&rules::ruleset(&config, networks.iter().copied()))?;
        links.prepare_host(&config)?;
        sysctl::enable_forwarding()?;
        Ok(Self { config, links, netfilter, networks })
    }

    fn attach(
        &mut self,
        namespace: &OwnedFd,
        machine: &MachineNetwork,
        attached: Attached,
    ) -> Result<Attached, Error> {
        let network_id = machine.network_id;
        if !self.networks.contains(&network_id) {
            let prefix = network_prefix(network_id);
            nft::add_network(&mut self.netfilter, &self.config.instance, prefix)
                .map_err(|refused| Error::AllowNetwork { network_id, source: refused.source })?;
            self.networks.insert(network_id);
        }
        self.links.attach(namespace, &machine.machine, &attached, &self.config)?;
        Ok(attached)
    }
}
