//! ICMP errors, as etherparse writes them, and what NAT is to make of them.

use super::*;
use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type};

/// An ICMP error.
#[derive(Clone, Debug)]
pub struct Report {
    pub to_mac: [u8; 6],
    pub from_mac: [u8; 6],
    pub from: IpAddr,
    pub to: IpAddr,
    pub ttl: u8,
    pub kind: u8,
    pub code: u8,
    /// What an MTU or a pointer is put into.
    pub word: [u8; 4],
    /// The IP packet it is about.
    pub quote: Vec<u8>,
}

impl Report {
    /// The frame's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.to_mac, self.from_mac].concat();
        let (type_u8, code_u8, bytes5to8) = (self.kind, self.code, self.word);
        let length = u16::try_from(8 + self.quote.len()).unwrap();
        match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                bytes.extend([0x08, 0x00]);
                let mut ip =
                    Ipv4Header::new(length, self.ttl, IpNumber::ICMP, from.octets(), to.octets()).unwrap();
                ip.dont_fragment = false;
                ip.header_checksum = ip.calc_header_checksum();
                ip.write(&mut bytes).unwrap();
                let kind = Icmpv4Type::Unknown { type_u8, code_u8, bytes5to8 };
                Icmpv4Header::with_checksum(kind, &self.quote).write(&mut bytes).unwrap();
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                bytes.extend([0x86, 0xdd]);
                let ip = Ipv6Header {
                    payload_length: length,
                    next_header: IpNumber::IPV6_ICMP,
                    hop_limit: self.ttl,
                    source: from.octets(),
                    destination: to.octets(),
                    ..Ipv6Header::default()
                };
                ip.write(&mut bytes).unwrap();
                let kind = Icmpv6Type::Unknown { type_u8, code_u8, bytes5to8 };
                let header = Icmpv6Header::with_checksum(kind, from.octets(), to.octets(), &self.quote);
                header.unwrap().write(&mut bytes).unwrap();
            }
            _ => panic!("one IP version"),
        }
        bytes.extend(&self.quote);
        bytes
    }
}

/// The IP packet of a frame, cut to `transport` bytes behind its IP header.
pub fn quote(frame: &Frame, transport: usize) -> Vec<u8> {
    let header = if frame.from.is_ipv4() { 20 } else { 40 };
    let mut bytes = frame.bytes().split_off(14);
    bytes.truncate(header + transport);
    bytes
}

/// The same packet with other addresses and ports and the transport checksum it had: IPVS leaves that alone.
pub fn quote_with(frame: &Frame, from: SocketAddr, to: SocketAddr, transport: usize) -> Vec<u8> {
    let (mut moved, old) = (Frame { from, to, ..frame.clone() }.bytes(), frame.bytes());
    let at = frame.checksum_at();
    moved[at..at + 2].copy_from_slice(&old[at..at + 2]);
    let header = if frame.from.is_ipv4() { 20 } else { 40 };
    moved.drain(..14);
    moved.truncate(header + transport);
    moved
}

/// A router on the way of each plan's client, and one before the real servers.
pub fn routers(plan: &Plan) -> [IpAddr; 2] {
    let [client, server] =
        if plan.client.is_ipv4() { ["192.0.2.9", "172.16.0.99"] } else { ["2001:db8::9", "fd00:2::99"] };
    [client.parse().unwrap(), server.parse().unwrap()]
}

/// The other device.
pub fn beyond(port: PortId) -> PortId {
    if port == CLIENTS { SERVERS } else { CLIENTS }
}

/// An error that comes in on `port` about a packet that left there, of which it quotes `transport` bytes behind the IP header;
/// and what is to become of it under NAT.
pub fn error_on(port: PortId, plan: &Plan, protocol: u8, transport: usize) -> (Report, Report) {
    let macs = [CLIENT_MAC, SERVER_MAC];
    let (near, far) = (usize::from(port.0), usize::from(beyond(port).0));
    // The packet as it left, between which addresses it came, and to whom the error about it goes, from whom.
    let (packet, came, sender) = if port == CLIENTS {
        let reply = Frame::from_server(plan, protocol, ACK).unmasqueraded(plan.service);
        (reply, (plan.server, plan.client), (plan.server.ip(), routers(plan)[0]))
    } else {
        let request = Frame::from_client(plan, protocol, ACK).masqueraded(plan.server);
        (request, (plan.client, plan.service), (plan.client.ip(), plan.service.ip()))
    };
    let report = Report {
        to_mac: PORT_MACS[near],
        from_mac: macs[near],
        from: routers(plan)[near],
        to: packet.from.ip(),
        ttl: 60,
        kind: if plan.client.is_ipv4() { 3 } else { 1 },
        code: if port == CLIENTS { 1 } else { 3 },
        word: [0; 4],
        quote: quote(&packet, transport),
    };
    let relayed = Report {
        to_mac: macs[far],
        from_mac: PORT_MACS[far],
        from: sender.1,
        to: sender.0,
        ttl: 59,
        quote: quote_with(&packet, came.0, came.1, transport),
        ..report.clone()
    };
    (report, relayed)
}

/// The ICMP message of a frame without tag or option, checked to come from and go to these.
pub fn message(frame: &[u8], from: IpAddr, to: IpAddr) -> Vec<u8> {
    let (addresses, network) = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ([&from.octets()[..], &to.octets()].concat(), 20),
        (IpAddr::V6(from), IpAddr::V6(to)) => ([&from.octets()[..], &to.octets()].concat(), 40),
        _ => panic!("one IP version"),
    };
    assert_eq!(frame[14 + network - addresses.len()..14 + network], addresses);
    assert_eq!(frame[14] >> 4, if network == 20 { 4 } else { 6 });
    frame[14 + network..].to_vec()
}
