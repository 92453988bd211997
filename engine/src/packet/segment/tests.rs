use super::*;
use etherparse::{
    IpHeaders, IpNumber, Ipv4Header, Ipv6Header, NetSlice, PacketBuilder, SlicedPacket, TcpHeader,
    TcpOptionElement, TransportSlice,
};
use proptest::prelude::*;

const FROM: ([u8; 4], [u8; 4]) = ([10, 0, 0, 2], [10, 0, 0, 100]);

/// A super-frame, as etherparse writes it.
#[derive(Clone, Debug)]
struct Super {
    v4: bool,
    vlan: bool,
    options: bool,
    flags: u8,
    sequence: u32,
    data: Vec<u8>,
}

impl Super {
    fn bytes(&self) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let mut tcp = TcpHeader::new(40000, 80, self.sequence, 1000);
        tcp.ack = true;
        tcp.acknowledgment_number = 77;
        (tcp.fin, tcp.psh) = (self.flags & flag::FIN != 0, self.flags & flag::PSH != 0);
        tcp.cwr = self.flags & flag::CWR != 0;
        if self.options {
            tcp.set_options(&[TcpOptionElement::Noop, TcpOptionElement::Timestamp(5, 6)]).unwrap();
        }
        let ip = ip(self.v4);
        let mut bytes = vec![];
        if self.vlan {
            let builder = ethernet.single_vlan(7.try_into().unwrap()).ip(ip).tcp_header(tcp);
            builder.write(&mut bytes, &self.data).unwrap();
        } else {
            ethernet.ip(ip).tcp_header(tcp).write(&mut bytes, &self.data).unwrap();
        }
        bytes
    }
}

/// The IP headers of a super-frame.
fn ip(v4: bool) -> IpHeaders {
    if v4 {
        let mut header = Ipv4Header::new(0, 61, IpNumber::TCP, FROM.0, FROM.1).unwrap();
        (header.identification, header.dont_fragment) = (0xfffe, true);
        IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default())
    } else {
        let (source, destination) = ([0xfd; 16], [0xfe; 16]);
        let header = Ipv6Header { hop_limit: 61, source, destination, ..Ipv6Header::default() };
        IpHeaders::Ipv6(header, etherparse::Ipv6Extensions::default())
    }
}

fn super_frames() -> impl Strategy<Value = Super> {
    let data = prop::collection::vec(any::<u8>(), 0..9000);
    (any::<(bool, bool, bool, u8, u32)>(), data).prop_map(|((v4, vlan, options, flags, sequence), data)| {
        Super { v4, vlan, options, flags, sequence, data }
    })
}

/// The bytes of a piece.
fn whole(parts: &[&[u8]], piece: &Piece) -> Vec<u8> {
    let mut bytes = piece.headers.to_vec();
    bytes.extend(piece::stretch(parts, piece.payload.clone()).flatten());
    bytes
}

fn cut_at<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    // All headers lie in the first part: nothing is cut before them.
    let mut parts = vec![];
    let mut start = 0;
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| 130 + cut).filter(|cut| *cut < bytes.len()).collect();
    cuts.sort_unstable();
    for cut in cuts.into_iter().chain([bytes.len()]) {
        parts.push(&bytes[start..cut]);
        start = cut;
    }
    parts
}

proptest! {
    /// Every segment is right by an independent reader's arithmetic, and together they are what was cut.
    #[test]
    fn segments_make_up_the_super_frame(
        frame in super_frames(),
        limit in 500_usize..2000,
        cuts in prop::collection::vec(0_usize..9000, 0..4),
        spoil: bool,
    ) {
        let mut bytes = frame.bytes();
        let transport = 14 + if frame.vlan { 4 } else { 0 } + if frame.v4 { 20 } else { 40 };
        let original = TcpHeader::from_slice(&bytes[transport..]).unwrap().0;
        if spoil {
            bytes[transport + 16] ^= 0x55; // as unfinished as a local sender's
        }
        let parts = cut_at(&bytes, &cuts);
        let (mut data, mut count): (Vec<u8>, usize) = (vec![], 0);
        let pieces: Vec<Piece> = segments(&parts, limit).unwrap().collect();
        for piece in &pieces {
            let segment = whole(&parts, piece);
            prop_assert_eq!(piece.len(), segment.len());
            prop_assert_eq!(&segment[..12], &bytes[..12]);
            let read = SlicedPacket::from_ethernet(&segment).unwrap();
            let Some(TransportSlice::Tcp(tcp)) = read.transport else { panic!("no TCP") };
            let header = tcp.to_header();
            let checksum = match read.net.as_ref().unwrap() {
                NetSlice::Ipv4(ip) => {
                    let ip = ip.header().to_header();
                    prop_assert_eq!(ip.calc_header_checksum(), ip.header_checksum);
                    prop_assert!(usize::from(ip.total_len) <= limit);
                    let id = 0xfffe_usize + count;
                    prop_assert_eq!(usize::from(ip.identification), id & 0xffff);
                    prop_assert!(ip.dont_fragment && ip.time_to_live == 61);
                    header.calc_checksum_ipv4(&ip, tcp.payload()).unwrap()
                }
                NetSlice::Ipv6(ip) => {
                    let ip = ip.header().to_header();
                    prop_assert!(usize::from(ip.payload_length) + 40 <= limit);
                    header.calc_checksum_ipv6(&ip, tcp.payload()).unwrap()
                }
                NetSlice::Arp(_) => panic!("no IP"),
            };
            prop_assert_eq!(checksum, header.checksum);
            let (first, last) = (count == 0, count + 1 == pieces.len());
            let expected = TcpHeader {
                sequence_number: frame.sequence.wrapping_add(u32::try_from(data.len()).unwrap()),
                fin: original.fin && last,
                psh: original.psh && last,
                cwr: original.cwr && first,
                checksum,
                ..original.clone()
            };
            prop_assert_eq!(header, expected);
            data.extend(tcp.payload());
            count += 1;
        }
        prop_assert_eq!(data, frame.data);
    }

    /// The same of datagrams, with a checksum, an unfinished one, and over IPv4 none.
    #[test]
    fn datagrams_make_up_the_super_frame(
        (v4, field) in prop_oneof![Just((true, Some([0, 0]))), (any::<bool>(), Just(None)), (any::<bool>(), Just(Some([5, 5])))],
        data in prop::collection::vec(any::<u8>(), 1..9000),
        size in 100_usize..2000,
        cuts in prop::collection::vec(0_usize..9000, 0..4),
    ) {
        let mut bytes = vec![];
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ip(ip(v4)).udp(40000, 53);
        builder.write(&mut bytes, &data).unwrap();
        if let Some(field) = field {
            let transport = 14 + if v4 { 20 } else { 40 };
            bytes[transport + 6..][..2].copy_from_slice(&field);
        }
        let parts = cut_at(&bytes, &cuts);
        let cut = datagrams(&parts, size).unwrap();
        prop_assert_eq!(cut.len(), data.len().div_ceil(size));
        let mut gathered = vec![];
        for (count, piece) in cut.enumerate() {
            let datagram = whole(&parts, &piece);
            let read = SlicedPacket::from_ethernet(&datagram).unwrap();
            let Some(TransportSlice::Udp(udp)) = read.transport else { panic!("no UDP") };
            let header = udp.to_header();
            let checksum = match read.net.as_ref().unwrap() {
                NetSlice::Ipv4(ip) => {
                    let ip = ip.header().to_header();
                    prop_assert_eq!(ip.calc_header_checksum(), ip.header_checksum);
                    prop_assert_eq!(usize::from(ip.total_len), datagram.len() - 14);
                    prop_assert_eq!(usize::from(ip.identification), (0xfffe + count) & 0xffff);
                    header.calc_checksum_ipv4(&ip, udp.payload()).unwrap()
                }
                NetSlice::Ipv6(ip) => header.calc_checksum_ipv6(&ip.header().to_header(), udp.payload()).unwrap(),
                NetSlice::Arp(_) => panic!("no IP"),
            };
            prop_assert_eq!(header.checksum, if field == Some([0, 0]) { 0 } else { checksum });
            prop_assert_eq!((header.source_port, header.destination_port), (40000, 53));
            prop_assert_eq!(usize::from(header.length), 8 + udp.payload().len());
            prop_assert!(udp.payload().len() == size || gathered.len() + udp.payload().len() == data.len());
            gathered.extend_from_slice(udp.payload());
        }
        prop_assert_eq!(gathered, data);
    }
}

#[test]
fn what_is_no_datagram_is_not_cut() {
    let tcp = Super { v4: true, vlan: false, options: false, flags: 0, sequence: 1, data: vec![0; 3000] };
    assert_eq!(datagrams(&[&tcp.bytes()], 1000).err(), Some(Reason::Malformed), "TCP");
    let mut bytes = vec![];
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ip(ip(true))
        .udp(40000, 53)
        .write(&mut bytes, &[0; 3000])
        .unwrap();
    assert_eq!(datagrams(&[&bytes], 0).err(), Some(Reason::Malformed), "no size");
    assert_eq!(datagrams(&[&bytes[..2000]], 1000).err(), Some(Reason::Truncated), "cut off");
    bytes[14 + 20 + 5] += 1;
    assert_eq!(datagrams(&[&bytes], 1000).err(), Some(Reason::Malformed), "longer than its packet");
    bytes[14 + 20 + 4..][..2].copy_from_slice(&[0, 8]);
    assert_eq!(datagrams(&[&bytes], 1000).err(), Some(Reason::Malformed), "no data");
}

#[test]
fn what_is_no_super_frame_is_refused() {
    let frame = Super { v4: true, vlan: false, options: false, flags: 0, sequence: 1, data: vec![0; 3000] };
    let bytes = frame.bytes();
    let with = |at: usize, value: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = value;
        bytes
    };
    let table: [(&str, Vec<u8>, usize, Reason); 7] = [
        ("UDP", with(23, 17), 1500, Reason::Malformed),
        ("a fragment", with(20, 0x20), 1500, Reason::Malformed),
        ("ARP", with(13, 6), 1500, Reason::Malformed),
        ("no room for data", bytes.clone(), 40, Reason::TooBig),
        ("a data offset of two words", with(46, 0x20), 1500, Reason::Malformed),
        ("less than it says", bytes[..2000].to_vec(), 1500, Reason::Truncated),
        ("nothing", vec![], 1500, Reason::Truncated),
    ];
    for (what, bytes, limit, expected) in table {
        assert_eq!(segments(&[&bytes], limit).err(), Some(expected), "{what}");
    }
}
