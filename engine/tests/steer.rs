//! The programs of steering, run by the kernel over frames (`BPF_PROG_TEST_RUN`). Needs root.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[path = "steer/frames.rs"]
mod frames;
#[path = "steer/view.rs"]
mod view;

use frames::*;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use uvs_engine::steer::{Diversion, DryRun, Guard, Guarded, Keys, SteerError, Steering};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Two services of each family, one of any port; a real server of each; two addresses of this host.
fn example() -> Steering {
    let mut steering = Steering::new().unwrap();
    for (address, port, protocol) in
        [("192.0.2.1", 80, TCP), ("192.0.2.2", 0, UDP), ("2001:db8::1", 80, TCP), ("2001:db8::2", 0, UDP)]
    {
        steering.add_service(ip(address), port, protocol).unwrap();
    }
    for (address, port, protocol) in
        [("10.0.0.10", 8080, TCP), ("10.0.0.11", 0, UDP), ("fd00::10", 8080, TCP), ("fd00::11", 0, UDP)]
    {
        steering.add_reply(ip(address), port, protocol).unwrap();
    }
    steering.set_local([ip("10.0.0.1"), ip("192.0.2.1"), ip("fd00::1")]).unwrap();
    steering
}

const OURS: bool = true;
const THEIRS: bool = false;

fn check(steering: &Steering, table: &[(&str, Vec<u8>, bool)]) {
    let program = steering.dry_run().unwrap();
    for (what, frame, expected) in table {
        assert_eq!(program.takes(frame).unwrap(), *expected, "{what}");
    }
}

fn plain(protocol: u8, source: &str, destination: &str) -> Vec<u8> {
    frame(&packet(protocol, at(source), at(destination)))
}

#[test]
fn services_by_address_port_and_protocol() {
    let client4 = "198.51.100.7:4000";
    let client6 = "[2001:db8:f::7]:4000";
    let to_group = {
        let mut frame = plain(TCP, client4, "192.0.2.1:80");
        frame[0] |= 1;
        frame
    };
    check(
        &example(),
        &[
            ("exact port", plain(TCP, client4, "192.0.2.1:80"), OURS),
            ("another port", plain(TCP, client4, "192.0.2.1:22"), THEIRS),
            ("another protocol", plain(UDP, client4, "192.0.2.1:80"), THEIRS),
            ("another address", plain(TCP, client4, "192.0.2.3:80"), THEIRS),
            ("any port", plain(UDP, client4, "192.0.2.2:9"), OURS),
            ("any port, another protocol", plain(TCP, client4, "192.0.2.2:9"), THEIRS),
            ("IPv6, exact port", plain(TCP, client6, "[2001:db8::1]:80"), OURS),
            ("IPv6, another port", plain(TCP, client6, "[2001:db8::1]:81"), THEIRS),
            ("IPv6, any port", plain(UDP, client6, "[2001:db8::2]:9"), OURS),
            ("IPv6, a mapped address is not IPv4", plain(TCP, client6, "[::ffff:192.0.2.1]:80"), THEIRS),
            ("from the service", plain(TCP, "192.0.2.1:80", client4), THEIRS),
            ("to a group of stations", to_group, THEIRS),
        ],
    );
}

#[test]
fn replies_unless_they_are_for_this_host() {
    let client4 = "198.51.100.7:4000";
    check(
        &example(),
        &[
            ("a reply to a client", plain(TCP, "10.0.0.10:8080", client4), OURS),
            ("to this host", plain(TCP, "10.0.0.10:8080", "10.0.0.1:4000"), THEIRS),
            ("to a VIP that this host has", plain(TCP, "10.0.0.10:8080", "192.0.2.1:4000"), THEIRS),
            ("to a service, from a real server", plain(TCP, "10.0.0.10:8080", "192.0.2.1:80"), OURS),
            ("from another port", plain(TCP, "10.0.0.10:22", client4), THEIRS),
            ("from any port", plain(UDP, "10.0.0.11:5353", client4), OURS),
            ("from any port, to this host", plain(UDP, "10.0.0.11:5353", "10.0.0.1:9"), THEIRS),
            ("to the real server", plain(TCP, client4, "10.0.0.10:8080"), THEIRS),
            ("IPv6", plain(TCP, "[fd00::10]:8080", "[2001:db8:f::7]:4000"), OURS),
            ("IPv6, to this host", plain(TCP, "[fd00::10]:8080", "[fd00::1]:4000"), THEIRS),
            ("IPv6, from any port", plain(UDP, "[fd00::11]:1", "[2001:db8:f::7]:4000"), OURS),
        ],
    );
}

/// Full NAT: what real servers answer to an address that packets to them are sent from.
#[test]
fn replies_to_sources() {
    let mut steering = example();
    // One that is this host's own, one that is only routed here, one of IPv6.
    for source in ["10.0.0.1", "10.9.9.9", "fd00::1"] {
        steering.add_source(ip(source)).unwrap();
    }
    let host_ports = [32768..=60999, 4001..=4001, 0..=0, 65535..=65535];
    steering.set_host_ports(&host_ports).unwrap();
    let to = |port: u16| plain(TCP, "10.0.0.10:8080", &format!("10.0.0.1:{port}"));
    let to6 = |port: u16| plain(TCP, "[fd00::10]:8080", &format!("[fd00::1]:{port}"));
    let error = |about: &str| {
        let request = packet(TCP, at(about), at("10.0.0.10:8080"));
        frame(&icmp_error(3, ip("10.0.0.254"), ip("10.0.0.1"), &request))
    };
    let cut = |from, to| frame(&ipv4(ip4(from), ip4(to), UDP, 0x2000, &[], &[0; 24]));
    check(
        &steering,
        &[
            ("to our own address", to(5000), OURS),
            ("to a port of the host's sockets", to(32768), THEIRS),
            ("to the last of them", to(60999), THEIRS),
            ("to the first above", to(61000), OURS),
            ("to the last below", to(32767), OURS),
            ("to a single port of the host", to(4001), THEIRS),
            ("to the ports beside it", to(4000), OURS),
            ("to the ports beside it", to(4002), OURS),
            ("to port 0", to(0), THEIRS),
            ("to port 65535", to(65535), THEIRS),
            ("IPv6", to6(5000), OURS),
            ("IPv6, to a port of the host's sockets", to6(40000), THEIRS),
            ("to an address that is not this host's", plain(TCP, "10.0.0.10:8080", "10.9.9.9:40000"), OURS),
            ("from another port", plain(TCP, "10.0.0.10:22", "10.0.0.1:5000"), THEIRS),
            ("from no real server", plain(TCP, "10.0.0.12:8080", "10.0.0.1:5000"), THEIRS),
            ("to another address of this host", plain(TCP, "10.0.0.10:8080", "192.0.2.1:5000"), THEIRS),
            ("an error about our request", error("10.0.0.1:5000"), OURS),
            ("an error about the host's own", error("10.0.0.1:40000"), THEIRS),
            ("a fragment, whosever it is", cut("10.0.0.11", "10.0.0.1"), OURS),
        ],
    );
    let guard = Guard::new(&steering, Duration::from_secs(600), Guarded::Certain).unwrap();
    for (port, expected) in [(5000, true), (40000, false)] {
        assert_eq!(guard.drops(&to(port)).unwrap(), expected, "the guard, port {port}");
        assert_eq!(guard.drops(&to6(port)).unwrap(), expected, "the guard, IPv6, port {port}");
    }
    // Claims are counted, and ports are replaced.
    steering.add_source(ip("10.0.0.1")).unwrap();
    assert!(steering.remove_source(ip("10.0.0.1")).unwrap());
    steering.set_host_ports(&[]).unwrap();
    check(&steering, &[("any port, when the host has none", to(40000), OURS)]);
    assert!(steering.remove_source(ip("10.0.0.1")).unwrap());
    assert!(!steering.remove_source(ip("10.0.0.1")).unwrap());
    check(
        &steering,
        &[
            ("a source no more", to(5000), THEIRS),
            ("nor for fragments", cut("10.0.0.11", "10.0.0.1"), THEIRS),
        ],
    );
}

#[test]
fn errors_about_tunnels() {
    const IPIP: u8 = 4;
    const IPV6_IN_IP: u8 = 41;
    const GRE: u8 = 47;
    let mut steering = example();
    for (address, port, protocol) in [
        ("10.0.0.20", 0, IPIP),
        ("10.0.0.20", 0, IPV6_IN_IP),
        ("10.0.0.21", 0, GRE),
        ("10.0.0.22", 6080, UDP),
        ("10.0.0.11", 6080, UDP),
        ("fd00::20", 0, IPIP),
        ("fd00::22", 6080, UDP),
    ] {
        steering.add_tunnel(ip(address), port, protocol).unwrap();
    }
    let about = |to_host: &str, protocol: u8, from: &str, to: &str| {
        let (source, destination) = (at(&format!("{from}:40000")), at(&format!("{to}:6080")));
        let mut quoted = packet(UDP, source, destination);
        let at_protocol = if quoted[0] >> 4 == 4 { 9 } else { 6 };
        quoted[at_protocol] = protocol;
        let kind = if quoted[0] >> 4 == 4 { 3 } else { 2 };
        let router = if quoted[0] >> 4 == 4 { "203.0.113.1" } else { "2001:db8:e::1" };
        frame(&icmp_error(kind, ip(router), ip(to_host), &quoted))
    };
    let ours4 = |protocol, to| about("10.0.0.1", protocol, "10.0.0.1", to);
    let ours6 = |protocol, to| about("fd00::1", protocol, "[fd00::1]", to);
    check(
        &steering,
        &[
            ("IPv4 in IPv4", ours4(IPIP, "10.0.0.20"), OURS),
            ("IPv6 in IPv4", ours4(IPV6_IN_IP, "10.0.0.20"), OURS),
            ("GRE where IP in IP is", ours4(GRE, "10.0.0.20"), THEIRS),
            ("GRE", ours4(GRE, "10.0.0.21"), OURS),
            ("GUE", ours4(UDP, "10.0.0.22"), OURS),
            ("GUE to a real server of UDP", ours4(UDP, "10.0.0.11"), OURS),
            ("UDP to where GUE is not", ours4(UDP, "10.0.0.20"), THEIRS),
            ("TCP to where GUE is", ours4(TCP, "10.0.0.22"), THEIRS),
            ("to another real server", ours4(IPIP, "10.0.0.99"), THEIRS),
            ("to another host", about("10.0.0.2", IPIP, "10.0.0.2", "10.0.0.20"), THEIRS),
            ("GUE of another host", about("10.0.0.2", UDP, "10.0.0.2", "10.0.0.22"), THEIRS),
            ("IPv4 in IPv6", ours6(IPIP, "[fd00::20]"), OURS),
            ("IPv6 in IPv6, which is not", ours6(IPV6_IN_IP, "[fd00::20]"), THEIRS),
            ("GUE over IPv6", ours6(UDP, "[fd00::22]"), OURS),
            (
                "an encapsulated packet itself",
                frame(&ipv4(ip4("10.0.0.20"), ip4("10.0.0.1"), IPIP, 0, &[], &[0; 40])),
                THEIRS,
            ),
        ],
    );
    assert!(steering.remove_tunnel(ip("10.0.0.20"), 0, IPIP).unwrap());
    assert!(!steering.remove_tunnel(ip("10.0.0.20"), 0, IPIP).unwrap());
    check(&steering, &[("a tunnel no more", ours4(IPIP, "10.0.0.20"), THEIRS)]);
    for protocol in [0, 1, TCP] {
        let refused = steering.add_tunnel(ip("10.0.0.20"), 0, protocol);
        assert!(matches!(refused, Err(SteerError::Encapsulation(p)) if p == protocol));
    }
}

#[test]
fn headers_in_between() {
    let client4 = ip4("198.51.100.7");
    let vip4 = ip4("192.0.2.1");
    let (client6, vip6) = (ip6("2001:db8:f::7"), ip6("2001:db8::1"));
    let to_vip = |port| segment(TCP, 4000, port);
    let options = |length| frame(&ipv4(client4, vip4, TCP, 0, &vec![1; length], &to_vip(80)));
    let over6 = |next, payload: &[u8]| frame(&ipv6(client6, vip6, next, payload));
    let chain = |count| {
        let inner = (1..count).fold(extension(TCP, 1, &to_vip(80)), |rest, _| extension(60, 1, &rest));
        over6(60, &inner)
    };
    check(
        &example(),
        &[
            ("802.1Q", tagged(0x8100, options(0)), OURS),
            ("802.1ad", tagged(0x88a8, options(0)), OURS),
            ("two tags", tagged(0x88a8, tagged(0x8100, options(0))), OURS),
            ("three tags", tagged(0x88a8, tagged(0x8100, tagged(0x8100, options(0)))), THEIRS),
            ("a tag and another port", tagged(0x8100, plain(TCP, "198.51.100.7:1", "192.0.2.1:22")), THEIRS),
            ("a tag and IPv6", tagged(0x8100, over6(TCP, &to_vip(80))), OURS),
            ("4 bytes of options", options(4), OURS),
            ("40 bytes of options", options(40), OURS),
            ("hop-by-hop options", over6(0, &extension(TCP, 1, &to_vip(80))), OURS),
            ("routing header", over6(43, &extension(TCP, 3, &to_vip(80))), OURS),
            ("destination options", over6(60, &extension(TCP, 2, &to_vip(80))), OURS),
            ("long options", over6(60, &extension(TCP, 100, &to_vip(80))), OURS),
            ("hop-by-hop, then routing", over6(0, &extension(43, 1, &extension(TCP, 2, &to_vip(80)))), OURS),
            ("extension and another port", over6(0, &extension(TCP, 1, &to_vip(81))), THEIRS),
            ("six extension headers", chain(6), OURS),
            ("seven extension headers", chain(7), THEIRS),
            ("authentication header", over6(51, &extension(TCP, 2, &to_vip(80))), THEIRS),
            ("no next header", over6(59, &to_vip(80)), THEIRS),
        ],
    );
}

#[test]
fn errors_by_what_they_quote() {
    let (router4, client4) = (ip("203.0.113.1"), "198.51.100.7:4000");
    let (router6, client6) = (ip("2001:db8:e::1"), "[2001:db8:f::7]:4000");
    let error = |kind, from: IpAddr, to: &str, quoted: &[u8]| frame(&icmp_error(kind, from, ip(to), quoted));
    let answer4 = packet(TCP, at("192.0.2.1:80"), at(client4));
    let request4 = packet(TCP, at(client4), at("10.0.0.10:8080"));
    let answer6 = packet(TCP, at("[2001:db8::1]:80"), at(client6));
    let request6 = packet(TCP, at(client6), at("[fd00::10]:8080"));
    let own4 = packet(TCP, at("10.0.0.1:4000"), at("10.0.0.10:8080"));
    let later = ipv4(ip4("192.0.2.1"), ip4("198.51.100.7"), TCP, 0x2001, &[], &segment(TCP, 80, 4000));
    let first = ipv4(ip4("192.0.2.1"), ip4("198.51.100.7"), TCP, 0x2000, &[], &segment(TCP, 80, 4000));
    let options = ipv4(ip4("192.0.2.1"), ip4("198.51.100.7"), TCP, 0, &[1; 8], &segment(TCP, 80, 4000));
    let extended = |count| {
        let inner =
            (1..count).fold(extension(TCP, 2, &segment(TCP, 80, 1)), |rest, _| extension(60, 1, &rest));
        ipv6(ip6("2001:db8::1"), ip6("2001:db8:f::7"), 60, &inner)
    };
    let about_error = icmp_error(3, router4, ip("192.0.2.1"), &answer4);
    let mut table = vec![
        ("about the service's answer", error(3, router4, "192.0.2.1", &answer4), OURS),
        ("8 bytes quoted", error(3, router4, "192.0.2.1", &answer4[..28]), OURS),
        ("7 bytes quoted are enough for ports", error(3, router4, "192.0.2.1", &answer4[..27]), OURS),
        ("ports cut off", error(3, router4, "192.0.2.1", &answer4[..23]), THEIRS),
        (
            "about another port's answer",
            error(3, router4, "192.0.2.1", &packet(TCP, at("192.0.2.1:22"), at(client4))),
            THEIRS,
        ),
        ("about a request to a real server", error(3, ip("10.0.0.10"), "198.51.100.7", &request4), OURS),
        ("about this host's own request", error(3, ip("10.0.0.10"), "10.0.0.1", &own4), THEIRS),
        ("a later fragment quoted", error(11, router4, "192.0.2.1", &later), THEIRS),
        ("a first fragment quoted", error(11, router4, "192.0.2.1", &first), OURS),
        ("options quoted", error(3, router4, "192.0.2.1", &options), OURS),
        ("ICMP quoted", error(3, router4, "192.0.2.1", &about_error), THEIRS),
        (
            "an any-port service's answer",
            error(3, router4, "192.0.2.2", &packet(UDP, at("192.0.2.2:7"), at(client4))),
            OURS,
        ),
        ("IPv6, the service's answer", error(2, router6, "2001:db8::1", &answer6), OURS),
        ("IPv6, a request to a real server", error(1, router6, "2001:db8:f::7", &request6), OURS),
        ("IPv6, extension header quoted", error(1, router6, "2001:db8::1", &extended(1)), OURS),
        ("IPv6, two extension headers quoted", error(1, router6, "2001:db8::1", &extended(2)), OURS),
        ("IPv6, three extension headers quoted", error(1, router6, "2001:db8::1", &extended(3)), THEIRS),
        ("IPv6, cut off", error(1, router6, "2001:db8::1", &answer6[..43]), THEIRS),
    ];
    for kind in 0..=255 {
        let errors4 = [3, 4, 11, 12].contains(&kind);
        let errors6 = (1..=4).contains(&kind);
        table.push(("ICMP type", error(kind, router4, "192.0.2.1", &answer4), errors4));
        table.push(("ICMPv6 type", error(kind, router6, "2001:db8::1", &answer6), errors6));
    }
    check(&example(), &table);
}

#[test]
fn fragments_by_address() {
    let (client, server, host) = (ip4("198.51.100.7"), ip4("10.0.0.10"), ip4("10.0.0.1"));
    let (vip, other) = (ip4("192.0.2.1"), ip4("192.0.2.9"));
    let cut = |from, to, protocol, field| frame(&ipv4(from, to, protocol, field, &[], &[0; 24]));
    let (client6, vip6, server6) = (ip6("2001:db8:f::7"), ip6("2001:db8::1"), ip6("fd00::10"));
    let cut6 = |from, to, next, field: u16| frame(&ipv6(from, to, 44, &fragment6(next, field, &[0; 24])));
    let whole = fragment6(TCP, 0, &segment(TCP, 4000, 80));
    check(
        &example(),
        &[
            ("first, to a VIP", cut(client, vip, UDP, 0x2000), OURS),
            ("middle, to a VIP", cut(client, vip, UDP, 0x2010), OURS),
            ("last, to a VIP", cut(client, vip, TCP, 0x0010), OURS),
            ("to another address", cut(client, other, UDP, 0x2000), THEIRS),
            ("of a ping to a VIP", cut(client, vip, 1, 0x2000), THEIRS),
            ("of a tunnel to a VIP", cut(client, vip, 47, 0x0010), THEIRS),
            ("from a real server", cut(server, client, UDP, 0x0010), OURS),
            ("from a real server to this host", cut(server, host, UDP, 0x0010), THEIRS),
            ("not to be fragmented is no fragment", cut(client, vip, UDP, 0x4000), THEIRS),
            ("IPv6, first", cut6(client6, vip6, UDP, 1), OURS),
            ("IPv6, last", cut6(client6, vip6, TCP, 0x0010), OURS),
            ("IPv6, options in the fragment", cut6(client6, vip6, 60, 1), OURS),
            ("IPv6, of a ping", cut6(client6, vip6, 58, 1), THEIRS),
            ("IPv6, from a real server", cut6(server6, client6, UDP, 0x0011), OURS),
            ("IPv6, from a real server to this host", cut6(server6, ip6("fd00::1"), UDP, 1), THEIRS),
            ("IPv6, all in one fragment", frame(&ipv6(client6, vip6, 44, &whole)), OURS),
            (
                "IPv6, all in one fragment, another port",
                frame(&ipv6(client6, vip6, 44, &fragment6(TCP, 0, &segment(TCP, 4000, 81)))),
                THEIRS,
            ),
        ],
    );
}

#[test]
fn what_is_no_packet_of_ours() {
    let broken = |byte: usize, value: u8| {
        let mut frame = plain(TCP, "198.51.100.7:1", "192.0.2.1:80");
        frame[byte] = value;
        frame
    };
    check(
        &example(),
        &[
            ("ARP", ethernet(0x0806, &[0; 46]), THEIRS),
            ("LLDP", ethernet(0x88cc, &[0; 46]), THEIRS),
            ("802.3 length", ethernet(46, &[0; 46]), THEIRS),
            ("IP version 6 in an IPv4 frame", broken(14, 0x65), THEIRS),
            ("header length 16", broken(14, 0x44), THEIRS),
            ("header length beyond the frame", broken(14, 0x4f), THEIRS),
            ("GRE", broken(23, 47), THEIRS),
            ("echo request", broken(23, 1), THEIRS),
            ("ICMPv6 over IPv4", broken(23, 58), THEIRS),
        ],
    );
}

/// A frame that ends too early passes, wherever it ends. Below 14 bytes the kernel itself refuses it.
#[test]
fn truncated_anywhere() {
    let steering = example();
    let program = steering.dry_run().unwrap();
    let quoted6 = packet(TCP, at("[2001:db8::1]:80"), at("[2001:db8:f::7]:4000"));
    let over6 = extension(60, 1, &extension(TCP, 2, &segment(TCP, 4000, 80)));
    let frames = [
        ("IPv4", plain(TCP, "198.51.100.7:4000", "192.0.2.1:80"), 14 + 20 + 4),
        (
            "tags",
            tagged(0x8100, tagged(0x8100, plain(TCP, "198.51.100.7:4000", "192.0.2.1:80"))),
            22 + 20 + 4,
        ),
        ("IPv6", plain(TCP, "[2001:db8:f::7]:4000", "[2001:db8::1]:80"), 14 + 40 + 4),
        ("extensions", frame(&ipv6(ip6("2001:db8:f::7"), ip6("2001:db8::1"), 0, &over6)), 14 + 40 + 24 + 4),
        (
            "ICMPv6",
            frame(&icmp_error(1, ip("2001:db8:e::1"), ip("2001:db8::1"), &quoted6)),
            14 + 40 + 8 + 40 + 4,
        ),
    ];
    for (what, frame, enough) in frames {
        for length in 0..=frame.len() {
            let result = program.takes(&frame[..length]);
            match length {
                0..14 => {
                    assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EINVAL), "{what} {length}");
                }
                _ if length < enough => assert_eq!(result.unwrap(), THEIRS, "{what}, {length} bytes"),
                _ => assert_eq!(result.unwrap(), OURS, "{what}, {length} bytes"),
            }
        }
    }
}

#[test]
fn changes_take_effect_at_once() {
    let mut steering = Steering::new().unwrap();
    let program = steering.dry_run().unwrap();
    let request = plain(TCP, "198.51.100.7:4000", "192.0.2.1:80");
    let reply = plain(TCP, "10.0.0.10:80", "198.51.100.7:4000");
    let is = |program: &DryRun, frame: &[u8], expected| assert_eq!(program.takes(frame).unwrap(), expected);

    is(&program, &request, THEIRS);
    steering.add_service(ip("192.0.2.1"), 80, TCP).unwrap();
    steering.add_service(ip("192.0.2.1"), 80, TCP).unwrap();
    is(&program, &request, OURS);
    assert!(steering.remove_service(ip("192.0.2.1"), 80, TCP).unwrap());
    is(&program, &request, OURS);
    assert!(steering.remove_service(ip("192.0.2.1"), 80, TCP).unwrap());
    is(&program, &request, THEIRS);
    assert!(!steering.remove_service(ip("192.0.2.1"), 80, TCP).unwrap());

    steering.add_reply(ip("10.0.0.10"), 80, TCP).unwrap();
    is(&program, &reply, OURS);
    steering.set_local([ip("198.51.100.7")]).unwrap();
    is(&program, &reply, THEIRS);
    steering.set_local([]).unwrap();
    is(&program, &reply, OURS);
    assert!(steering.remove_reply(ip("10.0.0.10"), 80, TCP).unwrap());
    is(&program, &reply, THEIRS);
    assert_eq!(
        steering.keys(),
        Keys { services: 0, replies: 0, locals: 0, sources: 0, tunnels: 0, own_servers: 0 }
    );
}

#[test]
fn only_protocols_with_ports() {
    let mut steering = Steering::new().unwrap();
    for protocol in [0, 1, 58, 132] {
        let refused = steering.add_service(ip("192.0.2.1"), 80, protocol);
        assert!(matches!(refused, Err(SteerError::Protocol(p)) if p == protocol));
    }
}

/// The guard sees what the XDP program sees, and leaves more to the kernel.
#[test]
fn the_guard_drops_what_is_certainly_ours() {
    let client4 = "198.51.100.7:4000";
    let (client, vip, server) = (ip4("198.51.100.7"), ip4("192.0.2.1"), ip4("10.0.0.10"));
    let (client6, vip6) = (ip6("2001:db8:f::7"), ip6("2001:db8::1"));
    let cut = |from, to, field, ports: &[u8]| frame(&ipv4(from, to, TCP, field, &[], ports));
    let answer = packet(TCP, at("192.0.2.1:80"), at(client4));
    let options = frame(&ipv4(client, vip, TCP, 0, &[1; 40], &segment(TCP, 4000, 80)));
    let first6 = fragment6(TCP, 1, &segment(TCP, 4000, 80));
    let later6 = fragment6(TCP, 0x11, &segment(TCP, 4000, 80));
    let long6 = extension(60, 20, &extension(TCP, 20, &segment(TCP, 4000, 80)));
    let table = [
        ("a service", plain(TCP, client4, "192.0.2.1:80"), true),
        ("another port", plain(TCP, client4, "192.0.2.1:22"), false),
        ("any port", plain(UDP, client4, "192.0.2.2:9"), true),
        ("IPv6", plain(TCP, "[2001:db8:f::7]:4000", "[2001:db8::1]:80"), true),
        ("options", options.clone(), true),
        ("a tag in the frame", tagged(0x8100, options), true),
        ("a reply to a client", plain(TCP, "10.0.0.10:8080", client4), true),
        ("a reply to this host", plain(TCP, "10.0.0.10:8080", "10.0.0.1:4000"), false),
        (
            "an ICMP error about a service",
            frame(&icmp_error(3, ip("203.0.113.1"), ip("192.0.2.1"), &answer)),
            false,
        ),
        ("a ping", frame(&ipv4(client, vip, 1, 0, &[], &[8; 8])), false),
        ("a first fragment", cut(client, vip, 0x2000, &segment(TCP, 4000, 80)), true),
        ("a first fragment to another port", cut(client, vip, 0x2000, &segment(TCP, 4000, 22)), false),
        ("a later fragment", cut(client, vip, 0x2010, &segment(TCP, 4000, 80)), false),
        ("a reply's first fragment", cut(server, client, 0x2000, &segment(TCP, 8080, 4000)), true),
        ("a reply's later fragment", cut(server, client, 0x0010, &segment(TCP, 8080, 4000)), false),
        ("IPv6, a first fragment", frame(&ipv6(client6, vip6, 44, &first6)), true),
        ("IPv6, a later fragment", frame(&ipv6(client6, vip6, 44, &later6)), false),
        ("IPv6, 320 bytes of options", frame(&ipv6(client6, vip6, 0, &long6)), true),
        ("ARP", ethernet(0x0806, &[0; 46]), false),
    ];
    let steering = example();
    let guard = Guard::new(&steering, Duration::from_secs(600), Guarded::Certain).unwrap();
    for (what, frame, expected) in &table {
        assert_eq!(guard.drops(frame).unwrap(), *expected, "{what}");
    }
    guard.refresh(Duration::ZERO).unwrap();
    for (what, frame, _) in &table {
        assert!(!guard.drops(frame).unwrap(), "{what}, after the deadline");
    }
    guard.refresh(Duration::MAX).unwrap();
    for (frame, ports_end) in [(&table[0].1, 14 + 20 + 4), (&table[3].1, 14 + 40 + 4)] {
        for length in 0..=frame.len() {
            // The kernel itself refuses to run a classifier over less than an IP header.
            let drops = guard.drops(&frame[..length]).is_ok_and(|drops| drops);
            assert_eq!(drops, length >= ports_end, "{length} bytes");
        }
    }
}

/// A program that runs while its sets grow finds every key that was there. `UVS_STEER_KEYS` sets how many.
#[test]
fn grows_without_a_restart() {
    let keys: u32 = std::env::var("UVS_STEER_KEYS").map_or(20_000, |text| text.parse().unwrap());
    let mut steering = Steering::new().unwrap();
    let program = steering.dry_run().unwrap();
    let server =
        |index: u32| SocketAddr::new(std::net::Ipv4Addr::from_bits(0x0a00_0000 + index / 8).into(), 80);
    let client = at("198.51.100.7:4000");
    let first = frame(&packet(TCP, server(0), client));
    steering.add_reply(server(0).ip(), 80, TCP).unwrap();
    let growing = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut runs = 0_u32;
            while growing.load(Relaxed) || runs == 0 {
                assert_eq!(program.takes(&first).unwrap(), OURS, "run {runs}");
                runs += 1;
            }
        });
        let started = Instant::now();
        for index in 1..keys {
            let port = 80 + u16::try_from(index % 8).unwrap();
            steering.add_reply(server(index).ip(), port, TCP).unwrap();
        }
        println!("{keys} keys in {:?}", started.elapsed());
        growing.store(false, Relaxed);
        watching.join().unwrap();
    });
    for index in (0..keys).step_by(997) {
        let from = SocketAddr::new(server(index).ip(), 80 + u16::try_from(index % 8).unwrap());
        assert_eq!(program.takes(&frame(&packet(TCP, from, client))).unwrap(), OURS, "key {index}");
    }
    let absent = SocketAddr::new(server(keys + 8).ip(), 80);
    assert_eq!(program.takes(&frame(&packet(TCP, absent, client))).unwrap(), THEIRS);
    assert_eq!(steering.keys().replies, (keys + keys.div_ceil(8)) as usize);
}

fn ip4(text: &str) -> std::net::Ipv4Addr {
    text.parse().unwrap()
}

fn ip6(text: &str) -> std::net::Ipv6Addr {
    text.parse().unwrap()
}

/// An extension header of `8 * units` bytes in front of `rest`.
fn extension(next: u8, units: u8, rest: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 8 * usize::from(units)];
    header[0] = next;
    header[1] = units - 1;
    header.extend(rest);
    header
}

/// A fragment header in front of `rest`; `field` is the offset and the flag for more.
fn fragment6(next: u8, field: u16, rest: &[u8]) -> Vec<u8> {
    let [high, low] = field.to_be_bytes();
    [&[next, 0, high, low, 0, 0, 0, 1], rest].concat()
}

/// An ICMP error of the family of its addresses that quotes a packet.
fn icmp_error(kind: u8, source: IpAddr, destination: IpAddr, quoted: &[u8]) -> Vec<u8> {
    let error = [&[kind, 0, 0, 0, 0, 0, 0, 0], quoted].concat();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => ipv4(source, destination, 1, 0, &[], &error),
        (IpAddr::V6(source), IpAddr::V6(destination)) => ipv6(source, destination, 58, &error),
        _ => panic!("one packet, two families"),
    }
}

/// What this host sends and we have to see: on the loopback device what is for services, everywhere what its own real servers
/// answer.
#[test]
fn diverts_this_hosts_own() {
    let mut steering = example();
    for (address, port, protocol) in
        [("192.0.2.1", 8080, TCP), ("127.0.0.1", 53, UDP), ("fd00::1", 8080, TCP)]
    {
        steering.add_own_server(ip(address), port, protocol).unwrap();
    }
    let to_service = "192.0.2.1:80";
    let closed = |about: &str, by: &str| {
        let request = packet(UDP, at(about), at(by));
        frame(&icmp_error(3, at(by).ip(), at(about).ip(), &request))
    };
    let cut = |from, to| frame(&ipv4(ip4(from), ip4(to), UDP, 0x2000, &[], &[0; 24]));
    // What; the frame; whether it is diverted on the loopback device, and on others.
    let table = [
        ("to a service", plain(TCP, "192.0.2.1:40000", to_service), [true, false]),
        ("to one of any port", plain(UDP, "192.0.2.2:40000", "192.0.2.2:9"), [true, false]),
        ("to one of IPv6", plain(TCP, "[2001:db8::1]:40000", "[2001:db8::1]:80"), [true, false]),
        ("to another port", plain(TCP, "192.0.2.1:40000", "192.0.2.1:22"), [false, false]),
        ("to a client of this host", plain(TCP, to_service, "192.0.2.1:40000"), [false, false]),
        ("to a real server", plain(TCP, "10.0.0.1:40000", "10.0.0.10:8080"), [false, false]),
        ("from a real server here", plain(TCP, "192.0.2.1:8080", "198.51.100.7:4000"), [true, true]),
        ("from one at a loopback address", plain(UDP, "127.0.0.1:53", "192.0.2.1:4000"), [true, true]),
        ("from one of IPv6", plain(TCP, "[fd00::1]:8080", "[2001:db8:f::7]:4000"), [true, true]),
        ("from another of its ports", plain(TCP, "192.0.2.1:22", "198.51.100.7:4000"), [false, false]),
        ("from another protocol", plain(UDP, "192.0.2.1:8080", "198.51.100.7:4000"), [false, false]),
        ("that a real server here is closed", closed("198.51.100.7:4000", "127.0.0.1:53"), [true, true]),
        ("that another socket is", closed("198.51.100.7:4000", "127.0.0.1:54"), [false, false]),
        ("a fragment to a service", cut("10.0.0.1", "192.0.2.2"), [true, false]),
        ("a fragment from a real server here", cut("127.0.0.1", "192.0.2.9"), [true, true]),
        ("another fragment", cut("10.0.0.1", "10.0.0.10"), [false, false]),
    ];
    let diversion = Diversion::new(&steering, 1, Duration::from_secs(600)).unwrap();
    for (what, frame, expected) in &table {
        let diverted = [true, false].map(|loopback| diversion.diverts(loopback, frame).unwrap());
        assert_eq!(diverted, *expected, "{what}");
    }
    diversion.refresh(Duration::ZERO).unwrap();
    assert!(table.iter().all(|(_, frame, _)| !diversion.diverts(true, frame).unwrap()), "its time is over");
}
