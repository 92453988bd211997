//! Whether a frame's lengths and checksums are right, by etherparse alone: through tags, extension headers and tunnels.

use etherparse::checksum::Sum16BitWords;
use etherparse::{Icmpv4Slice, Icmpv6Slice, IpNumber, IpSlice, TcpSlice, UdpSlice};

/// The UDP port of GUE.
pub const GUE: u16 = 6080;

/// `Err`: what is wrong, or that etherparse cannot read it.
pub fn verify(frame: &[u8]) -> Result<(), String> {
    let mut rest = frame.get(12..).unwrap_or_default();
    while let [0x81, 0x00, _, _, next @ ..] | [0x88, 0xa8, _, _, next @ ..] = rest {
        rest = next;
    }
    match rest {
        [0x08, 0x00, packet @ ..] | [0x86, 0xdd, packet @ ..] => packet_holds(packet),
        _ => Ok(()),
    }
}

/// The same of an IP packet, which may be followed by padding.
fn packet_holds(bytes: &[u8]) -> Result<(), String> {
    if is_later_fragment6(bytes) {
        return Ok(());
    }
    let ip = IpSlice::from_slice(bytes).map_err(|error| error.to_string())?;
    if let IpSlice::Ipv4(ip) = &ip {
        let sum = Sum16BitWords::new().add_slice(ip.header().slice());
        if sum.ones_complement() != 0 {
            return Err(format!("the header's checksum: {:?}", ip.header()));
        }
    }
    let payload = ip.payload();
    if payload.fragmented {
        return Ok(());
    }
    let bytes = payload.payload;
    match payload.ip_number {
        IpNumber::TCP => tcp_holds(&ip, bytes),
        IpNumber::UDP => udp_holds(&ip, bytes),
        IpNumber::ICMP => {
            // Summed as it lies there: of some types etherparse keeps less than came.
            let icmp = Icmpv4Slice::from_slice(bytes).map_err(|error| error.to_string())?;
            holds("ICMP", 0, Sum16BitWords::new().add_slice(icmp.slice()).ones_complement())
        }
        IpNumber::IPV6_ICMP => {
            let icmp = Icmpv6Slice::from_slice(bytes).map_err(|error| error.to_string())?;
            let IpSlice::Ipv6(ip) = &ip else { return Ok(()) };
            let (source, destination) = (ip.header().source(), ip.header().destination());
            match icmp.is_checksum_valid(source, destination) {
                true => Ok(()),
                false => Err(format!("the checksum of ICMPv6: {icmp:?}")),
            }
        }
        IpNumber::IPV4 | IpNumber::IPV6 => packet_holds(bytes),
        IpNumber::GRE => gre_holds(bytes),
        _ => Ok(()),
    }
}

/// Whether an IPv6 packet is a fragment that is not the first: etherparse would look for extension headers in the middle of them.
fn is_later_fragment6(bytes: &[u8]) -> bool {
    const FRAGMENT: u8 = 44;
    let is_fragment = bytes.len() >= 48 && bytes[0] >> 4 == 6 && bytes[6] == FRAGMENT;
    is_fragment && u16::from_be_bytes([bytes[42], bytes[43]]) & 0xfff8 != 0
}

fn holds(what: &str, given: u16, expected: u16) -> Result<(), String> {
    if given == expected {
        Ok(())
    } else {
        Err(format!("the checksum of {what}: {given:#x} for {expected:#x}"))
    }
}

fn tcp_holds(ip: &IpSlice<'_>, bytes: &[u8]) -> Result<(), String> {
    let tcp = TcpSlice::from_slice(bytes).map_err(|error| error.to_string())?;
    let expected = match ip {
        IpSlice::Ipv4(ip) => tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination()),
        IpSlice::Ipv6(ip) => tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination()),
    };
    holds("TCP", tcp.checksum(), expected.map_err(|error| error.to_string())?)
}

/// GUE is taken off.
fn udp_holds(ip: &IpSlice<'_>, bytes: &[u8]) -> Result<(), String> {
    let udp = UdpSlice::from_slice(bytes).map_err(|error| error.to_string())?;
    if udp.checksum() != 0 {
        let (header, payload) = (udp.to_header(), udp.payload());
        let expected = match ip {
            IpSlice::Ipv4(ip) => {
                header.calc_checksum_ipv4_raw(ip.header().source(), ip.header().destination(), payload)
            }
            IpSlice::Ipv6(ip) => {
                header.calc_checksum_ipv6_raw(ip.header().source(), ip.header().destination(), payload)
            }
        };
        holds("UDP", udp.checksum(), expected.map_err(|error| error.to_string())?)?;
    }
    match udp.payload() {
        [first, protocol, _, _, rest @ ..] if udp.destination_port() == GUE && first >> 5 == 0 => {
            let options = usize::from(first & 0x1f) * 4;
            // What follows remote checksum offload is finished by the receiver.
            match (options, protocol) {
                (0, 4 | 41) => packet_holds(rest),
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// RFC 2784: the checksum is over the header and all behind it.
fn gre_holds(bytes: &[u8]) -> Result<(), String> {
    let [flags, _, high, low, rest @ ..] = bytes else { return Err("a GRE header cut short".into()) };
    let has_checksum = flags & 0x80 != 0;
    let inner = if has_checksum { rest.get(4..).ok_or("a GRE header cut short")? } else { rest };
    let sum = Sum16BitWords::new().add_slice(bytes);
    if has_checksum && sum.ones_complement() != 0 {
        return Err("the checksum of GRE".into());
    }
    match (high, low) {
        (0x08, 0x00) | (0x86, 0xdd) => packet_holds(inner),
        _ => Ok(()),
    }
}
