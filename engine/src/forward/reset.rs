//! TCP's own way to say that nobody takes a connection: the answer is built in the buffer of the segment that it answers.

use crate::batch::Packet;
use crate::packet::checksum::Sum;
use crate::packet::ethernet::Ethernet;
use crate::packet::ipv4::{self, Ipv4};
use crate::packet::ipv6::{self, Ipv6};
use crate::packet::tcp::{self, Tcp, flag};
use crate::packet::{Error, protocol};
use crate::pipeline::Parsed;
use crate::verdict::Verdict;
use uvs_conntrack::Flow;

/// TTL or hop limit of an answer.
const TTL: u8 = 64;

/// Length of an answer without its IP header, in bytes.
const LENGTH: u16 = 20;

/// Turns a segment into a reset of its connection (RFC 9293 §3.10.7.1), from whom it was for, back the way it came.
pub(crate) fn answer(packet: &mut Packet<'_>, parsed: &Parsed) -> Result<Verdict, Error> {
    let network = parsed.network();
    let segment = Tcp::parse(packet.frame(), parsed.transport(), parsed.transport_len())?;
    let payload =
        u32::try_from(parsed.transport_len() - segment.header_len()).map_err(|_| Error::Malformed)?;
    let bit = |flag: u8| u32::from(segment.flags() & flag != 0);
    let (sequence, acknowledgement, flags) = if segment.flags() & flag::ACK != 0 {
        (segment.acknowledgement(), 0, flag::RST)
    } else {
        let length = payload + bit(flag::SYN) + bit(flag::FIN);
        (0, segment.sequence().wrapping_add(length), flag::RST | flag::ACK)
    };
    let (header_len, to) = match parsed.flow {
        Flow::V4(_) => (ipv4::HEADER_LEN, parsed.flow.reversed()),
        Flow::V6(_) => (ipv6::HEADER_LEN, parsed.flow.reversed()),
    };
    let start = network + header_len;
    packet.truncate(start + tcp::HEADER_LEN);
    let frame = packet.frame_mut();
    let mut ethernet = Ethernet::parse_mut(frame)?;
    let (asker, own) = (ethernet.source(), ethernet.destination());
    ethernet.set_addresses(asker, own);
    let pseudo = match &to {
        Flow::V4(to) => {
            let mut ip = Ipv4::parse_mut(frame, network)?;
            ip.emit(to.source(), to.destination(), protocol::TCP, TTL, LENGTH);
            Sum::pseudo4_of(to.source(), to.destination(), protocol::TCP, LENGTH)
        }
        Flow::V6(to) => {
            let mut ip = Ipv6::parse_mut(frame, network)?;
            ip.emit(to.source(), to.destination(), protocol::TCP, TTL, LENGTH);
            Sum::pseudo6_of(to.source(), to.destination(), protocol::TCP, LENGTH.into())
        }
    };
    Tcp::parse_mut(frame, start)?.emit(ports(&to), sequence, acknowledgement, flags);
    let sum = pseudo.plus(Sum::of(&frame[start..]));
    Tcp::parse_mut(frame, start)?.set_checksum(sum.checksum());
    Ok(Verdict::Transmit(packet.port()))
}

fn ports(flow: &Flow) -> u32 {
    match flow {
        Flow::V4(flow) => flow.ports,
        Flow::V6(flow) => flow.ports,
    }
}
