//! Virtual addresses on devices, and what their neighbours hear of it.

use crate::support::{LIMIT, Namespace, add_address, index, mac_of};
use etherparse::{Icmpv6Type, NetSlice, SlicedPacket, TransportSlice};
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
};
use nix::sys::time::TimeVal;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};
use uvs_control::netlink::{Client, Event, Monitor};
use uvs_control::vips::{Announcer, Assigned, Host, VipError, Vips};

/// Everything that arrives at the devices of the calling thread's namespace.
fn listen() -> OwnedFd {
    let socket =
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll).unwrap();
    setsockopt(&socket, ReceiveTimeout, &TimeVal::new(1, 0)).unwrap();
    socket
}

/// Waits for an announcement of `address`; the link-layer address it gives.
fn announced(socket: &OwnedFd, address: IpAddr) -> [u8; 6] {
    let end = Instant::now() + LIMIT;
    let mut buffer = [0; 2048];
    loop {
        assert!(Instant::now() < end, "nobody announced {address}");
        let Ok((length, _)) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) else { continue };
        if let Some((of, mac)) = announcement(&buffer[..length])
            && of == address
        {
            return mac;
        }
    }
}

/// Which address a frame announces, and where.
fn announcement(frame: &[u8]) -> Option<(IpAddr, [u8; 6])> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    match (packet.net?, packet.transport) {
        (NetSlice::Arp(arp), _) if arp.sender_protocol_addr() == arp.target_protocol_addr() => {
            let address: [u8; 4] = arp.sender_protocol_addr().try_into().ok()?;
            Some((address.into(), arp.sender_hw_addr().try_into().ok()?))
        }
        (NetSlice::Ipv6(_), Some(TransportSlice::Icmpv6(icmp))) => match icmp.icmp_type() {
            Icmpv6Type::NeighborAdvertisement(_) => {
                let target: [u8; 16] = frame.get(62..78)?.try_into().ok()?;
                Some((target.into(), frame.get(80..86)?.try_into().ok()?))
            }
            _ => None,
        },
        _ => None,
    }
}

/// A namespace with devices `a` (10.0.0.1/24) and `b` (10.0.1.1/24, fd00::1/64), whose other ends are `x` and `y`.
fn two_links() -> (Namespace, Namespace) {
    let (here, there) = (Namespace::new(), Namespace::new());
    here.veth("a", &there, "x");
    here.veth("b", &there, "y");
    here.run(|| {
        add_address("a", "10.0.0.1/24");
        add_address("b", "10.0.1.1/24");
        add_address("b", "fd00::1/64");
    });
    (here, there)
}

fn vips(device: Option<u32>) -> Vips {
    Vips::new(Client::open().unwrap(), Announcer::open().unwrap(), device)
}

/// Where this namespace has `address`, and with which prefix.
fn place(address: &str) -> Option<(u32, u8)> {
    let address: IpAddr = address.parse().unwrap();
    let mut monitor = Monitor::open().unwrap();
    monitor.read().unwrap();
    monitor.addresses().find(|host| host.address == address).map(|host| (host.ifindex, host.prefix_len))
}

fn assign(vips: &mut Vips, vip: &str, held: &[u32]) -> Result<Assigned, VipError> {
    let mut monitor = Monitor::open().unwrap();
    monitor.read().unwrap();
    vips.assign(vip.parse().unwrap(), &Host::of(&monitor, held), Instant::now())
}

/// Tells `vips` what changed.
fn follow(vips: &mut Vips, monitor: &mut Monitor, held: &[u32], now: Instant) {
    let events = monitor.read().unwrap();
    let host = Host::of(monitor, held);
    vips.follow(&events, &host, now);
    vips.tick(&host, now);
}

#[test]
fn a_vip_that_is_lost_is_put_back_and_announced() {
    let (here, there) = two_links();
    let ear = there.run(listen);
    here.run(|| {
        let held = [index("a"), index("b")];
        let (mut vips, mut monitor) = (vips(None), Monitor::open().unwrap());
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        for vip in ["10.0.0.80", "fd00::80"] {
            assign(&mut vips, vip, &held).unwrap();
        }
        follow(&mut vips, &mut monitor, &held, after(0));

        crate::support::delete_address("a", "10.0.0.80/32");
        follow(&mut vips, &mut monitor, &held, after(10));
        assert_eq!(place("10.0.0.80"), Some((held[0], 32)), "taken off by somebody");
        // Whoever takes it off again and again is not answered as fast.
        crate::support::delete_address("a", "10.0.0.80/32");
        follow(&mut vips, &mut monitor, &held, after(10));
        assert_eq!(place("10.0.0.80"), None);
        assert!(vips.due().is_some_and(|due| due <= after(11)), "nothing is due");
        follow(&mut vips, &mut monitor, &held, after(11));
        assert_eq!(place("10.0.0.80"), Some((held[0], 32)), "taken off again");

        // The kernel takes all IPv6 addresses off a device that goes down.
        crate::support::down("b");
        follow(&mut vips, &mut monitor, &held, after(20));
        assert_eq!(place("fd00::80"), None, "put on a device that is down");
        crate::support::up("b");
        wait_until_up("b");
        while recvfrom::<LinkAddr>(ear.as_raw_fd(), &mut [0; 2048]).is_ok() {}
        follow(&mut vips, &mut monitor, &held, after(30));
        assert_eq!(place("fd00::80"), Some((held[1], 128)), "the device was down");
        assert_eq!(announced(&ear, "fd00::80".parse().unwrap()), mac_of("b"));

        drop(vips);
        assert_eq!((place("10.0.0.80"), place("fd00::80")), (None, None), "gone at the end");
    });
}

fn wait_until_up(name: &str) {
    let up = |event: &Event| matches!(event, Event::LinkChanged(link) if link.name == name && link.up);
    crate::support::events_until(&mut Monitor::open().unwrap(), |events| events.iter().any(up));
}

#[test]
fn neighbours_hear_where_a_vip_is_when_its_device_changed() {
    let (here, there) = two_links();
    let ear = there.run(listen);
    here.run(|| {
        let held = [index("a"), index("b")];
        let (mut vips, mut monitor) = (vips(None), Monitor::open().unwrap());
        let (begin, vip) = (Instant::now(), "10.0.0.80".parse().unwrap());
        assign(&mut vips, "10.0.0.80", &held).unwrap();
        for second in 0..5 {
            follow(&mut vips, &mut monitor, &held, begin + Duration::from_secs(60 * second));
        }
        assert_eq!(vips.due(), None, "announced for good");
        while recvfrom::<LinkAddr>(ear.as_raw_fd(), &mut [0; 2048]).is_ok() {}
        let mac = [2, 0, 0, 0, 0, 0x77];
        crate::support::set_mac("a", mac);
        follow(&mut vips, &mut monitor, &held, begin + Duration::from_secs(600));
        assert_eq!(announced(&ear, vip), mac, "it has another Ethernet address");
    });
}

/// Its addresses stay where it is killed; the next one knows them.
#[test]
fn what_a_killed_director_left_is_taken_over() {
    let (here, there) = two_links();
    let ear = there.run(listen);
    here.run(|| {
        let held = [index("a"), index("b")];
        let mut killed = vips(None);
        for vip in ["10.0.0.80", "10.0.0.81", "fd00::80", "10.0.1.82"] {
            assign(&mut killed, vip, &held).unwrap();
        }
        std::mem::forget(killed);
        add_address("a", "10.0.0.90/32");
        while recvfrom::<LinkAddr>(ear.as_raw_fd(), &mut [0; 2048]).is_ok() {}

        let mut next = vips(None);
        next.take_over(&held[..1]).unwrap();
        assert_eq!(assign(&mut next, "10.0.0.80", &held).unwrap(), Assigned::Added(held[0]));
        assert_eq!(announced(&ear, "10.0.0.80".parse().unwrap()), mac_of("a"));
        assert_eq!(assign(&mut next, "10.0.0.90", &held).unwrap(), Assigned::Found(held[0]));
        drop(next);
        assert_eq!(place("10.0.0.80"), None, "a service of the next one had it");
        assert_eq!(place("10.0.0.81"), None, "no service had it");
        assert_eq!(place("10.0.0.90"), Some((held[0], 32)), "somebody else put it there");
        assert_eq!(place("fd00::80"), Some((held[1], 128)), "on a device that the next one does not hold");

        let mut last = vips(None);
        last.take_over(&held).unwrap();
        assert_eq!(assign(&mut last, "fd00::80", &held).unwrap(), Assigned::Added(held[1]));
        last.withdraw("fd00::80".parse().unwrap()).unwrap();
        assert_eq!(place("fd00::80"), None, "its last service is gone");
        drop(last);
        assert_eq!(place("10.0.1.82"), None);
    });
}

#[test]
fn a_vip_goes_where_it_belongs() {
    let (here, _there) = two_links();
    here.run(|| {
        let (a, b) = (index("a"), index("b"));
        let cases = [
            ("its subnet's device", None, vec![a, b], "10.0.1.80", b),
            ("its subnet's device, IPv6", None, vec![a, b], "fd00::80", b),
            ("the first device without a subnet", None, vec![a, b], "192.0.2.80", a),
            ("a device held, its subnet's is not", None, vec![a], "10.0.1.80", a),
            ("the device given", Some(b), vec![a, b], "10.0.0.80", b),
        ];
        for (shows, device, held, vip, expected) in cases {
            let mut vips = vips(device);
            assert_eq!(assign(&mut vips, vip, &held).unwrap(), Assigned::Added(expected), "{shows}");
            let whole = if vip.contains(':') { 128 } else { 32 };
            assert_eq!(place(vip), Some((expected, whole)), "{shows}");
            drop(vips);
            assert_eq!(place(vip), None, "{shows}: gone at the end");
        }
    });
}

#[test]
fn neighbours_hear_of_a_new_vip() {
    let (here, there) = two_links();
    let ear = there.run(listen);
    here.run(|| {
        let held = [index("a"), index("b")];
        let (mut vips, mut monitor) = (vips(None), Monitor::open().unwrap());
        let start = Instant::now();
        for (vip, device) in [("10.0.0.80", "a"), ("fd00::80", "b")] {
            assign(&mut vips, vip, &held).unwrap();
            assert_eq!(announced(&ear, vip.parse().unwrap()), mac_of(device), "{vip}");
        }
        // Again after a while, for those who missed it; then it is enough.
        for second in 1..=2 {
            follow(&mut vips, &mut monitor, &held, start + Duration::from_secs(60 * second));
            for (vip, device) in [("10.0.0.80", "a"), ("fd00::80", "b")] {
                assert_eq!(announced(&ear, vip.parse().unwrap()), mac_of(device), "{vip}, {second}");
            }
        }
        assert_eq!(vips.due(), None);
    });
}

#[test]
fn a_neighbour_that_knew_the_vip_elsewhere_learns_better() {
    let (here, there) = two_links();
    there.run(|| {
        // Else the kernel takes no second word on a neighbour within a second.
        std::fs::write("/proc/sys/net/ipv4/neigh/x/locktime", "0").unwrap();
        add_address("x", "10.0.0.2/24");
        add_address("y", "fd00::2/64");
        for (device, vip) in [("x", "10.0.0.80"), ("y", "fd00::80")] {
            crate::support::set_neighbour(
                device,
                vip,
                [2, 0, 0, 0, 0, 0x66],
                netlink_packet_route::neighbour::NeighbourState::Stale,
            );
        }
    });
    here.run(|| {
        let held = [index("a"), index("b")];
        let mut vips = vips(None);
        for (vip, device) in [("10.0.0.80", "a"), ("fd00::80", "b")] {
            assign(&mut vips, vip, &held).unwrap();
            let (mac, vip) = (mac_of(device), vip.parse::<IpAddr>().unwrap());
            there.run(|| {
                let mut monitor = Monitor::open().unwrap();
                crate::support::events_until(&mut monitor, |events| {
                    events.iter().any(|event| {
                        matches!(event, uvs_control::netlink::Event::NeighbourChanged(entry)
                            if entry.address == vip && entry.mac == Some(mac))
                    })
                });
            });
        }
    });
}

#[test]
fn what_was_there_before_stays() {
    let (here, _there) = two_links();
    here.run(|| {
        let held = [index("a"), index("b")];
        add_address("lo", "192.0.2.80/32");
        let mut vips = vips(None);
        assert_eq!(assign(&mut vips, "192.0.2.80", &held).unwrap(), Assigned::Found(index("lo")));
        assert_eq!(assign(&mut vips, "10.0.0.1", &held).unwrap(), Assigned::Found(held[0]));
        vips.withdraw("10.0.0.1".parse().unwrap()).unwrap();
        drop(vips);
        assert_eq!(place("192.0.2.80"), Some((index("lo"), 32)));
        assert_eq!(place("10.0.0.1"), Some((held[0], 24)));
    });
}

#[test]
fn a_vip_stays_while_a_service_has_it() {
    let (here, _there) = two_links();
    here.run(|| {
        let a = index("a");
        let vip = "10.0.0.80".parse().unwrap();
        let mut vips = vips(None);
        assert_eq!(assign(&mut vips, "10.0.0.80", &[a]).unwrap(), Assigned::Added(a));
        assert_eq!(assign(&mut vips, "10.0.0.80", &[a]).unwrap(), Assigned::Kept(a));
        vips.withdraw(vip).unwrap();
        assert_eq!(place("10.0.0.80"), Some((a, 32)));
        // Somebody else took it off meanwhile: no reason to complain.
        crate::support::delete_address("a", "10.0.0.80/32");
        vips.withdraw(vip).unwrap();
        vips.withdraw(vip).unwrap();
        assert_eq!(place("10.0.0.80"), None);
    });
}

#[test]
fn a_service_counts_whose_vip_could_not_be_assigned() {
    let (here, _there) = two_links();
    here.run(|| {
        let (a, vip) = (index("a"), "10.0.0.80".parse().unwrap());
        let mut vips = vips(None);
        assign(&mut vips, "10.0.0.80", &[]).unwrap_err();
        assert_eq!(assign(&mut vips, "10.0.0.80", &[a]).unwrap(), Assigned::Added(a));
        vips.withdraw(vip).unwrap();
        assert_eq!(place("10.0.0.80"), Some((a, 32)), "one of two services is left");
        vips.withdraw(vip).unwrap();
        assert_eq!(place("10.0.0.80"), None);
    });
}

#[test]
fn what_cannot_be_assigned_is_refused_with_a_reason() {
    let (here, _there) = two_links();
    here.run(|| {
        let mut vips = vips(None);
        for (vip, held, expected) in [
            ("10.0.0.80", vec![], "no device to put 10.0.0.80 on"),
            ("10.0.0.80", vec![9_999], "no device to put 10.0.0.80 on"),
            ("127.0.0.1", vec![index("a")], "127.0.0.1 is no address that a host can have"),
            ("ff02::1", vec![index("a")], "ff02::1 is no address that a host can have"),
            ("255.255.255.255", vec![index("a")], "255.255.255.255 is no address that a host can have"),
            ("10.0.0.255", vec![index("a")], "10.0.0.255 is no address that a host can have"),
            ("fe80::99", vec![index("a"), index("b")], "fe80::99 is link-local, which does not say on which"),
        ] {
            let refusal = assign(&mut vips, vip, &held).unwrap_err().to_string();
            assert!(refusal.starts_with(expected), "{refusal}");
        }
        assert_eq!(assign(&mut vips, "fe80::80", &[index("b")]).unwrap(), Assigned::Added(index("b")));
    });
}
