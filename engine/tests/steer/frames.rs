//! Frames, header by header, as a sender would put them together.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// An Ethernet frame to one station.
pub(crate) fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An Ethernet frame around an IP packet of either version.
pub(crate) fn frame(packet: &[u8]) -> Vec<u8> {
    ethernet(if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd }, packet)
}

/// Puts a VLAN tag of this kind (0x8100 or 0x88a8) into a frame, in front of tags that it has.
pub(crate) fn tagged(kind: u16, mut frame: Vec<u8>) -> Vec<u8> {
    let [a, b] = kind.to_be_bytes();
    frame.splice(12..12, [a, b, 0, 100]);
    frame
}

/// A TCP or UDP segment without payload. Checksums are zero: steering does not look at them.
pub(crate) fn segment(protocol: u8, source: u16, destination: u16) -> Vec<u8> {
    let mut segment = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    segment.resize(if protocol == TCP { 20 } else { 8 }, 0);
    segment
}

/// An IPv4 packet. `fragment` is the field of flags and offset; `options` are of whole words.
pub(crate) fn ipv4(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    fragment: u16,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let words = u8::try_from(5 + options.len() / 4).unwrap();
    let length = u16::try_from(20 + options.len() + payload.len()).unwrap();
    let mut packet = vec![0x40 | words, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0x12, 0x34]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(options);
    packet.extend(payload);
    packet
}

/// An IPv6 packet whose first header after the fixed one is `next`.
pub(crate) fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    packet
}

/// A whole packet between two sockets.
pub(crate) fn packet(protocol: u8, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let segment = segment(protocol, source.port(), destination.port());
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            ipv4(source, destination, protocol, 0x4000, &[], &segment)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => ipv6(source, destination, protocol, &segment),
        _ => panic!("one packet, two families"),
    }
}
