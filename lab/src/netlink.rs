//! Links, addresses and routes of one network namespace, over rtnetlink.

use crate::{Error, Result};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

/// An address and the length of its network's prefix: `192.0.2.1/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The address; host bits may be set.
    pub address: IpAddr,
    /// Bits of the network part.
    pub length: u8,
}

impl Prefix {
    /// `address/length`.
    pub fn new(address: impl Into<IpAddr>, length: u8) -> Self {
        Prefix { address: address.into(), length }
    }

    /// An address alone: /32 or /128.
    pub fn host(address: impl Into<IpAddr>) -> Self {
        let address = address.into();
        Prefix { address, length: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// Everything of the family `like` belongs to: the destination of a default route.
    pub fn everything(like: IpAddr) -> Self {
        match like {
            IpAddr::V4(_) => Prefix::new(Ipv4Addr::UNSPECIFIED, 0),
            IpAddr::V6(_) => Prefix::new(Ipv6Addr::UNSPECIFIED, 0),
        }
    }

    fn family(&self) -> AddressFamily {
        if self.address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
    }
}

/// One end of a veth pair to be made.
#[derive(Clone, Copy, Debug)]
pub struct Veth<'a> {
    /// The device's name.
    pub name: &'a str,
    /// Transmit and receive queues, each; the other end should have as many, or frames share queues.
    pub queues: u32,
    /// MTU in bytes.
    pub mtu: u32,
}

/// A netlink socket of the namespace it was opened in; it stays there whichever thread uses it.
#[derive(Debug)]
pub struct Rtnl {
    socket: Socket,
    sequence: u32,
}

impl Rtnl {
    /// Opens one in the namespace of the calling thread.
    pub fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(Error::when("open a netlink socket"))?;
        socket.bind_auto().map_err(Error::when("bind a netlink socket"))?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(Error::when("reach the kernel over netlink"))?;
        Ok(Rtnl { socket, sequence: 0 })
    }

    /// Makes a veth pair: `here` in this namespace, `there` in the one `their_namespace` refers to. Both are down.
    pub fn add_veth(
        &mut self,
        here: Veth<'_>,
        there: Veth<'_>,
        their_namespace: BorrowedFd<'_>,
    ) -> Result<()> {
        let mut peer = veth_end(there);
        peer.attributes.push(LinkAttribute::NetNsFd(their_namespace.as_raw_fd()));
        let mut link = veth_end(here);
        link.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.add_link(link, here.name, "veth")
    }

    /// Makes a bridge, which is down.
    pub fn add_bridge(&mut self, name: &str) -> Result<()> {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.into()));
        link.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
        self.add_link(link, name, "bridge")
    }

    fn add_link(&mut self, link: LinkMessage, name: &str, kind: &'static str) -> Result<()> {
        match self.change(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL) {
            Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {
                Err(Error::NoSuchKind(kind))
            }
            other => other.map_err(Error::when(format!("make the {kind} device {name}"))),
        }
    }

    /// Makes `device` a port of `bridge`.
    pub fn join_bridge(&mut self, device: &str, bridge: &str) -> Result<()> {
        let bridge_index = self.index(bridge)?;
        self.set(device, &format!("put {device} on the bridge {bridge}"), |link| {
            link.attributes.push(LinkAttribute::Controller(bridge_index));
        })
    }

    /// Takes `device` up.
    pub fn up(&mut self, device: &str) -> Result<()> {
        self.set(device, &format!("take {device} up"), |link| {
            link.header.flags = LinkFlags::Up;
            link.header.change_mask = LinkFlags::Up;
        })
    }

    /// Takes `device` down.
    pub fn down(&mut self, device: &str) -> Result<()> {
        self.set(device, &format!("take {device} down"), |link| link.header.change_mask = LinkFlags::Up)
    }

    /// Sets the MTU of `device`, in bytes.
    pub fn set_mtu(&mut self, device: &str, mtu: u32) -> Result<()> {
        self.set(device, &format!("set the MTU of {device} to {mtu}"), |link| {
            link.attributes.push(LinkAttribute::Mtu(mtu));
        })
    }

    /// Sets the link-layer address of `device`.
    pub fn set_mac(&mut self, device: &str, mac: [u8; 6]) -> Result<()> {
        self.set(device, &format!("set the address of {device}"), |link| {
            link.attributes.push(LinkAttribute::Address(mac.to_vec()));
        })
    }

    /// Has everything for `address` sent to `mac` by `device`, for good and unasked.
    pub fn add_neighbour(&mut self, device: &str, address: IpAddr, mac: [u8; 6]) -> Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = Prefix::host(address).family();
        message.header.ifindex = self.index(device)?;
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::Destination(address.into()));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        self.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(Error::when(format!("tell {device} the link-layer address of {address}")))
    }

    fn set(&mut self, device: &str, what: &str, edit: impl FnOnce(&mut LinkMessage)) -> Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = self.index(device)?;
        edit(&mut link);
        self.change(RouteNetlinkMessage::SetLink(link), 0).map_err(Error::when(what))
    }

    /// Deletes `device`; of a veth pair, the other end goes with it.
    pub fn delete(&mut self, device: &str) -> Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = self.index(device)?;
        self.change(RouteNetlinkMessage::DelLink(link), 0).map_err(Error::when(format!("delete {device}")))
    }

    /// Gives `device` an address, usable at once: IPv6 does not look for duplicates first.
    pub fn add_address(&mut self, device: &str, prefix: Prefix) -> Result<()> {
        let message = self.address(device, prefix)?;
        self.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(Error::when(format!("give {device} the address {}/{}", prefix.address, prefix.length)))
    }

    fn address(&mut self, device: &str, prefix: Prefix) -> Result<AddressMessage> {
        let mut message = AddressMessage::default();
        message.header.family = prefix.family();
        message.header.prefix_len = prefix.length;
        message.header.index = self.index(device)?;
        message.attributes.push(AddressAttribute::Local(prefix.address));
        message.attributes.push(AddressAttribute::Address(prefix.address));
        if prefix.address.is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        Ok(message)
    }

    /// Routes `destination` by way of the gateway `via`.
    pub fn add_route(&mut self, destination: Prefix, via: IpAddr) -> Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = destination.family();
        message.header.destination_prefix_length = destination.length;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes.push(RouteAttribute::Destination(destination.address.into()));
        message.attributes.push(RouteAttribute::Gateway(via.into()));
        self.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL).map_err(Error::when(
            format!("route {}/{} by way of {via}", destination.address, destination.length),
        ))
    }

    /// The link-layer address of `device`.
    pub fn mac(&mut self, device: &str) -> Result<[u8; 6]> {
        let link = self.link(device)?;
        let found = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => bytes.as_slice().try_into().ok(),
            _ => None,
        });
        found.ok_or_else(|| Error::Protocol(format!("{device} has no Ethernet address")))
    }

    /// Whether `device` is up, has a carrier and owns no address that may not be used yet.
    ///
    /// The kernel sees to a new carrier up to a second later: till then the flags say that the device runs, but what is sent
    /// is thrown away (queueing discipline noop), and IPv6 and bridges take the device for one without a link.
    pub fn is_ready(&mut self, device: &str) -> Result<bool> {
        let link = self.link(device)?;
        let wanted = LinkFlags::Up | LinkFlags::LowerUp | LinkFlags::Running;
        let seen_to = link.attributes.contains(&LinkAttribute::OperState(State::Up))
            && !link.attributes.contains(&LinkAttribute::Qdisc("noop".into()));
        if !link.header.flags.contains(wanted) || !seen_to {
            return Ok(false);
        }
        let addresses = self
            .request(RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP)
            .map_err(Error::when("list addresses"))?;
        Ok(!addresses.iter().any(|message| match message {
            RouteNetlinkMessage::NewAddress(address) => {
                address.header.index == link.header.index
                    && address.header.flags.contains(AddressHeaderFlags::Tentative)
            }
            _ => false,
        }))
    }

    fn index(&mut self, device: &str) -> Result<u32> {
        Ok(self.link(device)?.header.index)
    }

    fn link(&mut self, device: &str) -> Result<LinkMessage> {
        let mut query = LinkMessage::default();
        query.attributes.push(LinkAttribute::IfName(device.into()));
        let answers = self
            .request(RouteNetlinkMessage::GetLink(query), 0)
            .map_err(Error::when(format!("find the device {device}")))?;
        answers
            .into_iter()
            .find_map(|message| match message {
                RouteNetlinkMessage::NewLink(link) => Some(link),
                _ => None,
            })
            .ok_or_else(|| Error::Protocol(format!("the kernel gave no answer about the device {device}")))
    }

    fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.request(message, flags | NLM_F_ACK).map(drop)
    }

    /// Sends one request and collects its answers until the last: an acknowledgement, the end of a dump, or the one
    /// answer of a plain query.
    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence += 1;
        let mut packet = NetlinkMessage::from(message);
        packet.header.flags = NLM_F_REQUEST | flags;
        packet.header.sequence_number = self.sequence;
        packet.finalize();
        let mut buffer = vec![0; packet.buffer_len()];
        packet.serialize(&mut buffer);
        self.socket.send(&buffer, 0)?;
        let single = flags & (NLM_F_ACK | NLM_F_DUMP) == 0;
        let mut answers = Vec::new();
        while !self.receive(single, &mut answers)? {}
        Ok(answers)
    }

    /// One datagram of answers. `true` after the last one.
    fn receive(&mut self, single: bool, answers: &mut Vec<RouteNetlinkMessage>) -> io::Result<bool> {
        let (datagram, _) = self.socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let packet =
                NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            let length = (packet.header.length as usize).next_multiple_of(4).min(rest.len());
            rest = &rest[length..];
            if packet.header.sequence_number != self.sequence {
                continue;
            }
            match packet.payload {
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(true),
                NetlinkPayload::InnerMessage(message) => {
                    answers.push(message);
                    if single {
                        return Ok(true);
                    }
                }
                _ => {}
            }
        }
        Ok(false)
    }
}

fn veth_end(end: Veth<'_>) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(end.name.into()));
    link.attributes.push(LinkAttribute::Mtu(end.mtu));
    link.attributes.push(LinkAttribute::NumTxQueues(end.queues));
    link.attributes.push(LinkAttribute::NumRxQueues(end.queues));
    link
}
