//! Making, listing and removing machines' interfaces and the host's own addresses.
//!
//! Never adds a neighbour: both ends of a pair have the same hardware address and no ARP, so the
//! kernel itself fills in the only destination there is. Nothing is learned from packets, and
//! nothing can be flushed.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use perch_types::MachineId;
use perch_types::address::network_of;
use rtnetlink::packet_core::{Emitable, NetlinkDeserializable as _, NetlinkHeader};
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope, CacheInfo,
};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};
use rustix::net::netdevice::name_to_index;

use super::address::{GATEWAY_V4, GATEWAY_V6, RESOLVER_V6};
use super::config::NetworkConfig;
use super::netlink::{Channel, EXCLUSIVE, REPLACE, Request};
use super::{Attached, Error, namespace, sysctl};

/// The netlink protocol of links, addresses and routes.
const ROUTE: isize = 0;
const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const SET_LINK: u16 = 19;
const NEW_ADDRESS: u16 = 20;
const DEL_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const DEL_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;

/// The loopback interface is always the first.
const LOOPBACK_INDEX: u32 = 1;
/// The machine's name for its interface.
const MACHINE_INTERFACE: &str = "eth0";
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const ESRCH: i32 = 3;
const EADDRNOTAVAIL: i32 = 99;

/// The kernel's view of machines' interfaces, from the host's namespace.
#[derive(Debug)]
pub(super) struct Links {
    channel: Channel,
    /// Any socket of the namespace: names become indexes by asking it.
    socket: UdpSocket,
}

/// A machine's interface as the kernel lists it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) machine: MachineId,
    pub(super) index: u32,
    pub(super) received_bytes: u64,
    pub(super) sent_bytes: u64,
}

/// Returns the name of the host's side of a machine's interface: 15 bytes, the most there may be.
pub(super) fn interface_name(machine: &MachineId) -> String {
    format!("p{machine}")
}

fn machine_of(interface: &str) -> Option<MachineId> {
    interface.strip_prefix('p')?.parse().ok()
}

/// Returns the hardware address of both ends: locally administered, 46 bits of the machine's id.
fn hardware_address(machine: &MachineId) -> Vec<u8> {
    let [_, _, _, b3, b4, b5, b6, b7] = machine.bits().to_be_bytes();
    vec![0x02, b3, b4, b5, b6, b7]
}

fn request(kind: u16, flags: u16, message: &impl Emitable) -> Request {
    let mut body = vec![0; message.buffer_len()];
    message.emit(&mut body);
    Request { kind, flags, acknowledged: true, body }
}

/// Returns the number of an interface, if there is one of that name in the socket's namespace.
pub(super) fn index_of(socket: &UdpSocket, name: &str) -> Result<Option<u32>, Error> {
    match name_to_index(socket, name) {
        Ok(index) => Ok(Some(index)),
        Err(rustix::io::Errno::NODEV) => Ok(None),
        Err(errno) => Err(Error::interface("look up", name, errno.into())),
    }
}

/// Returns a socket that is only used to ask the kernel for interfaces' indexes.
fn any_socket() -> Result<UdpSocket, Error> {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(|source| Error::OpenSocket { source })
}

impl Links {
    /// Opens the sockets in the calling thread's network namespace.
    pub(super) fn open() -> Result<Self, Error> {
        let channel = Channel::open(ROUTE).map_err(|source| Error::OpenSocket { source })?;
        Ok(Self { channel, socket: any_socket()? })
    }

    /// Returns another handle on the socket that names become indexes by.
    pub(super) fn any_socket(&self) -> Result<UdpSocket, Error> {
        self.socket.try_clone().map_err(|source| Error::OpenSocket { source })
    }

    /// Makes the pair, one end in the machine's namespace, and sets both ends up.
    pub(super) fn attach(
        &mut self,
        namespace: &OwnedFd,
        machine: &MachineId,
        attached: &Attached,
        config: &NetworkConfig,
    ) -> Result<(), Error> {
        let name = &attached.interface;
        let pair = request(NEW_LINK, EXCLUSIVE, &pair_message(namespace, machine, name, config));
        match self.channel.transact(std::slice::from_ref(&pair)) {
            Ok(()) => {}
            Err(refused) if refused.source.raw_os_error() == Some(EEXIST) => {
                // What an earlier try left behind, perhaps in a namespace that is no more.
                self.delete(name)?;
                self.channel
                    .transact(&[pair])
                    .map_err(|refused| Error::interface("make", name, refused.source))?;
            }
            Err(refused) => return Err(Error::interface("make", name, refused.source)),
        }
        let finished = namespace::inside(namespace.as_fd(), || machine_side(attached))
            .and_then(|()| self.host_side(attached, config));
        if finished.is_err() {
            // The first error is the one to tell; what is left is found by `list`.
            let _deleted = self.delete(name);
        }
        finished
    }

    fn host_side(&mut self, attached: &Attached, config: &NetworkConfig) -> Result<(), Error> {
        let name = &attached.interface;
        let index = index_of(&self.socket, name)?
            .ok_or_else(|| Error::interface("look up", name, io::ErrorKind::NotFound.into()))?;
        sysctl::harden_host_side(name)?;
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(attached.private_ipv4, 32)
            .output_interface(index)
            .scope(RouteScope::Link)
            .pref_source(config.pool.resolver())
            .build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(attached.private_ip, 128)
            .output_interface(index)
            .pref_source(RESOLVER_V6)
            .build();
        self.channel
            .transact(&[
                request(SET_LINK, 0, &up(index)),
                request(NEW_ROUTE, REPLACE, &v4),
                request(NEW_ROUTE, REPLACE, &v6),
            ])
            .map_err(|refused| {
                let operation = ["set up", "route to", "route to"];
                Error::interface(
                    operation.get(refused.request).unwrap_or(&""),
                    name,
                    refused.source,
                )
            })
    }

    /// Removes a machine's interface, and with it the other end, routes and addresses. Returns
    /// whether there was one.
    pub(super) fn delete(&mut self, name: &str) -> Result<bool, Error> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().name(name).build();
        match self.channel.transact(&[request(DEL_LINK, 0, &message)]) {
            Ok(()) => Ok(true),
            Err(refused) if refused.source.raw_os_error() == Some(ENODEV) => Ok(false),
            Err(refused) => Err(Error::interface("remove", name, refused.source)),
        }
    }

    /// Lists the machines' interfaces of one group.
    pub(super) fn list(&mut self, group: u32) -> Result<Vec<Link>, Error> {
        let links = self.dump(GET_LINK, &LinkMessage::default())?;
        Ok(links.into_iter().filter_map(|entry| machine_link(entry, group)).collect())
    }

    /// Returns the networks of the machines whose interfaces are `indexes`.
    pub(super) fn networks(&mut self, indexes: &BTreeSet<u32>) -> Result<BTreeSet<u32>, Error> {
        let mut all = RouteMessage::default();
        all.header.address_family = AddressFamily::Inet6;
        let routes = self.dump(GET_ROUTE, &all)?;
        Ok(routes.into_iter().filter_map(|entry| machine_network(entry, indexes)).collect())
    }

    /// Gives the host the resolver's addresses, and routes what no machine has to nowhere, so
    /// that it neither leaks to the outside nor waits for a timeout.
    pub(super) fn prepare_host(&mut self, config: &NetworkConfig) -> Result<(), Error> {
        self.check_pool(config)?;
        let requests = [
            request(NEW_ADDRESS, REPLACE, &resolver_v4(config)),
            request(NEW_ADDRESS, REPLACE, &resolver_v6()),
            request(NEW_ROUTE, REPLACE, &nowhere_v4(config)),
            request(NEW_ROUTE, REPLACE, &nowhere_v6()),
        ];
        self.channel
            .transact(&requests)
            .map_err(|refused| Error::interface("prepare", "lo", refused.source))
    }

    /// Takes back what [`Self::prepare_host`] did.
    pub(super) fn restore_host(&mut self, config: &NetworkConfig) -> Result<(), Error> {
        let requests = [
            request(DEL_ADDRESS, 0, &resolver_v4(config)),
            request(DEL_ADDRESS, 0, &resolver_v6()),
            request(DEL_ROUTE, 0, &nowhere_v4(config)),
            request(DEL_ROUTE, 0, &nowhere_v6()),
        ];
        for request in requests {
            match self.channel.transact(&[request]) {
                Ok(()) => {}
                Err(refused)
                    if matches!(
                        refused.source.raw_os_error(),
                        Some(ESRCH | EADDRNOTAVAIL | ENODEV)
                    ) => {}
                Err(refused) => return Err(Error::interface("restore", "lo", refused.source)),
            }
        }
        Ok(())
    }

    fn check_pool(&mut self, config: &NetworkConfig) -> Result<(), Error> {
        let mut all = AddressMessage::default();
        all.header.family = AddressFamily::Inet;
        let pool = config.pool;
        for entry in self.dump(GET_ADDRESS, &all)? {
            let RouteNetlinkMessage::NewAddress(message) = entry else {
                continue;
            };
            let length = message.header.prefix_len;
            let taken = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(IpAddr::V4(address)) => Some(*address),
                _ => None,
            });
            let Some(taken) = taken else { continue };
            let shared = length.min(pool.prefix().length());
            let differing = taken.to_bits() ^ pool.resolver().to_bits();
            let ours = taken == pool.resolver() && length == 32;
            if !ours && differing.checked_shr(32 - u32::from(shared)).unwrap_or(0) == 0 {
                return Err(Error::PoolInUse { pool: pool.prefix(), taken, length });
            }
        }
        Ok(())
    }

    fn dump(
        &mut self,
        kind: u16,
        message: &impl Emitable,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let body = request(kind, 0, message).body;
        let entries = self.channel.dump(kind, body).map_err(|source| Error::List { source })?;
        entries
            .into_iter()
            .map(|(kind, body)| {
                let mut header = NetlinkHeader::default();
                header.message_type = kind;
                RouteNetlinkMessage::deserialize(&header, &body)
                    .map_err(|source| Error::List { source: io::Error::other(source) })
            })
            .collect()
    }
}

fn pair_message(
    namespace: &OwnedFd,
    machine: &MachineId,
    name: &str,
    config: &NetworkConfig,
) -> LinkMessage {
    let address = hardware_address(machine);
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(MACHINE_INTERFACE.to_owned()),
        LinkAttribute::Address(address.clone()),
        LinkAttribute::Mtu(config.mtu_bytes),
        LinkAttribute::NetNsFd(namespace.as_raw_fd()),
    ];
    let mut pair = LinkMessage::default();
    pair.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(address),
        LinkAttribute::Mtu(config.mtu_bytes),
        LinkAttribute::Group(config.interface_group),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    pair
}

/// Sets an interface up, without ARP and without a link-local address of its own.
fn up(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up | LinkFlags::Noarp;
    message.header.change_mask = LinkFlags::Up | LinkFlags::Noarp;
    message.attributes = vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
        AfSpecInet6::AddrGenMode(In6AddrGenMode::None),
    ])])];
    message
}

/// Sets up the machine's end; runs in the machine's namespace.
fn machine_side(attached: &Attached) -> Result<(), Error> {
    let socket = any_socket()?;
    let missing = || Error::interface("look up", MACHINE_INTERFACE, io::ErrorKind::NotFound.into());
    let index = index_of(&socket, MACHINE_INTERFACE)?.ok_or_else(missing)?;
    sysctl::prepare_machine_side()?;
    let mut loopback = LinkMessage::default();
    loopback.header.index = LOOPBACK_INDEX;
    loopback.header.flags = LinkFlags::Up;
    loopback.header.change_mask = LinkFlags::Up;
    let v4 = RouteMessageBuilder::<Ipv4Addr>::new()
        .gateway(GATEWAY_V4)
        .onlink()
        .output_interface(index)
        .build();
    let v6 =
        RouteMessageBuilder::<Ipv6Addr>::new().gateway(GATEWAY_V6).output_interface(index).build();
    let mut channel = Channel::open(ROUTE).map_err(|source| Error::OpenSocket { source })?;
    channel
        .transact(&[
            request(SET_LINK, 0, &loopback),
            request(SET_LINK, 0, &up(index)),
            request(NEW_ADDRESS, REPLACE, &address(attached.private_ipv4.into(), index)),
            request(NEW_ADDRESS, REPLACE, &address(attached.private_ip.into(), index)),
            request(NEW_ROUTE, REPLACE, &v4),
            request(NEW_ROUTE, REPLACE, &v6),
        ])
        .map_err(|refused| {
            let operation = ["set up lo beside", "set up", "address", "address", "route", "route"];
            let operation = operation.get(refused.request).unwrap_or(&"");
            Error::interface(operation, MACHINE_INTERFACE, refused.source)
        })
}

fn address(address: IpAddr, index: u32) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.attributes.push(AddressAttribute::Local(address));
    message.attributes.push(AddressAttribute::Address(address));
    match address {
        IpAddr::V4(_) => {
            message.header.family = AddressFamily::Inet;
            message.header.prefix_len = 32;
        }
        IpAddr::V6(_) => {
            message.header.family = AddressFamily::Inet6;
            message.header.prefix_len = 128;
            // Nobody else can have it; waiting for duplicates would cost a second.
            message.header.flags = AddressHeaderFlags::Nodad;
        }
    }
    message
}

/// The scope keeps the host from choosing it as a source by itself.
fn resolver_v4(config: &NetworkConfig) -> AddressMessage {
    let mut message = address(config.pool.resolver().into(), LOOPBACK_INDEX);
    message.header.scope = AddressScope::Link;
    message
}

/// Deprecated from the start, which keeps the host from choosing it as a source by itself.
fn resolver_v6() -> AddressMessage {
    let mut message = address(RESOLVER_V6.into(), LOOPBACK_INDEX);
    let mut lifetime = CacheInfo::default();
    lifetime.ifa_preferred = 0;
    lifetime.ifa_valid = u32::MAX;
    message.attributes.push(AddressAttribute::CacheInfo(lifetime));
    message
}

fn nowhere_v4(config: &NetworkConfig) -> RouteMessage {
    let mut message = RouteMessageBuilder::<Ipv4Addr>::new().kind(RouteType::Unreachable).build();
    if let IpAddr::V4(base) = config.pool.prefix().address() {
        message.header.destination_prefix_length = config.pool.prefix().length();
        message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(base)));
    }
    message
}

fn nowhere_v6() -> RouteMessage {
    RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(Ipv6Addr::new(0xfdaa, 0, 0, 0, 0, 0, 0, 0), 16)
        .output_interface(LOOPBACK_INDEX)
        .kind(RouteType::Unreachable)
        .build()
}

fn machine_link(entry: RouteNetlinkMessage, group: u32) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = entry else {
        return None;
    };
    let index = message.header.index;
    let (mut machine, mut ours, mut bytes) = (None, false, (0, 0));
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => machine = machine_of(&name),
            LinkAttribute::Group(number) => ours = number == group,
            LinkAttribute::Stats64(stats) => bytes = (stats.rx_bytes, stats.tx_bytes),
            _ => {}
        }
    }
    // What the host received is what the machine sent.
    let (sent_bytes, received_bytes) = bytes;
    machine.filter(|_| ours).map(|machine| Link { machine, index, received_bytes, sent_bytes })
}

fn machine_network(entry: RouteNetlinkMessage, indexes: &BTreeSet<u32>) -> Option<u32> {
    let RouteNetlinkMessage::NewRoute(route) = entry else {
        return None;
    };
    let (mut network, mut ours) = (None, false);
    for attribute in route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                network = network_of(address);
            }
            RouteAttribute::Oif(index) => ours = indexes.contains(&index),
            _ => {}
        }
    }
    network.filter(|_| ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_name_fits_and_leads_back_to_its_machine() {
        let machine = MachineId::from_bits(0x00d8_910a_bcd1_23ef);
        let name = interface_name(&machine);
        assert_eq!(name.len(), 15);
        assert_eq!(machine_of(&name), Some(machine.clone()));
        assert_eq!(hardware_address(&machine), [2, 0x0a, 0xbc, 0xd1, 0x23, 0xef]);
        for other in ["eth0", "p4p1", "ppp0", "pm"] {
            assert_eq!(machine_of(other), None, "{other}");
        }
    }
}
