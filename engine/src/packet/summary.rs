//! A frame in words, for people: who sends what to whom.

use super::ethernet::{self, Ethernet};
use super::ipv4::Ipv4;
use super::ipv6::{self, Ipv6};
use super::protocol;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// What an IP packet says of itself, as far as its headers are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Its sender.
    pub source: IpAddr,
    /// Its addressee.
    pub destination: IpAddr,
    /// Its protocol, behind the extension headers of IPv6.
    pub protocol: u8,
    /// Source and destination port, of TCP and UDP.
    pub ports: Option<[u16; 2]>,
    /// The flags of TCP.
    pub flags: u8,
    /// Where what it carries begins: behind all headers of IP. Not there in a later fragment.
    pub transport: Option<usize>,
    /// Where it ends by what its header says, though the bytes may end before.
    pub end: usize,
}

impl Summary {
    /// Of the IP packet in an Ethernet frame; `None` when there is none.
    pub fn of(frame: &[u8]) -> Option<Summary> {
        let (ethertype, network) = ethernet::payload(frame).ok()?;
        Summary::at(frame, ethertype, network)
    }

    /// Of the IP packet at `network`, of the version that `ethertype` says.
    pub fn at(frame: &[u8], ethertype: u16, network: usize) -> Option<Summary> {
        let (source, destination, protocol, transport, end): (IpAddr, IpAddr, _, _, _) = match ethertype {
            ethernet::IPV4 => {
                let header = Ipv4::parse(frame, network).ok()?;
                let transport = header.is_first().then_some(network + header.header_len());
                let end = network + header.total_len();
                (header.source().into(), header.destination().into(), header.protocol(), transport, end)
            }
            ethernet::IPV6 => {
                let header = Ipv6::parse(frame, network).ok()?;
                let upper = ipv6::upper_layer(frame, network + ipv6::HEADER_LEN, header.next_header());
                let (protocol, transport) = upper.map_or((header.next_header(), None), |upper| {
                    (upper.protocol, upper.first.then_some(upper.offset))
                });
                let end = network + ipv6::HEADER_LEN + header.payload_len();
                (header.source().into(), header.destination().into(), protocol, transport, end)
            }
            _ => return None,
        };
        let bytes = transport.and_then(|transport| frame.get(transport..)).unwrap_or_default();
        let (mut ports, mut flags) = (None, 0);
        if let (protocol::TCP | protocol::UDP, [a, b, c, d, rest @ ..]) = (protocol, bytes) {
            ports = Some([u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])]);
            if protocol == protocol::TCP {
                flags = rest.get(9).copied().unwrap_or(0);
            }
        }
        Some(Summary { source, destination, protocol, ports, flags, transport, end })
    }

    /// Both ends of its flow, where it has ports.
    pub fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        let [from, to] = self.ports?;
        Some((SocketAddr::new(self.source, from), SocketAddr::new(self.destination, to)))
    }
}

impl fmt::Display for Summary {
    /// `tcp 10.0.0.2:40000 > 10.0.0.1:80 [S]`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            protocol::TCP => f.write_str("tcp")?,
            protocol::UDP => f.write_str("udp")?,
            protocol::ICMP => f.write_str("icmp")?,
            protocol::ICMPV6 => f.write_str("icmp6")?,
            other => write!(f, "protocol {other}")?,
        }
        match self.ends() {
            Some((from, to)) => write!(f, " {from} > {to}")?,
            None => write!(f, " {} > {}", self.source, self.destination)?,
        }
        if self.protocol == protocol::TCP && self.ports.is_some() {
            write!(f, " [{}]", letters(self.flags))?;
        }
        Ok(())
    }
}

/// Flags of TCP as tcpdump writes them.
pub fn letters(flags: u8) -> String {
    let letters = ['F', 'S', 'R', 'P', '.', 'U', 'E', 'W'];
    let set = letters.iter().enumerate().filter(|(bit, _)| flags & 1 << bit != 0);
    set.map(|(_, letter)| letter).collect()
}

/// A frame in words, whatever it is.
pub fn describe(frame: &[u8]) -> String {
    match (Summary::of(frame), Ethernet::parse(frame)) {
        (Some(summary), _) => summary.to_string(),
        (None, Ok(ethernet)) => match ethernet.ethertype() {
            0x0806 => "arp".into(),
            other => format!("ethertype {other:#06x}"),
        },
        (None, Err(_)) => format!("{} bytes", frame.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    fn frame(builder: etherparse::PacketBuilderStep<etherparse::TcpHeader>) -> Vec<u8> {
        let mut bytes = Vec::new();
        builder.write(&mut bytes, b"payload").unwrap();
        bytes
    }

    #[test]
    fn frames_are_told_in_words() {
        let ethernet = || PacketBuilder::ethernet2([2; 6], [4; 6]);
        let four = || ethernet().ipv4([10, 0, 0, 2], [10, 0, 0, 1], 64);
        let syn = frame(four().tcp(40000, 80, 1, 2).syn());
        let data = frame(ethernet().ipv6([1; 16], [2; 16], 64).tcp(40000, 80, 1, 2).ack(3).psh());
        let mut udp = Vec::new();
        four().udp(53, 1000).write(&mut udp, b"payload").unwrap();
        let mut icmp = Vec::new();
        four().icmpv4_echo_request(1, 2).write(&mut icmp, b"payload").unwrap();
        let mut later = udp.clone();
        later[21] = 7;
        for (frame, expected) in [
            (&syn[..], "tcp 10.0.0.2:40000 > 10.0.0.1:80 [S]"),
            (&syn[..36], "tcp 10.0.0.2 > 10.0.0.1"),
            (&syn[..20], "ethertype 0x0800"),
            (
                &data,
                "tcp [101:101:101:101:101:101:101:101]:40000 > [202:202:202:202:202:202:202:202]:80 [P.]",
            ),
            (&udp, "udp 10.0.0.2:53 > 10.0.0.1:1000"),
            (&later, "udp 10.0.0.2 > 10.0.0.1"),
            (&icmp, "icmp 10.0.0.2 > 10.0.0.1"),
            (&[&[2; 12][..], &[8, 6], &[0; 28]].concat(), "arp"),
            (&[1, 2, 3], "3 bytes"),
            (&[], "0 bytes"),
        ] {
            assert_eq!(describe(frame), expected);
        }
    }
}
