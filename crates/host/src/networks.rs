//! The network module behind the trait that steps use.
//!
//! Never keeps anything: the module and the kernel do.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, OwnedFd};

use async_trait::async_trait;
use perch_types::MachineId;
use perch_types::network_policy::Allowed;

use crate::effects::{Fault, Listeners, Networks};
use crate::network::{
    Error, ListenSocket, Listener, MachineNetwork, Network, NetworkConfig, Pool, RESOLVER_V6,
    SocketDiag, public_address,
};

/// Machines' networking through the kernel.
#[derive(Debug)]
pub struct KernelNetworks {
    network: Network,
    pool: Pool,
}

impl KernelNetworks {
    /// Prepares the host.
    ///
    /// # Errors
    /// As [`Network::open`].
    pub async fn open(config: NetworkConfig) -> Result<Self, Error> {
        let pool = config.pool;
        Ok(Self { network: Network::open(config).await?, pool })
    }
}

#[async_trait]
impl Networks for KernelNetworks {
    fn slots(&self) -> u32 {
        self.pool.slots()
    }

    fn addresses(&self, machine: &MachineNetwork) -> Result<(Ipv6Addr, Ipv4Addr), Fault> {
        let attached = self.network.addresses(machine)?;
        Ok((attached.private_ip, attached.private_ipv4))
    }

    fn resolvers(&self) -> Vec<IpAddr> {
        vec![RESOLVER_V6.into(), self.pool.resolver().into()]
    }

    fn public_address(&self) -> Option<IpAddr> {
        public_address()
    }

    async fn confine(&self, namespace: OwnedFd, allowed: Allowed) -> Result<(), Fault> {
        self.network.confine(namespace, allowed).await?;
        Ok(())
    }

    async fn attach(&self, namespace: OwnedFd, machine: MachineNetwork) -> Result<(), Fault> {
        self.network.attach(namespace, machine).await?;
        Ok(())
    }

    async fn detach(&self, machine: &MachineId) -> Result<(), Fault> {
        self.network.detach(machine.clone()).await?;
        Ok(())
    }

    async fn attached(&self) -> Result<Vec<MachineId>, Fault> {
        Ok(self.network.list().await?.into_iter().map(|(machine, _)| machine).collect())
    }

    fn listeners(&self, namespace: OwnedFd) -> Result<Box<dyn Listeners>, Fault> {
        Ok(Box::new(Kernel(SocketDiag::open(namespace.as_fd())?)))
    }

    fn tcp_socket(&self, namespace: OwnedFd) -> Result<OwnedFd, Fault> {
        Ok(crate::network::tcp_socket_inside(namespace.as_fd())?)
    }

    async fn teardown(&self) -> Result<(), Fault> {
        self.network.clone().teardown().await?;
        Ok(())
    }
}

#[derive(Debug)]
struct Kernel(SocketDiag);

impl Listeners for Kernel {
    fn listeners(&mut self) -> Result<Vec<Listener>, Fault> {
        Ok(self.0.listeners()?)
    }

    fn sockets(&mut self) -> Result<Vec<ListenSocket>, Fault> {
        Ok(self.0.sockets()?)
    }
}
