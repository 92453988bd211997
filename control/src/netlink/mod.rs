//! What the control thread learns from and asks of the kernel.
//!
//! One [`Monitor`] mirrors the kernel's links, addresses and neighbours and says what changed as typed [`Event`]s; a
//! [`Client`] carries out commands. Everything is synchronous: the control thread polls the monitor's descriptor among
//! its others. The types here are plain values; none of the netlink crates' types leaves this module.

mod client;
mod decode;
mod monitor;
mod ports;
mod routes;
mod rules;
mod socket;
mod tables;

pub use client::{AddressChange, Client};
pub use monitor::Monitor;
pub use ports::{PortChange, follow_addresses, follow_ports};
pub use routes::{KernelRoutes, Routing};
pub use socket::NetlinkError;
pub(crate) use tables::masked;

use std::net::{IpAddr, Ipv4Addr};

/// A network device of this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's index of the device.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address; `None` on a device that has none (tunnels, raw IP).
    pub mac: Option<[u8; 6]>,
    /// MTU in bytes, link-layer header not counted.
    pub mtu: u32,
    /// Administratively up, with carrier, and ready to send.
    pub up: bool,
    /// The loopback device.
    pub loopback: bool,
    /// The device this one is built on (the lower device of a VLAN, the peer of a veth in the same namespace).
    pub lower: Option<u32>,
    /// The bridge, bond or VRF this device is a port of.
    pub controller: Option<u32>,
    /// The kernel's name of the kind of a virtual device: `veth`, `vlan`, `bond`, `tun`.
    pub kind: Option<String>,
}

/// An address of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostAddress {
    /// The device it lies on.
    pub ifindex: u32,
    /// The address itself.
    pub address: IpAddr,
    /// Length of the connected subnet's prefix in bits.
    pub prefix_len: u8,
}

impl HostAddress {
    /// The address of all hosts of its subnet, where it is on one that has such an address (RFC 919, RFC 3021).
    pub fn broadcast(&self) -> Option<Ipv4Addr> {
        match self.address {
            IpAddr::V4(address) if self.prefix_len < 31 => {
                Some(Ipv4Addr::from_bits(address.to_bits() | u32::MAX >> self.prefix_len))
            }
            _ => None,
        }
    }
}

/// How sure the kernel is of a neighbour (`NUD_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourState {
    /// Nothing is known and nobody asks.
    None,
    /// Asked, not yet answered.
    Incomplete,
    /// Confirmed a short time ago.
    Reachable,
    /// Known, not confirmed lately.
    Stale,
    /// Known, in use, about to be asked again.
    Delay,
    /// Known, being asked again.
    Probe,
    /// Asked, and nobody answered.
    Failed,
    /// Needs no resolution.
    Noarp,
    /// Set by the administrator, never asked.
    Permanent,
}

/// One entry of the kernel's neighbour table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourEntry {
    /// The device the neighbour is reached through.
    pub ifindex: u32,
    /// Its network address.
    pub address: IpAddr,
    /// Its link-layer address, as far as the kernel ever learnt one.
    pub mac: Option<[u8; 6]>,
    /// What the entry is worth.
    pub state: NeighbourState,
}

impl NeighbourEntry {
    /// The link-layer address when the entry may be used to send.
    pub fn resolved(&self) -> Option<[u8; 6]> {
        use NeighbourState::{Delay, Noarp, Permanent, Probe, Reachable, Stale};
        match self.state {
            Reachable | Stale | Delay | Probe | Noarp | Permanent => self.mac,
            NeighbourState::None | NeighbourState::Incomplete | NeighbourState::Failed => None,
        }
    }
}

/// Something the kernel changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A device appeared or one of its properties changed.
    LinkChanged(Link),
    /// A device disappeared from this namespace.
    LinkGone {
        /// The index it had.
        ifindex: u32,
        /// The name it had.
        name: String,
    },
    /// This host has a new address.
    AddressAdded(HostAddress),
    /// This host lost an address.
    AddressRemoved(HostAddress),
    /// A neighbour appeared, or its link-layer address or state changed.
    NeighbourChanged(NeighbourEntry),
    /// The kernel forgot a neighbour.
    NeighbourGone {
        /// The device it was reached through.
        ifindex: u32,
        /// Its network address.
        address: IpAddr,
    },
    /// Routes, or what decides over them (rules, next-hop objects, devices going up or down), may have changed.
    RoutesChanged,
}
