//! The way back into the kernel's stack.

use super::{
    CLIENT, CLIENT6, Outcome, PATIENCE, RawTcp, SERVER, SERVER6, Site, TO_CLIENT, VIP, VIP6, check, frames,
};
use etherparse::{IpFragOffset, PacketBuilder, PacketBuilderStep, UdpHeader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use uvs_engine::steer::way_back::DEVICE_PREFIX;
use uvs_engine::steer::{Injected, WayBack};
use uvs_lab::probe::{Segment, flags};

type Test = (&'static str, fn() -> Outcome);

pub(super) const TESTS: &[Test] = &[
    ("way_back::delivers_to_local_sockets", delivers_to_local_sockets),
    ("way_back::delivers_fragments", delivers_fragments),
    ("way_back::delivers_jumbo_frames_in_parts", delivers_jumbo_frames_in_parts),
    ("way_back::forwards", forwards),
    ("way_back::lets_the_kernel_reset", lets_the_kernel_reset),
    ("way_back::lets_the_kernel_say_unreachable", lets_the_kernel_say_unreachable),
    ("way_back::allows_ipv6_where_new_devices_have_none", allows_ipv6_where_new_devices_have_none),
    ("way_back::goes_with_its_owner", goes_with_its_owner),
    ("way_back::refuses_what_is_no_frame", refuses_what_is_no_frame),
];

/// The strictest reverse-path filtering a host can ask for.
fn strict(site: &Site) -> Outcome {
    for scope in ["all", "default", TO_CLIENT] {
        site.director.sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "1")?;
    }
    Ok(())
}

fn open(site: &Site) -> Result<WayBack, libtest_mimic::Failed> {
    Ok(site.director.run(WayBack::open)??)
}

/// A frame as it would have come to the director from a device of its own.
fn network(from: IpAddr, to: IpAddr) -> PacketBuilderStep<etherparse::IpHeaders> {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 1]);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("one packet, two families"),
    }
}

fn datagram(from: SocketAddr, to: SocketAddr, text: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    network(from.ip(), to.ip()).udp(from.port(), to.port()).write(&mut frame, text).unwrap();
    frame
}

fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn families() -> [(SocketAddr, SocketAddr, SocketAddr); 2] {
    [
        (at(CLIENT, 4000), at(VIP, 9000), at(SERVER, 9000)),
        (at(ip(CLIENT6), 4000), at(ip(VIP6), 9000), at(ip(SERVER6), 9000)),
    ]
}

fn expect(socket: &UdpSocket, text: &[u8], from: SocketAddr, what: &str) -> Outcome {
    let mut received = vec![0; 1 << 16];
    let (length, sender) = socket.recv_from(&mut received).map_err(|error| format!("{what}: {error}"))?;
    check(&received[..length] == text && sender == from, format!("{what}: {length} bytes from {sender}"))
}

fn listen(namespace: &uvs_lab::Namespace, address: SocketAddr) -> Result<UdpSocket, libtest_mimic::Failed> {
    let socket = namespace.run(|| UdpSocket::bind(address))??;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn delivers_to_local_sockets() -> Outcome {
    let site = Site::build()?;
    strict(&site)?;
    let back = open(&site)?;
    for (client, vip, _) in families() {
        let socket = listen(&site.director, vip)?;
        let plain = datagram(client, vip, b"plain");
        let in_vlan = frames::tagged(0x8100, datagram(client, vip, b"in a VLAN"));
        let in_two = frames::tagged(0x88a8, frames::tagged(0x8100, datagram(client, vip, b"in two")));
        for (frame, text) in [(plain, &b"plain"[..]), (in_vlan, b"in a VLAN"), (in_two, b"in two")] {
            check(back.inject(&[&frame]) == Injected::Taken, "the kernel takes it")?;
            expect(&socket, text, client, &format!("{vip}"))?;
        }
    }
    Ok(())
}

/// What an 8 kB datagram to an ordinary socket on a VIP comes down to.
fn delivers_fragments() -> Outcome {
    let site = Site::build()?;
    strict(&site)?;
    let back = open(&site)?;
    let (client, vip, _) = families()[0];
    let socket = listen(&site.director, vip)?;
    let text: Vec<u8> = (0..8000).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let header = UdpHeader::with_ipv4_checksum(
        client.port(),
        vip.port(),
        &etherparse::Ipv4Header::new(0, 64, etherparse::IpNumber::UDP, CLIENT.octets(), VIP.octets())?,
        &text,
    )?;
    let mut whole = header.to_bytes().to_vec();
    whole.extend(&text);
    let pieces = whole.chunks(1480).enumerate().map(|(index, piece)| {
        let last = (index + 1) * 1480 >= whole.len();
        fragment(CLIENT, VIP, index * 1480 / 8, last, piece)
    });
    for piece in pieces.rev() {
        check(back.inject(&[&piece]) == Injected::Taken, "the kernel takes every fragment")?;
    }
    expect(&socket, &text, client, "in fragments, last first")
}

fn fragment(from: Ipv4Addr, to: Ipv4Addr, offset: usize, last: bool, piece: &[u8]) -> Vec<u8> {
    let length = u16::try_from(piece.len()).unwrap();
    let protocol = etherparse::IpNumber::UDP;
    let mut header = etherparse::Ipv4Header::new(length, 64, protocol, from.octets(), to.octets()).unwrap();
    header.identification = 7;
    header.dont_fragment = false;
    header.more_fragments = !last;
    header.fragment_offset = IpFragOffset::try_new(u16::try_from(offset).unwrap()).unwrap();
    header.header_checksum = header.calc_header_checksum();
    frames::frame(&[&header.to_bytes()[..], piece].concat())
}

fn delivers_jumbo_frames_in_parts() -> Outcome {
    let site = Site::build()?;
    let back = open(&site)?;
    for (client, vip, _) in families() {
        let socket = listen(&site.director, vip)?;
        for length in [1, 100, 1792, 3000, 4095, 4096, 8900, 60_000] {
            let text: Vec<u8> = (0..length).map(|i| u8::try_from(i % 241).unwrap()).collect();
            let frame = datagram(client, vip, &text);
            let parts: Vec<&[u8]> = frame.chunks(1792.max(length / 16)).collect();
            check(back.inject(&parts) == Injected::Taken, format!("{length} bytes are taken"))?;
            expect(&socket, &text, client, &format!("{vip}, {length} bytes"))?;
        }
    }
    Ok(())
}

fn forwards() -> Outcome {
    let site = Site::build()?;
    strict(&site)?;
    let back = open(&site)?;
    // Also when forwarding is switched on later than the device was made.
    site.director.sysctl("net/ipv4/ip_forward", "1")?;
    site.director.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    for (client, _, server) in families() {
        let socket = listen(&site.server, server)?;
        check(back.inject(&[&datagram(client, server, b"on its way")]) == Injected::Taken, "taken")?;
        expect(&socket, b"on its way", client, &format!("{server}"))?;
    }
    Ok(())
}

fn lets_the_kernel_reset() -> Outcome {
    let site = Site::build()?;
    strict(&site)?;
    let back = open(&site)?;
    let probe = RawTcp::open(&site.client)?;
    let mut frame = Vec::new();
    network(CLIENT.into(), VIP.into()).tcp(4000, 80, 1, 1024).ack(7).write(&mut frame, b"mid-stream")?;
    check(back.inject(&[&frame]) == Injected::Taken, "the kernel takes it")?;
    let is_reset = |s: &Segment| s.source == 80 && s.destination == 4000 && s.flags & flags::RST != 0;
    check(probe.receive(PATIENCE, is_reset)?.is_some(), "the client hears a RST from the service")
}

/// The answer to a datagram for a closed port reaches its sender, in both families, by the sender's own link.
fn lets_the_kernel_say_unreachable() -> Outcome {
    let site = Site::build()?;
    strict(&site)?;
    let back = open(&site)?;
    for (client, vip, _) in families() {
        let socket = listen(&site.client, client)?;
        socket.connect(vip)?;
        check(back.inject(&[&datagram(client, vip, b"anybody?")]) == Injected::Taken, "taken")?;
        let refused = socket.recv(&mut [0; 8]).map_err(|error| error.kind());
        check(refused == Err(std::io::ErrorKind::ConnectionRefused), format!("{vip}: {refused:?}"))?;
    }
    Ok(())
}

fn allows_ipv6_where_new_devices_have_none() -> Outcome {
    let site = Site::build()?;
    site.director.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
    let back = open(&site)?;
    let (client, vip, _) = families()[1];
    let socket = listen(&site.director, vip)?;
    check(back.inject(&[&datagram(client, vip, b"six")]) == Injected::Taken, "taken")?;
    expect(&socket, b"six", client, "IPv6")
}

fn goes_with_its_owner() -> Outcome {
    let site = Site::build()?;
    let devices = || -> Result<Vec<String>, libtest_mimic::Failed> {
        let names = site.director.run(|| -> nix::Result<Vec<String>> {
            let all = nix::net::if_::if_nameindex()?;
            Ok(all.iter().map(|device| device.name().to_string_lossy().into_owned()).collect())
        })??;
        Ok(names.into_iter().filter(|name| name.starts_with(DEVICE_PREFIX)).collect())
    };
    let (first, second) = (open(&site)?, open(&site)?);
    check(
        devices()? == [first.name(), second.name()],
        format!("two directors, two devices: {:?}", devices()?),
    )?;
    check(site.ifindex(first.name()) == first.ifindex(), "the index is the device's")?;
    let addresses6 = site.director.run(|| std::fs::read_to_string("/proc/thread-self/net/if_inet6"))??;
    check(!addresses6.contains(DEVICE_PREFIX), format!("no IPv6 address: {addresses6}"))?;
    drop(first);
    check(devices()? == [second.name()], "the device goes with its owner")?;
    drop(second);
    check(devices()?.is_empty(), "both are gone")
}

fn refuses_what_is_no_frame() -> Outcome {
    let site = Site::build()?;
    let back = open(&site)?;
    let frame = frames::frame(&frames::packet(17, at(CLIENT, 1), at(VIP, 2)));
    let many = vec![&frame[..1]; 37];
    for (what, parts, expected) in [
        ("nothing", vec![], Injected::Refused),
        ("an empty part", vec![&[][..]], Injected::Refused),
        ("less than a header", vec![&frame[..13]], Injected::Refused),
        ("a header in two parts", vec![&frame[..13], &frame[13..]], Injected::Refused),
        ("a header alone", vec![&frame[..14]], Injected::Taken),
        ("more parts than frames have", [vec![&frame[..]], many].concat(), Injected::Refused),
    ] {
        check(back.inject(&parts) == expected, what)?;
    }
    site.director.net().down(back.name())?;
    check(back.inject(&[&frame]) == Injected::Refused, "the device is down")
}
