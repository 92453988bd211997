//! What the director asks the kernel to do: resolve a neighbour, put an address on a device or take it off.

use super::NetlinkError;
use super::decode;
use super::socket::{RawMessage, Socket};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope,
};
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::net::IpAddr;

/// What the kernel keeps as the origin of the addresses that a director puts on devices (`IFA_PROTO`, Linux 5.18; older ones
/// forget it). One of those left to everybody, as for routes. A new enough `ip address` shows it as `proto 0x76`.
const ORIGIN: AddressProtocol = AddressProtocol::Other(b'v');

/// How an address came to be on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressChange {
    /// It is there because of this call.
    Done,
    /// It was there before; nothing changed.
    AlreadySo,
}

/// Carries out commands in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Client {
    socket: Socket,
}

impl Client {
    /// Opens a socket for commands.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Client { socket: Socket::open()? })
    }

    /// Makes the kernel find out, or confirm, the link-layer address of `address` on the device `ifindex`, as if it
    /// had a packet to send there: an unknown or failed neighbour is asked for at once, a stale one after the kernel's
    /// `delay_first_probe_time`, one lately confirmed not at all. The outcome comes as events of the monitor.
    ///
    /// `NTF_USE` (linux/neighbour.h): the kernel's `neigh_event_send` without a packet.
    pub fn resolve(&mut self, ifindex: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = ifindex;
        message.header.flags = NeighbourFlags::Use;
        message.attributes = vec![NeighbourAttribute::Destination(address.into())];
        self.socket.request(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE, &|| {
            format!("resolve the neighbour {address} on device {ifindex}")
        })
    }

    /// Puts `address` with a host's prefix (/32, /128) on the device, without duplicate address detection, marked as a
    /// director's. One of IPv6 gets no route of its prefix: on `lo` that would have the kernel tell senders that the network is
    /// unreachable, until it takes the address's packets itself.
    pub fn add_address(&mut self, ifindex: u32, address: IpAddr) -> Result<AddressChange, NetlinkError> {
        let mut message = host_address(ifindex, address);
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Noprefixroute));
        message.attributes.push(AddressAttribute::Protocol(ORIGIN));
        let request = RouteNetlinkMessage::NewAddress(message);
        let asked = self.socket.request(request, NLM_F_CREATE | NLM_F_EXCL, &|| {
            format!("put the address {address} on device {ifindex}")
        });
        unless(asked, &[libc::EEXIST])
    }

    /// Takes the device up or down.
    pub fn set_up(&mut self, ifindex: u32, up: bool) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        self.socket.request(RouteNetlinkMessage::SetLink(message), 0, &|| {
            format!("take device {ifindex} {}", if up { "up" } else { "down" })
        })
    }

    /// The addresses that [`Client::add_address`] put on devices, this process's and others', and their devices.
    pub fn marked_addresses(&mut self) -> Result<Vec<(IpAddr, u32)>, NetlinkError> {
        let everything = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let collect = |list: &mut Vec<_>, raw: RawMessage<'_>| {
            if let Ok(RouteNetlinkMessage::NewAddress(message)) = raw.decode()
                && message.attributes.contains(&AddressAttribute::Protocol(ORIGIN))
                && let Some(host) = decode::address(&message)
            {
                list.push((host.address, host.ifindex));
            }
        };
        self.socket.dump(&everything, &|| "list addresses".into(), Vec::new, collect)
    }

    /// Takes `address`, as [`Client::add_address`] put it there, off the device.
    pub fn remove_address(&mut self, ifindex: u32, address: IpAddr) -> Result<AddressChange, NetlinkError> {
        let request = RouteNetlinkMessage::DelAddress(host_address(ifindex, address));
        let asked =
            self.socket.request(request, 0, &|| format!("take the address {address} off device {ifindex}"));
        unless(asked, &[libc::EADDRNOTAVAIL, libc::ENODEV])
    }
}

fn host_address(ifindex: u32, address: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.index = ifindex;
    message.header.prefix_len = if address.is_ipv4() { 32 } else { 128 };
    message.header.scope = AddressScope::Universe;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    message
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// A refusal with one of `harmless` only says that things are already as asked.
fn unless(asked: Result<(), NetlinkError>, harmless: &[i32]) -> Result<AddressChange, NetlinkError> {
    match asked {
        Ok(()) => Ok(AddressChange::Done),
        Err(e) if e.errno().is_some_and(|errno| harmless.contains(&errno)) => Ok(AddressChange::AlreadySo),
        Err(e) => Err(e),
    }
}
