//! Masquerading: other addresses and ports in the headers, and checksums that follow (the kernel's `ip_vs_nat_xmit`).

use super::partial;
use crate::batch::Packet;
use crate::packet::checksum::Delta;
use crate::packet::ipv4::Ipv4;
use crate::packet::ipv6::Ipv6;
use crate::packet::protocol;
use crate::packet::tcp::Tcp;
use crate::packet::udp::Udp;
use crate::pipeline::Parsed;
use uvs_conntrack::{Flow, Flow4, Flow6};

/// Makes an IPv4 packet of the flow `from` one of the flow `to`, one hop older. Returns whether its checksum was unfinished
/// and is complete now.
#[inline]
pub(crate) fn translate4(packet: &mut Packet<'_>, parsed: &Parsed, from: &Flow4, to: &Flow4) -> bool {
    let frame = packet.frame_mut();
    let unfinished = partial::is_unfinished(frame, parsed);
    let delta = Delta::default().word64(from.addresses, to.addresses);
    if let Ok(mut header) = Ipv4::parse_mut(frame, parsed.network()) {
        header.forward(to.addresses, delta);
    }
    ports(frame, parsed, from.protocol, to.ports, delta.word32(from.ports, to.ports));
    if unfinished {
        partial::finish(packet, parsed, &Flow::V4(*to));
    }
    unfinished
}

/// As [`translate4`], for IPv6.
#[inline]
pub(crate) fn translate6(packet: &mut Packet<'_>, parsed: &Parsed, from: &Flow6, to: &Flow6) -> bool {
    let frame = packet.frame_mut();
    let unfinished = partial::is_unfinished(frame, parsed);
    if let Ok(mut header) = Ipv6::parse_mut(frame, parsed.network()) {
        header.forward(&to.addresses);
    }
    let words = from.addresses.iter().zip(&to.addresses);
    let delta = words.fold(Delta::default(), |delta, (old, new)| delta.word64(*old, *new));
    ports(frame, parsed, from.protocol, to.ports, delta.word32(from.ports, to.ports));
    if unfinished {
        partial::finish(packet, parsed, &Flow::V6(*to));
    }
    unfinished
}

#[inline]
fn ports(frame: &mut [u8], parsed: &Parsed, protocol: u8, ports: u32, delta: Delta) {
    if protocol == protocol::TCP {
        if let Ok(mut tcp) = Tcp::parse_mut(frame, parsed.transport()) {
            tcp.translate(ports, delta);
        }
    } else if let Ok(mut udp) = Udp::parse_mut(frame, parsed.transport()) {
        udp.translate(ports, delta);
    }
}
