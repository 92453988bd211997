//! Filters on frames, and what a tapped worker shows.

use super::*;
use crate::batch::Packet;
use crate::snapshot::{Config, Snapshot};
use crate::verdict::{Neighbour, Verdict};
use crate::worker::{Offline, Process};
use etherparse::PacketBuilder;
use proptest::prelude::*;
use std::net::Ipv4Addr;
use uvs_conntrack::Tick;

fn tcp(from: [u8; 4], from_port: u16, to: [u8; 4], to_port: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(from, to, 64);
    builder.tcp(from_port, to_port, 1, 1000).ack(1).write(&mut frame, payload).unwrap();
    frame
}

fn udp6(from: u8, from_port: u16, to: u8, to_port: u16) -> Vec<u8> {
    let address = |last| [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6(address(from), address(to), 64);
    builder.udp(from_port, to_port).write(&mut frame, b"payload").unwrap();
    frame
}

#[test]
fn filters_choose_frames() {
    let (client, vip, local, server) = ([198, 51, 100, 7], [203, 0, 113, 1], [10, 0, 0, 9], [10, 0, 0, 1]);
    let asks = tcp(client, 40000, vip, 80, b"?");
    let full_nat = Seen::of(&asks, Some(&tcp(local, 6000, server, 8080, b"?")), false);
    let dropped = Seen::of(&asks, None, true);
    let six = Seen::of(&udp6(1, 53, 2, 1053), None, false);
    let mut icmp = Vec::new();
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(client, vip, 64);
    builder.icmpv4_echo_request(1, 2).write(&mut icmp, b"").unwrap();
    let icmp = Seen::of(&icmp, None, false);
    let none = Seen::of(b"no frame", None, true);
    for (text, expected) in [
        ("", [true; 5]),
        ("  \t\n ", [true; 5]),
        ("tcp", [true, true, false, false, false]),
        ("udp", [false, false, true, false, false]),
        ("icmp", [false, false, false, true, false]),
        ("icmp6", [false; 5]),
        ("ip", [true, true, false, true, false]),
        ("ip6", [false, false, true, false, false]),
        ("drop", [false, true, false, false, true]),
        ("not drop", [true, false, true, true, false]),
        ("!!drop", [false, true, false, false, true]),
        // Before or after the rewriting.
        ("host 203.0.113.1", [true, true, false, true, false]),
        ("host 10.0.0.9", [true, false, false, false, false]),
        ("not host 203.0.113.1", [false, false, true, false, true]),
        ("src 198.51.100.7 and dst 10.0.0.1", [true, false, false, false, false]),
        ("dst host 198.51.100.7", [false; 5]),
        ("host 2001:db8::2", [false, false, true, false, false]),
        ("2001:0DB8:0::0002", [false, false, true, false, false]),
        ("net 10.0.0.0/30", [true, false, false, false, false]),
        ("src net 10.0.0.0/30", [false; 5]),
        ("10.0.0.0/8", [true, false, false, false, false]),
        ("net 0.0.0.0/0", [true, true, false, true, false]),
        ("net ::/0", [false, false, true, false, false]),
        ("port 80", [true, true, false, false, false]),
        ("src port 80", [false; 5]),
        ("udp port 53", [false, false, true, false, false]),
        ("tcp port 53", [false; 5]),
        ("port 81 or 1053", [false, false, true, false, false]),
        ("portrange 8000-8100", [true, false, false, false, false]),
        ("dst portrange 0-65535", [true, true, true, false, false]),
        ("tcp and (port 1 or port 80) and not (drop)", [true, false, false, false, false]),
        ("tcp&&drop||!tcp", [false, true, true, true, true]),
        // `and` binds closer.
        ("ip6 or tcp and drop", [false, true, true, false, false]),
        ("(ip6 or tcp)and drop", [false, true, false, false, false]),
    ] {
        let filter = Filter::parse(text).unwrap_or_else(|error| panic!("{error}"));
        let got = [full_nat, dropped, six, icmp, none].map(|seen| filter.matches(&seen));
        assert_eq!(got, expected, "{text:?}");
    }
}

#[test]
fn errors_point_at_the_wrong_word() {
    for (text, what, marked) in [
        ("port 99999", "`99999` is no port (0 to 65535)", "99999"),
        ("port +80", "`+80` is no port (0 to 65535)", "+80"),
        ("tcp port http", "`http` is no port (0 to 65535)", "http"),
        ("port", "a port is missing here", ""),
        ("port (", "a port is missing here", "("),
        ("host", "an address is missing here", ""),
        ("src", "an address is missing here", ""),
        ("net", "a network, such as 192.0.2.0/24, is missing here", ""),
        ("portrange 9-1", "`9-1` ends before it begins", "9-1"),
        ("portrange 9", "`9` is no range of ports, such as 8000-8080", "9"),
        ("host example.org", "`example.org` is no address; names are not looked up", "example.org"),
        ("host 10.0.0.0/8", "`10.0.0.0/8` is a network: write `net 10.0.0.0/8`", "10.0.0.0/8"),
        (
            "net 10.0.0.1/8",
            "`10.0.0.1/8` has bits beyond its prefix: the network is 10.0.0.0/8",
            "10.0.0.1/8",
        ),
        ("net 10.0.0.0/33", "`10.0.0.0/33` has a prefix longer than 32 bits", "10.0.0.0/33"),
        ("net 10.0.0/8", "`10.0.0/8` is no network, such as 192.0.2.0/24 or 2001:db8::/32", "10.0.0/8"),
        ("tcp udp", "`and`, `or` or the end should come here, not `udp`", "udp"),
        ("drop 80", "`and`, `or` or the end should come here, not `80`", "80"),
        ("(tcp", "this parenthesis is not closed", "("),
        ("(tcp udp)", "`and`, `or` or `)` should come here", "udp"),
        ("tcp)", "`)` closes nothing", ")"),
        ("()", "a condition is missing here", ")"),
        ("tcp and", "a condition is missing here", ""),
        ("or tcp", "a condition is missing here", "or"),
        ("not", "a condition is missing here", ""),
        ("tcp and größe", "`größe` is no condition", "größe"),
        ("80", "`80` is no condition", "80"),
        ("tcp & drop", "`and`, `or` or the end should come here, not `&`", "&"),
        ("tcp &&& drop", "`&` is no condition", "&"),
        ("host !", "an address is missing here", "!"),
    ] {
        let said = Filter::parse(text).expect_err(text).to_string();
        let lines: Vec<&str> = said.lines().collect();
        assert!(lines[0].starts_with(what), "{text:?}: {said}");
        assert_eq!(lines[1].trim_start(), text);
        let start = lines[2].chars().take_while(|letter| *letter == ' ').count();
        let length = lines[2].chars().count() - start;
        let under: String = lines[1].chars().skip(start).take(length).collect();
        assert_eq!(under, marked, "{said}");
    }
    let deep = format!("{}tcp{}", "(".repeat(1000), ")".repeat(1000));
    assert!(Filter::parse(&deep).unwrap_err().to_string().starts_with("more than 32 parentheses"));
    assert!(
        Filter::parse(&"not ".repeat(1000)).unwrap_err().to_string().starts_with("a condition is missing")
    );
    assert!(Filter::parse(&" ".repeat(MAX_LENGTH + 1)).unwrap_err().to_string().contains("4097 bytes long"));
}

proptest! {
    #[test]
    fn whatever_is_written_is_read_or_refused(text in ".{0,60}") {
        let _either = Filter::parse(&text).map_err(|error| error.to_string());
    }

    #[test]
    fn whatever_words_are_written_are_read_or_refused(
        words in prop::collection::vec(prop::sample::select(vec![
            "tcp", "ip6", "src", "dst", "host", "net", "port", "portrange", "drop", "and", "or", "not", "(", ")", "80",
            "1-2", "10.0.0.1", "10.0.0.0/8", "::1", "é",
        ]), 0..12),
        frame in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        match Filter::parse(&words.join(" ")) {
            Ok(filter) => drop(filter.matches(&Seen::of(&frame, Some(&frame), false))),
            Err(error) => prop_assert!(error.to_string().lines().count() == 3),
        }
    }
}

const NEIGHBOUR: Neighbour = Neighbour { port: PortId(1), address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)) };

/// The last byte says what becomes of a frame; what is sent by device 1 gets another first byte.
struct Judge {
    until: Tick,
}

const TO_HOST: u8 = b'k';
const HELD: u8 = b'h';
const DROPPED: u8 = b'd';
const ELSEWHERE: u8 = b'e';
const CUT: u8 = b'c';
const FRAGMENTED: u8 = b'g';

impl Process for Judge {
    fn process(&mut self, _: &Snapshot, now: Tick, packets: &mut [Packet<'_>], verdicts: &mut [Verdict]) {
        for (packet, verdict) in packets.iter_mut().zip(verdicts) {
            let last = packet.rest().last().copied().unwrap_or(packet.frame()).last().copied();
            *verdict = match last.unwrap_or(0) {
                HELD if now.0 < self.until.0 => Verdict::Hold(NEIGHBOUR),
                TO_HOST => Verdict::ToKernel,
                DROPPED => Verdict::Drop(Reason::Martian),
                ELSEWHERE => Verdict::Transmit(PortId(2)),
                FRAGMENTED => Verdict::Fragment(PortId(1), 1000),
                CUT if packet.total_len() > 1014 => Verdict::Segment(1000),
                _ => Verdict::Transmit(PortId(1)),
            };
            if matches!(verdict, Verdict::Transmit(_) | Verdict::Fragment(..)) {
                packet.frame_mut()[0] = 0xaa;
            }
        }
    }

    fn dropped(&mut self, _: Reason, _: Option<(PortId, &[&[u8]])>) {}

    fn between(&mut self, _: Tick) {}

    fn sleep(&mut self, _: Tick) {}
}

/// A worker of two devices; a third one is not its own.
fn bench() -> (Arc<Captures>, Offline<Tapped<Judge>>) {
    let captures = Captures::new(1);
    let config = Config::new(Snapshot::empty(Arc::default()));
    let tapped = Tapped::new(Judge { until: Tick(150) }, captures.clone(), 0);
    let mut worker = Offline::new(&config, 2, tapped).unwrap();
    worker.wait_until(Duration::from_secs(1));
    (captures, worker)
}

fn wanted(filter: &str) -> Wanted {
    Wanted { filter: Filter::parse(filter).unwrap(), ports: (0..3).map(PortId).collect(), snap: 65_536 }
}

/// Interface, way, first byte, length and note of what a feed has.
fn seen(feed: &mut Feed) -> Vec<(u32, Way, u8, u32, String)> {
    let records = feed.take().into_iter();
    records
        .map(|record| {
            assert_eq!(record.bytes.len(), record.wire_len as usize);
            (record.interface, record.way, record.bytes[0], record.wire_len, record.note.to_string())
        })
        .collect()
}

#[test]
fn frames_are_shown_as_they_came_and_as_they_leave() {
    let (captures, mut worker) = bench();
    let mut feed = captures.begin(wanted("")).unwrap();
    let dropped = format!("martian: {}", Reason::Martian.explanation());
    let lost = format!("egress_not_ours: {}", Reason::EgressNotOurs.explanation());
    for (last, expected) in [
        (b's', vec![(0, Way::In, b'f', 6, String::new()), (4, Way::Out, 0xaa, 6, String::new())]),
        (TO_HOST, vec![(0, Way::In, b'f', 6, "left to the host".into())]),
        (DROPPED, vec![(2, Way::Dropped, b'f', 6, dropped)]),
        // The third device's drops: it was to leave by that.
        (ELSEWHERE, vec![(0, Way::In, b'f', 6, String::new()), (8, Way::Dropped, 0xaa, 6, lost)]),
        (HELD, vec![(0, Way::In, b'f', 6, "held until 10.0.0.1 has a link-layer address".into())]),
    ] {
        worker.receive(PortId(0), [b"frame".as_slice(), &[last]].concat());
        assert_eq!(seen(&mut feed), expected);
    }
    worker.wait_until(Duration::from_secs(5));
    assert_eq!(seen(&mut feed), [(4, Way::Out, 0xaa, 6, String::new())], "it is not shown again as it came");
    let super_frame = tcp([10, 0, 0, 2], 1000, [10, 0, 0, 1], 80, &[CUT; 5000]);
    worker.receive(PortId(0), super_frame);
    let shown = seen(&mut feed);
    assert_eq!(shown[0], (0, Way::In, 4, 5054, "cut into segments of 1000 bytes at most".into()));
    assert!(shown[1..].iter().all(|shown| (shown.0, shown.1) == (4, Way::Out)), "{shown:?}");
    assert_eq!(shown[1..].iter().map(|shown| shown.3 - 54).sum::<u32>(), 5000);
    let mut long = tcp([10, 0, 0, 2], 1000, [10, 0, 0, 1], 80, &[FRAGMENTED; 1400]);
    // It may be fragmented.
    long[20] &= !0x40;
    assert!(worker.receive(PortId(0), long).sent.len() > 1);
    let note = "sent in fragments of 1000 bytes at most".to_owned();
    assert_eq!(seen(&mut feed), [(0, Way::In, 4, 1454, String::new()), (4, Way::Out, 0xaa, 1454, note)]);
    // A frame in several parts is shown whole.
    worker.receive(PortId(1), [[b'f'; 20_000].as_slice(), b"s"].concat());
    let shown = seen(&mut feed);
    assert_eq!(shown.iter().map(|shown| (shown.0, shown.3)).collect::<Vec<_>>(), [(3, 20_001), (4, 20_001)]);
}

#[test]
fn captures_are_of_what_they_want() {
    let (captures, mut worker) = bench();
    let mut drops = captures.begin(wanted("drop")).unwrap();
    let mut cut = captures.begin(Wanted { snap: 4, ..wanted("host 10.0.0.2") }).unwrap();
    let mut second = captures.begin(Wanted { ports: vec![PortId(1)], ..wanted("") }).unwrap();
    worker.receive(PortId(0), tcp([10, 0, 0, 2], 1000, [10, 0, 0, 1], 80, b"s"));
    worker.receive(PortId(0), tcp([10, 0, 0, 3], 1000, [10, 0, 0, 1], 80, &[DROPPED]));
    assert_eq!(seen(&mut drops).len(), 1);
    let kept: Vec<_> = cut.take().into_iter().map(|record| (record.bytes.len(), record.wire_len)).collect();
    assert_eq!(kept, [(4, 55), (4, 55)]);
    assert_eq!(
        seen(&mut second),
        [(1, Way::Out, 0xaa, 55, String::new())],
        "its interfaces are numbered from 0"
    );
    assert_eq!(captures.count(), 3);
    drop((drops, cut));
    second.end();
    assert_eq!((captures.count(), captures.feeds()), (0, 1));
    worker.receive(PortId(0), tcp([10, 0, 0, 2], 1000, [10, 0, 0, 1], 80, b"s"));
    assert!(second.take().is_empty());
    drop(second);
    assert_eq!(captures.feeds(), 0);
    let feeds: Vec<_> = (0..MAX_CAPTURES).map(|_| captures.begin(wanted("")).unwrap()).collect();
    assert_eq!(captures.begin(wanted("")).unwrap_err(), TooMany);
    drop(feeds);
    assert!(captures.begin(wanted("")).is_ok());
}

#[test]
fn who_does_not_read_loses_frames_and_nothing_else() {
    let (captures, mut worker) = bench();
    let mut feed = captures.begin(wanted("")).unwrap();
    let mut reads = captures.begin(Wanted { snap: 64, ..wanted("") }).unwrap();
    let frame = [[b'f'; 60_000].as_slice(), b"s"].concat();
    for _ in 0..200 {
        let outcome = worker.receive(PortId(0), frame.clone());
        assert_eq!(outcome.sent.len(), 1);
        assert_eq!(reads.take().len(), 2);
    }
    let lost: Vec<u64> = feed.lost().collect();
    assert!(lost[0] > 0 && lost[4] > 0, "{lost:?}");
    let records = feed.take();
    assert_eq!(records.len() as u64 + lost.iter().sum::<u64>(), 400);
    assert!(records.iter().map(|record| record.bytes.len() + OVERHEAD).sum::<usize>() <= ROOM);
    assert!(reads.lost().all(|lost| lost == 0));
    worker.receive(PortId(0), frame);
    assert_eq!(feed.take().len(), 2, "there is room again");
}
