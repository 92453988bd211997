//! What no crate that builds packets would write: frames changed byte by byte, with sums that are right all the same.

use super::{TCP, UDP};

/// Length of an Ethernet header without a tag.
pub const LINK: usize = 14;

/// The sum of 16-bit words, folded (RFC 1071); an odd byte at the end is a word's first.
fn sum(bytes: impl IntoIterator<Item = u8>) -> u16 {
    let bytes: Vec<u8> = bytes.into_iter().collect();
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
}

/// Writes the checksum of an untagged frame's IPv4 header anew.
pub fn seal(frame: &mut [u8]) {
    let end = LINK + usize::from(frame[LINK] & 0xf) * 4;
    frame[LINK + 10..LINK + 12].fill(0);
    let sum = !sum(frame[LINK..end].iter().copied());
    frame[LINK + 10..LINK + 12].copy_from_slice(&sum.to_be_bytes());
}

/// Writes the transport checksum of an untagged TCP or UDP frame without options of IP anew.
pub fn resum(frame: &mut [u8]) {
    let (addresses, transport, protocol) = if is_v4(frame) {
        (LINK + 12..LINK + 20, LINK + 20, frame[LINK + 9])
    } else {
        (LINK + 8..LINK + 40, LINK + 40, frame[LINK + 6])
    };
    let at = transport + if protocol == TCP { 16 } else { 6 };
    frame[at..at + 2].fill(0);
    let length = u16::try_from(frame.len() - transport).unwrap().to_be_bytes();
    let pseudo = frame[addresses].iter().copied().chain([0, protocol]).chain(length);
    let sum = !sum(pseudo.chain(frame[transport..].iter().copied()));
    let sum = if protocol == UDP && sum == 0 { 0xffff } else { sum };
    frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

pub fn is_v4(frame: &[u8]) -> bool {
    frame[12..14] == [8, 0]
}

/// Adds to what the IP header says of the packet's length.
pub fn lengthen(frame: &mut [u8], bytes: i32) {
    let at = LINK + if is_v4(frame) { 2 } else { 4 };
    let length = i32::from(u16::from_be_bytes([frame[at], frame[at + 1]])) + bytes;
    frame[at..at + 2].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
    if is_v4(frame) && frame[LINK] & 0xf >= 5 {
        seal(frame);
    }
}

/// Puts options, a multiple of four bytes, behind an IPv4 header that has none.
pub fn with_options(mut frame: Vec<u8>, options: &[u8]) -> Vec<u8> {
    frame.splice(LINK + 20..LINK + 20, options.iter().copied());
    frame[LINK] += u8::try_from(options.len() / 4).unwrap();
    lengthen(&mut frame, i32::try_from(options.len()).unwrap());
    frame
}

/// Puts extension headers between an IPv6 header and what follows. Each is a type and its bytes from the length on.
pub fn with_extensions(mut frame: Vec<u8>, headers: &[(u8, &[u8])]) -> Vec<u8> {
    let mut next = frame[LINK + 6];
    for (kind, body) in headers.iter().rev() {
        let header = std::iter::once(next).chain(body.iter().copied());
        frame.splice(LINK + 40..LINK + 40, header);
        lengthen(&mut frame, i32::try_from(body.len() + 1).unwrap());
        next = *kind;
    }
    frame[LINK + 6] = next;
    frame
}

/// Puts options, a multiple of four bytes, behind a TCP header that has none.
pub fn with_tcp_options(mut frame: Vec<u8>, options: &[u8]) -> Vec<u8> {
    let transport = LINK + if is_v4(&frame) { 20 } else { 40 };
    frame.splice(transport + 20..transport + 20, options.iter().copied());
    frame[transport + 12] += u8::try_from(options.len() / 4).unwrap() << 4;
    lengthen(&mut frame, i32::try_from(options.len()).unwrap());
    resum(&mut frame);
    frame
}

/// Puts tags, the outermost first, before what the frame carries: EtherType and VLAN of each.
pub fn tagged(mut frame: Vec<u8>, tags: &[(u16, u16)]) -> Vec<u8> {
    let tags = tags.iter().flat_map(|(kind, id)| [kind.to_be_bytes(), id.to_be_bytes()].concat());
    frame.splice(12..12, tags.collect::<Vec<u8>>());
    frame
}

/// A fragment of an IPv4 frame, from one place in its payload to another.
pub fn piece(whole: &[u8], from: usize, to: usize) -> Vec<u8> {
    let mut piece = whole[..34].to_vec();
    let more = 34 + to < whole.len();
    piece.extend(&whole[34 + from..(34 + to).min(whole.len())]);
    let length = u16::try_from(piece.len() - 14).unwrap();
    piece[16..18].copy_from_slice(&length.to_be_bytes());
    piece[18..20].copy_from_slice(&77_u16.to_be_bytes());
    let word = u16::try_from(from / 8).unwrap() | if more { 0x2000 } else { 0 };
    piece[20..22].copy_from_slice(&word.to_be_bytes());
    uvs_engine::packet::ipv4::finish(&mut piece, 14).unwrap();
    piece
}
