//! What is written is read again; what others wrote is read; what is damaged is refused, in words.

use super::*;
use proptest::prelude::*;

const FRAME: &[u8] = b"\x02\x00\x00\x00\x00\x01\x02\x00\x00\x00\x00\x02\x08\x00 and more";

fn read(bytes: &[u8]) -> Result<Vec<Record>, Error> {
    Reader::new(bytes)?.collect()
}

fn record(time: Duration, bytes: &[u8]) -> Record {
    let wire_len = u32::try_from(bytes.len()).unwrap();
    Record { interface: 0, time, wire_len, direction: None, comment: None, bytes: bytes.to_vec() }
}

/// A pcap file of one frame in either order, with 7 s and `fraction` as its time.
fn pcap(big: bool, number: u32, link_type: u32, fraction: u32) -> Vec<u8> {
    let word = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
    let half = |value: u16| if big { value.to_be_bytes() } else { value.to_le_bytes() };
    let mut file = word(number).to_vec();
    file.extend([half(2), half(4)].concat());
    let length = u32::try_from(FRAME.len()).unwrap();
    let words = [0, 0, 65_535, link_type, 7, fraction, length, length + 100];
    file.extend(words.map(word).concat());
    file.extend(FRAME);
    file
}

/// A pcapng block in either order.
fn block(big: bool, kind: u32, body: &[u8]) -> Vec<u8> {
    let word = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
    let length = word(u32::try_from(12 + body.len()).unwrap());
    [&word(kind), &length, body, &length].concat()
}

#[test]
fn pcap_files_of_both_orders_and_units_are_read() {
    for big in [false, true] {
        for (number, time) in [
            (magic::MICROSECONDS, Duration::from_micros(7_000_250)),
            (magic::NANOSECONDS, Duration::new(7, 250)),
        ] {
            let wire_len = u32::try_from(FRAME.len()).unwrap() + 100;
            let expected = Record { wire_len, ..record(time, FRAME) };
            // With a frame check sequence announced, too.
            for link_type in [1, 0x2400_0001] {
                assert_eq!(
                    read(&pcap(big, number, link_type, 250)).unwrap(),
                    std::slice::from_ref(&expected)
                );
            }
        }
    }
}

#[test]
fn pcapng_of_other_programs_is_read() {
    for big in [false, true] {
        let word = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
        let half = |value: u16| if big { value.to_be_bytes() } else { value.to_le_bytes() };
        let section = |minor| {
            let long = if big { (-1_i64).to_be_bytes() } else { (-1_i64).to_le_bytes() };
            [&word(block::ORDER)[..], &half(1), &half(minor), &long].concat()
        };
        let interface = |options: &[u8]| [&half(1)[..], &half(0), &word(12), options].concat();
        let length = u32::try_from(FRAME.len()).unwrap();
        let padded = [FRAME, &[0; 3][..FRAME.len().next_multiple_of(4) - FRAME.len()]].concat();
        let enhanced = |number, time: u32, options: &[u8]| {
            let head = [number, 0, time, length, length].map(word).concat();
            [&head[..], &padded, options].concat()
        };
        let name = [&half(2)[..], &half(4), b"eth0"].concat();
        let halves = [&half(9)[..], &half(1), &[0x81, 0, 0, 0], &half(14), &half(8)].concat();
        let offset = if big { 100_i64.to_be_bytes() } else { 100_i64.to_le_bytes() };
        let file = [
            block(big, block::SECTION, &section(0)),
            block(big, block::INTERFACE, &interface(&name)),
            // Statistics, which are nothing to us.
            block(big, 5, &[0; 16]),
            block(big, block::INTERFACE, &interface(&[&halves[..], &offset].concat())),
            block(big, block::ENHANCED, &enhanced(0, 1_500_000, &[])),
            block(big, block::ENHANCED, &enhanced(1, 3, &[half(2), half(4), half(0), half(2)].concat())),
            block(big, block::SIMPLE, &[&word(length)[..], &FRAME[..12]].concat()),
            // A section of its own, whose interface 0 is another one.
            block(big, block::SECTION, &section(2)),
            block(big, block::INTERFACE, &interface(&[])),
            block(big, block::ENHANCED, &enhanced(0, 9, &[])),
        ]
        .concat();
        let records = read(&file).unwrap();
        let late = Duration::from_millis(101_500);
        assert_eq!(records[0], record(Duration::from_millis(1500), FRAME), "{big}");
        // The direction's word is not 2 in the big order: there its lower half comes last.
        let direction = if big { Some(Direction::Out) } else { None };
        assert_eq!(records[1], Record { interface: 1, direction, ..record(late, FRAME) });
        assert_eq!(records[2], Record { wire_len: length, ..record(late, &FRAME[..12]) }, "cut to 12 bytes");
        assert_eq!(records[3], Record { interface: 2, ..record(Duration::from_micros(9), FRAME) });
        let mut reader = Reader::new(&file[..]).unwrap();
        assert_eq!(reader.by_ref().count(), 4);
        assert_eq!(reader.interfaces()[0].name.as_deref(), Some("eth0"));
    }
}

#[test]
fn what_was_lost_is_told() {
    let mut file = Vec::new();
    pcapng_section(&mut file);
    pcapng_interface(&mut file, "eth0", 0);
    pcapng_interface(&mut file, "eth1", 0);
    for (interface, lost) in [(1, 5), (7, 9), (1, 6)] {
        pcapng_statistics(&mut file, interface, Duration::from_secs(1), lost);
    }
    pcapng_packet(&mut file, &outcome(FRAME));
    let mut reader = Reader::new(&file[..]).unwrap();
    assert_eq!(reader.by_ref().map(Result::unwrap).count(), 1);
    assert_eq!(
        reader.interfaces().iter().map(|interface| interface.lost).collect::<Vec<_>>(),
        [None, Some(6)]
    );
}

#[test]
fn what_is_no_capture_is_refused_in_words() {
    let whole = pcap(false, magic::MICROSECONDS, 1, 0);
    let changed = |at: usize, byte: u8| {
        let mut file = whole.clone();
        file[at] = byte;
        file
    };
    let mut ng = Vec::new();
    pcapng_section(&mut ng);
    let section = ng.len();
    pcapng_interface(&mut ng, "eth0", 0);
    let frame = Frame { interface: 1, ..outcome(FRAME) };
    let mut stranger = ng.clone();
    pcapng_packet(&mut stranger, &frame);
    let ng_changed = |at: usize, byte: u8| {
        let mut file = ng.clone();
        file[at] = byte;
        file
    };
    for (file, expected) in [
        (Vec::new(), "is neither a pcap nor a pcapng file"),
        (b"GIF89a".to_vec(), "is neither a pcap nor a pcapng file"),
        (b"ab".to_vec(), "ends in the middle of a record, at byte 2: what came before it is whole"),
        (whole[..20].to_vec(), "ends in the middle of a record, at byte 20: what came before it is whole"),
        (whole[..30].to_vec(), "ends in the middle of a record, at byte 30: what came before it is whole"),
        (whole[..45].to_vec(), "ends in the middle of a record, at byte 45: what came before it is whole"),
        (changed(4, 3), "is damaged at byte 4: its version is not 2"),
        (changed(34, 0xff), "is damaged at byte 24: a frame of more than 262144 bytes"),
        (
            changed(20, 113),
            "has frames of link type 113, not of Ethernet (1): capture on one device rather than on `any`, which has \
             no link-layer addresses",
        ),
        (ng_changed(8, 0), "is damaged at byte 0: a section header without byte-order magic"),
        (ng_changed(12, 7), "is damaged at byte 0: a section whose version is not 1"),
        (ng_changed(section + 4, 3), &*format!("is damaged at byte {section}: a block of impossible length")),
        (ng_changed(section + 4, 8), &*format!("is damaged at byte {section}: a block of impossible length")),
        (
            ng_changed(ng.len() - 4, 0),
            &*format!("is damaged at byte {section}: a block whose two lengths differ"),
        ),
        (
            ng_changed(section + 18, 99),
            &*format!("is damaged at byte {section}: an option longer than its block"),
        ),
        (
            ng_changed(section + 28, 39),
            &*format!("is damaged at byte {section}: an interface with an impossible unit of time"),
        ),
        (
            stranger,
            &*format!("is damaged at byte {}: a frame of an interface that is not described", ng.len()),
        ),
    ] {
        assert_eq!(read(&file).expect_err(expected).to_string(), expected);
    }
}

#[test]
fn what_came_before_the_damage_is_read() {
    let mut file = pcap(false, magic::NANOSECONDS, 1, 0);
    file.extend([1, 2, 3]);
    let mut reader = Reader::new(&file[..]).unwrap();
    assert_eq!(reader.next().unwrap().unwrap().bytes, FRAME);
    assert!(matches!(reader.next(), Some(Err(Error::CutShort(_)))));
    assert!(reader.next().is_none());
}

fn outcome(bytes: &[u8]) -> Frame<'_> {
    let wire_len = u32::try_from(bytes.len()).unwrap();
    Frame { interface: 0, time: Duration::ZERO, wire_len, direction: None, comment: "", bytes }
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(
        frames in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 0..200), any::<u32>(), 0..1_000_000_000_u32, ".{0,20}", 0..3_u8),
            0..8,
        ),
    ) {
        let (mut pcap, mut pcapng) = (Vec::new(), Vec::new());
        pcap_header(&mut pcap);
        pcapng_section(&mut pcapng);
        pcapng_interface(&mut pcapng, "eth0", 0);
        pcapng_interface(&mut pcapng, "", 0);
        let (mut plain, mut full) = (vec![], vec![]);
        for (bytes, seconds, nanoseconds, comment, direction) in &frames {
            let direction = [None, Some(Direction::In), Some(Direction::Out)][usize::from(*direction)];
            let time = Duration::new((*seconds).into(), *nanoseconds);
            let frame = Frame { time, comment, direction, interface: 1, ..outcome(bytes) };
            pcap_record(&mut pcap, &frame);
            pcapng_packet(&mut pcapng, &frame);
            plain.push(record(time, bytes));
            let comment = Some(comment.clone()).filter(|comment| !comment.is_empty());
            full.push(Record { interface: 1, direction, comment, ..record(time, bytes) });
        }
        prop_assert_eq!(read(&pcap).unwrap(), plain);
        prop_assert_eq!(read(&pcapng).unwrap(), full);
    }

    #[test]
    fn nothing_that_is_read_makes_it_panic(
        start in 0..3_usize,
        noise in prop::collection::vec(any::<u8>(), 0..400),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        end in any::<prop::sample::Index>(),
    ) {
        let mut file = Vec::new();
        match start {
            0 => file = pcap(true, magic::MICROSECONDS, 1, 3),
            1 => {
                pcapng_section(&mut file);
                pcapng_interface(&mut file, "eth0", 64);
                pcapng_packet(&mut file, &Frame { comment: "why", ..outcome(FRAME) });
            }
            _ => {}
        }
        file.extend(noise);
        for (at, byte) in changes {
            if !file.is_empty() {
                let at = at.index(file.len());
                file[at] = byte;
            }
        }
        file.truncate(end.index(file.len() + 1));
        let frames = Reader::new(&file[..]).into_iter().flatten().take_while(Result::is_ok).count();
        prop_assert!(frames <= file.len());
    }
}
