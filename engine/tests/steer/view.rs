//! User space decides as the programs in the kernel do.

use super::frames::*;
use super::{at, example, extension, fragment6, icmp_error, ip};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use std::time::Duration;
use uvs_engine::steer::{Guard, Guarded, Steering};

/// The example with all that it lacks: sources, ports of the host, tunnels.
fn everything() -> Steering {
    let mut steering = example();
    for source in ["10.0.0.1", "10.9.9.9", "fd00::1"] {
        steering.add_source(ip(source)).unwrap();
    }
    steering.set_host_ports(&[32768..=60999, 4001..=4001]).unwrap();
    for (address, port, protocol) in
        [("10.0.0.20", 0, 4), ("10.0.0.20", 0, 47), ("10.0.0.11", 6080, UDP), ("fd00::11", 0, 41)]
    {
        steering.add_tunnel(ip(address), port, protocol).unwrap();
    }
    steering
}

/// Packets of every kind that the programs know, between all sorts of ends.
fn packets() -> Vec<Vec<u8>> {
    let ends4 = [
        "198.51.100.7:4000",
        "192.0.2.1:80",
        "192.0.2.2:9",
        "10.0.0.10:8080",
        "10.0.0.11:6080",
        "10.0.0.1:5000",
        "10.0.0.1:40000",
        "10.9.9.9:4001",
        "10.0.0.20:7",
    ];
    let ends6 = [
        "[2001:db8:f::7]:4000",
        "[2001:db8::1]:80",
        "[2001:db8::2]:9",
        "[fd00::10]:8080",
        "[fd00::11]:7",
        "[fd00::1]:5000",
        "[fd00::1]:40000",
    ];
    let mut packets = Vec::new();
    for ends in [&ends4[..], &ends6] {
        for (from, to) in ends.iter().flat_map(|from| ends.iter().map(move |to| (at(from), at(to)))) {
            for protocol in [TCP, UDP, 4, 41, 47] {
                let mut packet = packet(protocol.clamp(TCP, UDP), from, to);
                let at_protocol = if from.is_ipv4() { 9 } else { 6 };
                packet[at_protocol] = protocol;
                for host in [from, to] {
                    let (kind, router) =
                        if host.is_ipv4() { (3, "203.0.113.1") } else { (2, "2001:db8:e::1") };
                    packets.push(icmp_error(kind, ip(router), host.ip(), &packet));
                }
                packets.push(packet);
            }
            let port = to.port();
            if let (std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)) = (from.ip(), to.ip()) {
                for field in [0x2000, 0x0010] {
                    packets.push(ipv4(from, to, UDP, field, &[1; 4], &segment(UDP, 1, port)));
                }
            }
            if let (std::net::IpAddr::V6(from), std::net::IpAddr::V6(to)) = (from.ip(), to.ip()) {
                let transport = segment(TCP, 1, port);
                for field in [0, 1, 0x0010] {
                    packets.push(ipv6(from, to, 44, &fragment6(TCP, field, &transport)));
                    packets.push(ipv6(from, to, 0, &extension(44, 2, &fragment6(60, field, &transport))));
                }
                packets.push(ipv6(from, to, 43, &extension(60, 1, &extension(TCP, 3, &transport))));
            }
        }
    }
    packets
}

/// Twenty thousand frames, whole and mutilated: the view, the XDP program and the guard behind packet sockets agree.
#[test]
fn the_view_decides_as_the_programs_do() {
    let mut steering = everything();
    assert!(!steering.view().look().takes(&super::plain(TCP, "198.51.100.7:4000", "192.0.2.1:80")));
    steering.reveal();
    let (view, program) = (steering.view(), steering.dry_run().unwrap());
    let guard = Guard::new(&steering, Duration::from_secs(600), Guarded::AllTaken).unwrap();
    let packets = packets();
    let (mut taken, mut left) = (0, 0);
    let mut compare = |bytes: &[u8]| {
        let expected = program.takes(bytes).unwrap();
        assert_eq!(view.look().takes(bytes), expected, "{bytes:02x?}");
        // The kernel itself refuses to run a classifier over less than an IP header.
        if let Ok(drops) = guard.drops(bytes) {
            assert_eq!(drops, expected, "the guard: {bytes:02x?}");
        }
        if expected {
            taken += 1;
        } else {
            left += 1;
        }
    };
    packets.iter().for_each(|packet| compare(&frame(packet)));
    let mutations = (
        any::<Index>(),
        proptest::collection::vec(prop_oneof![Just(0x8100_u16), Just(0x88a8)], 0..3),
        proptest::collection::vec((0..90_usize, any::<u8>()), 0..3),
        proptest::option::weighted(0.2, 14..120_usize),
    );
    let mut runner = TestRunner::new_with_rng(
        Config { cases: 20_000, failure_persistence: None, ..Config::default() },
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    let compare = std::cell::RefCell::new(compare);
    runner
        .run(&mutations, |(index, tags, bytes, length)| {
            let mut frame = tags
                .into_iter()
                .fold(frame(index.get(&packets[..]).as_slice()), |frame, tag| tagged(tag, frame));
            for (at, value) in bytes {
                if let Some(byte) = frame.get_mut(at) {
                    *byte = value;
                }
            }
            frame.truncate(length.unwrap_or(usize::MAX));
            compare.borrow_mut()(&frame);
            Ok(())
        })
        .unwrap();
    assert!(taken > 2000 && left > 2000, "{taken} taken, {left} left: the frames say little");
}
