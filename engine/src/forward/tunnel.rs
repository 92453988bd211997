//! Tunnels: the packet travels to its real server inside another one (the kernel's `ip_vs_tunnel_xmit`).

use crate::batch::Packet;
use crate::packet::checksum::Sum;
use crate::packet::ethernet;
use crate::packet::gre;
use crate::packet::gue::{self, Gue};
use crate::packet::ipv4::{self, Ipv4};
use crate::packet::ipv6::{self, Ipv6};
use crate::packet::protocol;
use crate::packet::udp::{self, Udp};
use crate::pipeline::Parsed;
use crate::plan::{Tunnel, TunnelChecksum, TunnelKind};
use crate::snapshot::ForwardOptions;
use crate::verdict::Reason;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use uvs_conntrack::Flow;

/// The smallest MTU of an IPv4 link (RFC 791): a tunnel that leaves less is none.
const LEAST_MTU_V4: u32 = 68;
/// The smallest MTU of an IPv6 link (RFC 8200 §5).
const LEAST_MTU_V6: u32 = 1280;

/// As many bytes as any tunnel puts before a packet.
pub(crate) const MOST_OVERHEAD: usize = ipv6::HEADER_LEN + udp::HEADER_LEN + gue::HEADER_LEN;

const HEADER_LEN_V4: u16 = 20;
const HEADER_LEN_V6: u16 = 40;

/// UDP source ports of GUE: the kernel's default range of ephemeral ports.
const FIRST_PORT: u16 = 32_768;
const PORTS: u64 = 28_232;

impl Tunnel {
    /// Bytes that are put before a packet, the IP header of that family included.
    pub(crate) fn overhead(&self, outer_v4: bool) -> usize {
        let ip = if outer_v4 { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
        ip + match (self.kind, self.checksum) {
            (TunnelKind::Ipip, _) => 0,
            (TunnelKind::Gue, _) => udp::HEADER_LEN + gue::HEADER_LEN,
            (TunnelKind::Gre, TunnelChecksum::None) => gre::HEADER_LEN,
            (TunnelKind::Gre, _) => gre::HEADER_LEN + gre::CHECKSUM_LEN,
        }
    }

    /// The longest packet in bytes that fits a link of `mtu`.
    ///
    /// # Errors
    /// [`Reason::TunnelMtu`] when that is less than any link may have.
    pub(crate) fn limit(&self, outer_v4: bool, mtu: u32) -> Result<u32, Reason> {
        let least = if outer_v4 { LEAST_MTU_V4 } else { LEAST_MTU_V6 };
        let overhead = u32::try_from(self.overhead(outer_v4)).unwrap_or(u32::MAX);
        mtu.checked_sub(overhead).filter(|limit| *limit >= least).ok_or(Reason::TunnelMtu)
    }
}

/// Both ends of a tunnel.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ends {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

impl Ends {
    /// From an address of this host to the real server's. None: it has none of that family.
    pub(crate) fn new(source: Option<IpAddr>, destination: IpAddr) -> Option<Self> {
        match (source?, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Some(Ends::V4(source, destination)),
            (IpAddr::V6(source), IpAddr::V6(destination)) => Some(Ends::V6(source, destination)),
            _ => None,
        }
    }

    pub(crate) fn is_v4(self) -> bool {
        matches!(self, Ends::V4(..))
    }

    fn pseudo(self, protocol: u8, length: u16) -> Sum {
        match self {
            Ends::V4(from, to) => Sum::pseudo4_of(from, to, protocol, length),
            Ends::V6(from, to) => Sum::pseudo6_of(from, to, protocol, length.into()),
        }
    }
}

/// What of the outer headers differs from packet to packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Marks {
    /// The flow's hash: GUE's source port spreads flows over paths and queues.
    pub(crate) hash: u64,
    /// The identification of an outer IPv4 packet that may be fragmented.
    pub(crate) id: u16,
}

/// Wraps a packet that is one hop older than `parsed` says and whose checksums are complete. Tags stay where they were, before
/// the outer header.
pub(crate) fn encapsulate(
    packet: &mut Packet<'_>,
    parsed: &Parsed,
    tunnel: &Tunnel,
    ends: Ends,
    options: &ForwardOptions,
    marks: Marks,
) -> Result<(), Reason> {
    let inner = Inner::read(packet.frame(), parsed)?;
    if packet.rest().is_empty() {
        // What pads a short frame is no part of the packet.
        packet.truncate(parsed.network() + parsed.packet_len());
    }
    let overhead = tunnel.overhead(ends.is_v4());
    let length = u16::try_from(overhead + parsed.packet_len()).map_err(|_| Reason::TooBig)?;
    if !packet.grow_front(overhead) {
        return Err(Reason::TooBig);
    }
    let network = parsed.network();
    let frame = packet.frame_mut();
    frame.copy_within(overhead..overhead + network, 0);
    let ethertype = if ends.is_v4() { ethernet::IPV4 } else { ethernet::IPV6 };
    frame[network - 2..network].copy_from_slice(&ethertype.to_be_bytes());

    // Remote checksum offload saves work only where the inner checksum is left to be done, and here it is done.
    let checksum = tunnel.checksum != TunnelChecksum::None;
    let dscp = inner.traffic_class & !CE;
    let ecn = match inner.traffic_class & CE {
        // RFC 3168 §9.1.1, full functionality: congestion inside is not shown outside. RFC 6040 §4.1 shows it.
        CE if !options.rfc6040 => ECT_0,
        ecn => ecn,
    };
    let (outer, tos) = (tunnel.protocol(inner.protocol), dscp | ecn);
    let hops_left = parsed.hops_left - 1;
    let (transport, payload) = match ends {
        Ends::V4(source, destination) => {
            let dont_fragment = inner.dont_fragment && options.pmtu_disc;
            let id = if dont_fragment { 0 } else { marks.id };
            let payload = length - HEADER_LEN_V4;
            let mut header = Ipv4::parse_mut(frame, network)?;
            header.write(&ipv4::Header {
                tos,
                id,
                dont_fragment,
                ttl: hops_left,
                protocol: outer,
                source,
                destination,
                payload,
            });
            (network + ipv4::HEADER_LEN, payload)
        }
        Ends::V6(source, destination) => {
            let payload = length - HEADER_LEN_V6;
            let mut header = Ipv6::parse_mut(frame, network)?;
            header.emit(source, destination, outer, hops_left, payload);
            header.set_traffic_class(tos);
            (network + ipv6::HEADER_LEN, payload)
        }
    };
    match tunnel.kind {
        TunnelKind::Ipip => {}
        TunnelKind::Gue => {
            let frame = packet.frame_mut();
            Udp::parse_mut(frame, transport)?.emit(source_port(marks.hash), tunnel.port, payload);
            Gue::parse_mut(frame, transport + udp::HEADER_LEN)?.emit(inner.protocol);
            if checksum {
                let sum = ends.pseudo(protocol::UDP, payload).plus(sum(packet, transport, payload));
                Udp::parse_mut(packet.frame_mut(), transport)?.set_checksum(sum.checksum());
            }
        }
        TunnelKind::Gre => {
            gre::emit(packet.frame_mut(), transport, inner.ethertype, checksum)?;
            if checksum {
                let sum = sum(packet, transport, payload);
                gre::set_checksum(packet.frame_mut(), transport, sum.checksum())?;
            }
        }
    }
    Ok(())
}

/// GUE's source port for a flow, the same for all of its packets.
#[expect(clippy::cast_possible_truncation, reason = "less than the number of ports")]
fn source_port(hash: u64) -> u16 {
    FIRST_PORT + (((hash >> 32) * PORTS) >> 32) as u16
}

/// The sum of `length` bytes of the packet from `at` on, in its parts.
fn sum(packet: &Packet<'_>, at: usize, length: u16) -> Sum {
    let mut left = usize::from(length);
    let first = packet.frame().get(at..).unwrap_or_default();
    Sum::of_parts(std::iter::once(first).chain(packet.rest().iter().copied()).map(|part| {
        let part = &part[..part.len().min(left)];
        left -= part.len();
        part
    }))
}

impl Tunnel {
    /// What the outer IP header says follows it.
    fn protocol(&self, inner: u8) -> u8 {
        match self.kind {
            TunnelKind::Ipip => inner,
            TunnelKind::Gue => protocol::UDP,
            TunnelKind::Gre => protocol::GRE,
        }
    }
}

/// Congestion experienced, and the bits of ECN (RFC 3168 §5).
const CE: u8 = 0b11;
const ECT_0: u8 = 0b10;

/// What the outer headers take from the packet.
struct Inner {
    traffic_class: u8,
    dont_fragment: bool,
    protocol: u8,
    ethertype: u16,
}

impl Inner {
    fn read(frame: &[u8], parsed: &Parsed) -> Result<Self, Reason> {
        Ok(match parsed.flow {
            Flow::V4(_) => {
                let header = Ipv4::parse(frame, parsed.network())?;
                Inner {
                    traffic_class: header.tos(),
                    dont_fragment: header.dont_fragment(),
                    protocol: protocol::IPV4,
                    ethertype: ethernet::IPV4,
                }
            }
            Flow::V6(_) => Inner {
                traffic_class: Ipv6::parse(frame, parsed.network())?.traffic_class(),
                dont_fragment: false,
                protocol: protocol::IPV6,
                ethertype: ethernet::IPV6,
            },
        })
    }
}
