//! ICMP errors of the director's own: the answer is built in the buffer of the packet that it answers.

use super::{partial, quoted};
use crate::batch::Packet;
use crate::packet::checksum::Sum;
use crate::packet::ethernet::Ethernet;
use crate::packet::icmp::{self, Icmp, Kind};
use crate::packet::ipv4::{self, Ipv4};
use crate::packet::ipv6::{self, Ipv6};
use crate::packet::{Error, protocol};
use crate::pipeline::{self, Parsed};
use crate::verdict::Verdict;
use std::cell::Cell;
use std::net::IpAddr;
use uvs_conntrack::{Flow, Tick};

/// An error to report to a packet's sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// Nobody takes connections there.
    PortUnreachable,
    /// No route leads there.
    NoRoute,
    /// The next hop does not answer.
    NoAnswer,
    /// The packet travelled too far.
    TimeExceeded,
    /// The packet is longer than the next link's MTU and must not be fragmented.
    TooBig(u32),
    /// What another router reported, and the four bytes that it put behind the checksum.
    Passed(Kind, u32),
}

impl Report {
    fn message(self, v4: bool) -> Kind {
        match (self, v4) {
            (Report::PortUnreachable, true) => icmp::v4::PORT_UNREACHABLE,
            (Report::PortUnreachable, false) => icmp::v6::PORT_UNREACHABLE,
            (Report::NoRoute | Report::NoAnswer, true) => icmp::v4::HOST_UNREACHABLE,
            (Report::NoRoute | Report::NoAnswer, false) => icmp::v6::ADDRESS_UNREACHABLE,
            (Report::TimeExceeded, true) => icmp::v4::TIME_EXCEEDED,
            (Report::TimeExceeded, false) => icmp::v6::TIME_EXCEEDED,
            (Report::TooBig(_), true) => icmp::v4::FRAGMENTATION_NEEDED,
            (Report::TooBig(_), false) => icmp::v6::PACKET_TOO_BIG,
            (Report::Passed(kind, _), _) => kind,
        }
    }

    fn word(self) -> u32 {
        match self {
            Report::TooBig(word) | Report::Passed(_, word) => word,
            Report::PortUnreachable | Report::NoRoute | Report::NoAnswer | Report::TimeExceeded => 0,
        }
    }
}

/// Longest ICMP error over IPv4, in bytes (RFC 1812 §4.3.2.3).
const MAX_LEN_V4: usize = 576;
/// Longest ICMPv6 error, in bytes (RFC 4443 §2.4 c).
const MAX_LEN_V6: usize = 1280;
/// TTL or hop limit of a report.
const TTL: u8 = 64;

/// Type of service of a report: internetwork control (RFC 1812 §4.3.2.5). As in Linux, only IPv4 has it.
const TOS: u8 = 0xc0;

/// Turns the packet into a report to its sender, from the address `from` of its family, back the way it came. The frame is
/// spoilt when this fails (no headroom); it is dropped anyway.
///
/// A packet that was to go on is quoted one hop older, as IPVS does; one that dies of its age, or finds nobody, as it came.
pub(crate) fn report(
    packet: &mut Packet<'_>,
    parsed: &Parsed,
    report: Report,
    from: IpAddr,
) -> Result<Verdict, Error> {
    partial::complete(packet, parsed);
    // What an error of somebody else quotes has its age already.
    if parsed.kind != pipeline::Kind::Error && matches!(report, Report::TooBig(_) | Report::NoAnswer) {
        quoted::age(packet.frame_mut(), parsed);
    }
    let (header, max) = match parsed.flow {
        Flow::V4(_) => (ipv4::HEADER_LEN, MAX_LEN_V4),
        Flow::V6(_) => (ipv6::HEADER_LEN, MAX_LEN_V6),
    };
    let added = header + icmp::HEADER_LEN;
    packet.truncate(parsed.network() + parsed.packet_len().min(max - added));
    if !packet.grow_front(added) {
        return Err(Error::Truncated);
    }
    let frame = packet.frame_mut();
    frame.copy_within(added..added + parsed.network(), 0);
    let mut ethernet = Ethernet::parse_mut(frame)?;
    let (asker, own) = (ethernet.source(), ethernet.destination());
    ethernet.set_addresses(asker, own);

    let start = parsed.network() + header;
    let v4 = matches!(parsed.flow, Flow::V4(_));
    Icmp::parse_mut(frame, start)?.emit(report.message(v4), report.word());
    let length = frame.len() - start;
    let sum = Sum::of(&frame[start..]);
    let payload = u16::try_from(length).map_err(|_| Error::Malformed)?;
    let sum = match (parsed.flow, from) {
        (Flow::V4(flow), IpAddr::V4(from)) => {
            let mut ip = Ipv4::parse_mut(frame, parsed.network())?;
            ip.emit(from, flow.source(), protocol::ICMP, TTL, payload);
            ip.set_tos(TOS);
            sum
        }
        (Flow::V6(flow), IpAddr::V6(from)) => {
            let mut ip = Ipv6::parse_mut(frame, parsed.network())?;
            ip.emit(from, flow.source(), protocol::ICMPV6, TTL, payload);
            sum.plus(Sum::pseudo6_of(from, flow.source(), protocol::ICMPV6, u32::from(payload)))
        }
        _ => return Err(Error::Malformed),
    };
    Icmp::parse_mut(frame, start)?.set_checksum(sum.checksum());
    Ok(Verdict::Transmit(packet.port()))
}

/// Bounds the reports a worker sends, as the kernel does (`icmp_msgs_per_sec`, `icmp_msgs_burst`).
#[derive(Debug)]
pub(crate) struct Limiter {
    tokens: Cell<u32>,
    refilled: Cell<Tick>,
}

/// Reports per tick of 10 ms: 1,000 in a second.
const PER_TICK: u32 = 10;
/// Reports at once.
const BURST: u32 = 50;

impl Default for Limiter {
    fn default() -> Self {
        Limiter { tokens: Cell::new(BURST), refilled: Cell::default() }
    }
}

impl Limiter {
    /// Whether another report may be sent now.
    pub(crate) fn allows(&self, now: Tick) -> bool {
        let ticks = now.since(self.refilled.replace(now)).unsigned_abs();
        let tokens = ticks.saturating_mul(PER_TICK).saturating_add(self.tokens.get()).min(BURST);
        let allowed = tokens > 0;
        self.tokens.set(tokens - u32::from(allowed));
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_rationed() {
        let limiter = Limiter::default();
        let sent = |limiter: &Limiter, now| (0..1000).filter(|_| limiter.allows(Tick(now))).count();
        assert_eq!(sent(&limiter, 0), 50);
        assert_eq!(sent(&limiter, 1), 10);
        assert_eq!(sent(&limiter, 3), 20);
        assert_eq!(sent(&limiter, 1000), 50);
    }
}
