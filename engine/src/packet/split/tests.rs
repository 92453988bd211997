use super::*;
use etherparse::{NetSlice, PacketBuilder, SlicedPacket};
use proptest::prelude::*;

/// A UDP datagram, as etherparse writes it; over IPv4 with these options.
fn datagram(v4: bool, options: &[u8], data: &[u8]) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let mut bytes = vec![];
    if v4 {
        let mut header =
            etherparse::Ipv4Header::new(0, 61, etherparse::IpNumber::UDP, [10, 0, 0, 2], [10, 0, 0, 100])
                .unwrap();
        (header.identification, header.dont_fragment) = (0xbeef, false);
        header.options = options.try_into().unwrap();
        let ip = etherparse::IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default());
        ethernet.ip(ip).udp(40000, 53).write(&mut bytes, data).unwrap();
    } else {
        ethernet.ipv6([0xfd; 16], [0xfe; 16], 61).udp(40000, 53).write(&mut bytes, data).unwrap();
    }
    bytes
}

fn whole(parts: &[&[u8]], piece: &Piece) -> Vec<u8> {
    let mut bytes = piece.headers.to_vec();
    bytes.extend(piece::stretch(parts, piece.payload.clone()).flatten());
    bytes
}

/// What an independent reader sees of a fragment: (offset, more, id, IP payload).
fn read(fragment: &[u8], limit: usize) -> (usize, bool, u32, Vec<u8>) {
    let read = SlicedPacket::from_ethernet(fragment).unwrap();
    match read.net.unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.calc_header_checksum(), header.header_checksum);
            assert!(usize::from(header.total_len) <= limit);
            assert_eq!((header.time_to_live, header.dont_fragment), (61, false));
            let offset = usize::from(header.fragment_offset.byte_offset());
            (offset, header.more_fragments, header.identification.into(), ip.payload().payload.to_vec())
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            assert!(usize::from(header.payload_length) + 40 <= limit);
            let bytes = &fragment[14 + 40..];
            let (fragment, rest) = etherparse::Ipv6FragmentHeader::from_slice(bytes).unwrap();
            assert_eq!(fragment.next_header, etherparse::IpNumber::UDP);
            let offset = usize::from(fragment.fragment_offset.byte_offset());
            (offset, fragment.more_fragments, fragment.identification, rest.to_vec())
        }
        NetSlice::Arp(_) => panic!("no IP"),
    }
}

proptest! {
    /// Every fragment is right by an independent reader, and together they are what was cut; also when they are cut again.
    #[test]
    fn fragments_make_up_the_packet(
        v4: bool,
        options in prop::sample::select(vec![0_usize, 4, 40]),
        data in prop::collection::vec(any::<u8>(), 0..6000),
        limit in 300_usize..2000,
        again in 120_usize..2000,
        cuts in prop::collection::vec(0_usize..6000, 0..3),
    ) {
        let options = vec![1; if v4 { options } else { 0 }];
        let bytes = datagram(v4, &options, &data);
        let payload = &bytes[14 + if v4 { 20 + options.len() } else { 40 }..];
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| 100 + cut).filter(|cut| *cut < bytes.len()).collect();
        cuts.sort_unstable();
        let starts = [0].into_iter().chain(cuts.iter().copied());
        let ends = cuts.iter().copied().chain([bytes.len()]);
        let parts: Vec<&[u8]> = starts.zip(ends).map(|(start, end)| &bytes[start..end]).collect();
        let mut got = vec![];
        for piece in fragments(&parts, limit, 0x1234_5678).unwrap() {
            let fragment = whole(&parts, &piece);
            let parts = [&fragment[..]];
            let pieces: Vec<Vec<u8>> =
                fragments(&parts, again, 0).unwrap().map(|piece| whole(&parts, &piece)).collect();
            got.extend(pieces.iter().map(|piece| read(piece, limit)));
        }
        let id = if v4 { 0xbeef } else { 0x1234_5678 };
        let mut end = 0;
        for (index, (offset, more, seen, bytes)) in got.iter().enumerate() {
            prop_assert_eq!((*offset, *more, *seen), (end, index + 1 < got.len(), id));
            prop_assert_eq!(&bytes[..], &payload[end..end + bytes.len()]);
            end += bytes.len();
        }
        prop_assert_eq!(end, payload.len());
    }
}

#[test]
fn later_fragments_carry_the_options_that_are_copied() {
    // Record route (not copied), no operation, security (copied), end.
    let options = [7, 4, 4, 0, 1, 130, 3, 9, 0, 0, 0, 0];
    let bytes = datagram(true, &options, &[5; 300]);
    let parts = [&bytes[..]];
    let headers: Vec<Vec<u8>> =
        fragments(&parts, 200, 0).unwrap().map(|piece| piece.headers[34..].to_vec()).collect();
    let later = [1, 1, 1, 1, 1, 130, 3, 9, 0, 0, 0, 0];
    assert_eq!(headers, [options.to_vec(), later.to_vec()]);
}

#[test]
fn what_cannot_be_fragmented_is_refused() {
    let v4 = datagram(true, &[], &[0; 600]);
    let v6 = datagram(false, &[], &[0; 600]);
    let with = |bytes: &[u8], at: usize, value: u8| {
        let mut bytes = bytes.to_vec();
        bytes[at] = value;
        bytes
    };
    let table: [(&str, Vec<u8>, usize, Reason); 6] = [
        ("don't fragment", with(&v4, 20, 0x40), 500, Reason::TooBig),
        ("no room for eight bytes", v4.clone(), 27, Reason::TooBig),
        ("no room for eight bytes over IPv6", v6.clone(), 55, Reason::TooBig),
        ("ARP", with(&v4, 13, 6), 500, Reason::Malformed),
        ("less than it says", v4[..500].to_vec(), 500, Reason::Truncated),
        ("nothing", vec![], 500, Reason::Truncated),
    ];
    for (what, bytes, limit, expected) in table {
        assert_eq!(fragments(&[&bytes], limit, 0).err(), Some(expected), "{what}");
    }
}
