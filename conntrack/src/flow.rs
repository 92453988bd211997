//! The keys of the table: who sends to whom, by which protocol.
//!
//! A flow holds the words of a packet's headers exactly as loaded from the wire (network order in memory, native load), so
//! that making one costs two or three loads and comparing two needs no byte swap.

use crate::protocol;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Which way a packet of a connection travels. As wide as a register: a copy of what holds it would read it together with the
/// bytes behind it, and wait for the narrow store to reach the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(usize)]
pub enum Direction {
    /// From the client to the virtual service.
    In = 0,
    /// From the real server towards the client.
    Out = 1,
}

impl Direction {
    /// The other way.
    #[inline]
    #[must_use]
    pub fn reversed(self) -> Self {
        match self {
            Direction::In => Direction::Out,
            Direction::Out => Direction::In,
        }
    }

    #[inline]
    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

/// One direction of an IPv4 conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow4 {
    /// The eight bytes source, destination as they stand in the header, loaded natively.
    pub addresses: u64,
    /// The four bytes source port, destination port as they stand in the header, loaded natively.
    pub ports: u32,
    /// IP protocol number.
    pub protocol: u8,
}

/// One direction of an IPv6 conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow6 {
    /// Sixteen bytes of source, sixteen of destination, loaded natively.
    pub addresses: [u64; 4],
    /// The four bytes source port, destination port as they stand in the header, loaded natively.
    pub ports: u32,
    /// IP protocol number.
    pub protocol: u8,
}

/// One direction of a conversation of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flow {
    /// IPv4.
    V4(Flow4),
    /// IPv6.
    V6(Flow6),
}

impl From<Flow4> for Flow {
    fn from(flow: Flow4) -> Self {
        Flow::V4(flow)
    }
}

impl From<Flow6> for Flow {
    fn from(flow: Flow6) -> Self {
        Flow::V6(flow)
    }
}

impl Flow4 {
    /// A flow from header bytes: source and destination address, source and destination port, protocol.
    #[inline]
    #[must_use]
    pub fn from_wire(addresses: [u8; 8], ports: [u8; 4], protocol: u8) -> Self {
        Flow4 { addresses: u64::from_ne_bytes(addresses), ports: u32::from_ne_bytes(ports), protocol }
    }

    /// The same conversation as the other end sends it.
    #[inline]
    #[must_use]
    pub fn reversed(self) -> Self {
        Flow4 { addresses: self.addresses.rotate_left(32), ports: self.ports.rotate_left(16), ..self }
    }

    /// Source address.
    #[inline]
    #[must_use]
    pub fn source(self) -> Ipv4Addr {
        let [a, b, c, d, ..] = self.addresses.to_ne_bytes();
        Ipv4Addr::new(a, b, c, d)
    }

    /// Destination address.
    #[inline]
    #[must_use]
    pub fn destination(self) -> Ipv4Addr {
        self.reversed().source()
    }

    /// The flow in IPv4-mapped form (RFC 4291 §2.5.5.2), the way a wide entry holds an IPv4 side.
    pub(crate) fn mapped(self) -> Flow6 {
        let half = |address: Ipv4Addr| halves(address.to_ipv6_mapped());
        let ([a, b], [c, d]) = (half(self.source()), half(self.destination()));
        Flow6 { addresses: [a, b, c, d], ports: self.ports, protocol: self.protocol }
    }
}

impl Flow6 {
    /// A flow from header bytes: source and destination address, source and destination port, protocol.
    #[inline]
    #[must_use]
    pub fn from_wire(addresses: [u8; 32], ports: [u8; 4], protocol: u8) -> Self {
        let (words, _) = addresses.as_chunks::<8>();
        let mut loaded = [0; 4];
        for (to, from) in loaded.iter_mut().zip(words) {
            *to = u64::from_ne_bytes(*from);
        }
        Flow6 { addresses: loaded, ports: u32::from_ne_bytes(ports), protocol }
    }

    /// The same conversation as the other end sends it.
    #[inline]
    #[must_use]
    pub fn reversed(self) -> Self {
        let [a, b, c, d] = self.addresses;
        Flow6 { addresses: [c, d, a, b], ports: self.ports.rotate_left(16), ..self }
    }

    /// Source address.
    #[must_use]
    pub fn source(self) -> Ipv6Addr {
        let [a, b, ..] = self.addresses;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&a.to_ne_bytes());
        bytes[8..].copy_from_slice(&b.to_ne_bytes());
        Ipv6Addr::from(bytes)
    }

    /// Destination address.
    #[must_use]
    pub fn destination(self) -> Ipv6Addr {
        self.reversed().source()
    }

    /// The inverse of [`Flow4::mapped`].
    pub(crate) fn unmapped(self) -> Flow4 {
        let tail = |word: u64| {
            let [.., a, b, c, d] = word.to_ne_bytes();
            [a, b, c, d]
        };
        let ([a, b, c, d], [e, f, g, h]) = (tail(self.addresses[1]), tail(self.addresses[3]));
        Flow4 {
            addresses: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            ports: self.ports,
            protocol: self.protocol,
        }
    }
}

fn halves(address: Ipv6Addr) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address.octets();
    [u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes([i, j, k, l, m, n, o, p])]
}

fn join_ports(source: u16, destination: u16) -> u32 {
    let ([a, b], [c, d]) = (source.to_be_bytes(), destination.to_be_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

fn source_port(ports: u32) -> u16 {
    let [a, b, ..] = ports.to_ne_bytes();
    u16::from_be_bytes([a, b])
}

impl Flow {
    /// The flow of a packet from `source` to `destination`. When the families differ (a wide entry may join them, a packet
    /// never does) the IPv4 address takes its IPv4-mapped form.
    #[must_use]
    pub fn new(source: SocketAddr, destination: SocketAddr, protocol: u8) -> Self {
        let ports = join_ports(source.port(), destination.port());
        if let (IpAddr::V4(from), IpAddr::V4(to)) = (source.ip(), destination.ip()) {
            let ([a, b, c, d], [e, f, g, h]) = (from.octets(), to.octets());
            let addresses = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
            return Flow::V4(Flow4 { addresses, ports, protocol });
        }
        let wide = |ip: IpAddr| match ip {
            IpAddr::V4(v4) => halves(v4.to_ipv6_mapped()),
            IpAddr::V6(v6) => halves(v6),
        };
        let ([a, b], [c, d]) = (wide(source.ip()), wide(destination.ip()));
        Flow::V6(Flow6 { addresses: [a, b, c, d], ports, protocol })
    }

    /// What the template is found by that keeps `client` with its real server of `service`: the client's side of one.
    #[must_use]
    pub fn template(client: IpAddr, service: SocketAddr, protocol: u8) -> Self {
        Flow::new(SocketAddr::new(client, 0), service, protocol::of_template(protocol, false))
    }

    /// The same of one that is of no use any more, and that nobody looks for. IPVS gives it port 65535.
    #[must_use]
    pub fn invalid_template(client: IpAddr, service: IpAddr, protocol: u8) -> Self {
        let service = SocketAddr::new(service, u16::MAX);
        Flow::new(SocketAddr::new(client, 0), service, protocol::of_template(protocol, true))
    }

    /// The same conversation as the other end sends it.
    #[inline]
    #[must_use]
    pub fn reversed(self) -> Self {
        match self {
            Flow::V4(flow) => Flow::V4(flow.reversed()),
            Flow::V6(flow) => Flow::V6(flow.reversed()),
        }
    }

    /// Source address and port.
    #[must_use]
    pub fn source(&self) -> SocketAddr {
        match self {
            Flow::V4(flow) => SocketAddr::new(flow.source().into(), source_port(flow.ports)),
            Flow::V6(flow) => SocketAddr::new(flow.source().into(), source_port(flow.ports)),
        }
    }

    /// Destination address and port.
    #[must_use]
    pub fn destination(&self) -> SocketAddr {
        self.reversed().source()
    }

    /// IP protocol number.
    #[inline]
    #[must_use]
    pub fn protocol(&self) -> u8 {
        match self {
            Flow::V4(flow) => flow.protocol,
            Flow::V6(flow) => flow.protocol,
        }
    }

    /// Whether it is IPv4.
    #[inline]
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        matches!(self, Flow::V4(_))
    }

    /// In the form a wide entry holds.
    pub(crate) fn wide(&self) -> Flow6 {
        match self {
            Flow::V4(flow) => flow.mapped(),
            Flow::V6(flow) => *flow,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_flow_is_the_header_as_it_lies_in_memory() {
        let flow = Flow::new(address("10.1.2.3:1000"), address("192.168.0.1:80"), 6);
        let wire = Flow4::from_wire([10, 1, 2, 3, 192, 168, 0, 1], [0x03, 0xe8, 0, 80], 6);
        assert_eq!(flow, Flow::V4(wire));
        let flow = Flow::new(address("[fd00::1]:1000"), address("[fd00::2]:80"), 17);
        let mut bytes = [0; 32];
        (bytes[0], bytes[15], bytes[16], bytes[31]) = (0xfd, 1, 0xfd, 2);
        assert_eq!(flow, Flow::V6(Flow6::from_wire(bytes, [0x03, 0xe8, 0, 80], 17)));
    }

    #[test]
    fn ends_and_reversal() {
        for (from, to) in [("10.1.2.3:1000", "192.168.0.1:80"), ("[fd00::1]:1000", "[fd00::2]:80")] {
            let flow = Flow::new(address(from), address(to), 6);
            assert_eq!((flow.source(), flow.destination()), (address(from), address(to)));
            assert_eq!(flow.reversed(), Flow::new(address(to), address(from), 6));
            assert_eq!(flow.reversed().reversed(), flow);
        }
    }

    #[test]
    fn mapping_is_reversible() {
        let Flow::V4(flow) = Flow::new(address("10.1.2.3:1000"), address("192.168.0.1:80"), 6) else {
            panic!("an IPv4 flow");
        };
        assert_eq!(flow.mapped().unmapped(), flow);
        assert_eq!(flow.mapped().source().to_ipv4_mapped(), Some(flow.source()));
        assert_eq!(flow.mapped().destination().to_ipv4_mapped(), Some(flow.destination()));
    }
}
