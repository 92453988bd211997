//! TCP segments, and a director with full NAT; every frame that leaves is taken apart, and its checksums recomputed, by an
//! independent crate.

use super::*;
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TcpHeader, TcpOptionElement, TransportSlice};
use uvs_engine::Reason;
use uvs_engine::service::{LocalAddress, LocalPool, Ports};

pub const TO_CLIENTS: Verdict = Verdict::Transmit(CLIENTS);
pub const TO_SERVERS: Verdict = Verdict::Transmit(SERVERS);

/// A TCP segment with what matters here.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub flags: u8,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Segment {
    pub fn new(from: SocketAddr, to: SocketAddr, flags: u8, sequence: u32, acknowledgement: u32) -> Self {
        Segment { from, to, flags, sequence, acknowledgement, options: Vec::new(), payload: Vec::new() }
    }

    pub fn bytes(&self, from_mac: [u8; 6], to_mac: [u8; 6]) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2(from_mac, to_mac);
        let ip = match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => ethernet.ipv4(a.octets(), b.octets(), 64),
            (IpAddr::V6(a), IpAddr::V6(b)) => ethernet.ipv6(a.octets(), b.octets(), 64),
            _ => panic!("one IP version"),
        };
        let mut header = TcpHeader::new(self.from.port(), self.to.port(), self.sequence, 0x2000);
        header.acknowledgment_number = self.acknowledgement;
        (header.fin, header.syn) = (self.flags & FIN != 0, self.flags & SYN != 0);
        (header.rst, header.ack) = (self.flags & RST != 0, self.flags & ACK != 0);
        header.set_options_raw(&self.options).unwrap();
        let mut bytes = Vec::new();
        ip.tcp_header(header).write(&mut bytes, &self.payload).unwrap();
        bytes
    }

    /// Reads a frame back; its checksums must be right, and it one hop older than [`Segment::bytes`] makes it.
    pub fn read(bytes: &[u8]) -> Segment {
        let packet = SlicedPacket::from_ethernet(bytes).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("{packet:?}") };
        let header = tcp.to_header();
        let (from, to, sum) = match packet.net.unwrap() {
            NetSlice::Ipv4(ip) => {
                let ip = ip.header().to_header();
                assert_eq!((ip.time_to_live, ip.calc_header_checksum()), (63, ip.header_checksum));
                let sum = header.calc_checksum_ipv4_raw(ip.source, ip.destination, tcp.payload()).unwrap();
                (IpAddr::from(ip.source), IpAddr::from(ip.destination), sum)
            }
            NetSlice::Ipv6(ip) => {
                let ip = ip.header().to_header();
                assert_eq!(ip.hop_limit, 63);
                let sum = header.calc_checksum_ipv6_raw(ip.source, ip.destination, tcp.payload()).unwrap();
                (IpAddr::from(ip.source), IpAddr::from(ip.destination), sum)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(header.checksum, sum, "the checksum of {header:?}");
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        Segment {
            from: SocketAddr::new(from, header.source_port),
            to: SocketAddr::new(to, header.destination_port),
            flags: bit(header.fin, FIN) | bit(header.syn, SYN) | bit(header.rst, RST) | bit(header.ack, ACK),
            sequence: header.sequence_number,
            acknowledgement: header.acknowledgment_number,
            options: tcp.options().to_vec(),
            payload: tcp.payload().to_vec(),
        }
    }
}

/// Puts the pseudo-header's sum in the place of the checksum of a TCP segment without IP options, as a local socket leaves it for
/// a device to finish.
pub fn leave_unfinished(bytes: &mut [u8]) {
    let (addresses, transport) = if bytes[12..14] == [8, 0] { (26, 34) } else { (22, 54) };
    let length = u16::try_from(bytes.len() - transport).unwrap();
    let mut words = bytes[addresses..transport].to_vec();
    words.extend([0, 6]);
    words.extend(length.to_be_bytes());
    let sum =
        words.chunks(2).fold(0_u32, |sum, word| sum + u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    bytes[transport + 16..transport + 18].copy_from_slice(&sum.to_be_bytes());
}

/// Options as they lie in a segment.
pub fn options(elements: &[TcpOptionElement]) -> Vec<u8> {
    let mut header = TcpHeader::default();
    header.set_options(elements).unwrap();
    header.options.as_slice().to_vec()
}

/// A director with full NAT to one real server.
pub struct Lab {
    pub director: Director,
    pub plan: Plan,
    pub local: Arc<LocalAddress>,
    pub services: [Arc<Service>; 2],
}

impl Lab {
    pub fn new(plan: &Plan, ports: &Ports) -> Self {
        Lab::in_director(Director::new(), plan, ports)
    }

    pub fn in_director(mut director: Director, plan: &Plan, ports: &Ports) -> Self {
        let services = director.serve(plan.service);
        let local = director.destinations.locals().enter(local_of(plan));
        for service in &services {
            service.set_locals(LocalPool::new(vec![(local.clone(), ports.clone())]));
            service.add(&destination(plan.server, Method::FullNat, plan)).unwrap();
        }
        Lab { director, plan: *plan, local, services }
    }

    pub fn client(&self, number: u16) -> SocketAddr {
        SocketAddr::new(self.plan.client.ip(), 1000 + number)
    }

    pub fn at_server(&mut self, segment: &Segment) -> Segment {
        let (verdict, out) = self.director.run(CLIENTS, &segment.bytes(CLIENT_MAC, PORT_MACS[0]));
        assert_eq!(verdict, TO_SERVERS, "{segment:?}");
        assert_eq!((&out[..6], &out[6..12]), (&SERVER_MAC[..], &PORT_MACS[1][..]));
        let seen = Segment::read(&out);
        assert_eq!((seen.from.ip(), seen.to), (self.local.address(), self.plan.server));
        seen
    }

    pub fn at_client(&mut self, segment: &Segment, client: SocketAddr) -> Segment {
        let (verdict, out) = self.director.run(SERVERS, &segment.bytes(SERVER_MAC, PORT_MACS[1]));
        assert_eq!(verdict, TO_CLIENTS, "{segment:?}");
        let seen = Segment::read(&out);
        assert_eq!((seen.from, seen.to), (self.plan.service, client));
        seen
    }

    pub fn refused(&mut self, segment: &Segment) -> Reason {
        match self.director.run(CLIENTS, &segment.bytes(CLIENT_MAC, PORT_MACS[0])).0 {
            Verdict::Drop(reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    pub fn syn(&mut self, number: u16, sequence: u32) -> Segment {
        let (from, to) = (self.client(number), self.plan.service);
        self.at_server(&Segment::new(from, to, SYN, sequence, 0))
    }

    /// A connection from its SYN to TIME_WAIT, closed by the real server first. What the real server sees of the SYN, and the
    /// end of the client's sequence numbers as it sees it.
    pub fn life(&mut self, number: u16, sequence: u32, payload: usize) -> (Segment, u32) {
        let (client, service) = (self.client(number), self.plan.service);
        let syn = self.syn(number, sequence);
        let reply = |flags, sequence, acknowledgement| {
            Segment::new(syn.to, syn.from, flags, sequence, acknowledgement)
        };
        self.at_client(&reply(SYN | ACK, 5000, syn.sequence.wrapping_add(1)), client);
        let mut data = Segment::new(client, service, ACK, sequence.wrapping_add(1), 5001);
        data.payload = vec![1; payload];
        let data = self.at_server(&data);
        let sent = u32::try_from(payload).unwrap();
        self.at_client(&reply(FIN | ACK, 5001, data.sequence.wrapping_add(sent)), client);
        let fin = Segment::new(client, service, FIN | ACK, sequence.wrapping_add(1 + sent), 5002);
        let fin = self.at_server(&fin);
        self.at_client(&reply(ACK, 5002, fin.sequence.wrapping_add(1)), client);
        (syn, fin.sequence.wrapping_add(1))
    }
}

pub fn local_of(plan: &Plan) -> IpAddr {
    if plan.server.is_ipv4() { "172.16.0.77".parse().unwrap() } else { "fd00:2::77".parse().unwrap() }
}

/// What a client hears of a path of 1400 bytes when a router before the real server says so of a packet that the real server
/// would have `seen`.
pub fn mtu_told(lab: &mut Lab, seen: &Segment) -> u32 {
    let v4 = lab.plan.server.is_ipv4();
    let frame = Segment { payload: vec![0; 8], ..seen.clone() }.bytes(PORT_MACS[1], SERVER_MAC);
    let error = report::Report {
        to_mac: PORT_MACS[1],
        from_mac: SERVER_MAC,
        from: if v4 { "172.16.0.99" } else { "fd00:2::99" }.parse().unwrap(),
        to: seen.from.ip(),
        ttl: 60,
        kind: if v4 { 3 } else { 2 },
        code: if v4 { 4 } else { 0 },
        word: 1400_u32.to_be_bytes(),
        quote: frame[14..].to_vec(),
    };
    let (verdict, out) = lab.director.run(SERVERS, &error.bytes());
    assert_eq!(verdict, TO_CLIENTS);
    assert_eq!(oracle::verify(&out), Ok(()));
    let at = if lab.plan.client.is_ipv4() { 14 + 20 + 4 } else { 14 + 40 + 4 };
    u32::from_be_bytes(out[at..at + 4].try_into().unwrap())
}
