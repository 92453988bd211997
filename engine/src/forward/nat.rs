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
use uvs_conntrack::Flow;

/// Makes the packet one of the flow `to`, one hop older. Returns whether its checksum was unfinished and is complete now.
#[inline]
pub(crate) fn translate(packet: &mut Packet<'_>, parsed: &Parsed, to: &Flow) -> bool {
    let unfinished = partial::is_unfinished(packet.frame(), parsed);
    let frame = packet.frame_mut();
    match (&parsed.flow, to) {
        (Flow::V4(from), Flow::V4(to)) => {
            if let Ok(mut header) = Ipv4::parse_mut(frame, parsed.network) {
                header.forward(to.addresses);
            }
            let delta = Delta::default().word64(from.addresses, to.addresses);
            ports(frame, parsed, to.protocol, to.ports, delta.word32(from.ports, to.ports));
        }
        (Flow::V6(from), Flow::V6(to)) => {
            if let Ok(mut header) = Ipv6::parse_mut(frame, parsed.network) {
                header.forward(&to.addresses);
            }
            let words = from.addresses.iter().zip(&to.addresses);
            let delta = words.fold(Delta::default(), |delta, (old, new)| delta.word64(*old, *new));
            ports(frame, parsed, to.protocol, to.ports, delta.word32(from.ports, to.ports));
        }
        // The table never joins flows of two families by masquerading: a real server has its service's.
        _ => {}
    }
    if unfinished {
        partial::finish(packet, parsed, to);
    }
    unfinished
}

#[inline]
fn ports(frame: &mut [u8], parsed: &Parsed, protocol: u8, ports: u32, delta: Delta) {
    if protocol == protocol::TCP {
        if let Ok(mut tcp) = Tcp::parse_mut(frame, parsed.transport) {
            tcp.translate(ports, delta);
        }
    } else if let Ok(mut udp) = Udp::parse_mut(frame, parsed.transport) {
        udp.translate(ports, delta);
    }
}
