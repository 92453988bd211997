//! The snapshot's ports as the kernel's devices change.

use super::{Event, HostAddress, Link};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use uvs_engine::PortId;
use uvs_engine::snapshot::{Config, Port};

/// What became of a device that the director holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortChange {
    /// Its name, Ethernet address, MTU or readiness changed.
    Changed(PortId),
    /// It is gone. One of the same name may come back, with another index: it is not the same device.
    Gone(PortId),
}

/// Takes over into the snapshot what `events` say of its ports, in one change at most. A port whose device is gone
/// stays, down, because connections name ports by their number.
pub fn follow_ports(config: &Config, events: &[Event]) -> Vec<PortChange> {
    let mut ports = config.load().ports.to_vec();
    let mut changes = Vec::new();
    for event in events {
        for (port, id) in ports.iter_mut().zip(0_u16..) {
            match event {
                Event::LinkChanged(link) if link.ifindex == port.ifindex => {
                    let now = Port { addresses: port.addresses, merged: port.merged, ..Port::from(link) };
                    if *port != now {
                        *port = now;
                        changes.push(PortChange::Changed(PortId(id)));
                    }
                }
                Event::LinkGone { ifindex, .. } if *ifindex == port.ifindex => {
                    port.up = false;
                    changes.push(PortChange::Gone(PortId(id)));
                }
                _ => {}
            }
        }
    }
    if !changes.is_empty() {
        config.publish(|snapshot| snapshot.ports = Arc::from(ports));
    }
    changes
}

/// Takes over into the snapshot the host's addresses, and which of them its ports report errors from.
pub fn follow_addresses(config: &Config, addresses: &[HostAddress]) {
    let snapshot = config.load();
    let own = snapshot.own_traffic.as_ref().map(|own| usize::from(own.port.0));
    let mut ports = snapshot.ports.to_vec();
    for (_, port) in ports.iter_mut().enumerate().filter(|(number, _)| Some(*number) != own) {
        port.addresses = [true, false].map(|v4| {
            let of_port = |it: &&HostAddress| it.ifindex == port.ifindex && it.address.is_ipv4() == v4;
            own_address(addresses.iter().filter(of_port))
        });
    }
    let own: BTreeSet<IpAddr> = addresses.iter().map(|it| it.address).collect();
    let now = config.load();
    if now.ports[..] != ports || !now.own.iter().eq(&own) {
        config.publish(|snapshot| {
            snapshot.ports = Arc::from(ports);
            snapshot.own = own.into_iter().collect();
        });
    }
}

/// The first address of a network, else the first of a single host, which is likely a virtual one.
fn own_address<'a>(addresses: impl Iterator<Item = &'a HostAddress> + Clone) -> Option<IpAddr> {
    let mut usable = addresses.filter(|it| match it.address {
        IpAddr::V4(ip) => !ip.is_link_local() && !ip.is_loopback(),
        IpAddr::V6(ip) => !ip.is_unicast_link_local() && !ip.is_loopback(),
    });
    let single = |it: &&HostAddress| it.prefix_len == if it.address.is_ipv4() { 32 } else { 128 };
    let of_network = usable.clone().find(|it| !single(it));
    of_network.or_else(|| usable.next()).map(|it| it.address)
}

impl From<&Link> for Port {
    fn from(link: &Link) -> Self {
        Port {
            ifindex: link.ifindex,
            name: link.name.clone(),
            mac: link.mac.unwrap_or_default(),
            mtu: link.mtu,
            up: link.up,
            addresses: [None; 2],
            merged: false,
        }
    }
}
