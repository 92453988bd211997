//! Direct routing: the packet goes to the real server's link-layer address, one hop older, otherwise as it came (the
//! kernel's `ip_vs_dr_xmit`).

use super::partial;
use crate::batch::Packet;
use crate::packet::checksum::Delta;
use crate::packet::ipv4::Ipv4;
use crate::packet::ipv6::Ipv6;
use crate::pipeline::Parsed;
use uvs_conntrack::Flow;

/// Ages the packet by one hop. Returns whether its checksum was unfinished and is complete now.
#[inline]
pub(crate) fn pass(packet: &mut Packet<'_>, parsed: &Parsed) -> bool {
    let frame = packet.frame_mut();
    match &parsed.flow {
        Flow::V4(flow) => {
            if let Ok(mut header) = Ipv4::parse_mut(frame, parsed.network()) {
                header.forward(flow.addresses, Delta::default());
            }
        }
        Flow::V6(flow) => {
            if let Ok(mut header) = Ipv6::parse_mut(frame, parsed.network()) {
                header.forward(&flow.addresses);
            }
        }
    }
    partial::complete(packet, parsed)
}
