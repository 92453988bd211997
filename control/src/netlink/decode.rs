//! From the kernel's messages to the plain values of this module.

use super::{HostAddress, Link, NeighbourEntry, NeighbourState};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState as WireState,
};
use std::net::IpAddr;

/// A device. `None` for what a bridge says of its ports, which comes in messages of the same type.
pub(super) fn link(message: LinkMessage) -> Option<Link> {
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let flags = message.header.flags;
    let mut link = Link {
        ifindex: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: flags.contains(LinkFlags::Up | LinkFlags::LowerUp | LinkFlags::Running),
        loopback: flags.contains(LinkFlags::Loopback),
        lower: None,
        controller: None,
        kind: None,
    };
    let mut other_namespace = false;
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(mac) => link.mac = mac.try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Link(lower) => link.lower = Some(lower).filter(|lower| *lower != 0),
            LinkAttribute::LinkNetNsId(_) => other_namespace = true,
            LinkAttribute::Controller(controller) => link.controller = Some(controller).filter(|c| *c != 0),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    // The index of a device in another namespace means something else here.
    link.lower = link.lower.filter(|_| !other_namespace);
    Some(link)
}

/// An address of this host. On a point-to-point link the local end, not the peer's.
pub(super) fn address(message: &AddressMessage) -> Option<HostAddress> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let either = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    Some(HostAddress {
        ifindex: message.header.index,
        address: local.or(either)?,
        prefix_len: message.header.prefix_len,
    })
}

/// A neighbour. `None` for bridge forwarding entries and proxied addresses, which come in messages of the same type.
pub(super) fn neighbour(message: NeighbourMessage) -> Option<NeighbourEntry> {
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok(),
            _ => {}
        }
    }
    let state = state(message.header.state);
    Some(NeighbourEntry { ifindex: message.header.ifindex, address: address?, mac, state })
}

fn state(wire: WireState) -> NeighbourState {
    match wire {
        WireState::Incomplete => NeighbourState::Incomplete,
        WireState::Reachable => NeighbourState::Reachable,
        WireState::Stale => NeighbourState::Stale,
        WireState::Delay => NeighbourState::Delay,
        WireState::Probe => NeighbourState::Probe,
        WireState::Failed => NeighbourState::Failed,
        WireState::Noarp => NeighbourState::Noarp,
        WireState::Permanent => NeighbourState::Permanent,
        _ => NeighbourState::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn what_a_bridge_says_of_its_ports_is_no_link() {
        let mut message = LinkMessage::default();
        message.header.interface_family = AddressFamily::Bridge;
        assert_eq!(link(message), None);
    }

    #[test]
    fn a_device_of_another_namespace_is_no_lower_device() {
        let attributes = vec![LinkAttribute::IfName("veth0".into()), LinkAttribute::Link(7)];
        let mut message = LinkMessage::default();
        message.attributes = attributes;
        assert_eq!(link(message.clone()).unwrap().lower, Some(7));
        message.attributes.push(LinkAttribute::LinkNetNsId(0));
        assert_eq!(link(message).unwrap().lower, None);
    }

    #[test]
    fn the_local_end_of_a_point_to_point_address_is_ours() {
        let (ours, theirs) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mut message = AddressMessage::default();
        message.attributes = vec![AddressAttribute::Address(theirs), AddressAttribute::Local(ours)];
        assert_eq!(address(&message).unwrap().address, ours);
        message.attributes.pop();
        assert_eq!(address(&message).unwrap().address, theirs, "IPv6 gives only one");
    }

    #[test]
    fn neighbours_are_usable_by_their_state() {
        let mac = [2, 0, 0, 0, 0, 1];
        let cases = [
            (WireState::None, None),
            (WireState::Incomplete, None),
            (WireState::Reachable, Some(mac)),
            (WireState::Stale, Some(mac)),
            (WireState::Delay, Some(mac)),
            (WireState::Probe, Some(mac)),
            (WireState::Failed, None),
            (WireState::Noarp, Some(mac)),
            (WireState::Permanent, Some(mac)),
            (WireState::Other(0x8000), None),
        ];
        for (state, resolved) in cases {
            let mut message = NeighbourMessage::default();
            message.header.state = state;
            message.attributes = vec![
                NeighbourAttribute::Destination(Ipv6Addr::LOCALHOST.into()),
                NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
            ];
            assert_eq!(neighbour(message).unwrap().resolved(), resolved, "{state:?}");
        }
    }

    #[test]
    fn forwarding_entries_and_proxies_are_no_neighbours() {
        let mut message = NeighbourMessage::default();
        message.attributes = vec![NeighbourAttribute::LinkLayerAddress(vec![2; 6])];
        assert_eq!(neighbour(message.clone()), None, "no network address");
        message.attributes.push(NeighbourAttribute::Destination(Ipv4Addr::LOCALHOST.into()));
        message.header.flags = NeighbourFlags::Proxy;
        assert_eq!(neighbour(message), None);
    }
}
