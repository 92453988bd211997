//! ICMP errors on their way to whom they concern: the packet that an error quotes becomes the one that its sender sent (the
//! kernel's `ip_vs_nat_icmp`), in a message whose checksum follows.

use crate::packet::checksum::Delta;
use crate::packet::gre::Gre;
use crate::packet::gue::Gue;
use crate::packet::icmp::{self, Icmp};
use crate::packet::ipv4::Ipv4;
use crate::packet::ipv6::{self, Ipv6};
use crate::packet::{ethernet, protocol, udp};
use crate::pipeline::Parsed;
use crate::plan::TunnelKind;
use std::net::IpAddr;
use uvs_conntrack::{Flow, Flow4, Flow6};

/// Transport bytes that a quote must hold (RFC 792), which are enough for the ports and TCP's sequence number.
const TRANSPORT_BYTES: usize = 8;

/// The packet that an ICMP error quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quote {
    /// Who sent it to whom.
    pub(crate) flow: Flow,
    /// Where its transport header starts in the bytes given.
    pub(crate) transport: usize,
}

impl Quote {
    /// Reads the quoted IPv4 packet at `bytes[at..]`. Nothing: it is neither TCP nor UDP nor a tunnel's (which has no ports), a
    /// later fragment, or too little of it is there.
    pub(crate) fn parse4(bytes: &[u8], at: usize) -> Option<Self> {
        let header = Ipv4::parse(bytes, at).ok()?;
        let transport = at + header.header_len();
        let protocol = header.protocol();
        let ports = if header.is_first() { ports(bytes, transport, protocol) } else { None }?;
        Some(Quote { flow: Flow::V4(Flow4 { addresses: header.addresses(), ports, protocol }), transport })
    }

    /// The same for IPv6.
    pub(crate) fn parse6(bytes: &[u8], at: usize) -> Option<Self> {
        let header = Ipv6::parse(bytes, at).ok()?;
        let upper = ipv6::upper_layer(bytes, at + ipv6::HEADER_LEN, header.next_header()).ok()?;
        if !upper.first || upper.routed {
            return None;
        }
        let (transport, protocol) = (upper.offset, upper.protocol);
        let ports = ports(bytes, transport, protocol)?;
        Some(Quote { flow: Flow::V6(Flow6 { addresses: header.addresses(), ports, protocol }), transport })
    }
}

fn ports(bytes: &[u8], transport: usize, protocol: u8) -> Option<u32> {
    let [a, b, c, d, ..] = *bytes.get(transport..)?.first_chunk::<TRANSPORT_BYTES>()?;
    match protocol {
        protocol::TCP | protocol::UDP => Some(u32::from_ne_bytes([a, b, c, d])),
        protocol::IPV4 | protocol::IPV6 | protocol::GRE => Some(0),
        _ => None,
    }
}

/// A packet of a tunnel that an ICMP error quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wrapped {
    /// The tunnel's far end.
    pub(crate) server: IpAddr,
    /// What is around the packet inside.
    pub(crate) kind: TunnelKind,
    /// The UDP port of GUE; 0 for the others.
    pub(crate) port: u16,
    /// Where the packet inside starts in the bytes given.
    pub(crate) at: usize,
    /// The packet inside.
    pub(crate) inner: Quote,
    /// Whether no router may fragment that.
    pub(crate) dont_fragment: bool,
}

impl Wrapped {
    /// Reads the quoted packet at `bytes[at..]`. Nothing: it is no tunnel's, or what it carries is not quoted far enough.
    pub(crate) fn parse(bytes: &[u8], at: usize, v4: bool) -> Option<Self> {
        let (server, upper, payload) = if v4 {
            let header = Ipv4::parse(bytes, at).ok().filter(Ipv4::is_first)?;
            (header.destination().into(), header.protocol(), at + header.header_len())
        } else {
            let header = Ipv6::parse(bytes, at).ok()?;
            let upper = ipv6::upper_layer(bytes, at + ipv6::HEADER_LEN, header.next_header()).ok()?;
            (header.destination().into(), upper.protocol, upper.first.then_some(upper.offset)?)
        };
        let (kind, port, at, protocol) = match upper {
            protocol::IPV4 | protocol::IPV6 => (TunnelKind::Ipip, 0, payload, upper),
            protocol::GRE => {
                let gre = Gre::parse(bytes, payload).ok()?;
                let inner = match gre.protocol() {
                    ethernet::IPV4 => protocol::IPV4,
                    ethernet::IPV6 => protocol::IPV6,
                    _ => return None,
                };
                (TunnelKind::Gre, 0, payload + gre.header_len(), inner)
            }
            protocol::UDP => {
                let [_, _, high, low, ..] = *bytes.get(payload..)?.first_chunk::<{ udp::HEADER_LEN }>()?;
                let gue = Gue::parse(bytes, payload + udp::HEADER_LEN).ok()?;
                let at = payload + udp::HEADER_LEN + gue.header_len();
                (TunnelKind::Gue, u16::from_be_bytes([high, low]), at, gue.protocol())
            }
            _ => return None,
        };
        let (inner, dont_fragment) = if protocol == protocol::IPV4 {
            (Quote::parse4(bytes, at)?, Ipv4::parse(bytes, at).ok()?.dont_fragment())
        } else {
            (Quote::parse6(bytes, at)?, true)
        };
        Some(Wrapped { server, kind, port, at, inner, dont_fragment })
    }
}

/// Ages a packet that otherwise stays as it is, by one hop.
pub(crate) fn age(frame: &mut [u8], parsed: &Parsed) {
    match parsed.flow {
        Flow::V4(_) => {
            if let Ok(mut header) = Ipv4::parse_mut(frame, parsed.network()) {
                let addresses = header.addresses();
                header.forward(addresses, Delta::default());
            }
        }
        Flow::V6(_) => {
            if let Ok(mut header) = Ipv6::parse_mut(frame, parsed.network()) {
                let addresses = header.addresses();
                header.forward(&addresses);
            }
        }
    }
}

/// Makes an error about a packet of the flow that is the reverse of `from` one about a packet of the reverse of `to`, one
/// hop older. The checksum of the quoted transport header stays what it was, as IPVS leaves it: nobody checks it, and of a
/// cut packet nobody can.
///
/// TCP's sequence number in the quote gets `shift` added (full NAT): its sender ignores errors about what it never sent.
///
/// The error goes where `to` goes. It comes from where it came, a router perhaps, unless `to` has another source than
/// `from`: then its receiver must not see the first.
pub(crate) fn translate4(frame: &mut [u8], parsed: &Parsed, from: &Flow4, to: &Flow4, shift: u32) {
    let quoted = parsed.transport() + icmp::HEADER_LEN;
    let Some(Quote { transport, .. }) = Quote::parse4(frame, quoted) else { return };
    let reversed = to.reversed();
    let mut delta = match Ipv4::parse_mut(frame, quoted) {
        Ok(mut header) => header.readdress(reversed.addresses),
        Err(_) => return,
    };
    delta = delta.plus(write_transport(frame, transport, &Flow::V4(reversed), shift));
    if let Ok(mut header) = Ipv4::parse_mut(frame, parsed.network()) {
        let source = if to.source() == from.source() { header.source() } else { to.source() };
        let old = header.addresses();
        let new = addresses4(source.octets(), to.destination().octets());
        header.forward(new, Delta::default().word64(old, new));
    }
    if let Ok(mut message) = Icmp::parse_mut(frame, parsed.transport()) {
        message.correct(delta);
    }
}

/// As [`translate4`], for IPv6.
pub(crate) fn translate6(frame: &mut [u8], parsed: &Parsed, from: &Flow6, to: &Flow6, shift: u32) {
    let quoted = parsed.transport() + icmp::HEADER_LEN;
    let Some(Quote { transport, .. }) = Quote::parse6(frame, quoted) else { return };
    let reversed = to.reversed();
    let mut delta = match Ipv6::parse_mut(frame, quoted) {
        Ok(mut header) => header.readdress(&reversed.addresses),
        Err(_) => return,
    };
    delta = delta.plus(write_transport(frame, transport, &Flow::V6(reversed), shift));
    if let Ok(mut header) = Ipv6::parse_mut(frame, parsed.network()) {
        let ([a, b, ..], [e, f, c, d]) = (header.addresses(), to.addresses);
        let source = if to.source() == from.source() { [a, b] } else { [e, f] };
        let new = [source[0], source[1], c, d];
        // The pseudo-header of ICMPv6 holds the outer addresses.
        delta = delta.plus(header.readdress(&new));
        header.forward(&new);
    }
    if let Ok(mut message) = Icmp::parse_mut(frame, parsed.transport()) {
        message.correct(delta);
    }
}

fn addresses4([a, b, c, d]: [u8; 4], [e, f, g, h]: [u8; 4]) -> u64 {
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// Writes both ports at `frame[transport..]`, and of TCP adds `shift` to the sequence number behind them. Returns what that adds
/// to a checksum over them.
pub(crate) fn write_transport(frame: &mut [u8], transport: usize, flow: &Flow, shift: u32) -> Delta {
    let Some(bytes) = frame.get_mut(transport..).and_then(<[u8]>::first_chunk_mut::<TRANSPORT_BYTES>) else {
        return Delta::default();
    };
    let [a, b, c, d, sequence @ ..] = *bytes;
    let new = match flow {
        Flow::V4(flow) => flow.ports,
        Flow::V6(flow) => flow.ports,
    };
    let old = u32::from_ne_bytes([a, b, c, d]);
    bytes[..4].copy_from_slice(&new.to_ne_bytes());
    let delta = Delta::default().word32(old, new);
    if flow.protocol() != protocol::TCP || shift == 0 {
        return delta;
    }
    let shifted = u32::from_be_bytes(sequence).wrapping_add(shift).to_be_bytes();
    bytes[4..].copy_from_slice(&shifted);
    delta.word32(u32::from_ne_bytes(sequence), u32::from_ne_bytes(shifted))
}
