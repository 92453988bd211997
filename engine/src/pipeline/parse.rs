//! The first stage: from a frame's bytes to the flow it belongs to.

use super::errors;
use crate::batch::Packet;
use crate::packet::checksum::Sum;
use crate::packet::ethernet::{self, Ethernet, Mac};
use crate::packet::ipv4::{self, Ipv4};
use crate::packet::ipv6::{self, Ipv6};
use crate::packet::tcp::Tcp;
use crate::packet::udp::{self, Udp};
use crate::packet::{Error, protocol};
use crate::snapshot::Port;
use crate::verdict::{Reason, Verdict};
use uvs_conntrack::{Flow, Flow4, Flow6};

/// What is known of a frame that carries TCP or UDP.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parsed {
    /// Who sends to whom. Of an ICMP error: of the packet it quotes, the other way round.
    pub(crate) flow: Flow,
    /// TTL or hop limit.
    pub(crate) hops_left: u8,
    /// TCP's control bits; zero for everything else.
    pub(crate) tcp_flags: u8,
    /// Whether it is more than a whole TCP segment or UDP datagram.
    pub(crate) kind: Kind,
    network: u8,
    transport: u16,
    transport_len: u16,
    packet_len: u32,
}

/// What a frame holds of its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A whole TCP segment or UDP datagram.
    Whole,
    /// The first fragment of one.
    First,
    /// Another fragment of one: its ports are unknown, and its transport header is elsewhere.
    Later,
    /// An ICMP error about one, going the other way: the flow is that of the packet it quotes, reversed.
    Error,
}

impl Default for Parsed {
    fn default() -> Self {
        Parsed {
            flow: Flow::V4(Flow4 { addresses: 0, ports: 0, protocol: 0 }),
            hops_left: 0,
            tcp_flags: 0,
            kind: Kind::Whole,
            network: 0,
            transport: 0,
            transport_len: 0,
            packet_len: 0,
        }
    }
}

impl Parsed {
    /// Where the IP header starts in the frame.
    #[inline]
    pub(crate) fn network(&self) -> usize {
        self.network.into()
    }

    /// Where the transport header starts in the frame; of a later fragment, which has none: beyond any frame.
    #[inline]
    pub(crate) fn transport(&self) -> usize {
        self.transport.into()
    }

    /// Whether an IPv4 frame's headers lie where they do when there is neither tag nor option.
    #[inline]
    pub(crate) fn is_plain4(&self) -> bool {
        self.transport() == PLAIN_TRANSPORT4 && self.network() == PLAIN_NETWORK
    }

    /// Whether an IPv6 frame's headers lie where they do when there is neither tag nor extension header.
    #[inline]
    pub(crate) fn is_plain6(&self) -> bool {
        self.transport() == PLAIN_TRANSPORT6 && self.network() == PLAIN_NETWORK
    }

    /// Length of the transport packet, header included, in bytes.
    #[inline]
    pub(crate) fn transport_len(&self) -> usize {
        self.transport_len.into()
    }

    /// Length of the IP packet, header included, in bytes.
    #[inline]
    pub(crate) fn packet_len(&self) -> usize {
        self.packet_len as usize
    }

    /// Whether the frame carries VLAN tags.
    #[inline]
    pub(crate) fn is_tagged(&self) -> bool {
        self.network() > ethernet::HEADER_LEN
    }

    /// The same packet with `bytes` more between its transport header and its payload.
    pub(crate) fn lengthened(&self, bytes: u16) -> Parsed {
        let (transport_len, packet_len) = (self.transport_len + bytes, self.packet_len + u32::from(bytes));
        Parsed { transport_len, packet_len, ..*self }
    }

    /// The payload that starts at `from` behind an IP header of `header_len` bytes, for `flow`.
    pub(crate) fn moved(&self, flow: Flow, from: usize, header_len: usize) -> Parsed {
        let network = self.network();
        let packet_len = self.packet_len() + network + header_len - from;
        let transport = u16::try_from(network + header_len).unwrap_or(u16::MAX);
        Parsed { flow, transport, packet_len: u32::try_from(packet_len).unwrap_or(u32::MAX), ..*self }
    }

    /// Of an ICMP error: the packet of `flow`, `packet_len` bytes of which it quotes, once that lies where the error did.
    pub(crate) fn unwrapped(&self, flow: Flow, packet_len: usize) -> Parsed {
        Parsed { flow, packet_len: u32::try_from(packet_len).unwrap_or(u32::MAX), ..*self }
    }

    /// Whether no router may fragment the packet: its sender has to be told when it is too long.
    pub(crate) fn must_not_be_fragmented(&self, frame: &[u8]) -> bool {
        match self.flow {
            Flow::V4(_) => Ipv4::parse(frame, self.network()).is_ok_and(|header| header.dont_fragment()),
            Flow::V6(_) => true,
        }
    }
}

/// Reads a frame's headers into `parsed`, in place because a copy would wait for the stores before it. What is not TCP or
/// UDP over IP, or not for this host, has its verdict already.
#[inline]
pub(crate) fn parse(packet: &Packet<'_>, port: Option<&Port>, parsed: &mut Parsed) -> Result<(), Verdict> {
    let frame = packet.frame();
    if let Some(port) = port {
        check_addressee(frame, port.mac)?;
    }
    // Nearly all frames are like this; the others take the long way to the same answer.
    if plain4(frame, parsed) || plain6(frame, parsed) {
        return Ok(());
    }
    parse_any(packet, parsed)
}

/// Offset of the IP header in a plain frame: one without a tag, options, extension headers or fragments, of one part, whose
/// headers agree with each other.
pub(crate) const PLAIN_NETWORK: usize = ethernet::HEADER_LEN;
/// Offset of the transport header in a plain IPv4 frame.
pub(crate) const PLAIN_TRANSPORT4: usize = PLAIN_NETWORK + ipv4::HEADER_LEN;
/// Offset of the transport header in a plain IPv6 frame.
pub(crate) const PLAIN_TRANSPORT6: usize = PLAIN_NETWORK + ipv6::HEADER_LEN;

/// Reads a plain IPv4 frame; `false`: it is not one.
#[inline]
fn plain4(frame: &[u8], parsed: &mut Parsed) -> bool {
    let Some(head) = frame.first_chunk::<{ PLAIN_TRANSPORT4 + udp::HEADER_LEN }>() else { return false };
    let Some(ip) = head[PLAIN_NETWORK..].first_chunk::<{ ipv4::HEADER_LEN }>() else { return false };
    let header = Ipv4::view(ip);
    let packet_len = header.total_len();
    if !starts_with(head, [0x08, 0x00, 0x45], 0xff)
        || header.is_fragment()
        || packet_len > frame.len() - PLAIN_NETWORK
        || !header.is_intact()
    {
        return false;
    }
    let protocol = header.protocol();
    let Some(payload) = packet_len.checked_sub(ipv4::HEADER_LEN) else { return false };
    let Some(plain) = PlainTransport::read(frame, PLAIN_TRANSPORT4, protocol, payload) else { return false };
    let flow = Flow::V4(Flow4 { addresses: header.addresses(), ports: plain.ports, protocol });
    plain.write(parsed, flow, PLAIN_TRANSPORT4, packet_len, header.ttl());
    true
}

/// Whether the EtherType, and as much of the byte behind it as `mask` says, are these: in one comparison.
#[inline]
fn starts_with(head: &[u8], [a, b, version]: [u8; 3], mask: u8) -> bool {
    const AT: usize = ethernet::field::ETHERTYPE;
    let word = |bytes: [u8; 4]| u32::from_ne_bytes(bytes);
    head[AT..]
        .first_chunk()
        .is_some_and(|found| word(*found) & word([0xff, 0xff, mask, 0]) == word([a, b, version, 0]))
}

/// Reads a plain IPv6 frame; `false`: it is not one.
#[inline]
fn plain6(frame: &[u8], parsed: &mut Parsed) -> bool {
    let Some(head) = frame.first_chunk::<{ PLAIN_TRANSPORT6 + udp::HEADER_LEN }>() else { return false };
    let Some(ip) = head[PLAIN_NETWORK..].first_chunk::<{ ipv6::HEADER_LEN }>() else { return false };
    let header = Ipv6::view(ip);
    let packet_len = ipv6::HEADER_LEN + header.payload_len();
    if !starts_with(head, [0x86, 0xdd, 0x60], 0xf0) || packet_len > frame.len() - PLAIN_NETWORK {
        return false;
    }
    let protocol = header.next_header();
    let payload = header.payload_len();
    let Some(plain) = PlainTransport::read(frame, PLAIN_TRANSPORT6, protocol, payload) else { return false };
    let flow = Flow::V6(Flow6 { addresses: header.addresses(), ports: plain.ports, protocol });
    plain.write(parsed, flow, PLAIN_TRANSPORT6, packet_len, header.hop_limit());
    true
}

/// What the transport header of a plain frame says.
struct PlainTransport {
    ports: u32,
    length: usize,
    tcp_flags: u8,
}

impl PlainTransport {
    /// Reads the header at `frame[at..]` of a payload of `length` bytes, whose first eight are there.
    #[inline(always)]
    fn read(frame: &[u8], at: usize, protocol: u8, length: usize) -> Option<Self> {
        match protocol {
            protocol::TCP => {
                let tcp = Tcp::parse(frame, at, length).ok()?;
                Some(PlainTransport { ports: tcp.ports(), length, tcp_flags: tcp.flags() })
            }
            protocol::UDP => {
                let udp = Udp::parse(frame, at, length).ok()?;
                Some(PlainTransport { ports: udp.ports(), length: udp.len(), tcp_flags: 0 })
            }
            _ => None,
        }
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "lengths of an IP packet have 16 bits")]
    fn write(self, parsed: &mut Parsed, flow: Flow, transport: usize, packet_len: usize, hops_left: u8) {
        *parsed = Parsed {
            flow,
            network: PLAIN_NETWORK as u8,
            transport: transport as u16,
            transport_len: self.length as u16,
            packet_len: packet_len as u32,
            hops_left,
            tcp_flags: self.tcp_flags,
            kind: Kind::Whole,
        };
    }
}

#[inline(never)]
fn parse_any(packet: &Packet<'_>, parsed: &mut Parsed) -> Result<(), Verdict> {
    let (ethertype, network) = ethernet::payload(packet.frame()).map_err(drop_for)?;
    match ethertype {
        ethernet::IPV4 => parse4(packet, network, parsed),
        ethernet::IPV6 => parse6(packet, network, parsed),
        _ => Err(Verdict::ToKernel),
    }
}

/// IPVS leaves alone what is not addressed to this host by its link-layer address. A unicast frame for somebody else, as a
/// switch floods it or a capture lets it through, would be dropped by the kernel; the kernel must not get it from us as if
/// it were its own. The addresses of VRRP (RFC 9568 §7.3) are this host's when they get here.
#[inline]
fn check_addressee(frame: &[u8], own: Mac) -> Result<(), Verdict> {
    let destination = Ethernet::parse(frame).map_err(drop_for)?.destination();
    if destination == own {
        return Ok(());
    }
    match destination {
        [0x00, 0x00, 0x5e, 0x00, 0x01 | 0x02, _] => Ok(()),
        [first, ..] if first & 1 == 1 => Err(Verdict::ToKernel),
        _ => Err(Verdict::Drop(Reason::OtherHost)),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "an IPv4 packet's lengths have 16 bits")]
fn parse4(packet: &Packet<'_>, network: usize, parsed: &mut Parsed) -> Result<(), Verdict> {
    let frame = packet.frame();
    let header = Ipv4::parse(frame, network).map_err(drop_for)?;
    let packet_len = header.total_len();
    if packet_len > packet.total_len() - network {
        return Err(drop_for(Error::Truncated));
    }
    let transport = network + header.header_len();
    // The kernel drops all these before IPVS sees them.
    if Sum::of(&frame[network..transport]).fold() != Sum::WHOLE {
        return Err(Verdict::Drop(Reason::BadChecksum));
    }
    if ipv4::is_source_routed(&frame[network + ipv4::HEADER_LEN..transport]).map_err(drop_for)? {
        return Err(Verdict::Drop(Reason::SourceRouted));
    }
    let kind = if !header.is_fragment() {
        Kind::Whole
    } else if header.is_first() {
        Kind::First
    } else {
        Kind::Later
    };
    if header.protocol() == protocol::ICMP && kind == Kind::Whole {
        let flow = Flow4 { addresses: header.addresses(), ports: 0, protocol: protocol::ICMP };
        *parsed = Parsed {
            flow: Flow::V4(flow),
            network: network as u8,
            transport: transport as u16,
            transport_len: (packet_len - header.header_len()) as u16,
            packet_len: packet_len as u32,
            hops_left: header.ttl(),
            tcp_flags: 0,
            kind: Kind::Error,
        };
        return errors::parse(packet, parsed);
    }
    let upper =
        Upper { protocol: header.protocol(), transport, length: packet_len - header.header_len(), kind };
    let Transport { ports, length, tcp_flags } = upper.parse(frame)?;
    *parsed = Parsed {
        flow: Flow::V4(Flow4 { addresses: header.addresses(), ports, protocol: upper.protocol }),
        network: network as u8,
        transport: upper.place(),
        transport_len: length as u16,
        packet_len: packet_len as u32,
        hops_left: header.ttl(),
        tcp_flags,
        kind,
    };
    Ok(())
}

#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "nine extension headers of 2 KiB at most; lengths have 16 bits"
)]
fn parse6(packet: &Packet<'_>, network: usize, parsed: &mut Parsed) -> Result<(), Verdict> {
    let frame = packet.frame();
    let header = Ipv6::parse(frame, network).map_err(drop_for)?;
    let packet_len = ipv6::HEADER_LEN + header.payload_len();
    if packet_len > packet.total_len() - network {
        return Err(drop_for(Error::Truncated));
    }
    let end = frame.len().min(network + packet_len);
    let extensions = network + ipv6::HEADER_LEN;
    let upper = ipv6::upper_layer(&frame[..end], extensions, header.next_header()).map_err(drop_for)?;
    // A packet with way points to visit is not for its destination yet: the kernel knows what to do with it.
    if upper.routed {
        return Err(Verdict::ToKernel);
    }
    let kind = match (upper.fragment, upper.first) {
        (false, _) => Kind::Whole,
        (true, true) => Kind::First,
        (true, false) => Kind::Later,
    };
    let length = (network + packet_len).checked_sub(upper.offset).ok_or(drop_for(Error::Truncated))?;
    if upper.protocol == protocol::ICMPV6 && kind == Kind::Whole {
        let flow = Flow6 { addresses: header.addresses(), ports: 0, protocol: protocol::ICMPV6 };
        *parsed = Parsed {
            flow: Flow::V6(flow),
            network: network as u8,
            transport: upper.offset as u16,
            transport_len: length as u16,
            packet_len: packet_len as u32,
            hops_left: header.hop_limit(),
            tcp_flags: 0,
            kind: Kind::Error,
        };
        return errors::parse(packet, parsed);
    }
    let upper = Upper { protocol: upper.protocol, transport: upper.offset, length, kind };
    let Transport { ports, length, tcp_flags } = upper.parse(frame)?;
    *parsed = Parsed {
        flow: Flow::V6(Flow6 { addresses: header.addresses(), ports, protocol: upper.protocol }),
        network: network as u8,
        transport: upper.place(),
        transport_len: length as u16,
        packet_len: packet_len as u32,
        hops_left: header.hop_limit(),
        tcp_flags,
        kind,
    };
    Ok(())
}

/// What an IP header says of its payload.
struct Upper {
    protocol: u8,
    transport: usize,
    length: usize,
    kind: Kind,
}

/// What the transport header adds.
struct Transport {
    ports: u32,
    length: usize,
    tcp_flags: u8,
}

impl Upper {
    /// See [`Parsed::transport`].
    #[inline]
    fn place(&self) -> u16 {
        if self.kind == Kind::Later { u16::MAX } else { u16::try_from(self.transport).unwrap_or(u16::MAX) }
    }

    #[inline]
    fn parse(&self, frame: &[u8]) -> Result<Transport, Verdict> {
        if self.kind == Kind::Later {
            return match self.protocol {
                protocol::TCP | protocol::UDP => {
                    Ok(Transport { ports: 0, length: self.length, tcp_flags: 0 })
                }
                _ => Err(Verdict::ToKernel),
            };
        }
        // Of a first fragment the transport header may say more than the fragment holds, but it has to be there whole: nothing
        // can be said of a datagram in crumbs (RFC 1858 §3, RFC 8200 §5).
        let length = if self.kind == Kind::Whole { self.length } else { usize::from(u16::MAX) };
        let holds = |header| {
            if header > self.length { Err(drop_for(Error::Truncated)) } else { Ok(()) }
        };
        match self.protocol {
            protocol::TCP => {
                let tcp = Tcp::parse(frame, self.transport, length).map_err(drop_for)?;
                holds(tcp.header_len())?;
                Ok(Transport { ports: tcp.ports(), length: self.length, tcp_flags: tcp.flags() })
            }
            protocol::UDP => {
                holds(udp::HEADER_LEN)?;
                let udp = Udp::parse(frame, self.transport, length).map_err(drop_for)?;
                Ok(Transport { ports: udp.ports(), length: udp.len(), tcp_flags: 0 })
            }
            _ => Err(Verdict::ToKernel),
        }
    }
}

fn drop_for(error: Error) -> Verdict {
    Verdict::Drop(error.into())
}
