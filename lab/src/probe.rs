//! Single packets made by hand: pings and TCP segments of no connection.

use crate::{Error, Namespace, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

/// Whether `address` answers one ping sent from `namespace` within `limit`.
pub fn ping(namespace: &Namespace, address: IpAddr, limit: Duration) -> Result<bool> {
    let (family, protocol, request, reply) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8, 0),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129),
    };
    let opened = namespace.run(|| socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol))?;
    // An ICMP echo socket sends and receives like one of UDP; the kernel fills in identifier and checksum.
    let socket = UdpSocket::from(opened.map_err(Error::when("open an ICMP socket"))?);
    let failed = || Error::when(format!("ping {address}"));
    socket.connect(SocketAddr::new(address, 0)).map_err(failed())?;
    socket.set_read_timeout(Some(limit)).map_err(failed())?;
    if socket.send(&[request, 0, 0, 0, 0, 0, 0, 1, b'u', b'v', b's']).is_err() {
        return Ok(false);
    }
    let mut answer = [0; 64];
    Ok(socket.recv(&mut answer).is_ok_and(|length| length == 11 && answer[0] == reply))
}

/// TCP flags of a segment, as on the wire.
pub mod flags {
    /// Finish.
    pub const FIN: u8 = 0x01;
    /// Synchronise.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Acknowledgement; alone it is what a connection sends mid-stream.
    pub const ACK: u8 = 0x10;
}

/// What of a received segment matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Flags, as in [`flags`].
    pub flags: u8,
}

/// A raw IPv4 socket for TCP: it sends segments of no connection and sees every segment that arrives at its host.
#[derive(Debug)]
pub struct RawTcp {
    socket: UdpSocket,
}

impl RawTcp {
    /// Opens one in `namespace`.
    pub fn open(namespace: &Namespace) -> Result<Self> {
        let opened = namespace
            .run(|| socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp))?;
        Ok(RawTcp { socket: UdpSocket::from(opened.map_err(Error::when("open a raw socket"))?) })
    }

    /// Sends one segment without payload.
    pub fn send(&self, from: SocketAddrV4, to: SocketAddrV4, flags: u8) -> Result<()> {
        self.send_bytes(*to.ip(), &segment(from, to, flags))
    }

    /// Sends an IP packet that says it carries TCP and carries `bytes`, whatever they are.
    pub fn send_bytes(&self, to: Ipv4Addr, bytes: &[u8]) -> Result<()> {
        let sent = self.socket.send_to(bytes, SocketAddr::new(to.into(), 0));
        sent.map(drop).map_err(Error::when(format!("send a segment to {to}")))
    }

    /// The first arriving segment that `wanted` accepts, if one comes within `limit`.
    pub fn receive(&self, limit: Duration, wanted: impl Fn(&Segment) -> bool) -> Result<Option<Segment>> {
        let end = Instant::now() + limit;
        let mut packet = [0; 2048];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left)).map_err(Error::when("set a timeout"))?;
            let Ok(length) = self.socket.recv(&mut packet) else { continue };
            if let Some(segment) = parse(&packet[..length]).filter(&wanted) {
                return Ok(Some(segment));
            }
        }
    }
}

/// A raw IPv4 socket receives with the IP header.
fn parse(packet: &[u8]) -> Option<Segment> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let tcp = packet.get(header..header + 20)?;
    Some(Segment {
        source: u16::from_be_bytes([tcp[0], tcp[1]]),
        destination: u16::from_be_bytes([tcp[2], tcp[3]]),
        flags: tcp[13],
    })
}

/// Sees the TCP segments of one IP version that arrive at a host.
#[derive(Debug)]
pub struct Watch {
    socket: UdpSocket,
    v4: bool,
}

impl Watch {
    /// Begins to look in `namespace`, at the IP version that `like` has.
    pub fn open(namespace: &Namespace, like: IpAddr) -> Result<Self> {
        let v4 = like.is_ipv4();
        let family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let opened =
            namespace.run(|| socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp))?;
        let socket = UdpSocket::from(opened.map_err(Error::when("open a raw socket"))?);
        socket.set_nonblocking(true).map_err(Error::when("not wait for segments"))?;
        Ok(Watch { socket, v4 })
    }

    /// Every segment that arrived since it was last asked, from its TCP header on.
    pub fn segments(&self) -> Vec<Vec<u8>> {
        let mut packet = vec![0; 65_536];
        let arrived = std::iter::from_fn(|| {
            let length = self.socket.recv(&mut packet).ok()?;
            // A raw IPv4 socket receives with the IP header.
            let header = if self.v4 { usize::from(packet[0] & 0x0f) * 4 } else { 0 };
            Some(packet[header.min(length)..length].to_vec())
        });
        arrived.filter(|segment| segment.len() >= 20).collect()
    }
}

/// A TCP segment without payload, its checksum right.
pub fn segment(from: SocketAddrV4, to: SocketAddrV4, flags: u8) -> [u8; 20] {
    numbered_segment(from, to, flags, [0x1234_5678, 0x0bad_cafe])
}

/// The same with these sequence and acknowledgement numbers.
pub fn numbered_segment(from: SocketAddrV4, to: SocketAddrV4, flags: u8, numbers: [u32; 2]) -> [u8; 20] {
    let mut tcp = [0; 20];
    tcp[0..2].copy_from_slice(&from.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&to.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&numbers[0].to_be_bytes());
    tcp[8..12].copy_from_slice(&numbers[1].to_be_bytes());
    tcp[12] = 5 << 4;
    tcp[13] = flags;
    tcp[14..16].copy_from_slice(&1024_u16.to_be_bytes());
    let sum = checksum(*from.ip(), *to.ip(), &tcp);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    tcp
}

/// The TCP checksum (RFC 9293 §3.1) over the pseudo-header and a segment of even length.
fn checksum(from: Ipv4Addr, to: Ipv4Addr, tcp: &[u8; 20]) -> u16 {
    let pseudo = [0, 6, 0, 20];
    internet_checksum(from.octets().into_iter().chain(to.octets()).chain(pseudo).chain(*tcp))
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
pub(crate) fn internet_checksum(bytes: impl Iterator<Item = u8>) -> u16 {
    let (sum, _) = bytes.fold((0_u32, true), |(sum, high), byte| {
        (sum + if high { u32::from(byte) << 8 } else { u32::from(byte) }, !high)
    });
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !(u16::try_from(folded).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_sums_to_zero_and_parses() {
        let (from, to) = ("192.0.2.1:4000".parse().unwrap(), "198.51.100.7:80".parse().unwrap());
        let tcp = segment(from, to, flags::ACK);
        assert_eq!(checksum(*from.ip(), *to.ip(), &tcp), 0);
        let packet = [&[0x45; 20][..], &tcp].concat();
        assert_eq!(parse(&packet), Some(Segment { source: 4000, destination: 80, flags: flags::ACK }));
        assert_eq!(parse(&packet[..39]), None);
    }
}
