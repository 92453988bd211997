//! The header of the PROXY protocol (HAProxy's `proxy-protocol.txt`, versions 1 and 2): who talks to whom, before the first
//! byte of a connection.

use super::protocol;
use arrayvec::ArrayVec;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};

/// The longest header, in bytes (§2.1: 107 with CR and LF).
pub const MAX_LEN: usize = 107;

/// A header of version 2 begins like this (§2.2).
pub const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A line of text. TCP only.
    One,
    /// Bytes. Over UDP padded to a multiple of eight, which is what fragments are counted in.
    Two,
}

/// What an address of a header is before it has a port.
const LEAST_OF_V2: usize = 16;

/// The header that tells of `source` talking to `destination`, both of one IP version, by this IP protocol.
pub fn header(
    version: Version,
    protocol: u8,
    source: SocketAddr,
    destination: SocketAddr,
) -> ArrayVec<u8, MAX_LEN> {
    let mut header = ArrayVec::new();
    match version {
        Version::One => {
            let family = if source.is_ipv4() { 4 } else { 6 };
            let (from, to) = (source.ip(), destination.ip());
            let (from_port, to_port) = (source.port(), destination.port());
            let _it_fits = write!(header, "PROXY TCP{family} {from} {to} {from_port} {to_port}\r\n");
        }
        Version::Two => binary(&mut header, protocol, source, destination),
    }
    header
}

fn binary(header: &mut ArrayVec<u8, MAX_LEN>, protocol: u8, source: SocketAddr, destination: SocketAddr) {
    /// Version 2, on behalf of somebody.
    const PROXY: u8 = 0x21;
    /// Passed over by every receiver (§2.2.4).
    const NOOP: [u8; 4] = [4, 0, 1, 0];
    let stream = protocol == protocol::TCP;
    let family = if source.is_ipv4() { 0x10 } else { 0x20 };
    let mut push = |bytes: &[u8]| bytes.iter().for_each(|byte| header.push(*byte));
    push(&SIGNATURE);
    push(&[PROXY, family | if stream { 1 } else { 2 }, 0, 0]);
    for address in [source.ip(), destination.ip()] {
        match address {
            IpAddr::V4(ip) => push(&ip.octets()),
            IpAddr::V6(ip) => push(&ip.octets()),
        }
    }
    push(&source.port().to_be_bytes());
    push(&destination.port().to_be_bytes());
    if !stream {
        push(&NOOP);
    }
    let length = u16::try_from(header.len() - LEAST_OF_V2).unwrap_or(0);
    header[14..16].copy_from_slice(&length.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(version: Version, protocol: u8, source: &str, destination: &str) -> Vec<u8> {
        header(version, protocol, source.parse().unwrap(), destination.parse().unwrap()).to_vec()
    }

    #[test]
    fn text() {
        for (source, destination, expected) in [
            ("192.168.0.1:56324", "192.168.0.11:443", "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"),
            ("[2001:db8::1]:1", "[fd00::2]:65535", "PROXY TCP6 2001:db8::1 fd00::2 1 65535\r\n"),
        ] {
            let text = made(Version::One, 6, source, destination);
            assert_eq!(String::from_utf8(text).unwrap(), expected);
        }
        let longest = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535";
        assert_eq!(
            made(Version::One, 6, longest, longest).len(),
            104,
            "UNKNOWN makes the longest of the text's"
        );
    }

    #[test]
    fn bytes() {
        let start = SIGNATURE.to_vec();
        let v4 = [192, 0, 2, 1, 198, 51, 100, 2, 0x9c, 0x40, 0, 80];
        let rest = [&[0x21, 0x11, 0, 12][..], &v4].concat();
        assert_eq!(
            made(Version::Two, 6, "192.0.2.1:40000", "198.51.100.2:80"),
            [start.clone(), rest].concat()
        );
        let rest = [&[0x21, 0x12, 0, 16][..], &v4, &[4, 0, 1, 0]].concat();
        assert_eq!(
            made(Version::Two, 17, "192.0.2.1:40000", "198.51.100.2:80"),
            [start.clone(), rest].concat()
        );
        let v6 = made(Version::Two, 6, "[2001:db8::1]:1", "[2001:db8::2]:2");
        assert_eq!((v6.len(), &v6[12..18]), (52, &[0x21, 0x21, 0, 36, 0x20, 0x01][..]));
        assert_eq!(v6[48..], [0, 1, 0, 2]);
        let v6 = made(Version::Two, 17, "[2001:db8::1]:1", "[2001:db8::2]:2");
        assert_eq!((v6.len(), &v6[12..16]), (56, &[0x21, 0x22, 0, 40][..]));
    }
}
