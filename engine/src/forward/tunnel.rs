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
        limit(self.overhead(outer_v4), outer_v4, mtu)
    }
}

#[inline]
fn limit(overhead: usize, outer_v4: bool, mtu: u32) -> Result<u32, Reason> {
    let overhead = u32::try_from(overhead).unwrap_or(u32::MAX);
    mtu.checked_sub(overhead).filter(|limit| *limit >= least_mtu(outer_v4)).ok_or(Reason::TunnelMtu)
}

fn least_mtu(v4: bool) -> u32 {
    if v4 { LEAST_MTU_V4 } else { LEAST_MTU_V6 }
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

    fn ethertype(self) -> u16 {
        if self.is_v4() { ethernet::IPV4 } else { ethernet::IPV6 }
    }

    fn pseudo(self, protocol: u8, length: u16) -> Sum {
        match self {
            Ends::V4(from, to) => Sum::pseudo4_of(from, to, protocol, length),
            Ends::V6(from, to) => Sum::pseudo6_of(from, to, protocol, length.into()),
        }
    }
}

/// What of the outer headers differs from packet to packet.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Marks {
    /// The flow's hash: GUE's source port spreads flows over paths and queues.
    pub(crate) hash: u64,
    /// The identification of an outer IPv4 packet that may be fragmented.
    pub(crate) id: u16,
}

/// A tunnel to one real server: its headers, written but for what they take from each packet.
#[derive(Clone, Debug)]
pub(crate) struct Envelope {
    tunnel: Tunnel,
    ends: Ends,
    /// Bytes that are put before a packet.
    overhead: usize,
    /// The shortest MTU in bytes of a link that takes it.
    least_mtu: u32,
    /// The last `overhead` bytes, and before them an untagged link-layer header without addresses.
    headers: [u8; WRAPPING],
    /// The sum of the outer IPv4 header as it stands there.
    sum: Sum,
}

const WRAPPING: usize = ethernet::HEADER_LEN + MOST_OVERHEAD;

impl Envelope {
    /// For packets of one IP version.
    pub(crate) fn new(tunnel: Tunnel, ends: Ends, inner_v4: bool) -> Result<Self, Reason> {
        let overhead = tunnel.overhead(ends.is_v4());
        let mut headers = [0; WRAPPING];
        let ip = WRAPPING - overhead;
        let (inner, ethertype) =
            if inner_v4 { (protocol::IPV4, ethernet::IPV4) } else { (protocol::IPV6, ethernet::IPV6) };
        let outer = tunnel.protocol(inner);
        let (transport, sum) = match ends {
            Ends::V4(source, destination) => {
                let sum = Ipv4::parse_mut(&mut headers, ip)?.prepare(source, destination, outer);
                (ip + ipv4::HEADER_LEN, sum)
            }
            Ends::V6(source, destination) => {
                Ipv6::parse_mut(&mut headers, ip)?.emit(source, destination, outer, 0, 0);
                (ip + ipv6::HEADER_LEN, Sum::default())
            }
        };
        match tunnel.kind {
            TunnelKind::Ipip => {}
            TunnelKind::Gue => {
                Udp::parse_mut(&mut headers, transport)?.emit(0, tunnel.port, 0);
                Gue::parse_mut(&mut headers, transport + udp::HEADER_LEN)?.emit(inner);
            }
            TunnelKind::Gre => {
                gre::emit(&mut headers, transport, ethertype, tunnel.checksum != TunnelChecksum::None)?;
            }
        }
        headers[ip - 2..ip].copy_from_slice(&ends.ethertype().to_be_bytes());
        let least_mtu = least_mtu(ends.is_v4()) + u32::try_from(overhead).unwrap_or(0);
        Ok(Envelope { tunnel, ends, overhead, least_mtu, headers, sum })
    }

    /// The real server.
    #[inline]
    pub(crate) fn server(&self) -> IpAddr {
        match self.ends {
            Ends::V4(_, server) => server.into(),
            Ends::V6(_, server) => server.into(),
        }
    }

    /// The longest packet in bytes that fits a link of `mtu`.
    ///
    /// # Errors
    /// [`Reason::TunnelMtu`] when that is less than any link may have.
    #[inline]
    pub(crate) fn limit(&self, mtu: u32) -> Result<u32, Reason> {
        limit(self.overhead, self.ends.is_v4(), mtu)
    }

    /// Whether a link of `mtu` takes it around a packet that leaves room for any.
    #[inline]
    pub(crate) fn fits(&self, mtu: u32) -> bool {
        mtu >= self.least_mtu
    }

    /// Whether the packets of this flow are for the real server's own address: wrapped, they would come back.
    #[inline]
    pub(crate) fn loops(&self, flow: &Flow) -> bool {
        match (self.ends, flow) {
            (Ends::V4(_, server), Flow::V4(flow)) => flow.destination() == server,
            (Ends::V6(_, server), Flow::V6(flow)) => flow.destination() == server,
            _ => false,
        }
    }
}

/// Wraps a packet that is one hop older than `parsed` says and whose checksums are complete. Tags stay where they were, before
/// the outer header; the link-layer addresses are for whoever sends it to write. `marks` is asked where they are needed.
#[inline(always)]
pub(crate) fn encapsulate(
    packet: &mut Packet<'_>,
    parsed: &Parsed,
    envelope: &Envelope,
    options: &ForwardOptions,
    marks: impl FnOnce() -> Marks,
) -> Result<(), Reason> {
    let Envelope { tunnel, ends, overhead, .. } = envelope;
    let inner = Inner::read(packet.frame(), parsed)?;
    if packet.rest().is_empty() {
        // What pads a short frame is no part of the packet.
        packet.truncate(parsed.network() + parsed.packet_len());
    }
    let length = u16::try_from(overhead + parsed.packet_len()).map_err(|_| Reason::TooBig)?;
    // As much as any tunnel takes, for the headers to be copied in one piece whatever their length is.
    if !packet.grow_front(MOST_OVERHEAD) {
        return Err(Reason::TooBig);
    }
    let spare = MOST_OVERHEAD - overhead;
    let network = parsed.network();
    let ip = spare + network;
    let frame = packet.frame_mut();
    if parsed.is_tagged() {
        tagged(frame, network, envelope)?;
    } else {
        *frame.first_chunk_mut().ok_or(Reason::Truncated)? = envelope.headers;
    }

    let dscp = inner.traffic_class & !CE;
    let ecn = match inner.traffic_class & CE {
        // RFC 3168 §9.1.1, full functionality: congestion inside is not shown outside. RFC 6040 §4.1 shows it.
        CE if !options.rfc6040 => ECT_0,
        ecn => ecn,
    };
    let tos = dscp | ecn;
    let hops_left = parsed.hops_left - 1;
    let dont_fragment = inner.dont_fragment && options.pmtu_disc;
    let marked = tunnel.kind == TunnelKind::Gue || (ends.is_v4() && !dont_fragment);
    let marks = if marked { marks() } else { Marks::default() };
    let (transport, payload) = if ends.is_v4() {
        let id = if dont_fragment { 0 } else { marks.id };
        let of_packet = ipv4::OfPacket { tos, length, id, dont_fragment, ttl: hops_left };
        Ipv4::parse_mut(frame, ip)?.complete(envelope.sum, &of_packet);
        (ip + ipv4::HEADER_LEN, length - HEADER_LEN_V4)
    } else {
        let mut header = Ipv6::parse_mut(frame, ip)?;
        header.set_traffic_class(tos);
        header.set_payload_len(length - HEADER_LEN_V6);
        header.set_hop_limit(hops_left);
        (ip + ipv6::HEADER_LEN, length - HEADER_LEN_V6)
    };
    if tunnel.kind == TunnelKind::Gue || tunnel.checksum != TunnelChecksum::None {
        protect(packet, envelope, (transport, payload), marks.hash)?;
    }
    let _there_are_so_many = packet.shrink_front(spare);
    Ok(())
}

/// Completes what is between the outer IP header and the packet: `payload` bytes at `transport`, header and packet together.
fn protect(
    packet: &mut Packet<'_>,
    envelope: &Envelope,
    (transport, payload): (usize, u16),
    hash: u64,
) -> Result<(), Reason> {
    let Envelope { tunnel, ends, .. } = envelope;
    // Remote checksum offload saves work only where the inner checksum is left to be done, and here it is done.
    let checksum = tunnel.checksum != TunnelChecksum::None;
    match tunnel.kind {
        TunnelKind::Ipip => {}
        TunnelKind::Gue => {
            let header = Udp::parse_mut(packet.frame_mut(), transport);
            header?.emit(source_port(hash), tunnel.port, payload);
            if checksum {
                let sum = ends.pseudo(protocol::UDP, payload).plus(sum(packet, transport, payload));
                Udp::parse_mut(packet.frame_mut(), transport)?.set_checksum(sum.checksum());
            }
        }
        TunnelKind::Gre if checksum => {
            let sum = sum(packet, transport, payload);
            gre::set_checksum(packet.frame_mut(), transport, sum.checksum())?;
        }
        TunnelKind::Gre => {}
    }
    Ok(())
}

/// Puts the outer headers of a packet between its link-layer header of `length` bytes, which has tags, and itself.
#[cold]
fn tagged(frame: &mut [u8], length: usize, envelope: &Envelope) -> Result<(), Reason> {
    let tags = length.checked_sub(ethernet::HEADER_LEN).ok_or(Reason::Malformed)?;
    let spare = MOST_OVERHEAD - envelope.overhead;
    frame.copy_within(MOST_OVERHEAD..MOST_OVERHEAD + length, spare);
    let ethertype = ethernet::HEADER_LEN - 2 + spare;
    let rest = frame.get_mut(ethertype + tags..WRAPPING + tags).ok_or(Reason::Truncated)?;
    rest.copy_from_slice(&envelope.headers[ethertype..]);
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
}

impl Inner {
    #[inline]
    fn read(frame: &[u8], parsed: &Parsed) -> Result<Self, Reason> {
        Ok(match parsed.flow {
            Flow::V4(_) => {
                let header = Ipv4::parse(frame, parsed.network())?;
                Inner { traffic_class: header.tos(), dont_fragment: header.dont_fragment() }
            }
            Flow::V6(_) => {
                let header = Ipv6::parse(frame, parsed.network())?;
                Inner { traffic_class: header.traffic_class(), dont_fragment: false }
            }
        })
    }
}
