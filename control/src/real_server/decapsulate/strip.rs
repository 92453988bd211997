//! What a packet in a tunnel is, without the tunnel.

use std::net::IpAddr;
use uvs_engine::packet::checksum::{Delta, Sum};
use uvs_engine::packet::gre::Gre;
use uvs_engine::packet::gue::{self, Gue, RemoteChecksum};
use uvs_engine::packet::ipv4::{self, Ipv4};
use uvs_engine::packet::ipv6::{self, Ipv6};
use uvs_engine::packet::{ethernet, protocol};

/// What is around a packet, behind the outer IP header (and the outer UDP header of GUE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrapped {
    /// Nothing.
    Ip,
    /// A GRE header.
    Gre,
    /// A GUE header.
    Gue,
}

/// The packet inside `bytes`, if it is whole, and one for an address that `allowed` accepts. `class` is the outer traffic class:
/// congestion that the outer packet met is carried over (RFC 6040 §4.2).
pub(super) fn strip(
    wrapped: Wrapped,
    bytes: &mut [u8],
    class: u8,
    mut allowed: impl FnMut(IpAddr) -> bool,
) -> Option<&[u8]> {
    let (start, finish) = match wrapped {
        Wrapped::Ip => (0, None),
        Wrapped::Gre => (gre_header(bytes)?, None),
        Wrapped::Gue => gue_header(bytes)?,
    };
    let (destination, length) = inner(&bytes[start..])?;
    if !allowed(destination) {
        return None;
    }
    let packet = &mut bytes[start..start + length];
    if let Some(remote) = finish {
        finish_checksum(packet, remote)?;
    }
    carry_congestion(packet, class)?;
    Some(packet)
}

/// Length of a GRE header in front of an IP packet; its checksum, if it has one, is right (RFC 2784 §2.3).
fn gre_header(bytes: &[u8]) -> Option<usize> {
    let header = Gre::parse(bytes, 0).ok()?;
    if header.has_checksum() && Sum::of(bytes).fold() != 0xffff {
        return None;
    }
    let version = bytes.get(header.header_len())? >> 4;
    let fits = matches!((header.protocol(), version), (ethernet::IPV4, 4) | (ethernet::IPV6, 6));
    fits.then_some(header.header_len())
}

/// Length of a GUE header in front of an IP packet, and a checksum left to be done.
fn gue_header(bytes: &[u8]) -> Option<(usize, Option<RemoteChecksum>)> {
    let header = Gue::parse(bytes, 0).ok()?;
    let length = header.header_len();
    let remote = header.remote_checksum(&bytes[gue::HEADER_LEN..length]).ok()?;
    let version = bytes.get(length)? >> 4;
    let fits = matches!((header.protocol(), version), (protocol::IPV4, 4) | (protocol::IPV6, 6));
    fits.then_some((length, remote))
}

/// Whom an IP packet is for, and its length. It comes from somebody who can be answered.
fn inner(bytes: &[u8]) -> Option<(IpAddr, usize)> {
    let (source, destination, length): (IpAddr, IpAddr, usize) = match bytes.first()? >> 4 {
        4 => {
            let header = Ipv4::parse(bytes, 0).ok()?;
            (header.source().into(), header.destination().into(), header.total_len())
        }
        6 => {
            let header = Ipv6::parse(bytes, 0).ok()?;
            (header.source().into(), header.destination().into(), ipv6::HEADER_LEN + header.payload_len())
        }
        _ => return None,
    };
    let answerable = !(source.is_loopback() || source.is_multicast() || source.is_unspecified());
    (answerable && source != destination && length <= bytes.len()).then_some((destination, length))
}

/// Does the checksum that the sender left: its field holds the sum of the pseudo-header.
fn finish_checksum(packet: &mut [u8], remote: RemoteChecksum) -> Option<()> {
    let RemoteChecksum { start, field } = remote;
    let least = if packet[0] >> 4 == 4 { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
    if start < least || field < start {
        return None;
    }
    let checksum = Sum::of(packet.get(start..)?).checksum();
    packet.get_mut(field..field + 2)?.copy_from_slice(&checksum.to_ne_bytes());
    Some(())
}

const ECN: u8 = 0b11;

/// Marks the packet when the outer one was marked. None: it does not know ECN, and the loss has to tell.
fn carry_congestion(packet: &mut [u8], class: u8) -> Option<()> {
    if class & ECN != ECN {
        return Some(());
    }
    if packet[0] >> 4 == 4 {
        let (old, mark) = (packet[1], packet[1] | ECN);
        if old & ECN == 0 {
            return None;
        }
        let word = |low| u16::from_ne_bytes([packet[0], low]);
        let delta = Delta::default().word16(word(old), word(mark));
        let field = delta.apply(u16::from_ne_bytes([packet[10], packet[11]]));
        packet[ipv4::field::CHECKSUM].copy_from_slice(&field.to_ne_bytes());
        packet[1] = mark;
    } else {
        let mut header = Ipv6::parse_mut(packet, 0).ok()?;
        let old = header.traffic_class();
        if old & ECN == 0 {
            return None;
        }
        header.set_traffic_class(old | ECN);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv4 UDP packet from 192.0.2.1 to 192.0.2.80, its traffic class as given.
    fn packet(class: u8) -> Vec<u8> {
        let mut bytes = vec![0; 20];
        Ipv4::parse_mut(&mut bytes, 0).unwrap().write(&ipv4::Header {
            tos: class,
            id: 7,
            dont_fragment: true,
            ttl: 63,
            protocol: 17,
            source: [192, 0, 2, 1].into(),
            destination: [192, 0, 2, 80].into(),
            payload: 12,
        });
        bytes.extend([0x9c, 0x40, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4]);
        bytes
    }

    fn vip(address: IpAddr) -> bool {
        address == IpAddr::from([192, 0, 2, 80])
    }

    fn with(header: &[u8], packet: &[u8]) -> Vec<u8> {
        [header, packet].concat()
    }

    #[test]
    fn takes_off_what_is_around() {
        let inside = packet(0);
        let mut summed = with(&[0x80, 0, 8, 0, 0, 0, 0, 0], &inside);
        let sum = Sum::of(&summed).checksum().to_ne_bytes();
        summed[4..6].copy_from_slice(&sum);
        for (what, wrapped, bytes) in [
            ("nothing", Wrapped::Ip, inside.clone()),
            ("padding behind it", Wrapped::Ip, with(&inside, &[0xee; 3])),
            ("GRE", Wrapped::Gre, with(&[0, 0, 8, 0], &inside)),
            ("GRE with a checksum", Wrapped::Gre, summed),
            ("GUE", Wrapped::Gue, with(&[0, 4, 0, 0], &inside)),
        ] {
            let mut bytes = bytes;
            assert_eq!(strip(wrapped, &mut bytes, 0, vip), Some(&inside[..]), "{what}");
        }
    }

    #[test]
    fn refuses() {
        let inside = packet(0);
        let mut other = inside.clone();
        other[19] = 81;
        let mut itself = inside.clone();
        itself[15] = 80;
        for (what, wrapped, bytes) in [
            ("another address", Wrapped::Ip, other),
            ("a packet from the address itself", Wrapped::Ip, itself),
            ("a packet cut short", Wrapped::Ip, inside[..31].to_vec()),
            ("nothing at all", Wrapped::Ip, Vec::new()),
            ("a wrong checksum", Wrapped::Gre, with(&[0x80, 0, 8, 0, 1, 2, 0, 0], &inside)),
            ("IPv6 announced", Wrapped::Gre, with(&[0, 0, 0x86, 0xdd], &inside)),
            ("a key", Wrapped::Gre, with(&[0x20, 0, 8, 0, 0, 0, 0, 1], &inside)),
            ("IPv6 announced by GUE", Wrapped::Gue, with(&[0, 41, 0, 0], &inside)),
            ("a control message", Wrapped::Gue, with(&[0x20, 4, 0, 0], &inside)),
            ("a header alone", Wrapped::Gue, vec![0, 4, 0, 0]),
        ] {
            let mut bytes = bytes;
            assert_eq!(strip(wrapped, &mut bytes, 0, vip), None, "{what}");
        }
    }

    #[test]
    fn does_a_checksum_that_was_left() {
        let mut inside = packet(0);
        // The field holds the sum of the pseudo-header.
        let pseudo = Sum::pseudo4_of([192, 0, 2, 1].into(), [192, 0, 2, 80].into(), 17, 12);
        inside[26..28].copy_from_slice(&pseudo.fold().to_ne_bytes());
        let header = [2, 4, 0, 1, 0x80, 0, 0, 0, 0, 20, 0, 26];
        let mut bytes = with(&header, &inside);
        let out = strip(Wrapped::Gue, &mut bytes, 0, vip).unwrap();
        assert_eq!(pseudo.plus(Sum::of(&out[20..])).fold(), 0xffff);
        for (what, start, field) in
            [("in the IP header", 12, 26), ("before the sum", 24, 20), ("beyond the end", 20, 31)]
        {
            let mut bytes = with(&[2, 4, 0, 1, 0x80, 0, 0, 0, 0, start, 0, field], &inside);
            assert_eq!(strip(Wrapped::Gue, &mut bytes, 0, vip), None, "{what}");
        }
    }

    #[test]
    fn carries_congestion_over() {
        for (inside, outside, expected) in [
            (0, 0, Some(0)),
            (2, 2, Some(2)),
            (2, 3, Some(3)),
            (1, 3, Some(3)),
            (3, 0, Some(3)),
            (0, 3, None),
        ] {
            let mut bytes = packet(0xb8 | inside);
            let out = strip(Wrapped::Ip, &mut bytes, 0x10 | outside, vip);
            assert_eq!(out, expected.map(|ecn| packet(0xb8 | ecn)).as_deref(), "{inside} in {outside}");
        }
        let mut bytes = vec![0; 48];
        let (a, b) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        Ipv6::parse_mut(&mut bytes, 0).unwrap().emit(a, b, 17, 63, 8);
        Ipv6::parse_mut(&mut bytes, 0).unwrap().set_traffic_class(0xb9);
        let out = strip(Wrapped::Ip, &mut bytes, 3, |_| true).unwrap();
        assert_eq!(Ipv6::parse(out, 0).unwrap().traffic_class(), 0xbb);
    }
}
