//! Headers cut short, headers that contradict each other, checksums that are wrong or not there.

use super::Fate::{Dropped, Forwarded};
use super::director::edit::{LINK, is_v4, lengthen, seal, with_extensions, with_options};
use super::*;

/// Padding of eight bytes among extension headers (RFC 8200 §4.2).
const PADDING: (u8, &[u8]) = (60, &[0, 1, 4, 0, 0, 0, 0]);

/// Every length up to the whole frame, of frames with and without what may stand before a transport header.
pub(crate) fn truncated() -> Vec<Row> {
    /// What it is, over which versions, with which tags, and what is done to the bytes.
    type Kind<'a> = (&'a str, &'static [usize], &'a [(u16, u16)], fn(Vec<u8>) -> Vec<u8>);
    let kinds: [Kind<'_>; 5] = [
        ("plain", BOTH, &[], |bytes| bytes),
        ("tagged", BOTH, &[(0x8100, 5)], |bytes| bytes),
        ("tagged twice", BOTH, &[(0x88a8, 5), (0x8100, 6)], |bytes| bytes),
        ("with options", V4, &[], |bytes| with_options(bytes, &[1; 40])),
        ("with extension headers", V6, &[], |bytes| with_extensions(bytes, &[PADDING, PADDING])),
    ];
    let mut rows = vec![];
    for (what, versions, tags, make) in kinds {
        for protocol in [TCP, UDP] {
            let lengths = versions.iter().map(|version| {
                make(Frame::from_client(&plans()[*version], protocol, SYN).bytes()).len() + 4 * tags.len()
            });
            for missing in 1..=lengths.max().unwrap() {
                let of = format!("{what}, {missing} bytes missing");
                let row = Row::new(of, versions, (protocol, SYN), Dropped(Reason::Truncated)).once();
                rows.push(Row { tags: tags.to_vec(), missing, ..row.bytes(make) });
            }
        }
    }
    // Every header has to lie in a frame's first part: the link sees to that.
    for first in [14, 34, 40] {
        let what = format!("a first part of {first} bytes");
        let row = Row::new(what, BOTH, (TCP, SYN), Dropped(Reason::Truncated)).once();
        rows.push(Row { cuts: vec![first], ..row });
    }
    rows
}

/// Sets one byte of the network header; the IPv4 header's checksum follows.
fn network(at: usize, value: u8) -> impl Fn(Vec<u8>) -> Vec<u8> {
    move |mut bytes| {
        bytes[LINK + at] = value;
        if is_v4(&bytes) && bytes[LINK] & 0xf == 5 {
            seal(&mut bytes);
        }
        bytes
    }
}

/// Sets one byte of the transport header.
fn transport(at: usize, value: u8) -> impl Fn(Vec<u8>) -> Vec<u8> {
    move |mut bytes| {
        let header = LINK + if is_v4(&bytes) { 20 } else { 40 };
        bytes[header + at] = value;
        bytes
    }
}

/// Version, header length, total length, data offset, UDP's length.
pub(crate) fn lengths() -> Vec<Row> {
    const SEGMENT: (u8, u8) = (TCP, SYN);
    const DATAGRAM: (u8, u8) = (UDP, 0);
    let malformed = |what, versions, packet| Row::new(what, versions, packet, Dropped(Reason::Malformed));
    let truncated = |what, versions, packet| Row::new(what, versions, packet, Dropped(Reason::Truncated));
    let forwarded = |what, versions, packet| Row::new(what, versions, packet, Forwarded);
    let longer = |bytes| {
        move |mut frame: Vec<u8>| {
            lengthen(&mut frame, bytes);
            frame
        }
    };
    let padded = |bytes| {
        move |mut frame: Vec<u8>| {
            frame.resize(frame.len() + bytes, 0xee);
            frame
        }
    };
    vec![
        malformed("IPv4 by EtherType, version 6", V4, SEGMENT).bytes(network(0, 0x65)),
        malformed("IPv6 by EtherType, version 4", V6, SEGMENT).bytes(network(0, 0x45)),
        malformed("no IPv4 header length", V4, SEGMENT).bytes(network(0, 0x40)),
        malformed("an IPv4 header of four words", V4, SEGMENT).bytes(network(0, 0x44)),
        malformed("an IPv4 header longer than its packet", V4, DATAGRAM).bytes(network(0, 0x4f)),
        malformed("a total length of nothing", V4, SEGMENT).bytes(|mut bytes| {
            bytes[LINK + 2] = 0;
            network(3, 0)(bytes)
        }),
        malformed("a total length of 19", V4, SEGMENT).bytes(network(3, 19)),
        truncated("a total length without a transport header", V4, SEGMENT).bytes(network(3, 39)),
        truncated("a payload length of nothing", V6, SEGMENT).bytes(network(5, 0)),
        truncated("a payload length without a whole transport header", V6, SEGMENT).bytes(network(5, 19)),
        truncated("a packet that goes on behind the frame", BOTH, SEGMENT).bytes(longer(1)),
        truncated("a packet of 64 KiB in a frame of less", BOTH, DATAGRAM).bytes(longer(65_000)),
        forwarded("a frame padded to Ethernet's 60 bytes", BOTH, SEGMENT).bytes(padded(5)),
        forwarded("a frame padded much", BOTH, DATAGRAM).bytes(padded(300)),
        malformed("a TCP header of no words", BOTH, SEGMENT).bytes(transport(12, 0)),
        malformed("a TCP header of four words", BOTH, SEGMENT).bytes(transport(12, 0x40)),
        malformed("a TCP header beyond the segment", BOTH, SEGMENT).bytes(transport(12, 0xf0)),
        malformed("a UDP length of nothing", BOTH, DATAGRAM).bytes(transport(5, 0)),
        malformed("a UDP length of seven", BOTH, DATAGRAM).bytes(transport(5, 7)),
        malformed("a UDP length beyond the packet", BOTH, DATAGRAM).bytes(transport(5, 20)),
        // What follows the datagram within the packet goes with it and counts in no checksum.
        forwarded("a UDP length below the packet's", BOTH, DATAGRAM)
            .bytes(move |bytes| longer(6)(padded(6)(bytes))),
    ]
}

/// Of IPv4 headers, which the kernel verifies before IPVS sees them, and of UDP, which may go without.
pub(crate) fn checksums() -> Vec<Row> {
    let wrong = |what: String| Row::new(what, V4, (TCP, SYN), Dropped(Reason::BadChecksum));
    // The identification, which nothing else depends on; the checksum itself; the time to live.
    let mut rows = vec![];
    for at in [4, 5, 8, 10, 11] {
        let damage = move |mut bytes: Vec<u8>| {
            bytes[LINK + at] ^= 0x10;
            bytes
        };
        rows.push(wrong(format!("byte {at} of the IPv4 header wrong")).bytes(damage));
        rows.push(
            wrong(format!("byte {at} wrong, with options"))
                .bytes(move |bytes| damage(with_options(bytes, &[1; 4]))),
        );
        let tagged = wrong(format!("byte {at} wrong, tagged")).bytes(damage);
        rows.push(Row { tags: vec![(0x8100, 7)], ..tagged });
    }
    // IPVS leaves UDP without a checksum as it came, over IPv6 (RFC 6936) too.
    rows.push(Row::new("UDP without a checksum", BOTH, (UDP, 0), Forwarded).bytes(|mut bytes| {
        let header = LINK + if is_v4(&bytes) { 20 } else { 40 };
        bytes[header + 6..header + 8].fill(0);
        bytes
    }));
    rows
}
