//! Virtual services and real servers as they should be.

use super::{SchedulerFlags, SchedulerOptions, Terms, is_default};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// A transport protocol that a virtual service may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP, RFC 9293.
    Tcp,
    /// UDP, RFC 768.
    Udp,
    /// SCTP, RFC 9260.
    Sctp,
}

impl Protocol {
    /// The number of the protocol in an IP header.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// The protocol with this number in an IP header.
    pub fn from_number(number: u8) -> Option<Self> {
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|known| known.number() == number)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        })
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
    }
}

/// What a virtual service is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceId {
    /// A virtual address and port of one protocol.
    Address {
        /// The protocol.
        protocol: Protocol,
        /// Virtual IP address and port; port 0 stands for every port.
        address: SocketAddr,
    },
    /// A firewall mark.
    Mark {
        /// The mark, never 0.
        mark: u32,
        /// The family of the packets meant.
        family: Family,
    },
}

impl ServiceId {
    /// The family of the service's packets.
    pub fn family(&self) -> Family {
        match self {
            ServiceId::Address { address, .. } => Family::of(address.ip()),
            ServiceId::Mark { family, .. } => *family,
        }
    }

    /// The virtual port; 0 for a service by mark.
    pub fn port(&self) -> u16 {
        match self {
            ServiceId::Address { address, .. } => address.port(),
            ServiceId::Mark { .. } => 0,
        }
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServiceId::Address { protocol, address } => write!(f, "{protocol} {address}"),
            ServiceId::Mark { mark, family: Family::Ipv4 } => write!(f, "FWM {mark}"),
            ServiceId::Mark { mark, family: Family::Ipv6 } => write!(f, "FWM {mark} IPv6"),
        }
    }
}

/// Which clients count as one for persistence (`ipvsadm -M`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Netmask {
    /// Bits of the client's address that count; IPVS does not ask for them to be contiguous.
    Ipv4(Ipv4Addr),
    /// Leading bits of the client's address that count, 1 to 128.
    Ipv6(u8),
}

impl Netmask {
    /// Every client for itself.
    pub fn host(family: Family) -> Self {
        match family {
            Family::Ipv4 => Netmask::Ipv4(Ipv4Addr::BROADCAST),
            Family::Ipv6 => Netmask::Ipv6(128),
        }
    }
}

/// A virtual service as it should be (`ipvsadm -A` and `-E`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// What it is known by.
    pub id: ServiceId,
    /// The name of its scheduler.
    pub scheduler: String,
    /// The scheduler's flags.
    #[serde(default, skip_serializing_if = "is_default")]
    pub flags: SchedulerFlags,
    /// What else its scheduler is told.
    #[serde(default, skip_serializing_if = "is_default")]
    pub options: SchedulerOptions,
    /// Seconds that a client keeps to its real server, when the service is persistent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub persistent: Option<u32>,
    /// Which clients count as one for persistence.
    pub netmask: Netmask,
    /// The persistence engine (`--pe`).
    #[serde(default, skip_serializing_if = "is_default")]
    pub engine: Option<String>,
    /// Whether each UDP packet is scheduled for itself (`-o`).
    #[serde(default, skip_serializing_if = "is_default")]
    pub one_packet: bool,
    /// The first and the last port that full NAT uses at the service's local addresses; 5000 to 65535 when it is not said.
    #[serde(default, skip_serializing_if = "is_default")]
    pub local_ports: Option<(u16, u16)>,
    /// What else uvs does for it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub terms: Terms,
}

impl ServiceSpec {
    /// A service with a scheduler and nothing else.
    pub fn new(id: ServiceId, scheduler: &str) -> Self {
        ServiceSpec {
            netmask: Netmask::host(id.family()),
            id,
            scheduler: scheduler.to_owned(),
            flags: SchedulerFlags::default(),
            options: SchedulerOptions::default(),
            persistent: None,
            engine: None,
            one_packet: false,
            local_ports: None,
            terms: Terms::default(),
        }
    }
}

/// How packets reach a real server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Network address translation (`-m`).
    Masquerading,
    /// Direct routing (`-g`), ipvsadm's default.
    #[default]
    Direct,
    /// An IP tunnel (`-i`).
    Tunnel(Tunnel),
    /// Full NAT (`-b`): as network address translation, from a local address of the director's in place of the client's.
    FullNat,
}

impl Method {
    /// Whether a real server may have an address of the IP version that its service has not.
    pub fn joins_families(self) -> bool {
        matches!(self, Method::Tunnel(_) | Method::FullNat)
    }
}

/// The encapsulation of a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tunnel {
    /// The protocol it uses.
    pub kind: TunnelKind,
    /// The UDP port of a GUE tunnel; otherwise 0.
    #[serde(default, skip_serializing_if = "is_default")]
    pub port: u16,
    /// Its checksums.
    #[serde(default, skip_serializing_if = "is_default")]
    pub checksum: TunnelChecksum,
}

/// The protocol of a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelKind {
    /// IP in IP, RFC 2003 and RFC 2473.
    #[default]
    Ipip,
    /// Generic UDP encapsulation.
    Gue,
    /// GRE, RFC 2784.
    Gre,
}

/// The checksums of a tunnel's own header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelChecksum {
    /// None.
    #[default]
    None,
    /// Over the whole packet.
    Full,
    /// Remote checksum offload, GUE only.
    Remote,
}

/// A real server as it should be (`ipvsadm -a` and `-e`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerSpec {
    /// Its address and port.
    pub address: SocketAddr,
    /// How packets reach it.
    #[serde(default)]
    pub method: Method,
    /// Its share; 0 takes no new connections. At most `i32::MAX`.
    pub weight: u32,
    /// Connections from which on it takes no new ones; 0 for no limit.
    #[serde(default, skip_serializing_if = "is_default")]
    pub upper_threshold: u32,
    /// Connections below which it takes new ones again; 0 for three quarters of the upper threshold.
    #[serde(default, skip_serializing_if = "is_default")]
    pub lower_threshold: u32,
}

impl ServerSpec {
    /// A real server with ipvsadm's defaults: direct routing, weight 1, no thresholds.
    pub fn new(address: SocketAddr) -> Self {
        ServerSpec { address, method: Method::Direct, weight: 1, upper_threshold: 0, lower_threshold: 0 }
    }

    /// The server as `service` can reach it: direct routing and tunnels leave the packet's port as it is, so the server's
    /// port is the service's, whatever was asked for. A service by mark leaves it alone.
    #[must_use]
    pub fn reached_from(mut self, service: &ServiceId) -> Self {
        if let (ServiceId::Address { address, .. }, Method::Direct | Method::Tunnel(_)) =
            (service, self.method)
        {
            self.address.set_port(address.port());
        }
        self
    }
}
